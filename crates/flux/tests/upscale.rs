//! Networks that enlarge, against what the published ones make of the same pictures; tiles against the whole; photographs
//! against Lanczos.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::{path::Path, sync::Arc};

use flux::{Error, Event, Watch, pixels::Rgb8, upscale::Upscaler};
use support::{Golden, backends, distance, folder};
use tensor::{Backend, Shape, Tensor, cpu::Cpu};

fn cpu() -> Arc<dyn Backend> {
    Cpu::new(Some(2))
}

fn tensor(golden: &Golden, name: &str, backend: &Arc<dyn Backend>) -> Tensor {
    let (shape, values) = golden.values(name);
    Tensor::from_vec(backend, Shape::new(&shape), values)
}

#[test]
fn span_is_the_published_one() {
    let golden = Golden::open("upscalers.safetensors");
    for backend in backends() {
        for scale in [2, 4] {
            let upscaler = Upscaler::embedded(scale, &backend).unwrap();
            let got = upscaler.enlarge(&tensor(&golden, "span.in", &backend));
            let distance = distance(&got.to_vec(), &golden.values(&format!("span.x{scale}")).1);
            println!("{} on {}: {distance:.1e}", upscaler.name(), backend.name());
            assert!(distance < 2e-5, "{scale} on {}: {distance:e}", backend.name());
        }
    }
}

/// Tensors of the fixture whose names begin with `prefix`, without it, as a file.
fn file_of(golden: &Golden, prefix: &str, path: &Path, change: impl Fn(&str) -> Option<String>) {
    let mut header = serde_json::Map::new();
    let mut body = Vec::new();
    for name in golden.names().filter_map(|name| name.strip_prefix(prefix)) {
        let (shape, values) = golden.values(&format!("{prefix}{name}"));
        let start = body.len();
        body.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        if let Some(name) = change(name) {
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, body.len()]});
            header.insert(name, entry);
        } else {
            body.truncate(start);
        }
    }
    let header = serde_json::Value::from(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes(), &body].concat()).unwrap();
}

#[test]
fn esrgan_in_both_spellings_and_for_both_factors() {
    let golden = Golden::open("upscalers.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for backend in backends() {
        for (scale, prefix) in [(4, ""), (2, ""), (2, "params_ema.")] {
            file_of(&golden, &format!("rrdb{scale}.w."), &path, |name| Some(format!("{prefix}{name}")));
            let upscaler = Upscaler::find(scale, Some(&path), &backend).unwrap();
            assert_eq!((upscaler.name(), upscaler.scale()), ("x", scale));
            let got = upscaler.enlarge(&tensor(&golden, &format!("rrdb{scale}.in"), &backend));
            let distance = distance(&got.to_vec(), &golden.values(&format!("rrdb{scale}.out")).1);
            println!("ESRGAN ×{scale} on {}: {distance:.1e}", backend.name());
            assert!(distance < 2e-6, "{scale} on {}: {distance:e}", backend.name());
        }
    }
}

