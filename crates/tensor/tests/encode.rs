//! What is written in each storage format: the reference's bytes where Python's `gguf` can quantise, and an error that is as small
//! as it should be elsewhere.
//!
//! The numbers come from `tools/golden/make_encoded.py`; `DARKROOM_ENCODED=FILE` names another file of its making.

use std::sync::Arc;

use tensor::{
    DType, Precision, Rows, Scale, Weight,
    cpu::{Encoded, Encoder},
};

fn weight(values: &[f32], len: usize) -> Weight {
    Weight::from_f32([values.len() / len, len], values)
}

fn encode(values: &[f32], len: usize, dtype: DType, threads: usize) -> Encoded {
    let weight = weight(values, len);
    Encoder::new(Some(threads)).encode(&weight, 0..weight.out_features(), dtype)
}

/// What was encoded, read back as a file's weight.
fn decoded(encoded: &Encoded, len: usize, dtype: DType) -> Vec<f32> {
    let bytes: Arc<[u8]> = encoded.bytes.as_slice().into();
    let count = encoded.scales.len();
    let rows = Rows { count, dtype, scale: Scale::PerRow(encoded.scales.as_slice().into()), bytes: bytes.into() };
    Weight::new([count, len], vec![rows], Precision::F32).to_f32()
}

/// Normally distributed numbers of standard deviation 1, each row of 256 times a size of its own.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 9u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    (0..count)
        .map(|i| {
            let size = 1.0 + (i / 256 % 7) as f32;
            size * (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()
        })
        .collect()
}

#[test]
fn blocks_are_written_as_the_reference_writes_them() {
    let golden = include_bytes!("golden/encoded.bin").to_vec();
    let file = std::env::var("DARKROOM_ENCODED").map_or(golden, |path| std::fs::read(path).expect("DARKROOM_ENCODED"));
    let (count, rest) = file.split_first_chunk().expect("a count");
    let count = u32::from_le_bytes(*count) as usize;
    let (values, mut rest) = rest.split_at(4 * 32 * count);
    let values: Vec<f32> = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    for dtype in [DType::Q8_0, DType::Q5_1, DType::Q5_0, DType::Q4_1, DType::Q4_0] {
        let (expected, others) = rest.split_at(dtype.bytes(32 * count));
        rest = others;
        let got = encode(&values, 32, dtype, 2).bytes;
        let size = dtype.block_bytes();
        for (i, (got, expected)) in got.chunks(size).zip(expected.chunks(size)).enumerate() {
            let x = &values[32 * i..][..32];
            // A number divided by a scale below f16's least is of any size; both write a scale of 0.
            assert_eq!(got, expected, "{dtype:?}, block {i}: {x:?}");
        }
    }
    assert!(rest.is_empty());
}

/// The least error of plain rounding: each group's extremes onto the outermost codes, scales not rounded.
fn plain_error(values: &[f32], group: usize, codes: f32, minimum: bool) -> f64 {
    let (mut squares, mut total) = (0.0, 0.0);
    for x in values.chunks(group) {
        let (mut low, mut high) = x.iter().fold((0f32, 0f32), |(l, h), x| (l.min(*x), h.max(*x)));
        if !minimum {
            high = high.max(-low);
            low = -high;
        }
        let scale = (high - low) / codes;
        for x in x {
            let off = x - (((x - low) / scale).round() * scale + low);
            squares += f64::from(off * off);
            total += f64::from(x * x);
        }
    }
    (squares / total).sqrt()
}

#[test]
fn the_search_is_better_than_plain_rounding() {
    let values = normal(256 * 200);
    // How much better, measured on these numbers, with a little room.
    for (dtype, group, codes, minimum, at_most) in
        [(DType::Q4K, 32, 15.0, true, 0.93), (DType::Q5K, 32, 31.0, true, 0.97), (DType::Q6K, 16, 62.0, false, 0.97)]
    {
        let loss = encode(&values, 256, dtype, 1).loss.relative();
        let plain = plain_error(&values, group, codes, minimum);
        println!("{dtype:?}: {loss:.5}, plain {plain:.5}, ratio {:.3}", loss / plain);
        assert!(loss < at_most * plain, "{dtype:?}: {loss} beside {plain}");
    }
}

#[test]
fn losses_are_what_decoding_says() {
    let values = normal(256 * 20);
    for (dtype, most) in [
        (DType::F32, 0.0),
        (DType::F16, 3e-4),
        (DType::BF16, 2.3e-3),
        (DType::I8, 0.008),
        (DType::Q8_0, 0.006),
        (DType::Q6K, 0.02),
        (DType::Q5K, 0.04),
        (DType::Q5_1, 0.04),
        (DType::Q5_0, 0.05),
        (DType::Q4K, 0.08),
        (DType::Q4_1, 0.09),
        (DType::Q4_0, 0.1),
    ] {
        assert!(dtype.can_encode());
        let one = encode(&values, 256, dtype, 1);
        let got = decoded(&one, 256, dtype);
        let squares: f64 = got.iter().zip(&values).map(|(g, v)| f64::from(g - v).powi(2)).sum();
        let total: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let relative = (squares / total).sqrt();
        assert!((one.loss.relative() - relative).abs() <= 1e-9, "{dtype:?}: {} and {relative}", one.loss.relative());
        assert!(relative <= most, "{dtype:?}: {relative}");
        assert_eq!(one.loss.not_finite, 0);
        let three = encode(&values, 256, dtype, 3);
        assert!(one.bytes == three.bytes && one.scales == three.scales && one.loss == three.loss, "{dtype:?}");
    }
    assert!(!DType::F8E4M3.can_encode());
}

#[test]
fn zeros_constants_and_extremes_are_no_trouble() {
    for dtype in [DType::I8, DType::Q8_0, DType::Q6K, DType::Q5K, DType::Q4K, DType::Q4_0] {
        for value in [0.0, 1.0, -1.0, 1e-30, 3e4] {
            let encoded = encode(&[value; 512], 256, dtype, 1);
            let got = decoded(&encoded, 256, dtype);
            // A scale below f16's least number is 0.
            let bound = if value.abs() < 1e-6 { 1e-6 } else { 0.02 * value.abs() };
            assert!(got.iter().all(|g| (g - value).abs() <= bound), "{dtype:?} {value}: {:?}", &got[..4]);
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = normal(512);
            values[100] = value;
            assert!(encode(&values, 256, dtype, 1).loss.not_finite > 0, "{dtype:?} {value}");
        }
    }
}

#[test]
fn some_rows_are_the_same_rows() {
    let values = normal(256 * 40);
    let weight = weight(&values, 512);
    let encoder = Encoder::new(Some(2));
    let all = encoder.encode(&weight, 0..20, DType::Q5K);
    let some = encoder.encode(&weight, 7..13, DType::Q5K);
    assert_eq!(some.bytes, all.bytes[DType::Q5K.bytes(7 * 512)..DType::Q5K.bytes(13 * 512)]);
    assert!(encoder.encode(&weight, 4..4, DType::Q5K).bytes.is_empty());
}
