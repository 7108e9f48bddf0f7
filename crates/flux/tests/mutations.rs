//! Files with one byte changed: read, or refused with one sentence, without a panic and without memory that is not there.

#![cfg(unix)] // bytes are changed in place
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/measured.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod measured;
#[path = "support/toy.rs"]
#[expect(unreachable_pub, dead_code, reason = "a module of each test file that uses it, in part")]
mod toy;

use std::{
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flux::{
    convert::{Container, Conversion, Wanted},
    weights::{Checkpoint, Naming, Weights, detect},
};
use measured::{ALLOCATOR, MOST, alone};
use tensor::{DType, Device, Precision};
use toy::{Scratch, Toy};

/// Opens a file and takes every weight it has; what of them is small is decoded.
fn read(path: &Path) -> flux::Result<usize> {
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    let _ = detect(&checkpoint);
    let weights = Weights::new(checkpoint.clone(), "", Naming::Same, Device::DryRun.open(), Precision::F32);
    let mut decoded = 0;
    for (name, _) in checkpoint.tensors() {
        let Some(shape) = weights.stored_shape(name).filter(|shape| !shape.is_empty()) else { continue };
        let row = shape[1..].iter().product();
        let Ok(weight) = weights.matrix(name, shape[0], row) else { continue };
        if weight.shape().count() <= 1 << 16 {
            decoded += weight.to_f32().len();
        }
    }
    Ok(decoded)
}

/// Changes one byte at a time, at random places within `place`.
fn changed(path: &Path, place: &Range<usize>, times: usize) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    assert!(read(path).unwrap() > 0, "it is good as it is");
    let mut random = toy::random::Random(11);
    let mut below = |n: usize| random.below(n);
    let (mut refused, mut accepted) = (0, 0);
    for _ in 0..times {
        let at = (place.start + below(place.len())) as u64;
        let mut old = [0];
        file.read_exact_at(&mut old, at).unwrap();
        let new = if below(2) == 0 { old[0] ^ 1 << below(8) } else { below(256) as u8 };
        file.write_all_at(&[new], at).unwrap();
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        match read(path) {
            Ok(_) => accepted += 1,
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                let sentence = said.contains(path.to_str().unwrap()) && !said.ends_with('.') && !said.contains('\n');
                assert!(sentence, "byte {at} as {new:#x}: {said}");
            }
        }
        let peak = ALLOCATOR.peak_usage().saturating_sub(before);
        assert!(peak <= MOST, "byte {at} as {new:#x}: took {} MB", peak >> 20);
        file.write_all_at(&old, at).unwrap();
    }
    println!("{}: {refused} refused, {accepted} read", path.display());
    assert!(refused > times / 20 && accepted > times / 20, "{refused} refused, {accepted} read");
    assert!(read(path).unwrap() > 0, "and good again");
}

#[test]
fn gguf() {
    let _alone = alone();
    let scratch = Scratch::new("mutations-gguf");
    let from: PathBuf = scratch.join("flux.safetensors");
    toy::write(&from, &toy::stored(&Toy::new().flux, toy::f32s));
    let checkpoint = Arc::new(Checkpoint::open(&from).unwrap());
    let wanted = Wanted { container: Container::Gguf, to: DType::Q4_0, keep: Vec::new() };
    let conversion = Conversion::plan(&checkpoint, &detect(&checkpoint)[0], &wanted).unwrap();
    let mut bytes = Vec::new();
    conversion.write(&mut bytes, Some(1), &mut |_| true).unwrap();
    let path = scratch.join("flux.gguf");
    toy::bytes(&path, &bytes);
    let header = Checkpoint::open(&path).unwrap().tensors().map(|(_, entry)| entry.bytes.start).min().unwrap();
    changed(&path, &(0..header), 2000);
}

#[test]
fn four_bits() {
    let _alone = alone();
    let scratch = Scratch::new("mutations-nf4");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4.safetensors");
    let path = scratch.join("nf4.safetensors");
    std::fs::copy(&golden, &path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let header = checkpoint.tensors().map(|(_, entry)| entry.bytes.start).min().unwrap();
    changed(&path, &(0..header), 1000);
    for (name, entry) in checkpoint.tensors().filter(|(name, _)| name.contains("quant_state")) {
        assert!(name.starts_with("nf4_") || name.starts_with("fp4_"));
        changed(&path, &entry.bytes, 200);
    }
}
