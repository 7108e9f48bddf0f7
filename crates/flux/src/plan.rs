//! What a picture takes, computed from shapes alone: work, and memory phase by phase under a limit.
//!
//! Runs the model itself on the [`tensor::dry_run`] backend, so that a plan cannot drift away from the model. [`Pipeline`]
//! generates by the same plan: which blocks stay, whether the transformer makes room for the autoencoder.
//!
//! [`Pipeline`]: crate::Pipeline

use std::sync::Arc;

use tensor::{
    Backend, DType, Device, Precision, Shape, Tensor,
    dry_run::{DryRun, Work},
};

use crate::{
    acceleration::{Acceleration, Cache},
    denoise::{Beside, Guided, Path, denoise},
    error::{Error, Result},
    latents::Latents,
    lora::{self, Loras, Model},
    memory::{self, Layout},
    model::ModelFiles,
    noise::{Generator, Noise},
    pipeline::LoadOptions,
    pixels::Rgb8,
    sampler::Sampler,
    styles::StyleEncoder,
    text::{
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
    },
    transformer::{Condition, Flux, FluxConfig, Rope},
    upscale::Upscaler,
    vae::{Decoder, Encoder, VaeConfig, tiling::Tiling},
    vision::SiglipConfig,
    weights::Weights,
};

/// The program itself, with the tables of both tokenizers, bytes. Measured: 38 to 47 MB with two threads.
const PROGRAM: u64 = 44 << 20;

/// Scratch memory and stack of a thread, bytes.
const THREAD: u64 = 4 << 20;

/// Above so many pixels a picture is decoded in tiles unless its request says otherwise: its activations take several gigabytes.
pub(crate) const TILED_FROM: u64 = 2048 * 1024;

/// Whether the encoder sees a picture of this size in tiles: as asked, or where the plan or its size say so.
pub(crate) fn encodes_in_tiles(asked: Option<bool>, tiled: bool, width: usize, height: usize) -> bool {
    asked.unwrap_or(tiled || (width * height) as u64 > TILED_FROM)
}

/// What a model and a size take.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order a picture needs them: `clip_l`, `t5`, `vision` (SigLIP and Redux, if pictures are seen), `vae_encoder` where
    /// there are pictures to encode, `transformer`, `vae`, and `upscaler` if it is enlarged.
    pub parts: Vec<PartPlan>,
    /// Tokens of text and picture that attend to each other.
    pub tokens: usize,
    /// Steps of one picture.
    pub steps: u32,
    /// How the velocity is followed.
    pub sampler: Sampler,
    /// Evaluations of the transformer for one picture.
    pub evaluations: u32,
    /// The arithmetic of the transformer.
    pub precision: Precision,
    /// The most memory that may be used, bytes; `None` where nobody says.
    pub limit: Option<u64>,
    /// The program, its tables and its threads, bytes: there all the time.
    pub overhead_bytes: u64,
    /// Whether the transformer's weights stay in memory while the picture is decoded.
    pub keeps_transformer: bool,
    /// Whether the picture is decoded in tiles.
    pub tiled: bool,
}

/// What a part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct PartPlan {
    /// `clip_l`, `t5`, `vision`, `vae_encoder`, `transformer` (one Euler step), `vae`, `upscaler`.
    pub name: &'static str,
    /// Numbers in it.
    pub parameters: u64,
    /// Bytes of its weights, which stay in the mapped file.
    pub weight_bytes: u64,
    /// Of these, bytes of each block in the order of use; the rest is in no block.
    pub blocks: Vec<u64>,
    /// How many blocks stay in memory; the others are given back as soon as they were used.
    pub resident_blocks: usize,
    /// Work of one run, and what lives while it runs: activations and operands in the kernels' own order.
    pub work: Work,
}

impl PartPlan {
    /// The most bytes of weights that are in memory at one time.
    pub fn resident_bytes(&self) -> u64 {
        let (resident, streamed) = self.blocks.split_at(self.resident_blocks);
        self.fixed_bytes() + resident.iter().sum::<u64>() + streamed.iter().max().unwrap_or(&0)
    }

