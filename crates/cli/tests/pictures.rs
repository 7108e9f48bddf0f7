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
