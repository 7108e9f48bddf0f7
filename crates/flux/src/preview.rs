//! Rough pictures of unfinished latents: through TAEF1 where its weights are, otherwise by a linear map.

use std::sync::Arc;

use tensor::{Backend, Precision, Tensor};

use crate::{
    error::Result,
    latents::Latents,
    model::Part,
    pixels::{self, Range, Rgb8},
    vae::{Decoder, VaeConfig, tiny::TinyDecoder},
};

/// The cheap way that a model has.
#[derive(Debug)]
pub(crate) enum Previewer {
    /// TAEF1, at full size.
    Tiny(TinyDecoder),
    /// A linear map of FLUX.1's 16 channels, one pixel a latent.
    Linear,
    /// The model's own decoder, which is small.
    Own,
    /// None.
    Nothing,
}

impl Previewer {
    /// What latents of this autoencoder can be seen with. `tiny` are TAEF1's weights, if they are there.
    pub(crate) fn load(
        tiny: Option<&Part>,
        vae: &VaeConfig,
        backend: &Arc<dyn Backend>,
        precision: Precision,
    ) -> Result<Self> {
        if let Some(part) = tiny {
            let tiny = TinyDecoder::load(&part.weights(backend, precision))?;
            if tiny.latent_channels() == vae.latent_channels {
                return Ok(Self::Tiny(tiny));
            }
        }
        // A narrow decoder is fast enough to be its own preview; the linear map is of FLUX.1's own latents.
        let flux = VaeConfig::flux();
        Ok(if vae.block_out_channels.iter().all(|&channels| channels <= 64) {
            Self::Own
        } else if (vae.latent_channels, &vae.block_out_channels) == (flux.latent_channels, &flux.block_out_channels) {
            Self::Linear
        } else {
            Self::Nothing
        })
    }

    /// Whether a preview takes as much memory as a picture.
    pub(crate) fn decodes(&self) -> bool {
        matches!(self, Self::Tiny(_) | Self::Own)
    }

    /// A preview of model-space latents.
    pub(crate) fn render(&self, latents: &Latents, vae: &Decoder, backend: &Arc<dyn Backend>) -> Option<Rgb8> {
        match self {
            Self::Tiny(decoder) => {
                let picture = decoder.decode(&latents.channels_last(backend));
                pixels::from_tensor(&picture, Range::ZeroToOne)
            }
            Self::Linear => Some(linear(latents)),
            Self::Own => {
                let picture: Tensor = vae.decode(&latents.channels_last(backend), &mut || Ok(())).ok()?;
                pixels::from_tensor(&picture, Range::MinusOneToOne)
            }
            Self::Nothing => None,
        }
    }
}

/// Red, green and blue of each channel. Source: ComfyUI, `latent_formats.Flux.latent_rgb_factors`.
const FACTORS: [[f32; 3]; 16] = [
    [-0.0346, 0.0244, 0.0681],
    [0.0034, 0.0210, 0.0687],
    [0.0275, -0.0668, -0.0433],
    [-0.0174, 0.0160, 0.0617],
    [0.0859, 0.0721, 0.0329],
    [0.0004, 0.0383, 0.0115],
    [0.0405, 0.0861, 0.0915],
    [-0.0236, -0.0185, -0.0259],
    [-0.0245, 0.0250, 0.1180],
    [0.1008, 0.0755, -0.0421],
    [-0.0515, 0.0201, 0.0011],
    [0.0428, -0.0012, -0.0036],
    [0.0817, 0.0765, 0.0749],
    [-0.1264, -0.0522, -0.1103],
    [-0.0280, -0.0881, -0.0499],
    [-0.1262, -0.0982, -0.0778],
];
const BIAS: [f32; 3] = [-0.0329, -0.0718, -0.0851];

fn linear(latents: &Latents) -> Rgb8 {
    let plane = latents.height * latents.width;
    let mut pixels = Vec::with_capacity(plane * 3);
    for i in 0..plane {
        for colour in 0..3 {
            let value: f32 = (0..latents.channels.min(FACTORS.len()))
                .map(|channel| FACTORS[channel][colour] * latents.values[channel * plane + i])
                .sum();
            pixels.push(pixels::to_u8((value + BIAS[colour] + 1.0) / 2.0));
        }
    }
    Rgb8::new(latents.width as u32, latents.height as u32, pixels)
}
