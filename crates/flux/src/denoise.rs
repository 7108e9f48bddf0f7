//! From noise to latents along the velocity: Euler's method, and nothing else.

use std::time::Instant;

use tensor::Tensor;

use crate::{
    error::Result,
    latents::Latents,
    memory::Stream,
    pixels::Rgb8,
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
        stream.begin();
        let positive = flux.forward(img, sigma, self.condition, &mut between_blocks)?;
        let Some((negative, scale)) = self.negative else { return Ok(positive) };
        stream.begin();
        let negative = flux.forward(img, sigma, negative, &mut between_blocks)?;
        Ok(negative.add_scaled(scale, &positive.sub(&negative)))
    }
}

/// Follows `sigmas` (from 1 to 0) from `noise`. `preview` makes a picture of predicted latents.
pub(crate) fn denoise(
    flux: &Flux,
    noise: &Latents,
    sigmas: &[f32],
    guided: &Guided<'_>,
    picture: u32,
    preview: &dyn Fn(&Latents) -> Option<Rgb8>,
    watch: &mut dyn Watch,
) -> Result<Latents> {
    let backend = guided.condition.txt.backend();
    let mut img = noise.pack(backend);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let [sigma, next] = [pair[0], pair[1]];
        let start = Instant::now();
        let velocity = guided.velocity(flux, &img, sigma, watch)?;
        img = img.add_scaled(next - sigma, &velocity);
        let predicted = || {
            // x₀ = x_σ − σ·v: where the velocity leads.
            let latents = Latents::unpack(&img.add_scaled(-next, &velocity), noise.grid());
            preview(&latents)
        };
        watch.event(Event::Step(Step {
            picture,
            step: i as u32 + 1,
            steps: sigmas.len() as u32 - 1,
            sigma: next,
            seconds: start.elapsed().as_secs_f64(),
            preview: &predicted,
        }));
    }
    Ok(Latents::unpack(&img, noise.grid()))
}
