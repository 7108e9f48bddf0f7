//! Files that were converted draw what the old ones drew, as nearly as their formats allow; bitsandbytes' four bits are read as
//! bitsandbytes reads them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod toy;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use flux::{
    Generated, LoadOptions, Pipeline, Request,
    convert::{Container, Conversion, Keep, Wanted, parse_type},
    model::{ModelSpec, PartFiles, SearchPaths},
    weights::{Checkpoint, Component, Naming, Weights, detect},
};
use tensor::{DType, Device, Precision};
use toy::{Array, File, Scratch, Stored, Toy};

fn picture(parts: [&Path; 4]) -> Generated {
    let [transformer, vae, clip_l, t5xxl] = parts.map(|path| Some(path.to_owned()));
    let spec = ModelSpec { model: None, parts: PartFiles { transformer, vae, clip_l, t5xxl, ..PartFiles::default() } };
    let options = LoadOptions {
        device: Device::Cpu { threads: Some(2) },
        precision: Some(Precision::F32),
        ..LoadOptions::default()
    };
    let files = spec.find(&SearchPaths::default()).unwrap_or_else(|e| panic!("{e}"));
    let pipeline = Pipeline::load(files, &options, &mut ()).unwrap_or_else(|e| panic!("{e}"));
    let defaults = pipeline.defaults();
    let request =
        Request { width: 64, height: 48, steps: 2, seed: 7, t5_length: 24, ..Request::new("a red fox", defaults) };
    pipeline.generate(&request, &mut ()).unwrap().remove(0)
}

/// Relative L2 distance of the latents.
fn distance(got: &Generated, expected: &Generated) -> f64 {
    let pairs = got.latents.values.iter().zip(&expected.latents.values);
    let (off, all) =
        pairs.fold((0.0, 0.0), |(off, all), (g, e)| (off + f64::from(g - e).powi(2), all + f64::from(*e).powi(2)));
    (off / all).sqrt()
}

/// Converts the first part of a file, to a file whose name says its format.
fn convert(from: &Path, to: &Path, kind: &str, keep: &[&str]) -> flux::Result<()> {
    let checkpoint = Arc::new(Checkpoint::open(from)?);
    let detected = detect(&checkpoint).remove(0);
    let gguf = to.extension().is_some_and(|e| e == "gguf");
    let container = if gguf { Container::Gguf } else { Container::Safetensors };
    let keep: Vec<Keep> = keep.iter().map(|keep| keep.parse().unwrap()).collect();
    let wanted = Wanted { container, to: parse_type(kind).unwrap(), keep };
    let conversion = Conversion::plan(&checkpoint, &detected, &wanted)?;
    let mut bytes = Vec::new();
    conversion.write(&mut bytes, Some(2), &mut |_| true)?;
    assert_eq!(bytes.len() as u64, conversion.bytes(), "the file has the size that was planned");
    toy::bytes(to, &bytes);
    Ok(())
}

/// A toy model as single files.
struct Files {
    scratch: Scratch,
    flux: PathBuf,
    rest: [PathBuf; 3],
}

impl Files {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let [flux, vae, clip, t5] = ["flux", "vae", "clip", "t5"].map(|f| scratch.join(format!("{f}.safetensors")));
        Toy::new().single_files([&flux, &vae, &clip, &t5], toy::f32s);
        Self { scratch, flux, rest: [vae, clip, t5] }
    }

    fn picture(&self, transformer: &Path) -> Generated {
        picture([transformer, &self.rest[0], &self.rest[1], &self.rest[2]])
    }
}

#[test]
fn a_converted_transformer_draws_nearly_the_same() {
    let files = Files::new("convert");
    let expected = files.picture(&files.flux);
    // About twice what was measured: 0, 3.4e-4, 3.1e-3, 3.6e-3, 3.8e-3, 0.022, 0.051, 0.013.
    for (kind, end, most) in [
        ("f32", "safetensors", 0.0),
        ("f16", "safetensors", 1e-3),
        ("bf16", "gguf", 6e-3),
        ("int8", "safetensors", 8e-3),
        ("q8_0", "gguf", 8e-3),
        ("q5_1", "gguf", 0.045),
        ("q4_0", "gguf", 0.1),
        ("q4_k", "gguf", 0.03),
    ] {
        let to = files.scratch.join(format!("{kind}.{end}"));
        convert(&files.flux, &to, kind, &[]).unwrap();
        let off = distance(&files.picture(&to), &expected);
        println!("{kind}: {off:.5}");
        assert!(off <= most, "{kind}: {off}");
        assert_eq!(off == 0.0, kind == "f32", "{kind}");
    }
}

