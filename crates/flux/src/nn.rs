//! Layers with weights that several models share: fully connected, convolution, norm, and the block of CLIP and SigLIP.

use std::{ops::Range, sync::Arc};

use tensor::{End, GroupNorm, Mask, Padding, Tensor, Unary, Weight};

use crate::{error::Result, lora::Added, weights::Weights};

/// `y = x·Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// What adapters change.
    pub(crate) added: Option<Arc<Added>>,
}

impl Linear {
    /// A layer without adapters: `weight [out, in]`, `bias [out]`.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias, added: None }
    }

    /// Elements of a row of its input: more than the weight has columns where an adapter widens it.
    pub(crate) fn in_features(&self) -> usize {
        self.added.as_ref().and_then(|added| added.widened()).unwrap_or_else(|| self.weight.row_len())
    }

    /// Of a model in int8, a layer that stays in bf16: few numbers pass through it, and all that follows hangs on them.
    pub(crate) fn sensitive(mut self) -> Self {
        let precision = self.weight.precision().without_int8();
        self.weight = self.weight.with_precision(precision);
        self
    }

    /// `[.., in]` → `[.., out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match &self.added {
            None => x.linear(&self.weight, self.bias.as_ref()),
            Some(added) => added.forward(self, &[x], End::Nothing),
        }
    }

    /// `f(forward(x))`.
    #[track_caller]
    pub fn then(&self, x: &Tensor, f: Unary) -> Tensor {
        match &self.added {
            None => x.linear_unary(&self.weight, self.bias.as_ref(), f),
            Some(added) => added.forward(self, &[x], End::Unary(f)),
        }
    }

    /// The layer of some of the out-features; nothing is copied.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let bias = self.bias.as_ref().map(|bias| bias.slice(0, range.start, range.len()));
        Self::new(self.weight.slice_rows(range), bias)
    }

    /// `residual + gate · forward(x)`; the columns of x may lie in several tensors, side by side.
    #[track_caller]
    pub fn gated_add(&self, residual: &Tensor, gate: &Tensor, x: &[&Tensor]) -> Tensor {
        match &self.added {
            None => residual.linear_gated_add(gate, x, &self.weight, self.bias.as_ref()),
            Some(added) => added.forward(self, x, End::GatedAdd { residual, gate }),
        }
    }
}

/// A layer or vector of a model, and what it is called.
#[derive(Debug)]
pub(crate) struct Named<T> {
    /// Of its tensor in the checkpoint, without `.weight`.
    pub(crate) name: String,
    /// The block of the model's layout that it is in.
    pub(crate) block: Option<usize>,
    /// Which of the tensor's rows is its first.
    pub(crate) first_row: usize,
    pub(crate) it: T,
}

/// What adapters can change in a model.
#[derive(Debug, Default)]
pub(crate) struct Parts<'a> {
    pub(crate) linears: Vec<Named<&'a mut Linear>>,
    /// Norms' scales.
    pub(crate) vectors: Vec<Named<&'a mut Tensor>>,
    /// The block that is being visited.
    pub(crate) block: Option<usize>,
}

impl<'a> Parts<'a> {
    pub(crate) fn linear(&mut self, name: impl Into<String>, it: &'a mut Linear) {
        self.rows(name, 0, it);
    }

    /// A layer of some of a tensor's rows.
    pub(crate) fn rows(&mut self, name: impl Into<String>, first_row: usize, it: &'a mut Linear) {
        self.linears.push(Named { name: name.into(), block: self.block, first_row, it });
    }

    pub(crate) fn vector(&mut self, name: impl Into<String>, it: &'a mut Tensor) {
        self.vectors.push(Named { name: name.into(), block: self.block, first_row: 0, it });
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

    /// `name` is `….encoder.layers.N`.
    pub(crate) fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        parts.linear(format!("{name}.self_attn.q_proj"), &mut self.q_proj);
        parts.linear(format!("{name}.self_attn.k_proj"), &mut self.k_proj);
        parts.linear(format!("{name}.self_attn.v_proj"), &mut self.v_proj);
        parts.linear(format!("{name}.self_attn.out_proj"), &mut self.out_proj);
        parts.linear(format!("{name}.mlp.fc1"), &mut self.fc1);
        parts.linear(format!("{name}.mlp.fc2"), &mut self.fc2);
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
