//! Damaged weights make a picture of nothing: that is told, and no picture is given.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::path::Path;

use flux::{
    Error, LoadOptions, Pipeline,
    model::{ModelSpec, SearchPaths},
    weights::safetensors::Header,
};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// Sets all values of one tensor of a file.
fn overwrite(file: &Path, tensor: &str, value: f32) {
    let mut bytes = std::fs::read(file).unwrap();
    let range = Header::parse(&bytes).unwrap().tensors[tensor].bytes.clone();
    bytes[range].as_chunks_mut::<4>().0.fill(value.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

fn outcome(tensor: &str, value: f32) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    copy(&support::folder().join("pipelines/one_one_schnell"), folder.path());
    overwrite(&folder.path().join("vae/diffusion_pytorch_model.safetensors"), tensor, value);
    let spec = ModelSpec { model: Some(folder.path().into()), ..ModelSpec::default() };
    let pipeline = Pipeline::load(spec.find(&SearchPaths::default())?, &LoadOptions::default(), &mut ())?;
    let mut request = pipeline.request("a cat");
    (request.width, request.height, request.steps, request.t5_length) = (32, 32, 2, 16);
    pipeline.generate(&request, &mut ()).map(drop)
}

#[test]
fn not_a_number_is_told() {
    outcome("decoder.conv_norm_out.weight", 1.0).expect("the undamaged kind of model makes pictures");
    let error = outcome("decoder.conv_out.bias", f32::NAN).expect_err("not-a-number makes no picture");
    assert!(matches!(&error, Error::Degenerate { .. }), "{error}");
    assert!(error.to_string().contains("nothing was saved"), "{error}");
}

#[test]
fn one_flat_colour_is_told() {
    let error = outcome("decoder.conv_out.bias", 1e9).expect_err("white makes no picture");
    assert!(error.to_string().contains("one flat colour"), "{error}");
}
