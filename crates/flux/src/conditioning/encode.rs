//! What the autoencoder says of a request's pictures, once for all seeds; and where the way of one seed begins.

use std::sync::Arc;

use tensor::{Backend, Tensor};

use super::{
    Pictures, StrengthMapping,
    canvas::{self, Sizes},
};
use crate::{
    error::Result,
    latents::Latents,
    model::Kind,
    noise::{Generator, Noise},
    pixels::Rgb8,
    vae::{
        Encoder, VaeConfig,
        tiling::{self, Tiling},
    },
};

/// A distribution of latents, planar `[channels, height, width]`, not yet in model space.
struct Moments {
    size: [usize; 3],
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Moments {
    fn of(moments: &Tensor) -> Self {
        let [height, width, channels] = [0, 1, 2].map(|axis| moments.shape()[axis]);
        let mut mean = moments.permute(&[2, 0, 1]).to_vec();
        let mut deviation = mean.split_off(mean.len() / 2);
        for v in &mut deviation {
            *v = (0.5 * v.clamp(-30.0, 20.0)).exp();
        }
        Self { size: [channels / 2, height, width], mean, deviation }
    }

    /// In model space: the mean, or with a generator a sample of the distribution.
    fn latents(&self, config: &VaeConfig, generator: Option<&mut Generator>) -> Latents {
        let model = |z: f32| (z - config.shift_factor) * config.scaling_factor;
        let values = match generator {
            None => self.mean.iter().copied().map(model).collect(),
            Some(generator) => {
                let draws = generator.randn(self.mean.len());
                let moments = self.mean.iter().zip(&self.deviation);
                moments.zip(draws).map(|((mean, deviation), draw)| model(mean + deviation * draw)).collect()
            }
        };
        let [channels, height, width] = self.size;
        Latents { channels, height, width, values }
    }
}

/// What the autoencoder says of a request's pictures.
#[derive(Default)]
pub(crate) struct Seen {
    config: Option<VaeConfig>,
    /// The start; absent where nothing of it is left at the first noise level.
    image: Option<Moments>,
    control: Option<Moments>,
    /// For Fill: the start without what is painted, and the mask `[tokens, 4·factor²]`.
    masked: Option<(Moments, Tensor)>,
    /// For blending: 1 where a token's latents are painted anew, `[tokens, 4·latent channels]`.
    open: Option<Tensor>,
    /// Tokens of all references, `[tokens, 4·latent channels]`.
    references: Option<Tensor>,
    /// The references' tokens: rows, columns.
    grids: Vec<[usize; 2]>,
}

/// What [`Seen::encode`] needs to know of a request.
pub(crate) struct Job<'a> {
    pub(crate) pictures: &'a Pictures,
    pub(crate) kind: Kind,
    pub(crate) sizes: Sizes,
    /// The first noise level.
    pub(crate) sigma: f32,
    /// As the request says.
    pub(crate) vae_tiling: Option<bool>,
    /// Whether the plan works in tiles.
    pub(crate) tiled: bool,
}

impl Seen {
    /// Runs the encoder on each picture. `observe` runs between its levels; its error (cancellation) ends the work.
    pub(crate) fn encode(
        job: &Job<'_>,
        encoder: &Encoder,
        backend: &Arc<dyn Backend>,
        observe: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let config = encoder.config();
        let factor = config.factor();
        let mut moments = |picture: &Tensor| -> Result<Moments> {
            let [height, width] = [0, 1].map(|axis| picture.shape()[axis]);
            let tiles = tiling::encodes_in_tiles(job.vae_tiling, job.tiled, width, height);
            let moments = if tiles {
                Tiling::of_config(config).moments_watched(encoder, picture, observe)?
            } else {
                encoder.moments_watched(picture, observe)?
            };
            Ok(Moments::of(&moments))
        };
        let mut seen = Self { config: Some(config.clone()), ..Self::default() };
        if let Some(control) = &job.pictures.control {
            seen.control = Some(moments(&canvas::tensor(backend, &canvas::control(control, job.sizes)))?);
        }
        if let Some(start) = &job.pictures.start {
            let (picture, mask) = canvas::start(start, job.sizes);
            let blends = mask.is_some() && job.kind != Kind::Fill;
            if blends || job.sigma < 1.0 {
                seen.image = Some(moments(&canvas::tensor(backend, &picture))?);
            }
            if let Some(mask) = mask {
                if job.kind == Kind::Fill {
                    let masked = moments(&canvas::open_tensor(backend, &picture, &mask))?;
                    seen.masked = Some((masked, mask.channels(factor).pack(backend)));
                } else {
                    seen.open = Some(mask.latents(config.latent_channels, factor).pack(backend));
                }
            }
        }
        let mut tokens = Vec::new();
        for reference in &job.pictures.references {
            let picture: Rgb8 = canvas::reference(reference, job.pictures.references_as_they_are, 2 * factor as u32);
            let latents = moments(&canvas::tensor(backend, &picture))?.latents(config, None);
            seen.grids.push(latents.grid());
            tokens.push(latents.pack(backend));
        }
        if !tokens.is_empty() {
            seen.references = Some(Tensor::concat(&tokens.iter().collect::<Vec<_>>(), 0));
        }
        Ok(seen)
    }

