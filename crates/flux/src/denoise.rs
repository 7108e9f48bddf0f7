//! From noise to latents: a sampler's path through the transformer's velocities, step by step before the caller's eyes.

use std::time::Instant;

use tensor::Tensor;

use crate::{
    acceleration::{self, Cache, Evaluations, Reuse},
    error::Result,
    latents::Latents,
    memory::{Residency, Stream},
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
    /// Which of the transformer's blocks stay in memory.
    pub(crate) residency: Residency,
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
    fn velocity(&self, flux: &Flux, img: &Tensor, at: At, reuse: &mut Reuse, watch: &dyn Watch) -> Result<Tensor> {
        let stream = Stream::new(flux.layout(), self.residency);
        let input = self.beside.with(img);
        let mut branch = |index, condition| {
            reuse.velocity(index, img, at, &mut |shortcut| {
                let mut between_blocks = |site, _: &Tensor| {
                    if let Some(block) = flux.block_done(site) {
                        stream.done(block);
                    }
                    watch::check(watch)
                };
                stream.begin();
                let velocity = flux.forward_with(&input, at.sigma, condition, &mut between_blocks, shortcut)?;
                Ok(self.beside.own(velocity, img))
            })
        };
        let positive = branch(0, self.condition)?;
        let Some((negative, scale)) = self.negative else { return Ok(positive) };
        let negative = branch(1, negative)?;
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
    /// Which velocities are reused.
    pub(crate) cache: Option<Cache>,
    /// Told of every velocity that was reused, and computes it all the same.
    pub(crate) audit: Option<&'a mut dyn FnMut(Reused)>,
    /// Which picture of the batch, from 0.
    pub(crate) picture: u32,
}

/// A velocity that was reused, beside the computed one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reused {
    /// Which picture of the batch, from 0.
    pub picture: u32,
    /// Which step, from 1.
    pub step: u32,
    /// The noise level.
    pub sigma: f32,
    /// Their distance relative to the computed one, L2.
    pub error: f64,
}

/// Follows `path` to its end. `preview` makes a picture of predicted latents.
pub(crate) fn denoise(
    flux: &Flux,
    path: Path<'_>,
    guided: &Guided<'_>,
    preview: &dyn Fn(&Latents) -> Option<Rgb8>,
    watch: &mut dyn Watch,
) -> Result<(Latents, Evaluations)> {
    let (start, sigmas, sampler) = (path.start, path.sigmas, path.sampler);
    let reuse = Reuse::new(path.cache, sampler.adds_noise());
    let (begun, evaluations) = (Instant::now(), Evaluations::default());
    let mut denoising =
        Denoising { flux, guided, path, preview, watch, reuse, begun, evaluations, reported: evaluations };
    let latents = sampler::follow(sampler, start.pack(guided.condition.txt.backend()), sigmas, &mut denoising)?;
    Ok((Latents::unpack(&latents, start.grid()), denoising.evaluations))
}

/// A path being followed.
struct Denoising<'a, 'p> {
    flux: &'a Flux,
    guided: &'a Guided<'a>,
    path: Path<'p>,
    preview: &'a dyn Fn(&Latents) -> Option<Rgb8>,
    watch: &'a mut dyn Watch,
    reuse: Reuse,
    /// When the step began.
    begun: Instant,
    evaluations: Evaluations,
    /// As many as the last step told of.
    reported: Evaluations,
}

impl Denoising<'_, '_> {
    /// Computes the velocity that was reused, and tells how far off it is. No time of the step is spent by that.
    fn audit(&mut self, reused: &Tensor, x: &Tensor, at: At) -> Result<()> {
        let Some(audit) = &mut self.path.audit else { return Ok(()) };
        let start = Instant::now();
        let none = &mut Reuse::new(None, false);
        let computed = self.guided.velocity(self.flux, x, at, none, self.watch)?;
        audit(Reused {
            picture: self.path.picture,
            step: at.step as u32 + 1,
            sigma: at.sigma,
            error: acceleration::distance(reused, &computed),
        });
        self.begun += start.elapsed();
        Ok(())
    }
}

impl Walk for Denoising<'_, '_> {
    fn velocity(&mut self, x: &Tensor, at: At) -> Result<Tensor> {
        if at.stage == 0 {
            self.begun = Instant::now();
        }
        let velocity = self.guided.velocity(self.flux, x, at, &mut self.reuse, self.watch)?;
        if self.reuse.reused() {
            self.evaluations.reused += 1;
            self.audit(&velocity, x, at)?;
        } else {
            self.evaluations.computed += 1;
        }
        Ok(velocity)
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
            evaluations: self.evaluations - self.reported,
            preview: &predicted,
        }));
        self.reported = self.evaluations;
        match self.path.after_step {
            Some(after_step) => after_step(x, reached.sigma),
            None => x,
        }
    }
}
