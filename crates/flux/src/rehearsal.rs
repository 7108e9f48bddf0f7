//! Runs the model itself on the [`tensor::dry_run`] backend, so that a [`Plan`] cannot drift away from the model.

use std::sync::Arc;

use tensor::{Backend, DType, Precision, Shape, Tensor, dry_run::DryRun};

use crate::{
    acceleration::Cache,
    denoise::{Beside, Guided, Path, denoise},
    error::Result,
    latents::Latents,
    lora::{self, Loras},
    memory::{self, Layout, Residency},
    model::ModelFiles,
    noise::{Generator, Noise},
    options::LoadOptions,
    pixels::Rgb8,
    plan::{PartPlan, Plan, Workload, overhead},
    sampler::Sampler,
    styles::StyleEncoder,
    text::{
        clip::{Clip, ClipConfig},
        t5::{T5, T5Config},
    },
    transformer::{Condition, Flux, FluxConfig, Rope},
    upscale::Upscaler,
    vae::{
        Decoder, Encoder, VaeConfig,
        tiling::{self, Tiling},
    },
    vision::SiglipConfig,
    weights::Weights,
};

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
/// use flux::{LoadOptions, model::{ModelSpec, SearchPaths}, plan::Workload, rehearsal};
///
/// let files = ModelSpec::default().find(&SearchPaths::default())?; // the model in the box
/// let workload = Workload { steps: 4, ..Workload::new(&files.defaults) };
/// let options = LoadOptions { memory_limit: Some(1 << 30), ..LoadOptions::default() };
/// let plan = rehearsal::plan(&files, workload, &options)?;
/// assert!(plan.shortfall().is_none() && plan.peak_bytes() < 1 << 30);
/// # Ok::<(), flux::Error>(())
/// ```
///
/// # Errors
/// If a file cannot be used.
pub fn plan(files: &ModelFiles, workload: Workload, options: &LoadOptions) -> Result<Plan> {
    plan_with(files, workload, options, &Loras::default(), 0)
}

/// As [`plan`], with LoRAs, which keep `own_bytes` in memory beside their files.
pub(crate) fn plan_with(
    files: &ModelFiles,
    workload: Workload,
    options: &LoadOptions,
    loras: &Loras,
    own_bytes: u64,
) -> Result<Plan> {
    let style_files = if workload.styles > 0 { Some(files.styles.find("style")?) } else { None };
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
    run(&configs, weights, workload, precision, options, (loras, own_bytes))
}

/// Plans FLUX.1 \[dev\], Krea \[dev\] (or schnell, without guidance) with weights of this format, from no files at all.
///
/// # Errors
/// None that depend on the caller.
pub fn plan_flux1(guidance_embed: bool, dtype: DType, workload: Workload, options: &LoadOptions) -> Result<Plan> {
    let configs = Configs {
        clip: ClipConfig::large(),
        t5: T5Config::xxl(),
        flux: FluxConfig { guidance_embed, ..FluxConfig::dev() },
        vae: VaeConfig::flux(),
        vision: if workload.styles > 0 { Some(SiglipConfig::so400m()) } else { None },
    };
    let auto = if dtype == DType::F32 { Precision::F32 } else { Precision::BF16 };
    let precision = options.precision.unwrap_or(auto);
    let gentle = precision.without_int8();
    // The published autoencoder is f32.
    let parts = [(dtype, gentle), (dtype, gentle), (dtype, precision), (DType::F32, gentle)];
    let weights = |backend: &Arc<dyn Backend>| {
        let part = |(dtype, precision)| Weights::planned(dtype, backend.clone(), precision);
        let vision = if workload.styles > 0 { Some([(dtype, gentle); 2].map(part)) } else { None };
        PartWeights { four: parts.map(part), vision }
    };
    run(&configs, weights, workload, precision, options, (&Loras::default(), 0))
}