    /// Tokens of all references, and how many rows and columns each has.
    pub(crate) fn references(&self) -> (Option<&Tensor>, &[[usize; 2]]) {
        (self.references.as_ref(), &self.grids)
    }

    /// Where the way of `seed` begins: draws in the order of diffusers' pipelines. `size` is that of the latents, `sigma` the
    /// first noise level; at 0 there is no way to go, and the start is the picture itself.
    pub(crate) fn begin(
        &self,
        pictures: &Pictures,
        noise: Noise,
        seed: u64,
        size: [usize; 3],
        sigma: f32,
        backend: &Arc<dyn Backend>,
    ) -> Beginning {
        let Some(config) = &self.config else {
            return Beginning { latents: Latents::noise(noise, seed, size), blend: None, channels: None };
        };
        let draws =
            pictures.start.as_ref().is_none_or(|start| start.mapping == StrengthMapping::Diffusers) && sigma > 0.0;
        let mut generator = Generator::new(noise, seed);
        let latents =
            |moments: &Moments, generator: &mut Generator| moments.latents(config, draws.then_some(generator));
        let control = self.control.as_ref().map(|moments| latents(moments, &mut generator));
        let image = self.image.as_ref().map(|moments| latents(moments, &mut generator));
        if image.is_none() && pictures.start.is_some() && draws {
            generator.randn(size.iter().product()); // a sample that nothing is left of
        }
        let [channels, height, width] = size;
        let noise = Latents { channels, height, width, values: generator.randn(size.iter().product()) };
        let masked = self.masked.as_ref().map(|(moments, mask)| {
            let picture = latents(moments, &mut generator).pack(backend);
            Tensor::concat(&[&picture, mask], 1)
        });
        let blend = self.open.as_ref().zip(image.as_ref()).map(|(open, image)| {
            let kept = open.affine(-1.0, 1.0);
            Blend { open: open.clone(), noise: kept.mul(&noise.pack(backend)), image: kept.mul(&image.pack(backend)) }
        });
        Beginning {
            latents: match image {
                None => noise,
                Some(image) => mixed(&noise, &image, sigma),
            },
            blend,
            channels: control.map(|control| control.pack(backend)).or(masked),
        }
    }
}

/// `sigma · noise + (1 − sigma) · image`.
fn mixed(noise: &Latents, image: &Latents, sigma: f32) -> Latents {
    let values = noise.values.iter().zip(&image.values).map(|(n, z)| sigma * n + (1.0 - sigma) * z).collect();
    Latents { values, ..*noise }
}

/// Where the way of one seed begins, and what accompanies it.
pub(crate) struct Beginning {
    /// At the first noise level.
    pub(crate) latents: Latents,
    /// What is kept of a picture.
    pub(crate) blend: Option<Blend>,
    /// Further channels of each token, `[tokens, …]`.
    pub(crate) channels: Option<Tensor>,
}

/// A picture of which a part is kept: after each step that part is set back to the picture at the step's noise level. All
/// `[tokens, 4·latent channels]`.
pub(crate) struct Blend {
    /// 1 where it is painted anew.
    open: Tensor,
    /// The noise, 0 where it is painted anew.
    noise: Tensor,
    /// The picture, 0 where it is painted anew.
    image: Tensor,
}

impl Blend {
    /// The latents after a step that reached `sigma`.
    pub(crate) fn after_step(&self, x: &Tensor, sigma: f32) -> Tensor {
        x.mul(&self.open).add_scaled(sigma, &self.noise).add_scaled(1.0 - sigma, &self.image)
    }
}
