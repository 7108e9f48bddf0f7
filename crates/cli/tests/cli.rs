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
fn pictures_are_enlarged_and_say_so() {
    let folder = folder();
    made(folder.path(), &["--size", "48x32", "--upscale", "2", "-o", "large.png"]);
    let png = std::fs::read(folder.path().join("large.png")).unwrap();
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (96, 64));
    let told = stdout(&darkroom(folder.path(), &["inspect", "large.png"]));
    for part in ["Size: 48x32", "Postprocess upscale by: 2, Postprocess upscaler: span-x2"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let f = folder.path();
    refused(f, &["generate", "x", "--upscale", "3"], 2, &["--upscale", "neither 2 nor 4"]);
    refused(f, &["generate", "x", "--upscaler", "no.safetensors"], 2, &["--upscaler has no effect"]);
    refused(f, &["generate", "x", "--upscale", "2", "--upscaler", "no.safetensors"], 1, &["no.safetensors"]);
    refused(f, &["generate", "x", "--resolution", "large"], 2, &["--resolution", "1.5K"]);
    refused(f, &["generate", "x", "--resolution", "1K", "-W", "64"], 2, &["--resolution", "--width"]);
}

#[test]
fn a_picture_is_made_again_from_its_file() {
    let folder = folder();
    let f = folder.path();
    let odd = ["--size", "48x64", "--guidance", "2", "--schedule", "beta", "--sampler", "heun", "--noise", "cpu-bf16"];
    let more = ["--t5-length", "40", "--precision", "f32", "--upscale", "2", "--vae-tiling", "on"];
    let guided = ["-n", "blue", "--true-cfg", "2"];
    made(f, &[&odd[..], &more, &guided, &["-o", "a.png"]].concat());
    let again = |from: &str, more: &[&str]| {
        let output = darkroom(f, &[&["generate", "--from", from], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    };
    let read = |name: &str| std::fs::read(f.join(name)).unwrap();
    again("a.png", &["-o", "b.png"]);
    assert!(read("a.png") == read("b.png"));
    // Any format tells it all; flags go before it.
    again("a.png", &["-o", "c.webp"]);
    again("c.webp", &["-o", "d.png", "-q"]);
    assert!(read("a.png") == read("d.png"));
    again("a.png", &["-o", "e.png", "-s", "8", "--steps", "1"]);
    let told = stdout(&darkroom(f, &["inspect", "e.png"]));
    assert!(told.contains("Seed: 8") && told.contains("Steps: 1") && told.contains("Size: 48x64"), "{told}");
    made(f, &["--metadata", "minimal", "-o", "m.png"]);
    refused(f, &["generate", "--from", "m.png"], 2, &["there is no prompt"]);
    made(f, &["--metadata", "none", "-o", "n.png"]);
    refused(f, &["generate", "--from", "n.png"], 2, &["from", "n.png", "does not tell"]);
    refused(f, &["generate", "--from", "gone.png"], 2, &["from", "gone.png"]);
    refused(f, &["generate", "--from", "a.png", "--workflow", "x.json"], 2, &["--workflow"]);
}

#[test]
fn a_comfyui_workflow_asks_for_the_same_picture() {
    let folder = folder();
    let f = folder.path();
    let workflows = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flux/tests/workflows");
    let size = ["--size", "64x48", "--steps", "2", "-m", "pocket", "-q"];
    for name in ["krea_api.json", "krea_ui.json"] {
        let file = workflows.join(name).display().to_string();
        let output = darkroom(f, &[&["generate", "--workflow", &file, "-o", "w.png"][..], &size].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let said = ["--schedule", "comfy-simple", "--t5-length", "256", "--guidance", "3.5", "--true-cfg", "1"];
        let prompt = "a lighthouse in a storm, \"quoted\", ünïcode";
        let all = [&["generate", prompt, "-s", "277513094096450", "-o", "f.png"][..], &said, &size].concat();
        assert!(darkroom(f, &all).status.success());
        assert!(std::fs::read(f.join("w.png")).unwrap() == std::fs::read(f.join("f.png")).unwrap(), "{name}");
    }
    let file = workflows.join("krea_api.json").display().to_string();
    let words = ["flux1-krea-dev_fp8_scaled.safetensors", "COMFYUI_PATH", "--transformer"];
    refused(f, &["generate", "--workflow", &file], 2, &words);
    let odd = std::fs::read_to_string(&file).unwrap().replace("\"VAEDecode\"", "\"Odd\"");
    std::fs::write(f.join("odd.json"), odd).unwrap();
    refused(f, &["generate", "--workflow", "odd.json"], 2, &["workflow: 'odd.json' needs nodes", "'Odd' (8)"]);
    refused(f, &["generate", "--workflow", "none.json"], 2, &["workflow", "none.json"]);
}

#[test]
fn upscale_keeps_what_the_file_told() {
    let folder = folder();
    let f = folder.path();
    made(f, &["--size", "48x32", "-o", "small.png"]);
    let run = |args: &[&str]| {
        let output = darkroom(f, &[&["upscale"], args].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    run(&["small.png", "--scale", "2"]);
    let told = stdout(&darkroom(f, &["inspect", "small-x2.png"]));
    for part in ["96", "64", "a red apple", "Size: 48x32", "Postprocess upscale by: 2, Postprocess upscaler: span-x2"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The same as if it had been asked for at once.
    made(f, &["--size", "48x32", "--upscale", "2", "-o", "once.png"]);
    assert!(std::fs::read(f.join("small-x2.png")).unwrap() == std::fs::read(f.join("once.png")).unwrap());
    run(&["small-x2.png", "-o", "large.webp", "-q"]);
    let told = stdout(&darkroom(f, &["inspect", "large.webp"]));
    assert!(told.contains("384") && told.contains("upscaler: span-x2, Postprocess upscale by: 4"), "{told}");
    let output = run(&["small.png", "--json", "-o", "x.jpg"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((report["width"].as_u64(), report["network"].as_str()), (Some(192), Some("span-x4")));
    refused(f, &["upscale", "gone.png"], 1, &["gone.png"]);
    refused(f, &["upscale", "small.png", "--scale", "3"], 2, &["--scale", "neither 2 nor 4"]);
    refused(f, &["upscale", "small.png", "--memory-limit", "10MB"], 2, &["memory_limit", "10MB"]);
    refused(f, &["upscale", "small.png", "--upscaler", "small.png"], 1, &["small.png"]);
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
