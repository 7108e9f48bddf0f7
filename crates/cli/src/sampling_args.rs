//! How the way from noise to picture is followed: the flags that decide it.

use clap::Args;
use flux::{Request, sampler::Sampler, schedule::ScheduleKind};

/// Sampler and schedule.
#[derive(Args, Clone)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// How the velocity is followed: euler, heun (two evaluations a step), dpmpp_2m, euler_ancestral, lcm [default: euler]
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Whose noise schedule: reference (BFL, diffusers), or ComfyUI's simple, normal, beta, sgm_uniform, karras (with -sized,
    /// their shift follows the size, as with the node ModelSamplingFlux) [default: reference]
    #[arg(long, value_name = "NAME")]
    schedule: Option<ScheduleKind>,
}

impl SamplingArgs {
    /// Puts what was said into a request.
    pub(crate) fn apply(&self, request: &mut Request) {
        request.sampler = self.sampler.unwrap_or(request.sampler);
        request.schedule = self.schedule.unwrap_or(request.schedule);
    }
}
