//! Numbers to vectors: noise level and guidance as sinusoids, positions as rotations.
//!
//! Source: BFL's `layers.py` (`timestep_embedding`, `MLPEmbedder`, `EmbedND`) and `math.py` (`rope`). All angles are taken
//! in f64 and rounded to f32 once; positions in bf16 would be off by up to 0.26 in the cosine.

use std::{ops::Range, sync::Arc};

use tensor::{Backend, Precision, Qkv, Tensor, Unary};

use crate::{
    error::Result,
    nn::{Linear, Parts},
    weights::Weights,
};

/// `dim` values of a number: cosines of `x·fᵢ`, then sines, `fᵢ = 10000^(−i/(dim/2))`.
pub fn sinusoid(x: f32, dim: usize) -> Vec<f32> {
    let half = dim / 2;
    // Exponents, frequencies and arguments are rounded to f32 where the references do; only the functions are exact.
    let argument = |i: usize| {
        let exponent = -(10_000f64.ln() as f32) * i as f32 / half as f32;
        let frequency = f64::from(exponent).exp() as f32;
        f64::from(x * frequency)
    };
    let cosines = (0..half).map(|i| argument(i).cos() as f32);
    let sines = (0..half).map(|i| argument(i).sin() as f32);
    cosines.chain(sines).collect()
}

/// What the guidance sinusoid is taken of: 1000·g, and in bf16 rounded as every reference does (4.5 → 4512).
pub fn guidance_argument(guidance: f32, precision: Precision) -> f32 {
    match precision {
        Precision::F32 => 1000.0 * guidance,
        Precision::BF16 | Precision::Int8 => {
            let bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
            bf16(1000.0 * bf16(guidance))
        }
    }
}

/// `out_layer(silu(in_layer(x)))`.
#[derive(Debug)]
pub(super) struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    pub(super) fn load(name: &str, in_dim: usize, hidden: usize, weights: &Weights) -> Result<Self> {
        Ok(Self {
            in_layer: weights.linear(&format!("{name}.in_layer"), hidden, in_dim)?.sensitive(),
            out_layer: weights.linear(&format!("{name}.out_layer"), hidden, hidden)?.sensitive(),
        })
    }

    pub(super) fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        parts.linear(format!("{name}.in_layer"), &mut self.in_layer);
        parts.linear(format!("{name}.out_layer"), &mut self.out_layer);
    }

    /// `[1, in_dim]` → `[1, hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        self.out_layer.forward(&self.in_layer.then(x, Unary::Silu))
    }
}

/// Rotations of queries and keys by token position, text tokens first; and how much each token counts as a key.
#[derive(Debug)]
pub struct Rope {
    angles: Tensor,
    /// `[tokens]`: ln of how much each counts, if not all count once.
    shift: Option<Tensor>,
}