#[test]
fn back_again_are_the_numbers_that_were_written() {
    let files = Files::new("back");
    for (kind, end) in [("q8_0", "gguf"), ("q4_k", "gguf"), ("int8", "safetensors")] {
        let (to, back) = (files.scratch.join(format!("{kind}.{end}")), files.scratch.join("back.safetensors"));
        convert(&files.flux, &to, kind, &[]).unwrap();
        convert(&to, &back, "f32", &[]).unwrap();
        assert_eq!(distance(&files.picture(&back), &files.picture(&to)), 0.0, "{kind}");
        // What is stored as blocks of a format already is found again.
        let again = files.scratch.join(format!("again.{end}"));
        if kind != "q4_k" {
            convert(&back, &again, kind, &[]).unwrap();
            assert_eq!(distance(&files.picture(&again), &files.picture(&to)), 0.0, "{kind} again");
        }
    }
}

#[test]
fn a_diffusers_folder_in_shards_becomes_one_file() {
    let files = Files::new("shards");
    let folder = files.scratch.join("diffusers");
    Toy::new().diffusers(&folder, 3);
    let index = folder.join("transformer/diffusion_pytorch_model.safetensors.index.json");
    let to = files.scratch.join("one.safetensors");
    convert(&index, &to, "f32", &[]).unwrap();
    assert_eq!(distance(&files.picture(&to), &files.picture(&files.flux)), 0.0);
    let names: Vec<String> = Checkpoint::open(&to).unwrap().tensors().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, Toy::new().flux.into_keys().collect::<Vec<_>>(), "BFL's names, and all of them");
}

#[test]
fn t5_takes_its_tokenizer_along() {
    let files = Files::new("t5");
    let [vae, clip, t5] = &files.rest;
    let to = files.scratch.join("t5.gguf");
    convert(t5, &to, "f32", &[]).unwrap();
    let checkpoint = Checkpoint::open(&to).unwrap();
    assert_eq!(checkpoint.metadata("general.architecture"), Some("t5encoder"));
    assert_eq!(checkpoint.metadata("t5encoder.block_count"), Some("1"));
    assert_eq!(detect(&checkpoint)[0].naming, Naming::T5Llama);
    let expected = files.picture(&files.flux);
    assert_eq!(distance(&picture([&files.flux, vae, clip, &to]), &expected), 0.0);
    convert(t5, &to, "q8_0", &[]).unwrap();
    let off = distance(&picture([&files.flux, vae, clip, &to]), &expected);
    assert!(off > 0.0 && off < 0.02, "{off}");
    // And back from llama.cpp's names.
    let back = files.scratch.join("back.safetensors");
    convert(&to, &back, "f32", &[]).unwrap();
    assert_eq!(distance(&picture([&files.flux, vae, clip, &back]), &picture([&files.flux, vae, clip, &to])), 0.0);
}

