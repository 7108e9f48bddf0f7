//! The encoder half of T5 v1.1: token ids in, one hidden state a token out.
//!
//! Source: `transformers` `T5EncoderModel`. Pre-norm blocks without biases; attention has no 1/√d and adds a learned bias by
//! relative position, which block 0 owns and all share. FLUX passes no mask: padding attends and is attended.

use std::sync::Arc;

use tensor::{Backend, Mask, Tensor, Unary, Weight};

use crate::{
    error::{Error, Result},
    lora::{Adapted, Model},
    memory::Layout,
    nn::{Linear, Parts},
    weights::{Component, Weights},
};

/// Sizes of the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Width.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// Width inside an MLP.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Rows of the token table (32128 for 32100 pieces: not an error).
    pub vocab_size: usize,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all share a bucket.
    pub relative_attention_max_distance: usize,
    /// Of every norm.
    pub layer_norm_epsilon: f32,
    /// The MLP's function.
    pub activation: Unary,
    /// Whether the MLP is `wo(f(wi_0(x)) · wi_1(x))` (v1.1) or `wo(f(wi(x)))` (v1.0).
    pub gated: bool,
}

impl T5Config {
    /// `google/t5-v1_1-xxl`: 4,762,310,656 parameters.
    pub fn xxl() -> Self {
        Self {
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            vocab_size: 32128,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            activation: Unary::GeluTanh,
            gated: true,
        }
    }

    /// Reads a `text_encoder_2/config.json`.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_json(json: &str) -> std::result::Result<Self, String> {
        #[derive(serde::Deserialize)]
        #[serde(default)]
        struct Raw {
            d_model: usize,
            d_kv: usize,
            d_ff: usize,
            num_layers: usize,
            num_heads: usize,
            vocab_size: usize,
            relative_attention_num_buckets: usize,
            relative_attention_max_distance: usize,
            layer_norm_epsilon: f32,
            feed_forward_proj: String,
        }
        impl Default for Raw {
            /// `T5Config`'s own defaults.
            fn default() -> Self {
                Self {
                    d_model: 512,
                    d_kv: 64,
                    d_ff: 2048,
                    num_layers: 6,
                    num_heads: 8,
                    vocab_size: 32128,
                    relative_attention_num_buckets: 32,
                    relative_attention_max_distance: 128,
                    layer_norm_epsilon: 1e-6,
                    feed_forward_proj: "relu".into(),
                }
            }
        }
        let raw: Raw = serde_json::from_str(json).map_err(|e| format!("is not a T5 configuration: {e}"))?;
        let gated = raw.feed_forward_proj.starts_with("gated-");
        let name = raw.feed_forward_proj.strip_prefix("gated-").unwrap_or(&raw.feed_forward_proj);
        // In T5's configurations "gated-gelu" has always meant the tanh approximation.
        let activation = if gated && name == "gelu" { Unary::GeluTanh } else { super::activation(name)? };
        let config = Self {
            d_model: raw.d_model,
            d_kv: raw.d_kv,
            d_ff: raw.d_ff,
            num_layers: raw.num_layers,
            num_heads: raw.num_heads,
            vocab_size: raw.vocab_size,
            relative_attention_num_buckets: raw.relative_attention_num_buckets,
            relative_attention_max_distance: raw.relative_attention_max_distance,
            layer_norm_epsilon: raw.layer_norm_epsilon,
            activation,
            gated,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that no encoder can have.
    fn check(&self) -> std::result::Result<(), String> {
        const MOST: usize = 1 << 20;
        let limits = [
            ("num_heads", self.num_heads, 1),
            ("d_kv", self.d_kv, 1),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 4),
        ];
        for (name, value, least) in limits {
            if !(least..=MOST).contains(&value) {
                return Err(format!("has {name} {value}; {least} to {MOST} are possible"));
            }
        }
        Ok(())
    }

