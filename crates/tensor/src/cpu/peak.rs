//! The machine's peak: products in registers only, on all threads. What kernels are measured against.

use std::hint::black_box;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    pack::Factors,
};
use crate::Precision;

impl Cpu {
    /// Multiplies and adds in registers on all threads, for some tens of milliseconds, and says how many FLOP that were.
    pub fn run_at_peak(&self, precision: Precision) -> f64 {
        const ROUNDS: usize = 1_000_000;
        let pairs = Factors::new(precision, self.simd) == Factors::Bf16Pairs;
        let tasks = 16 * self.threads.count();
        self.threads.for_each(tasks, usize::MAX, |_| {
            black_box(self.simd.run(Products { pairs, rounds: black_box(ROUNDS) }));
        });
        let products = tasks * ROUNDS * CHAINS * self.simd.lanes() * if pairs { 2 } else { 1 };
        2.0 * products as f64
    }
}

/// Independent sums: more than any machine needs to hide the latency of one, fewer than it has registers.
const CHAINS: usize = 12;

struct Products {
    pairs: bool,
    rounds: usize,
}

impl Kernel for Products {
    type Output = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let [a, b] = [V::from_slice(&black_box([0.5; 16])), V::from_slice(&black_box([0.25; 16]))];
        let mut sums = [V::splat(0.0); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = if self.pairs { sum.add_pair_products(a, b) } else { a.mul_add(b, *sum) };
            }
        }
        sums.iter().map(|sum| sum.sum()).sum()
    }
}
