//! `darkroom bench`: its results are the library's own, its inputs are checked, and what it tells is complete.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../flux/tests/support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod toy;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use flux::{
    model::Part,
    text::t5::T5,
    transformer::{Condition, Flux, Rope},
    vae::Decoder,
    weights::{Component, safetensors::Header},
};
use serde_json::Value;
use tensor::{Backend, Device, Precision, Tensor};
use toy::{Array, Arrays, Scratch, Stored, Toy, bf16s, f32s};

fn darkroom(args: &[&str]) -> Output {
    command(args).output().expect("the program starts")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command.args(args);
    command
}

/// What a run told in JSON.
fn report(args: &[&str]) -> Value {
    let output = darkroom(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
}

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = darkroom(args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{args:?} should mention '{word}': {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
}

/// Numbers that differ from each other.
fn ramp(shape: &[usize], step: f32) -> Array {
    let count: usize = shape.iter().product();
    Array { shape: shape.to_vec(), values: (0..count).map(|i| (i as f32 * step).sin()).collect() }
}

const WIDTH_OF_TEXT: usize = 32;
const WIDTH_OF_POOLED: usize = 64;

/// Six tokens of picture, two rows of three, and five of text.
fn question() -> Arrays {
    let ids = (0..6).flat_map(|i| [0.0, (i / 3) as f32, (i % 3) as f32]).collect();
    let one = |value: f32| Array { shape: vec![1], values: vec![value] };
    Arrays::from([
        ("img".into(), ramp(&[1, 6, 64], 0.7)),
        ("txt".into(), ramp(&[1, 5, WIDTH_OF_TEXT], 1.3)),
        ("y".into(), ramp(&[1, WIDTH_OF_POOLED], 2.1)),
        ("timesteps".into(), one(0.625)),
        ("guidance".into(), one(3.5)),
        ("img_ids".into(), Array { shape: vec![1, 6, 3], values: ids }),
        ("txt_ids".into(), Array { shape: vec![1, 5, 3], values: vec![0.0; 15] }),
    ])
}

fn write(path: &Path, arrays: &Arrays, store: impl Fn(&Array) -> Stored) {
    toy::write(path, &toy::stored(arrays, store));
}

/// A folder with the four parts and a question.
fn scene(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let files = ["f", "v", "c", "t"].map(|name| scratch.join(name));
    Toy::new().single_files(files.each_ref().map(PathBuf::as_path), f32s);
    write(&scratch.join("inputs"), &question(), f32s);
    scratch
}

fn path(scratch: &Scratch, name: &str) -> String {
    scratch.join(name).display().to_string()
}

/// The one tensor that `--save` writes.
fn saved(path: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let header = Header::parse(&bytes).unwrap();
    let entry = &header.tensors["out"];
    assert_eq!((header.tensors.len(), entry.dtype.as_str()), (1, "F32"));
    let values = bytes[entry.bytes.clone()].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (entry.shape.clone(), values)
}

fn backend() -> Arc<dyn Backend> {
    Device::Cpu { threads: Some(2) }.open()
}

/// What the library says to [`question`].
fn velocity(file: &str, precision: Precision) -> Vec<f32> {
    let backend = backend();
    let part = Part::open(Path::new(file), Component::Transformer).unwrap();
    let flux = Flux::load(part.flux_config().unwrap(), &part.weights(&backend, precision)).unwrap();
    let question = question();
    let tensor = |name: &str| {
        let Array { shape, values } = &question[name];
        let rows = if shape.len() == 3 { shape[1] } else { 1 };
        Tensor::from_vec(&backend, [rows, values.len() / rows], values.clone())
    };
    let config = flux.config();
    let rope = Rope::text_to_image(&backend, 5, [2, 3], config.axes_dim, config.theta);
    let (txt, pooled) = (tensor("txt"), tensor("y"));
    let condition = Condition { txt: &txt, pooled: &pooled, guidance_argument: 3500.0, rope: &rope };
    flux.forward(&tensor("img"), 0.625, condition, &mut |_, _| Ok(())).unwrap().to_vec()
}

#[test]
fn a_step_gives_what_the_library_gives() {
    let scene = scene("bench-step");
    let [file, inputs, out] = ["f", "inputs", "out"].map(|name| path(&scene, name));
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::BF16), ("int8", Precision::Int8)] {
        let args = ["bench", "step", "--transformer", &file, "--inputs", &inputs, "--save", &out, "--runs", "2"];
        let told = report(&[&args[..], &["--precision", name, "--threads", "2", "--stages"]].concat());
        let (shape, values) = saved(&out);
        assert_eq!(shape, [1, 6, 64]);
        assert_eq!(values, velocity(&file, precision), "{name}");

        assert_eq!(told["precision"], name);
        assert_eq!([&told["image_tokens"], &told["text_tokens"], &told["threads"]], [6, 5, 2]);
        assert_eq!([&told["double_blocks"], &told["single_blocks"]], [1, 1]);
        assert_eq!(told["seconds"].as_array().unwrap().len(), 2);
        let number = |name: &str| told[name].as_f64().unwrap_or_else(|| panic!("{name} in {told}"));
        assert!(number("min_seconds") <= number("median_seconds") && number("median_seconds") <= number("max_seconds"));
        assert!(number("gflop") > 0.0 && number("share_of_peak") > 0.0 && number("warm_up_seconds") > 0.0);
        assert!(told["peak_gflop_per_second"][name].as_f64().unwrap() > 0.0);
        assert!(told["stages_seconds"]["attention"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn any_layout_and_any_shape_of_inputs_give_the_same() {
    let scene = scene("bench-layouts");
    let [file, inputs, out] = ["f", "inputs", "out"].map(|name| path(&scene, name));
    let run = |file: &str| {
        let args = ["bench", "step", "--precision", "f32", "--runs", "1", "--transformer", file];
        report(&[&args[..], &["--inputs", &inputs, "--save", &out, "--size", "48x32", "--text-tokens", "5"]].concat());
        saved(&out).1
    };
    let expected = run(&file);
    Toy::new().diffusers(&scene.join("folder"), 2);
    assert_eq!(run(&path(&scene, "folder/transformer")), expected);
    Toy::new().all_in_one(&scene.join("all"));
    assert_eq!(run(&path(&scene, "all")), expected);
    // Without the axis of one picture.
    let mut flat = question();
    for array in flat.values_mut() {
        if array.shape.len() > 1 {
            array.shape.remove(0);
        } else {
            array.shape.clear();
        }
    }
    write(&scene.join("inputs"), &flat, f32s);
    assert_eq!(run(&file), expected);
    // In bf16, numbers are rounded on their way in and in no other way.
    let rounded = flat.iter().map(|(name, array)| {
        let values = array.values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        (name.clone(), Array { shape: array.shape.clone(), values })
    });
    write(&scene.join("inputs"), &rounded.collect(), f32s);
    let expected = run(&file);
    write(&scene.join("inputs"), &flat, bf16s);
    assert_eq!(run(&file), expected);
}

#[test]
fn random_inputs_need_no_file() {
    let scene = scene("bench-random");
    let file = path(&scene, "f");
    let told =
        report(&["bench", "step", "--transformer", &file, "--size", "40x33", "--text-tokens", "7", "--runs", "1"]);
    assert_eq!([&told["image_tokens"], &told["text_tokens"]], [9, 7]);
    let output = darkroom(&["bench", "step", "--transformer", &file, "--size", "32x32", "--runs", "1", "--stages"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in
        ["1 double and 1 single blocks", "bf16", "warm-up", "run 1", "median", "GFLOP/s", "of the peak", "linear"]
    {
        assert!(table.contains(word), "the table lacks '{word}':\n{table}");
    }
}

#[test]
fn paced_runs_wait_for_their_turn() {
    let scene = scene("bench-paced");
    let file = path(&scene, "f");
    let args = ["bench", "step", "--transformer", &file, "--size", "32x32", "--text-tokens", "4", "--paced"];
    let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut answer = || serde_json::from_str::<Value>(&answers.next().unwrap().unwrap()).unwrap();
    assert_eq!(answer()["ready"], true);
    let mut stdin = child.stdin.take().unwrap();
    for _ in 0..2 {
        stdin.write_all(b"run\n").unwrap();
        assert!(answer()["seconds"].as_f64().unwrap() > 0.0);
    }
    drop(stdin);
    assert_eq!(answer()["seconds"].as_array().unwrap().len(), 2);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_decoder_gives_what_the_library_gives() {
    let scene = scene("bench-vae");
    let [file, inputs, out] = ["v", "latents", "out"].map(|name| path(&scene, name));
    let latents = ramp(&[1, 16, 2, 4], 0.9);
    write(Path::new(&inputs), &Arrays::from([("latents".into(), latents.clone())]), f32s);
    let args =
        ["bench", "vae", "--vae", &file, "--inputs", &inputs, "--save", &out, "--runs", "1", "--precision", "f32"];
    let told = report(&args);
    assert_eq!(told["size"], serde_json::json!([32, 16]));

    let backend = backend();
    let part = Part::open(Path::new(&file), Component::Vae).unwrap();
    let decoder = Decoder::load(part.vae_config().unwrap(), &part.weights(&backend, Precision::F32)).unwrap();
    let z = Tensor::from_vec(&backend, [16, 2, 4], latents.values).permute(&[1, 2, 0]);
    let picture = decoder.decode(&z, &mut || Ok(())).unwrap().permute(&[2, 0, 1]);
    assert_eq!(saved(&out), (vec![1, 3, 16, 32], picture.to_vec()));

    refused(&[&args[..], &["--size", "64x64"]].concat(), 2, &["--size 64x64", "[1, 16, 2, 4]"]);
    write(Path::new(&inputs), &Arrays::from([("latents".into(), ramp(&[1, 15, 2, 4], 0.9))]), f32s);
    refused(&args, 1, &["latents", "[1, 15, 2, 4]", "[1, 16, height, width]"]);
    refused(&["bench", "vae", "--vae", &path(&scene, "f")], 1, &["holds no autoencoder"]);
}

#[test]
fn t5_gives_what_the_library_gives() {
    let scene = scene("bench-t5");
    let [file, inputs, out] = ["t", "ids", "out"].map(|name| path(&scene, name));
    let ids: [u32; 4] = [5, 0, 31999, 17];
    let store = |ids: &[i64]| {
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let ids = Stored { dtype: "I64", shape: vec![1, ids.len()], bytes };
        toy::write(Path::new(&inputs), &toy::File::from([("ids".into(), ids)]));
    };
    store(&ids.map(i64::from));
    let args = ["bench", "t5", "--t5", &file, "--inputs", &inputs, "--save", &out, "--runs", "1", "--precision", "f32"];
    let told = report(&args);
    assert_eq!([&told["layers"], &told["tokens"]], [1, 4]);

    let backend = backend();
    let part = Part::open(Path::new(&file), Component::T5).unwrap();
    let t5 = T5::load(part.t5_config().unwrap(), &part.weights(&backend, Precision::F32)).unwrap();
    let states = t5.forward(&backend, &ids, &mut |_, _| Ok(())).unwrap();
    assert_eq!(saved(&out), (vec![1, 4, WIDTH_OF_TEXT], states.to_vec()));

    refused(&[&args[..], &["--tokens", "5"]].concat(), 2, &["--tokens is 5", "are 4"]);
    store(&[1, -1]);
    refused(&args, 1, &["'ids'"]);
    store(&[1, 99_999]);
    refused(&args, 1, &["99999"]);
    assert_eq!(report(&["bench", "t5", "--t5", &file, "--tokens", "3", "--runs", "1"])["tokens"], 3);
}

#[test]
fn bad_inputs_are_named() {
    let scene = scene("bench-bad");
    let [file, inputs] = ["f", "inputs"].map(|name| path(&scene, name));
    let args = ["bench", "step", "--transformer", &file, "--inputs", &inputs, "--runs", "1"];
    for name in question().keys() {
        let mut without = question();
        without.remove(name);
        write(&scene.join("inputs"), &without, f32s);
        refused(&args, 1, &["inputs", &format!("lacks the tensor '{name}'")]);
    }
    let wrong: [(&str, &[usize], &str); 9] = [
        ("img", &[1, 6, 63], "[1, any, 64]"),
        ("img", &[2, 6, 64], "one picture"),
        ("img", &[1, 0, 64], "[1, any, 64]"),
        ("txt", &[1, 5, 31], "[1, any, 32]"),
        ("y", &[63], "[1, 1, 64]"),
        ("timesteps", &[2], "one number"),
        ("guidance", &[0], "one number"),
        ("img_ids", &[1, 5, 3], "[1, 6, 3]"),
        ("txt_ids", &[1, 5, 2], "[1, 5, 3]"),
    ];
    for (name, shape, expected) in wrong {
        let mut changed = question();
        changed.insert(name.into(), ramp(shape, 0.1));
        write(&scene.join("inputs"), &changed, f32s);
        refused(&args, 1, &["inputs", &format!("'{name}'"), expected]);
    }
    let mut changed = question();
    changed.insert("timesteps".into(), Array { shape: vec![1], values: vec![500.0] });
    write(&scene.join("inputs"), &changed, f32s);
    refused(&args, 1, &["'timesteps' 500", "0 to 1"]);

    write(&scene.join("inputs"), &question(), f32s);
    refused(&[&args[..], &["--size", "64x64"]].concat(), 2, &["--size 64x64 is 16 tokens", "has 6"]);
    refused(&[&args[..], &["--text-tokens", "6"]].concat(), 2, &["--text-tokens is 6", "has 5"]);
    refused(&[&args[..], &["--precision", "f8"]].concat(), 2, &["--precision", "f32, bf16, int8"]);
    refused(&[&args[..], &["--paced"]].concat(), 2, &["--paced"]);
    std::fs::write(scene.join("inputs"), b"GGUF").unwrap();
    refused(&args, 1, &["inputs", "not safetensors"]);
    refused(&["bench", "step", "--transformer", &path(&scene, "none")], 1, &["none"]);
    refused(&["bench", "step", "--transformer", &path(&scene, "v")], 1, &["holds no transformer"]);
    refused(&["bench", "step", "--transformer", &file, "--size", "9x9"], 2, &["--size", "8192"]);
}

#[test]
fn kernels_tell_their_share_of_the_peak() {
    let told = report(&["bench", "kernels", "--threads", "1", "--runs", "1", "--only", "linear 64 × 256"]);
    let rows = told["kernels"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["kernel"].as_str().unwrap()).collect();
    let [f32, bf16, int8] = ["f32", "bf16", "int8"].map(|name| format!("{name} linear 64 × 256 → 256"));
    assert_eq!(names, [f32, bf16, int8.clone(), format!("{int8}, kept")]);
    assert!(rows.iter().all(|row| row["share_of_peak"].as_f64().unwrap() > 0.0));
    let output = darkroom(&["bench", "kernels", "--runs", "1", "--only", "attention 512 tokens"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("GFLOP/s") && table.lines().count() >= 2, "{table}");
    refused(&["bench", "kernels", "--only", "nothing"], 2, &["--only", "'nothing'"]);
}

#[test]
fn a_whole_picture_is_told_by_stages() {
    let told = report(&["bench", "generate", "--size", "32x32", "--steps", "2", "--runs", "2"]);
    assert_eq!(told["seconds"].as_array().unwrap().len(), 2);
    for stage in ["total", "encode", "denoise", "step", "decode"] {
        assert!(told[format!("median_{stage}_seconds")].as_f64().unwrap() > 0.0, "{stage} in {told}");
    }
    let output = darkroom(&["bench", "generate", "--size", "32x32", "--steps", "1", "--runs", "1"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["32×32 pixels", "load", "encode", "denoise", "decode", "memory"] {
        assert!(table.contains(word), "the table lacks '{word}':\n{table}");
    }
    refused(&["bench", "generate", "--size", "8x8"], 2, &["width", "16"]);
}
