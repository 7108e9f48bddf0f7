//! The story of a picture, top to bottom: `Pipeline::run`, which [`Pipeline::generate`] and its kin call.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use tensor::{Backend, Precision, Tensor};

use crate::{
    acceleration::Evaluations,
    conditioning::{
        canvas::Sizes,
        encode::{Job, Seen},
    },
    denoise::{Beside, Guided, Path, Reused, denoise},
    error::{Error, Refused, Result},
    image_file::{LoraUsed, Provenance, Upscaled},
    latents::Latents,
    lora::{self, Applied, LoraReport, Loras},
    memory::Extent,
    model::{Defaults, Family, Kind, ModelFiles},
    noise::Generator,
    options::LoadOptions,
    pixels::{self, Range, Rgb8},
    plan::{self, Plan, Workload},
    preview::Previewer,
    prompt::{Conditioning, PromptReader},
    rehearsal,
    request::Request,
    safety::{Held, OnFlagged, Reviewed, Safety, Screened},
    schedule::SchedulerConfig,
    styles::{self, StyleEncoder, Styled},
    transformer::{Condition, Flux, Rope, guidance_argument},
    upscale::{self, Upscaler},
    vae::{Decoder, Encoder, tiling::Tiling},
    watch::{self, Event, Watch},
};

/// A loaded model.
///
/// ```
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
    prompts: PromptReader,
    transformer: Flux,
    scheduler: SchedulerConfig,
    vae: Decoder,
    vae_extent: Extent,
    previewer: Previewer,
    loras: Loras,
    /// What they keep in memory beside their files.
    lora_bytes: u64,
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The picture, of the size asked for, times `upscale`; black if its verdict says that it was flagged.
    pub picture: Reviewed<Rgb8>,
    /// What waits for a person, if it was flagged and the policy holds such pictures.
    pub held: Option<Held>,
    /// Which picture of the batch, from 0.
    pub index: u32,
    /// The seed that makes this very picture by itself.
    pub seed: u64,
    /// How it was made, for its file's metadata: the request, the seed, the LoRAs and the policy that were in force.
    pub provenance: Provenance,
    /// The final latents, of the size rendered; zeros if the picture was flagged.
    pub latents: Latents,
    /// Seconds by stage.
    pub seconds: Seconds,
    /// Velocities that were computed and reused.
    pub evaluations: Evaluations,
}

/// Seconds by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
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

/// What was read for a request.
struct Texts {
    positive: Conditioning,
    /// With classifier-free guidance.
    negative: Option<Conditioning>,
    /// The prompt with styles behind it.
    styled: Option<Styled>,
}

