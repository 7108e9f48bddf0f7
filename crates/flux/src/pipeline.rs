//! The story of a picture, top to bottom: [`Pipeline::generate`].

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Instant,
};

use tensor::{Backend, Device, Precision, Tensor, cpu::Level};

use crate::{
    acceleration::Evaluations,
    conditioning::{
        Kind,
        canvas::Sizes,
        encode::{Job, Seen},
    },
    denoise::{Beside, Guided, Path, Reused, denoise},
    error::{Error, Result},
    image_file::{LoraUsed, Provenance, Upscaled},
    latents::Latents,
    lora::{self, Applied, LoraReport, Loras},
    memory::{Extent, Stream},
    model::{Defaults, Family, ModelFiles, Tokenizer},
    noise::Generator,
    pixels::{self, Range, Rgb8},
    plan::{self, Plan, Size},
    preview::Previewer,
    prompt_cache::{Embeddings, Key, PromptCache},
    request::Request,
    safety::{Reviewed, Safety, Screened},
    schedule::SchedulerConfig,
    styles::{self, StyleEncoder},
    text::{
        clip::Clip,
        t5::T5,
        tokenizer::{ClipTokenizer, T5Tokenizer},
    },
    transformer::{Condition, Flux, Rope, guidance_argument},
    upscale::{self, Upscaler},
    vae::{Decoder, Encoder, VaeConfig, tiling::Tiling, tiny::TinyDecoder},
    watch::{self, Event, Watch},
};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where to compute.
    pub device: Device,
    /// The arithmetic of products; `None`: f32 if the transformer is stored so, otherwise bf16. Int8 is that of the
    /// transformer's large layers, all else is bf16 then.
    pub precision: Option<Precision>,
    /// What is done with prompts and pictures; `None` is [`Safety::off`].
    pub safety: Option<Safety>,
    /// The most memory that the process may take, bytes; `None`: what the machine has available when a picture is asked for
    /// ([`crate::memory::available`]). Weights that do not fit beside the rest are read again at every step; pictures stay the same.
    pub memory_limit: Option<u64>,
    /// Where the text encoders' results are kept, so that a prompt asked for again takes no T5; `None`: nowhere. Models
    /// whose T5 takes less than 50 MB never use it.
    pub prompt_cache: Option<PromptCache>,
    /// The network that enlarges pictures where a request asks for it; `None`: the one in the program
    /// ([`crate::upscale::Upscaler`]).
    pub upscaler: Option<PathBuf>,
}

/// A loaded model.
///
/// ```no_run
/// use flux::{Pipeline, LoadOptions, model::{ModelSpec, SearchPaths}};
///
/// let files = ModelSpec::default().find(&SearchPaths::default())?; // the model in the box
/// let pipeline = Pipeline::load(files, &LoadOptions::default(), &mut ())?;
/// let request = pipeline.request("a red apple");
/// for generated in pipeline.generate(&request, &mut ())? {
///     println!("seed {}: {:?}", generated.seed, generated.picture.get());
/// }
/// # Ok::<(), flux::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipeline {
    files: ModelFiles,
    options: LoadOptions,
    backend: Arc<dyn Backend>,
    precision: Precision,
    safety: Safety,
    /// What all embeddings of these encoders depend on; known when the first is asked for.
    encoders: OnceLock<Key>,
    clip_tokenizer: Tokenizer<ClipTokenizer>,
    t5_tokenizer: Tokenizer<T5Tokenizer>,
    clip: Clip,
    t5: T5,
    transformer: Flux,
    scheduler: SchedulerConfig,
    vae: Decoder,
    vae_extent: Extent,
    previewer: Previewer,
    loras: Loras,
    lora_reports: Vec<LoraReport>,
    /// What they keep in memory beside their files.
    lora_bytes: u64,
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The picture, of the size asked for, times `upscale`.
    pub picture: Reviewed<Rgb8>,
    /// Which picture of the batch, from 0.
    pub index: u32,
    /// The seed that makes this very picture by itself.
    pub seed: u64,
    /// The final latents, of the size rendered.
    pub latents: Latents,
    /// Seconds by stage.
    pub seconds: Seconds,
    /// Velocities that were computed and reused.
    pub evaluations: Evaluations,
}

