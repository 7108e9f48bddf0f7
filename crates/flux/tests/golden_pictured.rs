//! Pictures from pictures against diffusers: image-to-image, inpainting, Fill, control and Kontext, from files to pixels.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use flux::{
    LoadOptions, Pipeline, Request,
    conditioning::{Control, Margins, Pictures, Start, StrengthMapping},
    image_file,
    lora::{Lora, Loras},
    model::{Defaults, Family, Kind, ModelSpec, PartFiles, SearchPaths},
    pixels::Rgb8,
};
use support::{Golden, distance, folder};
use tensor::{Device, Precision};

/// As of the pipelines without pictures.
const LATENTS: f64 = 1e-4;
/// Of 255.
const PIXELS: u8 = 2;

#[derive(serde::Deserialize)]
struct Case {
    base: String,
    kind: String,
    strength: f64,
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

fn case_of(path: &Path) -> Case {
    serde_json::from_str(&std::fs::read_to_string(path.join("case.json")).unwrap()).unwrap()
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<_> = std::fs::read_dir(folder().join("pictured")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 11, "{} cases", cases.len());
    cases
}

fn load(path: &Path, case: &Case, device: Device) -> Pipeline {
    let transformer = path.join("transformer");
    let spec = ModelSpec {
        model: Some(folder().join("pipelines").join(&case.base).into()),
        parts: PartFiles { transformer: transformer.is_dir().then_some(transformer), ..PartFiles::default() },
    };
    let mut files = spec.find(&SearchPaths::default()).unwrap();
    if case.kind == "kontext" {
        files.family = Family::Kontext; // a name would tell
    }
    let options = LoadOptions { device, precision: Some(Precision::F32), ..LoadOptions::default() };
    let mut pipeline = Pipeline::load(files, &options, &mut ()).unwrap();
    let lora = path.join("lora.safetensors");
    if lora.is_file() {
        let reports = pipeline.set_loras(&Loras::from([(Arc::new(Lora::open(&lora).unwrap()), 1.0)])).unwrap();
        assert_eq!(reports[0].unmatched, []);
    }
    pipeline
}

fn open(path: &Path) -> Rgb8 {
    image_file::open("image", path).unwrap().picture
}

fn pictures(path: &Path, case: &Case) -> Pictures {
    let picture = open(&path.join("image.png"));
    let mask = path.join("mask.png");
    let mask = mask.is_file().then(|| open(&mask));
    match case.kind.as_str() {
        "control" => Pictures { control: Some(Control::Ready(picture)), ..Pictures::default() },
        "kontext" => Pictures { references: vec![picture], references_as_they_are: true, ..Pictures::default() },
        _ => {
            let start = Start { strength: case.strength, mask, ..Start::new(picture) };
            Pictures { start: Some(start), ..Pictures::default() }
        }
    }
}

fn request(path: &Path, case: &Case) -> Request {
    Request {
        negative_prompt: case.negative_prompt.clone(),
        true_cfg: case.true_cfg,
        width: case.width,
        height: case.height,
        steps: case.steps,
        guidance: case.guidance,
        seed: case.seed,
        t5_length: case.max_sequence_length,
        pictures: pictures(path, case),
        ..Request::new(case.prompt.clone(), &Defaults::default())
    }
}

#[test]
fn pictures_from_pictures_equal_diffusers() {
    for path in cases() {
        let name = path.file_name().unwrap().to_string_lossy();
        let case = case_of(&path);
        for device in [Device::Reference, Device::Cpu { threads: Some(2) }] {
            let pipeline = load(&path, &case, device);
            let kind = match case.kind.as_str() {
                "control" => Kind::Control,
                "fill" => Kind::Fill,
                "kontext" => Kind::Kontext,
                _ => Kind::Base,
            };
            assert_eq!(pipeline.kind(), Some(kind), "{name}");
            let made = pipeline.generate(&request(&path, &case), &mut ()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let expected = Golden::open(&format!("pictured/{name}/expected.safetensors"));
            let distance = distance(&made[0].latents.values, &expected.values("latents").1);
            let pixels = made[0].picture.get().as_ref().iter().zip(expected.bytes("pixels"));
            let worst = pixels.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(255);
            println!("{name} on {device}: latents {distance:.2e}, pixels {worst}/255");
            assert!(distance <= LATENTS, "{name} on {device}: latents are {distance:.2e} away, allowed {LATENTS:.0e}");
            assert!(worst <= PIXELS, "{name} on {device}: a pixel is {worst}/255 away, allowed {PIXELS}");
        }
    }
}

fn first(name: &str) -> (PathBuf, Case, Pipeline) {
    let path = folder().join("pictured").join(name);
    let case = case_of(&path);
    let pipeline = load(&path, &case, Device::default());
    (path, case, pipeline)
}

fn with_start(request: &Request, change: impl Fn(&mut Start)) -> Request {
    let mut request = request.clone();
    change(request.pictures.start.as_mut().unwrap());
    request
}

#[test]
fn comfys_whole_strength_is_text_to_image() {
    let (path, case, pipeline) = first("img2img");
    let request = request(&path, &case);
    let make = |request: &Request| pipeline.generate(request, &mut ()).unwrap().remove(0);
    let text = make(&Request { pictures: Pictures::default(), ..request.clone() });
    let whole = |mapping| make(&with_start(&request, |start| (start.strength, start.mapping) = (1.0, mapping)));
    assert_eq!(whole(StrengthMapping::Comfy).latents, text.latents);
    // diffusers draws the picture's sample first: the same way, from other noise.
    assert_ne!(whole(StrengthMapping::Diffusers).latents, text.latents);
}

#[test]
fn strength_0_gives_the_picture_whatever_the_seed() {
    let (path, case, pipeline) = first("img2img");
    let request = with_start(&request(&path, &case), |start| start.strength = 0.0);
    assert_eq!(request.steps_made(), 0);
    let make = |seed, mapping| {
        let request = with_start(&Request { seed, ..request.clone() }, |start| start.mapping = mapping);
        pipeline.generate(&request, &mut ()).unwrap().remove(0).latents
    };
    let latents = make(1, StrengthMapping::Diffusers);
    assert_eq!(latents, make(2, StrengthMapping::Diffusers));
    assert_eq!(latents, make(2, StrengthMapping::Comfy));
}

/// What is kept of a picture is in the latents as the autoencoder gives it, whatever is painted beside it.
#[test]
fn outpainting_keeps_the_picture() {
    let (path, case, pipeline) = first("img2img");
    let margins = Margins { left: 16, bottom: 12, ..Margins::default() };
    let request = with_start(&request(&path, &case), |start| {
        (start.margins, start.strength, start.mapping) = (margins, 1.0, StrengthMapping::Comfy);
    });
    let (width, height) = request.pictures.size((1024, 1024)).unwrap();
    assert_eq!((width, height), (48 + 16, 64 + 12));
    let request = Request { width, height, ..request };
    let made = |seed| pipeline.generate(&Request { seed, ..request.clone() }, &mut ()).unwrap().remove(0).latents;
    let (a, b) = (made(1), made(2));
    // Latents of 2 pixels: 8 columns on the left and the last 6 rows are new.
    for (i, (a, b)) in a.values.iter().zip(&b.values).enumerate() {
        let (x, y) = (i % made_width(&request), i / made_width(&request) % 38);
        assert_eq!(x >= 8 && y < 32, a == b, "latent ({x}, {y})");
    }
}

fn made_width(request: &Request) -> usize {
    request.width as usize / 2
}

/// Control, Fill and Kontext with a negative prompt, which their diffusers pipelines lack, and several references.
#[test]
fn true_cfg_goes_with_all() {
    for name in ["control", "fill", "kontext"] {
        let (path, case, pipeline) = first(name);
        let mut plain = request(&path, &case);
        if name == "kontext" {
            plain.pictures.references.push(open(&folder().join("pictured/control/image.png")));
        }
        let negated = Request { true_cfg: 2.0, negative_prompt: Some("snow".into()), ..plain.clone() };
        let make = |request: &Request| pipeline.generate(request, &mut ()).unwrap().remove(0).latents;
        assert_ne!(make(&plain), make(&negated), "{name}");
    }
}

#[test]
fn the_plan_counts_what_pictures_take() {
    let (path, case, pipeline) = first("kontext");
    let request = request(&path, &case);
    let plan = pipeline.plan(&request).unwrap();
    let alone = pipeline.plan(&Request { pictures: Pictures::default(), ..request.clone() }).unwrap();
    // 56×40 pixels, tokens of 4.
    assert_eq!(plan.tokens, alone.tokens + 14 * 10);
    assert!(plan.part("vae_encoder").is_some() && alone.part("vae_encoder").is_none());
    let work = |plan: &flux::plan::Plan| plan.part("transformer").unwrap().work.flop();
    assert!(work(&plan) > work(&alone));
    let provenance = pipeline.provenance(&request, 1);
    assert_eq!(provenance.from_pictures.unwrap().references, 1);
}