/// What all pictures of a request share: from which noise level to which, between which tokens.
struct Way<'a> {
    request: &'a Request,
    plan: &'a Plan,
    texts: &'a Texts,
    /// `[channels, height, width]`.
    latent_size: [usize; 3],
    sigmas: Vec<f32>,
    seen: Seen,
    plain_rope: Rope,
    /// With the tokens of styles.
    styled_rope: Option<Rope>,
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

        let prompts = PromptReader::load(&files, options, &backend, gentle, watch)?;

        watch.event(Event::Loading("transformer"));
        let config = files.transformer.flux_config()?;
        let scheduler = files.scheduler(&config)?;
        let transformer = Flux::load(config, &files.transformer.weights(&backend, precision))?;

        watch.event(Event::Loading("vae"));
        let weights = files.vae.weights(&backend, gentle);
        let vae = Decoder::load(files.vae.vae_config()?, &weights)?;
        let vae_extent = weights.extent();
        let previewer = Previewer::load(files.tiny_decoder.as_ref(), vae.config(), &backend, gentle)?;

        let pipeline = Self {
            options: options.clone(),
            files,
            backend,
            precision,
            prompts,
            transformer,
            scheduler,
            vae,
            vae_extent,
            previewer,
            loras: Loras::default(),
            lora_bytes: 0,
        };
        pipeline.check_fit(pipeline.files.transformer.checkpoint.origin())?;
        pipeline.release(); // small tensors were read all over the files
        Ok(pipeline)
    }

    /// Gives back the memory of all weights and of activations gone by. A pipeline that waits for its next request takes
    /// little then; the weights come back from their files when they are used.
    pub fn release(&self) {
        self.prompts.release();
        self.transformer.layout().release();
        self.vae_extent.release();
        self.backend.release_idle();
    }

    /// Before other parts run: what an earlier picture left of the transformer goes, if there is no room for both.
    fn make_room(&self, plan: &Plan) {
        if !plan.begins_beside_transformer() {
            self.transformer.layout().release();
        }
    }

    /// The parts come from several files: their widths must meet.
    fn check_fit(&self, origin: &std::path::Path) -> Result<()> {
        let flux = self.transformer.config();
        // With a control picture 128 channels, with Fill 384: whatever is known is no misfit.
        let latents = 4 * self.vae.config().latent_channels;
        let img_in = if self.kind().is_some() { latents } else { flux.in_channels };
        let pairs = [
            ("CLIP's width", self.prompts.pooled_width(), "vector_in", flux.vec_in_dim),
            ("T5's width", self.prompts.txt_width(), "txt_in", flux.context_in_dim),
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
        &self.options.safety
    }

    /// Puts another policy in force, for the runs that follow; nothing is loaded again.
    pub fn set_safety(&mut self, safety: Safety) {
        self.options.safety = safety;
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
        self.prompts.t5_tokens(&self.safety().screen(text)?)
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
        if request.style_pictures().next().is_some() {
            self.files.styles.find(request.style_field())?;
        }
        let plan = self.plan(request)?;
        if plan.shortfall().is_some() {
            let workload = request.planned(self.vae.config());
            return Err(plan::refuse(&plan, workload, |smaller| self.plan_workload(smaller)));
        }
        Ok(plan)
    }

    /// What a picture of `request` takes and how it is going to be made: which blocks stay in memory, whether it is decoded in
    /// tiles. [`Plan::shortfall`] tells if it cannot be made.
    ///
    /// ```
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
        self.plan_workload(request.planned(self.vae.config()))
    }

    fn plan_workload(&self, workload: Workload) -> Result<Plan> {
        rehearsal::plan_with(&self.files, workload, &self.options, &self.loras, self.lora_bytes)
    }

    /// Applies LoRAs with their weights in the place of those before; without any, the model is what it was, bit for bit. Takes
    /// the time of reading their headers (and with DoRA, the first time, of reading the layers that it changes).
    ///
    /// # Errors
    /// [`Error::File`] naming the LoRA and the tensor, [`Error::Asked`] about `lora` or `lora_merge`; nothing has changed then.
    pub fn set_loras(&mut self, loras: &Loras) -> Result<Vec<LoraReport>> {
        let [clip, t5] = self.prompts.adaptable();
        let applied = lora::apply(&mut [self.transformer.adaptable(), clip, t5], loras, &self.backend)?;
        self.transformer.widen();
        self.release(); // all over the files layers were read
        let Applied { reports, own_bytes } = applied;
        self.prompts.set_loras(loras, &reports);
        self.loras = loras.clone();
        self.lora_bytes = own_bytes;
        Ok(reports)
    }

    #[cfg(test)]
    pub(crate) fn prompts(&self) -> &PromptReader {
        &self.prompts
    }

    #[cfg(test)]
    pub(crate) fn hidden_size(&self) -> usize {
        self.transformer.config().hidden_size()
    }

    /// The LoRAs that are applied.
    pub fn loras(&self) -> &Loras {
        &self.loras
    }

    /// How a picture of `request` with this seed would be made now; a finished one has its own ([`Generated::provenance`]).
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
            styles: request.styles_told(),
            seed,
            noise: request.noise.to_string(),
            sampler: request.sampler.to_string(),
            acceleration: request.acceleration.to_string(),
            schedule: request.schedule.to_string(),
            t5_length: request.t5_length as u32,
            precision: self.precision.to_string(),
            safety: self.safety().name().into(),
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

    /// The story: check, screen, read, and for each picture denoise, decode, enlarge, review.
    fn run(
        &self,
        request: &Request,
        watch: &mut dyn Watch,
        mut audit: Option<&mut dyn FnMut(Reused)>,
        done: &mut dyn FnMut(Generated) -> ControlFlow<()>,
    ) -> Result<()> {
        let plan = self.checked(request)?;
        watch.event(Event::Planned(&plan));
        let prompts = self.screened(request)?;
        watch.event(Event::Encoding);
        let start = Instant::now();
        let texts = self.read(&prompts, request, &plan, watch)?;
        let way = self.way(request, &plan, &texts, watch)?;
        let encode = start.elapsed().as_secs_f64();
        let mut refused = None;
        for picture in 0..request.batch {
            let seed = request.seed.wrapping_add(u64::from(picture));
            let start = Instant::now();
            let audit = audit.as_mut().map(|audit| &mut **audit as &mut dyn FnMut(Reused));
            let (latents, evaluations) = self.denoised(&way, (picture, seed), audit, watch)?;
            let denoise = start.elapsed().as_secs_f64();

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
            let upscale = start.elapsed().as_secs_f64();

            let (reviewed, held, latents) = match self.reviewed(finished, latents, picture, watch) {
                Ok(reviewed) => reviewed,
                Err(reason) => {
                    refused = Some(reason.into());
                    continue;
                }
            };
            let generated = Generated {
                picture: reviewed,
                held,
                index: picture,
                seed,
                provenance: self.provenance(request, seed),
                latents,
                seconds: Seconds { encode, denoise, decode, upscale },
                evaluations,
            };
            if done(generated).is_break() {
                break;
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// The prompt and what is not to be drawn; the request's pictures pass or not with them.
    fn screened<'a>(&self, request: &'a Request) -> Result<[Screened<&'a str>; 2]> {
        let prompt = self.safety().screen(&request.prompt)?;
        let negative = self.safety().screen_negative(request.negative_prompt.as_deref().unwrap_or(""));
        // A mask shows nothing.
        for (field, picture) in request.pictures.all().filter(|(field, _)| *field != "mask") {
            self.safety().check_given(field, picture)?;
        }
        for (picture, _) in request.style_pictures() {
            self.safety().check_given(request.style_field(), picture)?;
        }
        Ok([prompt, negative])
    }

    /// What the text encoders say, and the vision tower of styles; all of them have gone afterwards.
    fn read(
        &self,
        [prompt, negative]: &[Screened<&str>; 2],
        request: &Request,
        plan: &Plan,
        watch: &mut dyn Watch,
    ) -> Result<Texts> {
        self.make_room(plan);
        let positive = self.prompts.read(prompt, request.t5_length, plan, watch)?;
        let negative = if request.uses_true_cfg() {
            Some(self.prompts.read(negative, request.t5_length, plan, watch)?)
        } else {
            None
        };
        self.prompts.release();
        self.backend.release_idle();
        let encoder = || {
            let files = self.files.styles.find(request.style_field())?;
            let width = self.transformer.config().context_in_dim;
            StyleEncoder::load(&files, width, &self.backend, self.precision.without_int8())
        };
        let pictures: Vec<_> = request.style_pictures().collect();
        let styled = styles::encode(&pictures, &positive.txt, encoder, watch)?;
        Ok(Texts { positive, negative, styled })
    }

    /// Noise levels, the request's pictures as the autoencoder sees them, and where all tokens lie.
    fn way<'a>(
        &self,
        request: &'a Request,
        plan: &'a Plan,
        texts: &'a Texts,
        watch: &mut dyn Watch,
    ) -> Result<Way<'a>> {
        let latent_size = self.latent_size(request);
        let grid = [latent_size[1] / 2, latent_size[2] / 2];
        let schedule = |steps| self.scheduler.sigmas(request.schedule, steps, grid[0] * grid[1]);
        let sigmas = match &request.pictures.start {
            Some(start) => start.sigmas(request.steps, schedule)?,
            None => schedule(request.steps as usize)?,
        };
        let seen = self.see(request, plan, sigmas[0], watch)?;
        let (_, grids) = seen.references();
        let config = self.transformer.config();
        let rope =
            |text_tokens| Rope::with_references(&self.backend, text_tokens, grid, grids, config.axes_dim, config.theta);
        let plain_rope = rope(request.t5_length);
        let styled_rope = texts.styled.as_ref().map(|styled| rope(styled.txt.shape()[0]).weighted(&styled.weights));
        Ok(Way { request, plan, texts, latent_size, sigmas, seen, plain_rope, styled_rope })
    }

    /// The latents of a picture and its seed; the transformer makes room for the autoencoder, if it has to.
    fn denoised(
        &self,
        way: &Way<'_>,
        (picture, seed): (u32, u64),
        audit: Option<&mut dyn FnMut(Reused)>,
        watch: &mut dyn Watch,
    ) -> Result<(Latents, Evaluations)> {
        let Way {
            request,
            plan,
            texts: Texts { positive, negative, styled },
            sigmas,
            seen,
            plain_rope,
            styled_rope,
            ..
        } = way;
        let beginning = seen.begin(&request.pictures, request.noise, seed, way.latent_size, sigmas[0], &self.backend);
        let guidance = guidance_argument(request.guidance, self.precision);
        let (references, _) = seen.references();
        let guided = Guided {
            condition: Condition {
                txt: styled.as_ref().map_or(&positive.txt, |styled| &styled.txt),
                ..positive.with(guidance, styled_rope.as_ref().unwrap_or(plain_rope))
            },
            negative: negative.as_ref().map(|text| (text.with(guidance, plain_rope), request.true_cfg)),
            residency: plan.residency("transformer"),
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
        let path = Path {
            start: &beginning.latents,
            sigmas,
            sampler: request.sampler,
            // As ComfyUI on a CPU: the fresh noise of a picture's way has the seed after that of its beginning.
            draws: Generator::new(request.noise, seed.wrapping_add(1)),
            after_step: blend.is_some().then_some(&after_step as &dyn Fn(Tensor, f32) -> Tensor),
            cache: request.acceleration.cache(),
            audit: audit.map(|audit| audit as &mut dyn FnMut(Reused)),
            picture,
        };
        let denoised = denoise(&self.transformer, path, &guided, &preview, watch)?;
        if !plan.keeps_transformer {
            self.transformer.layout().release();
        }
        self.backend.release_idle();
        Ok(denoised)
    }

    /// What the policy lets out of a finished picture and its latents.
    fn reviewed(
        &self,
        finished: Rgb8,
        latents: Latents,
        picture: u32,
        watch: &mut dyn Watch,
    ) -> Result<(Reviewed<Rgb8>, Option<Held>, Latents), Refused> {
        let flagged = match self.safety().review(finished) {
            Ok(reviewed) => return Ok((reviewed, None, latents)),
            Err(flagged) => flagged,
        };
        watch.event(Event::Flagged { picture, refused: flagged.refused() });
        let on_flagged = self.safety().on_flagged();
        if on_flagged == OnFlagged::Refuse {
            return Err(flagged.into());
        }
        // The latents show what the picture does.
        let latents = Latents { values: vec![0.0; latents.values.len()], ..latents };
        Ok((flagged.blacked(), (on_flagged == OnFlagged::Hold).then(|| flagged.held()), latents))
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
            sizes: Sizes::covering((request.width, request.height), self.vae.config().factor() as u32),
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
        Error::degenerate(what).hint(hint)
    }
}
