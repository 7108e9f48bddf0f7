//! Workflows and pictures read as recipes: both formats of ComfyUI's after its public FLUX.1 Krea template, and files that lie.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use flux::{
    Request,
    conditioning::StrengthMapping,
    image_file::{self, Encoding, Format, FromPictures, Provenance, Upscaled},
    model::{Defaults, SearchPaths},
    noise::Noise,
    pixels::Rgb8,
    recipe::{Change, Channel, Lost, MaskAsked, PictureAsked, Places, Recipe, T5Length},
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
    let start = recipe.pictures.start.unwrap();
    assert_eq!((start.picture.file.as_str(), start.strength, recipe.width), ("in.png", 0.6, None));
}

/// The public template in its API format, with further nodes and what its sampler gets.
fn with_pictures(nodes: &Value, sampler: &Value) -> Value {
    let mut workflow = parsed("krea_api.json");
    workflow["3"] = json!({"class_type": "LoadImage", "inputs": {"image": "in.png"}});
    for (id, node) in nodes.as_object().unwrap() {
        workflow[id] = node.clone();
    }
    for (input, value) in sampler.as_object().unwrap() {
        workflow["31"]["inputs"][input] = value.clone();
    }
    workflow
}

fn node(class: &str, inputs: &Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

#[test]
fn masks_and_margins_are_followed_to_their_files() {
    let encode = node("VAEEncode", &json!({"pixels": ["3", 0], "vae": ["39", 0]}));
    let start = |nodes: Value, denoise: f64| {
        let sampler = json!({"latent_image": ["9z", if nodes["9z"]["class_type"] == "InpaintModelConditioning" { 2 } else { 0 }], "denoise": denoise});
        let recipe = Recipe::from_workflow(&with_pictures(&nodes, &sampler).to_string()).unwrap();
        (recipe.pictures.start.unwrap(), recipe.notes.len())
    };
    let in_png = |changes: &[Change]| PictureAsked { file: "in.png".into(), changes: changes.to_vec() };
    let mask = |file: &str, channel, inverted, grown| {
        Some(MaskAsked { picture: PictureAsked { file: file.into(), changes: vec![] }, channel, inverted, grown })
    };
    let own = mask("in.png", Channel::Alpha, false, 0);

    // The negative conditioning, and with a latent of a picture the empty one, are notes.
    let masked = node("SetLatentNoiseMask", &json!({"samples": ["4", 0], "mask": ["3", 1]}));
    let (found, _) = start(json!({"4": encode, "9z": masked}), 0.75);
    assert_eq!((found.picture, found.mask, found.strength), (in_png(&[]), own.clone(), 0.75));

    let red = node("LoadImageMask", &json!({"image": "m.png", "channel": "red"}));
    let inverted = node("InvertMask", &json!({"mask": ["5", 0]}));
    let inpaint = node(
        "VAEEncodeForInpaint",
        &json!({"pixels": ["3", 0], "vae": ["39", 0], "mask": ["6", 0], "grow_mask_by": 6}),
    );
    let (found, _) = start(json!({"5": red, "6": inverted, "9z": inpaint}), 1.0);
    assert_eq!(found.mask, mask("m.png", Channel::Red, true, 6));

    let scaled = node(
        "ImageScale",
        &json!({"image": ["3", 0], "upscale_method": "lanczos", "width": 96, "height": 64, "crop": "center"}),
    );
    let inputs = json!({"positive": ["45", 0], "negative": ["42", 0], "vae": ["39", 0], "pixels": ["4", 0],
        "mask": ["3", 1], "noise_mask": false});
    let (found, _) = start(json!({"4": scaled, "9z": node("InpaintModelConditioning", &inputs)}), 1.0);
    let change = Change::Size { width: 96, height: 64, centre: true };
    assert_eq!((found.picture, found.mask), (in_png(&[change]), own));

    let pad = json!({"image": ["3", 0], "left": 8, "top": 0, "right": 16, "bottom": 24, "feathering": 0});
    let inputs = json!({"positive": ["45", 0], "negative": ["42", 0], "vae": ["39", 0], "pixels": ["4", 0],
        "mask": ["4", 1], "noise_mask": true});
    let nodes = json!({"4": node("ImagePadForOutpaint", &pad), "9z": node("InpaintModelConditioning", &inputs)});
    let (found, _) = start(nodes, 1.0);
    assert_eq!((found.margins.left, found.margins.right, found.margins.bottom), (8, 16, 24));
    assert!(found.mask.is_none());
}

#[test]
fn references_styles_and_control_pictures_are_followed_to_their_files() {
    let second = node("LoadImage", &json!({"image": "sub/second.jpg [input]"}));
    let scale = node("FluxKontextImageScale", &json!({"image": ["3", 0]}));
    let encode = |image: &str| node("VAEEncode", &json!({"pixels": [image, 0], "vae": ["39", 0]}));
    let refer =
        |to: &str, latent: &str| node("ReferenceLatent", &json!({"conditioning": [to, 0], "latent": [latent, 0]}));
    let nodes = json!({
        "4": second, "5": scale, "6": encode("5"), "7": encode("4"), "70": refer("45", "6"), "71": refer("70", "7"),
    });
    let sampler = json!({"positive": ["71", 0], "latent_image": ["6", 0]});
    let recipe = Recipe::from_workflow(&with_pictures(&nodes, &sampler).to_string()).unwrap();
    let files: Vec<_> = recipe.pictures.references.iter().map(|one| (one.file.as_str(), one.changes.len())).collect();
    assert_eq!(files, [("in.png", 1), ("sub/second.jpg [input]", 0)]);
    assert_eq!(recipe.pictures.start.map(|start| start.strength), Some(1.0), "its size alone counts");

    let style = |crop: &str, strength: f64, kind: &str| {
        let seen = json!({"clip_vision": ["50", 0], "image": ["3", 0], "crop": crop});
        let apply = json!({"conditioning": ["45", 0], "style_model": ["52", 0], "clip_vision_output": ["51", 0],
            "strength": strength, "strength_type": kind});
        let nodes = json!({
            "50": node("CLIPVisionLoader", &json!({"clip_name": "sigclip_vision_patch14_384.safetensors"})),
            "51": node("CLIPVisionEncode", &seen),
            "52": node("StyleModelLoader", &json!({"style_model_name": "flux1-redux-dev.safetensors"})),
            "53": node("StyleModelApply", &apply),
        });
        with_pictures(&nodes, &json!({"positive": ["53", 0]}))
    };
    let recipe = Recipe::from_workflow(&style("center", 0.5, "attn_bias").to_string()).unwrap();
    let [(picture, weight)] = &recipe.pictures.styles[..] else { panic!("{:?}", recipe.pictures) };
    assert_eq!((picture.changes.as_slice(), *weight), (&[Change::Square][..], 0.5));
    assert_eq!(recipe.files.style.as_deref(), Some("flux1-redux-dev.safetensors"));
    assert_eq!(recipe.files.vision.as_deref(), Some("sigclip_vision_patch14_384.safetensors"));
    let recipe = Recipe::from_workflow(&style("none", 1.0, "multiply").to_string()).unwrap();
    assert!(recipe.pictures.styles[0].0.changes.is_empty());
    for (strength, kind) in [(0.5, "multiply"), (1.5, "attn_bias")] {
        let error = error(&style("none", strength, kind));
        assert!(error.contains("'strength' of 'StyleModelApply' (53)"), "{error}");
    }

    let edges = node("Canny", &json!({"image": ["3", 0], "low_threshold": 0.15, "high_threshold": 0.3}));
    let inputs = json!({"positive": ["45", 0], "negative": ["42", 0], "vae": ["39", 0], "pixels": ["4", 0]});
    let nodes = json!({"4": edges, "60": node("InstructPixToPixConditioning", &inputs)});
    let sampler = json!({"positive": ["60", 0], "negative": ["60", 1], "latent_image": ["60", 2]});
    let recipe = Recipe::from_workflow(&with_pictures(&nodes, &sampler).to_string()).unwrap();
    let (picture, canny) = recipe.pictures.control.unwrap();
    assert_eq!((picture.file.as_str(), canny, recipe.width), ("in.png", true, None));
}

#[test]
fn pictures_that_cannot_be_had_are_named() {
    let encode = |from: Value| node("VAEEncode", &json!({"pixels": from, "vae": ["39", 0]}));
    let begins = |nodes: Value| with_pictures(&nodes, &json!({"latent_image": ["4", 0], "denoise": 0.5}));
    let grey = json!({"pixels": ["3", 0], "vae": ["39", 0], "mask": ["3", 1], "grow_mask_by": 6});
    let uxo = json!({"conditioning": ["45", 0], "reference_latents_method": "uxo/uno"});
    let cases = [
        ("takes a picture from 'VAELoader' (39)", begins(json!({"4": encode(json!(["39", 0]))}))),
        (
            "begins with grey under the mask at a denoise of 0.5",
            begins(json!({"4": node("VAEEncodeForInpaint", &grey)})),
        ),
        (
            "takes a mask from 'LoadImage' (3)",
            begins(json!({
                "5": encode(json!(["3", 0])),
                "4": node("SetLatentNoiseMask", &json!({"samples": ["5", 0], "mask": ["3", 0]})),
            })),
        ),
        (
            "'reference_latents_method' of 'FluxKontextMultiReferenceLatentMethod' (5); offset",
            with_pictures(
                &json!({"5": node("FluxKontextMultiReferenceLatentMethod", &uxo)}),
                &json!({"positive": ["5", 0]}),
            ),
        ),
        (
            "needs nodes that are not known here: 'ImageStitch' (5)",
            begins(json!({
                "5": node("ImageStitch", &json!({"image1": ["3", 0]})), "4": encode(json!(["5", 0])),
            })),
        ),
    ];
    for (expected, workflow) in cases {
        let error = error(&workflow);
        assert!(error.starts_with("workflow: ") && error.contains(expected), "{expected}: {error}");
    }
    // Files: beside the workflow, then in ComfyUI's folder; never outside.
    let folder = tempfile::tempdir().unwrap();
    let comfyui = folder.path().join("ComfyUI");
    std::fs::create_dir_all(comfyui.join("input")).unwrap();
    let paths = SearchPaths { comfyui: vec![comfyui.join("models")], ..SearchPaths::default() };
    let places = Places { beside: Some(folder.path()), paths: &paths, image: None };
    let recipe = Recipe::from_workflow(&begins(json!({"4": encode(json!(["3", 0]))})).to_string()).unwrap();
    let mut request = Request::new("", &Defaults::default());
    let error = recipe.pictures.open(places, false, &mut request).unwrap_err().to_string();
    for word in ["'in.png'", "not there", "ComfyUI/input", "COMFYUI_PATH", "--image FILE"] {
        assert!(error.contains(word), "{error}");
    }
    let bytes = |width: u32, height: u32| {
        let mut bytes = Vec::new();
        let encoder = png::Encoder::new(&mut bytes, width, height);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&vec![9; (width * height) as usize]).unwrap();
        drop(writer);
        bytes
    };
    std::fs::write(comfyui.join("input/in.png"), bytes(50, 27)).unwrap();
    recipe.pictures.open(places, false, &mut request).unwrap();
    assert_eq!((request.width, request.height), (48, 24), "the middle, in whole latents");
    std::fs::write(folder.path().join("in.png"), bytes(16, 32)).unwrap();
    recipe.pictures.open(places, false, &mut request).unwrap();
    assert_eq!((request.width, request.height), (16, 32));
    let start = request.pictures.start.clone().unwrap();
    assert_eq!((start.strength, start.mapping), (0.5, StrengthMapping::Comfy));

    let mut outside = recipe.pictures.clone();
    for name in ["../in.png", "/etc/in.png", ""] {
        outside.start.as_mut().unwrap().picture.file = name.into();
        let error = outside.open(places, false, &mut request).unwrap_err().to_string();
        assert!(error.contains("not a name in one of ComfyUI's folders"), "{error}");
    }
    // A mask by transparency needs some.
    let mut masked = recipe.pictures;
    let picture = PictureAsked { file: "in.png".into(), changes: vec![] };
    let mask = MaskAsked { picture, channel: Channel::Alpha, inverted: false, grown: 0 };
    masked.start.as_mut().unwrap().mask = Some(mask);
    let error = masked.open(places, false, &mut request).unwrap_err().to_string();
    assert!(error.contains("transparent") && error.contains("--mask FILE"), "{error}");
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
        assert!(recipe.model_spec(&paths).unwrap_err().to_string().contains("not a name in one"), "{name}");
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

#[test]
fn pictures_that_ours_were_made_from_are_told_and_missed() {
    let provenance = Provenance {
        noise: "cpu-f32".into(),
        schedule: "reference".into(),
        precision: "f32".into(),
        styles: vec!["redux".into(), "style:0.25".into()],
        from_pictures: Some(FromPictures {
            strength: Some(0.5),
            strength_mapping: Some("comfy".into()),
            mask: true,
            outpaint: Some([1, 2, 3, 4]),
            control: Some("canny".into()),
            references: 2,
        }),
        ..Provenance::default()
    };
    let Lost { start, mask, margins, control, references, redux, styles } =
        Recipe::from_provenance(&provenance).unwrap().lost;
    assert_eq!((start, mask, control, references), (Some((0.5, StrengthMapping::Comfy)), true, Some(true), 2));
    assert_eq!((margins.left, margins.bottom, redux, styles), (1, 4, true, vec![0.25]));
    assert_eq!(
        Recipe::from_provenance(&Provenance { styles: vec![], from_pictures: None, ..provenance }).unwrap().lost,
        Lost::default()
    );
}
