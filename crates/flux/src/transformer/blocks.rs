//! The blocks, as in BFL's `layers.py`. `d` is the hidden size; `vec` arrives as silu(vec), `[1, d]`.
//!
//! Text stands before the picture in the joint attention; queries and keys are normed per head, then rotated.

use tensor::{Qkv, Tensor, Unary};

use super::{FluxConfig, Rope};
use crate::{
    error::Result,
    nn::{Linear, Parts},
    weights::Weights,
};

/// Of every norm in the transformer.
const EPS: f32 = 1e-6;

/// One affine change of a normed stream and the gate of the branch that follows; each `[d]`.
struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// `lin(vec)` cut into `N` modulations of (shift, scale, gate).
    fn compute<const N: usize>(lin: &Linear, vec: &Tensor) -> [Self; N] {
        let all = lin.forward(vec);
        let d = all.shape().last() / (3 * N);
        let part = |i: usize| all.slice(1, i * d, d).reshape([d]);
        std::array::from_fn(|n| Self { shift: part(3 * n), scale: part(3 * n + 1), gate: part(3 * n + 2) })
    }

    fn norm(&self, x: &Tensor) -> Tensor {
        x.modulated_norm(&self.shift, &self.scale, EPS)
    }
}

/// Scales of the per-head RMS norms of queries and keys; each `[head_dim]`.
#[derive(Debug)]
struct QkNorm {
    query_norm: Tensor,
    key_norm: Tensor,
}

impl QkNorm {
    fn load(name: &str, head_dim: usize, weights: &Weights) -> Result<Self> {
        Ok(Self {
            query_norm: weights.vector(&format!("{name}.query_norm.scale"), head_dim)?,
            key_norm: weights.vector(&format!("{name}.key_norm.scale"), head_dim)?,
        })
    }

    fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        parts.vector(format!("{name}.query_norm.scale"), &mut self.query_norm);
        parts.vector(format!("{name}.key_norm.scale"), &mut self.key_norm);
    }

    /// A stream `x [L, 3·d]` of queries, keys and values, and the norms of the first two.
    fn of<'a>(&'a self, x: &'a Tensor) -> Qkv<'a> {
        Qkv { x, query_norm: &self.query_norm, key_norm: &self.key_norm }
    }
}

/// One stream (picture or text) of a double block.
#[derive(Debug)]
struct Stream {
    r#mod: Linear,
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    mlp_0: Linear,
    mlp_2: Linear,
}

impl Stream {
    /// `name` is `double_blocks.N.img` or `double_blocks.N.txt`.
    fn load(name: &str, config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size();
        let mlp = config.mlp_hidden();
        Ok(Self {
            r#mod: weights.linear(&format!("{name}_mod.lin"), 6 * d, d)?.sensitive(),
            qkv: weights.linear(&format!("{name}_attn.qkv"), 3 * d, d)?,
            norm: QkNorm::load(&format!("{name}_attn.norm"), config.head_dim, weights)?,
            proj: weights.linear(&format!("{name}_attn.proj"), d, d)?,
            mlp_0: weights.linear(&format!("{name}_mlp.0"), mlp, d)?,
            mlp_2: weights.linear(&format!("{name}_mlp.2"), d, mlp)?,
        })
    }

    fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        parts.linear(format!("{name}_mod.lin"), &mut self.r#mod);
        parts.linear(format!("{name}_attn.qkv"), &mut self.qkv);
        parts.linear(format!("{name}_attn.proj"), &mut self.proj);
        parts.linear(format!("{name}_mlp.0"), &mut self.mlp_0);
        parts.linear(format!("{name}_mlp.2"), &mut self.mlp_2);
        self.norm.parts(&format!("{name}_attn.norm"), parts);
    }

    /// The two residual branches after attention: `x [L, d]`, `attention [L, d]`.
    fn finish(&self, x: &Tensor, attention: &Tensor, [first, second]: &[Modulation; 2]) -> Tensor {
        let x = self.proj.gated_add(x, &first.gate, &[attention]);
        let hidden = self.mlp_0.then(&second.norm(&x), Unary::GeluTanh);
        self.mlp_2.gated_add(&x, &second.gate, &[&hidden])
    }
}

/// Picture and text keep their own weights and meet in attention.
#[derive(Debug)]
pub(super) struct DoubleStreamBlock {
    heads: usize,
    img: Stream,
    txt: Stream,
}