/// Seconds by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Tokenizers, CLIP and T5; once a request.
    pub encode: f64,
    /// All steps.
    pub denoise: f64,
    /// The autoencoder.
    pub decode: f64,
    /// The upscaler, if one was asked for.
    pub upscale: f64,
}

/// What the text encoders say about a prompt.
struct Conditioning {
    /// `[t5 length, width]`.
    txt: Tensor,
    /// `[1, width]`.
    pooled: Tensor,
}

impl Conditioning {
    fn with<'a>(&'a self, guidance_argument: f32, rope: &'a Rope) -> Condition<'a> {
        Condition { txt: &self.txt, pooled: &self.pooled, guidance_argument, rope }
    }
}

impl Pipeline {
    /// Loads a model: reads headers, checks every tensor's size; the weights themselves stay in their files.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and the tensor.
    pub fn load(files: ModelFiles, options: &LoadOptions, watch: &mut dyn Watch) -> Result<Self> {
        let backend = options.device.open();
        let precision = options.precision.unwrap_or_else(|| files.auto_precision());
        // T5's activations have outliers that 8 bits cannot hold; the others are small.
        let gentle = precision.without_int8();

        watch.event(Event::Loading("clip_l"));
        let clip_tokenizer = files.load_clip_tokenizer()?;
        let mut clip_config = files.clip_l.clip_config()?;
        if files.clip_l.config.is_none() {
            clip_config.eos_token_id = clip_tokenizer.eos(); // weights alone do not tell
        }
        let weights = files.clip_l.weights(&backend, gentle);
        let clip = Clip::load(clip_config, &weights)?;

        watch.event(Event::Loading("t5"));
        let t5_tokenizer = files.load_t5_tokenizer()?;
        let t5 = T5::load(files.t5.t5_config()?, &files.t5.weights(&backend, gentle))?;

        watch.event(Event::Loading("transformer"));
        let config = files.transformer.flux_config()?;
        let scheduler = files.scheduler(&config)?;
        let transformer = Flux::load(config, &files.transformer.weights(&backend, precision))?;

        watch.event(Event::Loading("vae"));
        let weights = files.vae.weights(&backend, gentle);
        let vae = Decoder::load(files.vae.vae_config()?, &weights)?;
        let vae_extent = weights.extent();
        let previewer = previewer(&files, &vae, &backend, gentle)?;

        let pipeline = Self {
            safety: options.safety.clone().unwrap_or_else(Safety::off),
            options: options.clone(),
            encoders: OnceLock::new(),
            files,
            backend,
            precision,
            clip_tokenizer,
            t5_tokenizer,
            clip,
            t5,
            transformer,
            scheduler,
            vae,
            vae_extent,
            previewer,
            loras: Loras::default(),
            lora_reports: Vec::new(),
            lora_bytes: 0,
        };
        pipeline.check_fit(pipeline.files.transformer.checkpoint.origin())?;
        pipeline.release(); // small tensors were read all over the files
        Ok(pipeline)
    }

    /// Gives back the memory of all weights and of activations gone by. A pipeline that waits for its next request takes
    /// little then; the weights come back from their files when they are used.
    pub fn release(&self) {
        self.clip.layout().release();
        self.t5.layout().release();
        self.transformer.layout().release();
        self.vae_extent.release();
        self.backend.release_idle();
    }

    /// The parts come from several files: their widths must meet.
    fn check_fit(&self, origin: &std::path::Path) -> Result<()> {
        let flux = self.transformer.config();
        // With a control picture 128 channels, with Fill 384: whatever is known is no misfit.
        let latents = 4 * self.vae.config().latent_channels;
        let img_in = if self.kind().is_some() { latents } else { flux.in_channels };
        let pairs = [
            ("CLIP's width", self.clip.config().hidden_size, "vector_in", flux.vec_in_dim),
            ("T5's width", self.t5.config().d_model, "txt_in", flux.context_in_dim),
            ("the autoencoder's latents (packed)", latents, "img_in", img_in),
            (
                "the autoencoder's latents (packed)",
                4 * self.vae.config().latent_channels,
                "final_layer",
                flux.out_channels,
            ),
        ];
        for (what, is, layer, expected) in pairs {
            if is != expected {
                let problem = format!(
                    "takes {expected} in '{layer}', but {what} is {is}; hint: these parts do not belong together"
                );
                return Err(Error::file(origin, problem));
            }
        }
        Ok(())
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.files.name
    }

