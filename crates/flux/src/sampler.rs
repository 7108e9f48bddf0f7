//! Ways to follow the velocity from noise to picture: samplers, by ComfyUI's names.
//!
//! A sampler asks for a velocity here and there and moves the latents; whose velocity it is, and what becomes of a step's
//! result, is the [`Walk`]'s business. With x₀ = x − σ·v for what the model takes the picture to be, the formulas are those of
//! ComfyUI's `comfy/k_diffusion/sampling.py` for flow models. [`Sampler::Euler`] is BFL's and diffusers' own loop.

use std::{fmt, str::FromStr};

use tensor::Tensor;

use crate::error::{Error, Result};

/// How the velocity is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// Straight on from each noise level to the next: what the models were made for. `euler`.
    #[default]
    Euler,
    /// Along the mean of the velocities at both ends of a step: two evaluations each, but for the last. `heun`.
    Heun,
    /// Second order from the picture predicted one step ago: one evaluation a step. `dpmpp_2m`.
    Dpmpp2m,
    /// Further down than the next noise level, and up again with fresh noise. `euler_ancestral`.
    EulerAncestral,
    /// To the predicted picture, and up again with fresh noise: for models distilled to few steps. `lcm`.
    Lcm,
}

impl Sampler {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Euler, Self::Heun, Self::Dpmpp2m, Self::EulerAncestral, Self::Lcm];

    /// The name in text, which is ComfyUI's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::EulerAncestral => "euler_ancestral",
            Self::Lcm => "lcm",
        }
    }

    /// Velocities that are asked for in a path of `steps` steps.
    pub fn evaluations(self, steps: u32) -> u32 {
        match self {
            Self::Heun => (2 * steps).saturating_sub(1),
            Self::Euler | Self::Dpmpp2m | Self::EulerAncestral | Self::Lcm => steps,
        }
    }

    /// Whether fresh noise is added on the way.
    pub fn adds_noise(self) -> bool {
        matches!(self, Self::EulerAncestral | Self::Lcm)
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `sampler` if the name is none of those above.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|sampler| sampler.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::asked("sampler", format!("expected one of {names}, got '{name}'"))
        })
    }
}

/// Where in a path a velocity is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct At {
    /// Which step, from 0.
    pub(crate) step: usize,
    /// How many there are.
    pub(crate) steps: usize,
    /// Which evaluation of the step, from 0.
    pub(crate) stage: usize,
    /// The noise level.
    pub(crate) sigma: f32,
}

/// A step that is done.
pub(crate) struct Reached<'a> {
    /// Which step, from 0.
    pub(crate) step: usize,
    /// The noise level reached.
    pub(crate) sigma: f32,
    /// Latents, their noise level, and a velocity there: where it leads is what the picture would be.
    pub(crate) prediction: (&'a Tensor, f32, &'a Tensor),
}

/// What a sampler asks for on its way.
pub(crate) trait Walk {
    /// The velocity of `x`.
    fn velocity(&mut self, x: &Tensor, at: At) -> Result<Tensor>;

    /// Fresh noise ~ N(0, 1) of the shape of `x`.
    fn noise(&mut self) -> Tensor;

