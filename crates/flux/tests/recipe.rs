//! Workflows and pictures read as recipes: both formats of ComfyUI's after its public FLUX.1 Krea template, and files that lie.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use flux::{
    image_file::{self, Encoding, Format, Provenance, Upscaled},
    model::SearchPaths,
    noise::Noise,
    pixels::Rgb8,
    recipe::{Recipe, T5Length},
    safety::Safety,
};
use serde_json::{Value, json};

fn text(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/workflows").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn parsed(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap()
}

fn error(workflow: &Value) -> String {
    Recipe::from_workflow(&workflow.to_string()).unwrap_err().to_string()
}

#[test]
fn both_formats_say_the_same() {
    let editor = Recipe::from_workflow(&text("krea_ui.json")).unwrap();
    let api = Recipe::from_workflow(&text("krea_api.json")).unwrap();
    assert_eq!(editor, api);
    assert_eq!(editor.files.transformer.as_deref(), Some("flux1-krea-dev_fp8_scaled.safetensors"));
    assert_eq!(editor.files.clip, ["clip_l.safetensors", "t5xxl_fp16.safetensors"]);
    assert_eq!(editor.files.vae.as_deref(), Some("ae.safetensors"));
    assert_eq!(editor.prompt.as_deref(), Some("a lighthouse in a storm, \"quoted\", ünïcode"));
    assert_eq!((editor.width, editor.height, editor.batch), (Some(1024), Some(768), Some(1)));
    assert_eq!((editor.steps, editor.seed), (Some(20), Some(277_513_094_096_450)));
    assert_eq!((editor.true_cfg, editor.guidance), (Some(1.0), Some(3.5)));
    assert_eq!((editor.sampler.as_deref(), editor.schedule.as_deref()), (Some("euler"), Some("comfy-simple")));
    assert_eq!((editor.noise, editor.t5_length), (Some(Noise::CpuF32), Some(T5Length::AtLeast(256))));
    assert!(editor.negative_prompt.is_none() && editor.notes.is_empty(), "{:?}", editor.notes);
    // As it is sent to a server, and as Python writes numbers that are none.
    let wrapped = json!({"prompt": parsed("krea_api.json"), "client_id": "x"}).to_string();
    assert_eq!(Recipe::from_workflow(&wrapped).unwrap(), api);
    let odd = text("krea_api.json").replacen("\"inputs\"", "\"is_changed\": [NaN], \"inputs\"", 1);
    assert_eq!(Recipe::from_workflow(&odd).unwrap(), api);
}

#[test]
fn nodes_of_custom_sampling_and_what_stands_for_nothing() {
    let recipe = Recipe::from_workflow(&text("custom_ui.json")).unwrap();
    assert_eq!(recipe.files.transformer.as_deref(), Some("flux1-krea-dev-Q8_0.gguf"));
    assert_eq!((recipe.width, recipe.height), (Some(896), Some(1152)));
    assert_eq!((recipe.steps, recipe.seed, recipe.guidance), (Some(28), Some(42), Some(4.5)));
    assert_eq!(recipe.schedule.as_deref(), Some("comfy-simple-sized"));
    assert_eq!(recipe.prompt.as_deref(), Some("a paper boat\nin the rain"));
    let loras: Vec<_> = recipe.loras.iter().map(|lora| (lora.file.as_str(), lora.weight, lora.text_weight)).collect();
    assert_eq!(loras, [("style/ink.safetensors", 0.8, None)]);
    assert_eq!((recipe.upscale, recipe.files.upscaler.as_deref()), (Some(4), Some("RealESRGAN_x4plus.safetensors")));
    assert_eq!(recipe.notes, ["the picture does not depend on 'PreviewImage' (25), 'FaceDetailer' (26)"]);
}

