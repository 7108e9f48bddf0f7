//! Pictures from pictures as a stranger asks for them: the model in the box, flags that need each other, files that are none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn darkroom(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(["generate", "a red apple", "--steps", "4"])
        .args(args)
        .current_dir(folder)
        .env("HOME", folder)
        .env_remove("XDG_CACHE_HOME")
        .env_remove("DARKROOM_CACHE")
        .output()
        .expect("the program starts")
}

fn made(folder: &Path, args: &[&str], name: &str) -> (u32, u32, Vec<u8>) {
    let output = darkroom(folder, &[args, &["-o", name]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let file = std::fs::File::open(folder.join(name)).unwrap();
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    (frame.width, frame.height, pixels)
}

fn golden(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../flux/tests/golden");
    folder.join(name).to_str().unwrap().to_owned()
}

/// The mean distance of two pictures' bytes.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn strength_0_keeps_a_picture_and_1_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height, first) = made(folder.path(), &["--seed", "1"], "first.png");
    let far = |strength: &str| {
        let (w, h, pixels) =
            made(folder.path(), &["--seed", "7", "-i", "first.png", "--strength", strength], "next.png");
        assert_eq!((w, h), (width, height));
        distance(&first, &pixels)
    };
    let distances = ["0", "0.5", "1"].map(far);
    // It drew an apple once: at full strength it draws one again, not the same.
    let [kept, half, whole] = distances;
    assert!(kept < 2.0 && half > kept + 0.5 && whole > kept + 0.5, "{distances:?}");
    let everything = ["--seed", "7", "-i", "first.png", "--strength", "1", "--strength-mapping", "comfy"];
    let text = made(folder.path(), &["--seed", "7"], "text.png").2;
    assert_eq!(made(folder.path(), &everything, "whole.png").2, text, "ComfyUI's strength 1 is text-to-image");
}

#[test]
fn margins_and_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height, _) = made(folder.path(), &["--seed", "1"], "first.png");
    let sized = |args: &[&str]| {
        let (w, h, _) = made(folder.path(), &[&["-i", "first.png"], args].concat(), "next.png");
        (w, h)
    };
    assert_eq!(sized(&["--outpaint", "16,0,3,8"]), (width + 19, height + 8));
    assert_eq!(sized(&["-W", "48"]), (48, (48.0 * f64::from(height) / f64::from(width)).round() as u32));
    assert_eq!(sized(&["--size", "64x32"]), (64, 32));
}

#[test]
fn what_was_given_is_told_by_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height, _) = made(folder.path(), &["--seed", "1"], "first.png");
    // The picture itself is as good a mask as any.
    let args = ["-i", "first.png", "--mask", "first.png", "--strength", "0.75", "--size", &format!("{width}x{height}")];
    made(folder.path(), &args, "next.png");
    let inspected = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(["inspect", "next.png"])
        .current_dir(&folder)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(told.contains("Denoising strength: 0.75"), "{told}");
}

#[test]
fn what_cannot_be_met_names_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("words.png"), "no picture").unwrap();
    let image = golden("pictured/inpaint/image.png");
    let moving = golden("pictures/animated.webp");
    let cases: [(&[&str], &[&str]); 15] = [
        (&["--mask", "m.png"], &["--mask", "--image"]),
        (&["--strength", "0.5"], &["--strength", "--image"]),
        (&["--outpaint", "1,1,1,1"], &["--outpaint", "--image"]),
        (&["--outpaint", "1,1"], &["--outpaint", "LEFT,TOP"]),
        (&["-i", "none.png"], &["image", "none.png"]),
        (&["-i", "words.png"], &["image", "words.png", "PNG, JPEG, WebP or GIF"]),
        (&["-i", &moving], &["image", "moving"]),
        (&["-i", &image, "--mask", "words.png"], &["mask", "words.png"]),
        (&["-i", &image, "--strength", "2"], &["strength", "0 to 1"]),
        (&["-i", &image, "--strength", "0", "--redux", &image], &["strength", "--redux"]),
        (&["-i", &image, "--strength", "0", "--style", &image], &["strength", "--style"]),
        (&["--control", &image], &["control", "FLUX.1-Canny-dev"]),
        (&["--canny", &image], &["control", "FLUX.1-Canny-dev"]),
        (&["--control", &image, "--canny", &image], &["--control", "--canny"]),
        (&["--reference", &image], &["reference", "kontext"]),
    ];
    for (args, words) in cases {
        let output = darkroom(folder.path(), args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{args:?} should mention '{word}': {told}");
        }
        assert!(!told.contains("panicked"), "{told}");
    }
}

/// The public ComfyUI template with another latent, in a file.
fn workflow(folder: &Path, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let template = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../flux/tests/workflows/krea_api.json");
    let mut workflow = serde_json::from_str(&std::fs::read_to_string(template).unwrap()).unwrap();
    change(&mut workflow);
    std::fs::write(folder.join(name), workflow.to_string()).unwrap();
}

#[test]
fn a_workflows_picture_is_found_beside_it_or_given() {
    use serde_json::json;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (width, height, _) = made(at, &["--seed", "7", "--size", "96x64"], "first.png");
    assert_eq!((width, height), (96, 64));
    workflow(at, "from.json", |w| {
        w["3"] = json!({"class_type": "LoadImage", "inputs": {"image": "first.png"}});
        w["4"] = json!({"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["39", 0]}});
        w["31"]["inputs"]["latent_image"] = json!(["4", 0]);
        w["31"]["inputs"]["denoise"] = json!(0.5);
    });
    workflow(at, "plain.json", |_| {});
    let common = ["-m", "pocket"];
    let whole = made(at, &[&common[..], &["--workflow", "from.json"]].concat(), "a.png");
    let image = ["-i", "first.png", "--strength", "0.5", "--strength-mapping", "comfy"];
    let flags = made(at, &[&common[..], &["--workflow", "plain.json"], &image[..]].concat(), "b.png");
    assert_eq!((whole.0, whole.1), (96, 64), "its picture's size");
    assert!(whole.2 == flags.2, "{}", distance(&whole.2, &flags.2));
    // Another one takes its place, and the flags go before the file.
    made(at, &["--seed", "8", "--size", "64x96"], "second.png");
    let other = ["--workflow", "from.json", "-i", "second.png", "--strength", "0"];
    let (width, height, pixels) = made(at, &[&common[..], &other[..]].concat(), "c.png");
    assert_eq!((width, height), (64, 96));
    let (_, _, second) = made(at, &["-i", "second.png", "--strength", "0", "--size", "64x96"], "d.png");
    assert!(distance(&pixels, &second) < 1.0, "it is given back through the autoencoder");
    std::fs::remove_file(at.join("first.png")).unwrap();
    let output = darkroom(at, &[&common[..], &["--workflow", "from.json"]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("'first.png'") && told.contains("--image FILE"), "{told}");
}

#[test]
fn a_picture_made_from_pictures_asks_for_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    made(at, &["--seed", "7", "--size", "64x64"], "first.png");
    let once = made(at, &["--seed", "9", "-i", "first.png", "--strength", "0.5", "--size", "64x48"], "next.png");
    let output = darkroom(at, &["--from", "next.png"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("--from") && told.contains("--image FILE") && !told.contains("--mask"), "{told}");
    // How far it went, and its size, it tells itself.
    let again = made(at, &["--from", "next.png", "-i", "first.png"], "again.png");
    assert!(once == again, "{}x{}", again.0, again.1);
}
