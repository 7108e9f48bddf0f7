//! Noise against `torch.randn` of `PyTorch` 2.8.0 (`golden/rng_cpu_avx2.json`) and the published Philox values.

use flux::noise::{Generator, Noise};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    carry_seed7: Carry,
}

#[derive(Deserialize)]
struct Case {
    seed: String,
    n: usize,
    dtype: String,
    first_bits: Vec<u32>,
    sha256: String,
}

#[derive(Deserialize)]
struct Carry {
    randn3: Vec<f32>,
    then_randn3: Vec<f32>,
    then_randn32: Vec<f32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/rng_cpu_avx2.json")).expect("the fixture is JSON")
}

#[test]
fn cpu_noise_is_torchs_bit_for_bit() {
    let cases = golden().cases;
    assert_eq!(cases.len(), 84);
    for Case { seed, n, dtype, first_bits, sha256 } in cases {
        // The file writes seeds from 2^63 on as the negative numbers torch takes them for.
        let number = seed.parse::<i128>().expect("a seed") as u64;
        let (noise, width, shift) = if dtype == "float32" { (Noise::CpuF32, 4, 0) } else { (Noise::CpuBf16, 2, 16) };
        let values = noise.normal(number, n);
        let bits: Vec<u32> = values.iter().map(|v| v.to_bits() >> shift).collect();
        assert_eq!(bits[..first_bits.len()], first_bits, "{dtype} seed {seed} n {n}: the first values");
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes().into_iter().take(width)).collect();
        let hex = format!("{:x}", Sha256::digest(bytes));
        assert_eq!(hex, sha256, "{dtype} seed {seed} n {n}: a later value");
    }
}

#[test]
fn a_small_draw_leaves_a_value_for_the_next() {
    let carry = golden().carry_seed7;
    let mut generator = Generator::new(Noise::CpuF32, 7);
    assert_eq!(generator.randn(3), carry.randn3);
    assert_eq!(generator.randn(3), carry.then_randn3);
    assert_eq!(generator.randn(32), carry.then_randn32);
}

#[test]
fn cpu_seeds_have_32_bits_and_cuda_seeds_64() {
    assert_eq!(Noise::CpuF32.normal(42, 64), Noise::CpuF32.normal(42 + (1 << 32), 64));
    let philox = Noise::Philox { multiprocessors: 132 };
    assert_ne!(philox.normal(42, 64), philox.normal(42 + (1 << 32), 64));
}

#[test]
fn philox_gives_the_published_values() {
    // AUTOMATIC1111's rng_philox.py, which quotes torch.randn(12, device="cuda") for seed 0.
    let published = [
        -0.92466259,
        -0.42534415,
        -2.6438457,
        0.14518388,
        -0.12086647,
        -0.57972564,
        -0.62285122,
        -0.32838709,
        -1.07454231,
        -0.36314407,
        -1.67105067,
        2.26550497,
    ];
    let values = Noise::Philox { multiprocessors: 132 }.normal(0, 12);
    for (value, expected) in values.iter().zip(published) {
        assert!((*value as f64 - expected).abs() < 1e-6, "{value} is not {expected}");
    }
}
