//! The parts of one model, found: their checkpoints, sizes and tokenizers.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use tensor::{Backend, DType, Precision};

use super::{Defaults, Family, Folder, Kind, StyleSearch};
use crate::{
    error::{Error, Result},
    schedule::SchedulerConfig,
    text::{
        clip::ClipConfig,
        t5::T5Config,
        tokenizer::{ClipTokenizer, T5Tokenizer, is_inside},
    },
    transformer::FluxConfig,
    vae::VaeConfig,
    vision::SiglipConfig,
    weights::{Checkpoint, Component, Detected, Weights, detect},
};

/// The transformer's matrices outside of its blocks, in every member of the family.
const EMBEDDERS: [&str; 8] = [
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "time_in.out_layer",
    "vector_in.in_layer",
    "vector_in.out_layer",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
];

/// One part of a model: a checkpoint, or a component inside one.
#[derive(Clone, Debug)]
pub struct Part {
    /// The tensors.
    pub checkpoint: Arc<Checkpoint>,
    /// Where and how they are named.
    pub detected: Detected,
    /// `config.json`, or the file's own metadata.
    pub(crate) config: Option<(PathBuf, String)>,
}

impl Part {
    /// The component in `checkpoint`, if it is there.
    pub(crate) fn find(checkpoint: &Arc<Checkpoint>, component: Component) -> Option<Self> {
        let detected = detect(checkpoint).into_iter().find(|d| d.component == component)?;
        let config = ["config", "params"].iter().find_map(|key| checkpoint.metadata(key));
        let config = config.map(|json| (checkpoint.origin().to_owned(), json.to_owned()));
        Some(Self { checkpoint: checkpoint.clone(), detected, config })
    }

    /// A view of its tensors.
    pub fn weights(&self, backend: &Arc<dyn Backend>, precision: Precision) -> Weights {
        Weights::new(self.checkpoint.clone(), &self.detected.prefix, self.detected.naming, backend.clone(), precision)
    }

    /// The sizes, from the configuration if there is one and it reads, otherwise from the shapes.
    fn config<C>(
        &self,
        parse: impl Fn(&str) -> std::result::Result<C, String>,
        derive: impl Fn(&Weights, &Path) -> Result<C>,
    ) -> Result<C> {
        match &self.config {
            Some((path, json)) => parse(json).map_err(|problem| Error::file(path, problem)),
            None => derive(&self.weights(&tensor::Device::DryRun.open(), Precision::F32), self.checkpoint.origin()),
        }
    }

    /// The transformer's sizes.
    ///
    /// # Errors
    /// If the configuration cannot be read or the file is something else.
    pub fn flux_config(&self) -> Result<FluxConfig> {
        self.check_embedders()?;
        let parse = |json: &str| {
            if json.contains("\"hidden_size\"") { FluxConfig::from_bfl(json) } else { FluxConfig::from_diffusers(json) }
        };
        self.config(parse, FluxConfig::from_weights)
    }

    /// Whether it is a transformer of which somebody kept the blocks alone.
    pub(super) fn is_pruned(&self) -> bool {
        !self.weights(&tensor::Device::DryRun.open(), Precision::F32).has("img_in.weight")
    }

    /// The transformer's width, told by a layer of its blocks.
    pub(super) fn width(&self) -> Option<usize> {
        let weights = self.weights(&tensor::Device::DryRun.open(), Precision::F32);
        let layers = ["double_blocks.0.img_attn.proj.weight", "single_blocks.0.linear2.weight"];
        layers.iter().find_map(|layer| weights.stored_shape(layer)?.first().copied())
    }

