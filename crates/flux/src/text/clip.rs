//! CLIP's text tower: token ids in, hidden states out; FLUX uses one vector of it, the state at the first end token.
//!
//! Source: `transformers` `CLIPTextModel` (ViT-L/14's text half). Pre-norm blocks, causal, learned positions. The pooled
//! vector has no projection.

use tensor::{Mask, Tensor, Unary, Weight};

use crate::{
    error::{Error, Result},
    lora::{Adapted, Model},
    memory::Layout,
    nn::{EncoderLayer, EncoderLayerConfig, LayerNorm, Parts},
    weights::{Component, Weights},
};

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Learned positions: the longest prompt in tokens.
    pub max_position_embeddings: usize,
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Of every norm.
    pub layer_norm_eps: f32,
    /// The MLP's function.
    pub activation: Unary,
    /// The end token. 2 stands for an old mistake in published configurations: the largest id is the end token then.
    pub eos_token_id: u32,
}

impl ClipConfig {
    /// `openai/clip-vit-large-patch14`.
    pub fn large() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            vocab_size: 49408,
            layer_norm_eps: 1e-5,
            activation: Unary::QuickGelu,
            eos_token_id: 49407,
        }
    }

    /// Reads a `text_encoder/config.json`.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_json(json: &str) -> std::result::Result<Self, String> {
        #[derive(serde::Deserialize)]
        #[serde(default)]
        struct Raw {
            hidden_size: usize,
            intermediate_size: usize,
            num_hidden_layers: usize,
            num_attention_heads: usize,
            max_position_embeddings: usize,
            vocab_size: usize,
            layer_norm_eps: f32,
            hidden_act: String,
            eos_token_id: Option<u32>,
        }
        impl Default for Raw {
            /// `CLIPTextConfig`'s own defaults.
            fn default() -> Self {
                Self {
                    hidden_size: 512,
                    intermediate_size: 2048,
                    num_hidden_layers: 12,
                    num_attention_heads: 8,
                    max_position_embeddings: 77,
                    vocab_size: 49408,
                    layer_norm_eps: 1e-5,
                    hidden_act: "quick_gelu".into(),
                    eos_token_id: None,
                }
            }
        }
        let raw: Raw = serde_json::from_str(json).map_err(|e| format!("is not a CLIP text configuration: {e}"))?;
        let config = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            max_position_embeddings: raw.max_position_embeddings,
            vocab_size: raw.vocab_size,
            layer_norm_eps: raw.layer_norm_eps,
            activation: super::activation(&raw.hidden_act)?,
            eos_token_id: raw.eos_token_id.unwrap_or(49407),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that no tower can have.
    fn check(&self) -> std::result::Result<(), String> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!("has {} heads for a width of {}", self.num_attention_heads, self.hidden_size));
        }
        // The frame of a prompt takes two tokens.
        if !(2..=1 << 20).contains(&self.max_position_embeddings) {
            return Err(format!(
                "has max_position_embeddings {}; 2 to {} are possible",
                self.max_position_embeddings,
                1 << 20
            ));
        }
        Ok(())
    }

    fn layer(&self) -> EncoderLayerConfig {
        EncoderLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            activation: self.activation,
        }
    }

    /// Derives the sizes from a checkpoint; heads are 64 wide as in every published CLIP text tower.
    ///
    /// # Errors
    /// If the file is not a CLIP text tower.
    pub fn from_weights(weights: &Weights, origin: &std::path::Path) -> Result<Self> {
        let prefix = prefix(weights);
        let shape = |name: &str| {
            weights
                .stored_shape(&format!("{prefix}{name}"))
                .filter(|s| s.len() == 2)
                .ok_or_else(|| Error::file(origin, format!("is not a CLIP text encoder: it lacks '{prefix}{name}'")))
        };
        let tokens = shape("embeddings.token_embedding.weight")?;
        let positions = shape("embeddings.position_embedding.weight")?;
        let fc1 = shape("encoder.layers.0.mlp.fc1.weight")?;
        let layers = weights.blocks(&format!("{prefix}encoder.layers"));
        let config = Self {
            hidden_size: tokens[1],
            intermediate_size: fc1[0],
            num_hidden_layers: layers,
            num_attention_heads: (tokens[1] / 64).max(1),
            max_position_embeddings: positions[0],
            vocab_size: tokens[0],
            ..Self::large()
        };
        config.check().map_err(|problem| Error::file(origin, problem))?;
        Ok(config)
    }
}

/// `text_model.` where the file has it: older and newer files differ.
fn prefix(weights: &Weights) -> &'static str {
    if weights.has("text_model.embeddings.token_embedding.weight") { "text_model." } else { "" }
}

/// The tower.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    token_embedding: Weight,
    position_embedding: Weight,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    layout: Layout,
    adapted: Adapted,
}

/// What the tower says about a prompt.
#[derive(Debug)]
pub struct ClipStates {
    /// `[tokens, width]`, after the final norm.
    pub last_hidden_state: Tensor,
    /// The state at the first end token, `[1, width]`.
    pub pooled: Tensor,
}

impl Clip {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(config: ClipConfig, weights: &Weights) -> Result<Self> {
        let p = prefix(weights);
        let d = config.hidden_size;
        let embedding = |name: &str, rows: usize| weights.matrix(&format!("{p}embeddings.{name}.weight"), rows, d);
        Ok(Self {
            token_embedding: embedding("token_embedding", config.vocab_size)?,
            position_embedding: embedding("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&format!("{p}encoder.layers.{i}"), &config.layer(), weights))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&format!("{p}final_layer_norm"), d, config.layer_norm_eps, weights)?,
            config,
            layout: Layout { fixed: weights.extent(), blocks: Vec::new() },
            adapted: Adapted::default(),
        })
    }

    /// Where its weights lie: all in one piece.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What adapters can change, and what they have changed.
    pub(crate) fn adaptable(&mut self) -> Model<'_> {
        let mut parts = Parts::default();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.parts(&format!("text_model.encoder.layers.{i}"), &mut parts);
        }
        Model { component: Component::ClipL, parts, layout: &mut self.layout, adapted: &mut self.adapted }
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// `ids`: at most `max_position_embeddings` tokens.
    pub fn forward(&self, backend: &std::sync::Arc<dyn tensor::Backend>, ids: &[u32]) -> ClipStates {
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let mut x = Tensor::embedding(backend, &self.token_embedding, ids).add(&Tensor::embedding(
            backend,
            &self.position_embedding,
            &positions,
        ));
        for layer in &self.layers {
            x = layer.forward(&x, Mask::Causal);
        }
        let last_hidden_state = self.final_layer_norm.forward(&x);
        let pooled = last_hidden_state.slice(0, self.end_token(ids), 1);
        ClipStates { last_hidden_state, pooled }
    }

    /// Where the first end token stands; transformers' two rules.
    fn end_token(&self, ids: &[u32]) -> usize {
        let end = match self.config.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }
}
