//! The same weights in every layout and number format that people have them in: the same picture, to the last bit.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod toy;

use std::path::{Path, PathBuf};

use flux::{
    Generated, LoadOptions, Pipeline, Request,
    model::{ModelSpec, PartFiles, SearchPaths},
};
use tensor::{Device, Precision};
use toy::{Array, File, Scratch, Stored, Toy};

fn load(spec: &ModelSpec, paths: &SearchPaths) -> flux::Result<Pipeline> {
    let options = LoadOptions {
        device: Device::Cpu { threads: Some(2) },
        precision: Some(Precision::F32),
        ..LoadOptions::default()
    };
    Pipeline::load(spec.find(paths)?, &options, &mut ())
}

fn generate(pipeline: &Pipeline, prompt: &str) -> Generated {
    let request = Request {
        width: 64,
        height: 48,
        steps: 2,
        seed: 7,
        t5_length: 24,
        ..Request::new(prompt, pipeline.defaults())
    };
    pipeline.generate(&request, &mut ()).unwrap().remove(0)
}

fn picture(spec: &ModelSpec, paths: &SearchPaths) -> Generated {
    generate(&load(spec, paths).unwrap_or_else(|e| panic!("{e}")), "a red fox, 35mm")
}

fn same(layout: &str, got: &Generated, expected: &Generated) {
    let differ = got.latents.values.iter().zip(&expected.latents.values).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{layout}: {differ} latents differ");
    assert_eq!(got.picture, expected.picture, "{layout}: another picture");
}

fn named(model: impl AsRef<Path>) -> ModelSpec {
    ModelSpec { model: Some(model.as_ref().into()), parts: PartFiles::default() }
}

fn parts(paths: [&Path; 4]) -> ModelSpec {
    let [transformer, vae, clip_l, t5xxl] = paths.map(|path| Some(path.to_owned()));
    ModelSpec { model: None, parts: PartFiles { transformer, vae, clip_l, t5xxl, ..PartFiles::default() } }
}

