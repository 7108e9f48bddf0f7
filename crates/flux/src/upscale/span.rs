//! SPAN: six blocks whose attention has no parameters, then pixels from channels.
//!
//! Source: hongyuanyu/SPAN, `basicsr/archs/span_arch.py`, with each `Conv3XC` merged into the one convolution that it is when
//! used (`eval_conv`). Its skip connection from the sixth block is behind the activation, which works in place there.

use tensor::{Tensor, Unary};

use super::{pixel_shuffle, tiles::Limits};
use crate::{
    error::{Error, Result},
    nn::Conv2d,
    weights::{Checkpoint, Weights},
};

/// The first convolution.
pub(super) const FIRST: &str = "conv_1.eval_conv";

const BLOCKS: usize = 6;

/// A tile sees as far as its 21 convolutions of 3×3 do: its values are those of the whole picture.
pub(super) const TILES: Limits = Limits { side: 448, margin: 21, multiple: 1 };

/// The mean of the pictures that it was trained on, red, green and blue; a checkpoint may hold another.
const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];

#[derive(Debug)]
pub(super) struct Span {
    scale: usize,
    mean: Tensor,
    conv_1: Conv2d,
    blocks: Vec<Block>,
    conv_2: Conv2d,
    conv_cat: Conv2d,
    upsampler: Conv2d,
}

/// `(c3 + x) · (sigmoid(c3) − ½)`, c3 = conv(silu(conv(silu(conv(x))))).
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the checkpoint's names")]
struct Block {
    c1_r: Conv2d,
    c2_r: Conv2d,
    c3_r: Conv2d,
}

impl Span {
    pub(super) fn load(checkpoint: &Checkpoint, weights: &Weights) -> Result<Self> {
        let refuse = |problem: String| Error::file(checkpoint.origin(), problem);
        if weights.has("conv_1.conv.0.weight") {
            // What training left in `eval_conv` need not be what the parts amount to.
            let problem = "is a SPAN as it is trained; one with merged convolutions was expected";
            return Err(refuse(problem.into()));
        }
        let out = |name: &str| weights.stored_shape(&format!("{name}.weight")).and_then(|s| s.first().copied());
        let d = out(FIRST).unwrap_or(0);
        let pixels = out("upsampler.0").unwrap_or(0);
        let scale = match pixels {
            12 => 2,
            48 => 4,
            _ => return Err(refuse(format!("makes {pixels} channels into pixels; 12 or 48 were expected"))),
        };
        let merged = |name: &str| weights.conv2d(&format!("{name}.eval_conv"), d, d, 3);
        let block = |i: usize| {
            let conv = |part: &str| merged(&format!("block_{i}.{part}"));
            Ok(Block { c1_r: conv("c1_r")?, c2_r: conv("c2_r")?, c3_r: conv("c3_r")? })
        };
        let mean = if weights.has("mean") {
            weights.vector("mean", 3)?
        } else {
            Tensor::from_vec(weights.backend(), [3], MEAN.to_vec())
        };
        Ok(Self {
            scale,
            mean,
            conv_1: weights.conv2d(FIRST, d, 3, 3)?,
            blocks: (1..=BLOCKS).map(block).collect::<Result<_>>()?,
            conv_2: merged("conv_2")?,
            conv_cat: weights.conv2d("conv_cat", d, 4 * d, 1)?,
            upsampler: weights.conv2d("upsampler.0", pixels, d, 3)?,
        })
    }

    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    /// `[H, W, 3]` in [0, 1] → `[scale·H, scale·W, 3]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let features = self.conv_1.same(&x.sub(&self.mean).affine(255.0, 0.0));
        let (mut h, _) = self.blocks[0].forward(&features);
        let first = h.clone();
        let mut inner = None;
        for block in &self.blocks[1..] {
            let (out, c1) = block.forward(&h);
            (h, inner) = (out, Some(c1));
        }
        let h = self.conv_2.same(&h);
        let parts = [Some(&features), Some(&h), Some(&first), inner.as_ref()];
        let all = Tensor::concat(&parts.into_iter().flatten().collect::<Vec<_>>(), 2);
        pixel_shuffle(&self.upsampler.same(&self.conv_cat.same(&all)), self.scale)
    }
}

impl Block {
    /// The result, and what the first convolution gave, activated.
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let c1 = self.c1_r.same_then(x, Unary::Silu);
        let c3 = self.c3_r.same(&self.c2_r.same_then(&c1, Unary::Silu));
        // sigmoid(c) − ½ = ½ tanh(c/2)
        let attention = c3.affine(0.5, 0.0).unary(Unary::Tanh);
        (c3.add(x).mul(&attention).affine(0.5, 0.0), c1)
    }
}