    /// Bytes that are read again at every run.
    pub fn streamed_bytes(&self) -> u64 {
        self.blocks[self.resident_blocks..].iter().sum()
    }

    /// The most memory while it runs, beside the program.
    pub fn peak_bytes(&self) -> u64 {
        self.resident_bytes() + self.work.peak_bytes
    }

    fn fixed_bytes(&self) -> u64 {
        self.weight_bytes - self.blocks.iter().sum::<u64>()
    }

    /// Keeps as many blocks as fit into `bytes` beside the largest of the others; `false` if not even that one fits.
    fn keep_within(&mut self, bytes: u64) -> bool {
        let fits = |part: &Self| part.peak_bytes() <= bytes;
        self.resident_blocks = self.blocks.len();
        while !fits(self) && self.resident_blocks > 0 {
            self.resident_blocks -= 1;
        }
        fits(self)
    }
}

impl Plan {
    /// The most memory at one time: a promise, if nothing else in the process takes any.
    pub fn peak_bytes(&self) -> u64 {
        let kept =
            if self.keeps_transformer { self.part("transformer").map_or(0, PartPlan::resident_bytes) } else { 0 };
        let after = ["vae", "upscaler"];
        let of = |part: &PartPlan| part.peak_bytes() + if after.contains(&part.name) { kept } else { 0 };
        self.overhead_bytes + self.parts.iter().map(of).max().unwrap_or(0)
    }

    /// The least memory with which the same picture can be made: blocks come one by one.
    pub fn least_bytes(&self) -> u64 {
        let streamed = |part: &PartPlan| PartPlan { resident_blocks: 0, ..part.clone() }.peak_bytes();
        self.overhead_bytes + self.parts.iter().map(streamed).max().unwrap_or(0)
    }

    /// Bytes that are missing under the limit, if any are.
    pub fn shortfall(&self) -> Option<u64> {
        self.least_bytes().checked_sub(self.limit?).filter(|&missing| missing > 0)
    }

    /// Arithmetic of a whole picture, FLOP.
    pub fn flop(&self) -> u64 {
        let times =
            |p: &PartPlan| if p.name == "transformer" { u64::from(self.sampler.evaluations(self.steps)) } else { 1 };
        self.parts.iter().map(|p| times(p) * p.work.flop()).sum()
    }

    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<&PartPlan> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// Decides what stays in memory under the limit.
    fn fit(&mut self) {
        let Some(limit) = self.limit else { return };
        let share = limit.saturating_sub(self.overhead_bytes);
        for part in &mut self.parts {
            part.keep_within(share);
        }
        if self.peak_bytes() > limit {
            self.keeps_transformer = false;
        }
    }
}

/// What is planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// T5 tokens.
    pub t5_length: usize,
    /// Steps.
    pub steps: u32,
    /// How the velocity is followed: some samplers evaluate it twice a step.
    pub sampler: Sampler,
    /// How many velocities may be reused; the work is planned as if none were.
    pub acceleration: Acceleration,
    /// With classifier-free guidance: two evaluations a step.
    pub true_cfg: bool,
    /// Pictures that Redux makes tokens of.
    pub styles: u32,
    /// Decode in tiles: always, never, or (`None`) above 2048×1024 pixels and where it does not fit otherwise.
    pub vae_tiling: Option<bool>,
    /// How many times the picture is enlarged, if it is.
    pub upscale: Option<u32>,
    /// Pictures given.
    pub given: Given,
}

/// What of a request's pictures decides about memory and work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Bytes of the pictures, which lie in memory all the time.
    pub bytes: u64,
    /// Whether a picture of the request's size is encoded.
    pub encodes: bool,
    /// The largest reference, pixels: width, height.
    pub largest_reference: Option<[u32; 2]>,
    /// Tokens of all references.
    pub reference_tokens: usize,
}

impl Given {
    /// No pictures.
    pub const NONE: Self = Self { bytes: 0, encodes: false, largest_reference: None, reference_tokens: 0 };
}

