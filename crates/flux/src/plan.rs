//! What a picture would take, computed from shapes alone: bytes of each part, the most memory, the work of a step.
//!
//! Runs the model itself on the [`tensor::dry_run`] backend, so that a plan cannot drift away from the model.

use std::sync::Arc;

use tensor::{
    Backend, DType, Precision, Tensor,
    dry_run::{DryRun, Work},
};

use crate::{
    error::Result,
    model::ModelFiles,
    text::{
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
    },
    transformer::{Condition, Flux, FluxConfig, Rope},
    vae::{Decoder, VaeConfig},
    weights::Weights,
};

/// What a model and a size take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order a picture needs them.
    pub parts: Vec<PartPlan>,
    /// Tokens of text and picture that attend to each other.
    pub tokens: usize,
    /// Evaluations of the transformer for one picture.
    pub evaluations: u32,
}

/// What a part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct PartPlan {
    /// `clip_l`, `t5`, `transformer` (one evaluation), `vae`.
    pub name: &'static str,
    /// Numbers in it.
    pub parameters: u64,
    /// Bytes of its weights, which stay in the mapped file.
    pub weight_bytes: u64,
    /// Work and activations of one run.
    pub work: Work,
}

impl Plan {
    /// The most memory at one time: the largest of each part's weights and activations, parts used one after the other.
    pub fn peak_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.weight_bytes + p.work.peak_bytes).max().unwrap_or(0)
    }

    /// All weights and the largest activations: the most if nothing is given back.
    pub fn resident_bytes(&self) -> u64 {
        let weights: u64 = self.parts.iter().map(|p| p.weight_bytes).sum();
        weights + self.parts.iter().map(|p| p.work.peak_bytes).max().unwrap_or(0)
    }

    /// Arithmetic of a whole picture, FLOP.
    pub fn flop(&self) -> u64 {
        let times = |p: &PartPlan| if p.name == "transformer" { u64::from(self.evaluations) } else { 1 };
        self.parts.iter().map(|p| times(p) * p.work.flop()).sum()
    }
}

/// What is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// T5 tokens.
    pub t5_length: usize,
    /// Evaluations of the transformer: steps, twice that with classifier-free guidance.
    pub evaluations: u32,
}

/// Sizes of all parts.
struct Configs {
    clip: ClipConfig,
    t5: T5Config,
    flux: FluxConfig,
    vae: VaeConfig,
}

/// Plans with a model's own files; only their headers are read.
///
/// # Errors
/// If a file cannot be used.
pub fn plan(files: &ModelFiles, size: Size) -> Result<Plan> {
    let configs = Configs {
        clip: files.clip_l.clip_config()?,
        t5: files.t5.t5_config()?,
        flux: files.transformer.flux_config()?,
        vae: files.vae.vae_config()?,
    };
    let weights = |backend: &Arc<dyn Backend>| {
        [&files.clip_l, &files.t5, &files.transformer, &files.vae].map(|part| part.weights(backend, Precision::F32))
    };
    run(configs, weights, size)
}

/// Plans FLUX.1 \[dev\], Krea \[dev\] (or schnell, without guidance) with weights of this format, from no files at all.
///
/// # Errors
/// None that depend on the caller.
pub fn plan_flux1(guidance_embed: bool, dtype: DType, size: Size) -> Result<Plan> {
    let configs = Configs {
        clip: ClipConfig::large(),
        t5: T5Config::xxl(),
        flux: FluxConfig { guidance_embed, ..FluxConfig::dev() },
        vae: VaeConfig::flux(),
    };
    // The published autoencoder is f32.
    let dtypes = [dtype, dtype, dtype, DType::F32];
    run(configs, |backend| dtypes.map(|dtype| Weights::planned(dtype, backend.clone(), Precision::F32)), size)
}

fn run(configs: Configs, weights: impl Fn(&Arc<dyn Backend>) -> [Weights; 4], size: Size) -> Result<Plan> {
    let counter = DryRun::new();
    let backend: Arc<dyn Backend> = counter.clone();
    let [clip_weights, t5_weights, flux_weights, vae_weights] = weights(&backend);
    let mut parts = Vec::new();
    let mut measure = |name, weights: &Weights, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        counter.reset();
        work()?;
        let (parameters, weight_bytes) = (weights.parameters_taken(), weights.bytes_taken());
        parts.push(PartPlan { name, parameters, weight_bytes, work: counter.report() });
        Ok(())
    };
    let clip_length = configs.clip.max_position_embeddings;
    let clip = Clip::load(configs.clip, &clip_weights)?;
    measure("clip_l", &clip_weights, &mut || {
        clip.forward(&backend, &vec![0; clip_length]);
        Ok(())
    })?;
    let t5 = T5::load(configs.t5, &t5_weights)?;
    measure("t5", &t5_weights, &mut || t5.forward(&backend, &vec![0; size.t5_length], &mut |_, _| Ok(())).map(drop))?;

    let packed = 2 * configs.vae.factor();
    let grid = [size.height, size.width].map(|side| (side as usize).div_ceil(packed));
    let [rows, columns] = grid;
    let zeros =
        |shape: &[usize]| Tensor::from_vec(&backend, tensor::Shape::new(shape), vec![0.0; shape.iter().product()]);
    let config = configs.flux;
    let txt = zeros(&[size.t5_length, config.context_in_dim]);
    let pooled = zeros(&[1, config.vec_in_dim]);
    let img = zeros(&[rows * columns, config.in_channels]);
    let rope = Rope::new(&backend, &vec![[0.0; 3]; size.t5_length + rows * columns], config.axes_dim, config.theta);
    let flux = Flux::load(config, &flux_weights)?;
    measure("transformer", &flux_weights, &mut || {
        let condition = Condition { txt: &txt, pooled: &pooled, guidance: 1.0, rope: &rope };
        flux.forward(&img, 1.0, condition, &mut |_, _| Ok(())).map(drop)
    })?;
    let latents = zeros(&[2 * rows, 2 * columns, configs.vae.latent_channels]);
    let vae = Decoder::load(configs.vae, &vae_weights)?;
    measure("vae", &vae_weights, &mut || vae.decode(&latents, &mut || Ok(())).map(drop))?;
    Ok(Plan { parts, tokens: size.t5_length + rows * columns, evaluations: size.evaluations })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 12-billion-parameter model's shapes, checked without its weights.
    #[test]
    fn the_real_configuration() {
        let size = Size { width: 1024, height: 1024, t5_length: 512, evaluations: 28 };
        let plan = plan_flux1(true, DType::BF16, size).unwrap();
        let parameters: Vec<u64> = plan.parts.iter().map(|p| p.parameters).collect();
        assert_eq!(parameters[1..3], [4_762_310_656, 11_901_408_320]);
        let transformer = &plan.parts[2];
        assert_eq!(transformer.weight_bytes, 23_802_816_640);
        let tflop = transformer.work.flop() as f64 / 1e12;
        assert!((74.3..74.6).contains(&tflop), "{tflop} TFLOP a step");
        assert_eq!(plan.tokens, 4608);
    }
}
