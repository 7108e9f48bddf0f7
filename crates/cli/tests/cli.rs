//! The program as a stranger uses it: the model in the box, real files, exit codes, what is left after a kill.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Quick settings for the model in the box.
const QUICK: [&str; 6] = ["generate", "a red apple", "--steps", "2", "--seed", "7"];

fn darkroom(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("the program starts")
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command
        .args(args)
        .current_dir(folder)
        .env("HOME", folder)
        .env_remove("HF_HOME")
        .env_remove("COMFYUI_PATH")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("DARKROOM_CACHE");
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn made(folder: &Path, args: &[&str]) -> Output {
    let output = darkroom(folder, &[&QUICK[..], args].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

fn refused(folder: &Path, args: &[&str], code: i32, words: &[&str]) {
    let output = darkroom(folder, args);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{args:?} should mention '{word}': {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
}

#[test]
fn a_picture_is_made_and_its_seed_told() {
    let folder = folder();
    let output = made(folder.path(), &[]);
    assert!(stderr(&output).contains("seed 7"), "{}", stderr(&output));
    assert!(stderr(&output).contains("draws icons, not photographs"), "{}", stderr(&output));
    let first = std::fs::read(folder.path().join("darkroom-7.png")).unwrap();
    assert!(first.starts_with(b"\x89PNG"));
    // A name nobody chose never replaces a file.
    made(folder.path(), &[]);
    assert_eq!(std::fs::read(folder.path().join("darkroom-7-2.png")).unwrap(), first, "the same seed, the same bytes");
}

#[test]
fn threads_do_not_change_a_byte() {
    let folder = folder();
    for threads in ["1", "2", "3"] {
        made(folder.path(), &["--threads", threads, "-o", &format!("{threads}.png")]);
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("1.png"), read("2.png"));
    assert_eq!(read("1.png"), read("3.png"));
}

#[test]
fn standard_input_and_output() {
    let folder = folder();
    let mut child =
        command(folder.path(), &["generate", "-", "--steps", "1", "-s", "1", "-o", "-", "-q", "--format", "webp"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"a blue house\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    assert!(output.stdout.starts_with(b"RIFF"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn json_names_every_file_of_a_batch() {
    let folder = folder();
    let output =
        made(folder.path(), &["--batch", "2", "--json", "-o", "new/x.jpg", "--save-latents", "l-{seed}.safetensors"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON and nothing else");
    let images = report["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    for (image, seed) in images.iter().zip([7, 8]) {
        assert_eq!(image["seed"], seed);
        assert_eq!(image["path"], format!("new/x-{seed}.jpg"));
        assert!(folder.path().join(image["path"].as_str().unwrap()).is_file());
        assert!(folder.path().join(format!("l-{seed}.safetensors")).is_file());
    }
}

#[test]
fn sizes_are_exact() {
    let folder = folder();
    made(folder.path(), &["-W", "71", "-H", "50", "-o", "odd.png"]);
    let png = std::fs::read(folder.path().join("odd.png")).unwrap();
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (71, 50));
}

#[test]
fn metadata_has_levels_and_the_mark_stays() {
    let folder = folder();
    for (level, prompt, seed) in [("full", true, true), ("minimal", false, true), ("none", false, false)] {
        made(folder.path(), &["--metadata", level, "-o", "m.png"]);
        let told = stdout(&darkroom(folder.path(), &["inspect", "m.png"]));
        assert_eq!(told.contains("red apple"), prompt, "{level}: {told}");
        assert_eq!(told.contains("Seed: 7"), seed, "{level}: {told}");
        assert!(told.contains("trainedAlgorithmicMedia"), "{level}: {told}");
    }
}

#[test]
fn the_arithmetic_is_told() {
    let folder = folder();
    for (asked, used) in [("auto", "bf16"), ("f32", "f32"), ("bf16", "bf16"), ("int8", "int8")] {
        made(folder.path(), &["--precision", asked, "-o", "p.png"]);
        let told = stdout(&darkroom(folder.path(), &["inspect", "p.png"]));
        assert!(told.lines().any(|line| line.split_whitespace().eq(["precision", used])), "{asked}: {told}");
    }
}

#[test]
fn wrong_requests_name_the_flag() {
    let folder = folder();
    let f = folder.path();
    refused(f, &["generate"], 2, &["no prompt"]);
    refused(f, &["generate", "x", "--size", "10"], 2, &["--size", "WIDTHxHEIGHT"]);
    refused(f, &["generate", "x", "--size", "8x8"], 2, &["width", "16"]);
    refused(f, &["generate", "x", "--size", "9000x9000"], 2, &["width", "8192"]);
    refused(f, &["generate", "x", "--steps", "0"], 2, &["steps"]);
    refused(f, &["generate", "x", "--precision", "int4"], 2, &["--precision", "int4", "int8"]);
    refused(f, &["generate", "x", "-n", "blur", "--true-cfg", "1"], 2, &["--negative-prompt", "--true-cfg"]);
    refused(f, &["generate", "x", "-o", "x.bmp"], 2, &["bmp", "png"]);
    refused(f, &["generate", "x", "-o", "-", "-b", "2"], 2, &["--output -"]);
    refused(f, &["generate", "x", "--seed", "99999999999999999999"], 2, &["--seed"]);
    refused(f, &["generate", "x", "-m", "no-such-model"], 2, &["no-such-model", "pocket"]);
    refused(f, &["generate", "--prompt-file", "none.txt"], 1, &["none.txt"]);
    std::fs::write(f.join("a.safetensors"), b"\x89PNG\r\n\x1a\n").unwrap();
    refused(f, &["generate", "x", "-m", "a.safetensors"], 1, &["a.safetensors", "PNG picture"]);
    refused(f, &["inspect", "a.safetensors", "gone.png"], 1, &["gone.png"]);
}

#[test]
fn the_real_model_is_planned_in_under_a_second() {
    let folder = folder();
    let start = Instant::now();
    let output = darkroom(folder.path(), &["plan", "--json"]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let plan: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(plan["parts"][2]["parameters"], 11_901_408_320u64);
    assert_eq!(plan["tokens"], 4608);
}

/// Long enough that it is still at work when it is stopped.
fn long_run(folder: &Path) -> std::process::Child {
    let mut child = command(folder, &["generate", "a tree", "--steps", "1000", "-s", "1", "-o", "out.png"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line comes when the model is loaded.
    let mut byte = [0];
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut byte).unwrap();
    child
}

#[test]
fn a_killed_run_leaves_no_file() {
    let folder = folder();
    let mut child = long_run(folder.path());
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_between_blocks() {
    let folder = folder();
    let mut child = long_run(folder.path());
    let start = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