fn run(
    configs: &Configs,
    weights: impl Fn(&Arc<dyn Backend>) -> PartWeights,
    workload: Workload,
    precision: Precision,
    options: &LoadOptions,
    loras: (&Loras, u64),
) -> Result<Plan> {
    let tiled =
        workload.vae_tiling.unwrap_or(u64::from(workload.width) * u64::from(workload.height) > tiling::TILED_FROM);
    let mut plan = run_decoding(configs, &weights, workload, precision, options, loras, tiled)?;
    if !tiled && workload.vae_tiling.is_none() && plan.shortfall().is_some() {
        let in_tiles = run_decoding(configs, &weights, workload, precision, options, loras, true)?;
        if in_tiles.least_bytes() < plan.least_bytes() {
            plan = in_tiles;
        }
    }
    Ok(plan)
}

fn run_decoding(
    configs: &Configs,
    weights: &impl Fn(&Arc<dyn Backend>) -> PartWeights,
    workload: Workload,
    precision: Precision,
    options: &LoadOptions,
    (loras, own_bytes): (&Loras, u64),
    tiled: bool,
) -> Result<Plan> {
    let counter = DryRun::new();
    let backend: Arc<dyn Backend> = counter.clone();
    let factor = configs.vae.factor();
    let grid = [workload.height, workload.width].map(|side| (side as usize).div_ceil(2 * factor));
    let encoded = encoded(&workload, grid, factor);
    let part_weights = weights(&backend);
    let encoder_weights = (!encoded.is_empty()).then(|| {
        let PartWeights { four: [.., weights], .. } = weights(&backend);
        weights
    });
    let models = Models::load(configs, &part_weights, encoder_weights, loras, &backend)?;

    let mut meter = Meter { counter, parts: Vec::new() };
    meter.text_encoders(&models, &part_weights, configs, &workload, &backend)?;
    let style_tokens = match (&configs.vision, &part_weights.vision) {
        (Some(config), Some(weights)) => meter.styles(&models, config, weights, &workload, &backend)?,
        _ => 0,
    };
    if let Some(encoder) = &models.encoder {
        meter.encoder(encoder, &encoded, &workload, tiled, &backend)?;
    }
    // They live until the picture is done, as in a pipeline.
    let inputs = Inputs::new(&models, configs, &workload, grid, style_tokens, &backend);
    let [_, _, flux_weights, vae_weights] = &part_weights.four;
    let [_, _, flux_layout, vae_layout] = &models.layouts;
    meter.measure("transformer", flux_weights, flux_layout, || {
        inputs.denoised(&models, Sampler::Euler, None, &[1.0, 0.0])
    })?;
    meter.measure("vae", vae_weights, vae_layout, || models.decode(grid, tiled, &backend))?;
    if tiled && let Some(vae) = meter.part("vae") {
        // The whole picture and two rows of tiles, f32.
        let [rows, columns] = grid;
        vae.work.peak_bytes += 4 * 3 * (4 * rows * columns * factor * factor) as u64 * 3;
    }
    let mut pinned = models.pinned_bytes() + own_bytes;
    if let Some(scale) = workload.upscale {
        let upscaler = Upscaler::find(scale, options.upscaler.as_deref(), &backend)?;
        meter.upscaler(&upscaler, &workload)?;
        pinned += upscaler.extent().pinned_bytes();
    }
    meter.remembered(&models, &inputs, &workload)?;

    let [rows, columns] = grid;
    // What is kept of a picture that is blended in: where, its latents, their noise.
    let latents = 4 * configs.vae.latent_channels;
    let blended = if workload.given.encodes { 3 * 4 * (rows * columns * latents) as u64 } else { 0 };
    let gates = options.safety.resident_bytes();
    let mut plan = Plan {
        parts: meter.parts,
        tokens: workload.t5_length + style_tokens + rows * columns + workload.given.reference_tokens,
        steps: workload.steps,
        sampler: workload.sampler,
        evaluations: workload.sampler.evaluations(workload.steps) * if workload.true_cfg { 2 } else { 1 },
        precision,
        limit: options.memory_limit.or_else(memory::available),
        overhead_bytes: overhead(options.device) + gates + pinned + workload.given.bytes + blended,
        keeps_transformer: true,
        tiled,
    };
    plan.fit();
    Ok(plan)
}