    /// A step is done and has come to `x`; gives the latents with which the next one begins.
    fn reached(&mut self, x: Tensor, reached: Reached<'_>) -> Tensor;
}

/// Follows `sigmas`, which fall to 0, from `x`.
pub(crate) fn follow(sampler: Sampler, mut x: Tensor, sigmas: &[f32], walk: &mut dyn Walk) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // The picture that the step before predicted, and how far that step went in −ln σ.
    let mut earlier: Option<(Tensor, f64)> = None;
    for (step, pair) in sigmas.windows(2).enumerate() {
        let [sigma, next] = [pair[0], pair[1]];
        let at = At { step, steps, stage: 0, sigma };
        let velocity = walk.velocity(&x, at)?;
        let predicted = || x.add_scaled(-sigma, &velocity);
        let moved = match sampler {
            Sampler::Heun if next > 0.0 => {
                let ahead = x.add_scaled(next - sigma, &velocity);
                let second = walk.velocity(&ahead, At { stage: 1, sigma: next, ..at })?;
                x.add_scaled(0.5 * (next - sigma), &velocity.add(&second))
            }
            Sampler::Euler | Sampler::Heun => x.add_scaled(next - sigma, &velocity),
            Sampler::Dpmpp2m => {
                let picture = predicted();
                let far = f64::from(sigma).ln() - f64::from(next).ln();
                let target = match &earlier {
                    Some((before, far_before)) if next > 0.0 => {
                        let share = (0.5 * far / far_before) as f32;
                        picture.affine(1.0 + share, 0.0).add_scaled(-share, before)
                    }
                    _ => picture.clone(),
                };
                earlier = Some((picture, far));
                let stay = next / sigma;
                target.affine(1.0 - stay, 0.0).add_scaled(stay, &x)
            }
            Sampler::EulerAncestral if next > 0.0 => {
                // As far below the next level as that is below this one; noise then lifts it to the level itself.
                let [from, to] = [f64::from(sigma), f64::from(next)];
                let down = to * to / from;
                let keep = (1.0 - to) / (1.0 - down);
                let stay = down / from;
                let fresh = (to * to - (down * keep).powi(2)).max(0.0).sqrt();
                let lowered =
                    predicted().affine((keep * (1.0 - stay)) as f32, 0.0).add_scaled((keep * stay) as f32, &x);
                lowered.add_scaled(fresh as f32, &walk.noise())
            }
            Sampler::Lcm if next > 0.0 => predicted().affine(1.0 - next, 0.0).add_scaled(next, &walk.noise()),
            Sampler::EulerAncestral | Sampler::Lcm => predicted(),
        };
        let prediction = if sampler.adds_noise() { (x, sigma) } else { (moved.clone(), next) };
        let reached = Reached { step, sigma: next, prediction: (&prediction.0, prediction.1, &velocity) };
        x = walk.reached(moved, reached);
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::noise::{Generator, Noise};

    #[derive(Deserialize)]
    struct Golden {
        paths: Vec<GoldenPath>,
    }

    #[derive(Deserialize)]
    struct GoldenPath {
        sampler: String,
        seed: String,
        sigmas: Vec<f32>,
        latents: Vec<Vec<f32>>,
    }

    /// `toy` of `make_samplers.py`.
    struct Toy {
        draws: Generator,
        evaluations: u32,
        begun: Vec<Vec<f32>>,
        shape: Tensor,
    }

    impl Walk for Toy {
        fn velocity(&mut self, x: &Tensor, at: At) -> Result<Tensor> {
            self.evaluations += 1;
            let (values, sigma) = (x.to_vec(), at.sigma);
            let last = values.len() as f32 - 1.0;
            let velocity = |(i, x): (usize, &f32)| {
                let target = 2.0 * i as f32 / last - 1.0;
                (x - target) * (0.75 + 0.5 * sigma) - 0.25 * x * x * x / (1.0 + x * x)
            };
            let velocities = values.iter().enumerate().map(velocity).collect();
            Ok(Tensor::from_vec(x.backend(), x.shape(), velocities))
        }

        fn noise(&mut self) -> Tensor {
            let n = self.shape.shape().count();
            Tensor::from_vec(self.shape.backend(), self.shape.shape(), self.draws.randn(n))
        }

        fn reached(&mut self, x: Tensor, _: Reached<'_>) -> Tensor {
            self.begun.push(x.to_vec());
            x
        }
    }

    #[test]
    fn trajectories_are_comfyui_s() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/samplers.json")).unwrap();
        assert_eq!(golden.paths.len(), 2 * Sampler::ALL.len());
        let backend = tensor::Device::Reference.open();
        for path in golden.paths {
            let sampler: Sampler = path.sampler.parse().unwrap();
            let seed: u64 = path.seed.parse().unwrap();
            let n = path.latents[0].len();
            let start = Tensor::from_vec(&backend, [n], Noise::CpuF32.normal(seed, n));
            let draws = Generator::new(Noise::CpuF32, seed + 1);
            let mut toy = Toy { draws, evaluations: 0, begun: vec![start.to_vec()], shape: start.clone() };
            let end = follow(sampler, start, &path.sigmas, &mut toy).unwrap();
            assert_eq!(toy.begun.last(), Some(&end.to_vec()));
            assert_eq!(toy.evaluations, sampler.evaluations(path.sigmas.len() as u32 - 1), "{sampler}");
            assert_eq!(toy.begun.len(), path.latents.len());
            for (step, (ours, theirs)) in toy.begun.iter().zip(&path.latents).enumerate() {
                let off = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off <= 5e-6, "{sampler}, seed {seed}, step {step}: off by {off:e}");
            }
        }
    }

    #[test]
    fn names_read_back() {
        for sampler in Sampler::ALL {
            assert_eq!(sampler.name().parse::<Sampler>().unwrap(), sampler);
        }
        let error = "dpm_fast".parse::<Sampler>().unwrap_err().to_string();
        assert!(error.starts_with("sampler") && error.contains("euler_ancestral"), "{error}");
    }
}
