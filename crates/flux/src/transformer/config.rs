//! The transformer's sizes: FLUX.1's own, read from a diffusers `config.json`, or derived from a checkpoint's shapes.

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::Weights,
};

/// Sizes of a FLUX.1 transformer, in BFL's words.
#[derive(Clone, Debug, PartialEq)]
pub struct FluxConfig {
    /// Channels of a packed latent token given to `img_in` (64; 128 with a control picture, 384 for fill).
    pub in_channels: usize,
    /// Channels of a velocity token; always those of the latents alone.
    pub out_channels: usize,
    /// Width of CLIP's pooled vector.
    pub vec_in_dim: usize,
    /// Width of T5's hidden states.
    pub context_in_dim: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Double-stream blocks.
    pub depth: usize,
    /// Single-stream blocks.
    pub depth_single_blocks: usize,
    /// Dimensions of a head that turn with (index, row, column).
    pub axes_dim: [usize; 3],
    /// Base of the rotation frequencies.
    pub theta: f64,
    /// Whether the guidance scale is an input.
    pub guidance_embed: bool,
}

impl FluxConfig {
    /// FLUX.1 \[dev\] and Krea \[dev\]: 11,901,408,320 parameters.
    pub fn dev() -> Self {
        Self {
            in_channels: 64,
            out_channels: 64,
            vec_in_dim: 768,
            context_in_dim: 4096,
            num_heads: 24,
            head_dim: 128,
            depth: 19,
            depth_single_blocks: 38,
            axes_dim: [16, 56, 56],
            theta: 10_000.0,
            guidance_embed: true,
        }
    }

    /// FLUX.1 \[schnell\].
    pub fn schnell() -> Self {
        Self { guidance_embed: false, ..Self::dev() }
    }

    /// Width of the model.
    pub fn hidden_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width between the two layers of an MLP.
    pub fn mlp_hidden(&self) -> usize {
        4 * self.hidden_size()
    }

    /// Values of the noise level's sinusoid.
    pub fn time_dim(&self) -> usize {
        256
    }

    /// Reads a diffusers `transformer/config.json`.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_diffusers(json: &str) -> std::result::Result<Self, String> {
        let raw: Diffusers =
            serde_json::from_str(json).map_err(|e| format!("is not a FLUX transformer's configuration: {e}"))?;
        if let Some(class) = &raw.class_name
            && class != "FluxTransformer2DModel"
        {
            return Err(format!("describes a {class}; a FluxTransformer2DModel was expected"));
        }
        let patch = raw.patch_size.unwrap_or(1);
        if patch != 1 {
            return Err(format!("has patch_size {patch}; FLUX.1 has 1"));
        }
        let config = Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels.unwrap_or(raw.in_channels),
            vec_in_dim: raw.pooled_projection_dim,
            context_in_dim: raw.joint_attention_dim,
            num_heads: raw.num_attention_heads,
            head_dim: raw.attention_head_dim,
            depth: raw.num_layers,
            depth_single_blocks: raw.num_single_layers,
            axes_dim: raw.axes_dims_rope,
            theta: 10_000.0,
            guidance_embed: raw.guidance_embeds,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration in BFL's words, as a `config` string in a file's metadata.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn from_bfl(json: &str) -> std::result::Result<Self, String> {
        let raw: Bfl =
            serde_json::from_str(json).map_err(|e| format!("is not a FLUX transformer's configuration: {e}"))?;
        let config = Self {
            in_channels: raw.in_channels,
            out_channels: raw.out_channels.unwrap_or(raw.in_channels),
            vec_in_dim: raw.vec_in_dim,
            context_in_dim: raw.context_in_dim,
            num_heads: raw.num_heads,
            head_dim: raw.hidden_size / raw.num_heads.max(1),
            depth: raw.depth,
            depth_single_blocks: raw.depth_single_blocks,
            axes_dim: raw.axes_dim,
            theta: raw.theta,
            guidance_embed: raw.guidance_embed,
        };
        config.check()?;
        Ok(config)
    }