/// Sizes of all parts.
#[derive(Clone)]
struct Configs {
    clip: ClipConfig,
    t5: T5Config,
    flux: FluxConfig,
    vae: VaeConfig,
    /// If pictures are seen.
    vision: Option<SiglipConfig>,
}

/// Weights of all parts.
struct PartWeights {
    /// CLIP, T5, the transformer, the autoencoder.
    four: [Weights; 4],
    /// The vision tower and the projector, if pictures are seen.
    vision: Option<[Weights; 2]>,
}

/// Plans with a model's own files; only their headers are read.
///
/// ```
/// use flux::{
///     LoadOptions, acceleration::Acceleration, model::{ModelSpec, SearchPaths}, plan::{self, Given, Size}, sampler::Sampler,
/// };
///
/// let files = ModelSpec::default().find(&SearchPaths::default())?; // the model in the box
/// let size = Size {
///     width: 96,
///     height: 96,
///     t5_length: 64,
///     steps: 4,
///     sampler: Sampler::Euler,
///     acceleration: Acceleration::None,
///     true_cfg: false,
///     styles: 0,
///     vae_tiling: None,
///     upscale: None,
///     given: Given::NONE,
/// };
/// let options = LoadOptions { memory_limit: Some(1 << 30), ..LoadOptions::default() };
/// let plan = plan::plan(&files, size, &options)?;
/// assert!(plan.shortfall().is_none() && plan.peak_bytes() < 1 << 30);
/// # Ok::<(), flux::Error>(())
/// ```
///
/// # Errors
/// If a file cannot be used.
pub fn plan(files: &ModelFiles, size: Size, options: &LoadOptions) -> Result<Plan> {
    plan_with(files, size, options, &Loras::default(), 0)
}

/// As [`plan`], with LoRAs, which keep `own_bytes` in memory beside their files.
pub(crate) fn plan_with(
    files: &ModelFiles,
    size: Size,
    options: &LoadOptions,
    loras: &Loras,
    own_bytes: u64,
) -> Result<Plan> {
    let style_files = if size.styles > 0 { Some(files.styles.find("style")?) } else { None };
    let configs = Configs {
        clip: files.clip_l.clip_config()?,
        t5: files.t5.t5_config()?,
        flux: files.transformer.flux_config()?,
        vae: files.vae.vae_config()?,
        vision: style_files.as_ref().map(|files| files.vision.siglip_config()).transpose()?,
    };
    let precision = options.precision.unwrap_or_else(|| files.auto_precision());
    let weights = |backend: &Arc<dyn Backend>| {
        let part = |part: &crate::model::Part, precision| part.weights(backend, precision);
        let gentle = precision.without_int8();
        PartWeights {
            four: [
                part(&files.clip_l, gentle),
                part(&files.t5, gentle),
                part(&files.transformer, precision),
                part(&files.vae, gentle),
            ],
            vision: style_files.as_ref().map(|files| [part(&files.vision, gentle), part(&files.projector, gentle)]),
        }
    };
    run(&configs, weights, size, precision, options, (loras, own_bytes))
}

/// Plans FLUX.1 \[dev\], Krea \[dev\] (or schnell, without guidance) with weights of this format, from no files at all.
///
/// # Errors
/// None that depend on the caller.
pub fn plan_flux1(guidance_embed: bool, dtype: DType, size: Size, options: &LoadOptions) -> Result<Plan> {
    let configs = Configs {
        clip: ClipConfig::large(),
        t5: T5Config::xxl(),
        flux: FluxConfig { guidance_embed, ..FluxConfig::dev() },
        vae: VaeConfig::flux(),
        vision: if size.styles > 0 { Some(SiglipConfig::so400m()) } else { None },
    };
    let auto = if dtype == DType::F32 { Precision::F32 } else { Precision::BF16 };
    let precision = options.precision.unwrap_or(auto);
    let gentle = precision.without_int8();
    // The published autoencoder is f32.
    let parts = [(dtype, gentle), (dtype, gentle), (dtype, precision), (DType::F32, gentle)];
    let weights = |backend: &Arc<dyn Backend>| {
        let part = |(dtype, precision)| Weights::planned(dtype, backend.clone(), precision);
        let vision = if size.styles > 0 { Some([(dtype, gentle); 2].map(part)) } else { None };
        PartWeights { four: parts.map(part), vision }
    };
    run(&configs, weights, size, precision, options, (&Loras::default(), 0))
}