    /// Derives the sizes from a checkpoint.
    ///
    /// # Errors
    /// If the file is not a T5 encoder.
    pub fn from_weights(weights: &Weights, origin: &std::path::Path) -> Result<Self> {
        let shape = |name: &str| {
            weights
                .stored_shape(name)
                .filter(|s| s.len() == 2)
                .ok_or_else(|| Error::file(origin, format!("is not a T5 encoder: it lacks '{name}'")))
        };
        let table = shape(token_table(weights))?;
        let bias = shape("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")?;
        let q = shape("encoder.block.0.layer.0.SelfAttention.q.weight")?;
        let gated = weights.has("encoder.block.0.layer.1.DenseReluDense.wi_0.weight");
        let wo = shape("encoder.block.0.layer.1.DenseReluDense.wo.weight")?;
        let layers = weights.blocks("encoder.block");
        let config = Self {
            d_model: table[1],
            d_kv: q[0] / bias[1].max(1),
            d_ff: wo[1],
            num_layers: layers,
            num_heads: bias[1],
            vocab_size: table[0],
            relative_attention_num_buckets: bias[0],
            activation: if gated { Unary::GeluTanh } else { Unary::Relu },
            gated,
            ..Self::xxl()
        };
        config.check().map_err(|problem| Error::file(origin, problem))?;
        Ok(config)
    }
}

/// The token table is stored once, under one of two names.
fn token_table(weights: &Weights) -> &'static str {
    if weights.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" }
}

/// The encoder.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    shared: Weight,
    relative_attention_bias: Weight,
    block: Vec<Block>,
    final_layer_norm: Tensor,
    layout: Layout,
    adapted: Adapted,
}

impl T5 {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(config: T5Config, weights: &Weights) -> Result<Self> {
        let mut t5 = Self {
            shared: weights.matrix(token_table(weights), config.vocab_size, config.d_model)?,
            relative_attention_bias: weights.matrix(
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                config.relative_attention_num_buckets,
                config.num_heads,
            )?,
            block: Vec::new(),
            final_layer_norm: weights.vector("encoder.final_layer_norm.weight", config.d_model)?,
            layout: Layout::default(),
            adapted: Adapted::default(),
            config,
        };
        t5.layout.fixed = weights.extent();
        for i in 0..t5.config.num_layers {
            t5.block.push(Block::load(&format!("encoder.block.{i}"), &t5.config, weights)?);
            t5.layout.blocks.push(weights.extent());
        }
        Ok(t5)
    }

    /// What adapters can change, and what they have changed.
    pub(crate) fn adaptable(&mut self) -> Model<'_> {
        let mut parts = Parts::default();
        for (i, block) in self.block.iter_mut().enumerate() {
            parts.block = Some(i);
            block.parts(&format!("encoder.block.{i}"), &mut parts);
        }
        Model { component: Component::T5, parts, layout: &mut self.layout, adapted: &mut self.adapted }
    }

    /// Where its weights lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sizes.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Hidden states `[ids.len(), d_model]`. `observe` runs after each block; its error (cancellation) ends the pass.
    ///
    /// # Errors
    /// Only what `observe` returns.
    pub fn forward(
        &self,
        backend: &Arc<dyn Backend>,
        ids: &[u32],
        observe: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let bias = self.position_bias(backend, ids.len());
        let mut x = Tensor::embedding(backend, &self.shared, ids);
        for (i, block) in self.block.iter().enumerate() {
            x = block.forward(&x, &bias, &self.config);
            observe(i, &x)?;
        }
        Ok(x.rms_norm(&self.final_layer_norm, self.config.layer_norm_epsilon))
    }

    /// The learned bias of each distance from −(length − 1) to length − 1, `[heads, 2 · length − 1]`.
    fn position_bias(&self, backend: &Arc<dyn Backend>, length: usize) -> Tensor {
        let buckets: Vec<u32> = (1 - length as i64..length as i64).map(|relative| self.bucket(relative)).collect();
        Tensor::embedding(backend, &self.relative_attention_bias, &buckets).permute(&[1, 0])
    }

    /// Half of the buckets for each direction; of these half exact, half logarithmic up to the maximal distance.
    fn bucket(&self, relative: i64) -> u32 {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let distance = relative.unsigned_abs() as usize;
        let direction = if relative > 0 { half } else { 0 };
        if distance < exact {
            return (direction + distance) as u32;
        }
        let far = (distance as f32 / exact as f32).ln()
            / (self.config.relative_attention_max_distance as f32 / exact as f32).ln()
            * (half - exact) as f32;
        (direction + (exact + far as usize).min(half - 1)) as u32
    }
}

