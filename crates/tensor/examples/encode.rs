//! How long encoding takes and what it loses, on normally distributed numbers: `encode [THREADS]`.

use std::{sync::Arc, time::Instant};

use tensor::{DType, Precision, Rows, Scale, Weight, cpu::Encoder};

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let encoder = Encoder::new(Some(threads));
    let (rows, len) = (512, 3072);
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 + 1e-9
    };
    let values = (0..rows * len).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos());
    let bytes: Arc<[u8]> = values.flat_map(|x| half::bf16::from_f32(0.02 * x).to_le_bytes()).collect();
    let rows_of = Rows { count: rows, dtype: DType::BF16, scale: Scale::NONE, bytes: bytes.into() };
    let weight = Weight::new([rows, len], vec![rows_of], Precision::F32);
    println!("format       ns/element   relative error   bits");
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::Q8_0,
        DType::Q6K,
        DType::Q5K,
        DType::Q5_1,
        DType::Q5_0,
        DType::Q4K,
        DType::Q4_1,
        DType::Q4_0,
    ] {
        encoder.encode(&weight, 0..rows / 8, dtype);
        let start = Instant::now();
        let encoded = encoder.encode(&weight, 0..rows, dtype);
        let nanos = start.elapsed().as_nanos() as f64 / (rows * len) as f64;
        let bits = 8.0 * encoded.bytes.len() as f64 / (rows * len) as f64;
        println!("{:<10} {nanos:>12.2} {:>16.5} {bits:>6.2}", dtype.name(), encoded.loss.relative());
    }
}
