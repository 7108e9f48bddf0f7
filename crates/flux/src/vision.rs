//! A picture as conditioning: SigLIP's vision tower and the Redux projector, which turn it into tokens beside T5's.
//!
//! Source: `transformers` `SiglipVisionModel` (the attention-pooling head is unused), BFL's `image_embedders.py`.

use std::path::Path;

use tensor::{Mask, Padding, Tensor, Unary, Weight};

use crate::{
    error::{Error, Result},
    nn::{Conv2d, EncoderLayer, EncoderLayerConfig, LayerNorm, Linear},
    text,
    weights::Weights,
};

/// Sizes of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the picture it takes, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels; what does not fill a patch at the right and below is not seen.
    pub patch_size: usize,
    /// Of every norm.
    pub layer_norm_eps: f32,
    /// The MLP's function.
    pub activation: Unary,
}

impl SiglipConfig {
    /// `google/siglip-so400m-patch14-384`: 729 tokens.
    pub fn so400m() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            activation: Unary::GeluTanh,
        }
    }

    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// The sizes that the tensors have. Heads and the picture's side cannot be told: those of so400m, if it is that wide,
    /// otherwise heads of 64 and no pixels beyond the last patch.
    ///
    /// # Errors
    /// [`Error::File`] naming `origin`, if it is something else.
    pub fn from_weights(weights: &Weights, origin: &Path) -> Result<Self> {
        let root = root(weights);
        let shape = |name: &str| {
            let name = format!("{root}{name}");
            weights.stored_shape(&name).ok_or_else(|| Error::file(origin, format!("has no tensor '{name}'")))
        };
        let [patches, positions] =
            [shape("embeddings.patch_embedding.weight")?, shape("embeddings.position_embedding.weight")?];
        let fc1 = shape("encoder.layers.0.mlp.fc1.weight")?;
        let (&[d, 3, patch_size, _], &[tokens, _], &[intermediate_size, _]) =
            (patches.as_slice(), positions.as_slice(), fc1.as_slice())
        else {
            return Err(Error::file(
                origin,
                "is not a SigLIP vision tower: patches, positions or the MLP have another shape",
            ));
        };
        let side = tokens.isqrt();
        let found = Self {
            hidden_size: d,
            intermediate_size,
            num_hidden_layers: weights.blocks(&format!("{root}encoder.layers")),
            num_attention_heads: (d / 64).max(1),
            image_size: side * patch_size,
            patch_size,
            ..Self::so400m()
        };
        let usual = Self { num_hidden_layers: found.num_hidden_layers, ..Self::so400m() };
        if (d, patch_size, tokens) == (usual.hidden_size, usual.patch_size, usual.tokens()) {
            return Ok(usual);
        }
        if side * side != tokens || !d.is_multiple_of(found.num_attention_heads) {
            return Err(Error::file(origin, format!("has {tokens} positions of width {d}: no SigLIP vision tower")));
        }
        Ok(found)
    }

    /// Reads an `image_encoder/config.json`.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_json(json: &str) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct Raw {
            hidden_size: usize,
            intermediate_size: usize,
            num_hidden_layers: usize,
            num_attention_heads: usize,
            image_size: usize,
            patch_size: usize,
            layer_norm_eps: Option<f32>,
            hidden_act: Option<String>,
        }
        let raw: Raw = serde_json::from_str(json).map_err(|e| format!("is not a SigLIP vision configuration: {e}"))?;
        let limits = [
            ("hidden_size", raw.hidden_size, 1 << 16),
            ("intermediate_size", raw.intermediate_size, 1 << 20),
            ("num_attention_heads", raw.num_attention_heads, raw.hidden_size),
            ("image_size", raw.image_size, 1 << 14),
            ("patch_size", raw.patch_size, raw.image_size),
        ];
        for (name, value, most) in limits {
            if !(1..=most).contains(&value) {
                return Err(format!("has {name} {value}; 1 to {most} are possible"));
            }
        }
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return Err(format!("has {} heads for a width of {}", raw.num_attention_heads, raw.hidden_size));
        }
        Ok(Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            image_size: raw.image_size,
            patch_size: raw.patch_size,
            layer_norm_eps: raw.layer_norm_eps.unwrap_or(1e-6),
            activation: text::activation(raw.hidden_act.as_deref().unwrap_or("gelu_pytorch_tanh"))?,
        })
    }
}

/// What the tower's names begin with: transformers 5 leaves `vision_model.` away.
fn root(weights: &Weights) -> &'static str {
    if weights.has("embeddings.patch_embedding.weight") { "" } else { "vision_model." }
}

/// The vision tower.
#[derive(Debug)]
pub struct Siglip {
    config: SiglipConfig,
    patch_embedding: Conv2d,
    position_embedding: Weight,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
}

impl Siglip {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(config: SiglipConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size;
        let layer = EncoderLayerConfig {
            hidden_size: d,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            layer_norm_eps: config.layer_norm_eps,
            activation: config.activation,
        };
        let root = root(weights);
        let embeddings = format!("{root}embeddings");
        Ok(Self {
            patch_embedding: weights.conv2d(&format!("{embeddings}.patch_embedding"), d, 3, config.patch_size)?,
            position_embedding: weights.matrix(
                &format!("{embeddings}.position_embedding.weight"),
                config.tokens(),
                d,
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&format!("{root}encoder.layers.{i}"), &layer, weights))
                .collect::<Result<_>>()?,
            post_layernorm: LayerNorm::load(&format!("{root}post_layernorm"), d, config.layer_norm_eps, weights)?,
            config,
        })
    }

    /// `picture [image_size, image_size, 3]` in [−1, 1] → hidden states `[tokens, hidden_size]`. `observe` runs after each layer.
    ///
    /// # Errors
    /// Only what `observe` returns: cancellation.
    pub fn forward(&self, picture: &Tensor, observe: &mut dyn FnMut() -> Result<()>) -> Result<Tensor> {
        let tokens = self.config.tokens();
        let patches = self.patch_embedding.strided(picture, self.config.patch_size, Padding::default());
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let positions = Tensor::embedding(picture.backend(), &self.position_embedding, &positions);
        let mut x = patches.reshape([tokens, self.config.hidden_size]).add(&positions);
        for layer in &self.layers {
            x = layer.forward(&x, Mask::None);
            observe()?;
        }
        Ok(self.post_layernorm.forward(&x))
    }
}

/// SigLIP's states to tokens of T5's width: `redux_down(silu(redux_up(x)))`.
#[derive(Debug)]
pub struct Redux {
    redux_up: Linear,
    redux_down: Linear,
}

impl Redux {
    /// Takes the parameters from `weights`: `redux_dim` is SigLIP's width, `txt_in_features` T5's; three times that inside.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(redux_dim: usize, txt_in_features: usize, weights: &Weights) -> Result<Self> {
        Ok(Self {
            redux_up: weights.linear("redux_up", 3 * txt_in_features, redux_dim)?,
            redux_down: weights.linear("redux_down", txt_in_features, 3 * txt_in_features)?,
        })
    }

    /// `[tokens, redux_dim]` → `[tokens, txt_in_features]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.redux_down.forward(&self.redux_up.then(x, Unary::Silu))
    }
}