    /// Refuses a transformer of which somebody kept the blocks alone.
    fn check_embedders(&self) -> Result<()> {
        let weights = self.weights(&tensor::Device::DryRun.open(), Precision::F32);
        let missing: Vec<&str> = EMBEDDERS.into_iter().filter(|name| !weights.has(&format!("{name}.weight"))).collect();
        if weights.has("img_in.weight") || missing.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "holds FLUX's blocks alone, without {}: a pruned file; hint: put a whole one of the same model beside it, such as \
             BFL's, or take a file that has them",
            missing.join(", ")
        );
        Err(Error::file(self.checkpoint.origin(), problem))
    }

    /// The autoencoder's sizes.
    ///
    /// # Errors
    /// If the configuration cannot be read or the file is something else.
    pub fn vae_config(&self) -> Result<VaeConfig> {
        self.config(VaeConfig::from_diffusers, VaeConfig::from_weights)
    }

    /// CLIP's sizes.
    ///
    /// # Errors
    /// If the configuration cannot be read or the file is something else.
    pub fn clip_config(&self) -> Result<ClipConfig> {
        self.config(ClipConfig::from_json, ClipConfig::from_weights)
    }

    /// The vision tower's sizes.
    ///
    /// # Errors
    /// If the configuration cannot be read or the file is something else.
    pub(crate) fn siglip_config(&self) -> Result<SiglipConfig> {
        self.config(SiglipConfig::from_json, SiglipConfig::from_weights)
    }

    /// T5's sizes.
    ///
    /// # Errors
    /// If the configuration cannot be read or the file is something else.
    pub fn t5_config(&self) -> Result<T5Config> {
        self.config(T5Config::from_json, T5Config::from_weights)
    }

    /// Whether its matrices are stored as f32.
    pub fn is_f32(&self) -> bool {
        let prefix = self.detected.prefix.as_str();
        self.checkpoint
            .tensors()
            .filter(|(name, entry)| name.starts_with(prefix) && entry.shape.len() >= 2)
            .all(|(_, entry)| entry.weight_dtype() == Some(DType::F32))
    }
}

/// Files given one by one; each replaces what was found otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartFiles {
    /// `--transformer`.
    pub transformer: Option<PathBuf>,
    /// `--vae`.
    pub vae: Option<PathBuf>,
    /// `--clip-l`.
    pub clip_l: Option<PathBuf>,
    /// `--t5xxl`.
    pub t5xxl: Option<PathBuf>,
    /// `--clip-tokenizer`: a `tokenizer.json`, or a folder with one.
    pub clip_tokenizer: Option<PathBuf>,
    /// `--t5-tokenizer`: a `tokenizer.json`, or a folder with one.
    pub t5_tokenizer: Option<PathBuf>,
    /// `--redux-model`: the Redux projector, or a folder of FLUX.1 Redux \[dev\] with SigLIP beside it.
    pub redux_model: Option<PathBuf>,
    /// `--vision-model`: SigLIP's vision tower.
    pub vision_model: Option<PathBuf>,
}

/// A model, found and ready to be loaded.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// What it is called.
    pub name: String,
    /// Which member of the family it is.
    pub family: Family,
    /// What requests get unless they say otherwise.
    pub defaults: Defaults,
    /// What to tell whoever uses it.
    pub notice: Option<String>,
    /// FLUX's transformer.
    pub transformer: Part,
    /// The autoencoder.
    pub vae: Part,
    /// CLIP-L.
    pub clip_l: Part,
    /// T5.
    pub t5: Part,
    /// TAEF1's decoder, for previews.
    pub tiny_decoder: Option<Part>,
    /// Whether the model's folder says its defaults itself.
    pub(super) own_defaults: bool,
    pub(crate) clip_tokenizer: TokenizerFiles,
    pub(crate) t5_tokenizer: TokenizerFiles,
    pub(crate) scheduler: Option<(PathBuf, Vec<u8>)>,
    /// Where the parts are that see pictures.
    pub(crate) styles: StyleSearch,
}

/// Where a tokenizer is.
#[derive(Clone, Debug)]
pub(crate) enum TokenizerFiles {
    /// In the program: CLIP's or T5 v1.1's own.
    Embedded,
    /// In a folder of a model, with its configuration.
    Folder { folder: Folder, name: &'static str },
    /// A `tokenizer.json` given by flag.
    Json(PathBuf),
}

/// Gives the contents of a file in a folder; `None` where there is none.
type Read<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>;

impl TokenizerFiles {
    fn load<T>(
        &self,
        embedded: fn() -> &'static T,
        from_files: impl Fn(&Path, Read<'_>) -> Result<T>,
    ) -> Result<Tokenizer<T>> {
        match self {
            Self::Embedded => Ok(Tokenizer::Embedded(embedded())),
            Self::Folder { folder, name } => {
                let read = |file: &str| folder.read(&format!("{name}/{file}")).map(|bytes| bytes.map(Cow::into_owned));
                from_files(&folder.path(name), &read).map(|t| Tokenizer::Own(Box::new(t)))
            }
            Self::Json(path) => from_files(path, &|file| read_beside(path, file)).map(|t| Tokenizer::Own(Box::new(t))),
        }
    }
}

/// A tokenizer of the program's or of a model's own.
#[derive(Debug)]
pub(crate) enum Tokenizer<T: 'static> {
    Embedded(&'static T),
    Own(Box<T>),
}

impl<T> std::ops::Deref for Tokenizer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Embedded(tokenizer) => tokenizer,
            Self::Own(tokenizer) => tokenizer,
        }
    }
}

