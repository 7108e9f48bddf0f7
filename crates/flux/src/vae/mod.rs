//! The autoencoder: pictures `[H, W, 3]` in [−1, 1] ↔ latents `[H/8, W/8, 16]`.
//!
//! Names are BFL's (`flux/src/flux/modules/autoencoder.py`). Tensors are channels-last. Latents outside of this module are
//! *model-space*: `(z − shift) · scale`.

mod blocks;
mod config;
pub mod tiling;
pub mod tiny;

use std::convert::Infallible;

use tensor::{Padding, Tensor};

use self::blocks::{Mid, Norm, ResnetBlock};
pub use self::config::VaeConfig;
use crate::{error::Result, nn::Conv2d, weights::Weights};

/// Pictures to latents.
#[derive(Debug)]
pub struct Encoder {
    config: VaeConfig,
    conv_in: Conv2d,
    down: Vec<DownLevel>,
    mid: Mid,
    norm_out: Norm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

#[derive(Debug)]
struct DownLevel {
    block: Vec<ResnetBlock>,
    downsample: Option<Conv2d>,
}

impl Encoder {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(config: VaeConfig, weights: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let levels = channels.len();
        let mut down = Vec::with_capacity(levels);
        let mut from = channels[0];
        for (level, &to) in channels.iter().enumerate() {
            let name = format!("encoder.down.{level}");
            let block = (0..config.layers_per_block)
                .map(|j| {
                    ResnetBlock::load(
                        &format!("{name}.block.{j}"),
                        if j == 0 { from } else { to },
                        to,
                        &config,
                        weights,
                    )
                })
                .collect::<Result<_>>()?;
            let last = level + 1 == levels;
            let downsample =
                if last { None } else { Some(weights.conv2d(&format!("{name}.downsample.conv"), to, to, 3)?) };
            down.push(DownLevel { block, downsample });
            from = to;
        }
        let moments = 2 * config.latent_channels;
        Ok(Self {
            conv_in: weights.conv2d("encoder.conv_in", channels[0], config.in_channels, 3)?,
            down,
            mid: Mid::load("encoder.mid", from, &config, weights)?,
            norm_out: Norm::load("encoder.norm_out", from, &config, weights)?,
            conv_out: weights.conv2d("encoder.conv_out", moments, from, 3)?,
            quant_conv: if config.use_quant_conv {
                Some(weights.conv2d("quant_conv", moments, moments, 1)?)
            } else {
                None
            },
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// `[H, W, 3]` → mean and log-variance, `[H/8, W/8, 32]`, not yet in model space.
    pub fn moments(&self, picture: &Tensor) -> Tensor {
        let Ok(moments) = self.moments_watched(picture, &mut || Ok::<_, Infallible>(()));
        moments
    }

    /// As [`Encoder::moments`]; `observe` runs between levels, and its error (cancellation) ends the pass.
    pub(crate) fn moments_watched<E>(
        &self,
        picture: &Tensor,
        observe: &mut dyn FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        let mut h = self.conv_in.same(picture);
        for level in &self.down {
            observe()?;
            for block in &level.block {
                h = block.forward(&h);
            }
            if let Some(conv) = &level.downsample {
                // Only right and below: the published weights were trained so.
                h = conv.strided(&h, 2, Padding { right: 1, bottom: 1, ..Padding::default() });
            }
        }
        observe()?;
        let h = self.mid.forward(&h);
        let h = self.conv_out.norm_silu_same(self.norm_out.parameters(), &h, None);
        Ok(self.quant_conv.as_ref().map_or(h.clone(), |conv| conv.same(&h)))
    }

    /// `[H, W, 3]` → the mean in model space, `[H/8, W/8, 16]`.
    pub fn encode(&self, picture: &Tensor) -> Tensor {
        self.mean(&self.moments(picture))
    }

    /// The mean of [`Encoder::moments`] in model space.
    fn mean(&self, moments: &Tensor) -> Tensor {
        let mean = moments.slice(2, 0, self.config.latent_channels);
        mean.affine(1.0, -self.config.shift_factor).affine(self.config.scaling_factor, 0.0)
    }
}

/// Latents to pictures.
#[derive(Debug)]
pub struct Decoder {
    config: VaeConfig,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid: Mid,
    /// In checkpoint order, `up.0` first; run from the last to the first.
    up: Vec<UpLevel>,
    norm_out: Norm,
    conv_out: Conv2d,
}

#[derive(Debug)]
struct UpLevel {
    block: Vec<ResnetBlock>,
    upsample: Option<Conv2d>,
}

impl Decoder {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(config: VaeConfig, weights: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let latent = config.latent_channels;
        let widest = channels[channels.len() - 1];
        let mut up = Vec::with_capacity(channels.len());
        for (level, &to) in channels.iter().enumerate() {
            let name = format!("decoder.up.{level}");
            let from = channels.get(level + 1).copied().unwrap_or(widest);
            let block = (0..=config.layers_per_block)
                .map(|j| {
                    ResnetBlock::load(
                        &format!("{name}.block.{j}"),
                        if j == 0 { from } else { to },
                        to,
                        &config,
                        weights,
                    )
                })
                .collect::<Result<_>>()?;
            let upsample =
                if level == 0 { None } else { Some(weights.conv2d(&format!("{name}.upsample.conv"), to, to, 3)?) };
            up.push(UpLevel { block, upsample });
        }
        Ok(Self {
            post_quant_conv: if config.use_post_quant_conv {
                Some(weights.conv2d("post_quant_conv", latent, latent, 1)?)
            } else {
                None
            },
            conv_in: weights.conv2d("decoder.conv_in", widest, latent, 3)?,
            mid: Mid::load("decoder.mid", widest, &config, weights)?,
            up,
            norm_out: Norm::load("decoder.norm_out", channels[0], &config, weights)?,
            conv_out: weights.conv2d("decoder.conv_out", config.out_channels, channels[0], 3)?,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Model-space latents `[H/8, W/8, 16]` → `[H, W, 3]`, about [−1, 1]. `observe` runs between levels; its error
    /// (cancellation) ends the pass.
    ///
    /// # Errors
    /// Only what `observe` returns.
    pub fn decode(&self, latents: &Tensor, observe: &mut dyn FnMut() -> Result<()>) -> Result<Tensor> {
        let z = latents.affine(1.0 / self.config.scaling_factor, 0.0).affine(1.0, self.config.shift_factor);
        let z = self.post_quant_conv.as_ref().map_or(z.clone(), |conv| conv.same(&z));
        let mut h = self.mid.forward(&self.conv_in.same(&z));
        for level in self.up.iter().rev() {
            observe()?;
            for block in &level.block {
                h = block.forward(&h);
            }
            if let Some(conv) = &level.upsample {
                h = conv.upsampled(&h);
            }
        }
        observe()?;
        Ok(self.conv_out.norm_silu_same(self.norm_out.parameters(), &h, None))
    }
}
