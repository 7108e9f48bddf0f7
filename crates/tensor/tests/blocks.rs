//! Quantised formats in blocks against the reference in Python's `gguf`, every bit, on every vector extension of the machine.
//!
//! The blocks come from `tools/golden/make_blocks.py`; `DARKROOM_BLOCKS=FILE` names another file of its making.

use std::sync::Arc;

use tensor::{
    Backend, Bytes, DType, Precision, Rows, Scale, Tensor, Weight,
    cpu::{Cpu, Level},
};

/// A format, its blocks, and what they say.
type Case = (DType, Arc<[u8]>, Vec<f32>);

fn cases() -> Vec<Case> {
    let golden = include_bytes!("golden/blocks.bin").to_vec();
    let bytes = std::env::var("DARKROOM_BLOCKS").map_or(golden, |path| std::fs::read(path).expect("DARKROOM_BLOCKS"));
    let mut rest = bytes.as_slice();
    let mut take = |count: usize| {
        let (first, others) = rest.split_at(count);
        rest = others;
        first
    };
    DType::BLOCKS
        .map(|dtype| {
            let name = std::str::from_utf8(take(8)).expect("a name").trim_end_matches('\0');
            assert_eq!(name, dtype.name());
            let blocks = u32::from_le_bytes(take(4).try_into().expect("four bytes")) as usize;
            let bytes = take(blocks * dtype.block_bytes()).into();
            let values = take(4 * blocks * dtype.block());
            (dtype, bytes, values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        })
        .into()
}

/// Equal bits; any NaN is as good as another.
fn compare(case: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{case}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(same, "{case}, element {i}: {got:?} instead of {expected:?}");
    }
}

#[test]
fn blocks_decode_to_the_bits_of_the_reference() {
    for (dtype, bytes, expected) in cases() {
        let mut got = vec![0.0; expected.len()];
        dtype.decode(&bytes, &mut got);
        compare(dtype.name(), &got, &expected);
    }
}

/// A product with the rows of an identity matrix gives back the weight as the kernels decode it, in a few rows and in many.
#[test]
fn kernels_decode_the_same_numbers() {
    for (dtype, bytes, expected) in cases() {
        // Infinite values would turn the zeros of the identity into NaN: blocks of them are left out.
        let blocks = expected.chunks(dtype.block()).zip(bytes.chunks(dtype.block_bytes()));
        let finite: Vec<_> = blocks.filter(|(values, _)| values.iter().all(|v| v.is_finite())).collect();
        let bytes: Arc<[u8]> = finite.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let k = dtype.block();
        let rows = Rows { count: finite.len(), dtype, scale: Scale::NONE, bytes: Bytes::from(bytes) };
        let weight = Weight::new([finite.len(), k], vec![rows], Precision::F32);
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let backend: Arc<dyn Backend> = Cpu::with_level(level, Some(2));
            for some in [1, k] {
                let identity = (0..some * k).map(|i| if i / k == i % k { 1.0 } else { 0.0 }).collect();
                let got = Tensor::from_vec(&backend, [some, k], identity).linear(&weight, None).to_vec();
                let column = |i| finite.iter().map(move |(values, _)| values[i]);
                let expected: Vec<f32> = (0..some).flat_map(column).collect();
                assert_eq!(got, expected, "{dtype:?} on {level:?}, {some} rows");
            }
        }
    }
}

/// A row of blocks is decoded from any block on, and times its scale.
#[test]
fn a_scale_multiplies_and_rows_are_found() {
    for (dtype, bytes, expected) in cases() {
        let bytes: Arc<[u8]> = bytes[..4 * dtype.block_bytes()].into();
        let rows = Rows { count: 2, dtype, scale: Scale::PerRow([0.5, -2.0].into()), bytes: bytes.into() };
        let weight = Weight::new([2, 2 * dtype.block()], vec![rows], Precision::F32);
        let scaled: Vec<f32> = expected[..4 * dtype.block()]
            .iter()
            .enumerate()
            .map(|(i, v)| v * if i < 2 * dtype.block() { 0.5 } else { -2.0 })
            .collect();
        compare(dtype.name(), &weight.to_f32(), &scaled);
        let second = weight.stored_rows(1).next().expect("two rows");
        let mut part = vec![0.0; dtype.block()];
        second.decode(dtype.block(), &mut part);
        compare(dtype.name(), &part, &scaled[3 * dtype.block()..]);
    }
}