#[test]
fn every_layout_gives_the_same_picture() {
    let scratch = Scratch::new("layouts");
    let toy = Toy::new();
    let nowhere = SearchPaths::default();

    let diffusers = scratch.join("flux-krea-toy");
    toy.diffusers(&diffusers, 1);
    let pipeline = load(&named(&diffusers), &nowhere).unwrap();
    let expected = generate(&pipeline, "a red fox, 35mm");
    // Otherwise equal pictures would say nothing about text encoders and tokenizers.
    assert_ne!(generate(&pipeline, "a blue fox, 35mm").latents, expected.latents);

    let mut layouts: Vec<(&str, ModelSpec, SearchPaths)> = Vec::new();
    let mut add = |layout, spec, paths: &SearchPaths| layouts.push((layout, spec, paths.clone()));

    #[cfg(unix)]
    {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let odd = diffusers.with_file_name(OsStr::from_bytes(b"krea-\xFF"));
        std::os::unix::fs::symlink(&diffusers, &odd).unwrap();
        add("a name that is no UTF-8", named(&odd), &nowhere);
    }

    let sharded = scratch.join("sharded-krea");
    toy.diffusers(&sharded, 3);
    add("diffusers folder in shards", named(&sharded), &nowhere);

    // The cache keeps files by their hash; snapshots name them.
    let cache = scratch.join("hub");
    let repository = cache.join("models--black-forest-labs--FLUX.1-Krea-dev");
    let snapshot = repository.join("snapshots/0123abcd");
    copy_folder(&diffusers, &snapshot);
    toy::text(&repository.join("snapshots/ffff/README.md"), "another revision, incomplete");
    toy::text(&repository.join("refs/main"), "0123abcd\n");
    let hub = SearchPaths { hf_cache: Some(cache), ..SearchPaths::default() };
    add("Hugging Face cache, by name", named("krea"), &hub);
    add("Hugging Face cache, by repository", named("black-forest-labs/FLUX.1-Krea-dev"), &hub);
    add("Hugging Face cache, by folder", named(&repository), &nowhere);

    let bfl = scratch.join("bfl");
    let [flux, vae, clip, t5] =
        ["flux1-krea-dev.safetensors", "ae.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors"]
            .map(|file| bfl.join(file));
    toy.single_files([&flux, &vae, &clip, &t5], toy::f32s);
    add("BFL's files beside each other", named(&flux), &nowhere);
    add("BFL's files by their folder", named(&bfl), &nowhere);

    let comfy = scratch.join("ComfyUI");
    let models = comfy.join("models");
    toy::place(&flux, &models.join("diffusion_models/flux1-krea-dev.safetensors"));
    // With a name that sorts before the right one, and is no CLIP-L.
    toy::place(&t5, &models.join("text_encoders/a_t5xxl_fp16.safetensors"));
    toy::place(&clip, &models.join("text_encoders/clip_l.safetensors"));
    toy::place(&vae, &models.join("vae/ae.safetensors"));
    let known = SearchPaths { comfyui: vec![comfy.clone()], ..SearchPaths::default() };
    add("ComfyUI by its folder", named(&comfy), &nowhere);
    add("ComfyUI by its models folder", named(&models), &nowhere);
    add("ComfyUI by the file", named(models.join("diffusion_models/flux1-krea-dev.safetensors")), &nowhere);
    add("ComfyUI by name", named("krea"), &known);
    let apart = scratch.join("apart/krea.safetensors");
    toy::place(&flux, &apart);
    add("a file elsewhere with the rest in ComfyUI", named(&apart), &known);

    let older = scratch.join("older/models");
    let prefixed: File =
        toy::stored(&toy.flux, toy::f32s).into_iter().map(|(n, t)| (format!("model.diffusion_model.{n}"), t)).collect();
    toy::write(&older.join("unet/flux_krea.safetensors"), &prefixed);
    toy::place(&t5, &older.join("clip/t5xxl_fp16.safetensors"));
    toy::place(&clip, &older.join("clip/clip_l.safetensors"));
    toy::place(&vae, &older.join("vae/flux_vae.safetensors"));
    add("ComfyUI with its older folders and prefix", named(&older), &nowhere);

    let whole = scratch.join("whole/models/checkpoints/flux1-krea-dev-aio.safetensors");
    toy.all_in_one(&whole);
    add("all in one, by the file", named(&whole), &nowhere);
    add("all in one, by the folder", named(scratch.join("whole")), &nowhere);

    let hidden = ["a/krea.safetensors", "b/x.safetensors", "c/y.safetensors", "d/z.sft"].map(|file| scratch.join(file));
    for (from, to) in [&flux, &vae, &clip, &t5].into_iter().zip(&hidden) {
        toy::place(from, to);
    }
    let [a, b, c, d] = hidden.each_ref().map(PathBuf::as_path);
    add("parts one by one", parts([a, b, c, d]), &nowhere);
    let folders = ["transformer", "vae", "text_encoder", "text_encoder_2"].map(|part| sharded.join(part));
    let [a, b, c, d] = folders.each_ref().map(PathBuf::as_path);
    add("parts as folders of another model", parts([a, b, c, d]), &nowhere);
    let index = a.join("diffusion_pytorch_model.safetensors.index.json");
    add("a part by its index of shards", parts([&index, b, c, d]), &nowhere);
    let replaced = ModelSpec { parts: parts([&flux, &vae, &clip, &t5]).parts, ..named(&sharded) };
    add("a folder with all parts replaced", replaced, &nowhere);

    for (layout, spec, paths) in layouts {
        let pipeline = load(&spec, &paths).unwrap_or_else(|e| panic!("{layout}: {e}"));
        // What is usual for Krea, wherever its name was found; some of these names are no names.
        assert_eq!(pipeline.defaults().guidance, 4.5, "{layout}");
        same(layout, &generate(&pipeline, "a red fox, 35mm"), &expected);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_folder(&entry.path(), &target) } else { toy::place(&entry.path(), &target) }
    }
}