impl ModelFiles {
    /// A diffusers folder.
    pub(crate) fn from_diffusers(folder: &Folder, name: &str) -> Result<Self> {
        let index = folder.text("model_index.json")?;
        let class = check_index(folder, index.as_deref())?;
        let part = |component: Component, dir: &str, stems: &[&str]| -> Result<Part> {
            for stem in stems {
                let Some(checkpoint) = folder.checkpoint(&format!("{dir}/{stem}"))? else { continue };
                let checkpoint = Arc::new(checkpoint);
                let mut part = Part::find(&checkpoint, component).ok_or_else(|| {
                    Error::file(checkpoint.origin(), format!("holds no {}", component.name()))
                        .hint("'darkroom inspect' tells what it is")
                })?;
                let config = format!("{dir}/config.json");
                let json = folder.text(&config)?;
                part.config = json.map(|json| (folder.path(&config), json)).or(part.config);
                return Ok(part);
            }
            let expected = stems.iter().map(|s| format!("'{s}.safetensors'")).collect::<Vec<_>>().join(" or ");
            Err(Error::file(folder.path(dir), format!("has no {}: {expected} was expected", component.name())))
        };
        let diffusers = ["diffusion_pytorch_model", "model"];
        let transformers = ["model", "pytorch_model"];
        let tokenizer = |name: &'static str| {
            let any = ["tokenizer.json", "vocab.json"].iter().any(|file| folder.has(&format!("{name}/{file}")));
            if any { TokenizerFiles::Folder { folder: folder.clone(), name } } else { TokenizerFiles::Embedded }
        };
        let own: Own = match folder.text("darkroom.json")? {
            Some(json) => serde_json::from_str(&json)
                .map_err(|e| Error::file(folder.path("darkroom.json"), format!("cannot be read: {e}")))?,
            None => Own::default(),
        };
        let name = own.name.unwrap_or_else(|| name.to_owned());
        let family = if class.contains("Kontext") { Family::Kontext } else { Family::from_name(&name) };
        let scheduler = "scheduler/scheduler_config.json";
        Ok(Self {
            family,
            defaults: own.defaults.unwrap_or_else(|| family.defaults()),
            own_defaults: own.defaults.is_some(),
            notice: own.notice,
            name,
            transformer: part(Component::Transformer, "transformer", &diffusers)?,
            vae: part(Component::Vae, "vae", &diffusers)?,
            clip_l: part(Component::ClipL, "text_encoder", &transformers)?,
            t5: part(Component::T5, "text_encoder_2", &transformers)?,
            tiny_decoder: None,
            clip_tokenizer: tokenizer("tokenizer"),
            t5_tokenizer: tokenizer("tokenizer_2"),
            scheduler: folder.read(scheduler)?.map(|json| (folder.path(scheduler), json.into_owned())),
            styles: StyleSearch::default(),
        })
    }

    /// Parts from single files, each possibly holding several.
    pub(crate) fn from_parts(
        name: &str,
        [transformer, vae, clip_l, t5]: [Part; 4],
        tiny_decoder: Option<Part>,
    ) -> Self {
        let family = Family::from_name(name);
        Self {
            name: name.to_owned(),
            family,
            defaults: family.defaults(),
            own_defaults: false,
            notice: None,
            transformer,
            vae,
            clip_l,
            t5,
            tiny_decoder,
            clip_tokenizer: TokenizerFiles::Embedded,
            t5_tokenizer: TokenizerFiles::Embedded,
            scheduler: None,
            styles: StyleSearch::default(),
        }
    }

    /// The arithmetic where none was asked for: f32 if the transformer is stored so, because whoever keeps f32 wants it
    /// exact; otherwise bf16.
    pub fn auto_precision(&self) -> Precision {
        if self.transformer.is_f32() { Precision::F32 } else { Precision::BF16 }
    }

    /// What the transformer takes beside noise and text; `None` where its channels fit nothing that is known, or a header
    /// cannot be used, which loading will tell.
    pub fn kind(&self) -> Option<Kind> {
        let (flux, vae) = (self.transformer.flux_config().ok()?, self.vae.vae_config().ok()?);
        Kind::of(self.family, flux.in_channels, vae.latent_channels, vae.factor())
    }

    /// Corrects what a name said of the member by the weights, and the usual settings with it. `transformer` is the name of
    /// a transformer that was given apart.
    pub(super) fn settle(&mut self, transformer: Option<&str>) {
        let name = transformer.unwrap_or(&self.name).to_owned();
        let told = match transformer.map(Family::from_name) {
            Some(Family::Other) | None => self.family,
            Some(told) => told,
        };
        let kind = Self { family: told, ..self.clone() }.kind();
        let seen = told.seen(&name, kind);
        if seen != self.family {
            self.family = seen;
            if !self.own_defaults {
                self.defaults = seen.defaults();
            }
        }
    }

    /// The noise schedule: the folder's, or the family's usual one.
    pub(crate) fn scheduler(&self, config: &FluxConfig) -> Result<SchedulerConfig> {
        match &self.scheduler {
            Some((path, json)) => SchedulerConfig::from_json(path, json),
            // As every reference does, schnell is told by its missing guidance embedding.
            None if config.guidance_embed => Ok(SchedulerConfig::dev()),
            None => Ok(SchedulerConfig::schnell()),
        }
    }

    pub(crate) fn load_clip_tokenizer(&self) -> Result<Tokenizer<ClipTokenizer>> {
        self.clip_tokenizer.load(ClipTokenizer::embedded, |path, read| ClipTokenizer::from_files(path, read))
    }

    pub(crate) fn load_t5_tokenizer(&self) -> Result<Tokenizer<T5Tokenizer>> {
        match &self.t5_tokenizer {
            // Where nothing else was said, what came with the weights belongs to them.
            TokenizerFiles::Embedded if is_inside(&self.t5.checkpoint) => {
                T5Tokenizer::from_gguf(&self.t5.checkpoint).map(|t| Tokenizer::Own(Box::new(t)))
            }
            files => files.load(T5Tokenizer::embedded, |path, read| T5Tokenizer::from_files(path, read)),
        }
    }

    /// The four parts in the order a picture needs them.
    pub fn parts(&self) -> [(&'static str, &Part); 4] {
        [("clip_l", &self.clip_l), ("t5", &self.t5), ("transformer", &self.transformer), ("vae", &self.vae)]
    }
}

