//! Functions of one or two numbers, element by element: as fast as the memory.

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    math,
};
use crate::{Binary, Unary, host::HostBuffer};

/// Elements of a task: they stay in the second cache between two passes.
const CHUNK: usize = 1 << 14;

impl Cpu {
    /// `f(x)`.
    pub(super) fn map(&self, x: &[f32], f: Unary) -> HostBuffer {
        let mut y = self.buffer(x.len());
        self.threads.for_each_chunk(y.values_mut(), CHUNK, 4 * x.len(), |i, y| {
            y.copy_from_slice(&x[i * CHUNK..][..y.len()]);
            self.simd.run(Apply { f, y });
        });
        y
    }

    /// `f(a, b)`; `b` is as long as `a` or is one of its rows.
    pub(super) fn combine(&self, a: &[f32], b: &[f32], f: Binary) -> HostBuffer {
        let mut y = self.buffer(a.len());
        // A task is whole rows, so that `b` starts with it.
        let chunk = if b.len() < a.len() { CHUNK.div_ceil(b.len().max(1)) * b.len() } else { CHUNK };
        self.threads.for_each_chunk(y.values_mut(), chunk, a.len(), |i, y| {
            let a = &a[i * chunk..][..y.len()];
            let row = if b.len() == a.len() || b.len() < chunk { b } else { &b[i * chunk..][..y.len()] };
            self.simd.run(Combine { f, a, b: row, y });
        });
        y
    }

    /// `y + a·x`.
    pub(super) fn scaled_sum(&self, y: &[f32], a: f32, x: &[f32]) -> HostBuffer {
        let mut sum = self.buffer(y.len());
        self.threads.for_each_chunk(sum.values_mut(), CHUNK, y.len(), |i, sum| {
            let range = i * CHUNK..i * CHUNK + sum.len();
            self.simd.run(ScaledSum { y: &y[range.clone()], a, x: &x[range], sum });
        });
        sum
    }
}

struct Apply<'a> {
    f: Unary,
    y: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        math::apply::<V>(self.f, self.y);
    }
}

struct Combine<'a> {
    f: Binary,
    a: &'a [f32],
    /// As long as `a`, or one row for all rows of `a`.
    b: &'a [f32],
    y: &'a mut [f32],
}

impl Combine<'_> {
    #[inline(always)]
    fn with<V: Vector>(self, f: impl Fn(V, V) -> V) {
        let row = self.b.len().max(1);
        for (y, a) in self.y.chunks_mut(row).zip(self.a.chunks(row)) {
            let operands = a.chunks(V::LANES).zip(self.b.chunks(V::LANES));
            for (y, (a, b)) in y.chunks_mut(V::LANES).zip(operands) {
                f(V::from_slice(a), V::from_slice(b)).to_slice(y);
            }
        }
    }
}

impl Kernel for Combine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.f {
            Binary::Add => self.with(V::add),
            Binary::Sub => self.with(V::sub),
            Binary::Mul => self.with(V::mul),
        }
    }
}

struct ScaledSum<'a> {
    y: &'a [f32],
    a: f32,
    x: &'a [f32],
    sum: &'a mut [f32],
}

impl Kernel for ScaledSum<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let a = V::splat(self.a);
        let operands = self.y.chunks(V::LANES).zip(self.x.chunks(V::LANES));
        for (sum, (y, x)) in self.sum.chunks_mut(V::LANES).zip(operands) {
            V::from_slice(x).mul_add(a, V::from_slice(y)).to_slice(sum);
        }
    }
}
