//! The machine's peak: products in registers only, on all threads. What kernels are measured against.

use std::hint::black_box;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    pack::Factors,
};
use crate::Precision;

impl Cpu {
    /// Multiplies and adds in registers on all threads, for some tens of milliseconds, and says how many FLOP (of int8: integer
    /// operations) that were.
    pub fn run_at_peak(&self, precision: Precision) -> f64 {
        const ROUNDS: usize = 1_000_000;
        let instruction = match precision {
            Precision::Int8 if self.simd.has_byte_products() => Instruction::Bytes,
            Precision::Int8 => Instruction::Shorts,
            _ if Factors::new(precision, self.simd) == Factors::Bf16Pairs => Instruction::Bf16Pairs,
            _ => Instruction::F32,
        };
        let tasks = 16 * self.threads.count();
        self.threads.for_each(tasks, usize::MAX, |_| {
            black_box(self.simd.run(Products { instruction, rounds: black_box(ROUNDS) }));
        });
        let per_lane = match instruction {
            Instruction::F32 => 1,
            Instruction::Bf16Pairs | Instruction::Shorts => 2,
            Instruction::Bytes => 4,
        };
        2.0 * (tasks * ROUNDS * CHAINS * self.simd.lanes() * per_lane) as f64
    }
}

/// What multiplies and adds.
#[derive(Clone, Copy)]
enum Instruction {
    F32,
    Bf16Pairs,
    Shorts,
    Bytes,
}

/// Independent sums: more than any machine needs to hide the latency of one, fewer than it has registers.
const CHAINS: usize = 12;

struct Products {
    instruction: Instruction,
    rounds: usize,
}

impl Kernel for Products {
    type Output = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let rounds = self.rounds;
        match self.instruction {
            Instruction::F32 => V::call(Chains::<0> { rounds }),
            Instruction::Bf16Pairs => V::call(Chains::<1> { rounds }),
            Instruction::Shorts => V::call(Chains::<2> { rounds }),
            // SAFETY: the instruction was chosen because the machine has it.
            Instruction::Bytes => unsafe { V::call_with_bytes(Chains::<3> { rounds }) },
        }
    }
}

/// Products of the instruction with this number.
struct Chains<const INSTRUCTION: u8> {
    rounds: usize,
}

impl<const INSTRUCTION: u8> Kernel for Chains<INSTRUCTION> {
    type Output = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let [a, b] = [V::from_slice(&black_box([0.5; 16])), V::from_slice(&black_box([0.25; 16]))];
        let mut sums = [V::splat(0.0); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = match INSTRUCTION {
                    0 => a.mul_add(b, *sum),
                    1 => sum.add_pair_products(a, b),
                    2 => sum.add_short_products(a, b),
                    _ => sum.add_byte_products(a, b),
                };
            }
        }
        sums.iter().map(|sum| sum.sum()).sum()
    }
}