/// A file of a tokenizer given by flag: `path` is the `tokenizer.json` itself or its folder.
fn read_beside(path: &Path, file: &str) -> Result<Option<Vec<u8>>> {
    if path.is_file() && file == "tokenizer.json" {
        return std::fs::read(path).map(Some).map_err(|e| Error::file(path, e.to_string()));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    Ok(Folder::Disk(folder.to_owned()).read(file)?.map(Cow::into_owned))
}

/// Our own file in a model folder.
#[derive(Default, serde::Deserialize)]
struct Own {
    name: Option<String>,
    notice: Option<String>,
    defaults: Option<Defaults>,
}

/// The class of pipeline that a folder describes.
fn check_index(folder: &Folder, json: Option<&str>) -> Result<String> {
    let path = folder.path("model_index.json");
    let Some(json) = json else {
        return Err(Error::file(path, "is missing; a diffusers folder was expected"));
    };
    let index: serde_json::Value =
        serde_json::from_str(json).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    match index.get("_class_name").and_then(serde_json::Value::as_str) {
        Some(
            class @ ("FluxPipeline"
            | "FluxImg2ImgPipeline"
            | "FluxInpaintPipeline"
            | "FluxFillPipeline"
            | "FluxControlPipeline"
            | "FluxControlImg2ImgPipeline"
            | "FluxControlInpaintPipeline"
            | "FluxKontextPipeline"
            | "FluxKontextInpaintPipeline"),
        ) => Ok(class.to_owned()),
        Some(class) => Err(Error::file(path, format!("describes a {class}; a FluxPipeline was expected"))),
        None => Err(Error::file(path, "does not say its '_class_name'; a FluxPipeline was expected")),
    }
}
