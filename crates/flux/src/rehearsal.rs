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
    let configs = configs.clone();
    let counter = DryRun::new();
    let backend: Arc<dyn Backend> = counter.clone();
    let PartWeights { four: [clip_weights, t5_weights, flux_weights, vae_weights], vision } = weights(&backend);
    let clip_length = configs.clip.max_position_embeddings;
    let (latent_channels, factor) = (configs.vae.latent_channels, configs.vae.factor());
    let grid = [workload.height, workload.width].map(|side| (side as usize).div_ceil(2 * factor));
    let [rows, columns] = grid;

    // As in a pipeline: all parts are loaded, which puts their small tensors into memory, before the first one runs.
    let mut clip = Clip::load(configs.clip, &clip_weights)?;
    let mut t5 = T5::load(configs.t5, &t5_weights)?;
    let mut flux = Flux::load(configs.flux, &flux_weights)?;
    if !loras.used.is_empty() {
        let mut models = [flux.adaptable(), clip.adaptable(), t5.adaptable()];
        lora::apply(&mut models, loras, &backend)?;
        flux.widen();
    }
    let vae = Decoder::load(configs.vae, &vae_weights)?;
    let whole = |weights: &Weights| Layout { fixed: weights.extent(), blocks: Vec::new() };
    let layouts = [clip.layout().clone(), t5.layout().clone(), flux.layout().clone(), whole(&vae_weights)];
    let encoded = encoded(&workload, grid, factor);
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
            kept: layout.blocks.iter().map(memory::Extent::kept_bytes).collect(),
            resident_blocks: layout.blocks.len(),
            kept_blocks: 0,
            work: counter.report(),
        });
        Ok(())
    };
    measure("clip_l", &clip_weights, &layouts[0], &mut || {
        clip.forward(&backend, &vec![0; clip_length]);
        Ok(())
    })?;
    measure("t5", &t5_weights, &layouts[1], &mut || {
        t5.forward(&backend, &vec![0; workload.t5_length], &mut |_, _| Ok(())).map(drop)
    })?;

    let mut style_tokens = 0;
    if let (Some(config), Some(weights)) = (configs.vision, &vision) {
        style_tokens = config.tokens() * workload.styles as usize;
        let picture = Rgb8::new(1, 1, vec![0; 3]);
        let encoder = StyleEncoder::of(config, flux.config().context_in_dim, weights)?;
        let whole = Layout { fixed: encoder.extent().clone(), blocks: Vec::new() };
        measure("vision", &weights[0], &whole, &mut || {
            // All tokens are kept until they stand behind the text.
            let one = |_| encoder.tokens(&backend, &picture, &mut || Ok(()));
            let tokens: Vec<Tensor> = (0..workload.styles).map(one).collect::<Result<_>>()?;
            Tensor::concat(&tokens.iter().collect::<Vec<_>>(), 0);
            Ok(())
        })?;
    }

    let zeros = |shape: &[usize]| Tensor::from_vec(&backend, Shape::new(shape), vec![0.0; shape.iter().product()]);
    if let Some((encoder, weights, layout)) = &encoder {
        let tiling = Tiling::of_config(encoder.config());
        measure("vae_encoder", weights, layout, &mut || {
            for &[width, height] in &encoded {
                let tiles = tiling::encodes_in_tiles(workload.vae_tiling, tiled, width, height);
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
    let references = [[1, workload.given.reference_tokens]];
    let tokens = |count: usize, channels: usize| (count * channels > 0).then(|| zeros(&[count, channels]));
    let latents = 4 * latent_channels;
    let channels = tokens(rows * columns, config.in_channels.saturating_sub(latents));
    let reference_tokens = tokens(workload.given.reference_tokens, latents);
    // Pictures stand behind the prompt alone.
    let prompt = |tokens| {
        let rope = Rope::with_references(&backend, tokens, grid, &references, config.axes_dim, config.theta);
        (zeros(&[tokens, config.context_in_dim]), zeros(&[1, config.vec_in_dim]), rope)
    };
    let tokens = [workload.t5_length + style_tokens, workload.t5_length];
    let prompts: Vec<_> = tokens.into_iter().take(if workload.true_cfg { 2 } else { 1 }).map(prompt).collect();
    let mut conditions =
        prompts.iter().map(|(txt, pooled, rope)| Condition { txt, pooled, guidance_argument: 1000.0, rope });
    let Some(positive) = conditions.next() else { unreachable!("there is at least one prompt") };
    let blocks = layouts[2].blocks.len();
    let guided = Guided {
        condition: positive,
        negative: conditions.next().map(|negative| (negative, 2.0)),
        residency: Residency { resident: blocks, kept: blocks },
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
    if let Some(scale) = workload.upscale {
        let upscaler = Upscaler::find(scale, options.upscaler.as_deref(), &backend)?;
        counter.reset();
        let pictures = upscaler.rehearse(workload.width, workload.height)?;
        let mut work = counter.report();
        work.peak_bytes += pictures;
        pinned += upscaler.extent().pinned_bytes();
        parts.push(PartPlan {
            name: "upscaler",
            parameters: upscaler.parameters(),
            weight_bytes: upscaler.extent().bytes(),
            blocks: Vec::new(),
            kept: Vec::new(),
            resident_blocks: 0,
            kept_blocks: 0,
            work,
        });
    }

    if let Some([_, projector]) = &vision
        && let Some(part) = parts.iter_mut().find(|part| part.name == "vision")
    {
        part.parameters += projector.parameters_taken();
        part.weight_bytes += projector.bytes_taken();
    }
    let cache = workload.acceleration.cache();
    if (workload.sampler != Sampler::Euler || cache.is_some())
        && let Some(transformer) = parts.iter_mut().find(|part| part.name == "transformer")
    {
        // What is remembered between steps comes on top; the work is still that of one evaluation. Of zeros nothing is reused.
        counter.reset();
        along(workload.sampler, cache, &[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0])?;
        transformer.work.peak_bytes = transformer.work.peak_bytes.max(counter.report().peak_bytes);
    }

    // What is kept of a picture that is blended in: where, its latents, their noise.
    let blended = if workload.given.encodes { 3 * 4 * (rows * columns * latents) as u64 } else { 0 };
    let gates = options.safety.resident_bytes();
    let mut plan = Plan {
        parts,
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
