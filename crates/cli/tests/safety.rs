//! The safety policy as a stranger meets it: flags, exit codes, what files say, `darkroom review`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn darkroom(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(args)
        .current_dir(folder)
        .env("HOME", folder)
        .env_remove("XDG_CACHE_HOME")
        .env_remove("DARKROOM_CACHE")
        .output()
        .expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

fn photograph(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../flux/tests/golden/photographs");
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn prompts_are_refused_with_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own.txt"), "# ours\n[brands]\nzorblax\n").unwrap();
    std::fs::write(folder.path().join("bad.txt"), "apple\n---\n").unwrap();
    let make = |prompt: &str, args: &[&str]| {
        let usual = ["generate", prompt, "--steps", "1", "-s", "1", "-o", "a.png", "-q"];
        let result = darkroom(folder.path(), &[&usual, args].concat());
        (result.0, result.2, std::fs::remove_file(folder.path().join("a.png")).is_ok())
    };
    // One's own machine: nothing is looked at unless that is asked for.
    assert_eq!(make("hardcore porn", &[]), (0, String::new(), true));
    for safety in ["on", "prompt"] {
        let (code, told, made) = make("hardcore porn", &["--safety", safety]);
        assert_eq!((code, made), (3, false), "{told}");
        assert!(told.contains("error: refused by the words") && told.contains("sexual content"), "{told}");
        assert!(!told.contains("porn"), "{told}");
    }
    assert_eq!(make("hardcore porn", &["--safety", "picture"]).0, 0);
    assert_eq!(make("a cock crowing at dawn", &["--safety", "on"]), (0, String::new(), true));

    let (code, told, made) = make("a Zörblax", &["--word-list", "own.txt"]);
    assert_eq!((code, made), (3, false), "{told}");
    assert!(told.contains("refused by the list policy") && told.contains("brands"), "{told}");
    for (args, code, words) in [
        (&["--word-list", "none.txt"][..], 1, "none.txt"),
        (&["--word-list", "bad.txt"], 1, "line 2"),
        (&["--safety", "on", "--safety-threshold", "0"], 2, "safety_threshold"),
        (&["--safety-threshold", "0.5"], 2, "--safety on"),
        (&["--safety", "maybe"], 2, "possible values: off, on, prompt, picture"),
    ] {
        let (is, told, made) = make("a red apple", args);
        assert_eq!((is, made), (code, false), "{args:?}: {told}");
        assert!(told.contains(words), "{args:?}: {told}");
    }
}

#[test]
fn files_and_reports_say_what_was_checked() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| darkroom(folder.path(), args);
    let usual = ["generate", "a red apple", "--steps", "2", "-s", "1"];
    let (code, report, told) = run(&[&usual[..], &["-o", "a.avif", "--safety", "on", "--json"]].concat());
    assert_eq!(code, 0, "{told}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["safety"], "words+nsfwjs/0.85");
    assert!(report["images"][0]["scores"]["neutral"].is_f64(), "{report}");
    assert!(run(&["inspect", "a.avif"]).1.contains("words+nsfwjs/0.85"));

    // All are flagged: nothing is written, also no latents and no preview.
    let strict = ["--safety", "picture", "--safety-threshold", "1e-30", "-b", "2"];
    let files = ["-o", "b.png", "--save-latents", "b.safetensors", "--preview", "1", "--json"];
    let (code, report, told) = run(&[&usual[..], &strict, &files].concat());
    assert_eq!((code, report.as_str()), (3, ""), "{told}");
    assert!(told.contains("picture 1 was flagged") && told.contains("picture 2 was flagged"), "{told}");
    assert!(told.contains("error: refused by the nsfwjs/0.0000000") && told.contains("limit"), "{told}");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with('b')), "{names:?}");
}

#[test]
fn review_tells_scores() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("words.png"), "no picture").unwrap();
    let (astronaut, quarter) = (photograph("astronaut.png"), photograph("astronaut_quarter.png"));
    let (code, told, _) = darkroom(folder.path(), &["review", &astronaut, &quarter]);
    assert_eq!(code, 0);
    // nsfwjs says 0.9668 and 0.7234.
    assert!(told.contains("astronaut.png': passes") && told.contains("neutral 0.967"), "{told}");
    assert!(told.contains("porn 0.723"), "{told}");
    let (code, told, error) = darkroom(folder.path(), &["review", &quarter, "--safety-threshold", "0.7", "--json"]);
    assert_eq!(code, 3, "{error}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told[0]["flagged"], true);
    let (code, told, error) = darkroom(folder.path(), &["review", "words.png", &astronaut]);
    assert_eq!(code, 1);
    assert!(error.contains("'words.png' is not a PNG, JPEG, WebP or GIF file") && told.contains("passes"), "{error}");
}