/// All parts on the backend that counts.
struct Models {
    clip: Clip,
    t5: T5,
    flux: Flux,
    vae: Decoder,
    /// Where there are pictures to encode.
    encoder: Option<(Encoder, Weights, Layout)>,
    /// CLIP's, T5's, the transformer's, the autoencoder's.
    layouts: [Layout; 4],
}

/// A part whose weights come and go all together.
fn whole(weights: &Weights) -> Layout {
    Layout { fixed: weights.extent(), blocks: Vec::new() }
}

impl Models {
    /// As in a pipeline: all parts are loaded, which puts their small tensors into memory, before the first one runs.
    fn load(
        configs: &Configs,
        weights: &PartWeights,
        encoder: Option<Weights>,
        loras: &Loras,
        backend: &Arc<dyn Backend>,
    ) -> Result<Self> {
        let [clip_weights, t5_weights, flux_weights, vae_weights] = &weights.four;
        let mut clip = Clip::load(configs.clip.clone(), clip_weights)?;
        let mut t5 = T5::load(configs.t5.clone(), t5_weights)?;
        let mut flux = Flux::load(configs.flux.clone(), flux_weights)?;
        if !loras.used.is_empty() {
            let mut models = [flux.adaptable(), clip.adaptable(), t5.adaptable()];
            lora::apply(&mut models, loras, backend)?;
            flux.widen();
        }
        let vae = Decoder::load(configs.vae.clone(), vae_weights)?;
        let layouts = [clip.layout().clone(), t5.layout().clone(), flux.layout().clone(), whole(vae_weights)];
        let encoder = match encoder {
            None => None,
            Some(weights) => {
                let encoder = Encoder::load(vae.config().clone(), &weights)?;
                let layout = whole(&weights);
                Some((encoder, weights, layout))
            }
        };
        Ok(Self { clip, t5, flux, vae, encoder, layouts })
    }

    /// Bytes of small tensors.
    fn pinned_bytes(&self) -> u64 {
        let encoder = self.encoder.iter().map(|(_, _, layout)| layout);
        self.layouts.iter().chain(encoder).map(Layout::pinned_bytes).sum()
    }

    /// The picture, or a tile of it.
    fn decode(&self, [rows, columns]: [usize; 2], tiled: bool, backend: &Arc<dyn Backend>) -> Result<()> {
        let tiling = Tiling::of(&self.vae);
        let [height, width] = [2 * rows, 2 * columns].map(|side| if tiled { side.min(tiling.tile) } else { side });
        let tile = zeros(backend, &[height, width, self.vae.config().latent_channels]);
        self.vae.decode(&tile, &mut || Ok(())).map(drop)
    }
}

fn zeros(backend: &Arc<dyn Backend>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(backend, Shape::new(shape), vec![0.0; shape.iter().product()])
}

/// What is measured, part by part.
struct Meter {
    counter: Arc<DryRun>,
    parts: Vec<PartPlan>,
}

impl Meter {
    fn measure(
        &mut self,
        name: &'static str,
        weights: &Weights,
        layout: &Layout,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.counter.reset();
        work()?;
        self.parts.push(PartPlan {
            name,
            parameters: weights.parameters_taken(),
            weight_bytes: layout.bytes(),
            blocks: layout.blocks.iter().map(memory::Extent::bytes).collect(),
            kept: layout.blocks.iter().map(memory::Extent::kept_bytes).collect(),
            resident_blocks: layout.blocks.len(),
            kept_blocks: 0,
            work: self.counter.report(),
        });
        Ok(())
    }

    fn part(&mut self, name: &str) -> Option<&mut PartPlan> {
        self.parts.iter_mut().find(|part| part.name == name)
    }

