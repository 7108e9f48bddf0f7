//! The autoencoder's sizes.

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::Weights,
};

/// Sizes of an `AutoencoderKL`.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture given.
    pub in_channels: usize,
    /// Channels of a picture made.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each resolution level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Whether the middle has attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Model-space latents are `(z − shift_factor) · scaling_factor`.
    pub scaling_factor: f32,
    /// See `scaling_factor`.
    pub shift_factor: f32,
    /// Side of the pictures it was trained on, which is the side of a tile.
    pub sample_size: usize,
}

impl VaeConfig {
    /// FLUX.1's: 83,819,683 parameters.
    pub fn flux() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: false,
            use_post_quant_conv: false,
            scaling_factor: 0.3611,
            shift_factor: 0.1159,
            sample_size: 1024,
        }
    }

    /// Pixels of a picture per latent, in each direction (8).
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Reads a diffusers `vae/config.json`.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_diffusers(json: &str) -> std::result::Result<Self, String> {
        let raw: Diffusers =
            serde_json::from_str(json).map_err(|e| format!("is not an autoencoder's configuration: {e}"))?;
        if let Some(class) = &raw.class_name
            && class != "AutoencoderKL"
        {
            return Err(format!("describes a {class}; an AutoencoderKL was expected"));
        }
        if raw.act_fn != "silu" && raw.act_fn != "swish" {
            return Err(format!("has act_fn '{}'; silu was expected", raw.act_fn));
        }
        let config = Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels,
            latent_channels: raw.latent_channels,
            block_out_channels: raw.block_out_channels,
            layers_per_block: raw.layers_per_block,
            norm_num_groups: raw.norm_num_groups,
            mid_block_add_attention: raw.mid_block_add_attention,
            use_quant_conv: raw.use_quant_conv,
            use_post_quant_conv: raw.use_post_quant_conv,
            scaling_factor: raw.scaling_factor,
            shift_factor: raw.shift_factor.unwrap_or(0.0),
            sample_size: raw.sample_size,
        };
        config.check()?;
        Ok(config)
    }

    /// Derives the sizes from a checkpoint in BFL's names; what shapes do not tell is FLUX.1's.
    ///
    /// # Errors
    /// If the file is not an autoencoder.
    pub fn from_weights(weights: &Weights, origin: &std::path::Path) -> Result<Self> {
        let shape = |name: &str| {
            weights
                .stored_shape(name)
                .filter(|s| s.len() == 4)
                .ok_or_else(|| Error::file(origin, format!("is not an autoencoder: it lacks '{name}'")))
        };
        let any = |names: [&str; 2]| names.iter().any(|name| weights.has(name));
        // A damaged name may hold any number; `check` refuses more than 8.
        let levels = weights.blocks("decoder.up").min(9);
        let channels = |level| Ok(shape(&format!("decoder.up.{level}.block.0.conv1.weight"))?[0]);
        let block_out_channels = (0..levels).map(channels).collect::<Result<Vec<_>>>()?;
        let conv_in = shape("decoder.conv_in.weight")?;
        let blocks = weights.blocks("decoder.up.0.block");
        let config = Self {
            out_channels: shape("decoder.conv_out.weight")?[0],
            latent_channels: conv_in[1],
            layers_per_block: blocks.saturating_sub(1),
            // Any tensor of a part makes it one that has to be whole.
            mid_block_add_attention: any(["decoder.mid.attn_1.q.weight", "decoder.mid.attn_1.norm.weight"]),
            use_quant_conv: any(["quant_conv.weight", "quant_conv.bias"]),
            use_post_quant_conv: any(["post_quant_conv.weight", "post_quant_conv.bias"]),
            block_out_channels,
            ..Self::flux()
        };
        config.check().map_err(|problem| Error::file(origin, problem))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let channels = &self.block_out_channels;
        if channels.is_empty() || channels.len() > 8 {
            return Err(format!("has {} resolution levels; 1 to 8 are possible", channels.len()));
        }
        if self.norm_num_groups == 0 || channels.iter().any(|&c| c == 0 || c > 1 << 16 || c % self.norm_num_groups != 0)
        {
            return Err(format!("has channels {channels:?}, which {} groups do not divide", self.norm_num_groups));
        }
        if !(1..=64).contains(&self.layers_per_block) || !(1..=1024).contains(&self.latent_channels) {
            return Err(format!(
                "has {} blocks a level and {} latent channels",
                self.layers_per_block, self.latent_channels
            ));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0 && self.shift_factor.is_finite()) {
            return Err(format!("has scaling_factor {} and shift_factor {}", self.scaling_factor, self.shift_factor));
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            return Err(format!("makes pictures of {} channels; 3 were expected", self.out_channels));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Diffusers {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    act_fn: String,
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    norm_num_groups: usize,
    mid_block_add_attention: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    scaling_factor: f32,
    shift_factor: Option<f32>,
    sample_size: usize,
}

impl Default for Diffusers {
    /// `AutoencoderKL`'s own defaults.
    fn default() -> Self {
        Self {
            class_name: None,
            act_fn: "silu".into(),
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
            shift_factor: None,
            sample_size: 32,
        }
    }
}