impl DoubleStreamBlock {
    pub(super) fn load(name: &str, config: &FluxConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            heads: config.num_heads,
            img: Stream::load(&format!("{name}.img"), config, weights)?,
            txt: Stream::load(&format!("{name}.txt"), config, weights)?,
        })
    }

    pub(super) fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        self.img.parts(&format!("{name}.img"), parts);
        self.txt.parts(&format!("{name}.txt"), parts);
    }

    /// `img [Li, d]`, `txt [Lt, d]`, positions of Lt + Li tokens → (img, txt).
    pub(super) fn forward(&self, img: &Tensor, txt: &Tensor, vec: &Tensor, rope: &Rope) -> (Tensor, Tensor) {
        let [img_tokens, txt_tokens] = [img.shape()[0], txt.shape()[0]];
        let img_mod = Modulation::compute::<2>(&self.img.r#mod, vec);
        let txt_mod = Modulation::compute::<2>(&self.txt.r#mod, vec);

        let img_qkv = self.img.qkv.forward(&img_mod[0].norm(img));
        let txt_qkv = self.txt.qkv.forward(&txt_mod[0].norm(txt));
        let streams = [self.txt.norm.of(&txt_qkv), self.img.norm.of(&img_qkv)]; // text first
        let precision = self.img.qkv.weight.precision();
        let attention = rope.attention(&streams, self.heads, EPS, precision);

        let img = self.img.finish(img, &attention.slice(0, txt_tokens, img_tokens), &img_mod);
        let txt = self.txt.finish(txt, &attention.slice(0, 0, txt_tokens), &txt_mod);
        (img, txt)
    }
}

/// One stream of text and picture; attention and MLP side by side on the same input.
#[derive(Debug)]
pub(super) struct SingleStreamBlock {
    heads: usize,
    /// `linear1` in two: its first 3·d rows, and those of the MLP.
    qkv: Linear,
    mlp: Linear,
    linear2: Linear,
    norm: QkNorm,
    modulation: Linear,
}

impl SingleStreamBlock {
    pub(super) fn load(name: &str, config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size();
        let mlp = config.mlp_hidden();
        let linear1 = weights.linear(&format!("{name}.linear1"), 3 * d + mlp, d)?;
        Ok(Self {
            heads: config.num_heads,
            qkv: linear1.rows(0..3 * d),
            mlp: linear1.rows(3 * d..3 * d + mlp),
            linear2: weights.linear(&format!("{name}.linear2"), d, d + mlp)?,
            norm: QkNorm::load(&format!("{name}.norm"), config.head_dim, weights)?,
            modulation: weights.linear(&format!("{name}.modulation.lin"), 3 * d, d)?.sensitive(),
        })
    }

    pub(super) fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        let linear1 = format!("{name}.linear1");
        let first_of_mlp = self.qkv.weight.out_features();
        parts.rows(linear1.as_str(), 0, &mut self.qkv);
        parts.rows(linear1.as_str(), first_of_mlp, &mut self.mlp);
        parts.linear(format!("{name}.linear2"), &mut self.linear2);
        parts.linear(format!("{name}.modulation.lin"), &mut self.modulation);
        self.norm.parts(&format!("{name}.norm"), parts);
    }

    /// `x [L, d]` → `[L, d]`.
    pub(super) fn forward(&self, x: &Tensor, vec: &Tensor, rope: &Rope) -> Tensor {
        let [modulation] = Modulation::compute::<1>(&self.modulation, vec);
        let normed = modulation.norm(x);
        let qkv = self.qkv.forward(&normed);
        let precision = self.qkv.weight.precision();
        let attention = rope.attention(&[self.norm.of(&qkv)], self.heads, EPS, precision);
        drop(qkv);
        let mlp = self.mlp.then(&normed, Unary::GeluTanh);
        self.linear2.gated_add(x, &modulation.gate, &[&attention, &mlp])
    }
}

/// The last modulation and the way back to latents.
#[derive(Debug)]
pub(super) struct LastLayer {
    linear: Linear,
    adaln_modulation_1: Linear,
}

impl LastLayer {
    pub(super) fn load(name: &str, config: &FluxConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size();
        Ok(Self {
            linear: weights.linear(&format!("{name}.linear"), config.out_channels, d)?.sensitive(),
            adaln_modulation_1: weights.linear(&format!("{name}.adaLN_modulation.1"), 2 * d, d)?.sensitive(),
        })
    }

    pub(super) fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        parts.linear(format!("{name}.linear"), &mut self.linear);
        parts.linear(format!("{name}.adaLN_modulation.1"), &mut self.adaln_modulation_1);
    }

    /// `[Li, d]` → `[Li, out_channels]`.
    pub(super) fn forward(&self, x: &Tensor, vec: &Tensor) -> Tensor {
        let modulation = self.adaln_modulation_1.forward(vec);
        let d = modulation.shape()[1] / 2;
        let [shift, scale] = [0, d].map(|start| modulation.slice(1, start, d).reshape([d])); // BFL's order: shift first
        self.linear.forward(&x.modulated_norm(&shift, &scale, EPS))
    }
}

#[cfg(test)]
mod tests {
    use tensor::{DType, Device, Precision};

    use super::*;

    #[test]
    fn modulations_and_the_last_layer_stay_out_of_int8() -> Result<()> {
        let config = FluxConfig::dev();
        let weights = Weights::planned(DType::BF16, Device::DryRun.open(), Precision::Int8);
        let double = DoubleStreamBlock::load("double_blocks.0", &config, &weights)?;
        for stream in [&double.img, &double.txt] {
            let large = [&stream.qkv, &stream.proj, &stream.mlp_0, &stream.mlp_2];
            assert!(large.iter().all(|layer| layer.weight.precision() == Precision::Int8));
            assert_eq!(stream.r#mod.weight.precision(), Precision::BF16);
        }
        let single = SingleStreamBlock::load("single_blocks.0", &config, &weights)?;
        let linears = [&single.qkv, &single.mlp, &single.linear2];
        assert_eq!(linears.map(|l| l.weight.precision()), [Precision::Int8; 3]);
        let last = LastLayer::load("final_layer", &config, &weights)?;
        let sensitive = [&single.modulation, &last.linear, &last.adaln_modulation_1];
        assert!(sensitive.iter().all(|layer| layer.weight.precision() == Precision::BF16));
        Ok(())
    }
}
