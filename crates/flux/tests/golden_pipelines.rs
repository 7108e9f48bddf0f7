//! Whole pictures against diffusers: folders saved by `FluxPipeline.save_pretrained`, from prompt to pixels.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::path::Path;

use flux::{
    LoadOptions, Pipeline, Request,
    model::{ModelSpec, SearchPaths},
};
use support::{Golden, distance, folder};
use tensor::{Device, Precision};

/// Several steps of several blocks in another order of summation; the goal is 1e-3.
const LATENTS: f64 = 1e-4;
/// Of 255.
const PIXELS: u8 = 2;

#[derive(serde::Deserialize)]
struct Case {
    prompt: String,
    negative_prompt: Option<String>,
    true_cfg: f32,
    width: u32,
    height: u32,
    steps: u32,
    guidance: f32,
    seed: u64,
    max_sequence_length: usize,
}

fn cases() -> Vec<std::path::PathBuf> {
    let pipelines = folder().join("pipelines");
    let entries = std::fs::read_dir(&pipelines).unwrap();
    let mut cases: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.join("case.json").is_file()).collect();
    cases.sort();
    assert!(cases.len() >= 8, "the cases are missing from {}", pipelines.display());
    cases
}

fn load(case: &Path, device: Device) -> Pipeline {
    let spec = ModelSpec { model: Some(case.into()), ..ModelSpec::default() };
    let options = LoadOptions { device, precision: Some(Precision::F32), ..LoadOptions::default() };
    Pipeline::load(spec.find(&SearchPaths::default()).unwrap(), &options, &mut ()).unwrap()
}

fn request(case: &Path) -> Request {
    let json = std::fs::read_to_string(case.join("case.json")).unwrap();
    let case: Case = serde_json::from_str(&json).unwrap();
    Request {
        negative_prompt: case.negative_prompt,
        true_cfg: case.true_cfg,
        width: case.width,
        height: case.height,
        steps: case.steps,
        guidance: case.guidance,
        seed: case.seed,
        t5_length: case.max_sequence_length,
        ..Request::new(case.prompt, &flux::model::Defaults::default())
    }
}

#[test]
fn pictures_equal_diffusers() {
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy();
        for device in [Device::Reference, Device::Cpu { threads: Some(2) }] {
            let request = request(&case);
            let generated = load(&case, device).generate(&request, &mut ()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let expected = Golden::open(&format!("pipelines/{name}/expected.safetensors"));
            let [generated] = generated.as_slice() else { panic!("{name}: one picture was asked for") };
            let distance = distance(&generated.latents.values, &expected.values("latents").1);
            assert!(distance <= LATENTS, "{name} on {device}: latents are {distance:.2e} away, allowed {LATENTS:.0e}");
            let picture = generated.picture.get();
            assert_eq!((picture.width(), picture.height()), (request.width, request.height), "{name}");
            let pixels = expected.bytes("pixels");
            assert_eq!(pixels.len(), picture.as_ref().len(), "{name}");
            let worst = picture.as_ref().iter().zip(pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(255);
            assert!(worst <= PIXELS, "{name} on {device}: a pixel is {worst}/255 away, allowed {PIXELS}");
            println!("{name} on {device}: latents {distance:.2e}, pixels {worst}/255");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = &cases()[0];
    let make = |threads| load(case, Device::Cpu { threads: Some(threads) }).generate(&request(case), &mut ()).unwrap();
    assert_eq!(make(1)[0].latents, make(2)[0].latents);
}

#[test]
fn a_picture_of_a_batch_is_the_picture_of_its_seed() {
    let case = &cases()[0];
    let pipeline = load(case, Device::default());
    let batch = pipeline.generate(&Request { batch: 3, ..request(case) }, &mut ()).unwrap();
    for generated in &batch {
        let alone = pipeline.generate(&Request { seed: generated.seed, ..request(case) }, &mut ()).unwrap();
        assert_eq!(alone[0].picture, generated.picture, "seed {}", generated.seed);
    }
    assert_ne!(batch[0].picture, batch[2].picture);
}