#[test]
fn a_header_says_what_other_programs_ask_for() {
    let files = Files::new("header");
    let to = files.scratch.join("flux.gguf");
    convert(&files.flux, &to, "q8_0", &["*.img_attn.qkv.weight=q4_0", "*.qkv.weight=bf16"]).unwrap();
    let checkpoint = Checkpoint::open(&to).unwrap();
    for (key, value) in
        [("general.architecture", "flux"), ("general.quantization_version", "2"), ("general.file_type", "7")]
    {
        assert_eq!(checkpoint.metadata(key), Some(value), "{key}");
    }
    for (name, dtype) in [
        ("double_blocks.0.img_attn.qkv.weight", "Q4_0"),
        ("double_blocks.0.txt_attn.qkv.weight", "BF16"),
        ("double_blocks.0.img_mod.lin.weight", "Q8_0"),
        ("double_blocks.0.img_mlp.0.bias", "F32"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "F32"),
        ("img_in.weight", "BF16"),
        ("final_layer.linear.weight", "BF16"),
    ] {
        assert_eq!(checkpoint.entry(name).unwrap().dtype, dtype, "{name}");
    }
    assert!(checkpoint.tensors().all(|(_, entry)| entry.bytes.start % 32 == 0), "aligned");
    let int8 = files.scratch.join("int8.safetensors");
    convert(&files.flux, &int8, "int8", &[]).unwrap();
    let checkpoint = Checkpoint::open(&int8).unwrap();
    let entry = checkpoint.entry("double_blocks.0.img_mlp.0.weight").unwrap();
    let scale = checkpoint.entry("double_blocks.0.img_mlp.0.weight_scale").unwrap();
    assert_eq!((entry.dtype.as_str(), scale.dtype.as_str(), &scale.shape[..]), ("I8", "F32", &[512][..]));
    assert_eq!(checkpoint.entry("double_blocks.0.img_mod.lin.weight").unwrap().dtype, "BF16");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let files = Files::new("cannot");
    let problem = |from: &Path, to: &str, kind: &str, keep: &[&str]| {
        convert(from, &files.scratch.join(to), kind, keep).expect_err("this must be refused").to_string()
    };
    for (from, to, kind, keep, words) in [
        (&files.flux, "x.gguf", "int8", &[][..], ["int8", "GGUF", "q8_0"]),
        (&files.flux, "x.safetensors", "q4_k", &[], ["q4_k", "safetensors", ".gguf"]),
        (&files.rest[0], "x.safetensors", "int8", &[], ["autoencoder", "int8", "bf16"]),
        (&files.rest[1], "x.gguf", "f16", &[], ["CLIP-L", "safetensors", "GGUF"]),
        (&files.flux, "x.gguf", "q8_0", &["nothing.*=f16"], ["keep", "nothing.*", "the name of a tensor"]),
        (&files.flux, "x.gguf", "q8_0", &["img_in.bias=q8_0"], ["img_in.bias", "[128]", "q8_0"]),
        (&files.flux, "x.gguf", "q8_0", &["img_in.weight=q4_k"], ["img_in.weight", "[128, 64]", "q4_k"]),
    ] {
        let said = problem(from, to, kind, keep);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    // A number that is none.
    let mut toy = Toy::new();
    toy.flux.get_mut("single_blocks.0.linear1.weight").unwrap().values[77] = f32::NAN;
    let bad = files.scratch.join("nan.safetensors");
    toy::write(&bad, &toy::stored(&toy.flux, toy::f32s));
    let said = problem(&bad, "x.gguf", "q8_0", &[]);
    assert!(said.contains("nan.safetensors") && said.contains("single_blocks.0.linear1.weight"), "{said}");
    toy.flux.get_mut("single_blocks.0.linear1.weight").unwrap().values[77] = 1e6;
    toy::write(&bad, &toy::stored(&toy.flux, toy::f32s));
    assert!(problem(&bad, "x.safetensors", "f16", &[]).contains("too large for f16"));
    // Stopped.
    let checkpoint = Arc::new(Checkpoint::open(&files.flux).unwrap());
    let wanted = Wanted { container: Container::Gguf, to: DType::Q8_0, keep: Vec::new() };
    let conversion = Conversion::plan(&checkpoint, &detect(&checkpoint)[0], &wanted).unwrap();
    let stopped = conversion.write(&mut Vec::new(), Some(1), &mut |progress| progress.written < 10_000);
    assert!(matches!(stopped, Err(flux::Error::Cancelled)));
}

#[test]
fn four_bits_are_what_bitsandbytes_makes_of_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4.safetensors");
    let checkpoint = Arc::new(Checkpoint::open(&path).unwrap());
    let weights = Weights::new(checkpoint.clone(), "", Naming::Same, Device::DryRun.open(), Precision::F32);
    let cases: Vec<(String, Vec<usize>)> = checkpoint
        .tensors()
        .filter_map(|(name, entry)| Some((name.strip_suffix(".expected")?.to_owned(), entry.shape.clone())))
        .collect();
    assert_eq!(cases.len(), 8);
    for (case, shape) in cases {
        let name = format!("{case}.weight");
        assert_eq!(weights.stored_shape(&name).unwrap(), shape);
        let weight = weights.matrix(&name, shape[0], shape[1]).unwrap();
        let expected = weights.matrix(&format!("{case}.expected"), shape[0], shape[1]).unwrap();
        assert_eq!(weight.rows()[0].dtype, DType::NF4);
        assert_eq!(weight.to_f32(), expected.to_f32(), "{case}");
    }
}