fn run(
    configs: &Configs,
    weights: impl Fn(&Arc<dyn Backend>) -> PartWeights,
    size: Size,
    precision: Precision,
    options: &LoadOptions,
    loras: (&Loras, u64),
) -> Result<Plan> {
    let tiled = size.vae_tiling.unwrap_or(u64::from(size.width) * u64::from(size.height) > TILED_FROM);
    let mut plan = run_decoding(configs, &weights, size, precision, options, loras, tiled)?;
    if !tiled && size.vae_tiling.is_none() && plan.shortfall().is_some() {
        let in_tiles = run_decoding(configs, &weights, size, precision, options, loras, true)?;
        if in_tiles.least_bytes() < plan.least_bytes() {
            plan = in_tiles;
        }
    }
    Ok(plan)
}

fn run_decoding(
    configs: &Configs,
    weights: &impl Fn(&Arc<dyn Backend>) -> PartWeights,
    size: Size,
    precision: Precision,
    options: &LoadOptions,
    (loras, own_bytes): (&Loras, u64),
    tiled: bool,
) -> Result<Plan> {
    let configs = configs.clone();
    let counter = DryRun::new();
    let backend: Arc<dyn Backend> = counter.clone();
    let PartWeights { four: [clip_weights, t5_weights, flux_weights, vae_weights], vision } = weights(&backend);
    let clip_length = configs.clip.max_position_embeddings;
    let (latent_channels, factor) = (configs.vae.latent_channels, configs.vae.factor());
    let grid = [size.height, size.width].map(|side| (side as usize).div_ceil(2 * factor));
    let [rows, columns] = grid;

    // As in a pipeline: all parts are loaded, which puts their small tensors into memory, before the first one runs.
    let mut clip = Clip::load(configs.clip, &clip_weights)?;
    let mut t5 = T5::load(configs.t5, &t5_weights)?;
    let mut flux = Flux::load(configs.flux, &flux_weights)?;
    if !loras.used.is_empty() {
        let mut models = [Model::transformer(&mut flux), Model::clip(&mut clip), Model::t5(&mut t5)];
        lora::apply(&mut models, loras, &backend)?;
        flux.widen();
    }
    let vae = Decoder::load(configs.vae, &vae_weights)?;
    let whole = |weights: &Weights| Layout { fixed: weights.extent(), blocks: Vec::new() };
    let layouts = [clip.layout().clone(), t5.layout().clone(), flux.layout().clone(), whole(&vae_weights)];
    let encoded = encoded(&size, grid, factor);
    let encoder = if encoded.is_empty() {
        None
    } else {
        let PartWeights { four: [.., weights], .. } = weights(&backend);
        let encoder = Encoder::load(vae.config().clone(), &weights)?;
        let layout = whole(&weights);
        Some((encoder, weights, layout))
    };

    let mut parts = Vec::new();
    let mut measure = |name, weights: &Weights, layout: &Layout, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        counter.reset();
        work()?;
        parts.push(PartPlan {
            name,
            parameters: weights.parameters_taken(),
            weight_bytes: layout.bytes(),
            blocks: layout.blocks.iter().map(memory::Extent::bytes).collect(),
            resident_blocks: layout.blocks.len(),
            work: counter.report(),
        });
        Ok(())
    };
    measure("clip_l", &clip_weights, &layouts[0], &mut || {
        clip.forward(&backend, &vec![0; clip_length]);
        Ok(())
    })?;
    measure("t5", &t5_weights, &layouts[1], &mut || {
        t5.forward(&backend, &vec![0; size.t5_length], &mut |_, _| Ok(())).map(drop)
    })?;

    let mut style_tokens = 0;
    if let (Some(config), Some(weights)) = (configs.vision, &vision) {
        style_tokens = config.tokens() * size.styles as usize;
        let picture = Rgb8::new(1, 1, vec![0; 3]);
        let encoder = StyleEncoder::of(config, flux.config().context_in_dim, weights)?;
        let whole = Layout { fixed: encoder.extent().clone(), blocks: Vec::new() };
        measure("vision", &weights[0], &whole, &mut || {
            // All tokens are kept until they stand behind the text.
            let tokens: Vec<Tensor> = (0..size.styles).map(|_| encoder.tokens(&backend, &picture)).collect();
            Tensor::concat(&tokens.iter().collect::<Vec<_>>(), 0);
            Ok(())
        })?;
    }

    let zeros = |shape: &[usize]| Tensor::from_vec(&backend, Shape::new(shape), vec![0.0; shape.iter().product()]);
    if let Some((encoder, weights, layout)) = &encoder {
        let tiling = Tiling::of_config(encoder.config());
        measure("vae_encoder", weights, layout, &mut || {
            for &[width, height] in &encoded {
                let tiles = encodes_in_tiles(size.vae_tiling, tiled, width, height);
                let side = |side: usize| if tiles { side.min(tiling.tile * factor) } else { side };
                // The whole picture lies beside its tiles.
                let whole = zeros(&[height, width, 3]);
                encoder.moments(&if tiles { zeros(&[side(height), side(width), 3]) } else { whole.clone() });
            }
            Ok(())
        })?;
    }
    let config = flux.config();
    // Where references lie does not matter here, how many tokens they have does.
    let references = [[1, size.given.reference_tokens]];
    let tokens = |count: usize, channels: usize| (count * channels > 0).then(|| zeros(&[count, channels]));
    let latents = 4 * latent_channels;
    let channels = tokens(rows * columns, config.in_channels.saturating_sub(latents));
    let reference_tokens = tokens(size.given.reference_tokens, latents);
    // Pictures stand behind the prompt alone.
    let prompt = |tokens| {
        let rope = Rope::with_references(&backend, tokens, grid, &references, config.axes_dim, config.theta);
        (zeros(&[tokens, config.context_in_dim]), zeros(&[1, config.vec_in_dim]), rope)
    };
    let tokens = [size.t5_length + style_tokens, size.t5_length];
    let prompts: Vec<_> = tokens.into_iter().take(if size.true_cfg { 2 } else { 1 }).map(prompt).collect();
    let mut conditions =
        prompts.iter().map(|(txt, pooled, rope)| Condition { txt, pooled, guidance_argument: 1000.0, rope });
    let Some(positive) = conditions.next() else { unreachable!("there is at least one prompt") };
    let guided = Guided {
        condition: positive,
        negative: conditions.next().map(|negative| (negative, 2.0)),
        resident_blocks: layouts[2].blocks.len(),
        beside: Beside { channels: channels.as_ref(), references: reference_tokens.as_ref() },
    };
    let count = latent_channels * 4 * rows * columns;
    let noise = Latents { channels: latent_channels, height: 2 * rows, width: 2 * columns, values: vec![0.0; count] };
    let along = |sampler, cache: Option<Cache>, sigmas: &[f32]| {
        let draws = Generator::new(Noise::default(), 0);
        let path = Path { start: &noise, sigmas, sampler, draws, after_step: None, cache, audit: None, picture: 0 };
        denoise(&flux, path, &guided, &|_| None, &mut ()).map(drop)
    };
    measure("transformer", &flux_weights, &layouts[2], &mut || along(Sampler::Euler, None, &[1.0, 0.0]))?;
    measure("vae", &vae_weights, &layouts[3], &mut || {
        let tiling = Tiling::of(&vae);
        let [height, width] = [2 * rows, 2 * columns].map(|side| if tiled { side.min(tiling.tile) } else { side });
        let tile = zeros(&[height, width, latent_channels]);
        vae.decode(&tile, &mut || Ok(())).map(drop)
    })?;
    if tiled && let Some(vae) = parts.last_mut() {
        // The whole picture and two rows of tiles, f32.
        vae.work.peak_bytes += 4 * 3 * (4 * rows * columns * factor * factor) as u64 * 3;
    }
    let encoders = encoder.iter().map(|(_, _, layout)| layout);
    let mut pinned: u64 = layouts.iter().chain(encoders).map(Layout::pinned_bytes).sum::<u64>() + own_bytes;
    if let Some(scale) = size.upscale {
        let upscaler = Upscaler::find(scale, options.upscaler.as_deref(), &backend)?;
        counter.reset();
        let pictures = upscaler.rehearse(size.width, size.height)?;
        let mut work = counter.report();
        work.peak_bytes += pictures;
        pinned += upscaler.extent().pinned_bytes();
        parts.push(PartPlan {
            name: "upscaler",
            parameters: upscaler.parameters(),
            weight_bytes: upscaler.extent().bytes(),
            blocks: Vec::new(),
            resident_blocks: 0,
            work,
        });
    }

    if let Some([_, projector]) = &vision
        && let Some(part) = parts.iter_mut().find(|part| part.name == "vision")
    {
        part.parameters += projector.parameters_taken();
        part.weight_bytes += projector.bytes_taken();
    }
    let cache = size.acceleration.cache();
    if (size.sampler != Sampler::Euler || cache.is_some())
        && let Some(transformer) = parts.iter_mut().find(|part| part.name == "transformer")
    {
        // What is remembered between steps comes on top; the work is still that of one evaluation. Of zeros nothing is reused.
        counter.reset();
        along(size.sampler, cache, &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0])?;
        transformer.work.peak_bytes = transformer.work.peak_bytes.max(counter.report().peak_bytes);
    }

    // What is kept of a picture that is blended in: where, its latents, their noise.
    let blended = if size.given.encodes { 3 * 4 * (rows * columns * latents) as u64 } else { 0 };
    let mut plan = Plan {
        parts,
        tokens: size.t5_length + style_tokens + rows * columns + size.given.reference_tokens,
        steps: size.steps,
        sampler: size.sampler,
        evaluations: size.sampler.evaluations(size.steps) * if size.true_cfg { 2 } else { 1 },
        precision,
        limit: options.memory_limit.or_else(memory::available),
        overhead_bytes: overhead(options.device) + pinned + size.given.bytes + blended,
        keeps_transformer: true,
        tiled,
    };
    plan.fit();
    Ok(plan)
}