    fn text_encoders(
        &mut self,
        models: &Models,
        weights: &PartWeights,
        configs: &Configs,
        workload: &Workload,
        backend: &Arc<dyn Backend>,
    ) -> Result<()> {
        let ([clip_weights, t5_weights, ..], [clip_layout, t5_layout, ..]) = (&weights.four, &models.layouts);
        self.measure("clip_l", clip_weights, clip_layout, || {
            models.clip.forward(backend, &vec![0; configs.clip.max_position_embeddings]);
            Ok(())
        })?;
        self.measure("t5", t5_weights, t5_layout, || {
            models.t5.forward(backend, &vec![0; workload.t5_length], &mut |_, _| Ok(())).map(drop)
        })
    }

    /// The vision tower and the projector; gives the tokens that stand behind the text.
    fn styles(
        &mut self,
        models: &Models,
        config: &SiglipConfig,
        weights: &[Weights; 2],
        workload: &Workload,
        backend: &Arc<dyn Backend>,
    ) -> Result<usize> {
        let tokens = config.tokens() * workload.styles as usize;
        let picture = Rgb8::new(1, 1, vec![0; 3]);
        let encoder = StyleEncoder::of(config.clone(), models.flux.config().context_in_dim, weights)?;
        let [tower, projector] = weights;
        let whole = Layout { fixed: encoder.extent().clone(), blocks: Vec::new() };
        self.measure("vision", tower, &whole, || {
            // All tokens are kept until they stand behind the text.
            let one = |_| encoder.tokens(backend, &picture, &mut || Ok(()));
            let tokens: Vec<Tensor> = (0..workload.styles).map(one).collect::<Result<_>>()?;
            Tensor::concat(&tokens.iter().collect::<Vec<_>>(), 0);
            Ok(())
        })?;
        if let Some(part) = self.part("vision") {
            part.parameters += projector.parameters_taken();
            part.weight_bytes += projector.bytes_taken();
        }
        Ok(tokens)
    }

    /// Pictures of these sizes through the autoencoder.
    fn encoder(
        &mut self,
        (encoder, weights, layout): &(Encoder, Weights, Layout),
        sizes: &[[usize; 2]],
        workload: &Workload,
        tiled: bool,
        backend: &Arc<dyn Backend>,
    ) -> Result<()> {
        let (tiling, factor) = (Tiling::of_config(encoder.config()), encoder.config().factor());
        self.measure("vae_encoder", weights, layout, || {
            for &[width, height] in sizes {
                let tiles = tiling::encodes_in_tiles(workload.vae_tiling, tiled, width, height);
                let side = |side: usize| if tiles { side.min(tiling.tile * factor) } else { side };
                // The whole picture lies beside its tiles.
                let whole = zeros(backend, &[height, width, 3]);
                encoder.moments(&if tiles { zeros(backend, &[side(height), side(width), 3]) } else { whole.clone() });
            }
            Ok(())
        })
    }

    fn upscaler(&mut self, upscaler: &Upscaler, workload: &Workload) -> Result<()> {
        self.counter.reset();
        let pictures = upscaler.rehearse(workload.width, workload.height)?;
        let mut work = self.counter.report();
        work.peak_bytes += pictures;
        self.parts.push(PartPlan {
            name: "upscaler",
            parameters: upscaler.parameters(),
            weight_bytes: upscaler.extent().bytes(),
            blocks: Vec::new(),
            kept: Vec::new(),
            resident_blocks: 0,
            kept_blocks: 0,
            work,
        });
        Ok(())
    }

    /// What some samplers and reused velocities remember between steps comes on top of the transformer's memory; its work is
    /// still that of one evaluation. Of zeros nothing is reused.
    fn remembered(&mut self, models: &Models, inputs: &Inputs, workload: &Workload) -> Result<()> {
        let cache = workload.acceleration.cache();
        if workload.sampler == Sampler::Euler && cache.is_none() {
            return Ok(());
        }
        self.counter.reset();
        inputs.denoised(models, workload.sampler, cache, &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0])?;
        let peak_bytes = self.counter.report().peak_bytes;
        if let Some(transformer) = self.part("transformer") {
            transformer.work.peak_bytes = transformer.work.peak_bytes.max(peak_bytes);
        }
        Ok(())
    }
}

