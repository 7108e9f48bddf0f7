//! Rotary position embedding of adjacent pairs, alone and fused with the norm of queries and keys that precedes it.
//!
//! `x [L, heads, d]`, `angles [L, d/2, 2]` of (cos, sin). Su et al., arXiv 2104.09864.

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    norm,
};
use crate::host::HostBuffer;

impl Cpu {
    /// Rotates the heads of each token.
    pub(super) fn rotate(&self, x: &[f32], heads: usize, d: usize, angles: &[f32]) -> HostBuffer {
        let mut y = self.buffer(x.len());
        let row = heads * d;
        if y.values().is_empty() {
            return y;
        }
        let rows = self.threads.rows_per_task(x.len() / row, row);
        self.threads.for_each_chunk(y.values_mut(), rows * row, x.len(), |task, y| {
            let x = &x[task * rows * row..];
            self.simd.run(Rotate {
                x,
                columns: row,
                start: 0,
                norm: None,
                angles: &angles[task * rows * d..],
                d,
                row,
                y,
            });
        });
        y
    }

    /// Columns `start..start + heads · d` of each row of `columns`, normed head by head and rotated.
    pub(super) fn norm_rotate(
        &self,
        [x, weight, angles]: [&[f32]; 3],
        columns: usize,
        start: usize,
        heads: usize,
        eps: f32,
    ) -> HostBuffer {
        let d = weight.len();
        let row = heads * d;
        let tokens = x.len() / columns.max(1);
        let mut y = self.buffer(tokens * row);
        if y.values().is_empty() {
            return y;
        }
        let rows = self.threads.rows_per_task(tokens, row);
        self.threads.for_each_chunk(y.values_mut(), rows * row, 2 * tokens * row, |task, y| {
            let x = &x[task * rows * columns..];
            let norm = Some((weight, eps));
            self.simd.run(Rotate { x, columns, start, norm, angles: &angles[task * rows * d..], d, row, y });
        });
        y
    }
}

struct Rotate<'a> {
    x: &'a [f32],
    /// Columns of a row of x, and the first of them that is used.
    columns: usize,
    start: usize,
    /// Weight and epsilon of the norm.
    norm: Option<(&'a [f32], f32)>,
    angles: &'a [f32],
    d: usize,
    /// Columns of a row of y.
    row: usize,
    y: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let rows = self.x.chunks(self.columns).zip(self.angles.chunks(self.d));
        for (y, (x, angles)) in self.y.chunks_mut(self.row).zip(rows) {
            let heads = x[self.start..][..self.row].chunks(self.d);
            for (y, x) in y.chunks_mut(self.d).zip(heads) {
                match self.norm {
                    None => rotate::<V>(x, angles, y),
                    Some((weight, eps)) => {
                        norm::rms_norm::<V>(x, weight, eps, y);
                        rotate_in_place::<V>(y, angles);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate<V: Vector>(x: &[f32], angles: &[f32], y: &mut [f32]) {
    let operands = x.chunks(V::LANES).zip(angles.chunks(V::LANES));
    for (y, (x, angles)) in y.chunks_mut(V::LANES).zip(operands) {
        V::from_slice(x).rotate(V::from_slice(angles)).to_slice(y);
    }
}

/// Rotates one head.
#[inline(always)]
pub(super) fn rotate_in_place<V: Vector>(y: &mut [f32], angles: &[f32]) {
    for (y, angles) in y.chunks_mut(V::LANES).zip(angles.chunks(V::LANES)) {
        V::from_slice(y).rotate(V::from_slice(angles)).to_slice(y);
    }
}