/// Width and height of what the encoder sees: the picture of the request's size, the largest reference.
fn encoded(size: &Size, grid: [usize; 2], factor: usize) -> Vec<[usize; 2]> {
    let [rows, columns] = grid;
    let own = size.given.encodes.then_some([2 * columns * factor, 2 * rows * factor]);
    own.into_iter().chain(size.given.largest_reference.map(|sides| sides.map(|side| side as usize))).collect()
}

/// The program and its threads, bytes.
pub(crate) fn overhead(device: Device) -> u64 {
    let threads = match device {
        Device::Cpu { threads } => {
            threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        }
        Device::Reference | Device::DryRun => 1,
    };
    PROGRAM + THREAD * threads as u64
}

/// The refusal of a job that does not fit, with what would. `at` plans another size.
pub(crate) fn refuse(plan: &Plan, size: Size, at: impl Fn(Size) -> Result<Plan>) -> Error {
    let (Some(missing), Some(limit)) = (plan.shortfall(), plan.limit) else {
        return Error::asked("memory_limit", "is enough");
    };
    let smaller = [0.875, 0.75, 0.625, 0.5, 0.375, 0.25].map(|scale| {
        let side = |side: u32| ((f64::from(side) * scale / 16.0) as u32).max(1) * 16;
        Size { width: side(size.width), height: side(size.height), ..size }
    });
    let fitting = smaller.into_iter().find(|&smaller| at(smaller).is_ok_and(|plan| plan.shortfall().is_none()));
    let largest = plan.parts.iter().max_by_key(|part| PartPlan { resident_blocks: 0, ..(*part).clone() }.peak_bytes());
    let mut hints = vec![format!("--memory-limit {}", shown(plan.least_bytes()))];
    if let Some(Size { width, height, .. }) = fitting {
        hints.push(format!("a picture of {width}×{height}"));
    }
    match largest {
        Some(part) if part.name == "vae" && size.vae_tiling == Some(false) => hints.push("--vae-tiling on".into()),
        Some(part) if part.name == "t5" => hints.push("a smaller --t5-length, or T5 in a smaller format".into()),
        Some(part) if part.name == "transformer" => hints.push("the transformer in a smaller format".into()),
        _ => {}
    }
    let problem = format!(
        "{}×{} pixels take {} while the {} works, {} more than the {} there are; hint: {}",
        size.width,
        size.height,
        shown(plan.least_bytes()),
        largest.map_or("model", |part| part.name),
        shown(missing),
        shown(limit),
        hints.join(", or ")
    );
    Error::asked("memory_limit", problem)
}

