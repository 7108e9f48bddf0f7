//! `darkroom convert` as a stranger uses it: what it writes, tells and refuses.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn darkroom(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_darkroom")).args(args).current_dir(folder).env("HOME", folder).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = darkroom(folder, args);
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    told(&output)
}

/// A diffusers folder with a transformer in bf16.
fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flux/tests/golden/pipelines/head_dim_128_bf16");
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_file_is_planned_written_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    let plan = done(at, &["convert", &model, "--type", "q8_0", "-o", "new/x.gguf", "--dry-run"]);
    assert!(plan.contains("double_blocks.0.img_attn.qkv.weight") && plan.contains("nothing was written"), "{plan}");
    assert!(files(at).is_empty(), "a dry run leaves nothing");

    let report = done(at, &["convert", &model, "--type", "q8_0", "-o", "new/x.gguf"]);
    assert!(report.contains("Q8_0") && report.contains("relative error") && report.contains("x.gguf"), "{report}");
    assert_eq!(files(&at.join("new")), [at.join("new/x.gguf")], "nothing else is left");
    let inspected = done(at, &["inspect", "new/x.gguf"]);
    assert!(inspected.contains("transformer") && inspected.contains("Q8_0"), "{inspected}");

    let json = done(at, &["convert", "new/x.gguf", "-t", "f32", "-o", "y.safetensors", "--json", "--threads", "1"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["formats"][0]["format"], "f32");
    assert_eq!(json["formats"][0]["relative_error"], 0.0);
    assert_eq!(json["bytes"], std::fs::metadata(at.join("y.safetensors")).unwrap().len());
    let int8 =
        done(at, &["convert", "y.safetensors", "-t", "int8", "--keep", "*.img_mlp.*=bf16", "-o", "z.safetensors"]);
    assert!(int8.contains("int8") && int8.contains("bf16"), "{int8}");
}

#[test]
fn a_file_that_is_there_stays_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    std::fs::write(at.join("x.gguf"), "mine").unwrap();
    let args = ["convert", &model, "--type", "q4_0", "-o", "x.gguf"];
    let output = darkroom(at, &args);
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("--force"), "{}", told(&output));
    assert_eq!(std::fs::read(at.join("x.gguf")).unwrap(), b"mine");
    done(at, &[&args[..], &["--force"]].concat());
    assert!(std::fs::read(at.join("x.gguf")).unwrap().starts_with(b"GGUF"));
    let output = darkroom(at, &["convert", "x.gguf", "--type", "q4_0", "-o", "x.gguf", "--force"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("into itself"), "{}", told(&output));
}

#[test]
fn what_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    std::fs::write(at.join("text.safetensors"), "Access denied. Please log in to continue.").unwrap();
    std::fs::create_dir(at.join("folder.gguf")).unwrap();
    std::fs::create_dir(at.join("empty")).unwrap();
    for (args, code, words) in [
        (&[&model, "-t", "q9", "-o", "x.gguf"][..], 2, &["q9", "q8_0"][..]),
        (&[&model, "-t", "q8_0", "-o", "x.bin"], 2, &["x.bin", ".gguf"]),
        (&[&model, "-t", "q8_0", "-o", "x.safetensors"], 2, &["q8_0", "safetensors"]),
        (&[&model, "-t", "int8", "-o", "x.gguf"], 2, &["int8", "GGUF"]),
        (&[&model, "-t", "q8_0", "-o", "folder.gguf"], 2, &["is a folder"]),
        (&[&model, "-t", "q8_0", "-o", "x.gguf", "--keep", "img_in"], 2, &["PATTERN=TYPE"]),
        (&[&model, "-t", "q8_0", "-o", "x.gguf", "--part", "unet"], 2, &["transformer, t5"]),
        (&[&model, "-t", "q8_0", "-o", "text.safetensors/x.gguf"], 1, &["text.safetensors"]),
        (&["missing.safetensors", "-t", "q8_0", "-o", "x.gguf"], 1, &["missing.safetensors"]),
        (&["text.safetensors", "-t", "q8_0", "-o", "x.gguf"], 1, &["text.safetensors"]),
        (&["empty", "-t", "q8_0", "-o", "x.gguf"], 1, &["empty", "diffusion_pytorch_model"]),
    ] {
        let output = darkroom(at, &[&["convert"], args].concat());
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(words.iter().all(|word| told.contains(word)) && !told.contains("panicked"), "{args:?}: {told}");
        assert!(!at.join("x.gguf").exists());
    }
}