/// What the transformer is given, in zeros.
struct Inputs {
    noise: Latents,
    /// Further channels of the picture's tokens.
    channels: Option<Tensor>,
    references: Option<Tensor>,
    /// Text, pooled and angles; with classifier-free guidance twice.
    prompts: Vec<(Tensor, Tensor, Rope)>,
}

impl Inputs {
    fn new(
        models: &Models,
        configs: &Configs,
        workload: &Workload,
        grid: [usize; 2],
        style_tokens: usize,
        backend: &Arc<dyn Backend>,
    ) -> Self {
        let (config, latent_channels) = (models.flux.config(), configs.vae.latent_channels);
        let ([rows, columns], latents) = (grid, 4 * latent_channels);
        // Where references lie does not matter here, how many tokens they have does.
        let references = [[1, workload.given.reference_tokens]];
        let tokens = |count: usize, channels: usize| (count * channels > 0).then(|| zeros(backend, &[count, channels]));
        let prompt = |tokens| {
            let rope = Rope::with_references(backend, tokens, grid, &references, config.axes_dim, config.theta);
            (zeros(backend, &[tokens, config.context_in_dim]), zeros(backend, &[1, config.vec_in_dim]), rope)
        };
        // Styles stand behind the prompt alone.
        let lengths = [workload.t5_length + style_tokens, workload.t5_length];
        let values = vec![0.0; latents * rows * columns];
        Self {
            noise: Latents { channels: latent_channels, height: 2 * rows, width: 2 * columns, values },
            channels: tokens(rows * columns, config.in_channels.saturating_sub(latents)),
            references: tokens(workload.given.reference_tokens, latents),
            prompts: lengths.into_iter().take(if workload.true_cfg { 2 } else { 1 }).map(prompt).collect(),
        }
    }

    /// Along these noise levels.
    fn denoised(&self, models: &Models, sampler: Sampler, cache: Option<Cache>, sigmas: &[f32]) -> Result<()> {
        let mut conditions =
            self.prompts.iter().map(|(txt, pooled, rope)| Condition { txt, pooled, guidance_argument: 1000.0, rope });
        let Some(positive) = conditions.next() else { unreachable!("there is at least one prompt") };
        let blocks = models.flux.layout().blocks.len();
        let guided = Guided {
            condition: positive,
            negative: conditions.next().map(|negative| (negative, 2.0)),
            residency: Residency { resident: blocks, kept: blocks },
            beside: Beside { channels: self.channels.as_ref(), references: self.references.as_ref() },
        };
        let draws = Generator::new(Noise::default(), 0);
        let path =
            Path { start: &self.noise, sigmas, sampler, draws, after_step: None, cache, audit: None, picture: 0 };
        denoise(&models.flux, path, &guided, &|_| None, &mut ()).map(drop)
    }
}

