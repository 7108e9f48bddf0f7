//! Pictures beside the prompt against diffusers (`FluxPriorReduxPipeline`, then `FluxPipeline`), and what a weight does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::path::Path;

use flux::{
    LoadOptions, Pipeline, Request,
    latents::Latents,
    model::{Defaults, ModelSpec, PartFiles, SearchPaths},
    pixels::Rgb8,
    styles::Style,
};
use support::{Golden, distance, folder};
use tensor::{Device, Precision};

/// As whole pictures; the goal is 1e-3.
const LATENTS: f64 = 1e-4;

#[derive(serde::Deserialize)]
struct Case {
    pipeline: String,
    prompt: String,
    negative_prompt: Option<String>,
    true_cfg: Option<f32>,
    steps: u32,
    guidance: Option<f32>,
    seed: u64,
}

#[derive(serde::Deserialize)]
struct Size {
    width: u32,
    height: u32,
}

fn picture() -> Rgb8 {
    flux::image_file::open("redux", &folder().join("redux/picture.png")).unwrap().picture
}

fn spec(pipeline: &str, redux_model: Option<&Path>) -> ModelSpec {
    let model = folder().join("pipelines").join(pipeline).into();
    let parts = PartFiles { redux_model: redux_model.map(Path::to_owned), ..PartFiles::default() };
    ModelSpec { model: Some(model), parts }
}

fn load(pipeline: &str, redux_model: Option<&Path>, device: Device) -> Pipeline {
    let options = LoadOptions { device, precision: Some(Precision::F32), ..LoadOptions::default() };
    let files = spec(pipeline, redux_model).find(&SearchPaths::default()).unwrap();
    Pipeline::load(files, &options, &mut ()).unwrap()
}

fn cases() -> Vec<(Case, Request)> {
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(folder().join("redux/cases.json")).unwrap()).unwrap();
    let request = |case: &Case| {
        let json = std::fs::read_to_string(folder().join("pipelines").join(&case.pipeline).join("case.json")).unwrap();
        let Size { width, height } = serde_json::from_str(&json).unwrap();
        Request {
            redux: Some(picture()),
            negative_prompt: case.negative_prompt.clone(),
            true_cfg: case.true_cfg.unwrap_or(1.0),
            width,
            height,
            steps: case.steps,
            guidance: case.guidance.unwrap_or(3.5),
            seed: case.seed,
            t5_length: 512,
            ..Request::new(case.prompt.clone(), &Defaults::default())
        }
    };
    cases
        .into_iter()
        .map(|case| {
            let request = request(&case);
            (case, request)
        })
        .collect()
}

fn one(pipeline: &Pipeline, request: &Request) -> Latents {
    pipeline.generate(request, &mut ()).unwrap().remove(0).latents
}

#[test]
fn variations_equal_diffusers() {
    let expected = Golden::open("redux/expected.safetensors");
    let cases = cases();
    assert_eq!(cases.len(), 3);
    for (index, (case, request)) in cases.into_iter().enumerate() {
        for device in [Device::Reference, Device::Cpu { threads: Some(2) }] {
            let pipeline = load(&case.pipeline, Some(&folder().join("redux")), device);
            let latents = one(&pipeline, &request);
            let off = distance(&latents.values, &expected.values(&format!("latents_{index}")).1);
            assert!(off <= LATENTS, "case {index} on {device}: latents are {off:.2e} away, allowed {LATENTS:.0e}");
            println!("case {index} on {device}: latents {off:.2e}");
            let plan = pipeline.plan(&request).unwrap();
            assert_eq!((plan.tokens - 512 - 16) % 4, 0, "16 tokens of the picture are planned");
            assert!(plan.part("vision").is_some_and(|part| part.weight_bytes > 0));
        }
    }
}

/// A style of weight 1 is what Redux makes; each further bit of weight moves the picture on; none of it is no picture.
#[test]
fn weights_move_the_picture_steadily() {
    let (case, mut request) = cases().remove(0);
    let pipeline = load(&case.pipeline, Some(&folder().join("redux")), Device::Cpu { threads: Some(2) });
    let full = one(&pipeline, &request);
    request.redux = None;
    let none = one(&pipeline, &request);
    let mut before = 0.0;
    for weight in [0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0] {
        request.styles = vec![Style { picture: picture(), weight }];
        let latents = one(&pipeline, &request);
        let moved = distance(&latents.values, &none.values);
        println!("weight {weight}: {moved:.4}");
        if weight == 0.0 {
            assert_eq!(latents, none, "a weight of 0 is no picture, in every bit");
        } else {
            assert!(moved > before, "weight {weight} moves the picture by {moved}, less than {before}");
        }
        if weight == 1.0 {
            assert_eq!(latents, full, "a weight of 1 is Redux itself, in every bit");
        }
        before = moved;
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (case, request) = cases().remove(0);
    let pipeline = load(&case.pipeline, Some(&folder().join("redux")), Device::default());
    let style = Style { picture: picture(), weight: 0.5 };
    let error = |request: &Request| pipeline.check(request).unwrap_err().to_string();
    let four = Request { styles: vec![style.clone(); 4], ..request.clone() };
    assert!(error(&four).starts_with("style: 4 are given; at most 3"), "{}", error(&four));
    for weight in [-0.1, 1.1, f32::NAN] {
        let wrong = Request { styles: vec![Style { weight, ..style.clone() }], ..request.clone() };
        assert!(error(&wrong).starts_with("style: has the weight"), "{}", error(&wrong));
    }
    // Without the files: both are named, and where they were looked for.
    let bare = load(&case.pipeline, None, Device::default());
    let missing = bare.generate(&request, &mut ()).unwrap_err().to_string();
    for word in
        ["redux: needs", "flux1-redux-dev.safetensors", "sigclip_vision_patch14_384", "looked in", "--redux-model"]
    {
        assert!(missing.contains(word), "{missing}");
    }
    // A file that is something else.
    let wrong = folder().join("tiny_vae.safetensors");
    let wrong =
        load(&case.pipeline, Some(&wrong), Device::default()).generate(&request, &mut ()).unwrap_err().to_string();
    assert!(wrong.contains("tiny_vae.safetensors") && wrong.contains("Redux"), "{wrong}");
}
