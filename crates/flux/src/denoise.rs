//! From noise to latents: a sampler's path through the transformer's velocities, step by step before the caller's eyes.

use std::time::Instant;

use tensor::Tensor;

use crate::{
    error::Result,
    latents::Latents,
    memory::Stream,
    noise::Generator,
    pixels::Rgb8,
    sampler::{self, At, Reached, Sampler, Walk},
    transformer::{Condition, Flux},
    watch::{self, Event, Step, Watch},
};

/// What the picture is and what it is not.
pub(crate) struct Guided<'a> {
    /// The prompt.
    pub(crate) condition: Condition<'a>,
    /// The negative prompt and the scale of classifier-free guidance.
    pub(crate) negative: Option<(Condition<'a>, f32)>,
    /// How many of the transformer's blocks stay in memory.
    pub(crate) resident_blocks: usize,
    /// What goes with the latents.
    pub(crate) beside: Beside<'a>,
}

/// What the transformer is given beside the latents; the same at every step.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beside<'a> {
    /// Further channels of each token: `[tokens, in_channels − 4·latent channels]`.
    pub(crate) channels: Option<&'a Tensor>,
    /// Further tokens, whose velocity nobody needs: `[reference tokens, 4·latent channels]`.
    pub(crate) references: Option<&'a Tensor>,
}

impl Beside<'_> {
    /// What `img_in` takes.
    fn with(&self, img: &Tensor) -> Tensor {
        let wide = self.channels.map(|channels| Tensor::concat(&[img, channels], 1));
        let img = wide.as_ref().unwrap_or(img);
        self.references.map_or_else(|| img.clone(), |references| Tensor::concat(&[img, references], 0))
    }

    /// The velocity of the latents alone.
    fn own(&self, velocity: Tensor, img: &Tensor) -> Tensor {
        if self.references.is_some() { velocity.slice(0, 0, img.shape()[0]) } else { velocity }
    }
}

impl Guided<'_> {
    /// The velocity; with classifier-free guidance `negative + scale · (positive − negative)`.
    fn velocity(&self, flux: &Flux, img: &Tensor, sigma: f32, watch: &dyn Watch) -> Result<Tensor> {
        let stream = Stream::new(flux.layout(), self.resident_blocks);
        let mut between_blocks = |site, _: &Tensor| {
            if let Some(block) = flux.block_done(site) {
                stream.done(block);
            }
            watch::check(watch)
        };
        let input = self.beside.with(img);
        stream.begin();
        let positive = flux.forward(&input, sigma, self.condition, &mut between_blocks)?;
        let positive = self.beside.own(positive, img);
        let Some((negative, scale)) = self.negative else { return Ok(positive) };
        stream.begin();
        let negative = flux.forward(&input, sigma, negative, &mut between_blocks)?;
        let negative = self.beside.own(negative, img);
        Ok(negative.add_scaled(scale, &positive.sub(&negative)))
    }
}

/// Where the way to a picture begins and how it goes on.
pub(crate) struct Path<'a> {
    /// Latents at the first of `sigmas`: noise, or a picture with noise.
    pub(crate) start: &'a Latents,
    /// Noise levels of the steps that are made, falling to 0.
    pub(crate) sigmas: &'a [f32],
    /// How the velocity is followed.
    pub(crate) sampler: Sampler,
    /// Where fresh noise comes from, if the sampler adds any.
    pub(crate) draws: Generator,
    /// Given the latents after a step, packed, and their noise level: those with which the next step begins.
    pub(crate) after_step: Option<&'a dyn Fn(Tensor, f32) -> Tensor>,
    /// Which picture of the batch, from 0.
    pub(crate) picture: u32,
}

/// Follows `path` to its end. `preview` makes a picture of predicted latents.
pub(crate) fn denoise(
    flux: &Flux,
    path: Path<'_>,
    guided: &Guided<'_>,
    preview: &dyn Fn(&Latents) -> Option<Rgb8>,
    watch: &mut dyn Watch,
) -> Result<Latents> {
    let (start, sigmas, sampler) = (path.start, path.sigmas, path.sampler);
    let mut denoising = Denoising { flux, guided, path, preview, watch, begun: Instant::now() };
    let latents = sampler::follow(sampler, start.pack(guided.condition.txt.backend()), sigmas, &mut denoising)?;
    Ok(Latents::unpack(&latents, start.grid()))
}

/// A path being followed.
struct Denoising<'a> {
    flux: &'a Flux,
    guided: &'a Guided<'a>,
    path: Path<'a>,
    preview: &'a dyn Fn(&Latents) -> Option<Rgb8>,
    watch: &'a mut dyn Watch,
    /// When the step began.
    begun: Instant,
}

impl Walk for Denoising<'_> {
    fn velocity(&mut self, x: &Tensor, at: At) -> Result<Tensor> {
        if at.stage == 0 {
            self.begun = Instant::now();
        }
        self.guided.velocity(self.flux, x, at.sigma, self.watch)
    }

    fn noise(&mut self) -> Tensor {
        let Latents { channels, height, width, .. } = *self.path.start;
        let values = self.path.draws.randn(channels * height * width);
        Latents { channels, height, width, values }.pack(self.guided.condition.txt.backend())
    }

    fn reached(&mut self, x: Tensor, reached: Reached<'_>) -> Tensor {
        let predicted = || {
            // x₀ = x_σ − σ·v: where the velocity leads.
            let (x, sigma, velocity) = reached.prediction;
            (self.preview)(&Latents::unpack(&x.add_scaled(-sigma, velocity), self.path.start.grid()))
        };
        self.watch.event(Event::Step(Step {
            picture: self.path.picture,
            step: reached.step as u32 + 1,
            steps: self.path.sigmas.len() as u32 - 1,
            sigma: reached.sigma,
            seconds: self.begun.elapsed().as_secs_f64(),
            preview: &predicted,
        }));
        match self.path.after_step {
            Some(after_step) => after_step(x, reached.sigma),
            None => x,
        }
    }
}
