//! How the way from noise to picture is followed: the flags that decide it.

use clap::Args;
use flux::{
    Request,
    acceleration::{Acceleration, Cache, CacheKind},
    sampler::Sampler,
    schedule::ScheduleKind,
};

/// Sampler, schedule and acceleration.
#[derive(Args, Clone)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// How the velocity is followed: euler, heun (two evaluations a step), dpmpp_2m, euler_ancestral, lcm
    /// [default: euler]
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Whose noise schedule: reference (BFL, diffusers), or ComfyUI's simple, normal, beta, sgm_uniform, karras (with -sized,
    /// their shift follows the size, as with the node ModelSamplingFlux)
    /// [default: reference]
    #[arg(long, value_name = "NAME")]
    schedule: Option<ScheduleKind>,
    /// Reuse velocities of earlier steps: none (exact), regular (1.4 times as fast, nearly the same picture), high (twice as
    /// fast, other details)
    #[arg(long, value_name = "LEVEL", value_parser = ["none", "regular", "high"], conflicts_with = "cache")]
    acceleration: Option<String>,
    /// The same by its parts: taylor (the velocity goes on along a line), easy (what is added to the latents stays),
    /// first-block (what the later blocks add stays)
    #[arg(long, value_name = "KIND", value_parser = CacheKind::ALL.map(CacheKind::name))]
    cache: Option<String>,
    /// The relative change up to which --cache reuses [default: taylor 0.1, easy 0.2, first-block 0.05]
    #[arg(long, value_name = "X", requires = "cache")]
    cache_threshold: Option<f32>,
}

impl SamplingArgs {
    /// Puts what was said into a request.
    ///
    /// # Errors
    /// [`flux::Error::Asked`] naming the flag.
    pub(crate) fn apply(&self, request: &mut Request) -> flux::Result<()> {
        request.sampler = self.sampler.unwrap_or(request.sampler);
        request.schedule = self.schedule.unwrap_or(request.schedule);
        request.acceleration = match (&self.cache, &self.acceleration) {
            (Some(kind), _) => match (kind.parse()?, self.cache_threshold) {
                (Acceleration::Cache(cache), Some(threshold)) => Acceleration::Cache(Cache { threshold, ..cache }),
                (usual, _) => usual,
            },
            (None, Some(level)) => level.parse()?,
            (None, None) => request.acceleration,
        };
        Ok(())
    }
}
