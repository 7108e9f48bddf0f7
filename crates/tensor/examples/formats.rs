//! What a storage format costs: products with weights of each format, in turn with the same from bf16.
//!
//! `cargo run --release -p tensor --example formats [f32|bf16|int8 [m]]`, one thread, timed by the time it had a core. Prints
//! the median ratio for `m` rows (768 unless said), and nanoseconds an element in a product with one row.

use std::sync::Arc;

use tensor::{Backend, Bytes, DType, Precision, Rows, Scale, Tensor, Weight, cpu::Cpu};

const PLAIN: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8];

/// Bytes that are numbers below 2 in every format.
fn weight(dtype: DType, [n, k]: [usize; 2], precision: Precision) -> Weight {
    let mut state = 88_172_645_463_325_252_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 & 0x3b
    };
    let bytes: Arc<[u8]> = std::iter::repeat_with(next).take(dtype.bytes(n * k)).collect();
    let rows = Rows { count: n, dtype, scale: Scale::NONE, bytes: Bytes::from(bytes) };
    Weight::new([n, k], vec![rows], precision)
}

/// Seconds that this thread had a core.
fn now() -> f64 {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    spent.and_then(|s| s.split(' ').next()?.parse::<f64>().ok()).map_or(0.0, |nanoseconds| nanoseconds * 1e-9)
}

fn seconds(run: &dyn Fn() -> Tensor) -> f64 {
    let start = now();
    let mut rounds = 0.0;
    while rounds == 0.0 || now() - start < 0.03 {
        run();
        rounds += 1.0;
    }
    (now() - start) / rounds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    const SHAPE: [usize; 2] = [1536, 3072];
    let mut arguments = std::env::args().skip(1);
    let precision = match arguments.next().as_deref() {
        Some("f32") => Precision::F32,
        Some("int8") => Precision::Int8,
        _ => Precision::BF16,
    };
    let m = arguments.next().and_then(|m| m.parse().ok()).unwrap_or(768);
    let backend: Arc<dyn Backend> = Cpu::new(Some(1));
    let x = |m: usize| Tensor::from_vec(&backend, [m, SHAPE[1]], (0..m * SHAPE[1]).map(|i| (i % 7) as f32).collect());
    let (many, one) = (x(m), x(1));
    let plain = weight(DType::BF16, SHAPE, precision);
    for dtype in PLAIN.into_iter().chain(DType::BLOCKS) {
        let weight = weight(dtype, SHAPE, precision);
        let ratios = (0..5).map(|_| seconds(&|| many.linear(&weight, None)) / seconds(&|| many.linear(&plain, None)));
        let ratio = median(ratios.collect());
        let single = median((0..5).map(|_| seconds(&|| one.linear(&weight, None))).collect());
        let each = single / (SHAPE[0] * SHAPE[1]) as f64 * 1e9;
        println!(
            "{:10} {precision}, {m} rows: {ratio:.3} of bf16's time; 1 row: {each:.3} ns an element",
            dtype.name()
        );
    }
}