    /// What to tell whoever uses the model.
    pub fn notice(&self) -> Option<&str> {
        self.files.notice.as_deref()
    }

    /// Which member of the family it is.
    pub fn family(&self) -> Family {
        self.files.family
    }

    /// What requests get unless they say otherwise.
    pub fn defaults(&self) -> &Defaults {
        &self.files.defaults
    }

    /// The arithmetic of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What the transformer takes beside noise and text; `None` if its channels fit nothing that is known.
    pub fn kind(&self) -> Option<Kind> {
        let (channels, vae) = (self.transformer.config().in_channels, self.vae.config());
        Kind::of(self.files.family, channels, vae.latent_channels, vae.factor())
    }

    /// The policy in force.
    pub fn safety(&self) -> &Safety {
        &self.safety
    }

    /// A request with the model's defaults.
    pub fn request(&self, prompt: impl Into<String>) -> Request {
        Request::new(prompt, &self.files.defaults)
    }

    /// How many T5 tokens a text takes in full, end token included.
    ///
    /// # Errors
    /// [`Error::Refused`], or [`Error::Asked`] about `prompt` where a tokenizer of the model's own has no id for something.
    pub fn t5_tokens(&self, text: &str) -> Result<usize> {
        self.t5_tokenizer.count(&self.safety.screen(text)?)
    }

    /// Refuses a request that cannot be met, before any work.
    ///
    /// # Errors
    /// [`Error::Asked`] naming the field, the value and the range; the field `memory_limit` if there is too little memory.
    pub fn check(&self, request: &Request) -> Result<()> {
        self.checked(request).map(drop)
    }

    fn checked(&self, request: &Request) -> Result<Plan> {
        request.check(self.least_side())?;
        request.pictures.check(self.kind().unwrap_or(Kind::Base), self.files.family, self.least_side())?;
        if styles::pictures(request).next().is_some() {
            self.files.styles.find(styles::field(request))?;
        }
        let plan = self.plan(request)?;
        if plan.shortfall().is_some() {
            let size = self.size(request);
            return Err(plan::refuse(&plan, size, |size| self.plan_size(size)));
        }
        Ok(plan)
    }

