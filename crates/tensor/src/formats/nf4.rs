//! bitsandbytes' four bits: codes choose among sixteen values, blocks of at least 64 elements have a scale each.
//!
//! Codes, values and scales are tensors of their own in a file, and blocks run on over the ends of rows. Plain scales are f32;
//! nested ones are a byte each, which chooses among 256 values, times an f32 for each 256 of them, plus an offset. Each operation
//! is rounded to f32, as in `bitsandbytes.functional.dequantize_4bit`. Whether the values are those of NF4 or FP4 is all the
//! difference between the two.

use std::sync::Arc;

use crate::Bytes;

/// Elements that are decoded together: a divisor of every size of block.
pub(crate) const RUN: usize = 64;

/// The values of NF4: quantiles of the normal distribution (Dettmers et al., arXiv 2305.14314).
pub(crate) const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The scales of a weight in [`crate::DType::NF4`], and the values of its codes.
#[derive(Clone, Debug)]
pub struct BlockScales {
    /// The value of each code.
    pub values: [f32; 16],
    /// Elements of a block, a multiple of 64.
    pub size: usize,
    /// The scale of each block of the file's tensor.
    pub scales: Scales,
    /// The element of the file's tensor at which the rows begin.
    pub first: usize,
}

/// A scale for each block.
#[derive(Clone, Debug)]
pub enum Scales {
    /// As f32.
    Plain(Bytes),
    /// Quantised themselves.
    Nested {
        /// A byte for each block.
        codes: Bytes,
        /// The value of each byte.
        values: Arc<[f32; 256]>,
        /// An f32 for each `size` blocks.
        scales: Bytes,
        /// Blocks that share one.
        size: usize,
        /// What is added in the end.
        offset: f32,
    },
}

impl BlockScales {
    /// How many blocks have a scale.
    pub fn blocks(&self) -> usize {
        match &self.scales {
            Scales::Plain(scales) => scales.len() / 4,
            Scales::Nested { codes, scales, size, .. } => codes.len().min((scales.len() / 4).saturating_mul(*size)),
        }
    }

    /// The scales of consecutive runs of 64 elements, from the one at `start` of the rows on.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, out: &mut [f32]) {
        let start = self.first + start;
        match &self.scales {
            Scales::Plain(scales) => {
                let scales = scales.get();
                for (i, out) in out.iter_mut().enumerate() {
                    *out = f32_at(scales, (start + i * RUN) / self.size);
                }
            }
            Scales::Nested { codes, values, scales, size, offset } => {
                let (codes, scales) = (codes.get(), scales.get());
                for (i, out) in out.iter_mut().enumerate() {
                    let block = (start + i * RUN) / self.size;
                    *out = values[usize::from(codes[block])] * f32_at(scales, block / size) + offset;
                }
            }
        }
    }
}

#[inline(always)]
fn f32_at(bytes: &[u8], index: usize) -> f32 {
    let bytes = &bytes[4 * index..4 * index + 4];
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The codes of one run.
#[inline(always)]
pub(crate) fn codes(bytes: &[u8], codes: &mut [u8; RUN]) {
    for (pair, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(&bytes[..RUN / 2]) {
        *pair = [byte >> 4, byte & 15];
    }
}

/// Values without a scale.
pub(crate) fn decode(bytes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [values[usize::from(byte >> 4)], values[usize::from(byte & 15)]];
    }
}