#[test]
fn files_that_are_no_upscaler_get_a_sentence() {
    let golden = Golden::open("upscalers.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let error = |scale| Upscaler::find(scale, Some(&path), &cpu()).unwrap_err().to_string();

    std::fs::write(&path, b"PK\x03\x04 and so on").unwrap();
    assert!(error(4).contains("is a pickle") && error(4).contains("RealESRGAN_x4plus.safetensors"));
    file_of(&golden, "rrdb2.w.", &path, |name| Some(name.to_owned()));
    assert_eq!(error(4), format!("upscaler: '{}' enlarges 2 times, 4 times was asked for", path.display()));
    file_of(&golden, "rrdb2.w.", &path, |name| Some(name.to_owned()).filter(|name| !name.contains("rdb2.conv3.bias")));
    assert!(error(2).ends_with("lacks the tensor 'body.0.rdb2.conv3.bias'"), "{}", error(2));
    file_of(&golden, "rrdb4.w.", &path, |name| Some(name.to_owned()).filter(|name| !name.starts_with("model.1.")));
    assert!(error(4).contains("lacks 'model.1.sub.0.RDB1.conv1.0.weight'"), "{}", error(4));
    file_of(&golden, "rrdb4.w.", &path, |name| Some(format!("other.{name}")));
    assert!(error(4).contains("is not a known upscaler"), "{}", error(4));
}

/// Something to see at every place.
fn pattern(width: u32, height: u32) -> Rgb8 {
    let pixel = |i: u32| {
        let (x, y) = (f64::from(i % width), f64::from(i / width));
        [(x * 0.7 + y * 0.3).sin(), (x * 0.11).cos() * (y * 0.23).sin(), ((x * y) * 0.01).sin()]
    };
    let bytes = (0..width * height).flat_map(pixel).map(|v| (127.0 + 120.0 * v) as u8);
    Rgb8::new(width, height, bytes.collect())
}

fn whole(upscaler: &Upscaler, picture: &Rgb8, backend: &Arc<dyn Backend>) -> Vec<u8> {
    let values = picture.as_ref().iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let x = Tensor::from_vec(backend, [picture.height() as usize, picture.width() as usize, 3], values);
    let byte = |v: f32| (255.0 * v.clamp(0.0, 1.0)).round_ties_even() as u8;
    upscaler.enlarge(&x).to_vec().into_iter().map(byte).collect()
}

/// What is told and when it stops.
#[derive(Default)]
struct Tiles {
    told: Vec<(u32, u32)>,
    stop_after: Option<usize>,
}

impl Watch for Tiles {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Upscaling { tile, tiles } = event {
            self.told.push((tile, tiles));
        }
    }

    fn cancelled(&self) -> bool {
        self.stop_after == Some(self.told.len())
    }
}

#[test]
fn tiles_of_span_are_the_whole() {
    let backend = cpu();
    let upscaler = Upscaler::embedded(2, &backend).unwrap();
    for (width, height) in [(460, 31), (17, 449)] {
        let picture = pattern(width, height);
        let mut watch = Tiles::default();
        let tiled = upscaler.upscale(&picture, &mut watch).unwrap();
        assert_eq!(watch.told, [(1, 2), (2, 2)]);
        assert_eq!((tiled.width(), tiled.height()), (2 * width, 2 * height));
        assert!(tiled.as_ref() == whole(&upscaler, &picture, &backend), "{width}×{height}");
    }
    let mut watch = Tiles { stop_after: Some(1), ..Tiles::default() };
    assert!(matches!(upscaler.upscale(&pattern(460, 31), &mut watch), Err(Error::Cancelled)));
}

/// An ESRGAN looks farther than a tile's margin: how much that shows at the seam, beside the largest difference of neighbours.
#[test]
fn tiles_of_esrgan_are_nearly_the_whole() {
    let golden = Golden::open("upscalers.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let backend = cpu();
    for scale in [2, 4] {
        file_of(&golden, &format!("rrdb{scale}.w."), &path, |name| Some(name.to_owned()));
        let upscaler = Upscaler::open(&path, &backend).unwrap();
        let picture = pattern(201, 33);
        let mut watch = Tiles::default();
        let tiled = upscaler.upscale(&picture, &mut watch).unwrap();
        assert_eq!(watch.told.len(), 2);
        let whole = whole(&upscaler, &picture, &backend);
        let worst = tiled.as_ref().iter().zip(&whole).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("×{scale}: {worst} of 255");
        assert!(worst <= 1, "×{scale}: {worst} of 255");
    }
}

fn photograph(name: &str) -> Rgb8 {
    let path = folder().join("photographs").join(format!("{name}.png"));
    flux::image_file::open("picture", &path).unwrap().picture
}

/// Cuts of 192×192 pixels from the middle of three photographs. Lanczos: Pillow's, printed by `make_upscalers.py`.
#[test]
fn photographs_come_nearer_than_by_lanczos() {
    let upscaler = Upscaler::embedded(4, &cpu()).unwrap();
    for (name, lanczos) in [("astronaut", 24.36), ("coffee", 25.74), ("hubble_deep_field", 27.92)] {
        let expected = photograph(name);
        let got = upscaler.upscale(&photograph(&format!("{name}_quarter")), &mut ()).unwrap();
        let pairs = got.as_ref().iter().zip(expected.as_ref());
        let error: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let decibels = 10.0 * (255.0_f64.powi(2) * expected.as_ref().len() as f64 / error).log10();
        println!("{name}: {decibels:.2} dB, Lanczos {lanczos:.2} dB");
        assert!(decibels >= lanczos + 1.0, "{name}: {decibels:.2} dB, Lanczos {lanczos:.2} dB");
    }
}