    /// What a picture of `request` takes and how it is going to be made: which blocks stay in memory, whether it is decoded in
    /// tiles. [`Plan::shortfall`] tells if it cannot be made.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), flux::Error> {
    /// # let files = flux::model::ModelSpec::default().find(&flux::model::SearchPaths::default())?;
    /// use flux::{LoadOptions, Pipeline};
    ///
    /// let options = LoadOptions { memory_limit: Some(8 << 30), ..LoadOptions::default() };
    /// let pipeline = Pipeline::load(files, &options, &mut ())?;
    /// let plan = pipeline.plan(&pipeline.request("a red apple"))?;
    /// println!("{} bytes at the most", plan.peak_bytes());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a file cannot be used.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        self.plan_size(self.size(request))
    }

    fn plan_size(&self, size: Size) -> Result<Plan> {
        plan::plan_with(&self.files, size, &self.options, &self.loras, self.lora_bytes)
    }

    /// Applies LoRAs with their weights in the place of those before; without any, the model is what it was, bit for bit. Takes
    /// the time of reading their headers (and with DoRA, the first time, of reading the layers that it changes).
    ///
    /// # Errors
    /// [`Error::File`] naming the LoRA and the tensor, [`Error::Asked`] about `lora` or `lora_merge`; nothing has changed then.
    pub fn set_loras(&mut self, loras: &Loras) -> Result<Vec<LoraReport>> {
        let mut models = [
            lora::Model::transformer(&mut self.transformer),
            lora::Model::clip(&mut self.clip),
            lora::Model::t5(&mut self.t5),
        ];
        let applied = lora::apply(&mut models, loras, &self.backend)?;
        self.transformer.widen();
        self.release(); // all over the files layers were read
        let Applied { reports, own_bytes } = applied;
        self.encoders = OnceLock::new();
        self.loras = loras.clone();
        self.lora_bytes = own_bytes;
        self.lora_reports.clone_from(&reports);
        Ok(reports)
    }

    /// The LoRAs that are applied.
    pub fn loras(&self) -> &Loras {
        &self.loras
    }

    /// How a picture of `request` with this seed is made, for its metadata.
    pub fn provenance(&self, request: &Request, seed: u64) -> Provenance {
        Provenance {
            software: concat!("darkroom ", env!("CARGO_PKG_VERSION")).into(),
            model: self.files.name.clone(),
            prompt: Some(request.prompt.clone()),
            negative_prompt: request.negative_prompt.clone().filter(|_| request.uses_true_cfg()),
            width: request.width,
            height: request.height,
            steps: request.steps,
            guidance: self.transformer.config().guidance_embed.then_some(request.guidance),
            true_cfg: request.true_cfg,
            styles: styles::told(request),
            seed,
            noise: request.noise.to_string(),
            sampler: request.sampler.to_string(),
            acceleration: request.acceleration.to_string(),
            schedule: request.schedule.to_string(),
            t5_length: request.t5_length as u32,
            precision: self.precision.to_string(),
            safety: self.safety.name().into(),
            vae_tiling: request.vae_tiling,
            upscaled: request.upscale.map(|scale| self.upscaled(scale)).into_iter().collect(),
            loras: LoraUsed::all(&self.loras),
            from_pictures: request.pictures.told(),
        }
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// [`Error::Asked`] before any work, [`Error::Refused`], [`Error::Cancelled`] within one block, [`Error::Degenerate`].
    pub fn generate(&self, request: &Request, watch: &mut dyn Watch) -> Result<Vec<Generated>> {
        let mut pictures = Vec::with_capacity(request.batch as usize);
        self.generate_each(request, watch, &mut |generated| {
            pictures.push(generated);
            ControlFlow::Continue(())
        })?;
        Ok(pictures)
    }

    /// As [`Pipeline::generate`], giving each picture away as soon as it is done; `Break` leaves the rest undone.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn generate_each(
        &self,
        request: &Request,
        watch: &mut dyn Watch,
        done: &mut dyn FnMut(Generated) -> ControlFlow<()>,
    ) -> Result<()> {
        self.run(request, watch, None, done)
    }

    /// As [`Pipeline::generate`]; besides, each velocity that is reused is computed as well, and `audit` told how far off it is.
    /// What is computed for that is not used, and its time does not count.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn generate_audited(
        &self,
        request: &Request,
        watch: &mut dyn Watch,
        audit: &mut dyn FnMut(Reused),
    ) -> Result<Vec<Generated>> {
        let mut pictures = Vec::with_capacity(request.batch as usize);
        self.run(request, watch, Some(audit), &mut |generated| {
            pictures.push(generated);
            ControlFlow::Continue(())
        })?;
        Ok(pictures)
    }

    fn run(
        &self,
        request: &Request,
        watch: &mut dyn Watch,
        mut audit: Option<&mut dyn FnMut(Reused)>,
        done: &mut dyn FnMut(Generated) -> ControlFlow<()>,
    ) -> Result<()> {
        let plan = self.checked(request)?;
        watch.event(Event::Planned(&plan));
        let prompt = self.safety.screen(&request.prompt)?;
        let negative = self.safety.screen(request.negative_prompt.as_deref().unwrap_or(""))?;
        for (_, picture) in request.pictures.all() {
            self.safety.review(picture.as_ref())?;
        }

        watch.event(Event::Encoding);
        let start = Instant::now();
        let positive = self.encode(&prompt, request.t5_length, &plan, watch)?;
        let negative =
            if request.uses_true_cfg() { Some(self.encode(&negative, request.t5_length, &plan, watch)?) } else { None };
        self.t5.layout().release();
        self.backend.release_idle();
        let encoder = || {
            let files = self.files.styles.find(styles::field(request))?;
            let width = self.transformer.config().context_in_dim;
            StyleEncoder::load(&files, width, &self.backend, self.precision.without_int8())
        };
        let styled = styles::encode(request, &positive.txt, encoder, watch)?;
        let encode = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let latent_size = self.latent_size(request);
        let grid = [latent_size[1] / 2, latent_size[2] / 2];
        let schedule = |steps| self.scheduler.sigmas(request.schedule, steps, grid[0] * grid[1]);
        let sigmas = match &request.pictures.start {
            Some(start) => start.sigmas(request.steps, schedule)?,
            None => schedule(request.steps as usize)?,
        };
        let seen = self.see(request, &plan, sigmas[0], watch)?;
        let (references, grids) = seen.references();
        let encode = encode + start.elapsed().as_secs_f64();
        let config = self.transformer.config();
        let rope =
            |text_tokens| Rope::with_references(&self.backend, text_tokens, grid, grids, config.axes_dim, config.theta);
        let plain_rope = rope(request.t5_length);
        let styled_rope = styled.as_ref().map(|styled| rope(styled.txt.shape()[0]).weighted(&styled.weights));
        let guidance = guidance_argument(request.guidance, self.precision);
        for picture in 0..request.batch {
            let seed = request.seed.wrapping_add(u64::from(picture));
            let beginning = seen.begin(&request.pictures, request.noise, seed, latent_size, sigmas[0], &self.backend);
            let guided = Guided {
                condition: Condition {
                    txt: styled.as_ref().map_or(&positive.txt, |styled| &styled.txt),
                    ..positive.with(guidance, styled_rope.as_ref().unwrap_or(&plain_rope))
                },
                negative: negative.as_ref().map(|text| (text.with(guidance, &plain_rope), request.true_cfg)),
                resident_blocks: plan.part("transformer").map_or(0, |part| part.resident_blocks),
                beside: Beside { channels: beginning.channels.as_ref(), references },
            };
            let blend = beginning.blend.as_ref();
            let after_step = |x: Tensor, sigma| blend.map_or_else(|| x.clone(), |blend| blend.after_step(&x, sigma));
            let preview = |latents: &Latents| {
                // Where the transformer has to make room for the decoder, there is none for a preview's.
                if !plan.keeps_transformer && self.previewer.decodes() {
                    return None;
                }
                let whole = self.previewer.render(latents, &self.vae, &self.backend)?;
                Some(self.crop(&whole, request))
            };
            let start = Instant::now();
            let path = Path {
                start: &beginning.latents,
                sigmas: &sigmas,
                sampler: request.sampler,
                // As ComfyUI on a CPU: the fresh noise of a picture's way has the seed after that of its beginning.
                draws: Generator::new(request.noise, seed.wrapping_add(1)),
                after_step: blend.is_some().then_some(&after_step as &dyn Fn(Tensor, f32) -> Tensor),
                cache: request.acceleration.cache(),
                audit: audit.as_mut().map(|audit| &mut **audit as &mut dyn FnMut(Reused)),
                picture,
            };
            let (latents, evaluations) = denoise(&self.transformer, path, &guided, &preview, watch)?;
            let denoise = start.elapsed().as_secs_f64();
            if !plan.keeps_transformer {
                self.transformer.layout().release();
            }
            self.backend.release_idle();

            watch.event(Event::Decoding { picture });
            let start = Instant::now();
            let decoded = self.decode(&latents, request, &plan, watch)?;
            self.vae_extent.release();
            self.backend.release_idle();
            let decode = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let finished = match request.upscale {
                None => decoded,
                Some(scale) => self.upscaler(scale)?.upscale(&decoded, watch)?,
            };
            let reviewed = self.safety.review(finished)?;
            let upscale = start.elapsed().as_secs_f64();
            let seconds = Seconds { encode, denoise, decode, upscale };
            let generated = Generated { picture: reviewed, index: picture, seed, latents, seconds, evaluations };
            if done(generated).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// What the autoencoder says of the request's pictures; nothing is loaded if there are none.
    fn see(&self, request: &Request, plan: &Plan, sigma: f32, watch: &mut dyn Watch) -> Result<Seen> {
        if request.pictures.is_empty() {
            return Ok(Seen::default());
        }
        watch.event(Event::EncodingPictures);
        let weights = self.files.vae.weights(&self.backend, self.precision.without_int8());
        let encoder = Encoder::load(self.vae.config().clone(), &weights)?;
        let job = Job {
            pictures: &request.pictures,
            kind: self.kind().unwrap_or(Kind::Base),
            sizes: self.picture_sizes(request),
            sigma,
            vae_tiling: request.vae_tiling,
            tiled: plan.tiled,
        };
        let seen = Seen::encode(&job, &encoder, &self.backend, &mut || watch::check(watch))?;
        weights.extent().release();
        self.backend.release_idle();
        Ok(seen)
    }

    /// Pixels of a token: a picture's least side.
    fn least_side(&self) -> u32 {
        2 * self.vae.config().factor() as u32
    }

    fn picture_sizes(&self, request: &Request) -> Sizes {
        let factor = self.vae.config().factor() as u32;
        let [_, height, width] = self.latent_size(request).map(|side| side as u32);
        Sizes { asked: (request.width, request.height), rendered: (width * factor, height * factor), factor }
    }

    /// What of a request decides about memory and work.
    fn size(&self, request: &Request) -> Size {
        Size {
            width: request.width,
            height: request.height,
            t5_length: request.t5_length,
            steps: request.steps_made(),
            sampler: request.sampler,
            acceleration: request.acceleration,
            true_cfg: request.uses_true_cfg(),
            styles: styles::pictures(request).count() as u32,
            vae_tiling: request.vae_tiling,
            upscale: request.upscale,
            given: request.pictures.given(self.picture_sizes(request), self.least_side()),
        }
    }

    fn encode(
        &self,
        prompt: &Screened<&str>,
        t5_length: usize,
        plan: &Plan,
        watch: &mut dyn Watch,
    ) -> Result<Conditioning> {
        let longest = self.clip.config().max_position_embeddings;
        let clip_length = self.clip_tokenizer.model_max_length().map_or(longest, |length| length.min(longest));
        if clip_length < 2 {
            let problem = format!("allows {clip_length} tokens; a prompt takes two and more");
            return Err(Error::asked("clip_tokenizer", problem));
        }
        let clip_ids = self.clip_tokenizer.encode(prompt, clip_length)?;
        let t5_ids = self.t5_tokenizer.encode(prompt, t5_length)?;
        check_ids("CLIP", &clip_ids, self.clip.config().vocab_size)?;
        check_ids("T5", &t5_ids, self.t5.config().vocab_size)?;
        let cache = self.prompt_cache().map(|cache| {
            let mut key = self.encoders.get_or_init(|| self.encoders()).clone();
            key.ids(&clip_ids);
            key.ids(&t5_ids);
            (cache, key)
        });
        if let Some(found) = cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
            let [txt, pooled] = [[t5_length, self.t5.config().d_model], [1, self.clip.config().hidden_size]];
            if (found.txt.0, found.pooled.0) == (txt, pooled) {
                watch.event(Event::PromptKnown);
                let tensor = |(shape, values): ([usize; 2], _)| Tensor::from_vec(&self.backend, shape, values);
                return Ok(Conditioning { txt: tensor(found.txt), pooled: tensor(found.pooled) });
            }
        }
        let pooled = self.clip.forward(&self.backend, &clip_ids).pooled;
        self.clip.layout().release();
        self.backend.release_idle();
        let stream = Stream::new(self.t5.layout(), plan.part("t5").map_or(0, |part| part.resident_blocks));
        stream.begin();
        let txt = self.t5.forward(&self.backend, &t5_ids, &mut |block, _| {
            stream.done(block);
            watch::check(watch)
        })?;
        if let Some((cache, key)) = &cache {
            let values = |x: &Tensor| ([x.shape()[0], x.shape()[1]], x.to_vec());
            cache.put(key, &Embeddings { txt: values(&txt), pooled: values(&pooled) });
        }
        Ok(Conditioning { txt, pooled })
    }

    /// The cache, if there is one and T5 is large enough to pay for a file.
    fn prompt_cache(&self) -> Option<&PromptCache> {
        /// Bytes of weights: a smaller T5 takes about as long as reading what it said.
        const WORTH_KEEPING: u64 = 50_000_000;
        self.options.prompt_cache.as_ref().filter(|_| self.t5.layout().bytes() >= WORTH_KEEPING)
    }

    /// What embeddings depend on beside the tokens.
    fn encoders(&self) -> Key {
        let mut key = Key::new();
        key.text(&format!("{} {:?} {}", self.backend.name(), Level::best(), self.precision.without_int8()));
        key.text(&format!("{:?} {:?}", self.clip.config(), self.t5.config()));
        for part in [&self.files.clip_l, &self.files.t5] {
            key.text(&format!("{:?}", part.detected));
            part.checkpoint.files().iter().for_each(|file| key.file(file));
        }
        for ((lora, weight), report) in self.loras.used.iter().zip(&self.lora_reports) {
            if report.changes_text() {
                key.text(&format!("lora {weight} {}", self.loras.merge));
                lora.files().iter().for_each(|file| key.file(file));
            }
        }
        key
    }

    /// `[channels, height, width]` of latents that cover the request: even, so that they pack 2×2.
    fn latent_size(&self, request: &Request) -> [usize; 3] {
        let config = self.vae.config();
        let cover = |pixels: u32| 2 * (pixels as usize).div_ceil(2 * config.factor());
        [config.latent_channels, cover(request.height), cover(request.width)]
    }

    fn decode(&self, latents: &Latents, request: &Request, plan: &Plan, watch: &dyn Watch) -> Result<Rgb8> {
        if latents.values.iter().any(|v| !v.is_finite()) {
            return Err(self.degenerate("the latents are not numbers"));
        }
        let mut between_levels = || watch::check(watch);
        let z = latents.channels_last(&self.backend);
        let picture = if plan.tiled {
            Tiling::of(&self.vae).decode(&self.vae, &z, &mut between_levels)?
        } else {
            self.vae.decode(&z, &mut between_levels)?
        };
        let Some(whole) = pixels::from_tensor(&picture, Range::MinusOneToOne) else {
            return Err(self.degenerate("the picture is not numbers"));
        };
        let picture = self.crop(&whole, request);
        if picture.is_flat() {
            return Err(self.degenerate("the picture is one flat colour"));
        }
        Ok(picture)
    }

    fn upscaled(&self, scale: u32) -> Upscaled {
        Upscaled { scale, network: upscale::name(scale, self.options.upscaler.as_deref()) }
    }

    /// Reads headers only; where the file is, or that there is none, was checked with the plan.
    fn upscaler(&self, scale: u32) -> Result<Upscaler> {
        Upscaler::find(scale, self.options.upscaler.as_deref(), &self.backend)
    }

    /// To the size asked for. A preview of another scale is cut in proportion.
    fn crop(&self, whole: &Rgb8, request: &Request) -> Rgb8 {
        let factor = self.vae.config().factor();
        let [_, height, width] = self.latent_size(request);
        let part = |asked: u32, rendered: usize, have: u32| {
            (u64::from(asked) * u64::from(have)).div_ceil((rendered * factor) as u64) as u32
        };
        whole.cropped(part(request.width, width, whole.width()), part(request.height, height, whole.height()))
    }

    fn degenerate(&self, what: &str) -> Error {
        let hint = match self.precision {
            Precision::F32 => "the weights may be damaged, or a scale may be missing",
            Precision::BF16 | Precision::Int8 => {
                "try --precision f32; if that does not help, the weights may be damaged"
            }
        };
        Error::Degenerate(format!("{what}; nothing was saved; hint: {hint}"))
    }
}

fn check_ids(encoder: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(Error::asked(
            "tokenizer",
            format!(
                "gives token {id}, but {encoder} knows {vocab_size}: tokenizer and text encoder do not belong together"
            ),
        )),
    }
}

fn previewer(files: &ModelFiles, vae: &Decoder, backend: &Arc<dyn Backend>, precision: Precision) -> Result<Previewer> {
    let config = vae.config();
    if let Some(part) = &files.tiny_decoder {
        let tiny = TinyDecoder::load(&part.weights(backend, precision))?;
        if tiny.latent_channels() == config.latent_channels {
            return Ok(Previewer::Tiny(tiny));
        }
    }
    // A narrow decoder is fast enough to be its own preview; the linear map is of FLUX.1's own latents.
    let flux = VaeConfig::flux();
    Ok(if config.block_out_channels.iter().all(|&channels| channels <= 64) {
        Previewer::Own
    } else if (config.latent_channels, &config.block_out_channels) == (flux.latent_channels, &flux.block_out_channels) {
        Previewer::Linear
    } else {
        Previewer::Nothing
    })
}
