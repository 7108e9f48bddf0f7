//! What the kernels take from [`Cpu::buffer`](super::Cpu) beside their results: operands in an order of their own.
//!
//! For [`dry_run`](crate::dry_run), which promises that no more is taken; `tests/memory.rs` compares the two. Threads' scratch
//! memory is not here: it does not grow with the picture.

use super::{
    arch::{Level, Simd},
    attention,
    few_rows::FEW,
    matmul_int8,
    pack::Factors,
    panels_int8,
};
use crate::{Precision, Taken, Weight, host::Block, int8};

/// The kernels of one vector extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint(Simd);

impl Footprint {
    pub(crate) fn new(level: Level) -> Self {
        Self(Simd::new(level))
    }

    /// Elements that a product of `rows` rows takes: the rows in strips.
    pub(crate) fn linear(self, rows: usize, weight: &Weight) -> usize {
        match weight.precision() {
            _ if rows <= FEW => 0,
            Precision::Int8 if rows >= int8::LEAST_ROWS => matmul_int8::packed_len(rows, weight.row_len(), self.0),
            precision => rows * Factors::new(precision, self.0).words(weight.row_len()),
        }
    }

    /// What a weight takes that is [kept](crate::Kept).
    pub(crate) fn kept(self, weight: &Weight) -> Taken {
        let bytes = Block::bytes_for(panels_int8::kept_len(weight, self.0));
        Taken { bytes, stored: weight.byte_len() as u64 }
    }

    /// Elements that a term of a sum takes: its rows in strips.
    pub(crate) fn term(self, rows: usize, weight: &Weight) -> usize {
        rows * Factors::new(weight.precision(), self.0).words(weight.row_len())
    }

    /// Elements that attention takes: keys and values in panels.
    pub(crate) fn attention(self, [keys, heads, d]: [usize; 3], precision: Precision) -> usize {
        attention::packed_len([keys, heads, d], precision, self.0)
    }

    /// Elements that a convolution takes: its kernel in panels.
    pub(crate) fn conv2d(self, weight: &Weight) -> usize {
        let [out, channels, height, width] = [0, 1, 2, 3].map(|axis| weight.shape()[axis]);
        let panel = 2 * self.0.lanes();
        out.next_multiple_of(panel) * height * width * Factors::new(weight.precision(), self.0).words(channels)
    }
}