#[test]
fn a_tokenizer_of_ones_own_in_the_folder_or_by_flag() {
    let scratch = Scratch::new("tokenizers");
    let toy = Toy::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipelines/one_one_schnell");
    let folder = scratch.join("flux-krea");
    toy.diffusers(&folder, 1);
    let nowhere = SearchPaths::default();
    let embedded = picture(&named(&folder), &nowhere);
    let by = |clip: PathBuf, t5: PathBuf| ModelSpec {
        parts: PartFiles { clip_tokenizer: Some(clip), t5_tokenizer: Some(t5), ..PartFiles::default() },
        ..named(&folder)
    };
    let flags = by(golden.join("tokenizer"), golden.join("tokenizer_2"));
    let files = by(golden.join("tokenizer/tokenizer.json"), golden.join("tokenizer_2/tokenizer.json"));
    let expected = picture(&flags, &nowhere);
    assert_ne!(embedded.latents, expected.latents, "the flags are heard");
    same("tokenizer files by flag", &picture(&files, &nowhere), &expected);
    copy_folder(&golden.join("tokenizer"), &folder.join("tokenizer"));
    copy_folder(&golden.join("tokenizer_2"), &folder.join("tokenizer_2"));
    same("tokenizers of the folder", &picture(&named(&folder), &nowhere), &expected);
}

/// Files of one transformer in several formats beside one set of the other parts.
struct Formats {
    scratch: Scratch,
    rest: [PathBuf; 3],
}

impl Formats {
    fn new(name: &str, toy: &Toy) -> Self {
        let scratch = Scratch::new(name);
        let [flux, vae, clip, t5] = ["flux", "vae", "clip", "t5"].map(|f| scratch.join(format!("{f}.safetensors")));
        toy.single_files([&flux, &vae, &clip, &t5], toy::f32s);
        Self { scratch, rest: [vae, clip, t5] }
    }

    fn spec(&self, name: &str, file: &File, metadata: &[(&str, &str)]) -> ModelSpec {
        let path = self.scratch.join(format!("{name}.safetensors"));
        toy::bytes(&path, &toy::safetensors(file, metadata));
        parts([&path, &self.rest[0], &self.rest[1], &self.rest[2]])
    }

    fn picture(&self, name: &str, file: &File, metadata: &[(&str, &str)]) -> Generated {
        picture(&self.spec(name, file, metadata), &SearchPaths::default())
    }
}

#[test]
fn halves_are_what_their_numbers_are() {
    let nowhere = SearchPaths::default();
    let toy = Toy::new();
    let f16 = toy.map(|x| half::f16::from_f32(x).to_f32());
    let bf16 = toy.map(|x| half::bf16::from_f32(x).to_f32());
    for (name, rounded) in [("F16", &f16), ("BF16", &bf16)] {
        let store: fn(&Array) -> Stored = if name == "F16" { toy::f16s } else { toy::bf16s };
        let scratch = Scratch::new(name);
        let paths = |kind: &str| ["flux", "vae", "clip", "t5"].map(|f| scratch.join(format!("{kind}/{f}.safetensors")));
        let ([a, b, c, d], [e, f, g, h]) = (paths("stored"), paths("f32"));
        rounded.single_files([&a, &b, &c, &d], store);
        rounded.single_files([&e, &f, &g, &h], toy::f32s);
        same(name, &picture(&parts([&a, &b, &c, &d]), &nowhere), &picture(&parts([&e, &f, &g, &h]), &nowhere));
    }
}

/// An 8-bit format, decoded by its definition.
#[derive(Clone, Copy)]
struct Fp8 {
    dtype: &'static str,
    name: &'static str,
    mantissa: i32,
    bias: i32,
    /// The largest finite code.
    largest: u8,
}

