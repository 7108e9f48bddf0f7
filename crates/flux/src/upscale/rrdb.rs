//! ESRGAN's generator, which Real-ESRGAN ×4plus and ×2plus are: residual blocks of densely connected convolutions.
//!
//! Source: `BasicSR`, `basicsr/archs/rrdbnet_arch.py` (names `conv_first`, `body.0.rdb1.conv1`), and ESRGAN's first
//! repository (names `model.0`, `model.1.sub.0.RDB1.conv1.0`). ×2plus takes 2×2 pixels as 12 channels.

use tensor::{Tensor, Unary};

use super::{pixel_unshuffle, tiles::Limits};
use crate::{
    error::{Error, Result},
    nn::Conv2d,
    weights::{Checkpoint, Weights},
};

/// The first convolution in both spellings.
pub(super) const FIRST: [&str; 2] = ["conv_first", "model.0"];

/// The network looks over 300 pixels far, so that tiles are not the whole to the bit.
pub(super) const TILES: Limits = Limits { side: 192, margin: 16, multiple: 2 };

const ACTIVATION: Unary = Unary::LeakyRelu(0.2);

/// How much of a branch is added.
const BRANCH: f32 = 0.2;

#[derive(Debug)]
pub(super) struct Rrdb {
    scale: usize,
    conv_first: Conv2d,
    body: Vec<[Dense; 3]>,
    conv_body: Conv2d,
    conv_up1: Conv2d,
    conv_up2: Conv2d,
    conv_hr: Conv2d,
    conv_last: Conv2d,
}

/// Five convolutions, each of which sees what all before it gave.
#[derive(Debug)]
struct Dense(Vec<Conv2d>);

impl Rrdb {
    pub(super) fn load(checkpoint: &Checkpoint, weights: &Weights) -> Result<Self> {
        let old = !weights.has("conv_first.weight");
        let blocks = if old { weights.blocks("model.1.sub").saturating_sub(1) } else { weights.blocks("body") };
        let name = |ours: &str| match ours {
            _ if !old => ours.to_owned(),
            "conv_first" => "model.0".to_owned(),
            "conv_body" => format!("model.1.sub.{blocks}"),
            "conv_up1" => "model.3".to_owned(),
            "conv_up2" => "model.6".to_owned(),
            "conv_hr" => "model.8".to_owned(),
            "conv_last" => "model.10".to_owned(),
            block => format!("{}.0", block.replace("body.", "model.1.sub.").replace(".rdb", ".RDB")),
        };
        let shape = |ours: &str| weights.stored_shape(&format!("{}.weight", name(ours))).unwrap_or_default();
        let (first, growth) = (shape("conv_first"), shape("body.0.rdb1.conv1"));
        let (Some(&d), Some(&channels), Some(&growth)) = (first.first(), first.get(1), growth.first()) else {
            let problem = format!("lacks '{}.weight', which an RRDBNet has", name("body.0.rdb1.conv1"));
            return Err(Error::file(checkpoint.origin(), problem));
        };
        let scale = match channels {
            3 => 4,
            12 => 2,
            _ => {
                let problem = format!("takes {channels} channels; 3 (four times) or 12 (twice) were expected");
                return Err(Error::file(checkpoint.origin(), problem));
            }
        };
        let conv = |ours: &str, out: usize, from: usize| weights.conv2d(&name(ours), out, from, 3);
        let dense = |block: usize, rdb: usize| {
            let layer = |i: usize| {
                let out = if i == 4 { d } else { growth };
                conv(&format!("body.{block}.rdb{rdb}.conv{}", i + 1), out, d + i * growth)
            };
            (0..5).map(layer).collect::<Result<_>>().map(Dense)
        };
        let body = (0..blocks).map(|block| Ok([dense(block, 1)?, dense(block, 2)?, dense(block, 3)?]));
        Ok(Self {
            scale,
            conv_first: conv("conv_first", d, channels)?,
            body: body.collect::<Result<_>>()?,
            conv_body: conv("conv_body", d, d)?,
            conv_up1: conv("conv_up1", d, d)?,
            conv_up2: conv("conv_up2", d, d)?,
            conv_hr: conv("conv_hr", d, d)?,
            conv_last: conv("conv_last", 3, d)?,
        })
    }

    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    /// `[H, W, 3]` in [0, 1] → `[scale·H, scale·W, 3]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let [height, width] = [x.shape()[0], x.shape()[1]];
        let x = match self.scale {
            2 => pixel_unshuffle(&even(x), 2),
            _ => x.clone(),
        };
        let features = self.conv_first.same(&x);
        let mut h = features.clone();
        for rdbs in &self.body {
            let inner = rdbs.iter().fold(h.clone(), |h, rdb| rdb.forward(&h));
            h = h.add_scaled(BRANCH, &inner);
        }
        let h = self.conv_body.same(&h).add(&features);
        drop(features);
        let h = self.conv_up1.upsampled(&h).unary(ACTIVATION);
        let h = self.conv_up2.upsampled(&h).unary(ACTIVATION);
        let y = self.conv_last.same(&self.conv_hr.same_then(&h, ACTIVATION));
        y.slice(0, 0, self.scale * height).slice(1, 0, self.scale * width)
    }
}

impl Dense {
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut seen = vec![x.clone()];
        let all = |seen: &[Tensor]| Tensor::concat(&seen.iter().collect::<Vec<_>>(), 2);
        let (last, others) = self.0.split_last().expect("there are five");
        for conv in others {
            let h = conv.same_then(&all(&seen), ACTIVATION);
            seen.push(h);
        }
        x.add_scaled(BRANCH, &last.same(&all(&seen)))
    }
}

/// With the last row and column once more where there is an odd number of them.
fn even(x: &Tensor) -> Tensor {
    let mut x = x.clone();
    for axis in [0, 1] {
        let length = x.shape()[axis];
        if !length.is_multiple_of(2) {
            x = Tensor::concat(&[&x, &x.slice(axis, length - 1, 1)], axis);
        }
    }
    x
}