/// `1.25GB`, rounded up so that it may be asked for.
pub(crate) fn shown(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1_000_000_000 { (1e9, "GB") } else { (1e6, "MB") };
    format!("{}{name}", (bytes as f64 / unit * 100.0).ceil() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        width: 1024,
        height: 1024,
        t5_length: 512,
        steps: 28,
        sampler: Sampler::Euler,
        acceleration: Acceleration::None,
        true_cfg: false,
        styles: 0,
        vae_tiling: None,
        upscale: None,
        given: Given::NONE,
    };

    fn limited(dtype: DType, size: Size, limit: u64) -> Plan {
        let device = Device::Cpu { threads: Some(2) };
        let options = LoadOptions { memory_limit: Some(limit), device, ..LoadOptions::default() };
        plan_flux1(true, dtype, size, &options).unwrap()
    }

    /// The 12-billion-parameter model's shapes, checked without its weights.
    #[test]
    fn the_real_configuration() {
        let plan = limited(DType::BF16, SIZE, 100_000_000_000);
        let parameters: Vec<u64> = plan.parts.iter().map(|p| p.parameters).collect();
        assert_eq!(parameters[1..3], [4_762_310_656, 11_901_408_320]);
        let transformer = &plan.parts[2];
        assert_eq!(transformer.weight_bytes, 23_802_816_640);
        let tflop = transformer.work.flop() as f64 / 1e12;
        assert!((74.3..74.6).contains(&tflop), "{tflop} TFLOP a step");
        assert_eq!(plan.tokens, 4608);
        assert!(plan.keeps_transformer && !plan.tiled && plan.shortfall().is_none());
        assert!(plan.parts.iter().all(|part| part.streamed_bytes() == 0));
    }

    #[test]
    fn a_limit_keeps_as_many_blocks_as_fit() {
        let size = Size { width: 512, height: 512, ..SIZE };
        let mut kept = Vec::new();
        for limit in [8, 12, 16, 24, 32] {
            let limit = limit * 1_000_000_000;
            let plan = limited(DType::BF16, size, limit);
            assert!(plan.peak_bytes() <= limit, "{} of {limit}", plan.peak_bytes());
            let transformer = plan.part("transformer").unwrap();
            // One block more would not fit.
            let room = limit - plan.overhead_bytes - transformer.peak_bytes();
            assert!(transformer.streamed_bytes() == 0 || room < *transformer.blocks.iter().max().unwrap(), "{room}");
            kept.push(transformer.resident_blocks);
        }
        assert!(kept.is_sorted() && kept[0] < kept[1] && kept[4] == 57, "{kept:?}");
    }

    #[test]
    fn a_job_that_cannot_fit_is_told_what_would() {
        let size = Size { vae_tiling: Some(false), ..SIZE };
        let limit = 2_000_000_000;
        let plan = limited(DType::BF16, size, limit);
        assert!(plan.shortfall().is_some_and(|missing| missing == plan.least_bytes() - limit));
        let error = refuse(&plan, size, |size| Ok(limited(DType::BF16, size, limit))).to_string();
        for word in ["memory_limit: 1024×1024", "vae", "2GB", "--memory-limit", "a picture of", "--vae-tiling on"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