impl Rope {
    /// Angles for `ids`, one (index, row, column) a token; `axes_dim` says how many of a head's dimensions turn with each.
    pub fn new(backend: &Arc<dyn Backend>, ids: &[[f32; 3]], axes_dim: [usize; 3], theta: f64) -> Self {
        let half: usize = axes_dim.iter().sum::<usize>() / 2;
        let mut values = Vec::with_capacity(ids.len() * half * 2);
        let frequencies: Vec<(usize, f64)> = axes_dim
            .iter()
            .enumerate()
            .flat_map(|(axis, &dim)| (0..dim / 2).map(move |i| (axis, theta.powf(-2.0 * i as f64 / dim as f64))))
            .collect();
        for id in ids {
            for &(axis, frequency) in &frequencies {
                let angle = f64::from(id[axis]) * frequency;
                values.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
        Self { angles: Tensor::from_vec(backend, [ids.len(), half, 2], values), shift: None }
    }

    /// The same; tokens `range` count as `weight` of their kind would in attention, 0 to 1: with 1 nothing changes, and the
    /// nearer 0, the less anything sees them.
    pub(crate) fn weighted(mut self, ranges: &[(Range<usize>, f32)]) -> Self {
        if ranges.iter().any(|(_, weight)| *weight != 1.0) {
            let mut shift = vec![0.0; self.angles.shape()[0]];
            for (range, weight) in ranges {
                shift[range.clone()].fill(weight.ln());
            }
            self.shift = Some(Tensor::from_vec(self.angles.backend(), [shift.len()], shift));
        }
        self
    }

    /// Attention of all streams' tokens at these positions.
    pub(super) fn attention(&self, streams: &[Qkv<'_>], heads: usize, eps: f32, precision: Precision) -> Tensor {
        Tensor::joint_attention(streams, heads, &self.angles, self.shift.as_ref(), eps, precision)
    }

    /// Angles of `txt` text tokens (all at the origin) and of a picture of `rows`×`columns` tokens.
    pub fn text_to_image(
        backend: &Arc<dyn Backend>,
        txt: usize,
        [rows, columns]: [usize; 2],
        axes_dim: [usize; 3],
        theta: f64,
    ) -> Self {
        Self::with_references(backend, txt, [rows, columns], &[], axes_dim, theta)
    }

    /// The same, and behind them the tokens of reference pictures, each of `rows`×`columns`: their first index is 1, and each
    /// lies below or to the right of those before it, wherever all together stay smaller. A single one begins at the origin.
    /// Source: diffusers `FluxKontextPipeline`; for several, ComfyUI's `comfy/ldm/flux/model.py` ("offset").
    pub fn with_references(
        backend: &Arc<dyn Backend>,
        txt: usize,
        grid: [usize; 2],
        references: &[[usize; 2]],
        axes_dim: [usize; 3],
        theta: f64,
    ) -> Self {
        let mut ids = vec![[0.0; 3]; txt];
        let mut place = |index: usize, [top, left]: [usize; 2], [rows, columns]: [usize; 2]| {
            let row = |row| (0..columns).map(move |column| [index, top + row, left + column].map(|id| id as f32));
            ids.extend((0..rows).flat_map(row));
        };
        place(0, [0, 0], grid);
        for (corner, size) in reference_corners(references).into_iter().zip(references) {
            place(1, corner, *size);
        }
        Self::new(backend, &ids, axes_dim, theta)
    }

    /// `[tokens, head_dim/2, 2]`: (cos, sin).
    pub fn angles(&self) -> &Tensor {
        &self.angles
    }
}

/// The top row and left column of each reference picture of `rows`×`columns` tokens.
fn reference_corners(references: &[[usize; 2]]) -> Vec<[usize; 2]> {
    let [mut height, mut width] = [0, 0]; // of all so far
    let place = |&[rows, columns]: &[usize; 2]| {
        let corner = if rows + height > columns + width { [0, width] } else { [height, 0] };
        height = height.max(corner[0] + rows);
        width = width.max(corner[1] + columns);
        corner
    };
    references.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last two are what the loop of ComfyUI's `comfy/ldm/flux/model.py` gave when it was run on these sizes (in latents,
    /// two a token), the others are worked out by hand.
    #[test]
    fn references_lie_beside_each_other() {
        assert_eq!(reference_corners(&[[4, 3]]), [[0, 0]]);
        assert_eq!(reference_corners(&[[4, 3], [4, 3]]), [[0, 0], [0, 3]]);
        assert_eq!(reference_corners(&[[2, 6], [2, 6], [9, 1]]), [[0, 0], [2, 0], [0, 6]]);
        let five = [[6, 40], [2, 60], [55, 32], [18, 37], [16, 14]];
        assert_eq!(reference_corners(&five), [[0, 0], [6, 0], [8, 0], [63, 0], [0, 60]]);
        let eight = [[47, 32], [36, 55], [37, 32], [27, 42], [57, 11], [16, 42], [11, 57], [35, 26]];
        let corners = [[0, 0], [47, 0], [0, 55], [83, 0], [0, 87], [110, 0], [126, 0], [0, 98]];
        assert_eq!(reference_corners(&eight), corners);
    }
}
