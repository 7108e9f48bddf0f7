//! Pictures given by people: resized and searched for edges as Pillow and `OpenCV` do it, read as Pillow reads them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use flux::{
    conditioning::canny::canny,
    image_file,
    pixels::Rgb8,
    resize::{Filter, resize},
};
use support::Golden;

fn picture(golden: &Golden, name: &str) -> Rgb8 {
    let shape = golden.shape(name);
    Rgb8::new(shape[1] as u32, shape[0] as u32, golden.bytes(name).to_vec())
}

fn size(text: &str) -> (u32, u32) {
    let (width, height) = text.split_once('x').unwrap();
    (width.parse().unwrap(), height.parse().unwrap())
}

#[test]
fn resizing_equals_pillow() {
    let golden = Golden::open("pictures/resize.safetensors");
    let mut compared = 0;
    for name in golden.names() {
        let [filter, from, to] = name.split('.').collect::<Vec<_>>()[..] else { continue };
        let filter = if filter == "lanczos" { Filter::Lanczos } else { Filter::Bicubic };
        let (width, height) = size(to);
        let resized = resize(&picture(&golden, &format!("in.{from}")), width, height, filter);
        assert!(resized == picture(&golden, name), "{name}");
        compared += 1;
    }
    assert!(compared >= 30, "{compared} sizes");
}

#[test]
fn edges_equal_opencv() {
    let golden = Golden::open("pictures/canny.safetensors");
    let mut compared = 0;
    for name in golden.names() {
        let ["out", picture_name, low, high] = name.split('.').collect::<Vec<_>>()[..] else { continue };
        let edges =
            canny(&picture(&golden, &format!("in.{picture_name}")), low.parse().unwrap(), high.parse().unwrap());
        let expected: Vec<u8> = golden.bytes(name).iter().flat_map(|v| [*v; 3]).collect();
        let wrong = edges.as_ref().iter().zip(&expected).filter(|(a, b)| a != b).count() / 3;
        assert_eq!(wrong, 0, "pixels of {name}");
        compared += 1;
    }
    assert!(compared >= 15, "{compared} pictures");
}

/// Pillow decodes JPEG with libjpeg-turbo, whose transform and colours differ in last digits, and whose chroma of halved
/// resolution is interpolated otherwise.
fn allowed(name: &str) -> u8 {
    match name {
        "progressive.jpg" => 24,
        _ if name.contains(".jpg") => 4,
        // Pillow cuts 16 bits off, we round.
        "rgb16.png" => 1,
        _ => 0,
    }
}

#[test]
fn files_are_read_as_by_pillow() {
    let golden = Golden::open("pictures/decoded.safetensors");
    let mut compared = 0;
    for name in golden.names().filter(|name| !name.contains(".alpha")) {
        let path = support::folder().join("pictures").join(name);
        if name.starts_with("animated") {
            let error = image_file::open("image", &path).expect_err(name).to_string();
            assert!(error.starts_with("image: ") && error.contains(name) && error.contains("moving"), "{error}");
            continue;
        }
        let decoded = image_file::open("image", &path).unwrap_or_else(|e| panic!("{e}"));
        let expected = picture(&golden, name);
        assert_eq!(
            (decoded.picture.width(), decoded.picture.height()),
            (expected.width(), expected.height()),
            "{name}"
        );
        let alpha = format!("{name}.alpha");
        assert_eq!(decoded.alpha.as_deref(), golden.has(&alpha).then(|| golden.bytes(&alpha)), "{name}");
        let opaque = |at: usize| decoded.alpha.as_ref().map_or(255, |alpha| u32::from(alpha[at]));
        let pairs = decoded.picture.as_ref().iter().zip(expected.as_ref()).enumerate();
        let worst = pairs.map(|(i, (got, colour))| {
            let over_white = (u32::from(*colour) * opaque(i / 3) + 255 * (255 - opaque(i / 3)) + 127) / 255;
            got.abs_diff(over_white as u8)
        });
        let worst = worst.max().unwrap_or(255);
        println!("{name}: {worst}");
        assert!(worst <= allowed(name), "{name}: a pixel is {worst}/255 away");
        compared += 1;
    }
    assert!(compared >= 24, "{compared} files");
}

#[test]
fn what_is_no_picture_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str, bytes: &[u8], words: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = image_file::open("mask", &path).expect_err(name).to_string();
        for word in [&["mask: ", name], words].concat() {
            assert!(error.contains(word), "{error} should mention {word}");
        }
    };
    told("empty.png", b"", &["empty"]);
    told("words.txt", b"hello", &["PNG, JPEG, WebP or GIF"]);
    told("old.tiff", b"II*\0........", &["a TIFF", "convert"]);
    told("short.gif", b"GIF89a", &["ends before"]);
    told("short.png", b"\x89PNG\r\n\x1a\n", &["ends before"]);
    // A picture that claims more pixels than are read, and one that ends early in each format.
    let read = |name: &str| std::fs::read(support::folder().join("pictures").join(name)).unwrap();
    let mut huge = read("rgb.png");
    huge[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
    told("huge.png", &huge, &["65535×65535", "million"]);
    for name in ["rgb.png", "baseline.jpg", "progressive.jpg", "lossless.webp", "lossy.webp", "interlaced.gif"] {
        let bytes = read(name);
        told(name, &bytes[..bytes.len() * 3 / 4], &["damaged"]);
    }
    let missing = image_file::open("control", &folder.path().join("none.png")).expect_err("none").to_string();
    assert!(missing.contains("control: ") && missing.contains("none.png"), "{missing}");
}