const E4M3: Fp8 = Fp8 { dtype: "F8_E4M3", name: "float8_e4m3fn", mantissa: 3, bias: 7, largest: 0x7e };
const E5M2: Fp8 = Fp8 { dtype: "F8_E5M2", name: "float8_e5m2", mantissa: 2, bias: 15, largest: 0x7b };

impl Fp8 {
    fn decode(self, code: u8) -> f32 {
        let fraction = f32::from(code & ((1 << self.mantissa) - 1)) / (1 << self.mantissa) as f32;
        let exponent = i32::from(code & 0x7f) >> self.mantissa;
        let size = match exponent {
            0 => fraction * 2f32.powi(1 - self.bias),
            e => (1.0 + fraction) * 2f32.powi(e - self.bias),
        };
        if code & 0x80 == 0 { size } else { -size }
    }

    fn encode(self, x: f32) -> u8 {
        // Positive codes grow with what they stand for.
        let (mut low, mut high) = (0, self.largest);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.decode(middle) < x.abs() { low = middle + 1 } else { high = middle }
        }
        let below = low.saturating_sub(1);
        let nearest = if x.abs() - self.decode(below) < self.decode(low) - x.abs() { below } else { low };
        nearest | if x < 0.0 { 0x80 } else { 0 }
    }

    /// The array stored as codes of `x / scale`, and the numbers those stand for.
    fn store(self, array: &Array, scale: f32) -> (Stored, Stored) {
        let bytes: Vec<u8> = array.values.iter().map(|x| self.encode(x / scale)).collect();
        let values = bytes.iter().map(|code| self.decode(*code) * scale).collect();
        let plain = toy::f32s(&Array { shape: array.shape.clone(), values });
        (Stored { dtype: self.dtype, shape: array.shape.clone(), bytes }, plain)
    }
}

/// How a file says the scales of its fp8 layers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spelling {
    /// No scales: every tensor is cast.
    Cast,
    /// `X.scale_weight` and a marker.
    Old,
    /// `X.weight_scale`, told in the metadata.
    Metadata,
    /// `X.weight_scale`, told beside each layer.
    Quant,
}

/// A file with fp8 numbers, its metadata, and the file of the numbers they stand for.
fn quantised(arrays: &toy::Arrays, fp8: Fp8, spelling: Spelling) -> (File, String, File) {
    let (mut file, mut plain) = (File::new(), File::new());
    let mut layers = serde_json::Map::new();
    for (name, array) in arrays {
        let Some(layer) = name.strip_suffix(".weight").filter(|_| array.shape.len() == 2 && name.contains('.')) else {
            let (a, b) =
                if spelling == Spelling::Cast { fp8.store(array, 1.0) } else { (toy::f32s(array), toy::f32s(array)) };
            file.insert(name.clone(), a);
            plain.insert(name.clone(), b);
            continue;
        };
        let largest = array.values.iter().fold(0f32, |m, x| m.max(x.abs()));
        let scale = if spelling == Spelling::Cast { 1.0 } else { largest / fp8.decode(fp8.largest) };
        let (a, b) = fp8.store(array, scale);
        file.insert(name.clone(), a);
        plain.insert(name.clone(), b);
        let one = |shape: &[usize], value| toy::f32s(&Array { shape: shape.to_vec(), values: vec![value] });
        let format = serde_json::json!({"format": fp8.name});
        match spelling {
            Spelling::Cast => {}
            Spelling::Old => {
                file.insert(format!("{layer}.scale_weight"), one(&[1], scale));
                file.insert(format!("{layer}.scale_input"), one(&[1], 1.0));
            }
            Spelling::Metadata | Spelling::Quant => {
                file.insert(format!("{layer}.weight_scale"), one(&[], scale));
                if spelling == Spelling::Quant {
                    let bytes = format.to_string().into_bytes();
                    file.insert(
                        format!("{layer}.comfy_quant"),
                        Stored { dtype: "U8", shape: vec![bytes.len()], bytes },
                    );
                }
            }
        }
        layers.insert(layer.to_owned(), format);
    }
    if spelling == Spelling::Old {
        file.insert("scaled_fp8".into(), Stored { dtype: fp8.dtype, shape: vec![2], bytes: vec![0, 0] });
    }
    (file, serde_json::json!({"format_version": "1.0", "layers": layers}).to_string(), plain)
}