    /// Derives the sizes from a checkpoint (through its naming, so from any layout).
    ///
    /// # Errors
    /// If a tensor that tells a size is missing: the file is not a FLUX transformer.
    pub fn from_weights(weights: &Weights, origin: &std::path::Path) -> Result<Self> {
        let shape = |name: &str| {
            weights.stored_shape(name).filter(|s| !s.is_empty()).ok_or_else(|| {
                Error::file(origin, format!("is not a FLUX transformer: it lacks '{name}'"))
                    .hint("'darkroom inspect' tells what it is")
            })
        };
        let img_in = shape("img_in.weight")?;
        let depth = weights.blocks("double_blocks");
        let depth_single_blocks = weights.blocks("single_blocks");
        let head_dim = match depth {
            0 => shape("single_blocks.0.norm.query_norm.scale")?[0],
            _ => shape("double_blocks.0.img_attn.norm.query_norm.scale")?[0],
        };
        let columns = |shape: &[usize]| shape.get(1).copied().unwrap_or(0);
        let config = Self {
            in_channels: columns(&img_in),
            out_channels: shape("final_layer.linear.weight")?[0],
            vec_in_dim: columns(&shape("vector_in.in_layer.weight")?),
            context_in_dim: columns(&shape("txt_in.weight")?),
            num_heads: img_in[0] / head_dim.max(1),
            head_dim,
            depth,
            depth_single_blocks,
            axes_dim: axes_dim(head_dim),
            theta: 10_000.0,
            // Any of it: a file that lacks a part of it is damaged, not schnell.
            guidance_embed: ["in_layer.weight", "in_layer.bias", "out_layer.weight", "out_layer.bias"]
                .iter()
                .any(|layer| weights.has(&format!("guidance_in.{layer}"))),
        };
        config.check().map_err(|problem| Error::file(origin, problem))?;
        Ok(config)
    }

    /// Refuses sizes that no transformer can have.
    fn check(&self) -> std::result::Result<(), String> {
        let limits = [
            ("in_channels", self.in_channels, 4, 1 << 16),
            ("out_channels", self.out_channels, 4, 1 << 16),
            ("the pooled width", self.vec_in_dim, 1, 1 << 20),
            ("the text width", self.context_in_dim, 1, 1 << 20),
            ("the number of heads", self.num_heads, 1, 1 << 12),
            ("the width of a head", self.head_dim, 2, 1 << 12),
            ("the number of double blocks", self.depth, 0, 1 << 10),
            ("the number of single blocks", self.depth_single_blocks, 0, 1 << 10),
        ];
        for (name, value, least, most) in limits {
            if !(least..=most).contains(&value) {
                return Err(format!("has {value} as {name}; {least} to {most} are possible"));
            }
        }
        let turned: usize = self.axes_dim.iter().try_fold(0usize, |sum, &d| sum.checked_add(d)).unwrap_or(usize::MAX);
        if turned != self.head_dim || self.axes_dim.iter().any(|d| d % 2 == 1) {
            return Err(format!(
                "has rotary axes {:?}; even numbers adding up to {} were expected",
                self.axes_dim, self.head_dim
            ));
        }
        if !self.out_channels.is_multiple_of(4) {
            return Err(format!("has out_channels {}; a multiple of 4 (2×2 packing) was expected", self.out_channels));
        }
        Ok(())
    }
}

/// The axes of a head of this width: 128 → 16, 56, 56, and others in about that proportion. A checkpoint does not tell.
fn axes_dim(head_dim: usize) -> [usize; 3] {
    let mut first = (head_dim / 8).next_multiple_of(2);
    while first < head_dim && !(head_dim - first).is_multiple_of(4) {
        first += 2;
    }
    let rest = head_dim.saturating_sub(first) / 2;
    [first, rest, rest]
}

#[derive(Deserialize)]
struct Diffusers {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    patch_size: Option<usize>,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    joint_attention_dim: usize,
    pooled_projection_dim: usize,
    #[serde(default)]
    guidance_embeds: bool,
    #[serde(default = "dev_axes")]
    axes_dims_rope: [usize; 3],
}

fn dev_axes() -> [usize; 3] {
    [16, 56, 56]
}

#[derive(Deserialize)]
struct Bfl {
    in_channels: usize,
    out_channels: Option<usize>,
    vec_in_dim: usize,
    context_in_dim: usize,
    hidden_size: usize,
    num_heads: usize,
    depth: usize,
    depth_single_blocks: usize,
    axes_dim: [usize; 3],
    #[serde(default = "dev_theta")]
    theta: f64,
    #[serde(default)]
    guidance_embed: bool,
}

fn dev_theta() -> f64 {
    10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_in_proportion() {
        assert_eq!(axes_dim(128), [16, 56, 56]);
        assert_eq!(axes_dim(16), [4, 6, 6]);
        assert_eq!(axes_dim(32), [4, 14, 14]);
        assert_eq!(axes_dim(64), [8, 28, 28]);
    }

    #[test]
    fn impossible_sizes_are_named() {
        let json = r#"{"in_channels":64,"num_layers":1,"num_single_layers":1,"attention_head_dim":16,"num_attention_heads":2,
            "joint_attention_dim":32,"pooled_projection_dim":32,"axes_dims_rope":[4,4,4]}"#;
        let problem = FluxConfig::from_diffusers(json).expect_err("axes do not add up");
        assert!(problem.contains("adding up to 16"), "{problem}");
    }
}
