//! ComfyUI's schedules: spacings of a table of shifted noise levels, or between its ends.
//!
//! Source: `comfy/samplers.py`, `comfy/model_sampling.py` (`ModelSamplingFlux`, `ModelSamplingDiscreteFlow`) and
//! `comfy/k_diffusion/sampling.py` (`get_sigmas_karras`).

use super::{SchedulerConfig, linspace};

/// One of ComfyUI's schedulers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Every so many entries of the table. `simple`.
    Simple,
    /// Evenly between the table's ends, then shifted once more. `normal`.
    Normal,
    /// Entries of the table at the quantiles of a beta distribution: close to each other at both ends. `beta`.
    Beta,
    /// As `normal`, but for the last of one step more. `sgm_uniform`.
    SgmUniform,
    /// Evenly between the seventh roots of the table's ends. `karras`.
    Karras,
}

impl Spacing {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Simple, Self::Normal, Self::Beta, Self::SgmUniform, Self::Karras];

    /// The name in text, which is ComfyUI's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Normal => "normal",
            Self::Beta => "beta",
            Self::SgmUniform => "sgm_uniform",
            Self::Karras => "karras",
        }
    }
}

impl SchedulerConfig {
    /// Noise levels without the final 0.
    pub(super) fn comfy(&self, spacing: Spacing, steps: usize, mu: f64) -> Vec<f32> {
        // The table is longer for models whose shift follows the size (`ModelSamplingFlux`) than for the others.
        let entries = if self.use_dynamic_shifting { 10_000 } else { 1_000 };
        let table = |entry: usize| self.shifted(mu, entry as f32 / entries as f32); // from 1
        let least = f64::from(table(1));
        let again = |t: f64| self.shifted(mu, t as f32);
        match spacing {
            Spacing::Simple => {
                let stride = entries as f64 / steps as f64;
                (0..steps).map(|step| table(entries - (step as f64 * stride) as usize)).collect()
            }
            Spacing::Normal => linspace(1.0, least, steps).map(again).collect(),
            Spacing::SgmUniform => linspace(1.0, least, steps + 1).take(steps).map(again).collect(),
            Spacing::Beta => {
                let quantile = |step| beta_quantile(1.0 - step as f64 / steps as f64);
                let mut picked: Vec<usize> =
                    (0..steps).map(|step| ((entries - 1) as f64 * quantile(step)).round_ties_even() as usize).collect();
                picked.dedup();
                picked.into_iter().map(|entry| table(entry + 1)).collect()
            }
            Spacing::Karras => {
                const RHO: f64 = 7.0;
                let ends = [1.0, least.powf(1.0 / RHO)];
                linspace(ends[0], ends[1], steps).map(|root| root.powf(RHO) as f32).collect()
            }
        }
    }
}

/// Where the beta distribution with both parameters 0.6 has `p` of its mass below.
fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p); // symmetric
    }
    if p == 0.5 {
        return p; // at once: half of an odd number of entries is rounded up, and one bit less would be rounded down
    }
    let target = p * 2.0 * beta_mass(0.5);
    // The mass grows with x: halved until nothing is left between the bounds.
    let [mut low, mut high] = [0.0, 0.5];
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if beta_mass(middle) < target {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// ∫ (t − t²)^(−0.4) from 0 to `x`, at most 0.5: the incomplete beta function as a power series.
fn beta_mass(x: f64) -> f64 {
    const A: f64 = 0.6;
    // x^A · Σ (1−A)ₙ xⁿ / (n! (A+n)): each term is less than half of the one before.
    let (mut sum, mut term) = (0.0, 1.0);
    for n in 0..60 {
        let n = f64::from(n);
        sum += term / (A + n);
        term *= (1.0 - A + n) * x / (n + 1.0);
    }
    x.powf(A) * sum
}
