//! Fresh random inputs in every storage format, and the comparison with the reference.
//!
//! The measure is NMSE, Σ(y − ŷ)² / Σŷ²: one rounding of f32 is about 1e-15 of it, a sum of a thousand products 1e-13. A
//! failure prints its seed; `CONFORMANCE_SEED=… cargo test -p tensor` repeats it.

use std::sync::Arc;

use half::{bf16, f16};
use tensor::{
    Backend, DType, Precision, Rows, Scale, Shape, Tensor, Weight,
    cpu::{Cpu, Level},
    reference::Reference,
};

/// Sums of rounded products: √(number of products) roundings, with room for cancellation.
pub const SUMS: f64 = 1e-11;
/// A few roundings and one of our own functions of 3e-7.
pub const FUNCTIONS: f64 = 1e-12;
/// Nothing is computed.
pub const EXACT: f64 = 0.0;

pub struct Random {
    pub seed: u64,
    pub state: u64,
}

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("CONFORMANCE_SEED").ok().and_then(|s| s.parse().ok());
        let now =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        let seed = seed.unwrap_or_else(now);
        Self { seed, state: seed }
    }

    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal: the sum of four uniform numbers.
    pub fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits & 0xffff) as f32 / 65536.0 - 0.5;
        let bits = self.next();
        (0..4).map(|i| uniform(bits >> (16 * i))).sum::<f32>() * 3f32.sqrt()
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    pub fn tensor(&mut self, shape: impl Into<Shape>) -> (Shape, Vec<f32>) {
        let shape = shape.into();
        (shape, self.normals(shape.count()))
    }

    /// `count` elements in a storage format; 8-bit codes are uniform over all finite numbers.
    pub fn bytes(&mut self, dtype: DType, count: usize) -> Arc<[u8]> {
        match dtype {
            DType::F32 => (0..count).flat_map(|_| self.normal().to_le_bytes()).collect(),
            DType::F16 => (0..count).flat_map(|_| f16::from_f32(self.normal()).to_le_bytes()).collect(),
            DType::BF16 => (0..count).flat_map(|_| bf16::from_f32(self.normal()).to_le_bytes()).collect(),
            DType::F8E4M3 => self.codes(count, 0x7e),
            DType::F8E5M2 => self.codes(count, 0x7b),
            DType::I8 => (0..count).map(|_| (self.normal() * 40.0) as i8 as u8).collect(),
            _ => self.blocks(dtype, count / dtype.block()),
        }
    }

    /// Random bytes with ordinary f16 scales.
    fn blocks(&mut self, dtype: DType, count: usize) -> Arc<[u8]> {
        let scales: &[usize] = match dtype {
            DType::Q5_1 | DType::Q4_1 | DType::Q5K | DType::Q4K => &[0, 2],
            DType::Q6K => &[208],
            DType::Q3K => &[108],
            DType::Q2K => &[80, 82],
            _ => &[0],
        };
        let mut bytes: Vec<u8> = (0..count * dtype.block_bytes()).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in scales {
                block[at..at + 2].copy_from_slice(&f16::from_f32(self.normal() * 0.01).to_le_bytes());
            }
        }
        bytes.into()
    }

    fn codes(&mut self, count: usize, largest: u8) -> Arc<[u8]> {
        let code = |bits: u64| (bits as u8 & 0x80) | ((bits >> 8) as u8 & 0x7f).min(largest);
        (0..count).map(|_| code(self.next())).collect()
    }

    pub fn weight(&mut self, shape: impl Into<Shape>, pieces: &[(usize, DType, f32)], precision: Precision) -> Weight {
        let shape = shape.into();
        let row = shape.count() / shape[0].max(1);
        let rows = pieces.iter().map(|&(count, dtype, scale)| {
            let bytes = self.bytes(dtype, count * row).into();
            Rows { count, dtype, scale: Scale::All(scale), bytes }
        });
        Weight::new(shape, rows.collect(), precision)
    }
}

pub const DTYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8];
pub const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::BF16, Precision::Int8];

pub fn levels() -> Vec<Arc<dyn Backend>> {
    let levels = Level::ALL.into_iter().filter(|level| level.is_available());
    levels.map(|level| Cpu::with_level(level, Some(2)) as Arc<dyn Backend>).collect()
}

/// Σ(y − ŷ)² / Σŷ², where an element counts at least as `scale` says: a result near 0 of operands near 1 has an error of
/// theirs, not of its own size.
pub fn nmse(got: &[f32], expected: &[f32], scale: impl Fn(usize) -> f32) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(expected).map(|(g, e)| square(g - e)).sum();
    let size: f64 = expected.iter().enumerate().map(|(i, &e)| square(e).max(square(scale(i)))).sum();
    if error == 0.0 { 0.0 } else { error / size }
}

/// Inputs are normal numbers of deviation 1.
pub const LEAST: f32 = 0.1;

/// Runs `operation` on the reference and on every level and compares.
pub fn check(
    random: &Random,
    case: &str,
    bound: f64,
    inputs: &[(Shape, Vec<f32>)],
    operation: impl Fn(&Arc<dyn Backend>, &[Tensor]) -> Tensor,
) {
    check_on_scale(random, case, bound, inputs, |_| LEAST, operation);
}

/// As [`check`], with the least size of each element.
pub fn check_on_scale(
    random: &Random,
    case: &str,
    bound: f64,
    inputs: &[(Shape, Vec<f32>)],
    scale: impl Fn(usize) -> f32,
    operation: impl Fn(&Arc<dyn Backend>, &[Tensor]) -> Tensor,
) {
    let run = |backend: &Arc<dyn Backend>| {
        let tensors: Vec<_> = inputs.iter().map(|(s, v)| Tensor::from_vec(backend, *s, v.clone())).collect();
        operation(backend, &tensors)
    };
    let reference: Arc<dyn Backend> = Reference::new();
    let expected = run(&reference);
    for backend in levels() {
        let got = run(&backend);
        assert_eq!(got.shape(), expected.shape(), "{case} on {backend:?}");
        let error = nmse(&got.to_vec(), &expected.to_vec(), &scale);
        assert!(error <= bound, "{case} on {backend:?}: NMSE {error:.2e} > {bound:.0e}; seed {}", random.seed);
    }
}
