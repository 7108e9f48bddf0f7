//! Residual blocks, and the middle with its one wide attention head. Pictures are `[H, W, C]`.

use tensor::{GroupNorm, Mask, Tensor};

use super::VaeConfig;
use crate::{
    error::Result,
    nn::{Conv2d, Linear},
    weights::Weights,
};

/// Of every norm in the autoencoder.
const EPS: f32 = 1e-6;

/// A group norm.
#[derive(Debug)]
pub(super) struct Norm {
    groups: usize,
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    pub(super) fn load(name: &str, channels: usize, config: &VaeConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            groups: config.norm_num_groups,
            weight: weights.vector(&format!("{name}.weight"), channels)?,
            bias: weights.vector(&format!("{name}.bias"), channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.parameters())
    }

    pub(super) fn parameters(&self) -> GroupNorm<'_> {
        GroupNorm { groups: self.groups, weight: &self.weight, bias: &self.bias, eps: EPS }
    }
}

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: Norm,
    conv1: Conv2d,
    norm2: Norm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(super) fn load(name: &str, from: usize, to: usize, config: &VaeConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            norm1: Norm::load(&format!("{name}.norm1"), from, config, weights)?,
            conv1: weights.conv2d(&format!("{name}.conv1"), to, from, 3)?,
            norm2: Norm::load(&format!("{name}.norm2"), to, config, weights)?,
            conv2: weights.conv2d(&format!("{name}.conv2"), to, to, 3)?,
            nin_shortcut: if from == to {
                None
            } else {
                Some(weights.conv2d(&format!("{name}.nin_shortcut"), to, from, 1)?)
            },
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.norm_silu_same(self.norm1.parameters(), x, None);
        let shortcut = self.nin_shortcut.as_ref().map(|conv| conv.same(x));
        self.conv2.norm_silu_same(self.norm2.parameters(), &h, Some(shortcut.as_ref().unwrap_or(x)))
    }
}

/// Block, attention, block at the coarsest resolution.
#[derive(Debug)]
pub(super) struct Mid {
    block_1: ResnetBlock,
    attn_1: Option<Attention>,
    block_2: ResnetBlock,
}

impl Mid {
    pub(super) fn load(name: &str, channels: usize, config: &VaeConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            block_1: ResnetBlock::load(&format!("{name}.block_1"), channels, channels, config, weights)?,
            attn_1: if config.mid_block_add_attention {
                Some(Attention::load(&format!("{name}.attn_1"), channels, config, weights)?)
            } else {
                None
            },
            block_2: ResnetBlock::load(&format!("{name}.block_2"), channels, channels, config, weights)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.block_1.forward(x);
        let x = self.attn_1.as_ref().map_or(x.clone(), |attn| attn.forward(&x));
        self.block_2.forward(&x)
    }
}

/// Every pixel attends to every pixel with a single head as wide as the channels.
#[derive(Debug)]
struct Attention {
    norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    proj_out: Linear,
}

impl Attention {
    fn load(name: &str, channels: usize, config: &VaeConfig, weights: &Weights) -> Result<Self> {
        // 1×1 convolutions in BFL's files, matrices in diffusers': the same numbers.
        let linear = |proj: &str| weights.linear(&format!("{name}.{proj}"), channels, channels);
        Ok(Self {
            norm: Norm::load(&format!("{name}.norm"), channels, config, weights)?,
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            proj_out: linear("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let normed = self.norm.forward(x);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|p| p.forward(&normed).reshape([h * w, 1, c]));
        let attention = q.attention(&k, &v, (c as f32).sqrt().recip(), Mask::None, self.q.weight.precision());
        x.add(&self.proj_out.forward(&attention.reshape([h, w, c])))
    }
}