/// Some 16 values in order, and others for the nested scales.
const VALUES: [f32; 16] =
    [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];

/// The array as a file in four bits has it, and the numbers that stand there.
fn four_bits(name: &str, array: &Array, nested: bool, file: &mut File) -> Stored {
    let nearest = |values: &[f32], x: f32| {
        let off = |i: &usize| (values[*i] - x).abs();
        (0..values.len()).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap()
    };
    let blocks = array.values.chunks(64);
    let mut scales: Vec<f32> = blocks.clone().map(|block| block.iter().fold(0f32, |m, x| m.max(x.abs()))).collect();
    let mut add = |what: &str, dtype, shape: &[usize], bytes| {
        file.insert(format!("{name}.{what}"), Stored { dtype, shape: shape.to_vec(), bytes });
    };
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut state =
        serde_json::json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": array.shape});
    if nested {
        let map: Vec<f32> = (0..256).map(|i| (i as f32 - 127.0) / 128.0).collect();
        let offset = scales.iter().sum::<f32>() / scales.len() as f32;
        let outer: Vec<f32> =
            scales.chunks(256).map(|s| s.iter().fold(1e-6f32, |m, x| m.max((x - offset).abs()))).collect();
        let codes: Vec<u8> =
            scales.iter().enumerate().map(|(i, s)| nearest(&map, (s - offset) / outer[i / 256]) as u8).collect();
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = map[usize::from(codes[i])] * outer[i / 256] + offset;
        }
        add("absmax", "U8", &[codes.len()], codes);
        add("nested_absmax", "F32", &[outer.len()], bytes(&outer));
        add("nested_quant_map", "F32", &[256], bytes(&map));
        state["nested_blocksize"] = 256.into();
        state["nested_dtype"] = "float32".into();
        state["nested_offset"] = f64::from(offset).into();
    } else {
        add("absmax", "F32", &[scales.len()], bytes(&scales));
    }
    add("quant_map", "F32", &[16], bytes(&VALUES));
    let state = state.to_string().into_bytes();
    add("quant_state.bitsandbytes__nf4", "U8", &[state.len()], state);
    let codes: Vec<usize> =
        array.values.iter().enumerate().map(|(i, x)| nearest(&VALUES, x / scales[i / 64])).collect();
    let packed: Vec<u8> = codes.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    file.insert(name.to_owned(), Stored { dtype: "U8", shape: vec![packed.len(), 1], bytes: packed });
    let values = codes.iter().enumerate().map(|(i, code)| VALUES[*code] * scales[i / 64]).collect();
    toy::f32s(&Array { shape: array.shape.clone(), values })
}

/// A file in four bits where rows allow it, and the file of the numbers they stand for.
fn in_four_bits(arrays: &toy::Arrays, nested: bool) -> (File, File) {
    let (mut file, mut plain) = (File::new(), File::new());
    for (name, array) in arrays {
        if array.shape.len() == 2 && array.shape[1].is_multiple_of(64) {
            plain.insert(name.clone(), four_bits(name, array, nested, &mut file));
        } else {
            file.insert(name.clone(), toy::f32s(array));
            plain.insert(name.clone(), toy::f32s(array));
        }
    }
    (file, plain)
}