#[derive(Debug)]
struct Block {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: Tensor,
    /// `wi_0` and `wi_1`, or `wi` alone.
    wi: Vec<Linear>,
    wo: Linear,
}

impl Block {
    fn load(name: &str, config: &T5Config, weights: &Weights) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let d = config.d_model;
        let attention = |proj: &str, out, features| {
            let weight = weights.matrix(&format!("{name}.layer.0.SelfAttention.{proj}.weight"), out, features);
            weight.map(|weight| Linear::new(weight, None))
        };
        let dense = |proj: &str, out, features| {
            let weight = weights.matrix(&format!("{name}.layer.1.DenseReluDense.{proj}.weight"), out, features);
            weight.map(|weight| Linear::new(weight, None))
        };
        let wi: &[&str] = if config.gated { &["wi_0", "wi_1"] } else { &["wi"] };
        Ok(Self {
            attention_norm: weights.vector(&format!("{name}.layer.0.layer_norm.weight"), d)?,
            q: attention("q", inner, d)?,
            k: attention("k", inner, d)?,
            v: attention("v", inner, d)?,
            o: attention("o", d, inner)?,
            mlp_norm: weights.vector(&format!("{name}.layer.1.layer_norm.weight"), d)?,
            wi: wi.iter().map(|proj| dense(proj, config.d_ff, d)).collect::<Result<_>>()?,
            wo: dense("wo", d, config.d_ff)?,
        })
    }

    /// `name` is `encoder.block.N`.
    fn parts<'a>(&'a mut self, name: &str, parts: &mut Parts<'a>) {
        let attention = |proj: &str| format!("{name}.layer.0.SelfAttention.{proj}");
        let dense = |proj: &str| format!("{name}.layer.1.DenseReluDense.{proj}");
        parts.linear(attention("q"), &mut self.q);
        parts.linear(attention("k"), &mut self.k);
        parts.linear(attention("v"), &mut self.v);
        parts.linear(attention("o"), &mut self.o);
        let gated = self.wi.len() > 1;
        for (i, wi) in self.wi.iter_mut().enumerate() {
            parts.linear(if gated { dense(&format!("wi_{i}")) } else { dense("wi") }, wi);
        }
        parts.linear(dense("wo"), &mut self.wo);
    }

    fn forward(&self, x: &Tensor, bias: &Tensor, config: &T5Config) -> Tensor {
        let tokens = x.shape()[0];
        let h = x.rms_norm(&self.attention_norm, config.layer_norm_epsilon);
        let heads = |w: &Linear| w.forward(&h).reshape([tokens, config.num_heads, config.d_kv]);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(heads);
        let attention = q.attention(&k, &v, 1.0, Mask::Relative(bias), self.q.weight.precision());
        let x = x.add(&self.o.forward(&attention.reshape([tokens, config.num_heads * config.d_kv])));

        let h = x.rms_norm(&self.mlp_norm, config.layer_norm_epsilon);
        let mut hidden = self.wi[0].then(&h, config.activation);
        if let Some(wi_1) = self.wi.get(1) {
            hidden = hidden.mul(&wi_1.forward(&h));
        }
        x.add(&self.wo.forward(&hidden))
    }
}