/// Width and height of what the encoder sees: the picture of the request's size, the largest reference.
fn encoded(workload: &Workload, grid: [usize; 2], factor: usize) -> Vec<[usize; 2]> {
    let [rows, columns] = grid;
    let own = workload.given.encodes.then_some([2 * columns * factor, 2 * rows * factor]);
    own.into_iter().chain(workload.given.largest_reference.map(|sides| sides.map(|side| side as usize))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        acceleration::Acceleration,
        conditioning::Given,
        plan::{KEPT_FROM, refuse},
    };
    use tensor::Device;

    const WORKLOAD: Workload = Workload {
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

    fn limited(dtype: DType, workload: Workload, limit: u64) -> Plan {
        let device = Device::Cpu { threads: Some(2) };
        let options = LoadOptions { memory_limit: Some(limit), device, ..LoadOptions::default() };
        plan_flux1(true, dtype, workload, &options).unwrap()
    }

    /// The 12-billion-parameter model's shapes, checked without its weights.
    #[test]
    fn the_real_configuration() {
        let plan = limited(DType::BF16, WORKLOAD, 100_000_000_000);
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
        let workload = Workload { width: 512, height: 512, ..WORKLOAD };
        let mut kept = Vec::new();
        for limit in [8, 12, 16, 24, 32] {
            let limit = limit * 1_000_000_000;
            let plan = limited(DType::BF16, workload, limit);
            assert!(plan.peak_bytes() <= limit, "{} of {limit}", plan.peak_bytes());
            let transformer = plan.part("transformer").unwrap();
            // One block more would not fit.
            let room = limit - plan.overhead_bytes - transformer.peak_bytes();
            assert!(transformer.streamed_bytes() == 0 || room < *transformer.blocks.iter().max().unwrap(), "{room}");
            kept.push(transformer.resident_blocks);
        }
        assert!(kept.is_sorted() && kept[0] < kept[1] && kept[4] == 57, "{kept:?}");
    }

    /// In int8 weights stay as kernels read them: a byte for each, whatever the file has, as long as there is room for that.
    #[test]
    fn a_limit_keeps_rounded_weights_where_they_fit() {
        let workload = Workload { width: 512, height: 512, ..WORKLOAD };
        let device = Device::Cpu { threads: Some(2) };
        let planned = |dtype, workload, limit: u64| {
            let precision = Some(Precision::Int8);
            let options = LoadOptions { memory_limit: Some(limit), precision, device, ..LoadOptions::default() };
            let plan = plan_flux1(true, dtype, workload, &options).unwrap();
            assert!(plan.peak_bytes() <= limit, "{} of {limit}", plan.peak_bytes());
            let transformer = plan.part("transformer").unwrap().clone();
            (plan.keeps_transformer, transformer)
        };
        // Files of two bytes for each weight: 57 blocks have room where those of the file have none.
        let (_, all) = planned(DType::BF16, workload, 30_000_000_000);
        let [kept, stored] = [&all.kept, &all.blocks].map(|bytes| bytes.iter().sum::<u64>());
        if kept >= stored {
            return; // a machine whose products are of two bytes
        }
        let large: u64 = (2 * 19 + 38) * 12 * 3072 * 3072;
        assert!((stored - large..stored - large * 98 / 100).contains(&kept), "{kept} of {stored}");
        let (_, all) = planned(DType::BF16, workload, 18_000_000_000);
        assert_eq!((all.resident_blocks, all.kept_blocks, all.streamed_bytes()), (57, 57, 0));
        let (_, some) = planned(DType::BF16, workload, 8_000_000_000);
        assert!(some.kept_blocks == some.resident_blocks && (1..57).contains(&some.kept_blocks), "{some:?}");
        // What is hardly used is not kept, unless it would be read again otherwise.
        let few = Workload { steps: KEPT_FROM - 1, ..workload };
        assert_eq!(planned(DType::BF16, few, 30_000_000_000).1.kept_blocks, 0);
        assert_eq!(planned(DType::BF16, few, 18_000_000_000).1.kept_blocks, 57);
        // A smaller file stays as it is, first of all; then as many as have room beside it.
        for (limit, blocks) in [(9, 0..57), (11, 1..57), (20, 57..58)] {
            let (keeps_transformer, q4) = planned(DType::Q4K, workload, limit * 1_000_000_000);
            assert_eq!(q4.streamed_bytes(), 0);
            assert!(keeps_transformer && blocks.contains(&q4.kept_blocks), "{} under {limit} GB", q4.kept_blocks);
        }
        // A stream of fewer tokens than int8 is for is computed from the file.
        let tiny = Workload { width: 64, height: 64, ..workload };
        let (_, tiny) = planned(DType::BF16, tiny, 18_000_000_000);
        assert!(tiny.kept[0] > all.kept[0] && tiny.kept[56] == all.kept[56]);
    }

    #[test]
    fn a_job_that_cannot_fit_is_told_what_would() {
        let workload = Workload { vae_tiling: Some(false), ..WORKLOAD };
        let limit = 2_000_000_000;
        let plan = limited(DType::BF16, workload, limit);
        assert!(plan.shortfall().is_some_and(|missing| missing == plan.least_bytes() - limit));
        let error = refuse(&plan, workload, |workload| Ok(limited(DType::BF16, workload, limit))).to_string();
        for word in ["memory_limit: 1024×1024", "vae", "2GB", "--memory-limit", "a picture of", "--vae-tiling on"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
