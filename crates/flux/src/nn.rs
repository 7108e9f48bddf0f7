//! Layers with weights that several models share: fully connected, convolution, norm, and the block of CLIP and SigLIP.

use std::ops::Range;

use tensor::{GroupNorm, Mask, Padding, Tensor, Unary, Weight};

use crate::{error::Result, weights::Weights};

/// `y = x·Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Of a model in int8, a layer that stays in bf16: few numbers pass through it, and all that follows hangs on them.
    pub(crate) fn sensitive(mut self) -> Self {
        let precision = self.weight.precision().without_int8();
        self.weight = self.weight.with_precision(precision);
        self
    }

    /// `[.., in]` → `[.., out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// `f(forward(x))`.
    #[track_caller]
    pub fn then(&self, x: &Tensor, f: Unary) -> Tensor {
        x.linear_unary(&self.weight, self.bias.as_ref(), f)
    }

    /// The layer of some of the out-features; nothing is copied.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let bias = self.bias.as_ref().map(|bias| bias.slice(0, range.start, range.len()));
        Self { weight: self.weight.slice_rows(range), bias }
    }

    /// `residual + gate · forward(x)`; the columns of x may lie in several tensors, side by side.
    #[track_caller]
    pub fn gated_add(&self, residual: &Tensor, gate: &Tensor, x: &[&Tensor]) -> Tensor {
        residual.linear_gated_add(gate, x, &self.weight, self.bias.as_ref())
    }
}

/// A square convolution.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in, k, k]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Conv2d {
    /// `[H, W, in]` → `[H, W, out]`.
    #[track_caller]
    pub fn same(&self, x: &Tensor) -> Tensor {
        self.strided(x, 1, Padding::all(self.weight.shape()[2] / 2))
    }

    /// `residual + same(silu(norm(x)))`; without a residual 0.
    #[track_caller]
    pub fn norm_silu_same(&self, norm: GroupNorm<'_>, x: &Tensor, residual: Option<&Tensor>) -> Tensor {
        let padding = Padding::all(self.weight.shape()[2] / 2);
        x.norm_silu_conv2d(norm, &self.weight, self.bias.as_ref(), padding, residual)
    }

    /// `f(same(x))`.
    #[track_caller]
    pub fn same_then(&self, x: &Tensor, f: Unary) -> Tensor {
        x.conv2d_unary(&self.weight, self.bias.as_ref(), 1, Padding::all(self.weight.shape()[2] / 2), f)
    }

    /// Each pixel twice in both directions, then the convolution: `[H, W, in]` → `[2H, 2W, out]`.
    #[track_caller]
    pub fn upsampled(&self, x: &Tensor) -> Tensor {
        x.upsample_conv2d(&self.weight, self.bias.as_ref(), Padding::all(self.weight.shape()[2] / 2))
    }

    /// `[H, W, in]` → `[H', W', out]`.
    #[track_caller]
    pub fn strided(&self, x: &Tensor, stride: usize, padding: Padding) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), stride, padding)
    }
}

/// `layer_norm(x) · weight + bias`.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// `name.weight` and `name.bias`, each `[width]`.
    pub(crate) fn load(name: &str, width: usize, eps: f32, weights: &Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.vector(&format!("{name}.weight"), width)?,
            bias: weights.vector(&format!("{name}.bias"), width)?,
            eps,
        })
    }

    /// `[.., width]` → the same.
    #[track_caller]
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.eps).mul(&self.weight).add(&self.bias)
    }
}

/// Sizes of an [`EncoderLayer`].
#[derive(Clone, Debug)]
pub(crate) struct EncoderLayerConfig {
    /// Width.
    pub(crate) hidden_size: usize,
    /// Width inside the MLP.
    pub(crate) intermediate_size: usize,
    /// Attention heads.
    pub(crate) num_attention_heads: usize,
    /// Of both norms.
    pub(crate) layer_norm_eps: f32,
    /// The MLP's function.
    pub(crate) activation: Unary,
}

/// A pre-norm block of CLIP's and SigLIP's towers: attention, then an MLP, each added to its input.
#[derive(Debug)]
pub(crate) struct EncoderLayer {
    heads: usize,
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Unary,
}

impl EncoderLayer {
    /// `name` is `….encoder.layers.N`.
    pub(crate) fn load(name: &str, config: &EncoderLayerConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size;
        let attention = |proj: &str| weights.linear(&format!("{name}.self_attn.{proj}"), d, d);
        let norm = |norm: &str| LayerNorm::load(&format!("{name}.{norm}"), d, config.layer_norm_eps, weights);
        Ok(Self {
            heads: config.num_attention_heads,
            layer_norm1: norm("layer_norm1")?,
            q_proj: attention("q_proj")?,
            k_proj: attention("k_proj")?,
            v_proj: attention("v_proj")?,
            out_proj: attention("out_proj")?,
            layer_norm2: norm("layer_norm2")?,
            fc1: weights.linear(&format!("{name}.mlp.fc1"), config.intermediate_size, d)?,
            fc2: weights.linear(&format!("{name}.mlp.fc2"), d, config.intermediate_size)?,
            activation: config.activation,
        })
    }

    /// `x [tokens, width]` → the same.
    #[track_caller]
    pub(crate) fn forward(&self, x: &Tensor, mask: Mask<'_>) -> Tensor {
        let [tokens, d] = [x.shape()[0], x.shape()[1]];
        let head_dim = d / self.heads;
        let h = self.layer_norm1.forward(x);
        let [q, k, v] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|p| p.forward(&h).reshape([tokens, self.heads, head_dim]));
        let scale = (head_dim as f32).sqrt().recip();
        let attention = q.attention(&k, &v, scale, mask, self.q_proj.weight.precision()).reshape([tokens, d]);
        let x = x.add(&self.out_proj.forward(&attention));
        let h = self.fc1.then(&self.layer_norm2.forward(&x), self.activation);
        x.add(&self.fc2.forward(&h))
    }
}