#[test]
fn models_in_four_bits_draw_what_their_numbers_draw() {
    let files = Files::new("four-bits");
    let toy = Toy::new();
    for nested in [false, true] {
        let plain_path = files.scratch.join("plain.safetensors");
        let (file, plain) = in_four_bits(&toy.flux, nested);
        toy::write(&plain_path, &plain);
        let expected = files.picture(&plain_path);
        let path = files.scratch.join("nf4.safetensors");
        toy::write(&path, &file);
        assert_eq!(distance(&files.picture(&path), &expected), 0.0, "BFL's names, nested {nested}");
        // ComfyUI's prefix, and diffusers' names: stacked from pieces with scales of their own.
        let prefixed: File = file.into_iter().map(|(n, t)| (format!("model.diffusion_model.{n}"), t)).collect();
        toy::write(&path, &prefixed);
        assert_eq!(distance(&files.picture(&path), &expected), 0.0, "ComfyUI's prefix, nested {nested}");
        let (file, plain) = in_four_bits(&toy::renamed(&toy.flux, Naming::FluxDiffusers), nested);
        toy::write(&plain_path, &plain);
        toy::write_shards(&files.scratch.join("shards/diffusion_pytorch_model"), &file, 3);
        let index = files.scratch.join("shards/diffusion_pytorch_model.safetensors.index.json");
        assert_eq!(distance(&files.picture(&index), &files.picture(&plain_path)), 0.0, "diffusers, nested {nested}");
        // Converted they are numbers like others.
        let to = files.scratch.join("f32.safetensors");
        convert(&index, &to, "f32", &[]).unwrap();
        assert_eq!(distance(&files.picture(&to), &files.picture(&plain_path)), 0.0, "converted, nested {nested}");
    }
}

#[test]
fn states_that_lie_are_refused_by_name() {
    let files = Files::new("states");
    let toy = Toy::new();
    let name = "double_blocks.0.img_mlp.0.weight";
    let (good, _) = in_four_bits(&toy.flux, true);
    let path = files.scratch.join("nf4.safetensors");
    let problem = |file: &File| {
        toy::write(&path, file);
        let spec = |path: &Path| {
            let checkpoint = Arc::new(Checkpoint::open(path)?);
            let detected = detect(&checkpoint).into_iter().find(|d| d.component == Component::Transformer).unwrap();
            let weights =
                Weights::new(checkpoint, &detected.prefix, detected.naming, Device::DryRun.open(), Precision::F32);
            weights.matrix(name, 512, 128)
        };
        spec(&path).expect_err("this must be refused").to_string()
    };
    let state = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut file = good.clone();
        let stored = file.get_mut(&format!("{name}.quant_state.bitsandbytes__nf4")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&stored.bytes).unwrap();
        change(&mut json);
        stored.bytes = json.to_string().into_bytes();
        stored.shape = vec![stored.bytes.len()];
        file
    };
    let set = |key: &str, value: serde_json::Value| state(&|json| json[key] = value.clone());
    let without = |what: &str| {
        let mut file = good.clone();
        file.remove(&format!("{name}{what}")).unwrap();
        file
    };
    let huge = 1u64 << 60;
    for (file, words) in [
        (set("quant_type", "int3".into()), ["'int3'", "nf4"]),
        (set("blocksize", 0.into()), ["blocks of 0", "64"]),
        (set("blocksize", 48.into()), ["blocks of 48", "64"]),
        (set("blocksize", 128.into()), ["'absmax'", "512 were expected"]),
        (set("shape", serde_json::json!([huge, 16])), ["larger than any file", "16"]),
        (set("shape", serde_json::json!([512, 256])), ["[512, 256]", "32768 bytes"]),
        (set("shape", serde_json::json!([])), ["0 extents", "1 to"]),
        (set("shape", serde_json::json!([128, 512])), ["[128, 512]", "128 elements"]),
        (set("nested_blocksize", 0.into()), ["nested blocks", "0"]),
        (set("nested_blocksize", 64.into()), ["'nested_absmax'", "16 were expected"]),
        (set("nested_offset", 1e300.into()), ["nested offset", "not a number"]),
        (state(&|json| *json = "x".into()), ["state", "cannot be read"]),
        (without(".absmax"), ["lacks 'absmax'", name]),
        (without(".quant_map"), ["lacks 'quant_map'", name]),
        (without(".nested_absmax"), ["lacks 'nested_absmax'", name]),
        (without(".nested_quant_map"), ["lacks 'nested_quant_map'", name]),
        (without(""), ["lacks", name]),
        (without(".quant_state.bitsandbytes__nf4"), ["U8", name]),
    ] {
        let said = problem(&file);
        assert!(words.iter().all(|word| said.contains(word)) && said.contains("nf4.safetensors"), "{words:?}: {said}");
    }
}