#[test]
fn a_subgraph_and_what_its_user_sets() {
    let recipe = Recipe::from_workflow(&text("subgraph_ui.json")).unwrap();
    assert_eq!(recipe.prompt.as_deref(), Some("outer text"));
    assert_eq!((recipe.width, recipe.height), (Some(640), Some(480)));
    assert_eq!((recipe.steps, recipe.seed), (Some(20), Some(7)));
    // Where nothing is set from outside, what is inside holds.
    let mut workflow = parsed("subgraph_ui.json");
    workflow["nodes"][0]["widgets_values"] = json!([]);
    let recipe = Recipe::from_workflow(&workflow.to_string()).unwrap();
    assert_eq!((recipe.prompt.as_deref(), recipe.width), (Some("inner text"), Some(1024)));
    assert_eq!(recipe.seed, Some(277_513_094_096_450));
}

#[test]
fn guidance_negative_prompts_and_pictures_to_begin_with() {
    let mut workflow = parsed("krea_api.json");
    workflow["1"] = json!({"class_type": "FluxGuidance", "inputs": {"guidance": 2.5, "conditioning": ["45", 0]}});
    workflow["31"]["inputs"]["positive"] = json!(["1", 0]);
    workflow["2"] = json!({"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["40", 0]}});
    workflow["31"]["inputs"]["negative"] = json!(["2", 0]);
    workflow["31"]["inputs"]["cfg"] = json!(3);
    let recipe = Recipe::from_workflow(&workflow.to_string()).unwrap();
    assert_eq!(
        (recipe.guidance, recipe.true_cfg, recipe.negative_prompt.as_deref()),
        (Some(2.5), Some(3.0), Some("fog"))
    );
    assert_eq!(recipe.notes.len(), 2, "{:?}", recipe.notes);
    assert!(
        recipe.notes[0].contains("negative prompt is guided") && recipe.notes[1].contains("'ConditioningZeroOut' (42)")
    );

    workflow["3"] = json!({"class_type": "LoadImage", "inputs": {"image": "in.png"}});
    workflow["4"] = json!({"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["39", 0]}});
    workflow["31"]["inputs"]["latent_image"] = json!(["4", 0]);
    workflow["31"]["inputs"]["denoise"] = json!(0.6);
    let recipe = Recipe::from_workflow(&workflow.to_string()).unwrap();
    assert_eq!((recipe.image.as_deref(), recipe.strength, recipe.width), (Some("in.png"), Some(0.6), None));
}

#[test]
fn what_cannot_be_had_is_named() {
    /// What the error says, and how the workflow is spoilt.
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let api = parsed("krea_api.json");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut workflow = api.clone();
        change(&mut workflow);
        error(&workflow)
    };
    let cases: [Case<'_>; 14] = [
        ("needs nodes that are not known here: 'Odd' (38), 'Stranger' (45)", &|w| {
            w["38"]["class_type"] = json!("Odd");
            w["45"]["class_type"] = json!("Stranger");
        }),
        ("goes round in circles at 'KSampler' (31)", &|w| w["31"]["inputs"]["model"] = json!(["31", 0])),
        ("has no node 'gone'", &|w| w["31"]["inputs"]["model"] = json!(["gone", 0])),
        ("'steps' of 'KSampler' (31); a whole number", &|w| w["31"]["inputs"]["steps"] = json!("many")),
        ("does not say 'scheduler' of 'KSampler' (31)", &|w| {
            w["31"]["inputs"].as_object_mut().unwrap().remove("scheduler");
        }),
        ("fills 'seed' of 'KSampler' (31) by a node, 'VAELoader' (39)", &|w| {
            w["31"]["inputs"]["seed"] = json!(["39", 0]);
        }),
        ("takes its model from 'VAELoader' (39)", &|w| w["31"]["inputs"]["model"] = json!(["39", 0])),
        ("decodes what 'EmptySD3LatentImage' (27) gives", &|w| w["8"]["inputs"]["samples"] = json!(["27", 0])),
        ("denoise of 0.5 without a picture", &|w| w["31"]["inputs"]["denoise"] = json!(0.5)),
        ("zeroes the negative conditioning at a cfg", &|w| w["31"]["inputs"]["cfg"] = json!(2)),
        ("for 'type' of 'DualCLIPLoader' (40); flux was expected", &|w| w["40"]["inputs"]["type"] = json!("sdxl")),
        ("has neither a 'SaveImage' nor", &|w| w["9"]["class_type"] = json!("Other")),
        ("has nothing linked to 'images' of 'SaveImage' (9)", &|w| w["9"]["inputs"] = json!({})),
        ("makes several pictures: 'SaveImage' (9), 'SaveImage' (99)", &|w| {
            w["99"] = json!({"class_type": "SaveImage", "inputs": {"images": ["39", 0]}});
        }),
    ];
    for (expected, change) in cases {
        let error = changed(change);
        assert!(error.starts_with("workflow: ") && error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn files_that_are_no_workflow_get_a_sentence() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for wrong in ["", "{", "[]", "3", "{}", "{\"a\": 1}", "{\"nodes\": []}", "{\"nodes\": [{}]}", &deep] {
        let error = Recipe::from_workflow(wrong).unwrap_err().to_string();
        assert!(error.starts_with("workflow: "), "{error}");
    }
    // Reroutes in a circle, and a subgraph in itself.
    let circle = json!({"nodes": [
        {"id": 1, "type": "Reroute", "inputs": [{"name": "", "link": 2}]},
        {"id": 2, "type": "Reroute", "inputs": [{"name": "", "link": 1}]},
        {"id": 3, "type": "SaveImage", "inputs": [{"name": "images", "link": 1}]},
    ], "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 1, 0, "IMAGE"]]});
    assert_eq!(error(&circle), "workflow: has links that go round in circles");
    let users: Vec<Value> = (0..9).map(|id| json!({"id": id, "type": "self"})).collect();
    let nested = json!({"nodes": users, "links": [], "definitions": {"subgraphs": [{"id": "self", "nodes": users}]}});
    assert!(error(&nested).contains("subgraphs"), "{}", error(&nested));
}

/// Whatever stands in the place of a value, the answer is a recipe or a sentence.
#[test]
fn every_value_may_be_another() {
    fn places(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| places(v, &format!("{at}/{i}"), all)),
            Value::Object(items) => items.iter().for_each(|(key, v)| places(v, &format!("{at}/{key}"), all)),
            _ => {}
        }
    }
    let others =
        [json!(null), json!(-1), json!(1e300), json!("x"), json!([]), json!({}), json!(["31", 0]), json!([1, 2, 3, 4])];
    let (mut fine, mut refused) = (0, 0);
    for name in ["krea_ui.json", "krea_api.json", "custom_ui.json", "subgraph_ui.json"] {
        let workflow = parsed(name);
        let mut all = Vec::new();
        places(&workflow, "", &mut all);
        for (place, other) in all.iter().skip(1).flat_map(|place| others.iter().map(move |other| (place, other))) {
            let mut changed = workflow.clone();
            *changed.pointer_mut(place).unwrap() = other.clone();
            match Recipe::from_workflow(&changed.to_string()) {
                Ok(_) => fine += 1,
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().starts_with("workflow: "), "{place}: {error}");
                }
            }
        }
    }
    assert!(fine > 1000 && refused > 1000, "{fine} {refused}");
}

#[test]
fn files_are_found_in_comfyuis_folders_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    let put = |name: &str| {
        let path = models.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"x").unwrap();
        path
    };
    let paths = SearchPaths { comfyui: vec![folder.path().to_owned()], ..SearchPaths::default() };
    let mut recipe = Recipe::from_workflow(&text("krea_api.json")).unwrap();
    let missing = recipe.model_spec(&paths).unwrap_err().to_string();
    for word in ["'flux1-krea-dev_fp8_scaled.safetensors'", "diffusion_models", "unet", "COMFYUI_PATH", "--transformer"]
    {
        assert!(missing.contains(word), "{word}: {missing}");
    }
    let transformer = put("unet/flux1-krea-dev_fp8_scaled.safetensors");
    let (vae, clip) = (put("vae/ae.safetensors"), put("text_encoders/clip_l.safetensors"));
    put("clip/t5xxl_fp16.safetensors");
    let spec = recipe.model_spec(&paths).unwrap().unwrap();
    assert_eq!((spec.parts.transformer, spec.parts.vae), (Some(transformer), Some(vae)));
    assert!(spec.parts.clip_l.is_some() && clip.is_file());
    for name in ["../secret.safetensors", "/etc/passwd", "a/../../b", ""] {
        recipe.files.transformer = Some(name.into());
        assert!(recipe.model_spec(&paths).unwrap_err().to_string().contains("no name in a folder"), "{name}");
    }
    recipe.files.upscaler = Some("sub\\x.safetensors".into());
    let upscaler = put("upscale_models/sub/x.safetensors");
    assert_eq!(recipe.upscaler(&paths).unwrap(), Some(upscaler));
}

fn picture(texts: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    for (key, text) in texts {
        encoder.add_text_chunk((*key).into(), (*text).into()).unwrap();
    }
    encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
    bytes
}

#[test]
fn pictures_tell_how_they_were_made() {
    let (editor, api) = (text("krea_ui.json").replace('ü', "u").replace('ï', "i"), text("custom_ui.json"));
    // What was run counts, before what was drawn in the editor.
    let comfy = picture(&[("prompt", &api), ("workflow", &editor)]);
    assert_eq!(Recipe::from_picture(&comfy).unwrap(), Recipe::from_workflow(&api).unwrap());
    assert_eq!(Recipe::from_workflow_picture(&picture(&[("workflow", &editor)])).unwrap().steps, Some(20));
    let forge = picture(&[("parameters", "a cat\nSteps: 9, Seed: 3, Size: 64x32")]);
    assert_eq!(Recipe::from_picture(&forge).unwrap().steps, Some(9));
    for (bytes, sentence) in [
        (picture(&[]), "from: the picture's file does not tell how it was made"),
        (b"GIF89a".to_vec(), "from: picture: the file ends before the picture's size"),
    ] {
        assert_eq!(Recipe::from_picture(&bytes).unwrap_err().to_string(), sentence);
    }
    assert!(Recipe::from_workflow_picture(&forge).unwrap_err().to_string().contains("without a ComfyUI workflow"));
}

#[test]
fn our_own_pictures_tell_everything() {
    let provenance = Provenance {
        software: "darkroom".into(),
        model: "pocket".into(),
        prompt: Some("a fox".into()),
        width: 48,
        height: 32,
        steps: 3,
        guidance: Some(2.5),
        true_cfg: 1.0,
        seed: u64::MAX,
        noise: "philox:96".into(),
        sampler: "heun".into(),
        schedule: "comfy-simple".into(),
        t5_length: 77,
        precision: "f32".into(),
        safety: "off".into(),
        vae_tiling: Some(true),
        upscaled: vec![Upscaled { scale: 2, network: "span-x2".into() }],
        ..Provenance::default()
    };
    let picture = Safety::off().review(Rgb8::new(2, 1, vec![1, 2, 3, 4, 5, 6])).unwrap();
    for format in [Format::Png, Format::Jpeg, Format::Webp, Format::Avif, Format::Gif] {
        let encoding = Encoding { format, ..Encoding::default() };
        let bytes = image_file::encode(&picture, &provenance, encoding).unwrap();
        let recipe = Recipe::from_picture(&bytes).unwrap();
        assert_eq!(recipe, Recipe::from_provenance(&provenance).unwrap(), "{format}");
        assert_eq!((recipe.seed, recipe.noise), (Some(u64::MAX), Some(Noise::Philox { multiprocessors: 96 })));
        assert_eq!((recipe.t5_length, recipe.vae_tiling), (Some(T5Length::Exactly(77)), Some(true)));
        assert_eq!((recipe.upscale, recipe.model.as_deref()), (Some(2), Some("pocket")));
        assert!(recipe.notes.is_empty());
    }
}