#[test]
fn eight_bit_floats_are_what_their_numbers_and_scales_are() {
    let toy = Toy::new();
    let formats = Formats::new("fp8", &toy);
    for fp8 in [E4M3, E5M2] {
        for spelling in [Spelling::Cast, Spelling::Old, Spelling::Metadata, Spelling::Quant] {
            let (file, metadata, plain) = quantised(&toy.flux, fp8, spelling);
            let metadata: &[_] =
                if spelling == Spelling::Metadata { &[("_quantization_metadata", metadata.as_str())] } else { &[] };
            let name = format!("{}-{spelling:?}", fp8.dtype);
            same(&name, &formats.picture("fp8", &file, metadata), &formats.picture("plain", &plain, &[]));
        }
    }
    // ComfyUI's t5xxl_fp8_e4m3fn_scaled and its like.
    let (file, _, plain) = quantised(&toy.t5, E4M3, Spelling::Old);
    let [fp8, f32, flux] = ["t5-fp8", "t5-f32", "flux"].map(|name| formats.scratch.join(format!("{name}.safetensors")));
    toy::write(&fp8, &file);
    toy::write(&f32, &plain);
    let with = |t5: &Path| picture(&parts([&flux, &formats.rest[0], &formats.rest[1], t5]), &SearchPaths::default());
    same("T5", &with(&fp8), &with(&f32));
}

#[test]
fn formats_that_are_not_understood_are_refused_by_name() {
    let toy = Toy::new();
    let formats = Formats::new("refused", &toy);
    let layer = "double_blocks.0.img_mlp.0";
    let (good, _, _) = quantised(&toy.flux, E4M3, Spelling::Quant);
    let problem = |file: &File, metadata: &[(&str, &str)]| {
        let spec = formats.spec("x", file, metadata);
        load(&spec, &SearchPaths::default()).expect_err("this format must be refused").to_string()
    };
    let u8s = |content: &str| Stored { dtype: "U8", shape: vec![content.len()], bytes: content.as_bytes().to_vec() };
    for format in ["nvfp4", "mxfp8", "int8_tensorwise"] {
        let mut file = good.clone();
        file.insert(format!("{layer}.comfy_quant"), u8s(&format!(r#"{{"format":"{format}"}}"#)));
        let said = problem(&file, &[]);
        assert!(
            said.contains(layer) && said.contains(&format!("'{format}'")) && said.contains("x.safetensors"),
            "{said}"
        );

        let metadata = format!(r#"{{"format_version":"1.0","layers":{{"{layer}":{{"format":"{format}"}}}}}}"#);
        let (file, _, _) = quantised(&toy.flux, E4M3, Spelling::Metadata);
        let said = problem(&file, &[("_quantization_metadata", &metadata)]);
        assert!(said.contains(layer) && said.contains(&format!("'{format}'")), "{said}");
        // Some files have a prefix in their names and none in the metadata.
        let prefixed = file.into_iter().map(|(n, t)| (format!("model.diffusion_model.{n}"), t)).collect();
        let said = problem(&prefixed, &[("_quantization_metadata", &metadata)]);
        assert!(said.contains(layer) && said.contains(&format!("'{format}'")), "{said}");
    }
    let mut file = good.clone();
    file.insert(format!("{layer}.comfy_quant"), u8s("not JSON"));
    assert!(problem(&file, &[]).contains(&format!("'{layer}.comfy_quant'")));
    assert!(problem(&good, &[("_quantization_metadata", "[]")]).contains("'_quantization_metadata'"));
    let mut file = good;
    file.insert(format!("{layer}.pre_quant_scale"), toy::f32s(&Array { shape: vec![128], values: vec![2.0; 128] }));
    assert!(problem(&file, &[]).contains("pre_quant_scale"));
}
