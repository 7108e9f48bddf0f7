//! What a file says of how a picture is made: a ComfyUI workflow, or a picture of this program, of AUTOMATIC1111 or ComfyUI.
//!
//! A [`Recipe`] is read from text or bytes alone, finds no files and runs nothing; [`Recipe::apply`] puts it into a request. What
//! a file asks for and cannot be had is an error that names it; what is lost, and of no great weight, is in
//! [`Recipe::notes`]. Source: ComfyUI's `nodes.py`, `comfy_extras/nodes_custom_sampler.py`, the editor's workflow files; AUTOMATIC1111's
//! `modules/infotext_utils.py`.

mod graph;
mod infotext;
mod nodes;
mod pictures;
mod walk;

use std::path::{Component as PathComponent, Path, PathBuf};

use tensor::Precision;

use crate::{
    conditioning::{Margins, StrengthMapping},
    error::{Error, Result},
    image_file::{self, Format, Found, LoraUsed, Provenance},
    model::{ModelSpec, Part, PartFiles, SearchPaths},
    noise::Noise,
    pipeline::Pipeline,
    request::Request,
    weights::Component,
};

pub use pictures::{Change, Channel, MaskAsked, PictureAsked, PicturesAsked, Places, StartAsked};

/// Longest workflow, bytes.
pub const MAX_JSON: usize = 16 << 20;

/// How a picture is made, as far as a file says it. What is `None` was not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// The model's name, as this program or AUTOMATIC1111 wrote it.
    pub model: Option<String>,
    /// ComfyUI's names of files.
    pub files: Files,
    /// LoRAs in the order in which they are applied, by ComfyUI's names.
    pub loras: Vec<LoraAsked>,
    /// What to draw.
    pub prompt: Option<String>,
    /// What not to draw.
    pub negative_prompt: Option<String>,
    /// Pixels, as rendered.
    pub width: Option<u32>,
    /// Pixels, as rendered.
    pub height: Option<u32>,
    /// How many pictures.
    pub batch: Option<u32>,
    /// Steps from noise to picture.
    pub steps: Option<u32>,
    /// Distilled guidance.
    pub guidance: Option<f32>,
    /// Classifier-free guidance; 1 is off.
    pub true_cfg: Option<f32>,
    /// Of the first picture.
    pub seed: Option<u64>,
    /// Whose random numbers.
    pub noise: Option<Noise>,
    /// ComfyUI's name of the sampler.
    pub sampler: Option<String>,
    /// What is reused between steps, as [`crate::acceleration::Acceleration`] is written.
    pub acceleration: Option<String>,
    /// The noise schedule, as [`crate::schedule::ScheduleKind`] is written.
    pub schedule: Option<String>,
    /// T5 tokens.
    pub t5_length: Option<T5Length>,
    /// The arithmetic of products.
    pub precision: Option<Precision>,
    /// Whether it is decoded in tiles.
    pub vae_tiling: Option<bool>,
    /// How many times it is enlarged.
    pub upscale: Option<u32>,
    /// Pictures that it is made from, by ComfyUI's names.
    pub pictures: PicturesAsked,
    /// Pictures that it was made from and of which only this is known.
    pub lost: Lost,
    /// What is not as in the file, or is not looked at.
    pub notes: Vec<String>,
}

/// A model's files by ComfyUI's names, which are relative to its folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// In `diffusion_models` or `unet`.
    pub transformer: Option<String>,
    /// In `checkpoints`.
    pub checkpoint: Option<String>,
    /// In `text_encoders` or `clip`: CLIP-L and T5 in any order.
    pub clip: Vec<String>,
    /// In `vae`.
    pub vae: Option<String>,
    /// In `upscale_models`.
    pub upscaler: Option<String>,
    /// In `style_models`: Redux's projector.
    pub style: Option<String>,
    /// In `clip_vision`: SigLIP's tower.
    pub vision: Option<String>,
}

/// Pictures that a picture was made from: its file tells what they were for, and does not hold them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lost {
    /// What it began with, without the picture: how far it went, and which steps that is.
    pub start: Option<(f64, StrengthMapping)>,
    /// Whether there was a mask.
    pub mask: bool,
    /// Pixels added around it.
    pub margins: Margins,
    /// What it followed: whether edges were found first.
    pub control: Option<bool>,
    /// How many references it looked at.
    pub references: u32,
    /// Whether it was a variation of a picture.
    pub redux: bool,
    /// How much each style counted.
    pub styles: Vec<f32>,
}

/// A LoRA that a workflow applies.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAsked {
    /// In `loras`.
    pub file: String,
    /// For the transformer.
    pub weight: f32,
    /// For the text encoders, if they get it.
    pub text_weight: Option<f32>,
}

impl LoraAsked {
    /// The one that a picture tells of, if it is there under its name.
    fn named(used: &LoraUsed) -> Self {
        Self { file: format!("{}.safetensors", used.name), weight: used.weight, text_weight: None }
    }
}

/// How many tokens T5 sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum T5Length {
    /// So many.
    Exactly(usize),
    /// As many as the prompt has, but no fewer than this: ComfyUI's way.
    AtLeast(usize),
}

impl Recipe {
    /// A ComfyUI workflow in its UI or its API format.
    ///
    /// # Errors
    /// [`Error::Asked`] about `workflow`: it is no workflow, or asks for what cannot be had, which is named.
    pub fn from_workflow(json: &str) -> Result<Self> {
        if json.len() > MAX_JSON {
            return Err(graph::wrong(format!("is {} bytes long; at most {MAX_JSON} are read", json.len())));
        }
        walk::read(&graph::Graph::parse(json)?)
    }

    /// The workflow in a picture file that ComfyUI wrote.
    ///
    /// # Errors
    /// [`Error::Asked`] about `workflow`.
    pub fn from_workflow_picture(bytes: &[u8]) -> Result<Self> {
        let found = image_file::read(bytes).map_err(|e| graph::wrong(e.to_string()))?;
        let json = found.comfy_workflow().ok_or_else(|| graph::wrong("is a picture without a ComfyUI workflow"))?;
        Self::from_workflow(json)
    }

    /// How a picture was made, from its file: what this program wrote, or ComfyUI's workflow, or AUTOMATIC1111's infotext.
    ///
    /// # Errors
    /// [`Error::Asked`] about `from` if it says nothing; about `workflow` as [`Recipe::from_workflow`].
    pub fn from_picture(bytes: &[u8]) -> Result<Self> {
        let found: Found = image_file::read(bytes).map_err(|e| Error::asked("from", e.to_string()))?;
        if let Some(provenance) = &found.provenance {
            return Self::from_provenance(provenance);
        }
        if let Some(json) = found.comfy_workflow() {
            return Self::from_workflow(json);
        }
        match &found.parameters {
            Some(text) => infotext::read(text),
            None => Err(Error::asked("from", "the picture's file does not tell how it was made")),
        }
    }

    /// What this program wrote into a picture's file.
    ///
    /// # Errors
    /// [`Error::Asked`] about `from` if a value has another program's spelling.
    pub fn from_provenance(provenance: &Provenance) -> Result<Self> {
        let precision: Precision =
            provenance.precision.parse().map_err(|error| Error::asked("from", format!("{error}")))?;
        let mut notes = Vec::new();
        let upscale = match &provenance.upscaled[..] {
            [] => None,
            [once] => {
                if once.network != format!("span-x{}", once.scale) {
                    notes.push(format!("it was enlarged by '{}'; hint: --upscaler FILE", once.network));
                }
                Some(once.scale)
            }
            _ => {
                notes.push("it was enlarged more than once, which is left out; hint: darkroom upscale".into());
                None
            }
        };
        Ok(Self {
            model: Some(provenance.model.clone()),
            prompt: provenance.prompt.clone(),
            negative_prompt: provenance.negative_prompt.clone(),
            width: Some(provenance.width),
            height: Some(provenance.height),
            batch: Some(1),
            steps: Some(provenance.steps),
            guidance: provenance.guidance,
            true_cfg: Some(provenance.true_cfg),
            seed: Some(provenance.seed),
            noise: Some(provenance.noise.parse()?),
            sampler: Some(provenance.sampler.clone()).filter(|sampler| !sampler.is_empty()),
            // Nothing is told where nothing was reused.
            acceleration: Some(provenance.acceleration.clone()).filter(|level| !["", "none"].contains(&level.as_str())),
            schedule: Some(provenance.schedule.clone()),
            t5_length: Some(T5Length::Exactly(provenance.t5_length as usize)),
            precision: Some(precision),
            vae_tiling: provenance.vae_tiling,
            loras: provenance.loras.iter().map(LoraAsked::named).collect(),
            upscale,
            lost: Lost::of(provenance)?,
            notes,
            ..Self::default()
        })
    }

    /// Puts what is said into a request; the rest stays as it is.
    ///
    /// # Errors
    /// [`Error::Asked`] about `sampler`, `acceleration` or `schedule`.
    pub fn apply(&self, request: &mut Request, pipeline: &Pipeline) -> Result<()> {
        fn set<T: Clone>(to: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                to.clone_from(value);
            }
        }
        set(&mut request.prompt, self.prompt.as_ref());
        if self.negative_prompt.is_some() {
            request.negative_prompt.clone_from(&self.negative_prompt);
        }
        set(&mut request.width, self.width.as_ref());
        set(&mut request.height, self.height.as_ref());
        set(&mut request.batch, self.batch.as_ref());
        set(&mut request.steps, self.steps.as_ref());
        set(&mut request.guidance, self.guidance.as_ref());
        set(&mut request.true_cfg, self.true_cfg.as_ref());
        set(&mut request.seed, self.seed.as_ref());
        set(&mut request.noise, self.noise.as_ref());
        if let Some(sampler) = &self.sampler {
            request.sampler = sampler.parse()?;
        }
        if let Some(acceleration) = &self.acceleration {
            request.acceleration = acceleration.parse()?;
        }
        if let Some(schedule) = &self.schedule {
            request.schedule = schedule.parse()?;
        }
        match self.t5_length {
            Some(T5Length::Exactly(length)) => request.t5_length = length,
            Some(T5Length::AtLeast(least)) => {
                let negative = request.negative_prompt.as_deref().unwrap_or("");
                let [prompt, negative] = [&request.prompt, negative].map(|text| pipeline.t5_tokens(text));
                request.t5_length = prompt?.max(negative?).max(least);
            }
            None => {}
        }
        request.vae_tiling = self.vae_tiling.or(request.vae_tiling);
        request.upscale = self.upscale.or(request.upscale);
        Ok(())
    }

    /// Where the model's files are, in ComfyUI's folders; `None` if the file names no model, or the model in the box.
    ///
    /// # Errors
    /// [`Error::Asked`] about `workflow` or `from` naming a file that is not there, with the places looked at.
    pub fn model_spec(&self, paths: &SearchPaths) -> Result<Option<ModelSpec>> {
        let files = &self.files;
        if let Some(model) = &self.model {
            return Ok(Some(ModelSpec { model: Some(model.into()), parts: PartFiles::default() }));
        }
        if files.transformer.is_none() && files.checkpoint.is_none() {
            return Ok(None);
        }
        let mut parts = PartFiles::default();
        if let Some(name) = &files.transformer {
            parts.transformer = Some(find(paths, &["diffusion_models", "unet"], name, "--transformer")?);
        }
        if let Some(name) = &files.vae {
            parts.vae = Some(find(paths, &["vae"], name, "--vae")?);
        }
        if let Some(name) = &files.style {
            parts.redux_model = Some(find(paths, &["style_models"], name, "--redux-model")?);
        }
        if let Some(name) = &files.vision {
            parts.vision_model = Some(find(paths, &["clip_vision"], name, "--vision-model")?);
        }
        for name in &files.clip {
            let path = find(paths, &["text_encoders", "clip"], name, "--clip-l and --t5xxl")?;
            // Which of the two it is, its tensors tell.
            if Part::open(&path, Component::T5).is_ok() {
                parts.t5xxl = Some(path);
            } else {
                parts.clip_l = Some(path);
            }
        }
        let model = match &files.checkpoint {
            None => None,
            Some(name) => {
                let path = find(paths, &["checkpoints"], name, "-m")?;
                if parts.transformer.is_none() { Some(path.into_os_string()) } else { None }
            }
        };
        Ok(Some(ModelSpec { model, parts }))
    }

    /// Where the upscaler's file is, if one is named.
    ///
    /// # Errors
    /// As [`Recipe::model_spec`].
    pub fn upscaler(&self, paths: &SearchPaths) -> Result<Option<PathBuf>> {
        let found = |name: &String| find(paths, &["upscale_models"], name, "--upscaler");
        self.files.upscaler.as_ref().map(found).transpose()
    }

    /// Where the LoRAs' files are.
    ///
    /// # Errors
    /// As [`Recipe::model_spec`].
    pub fn lora_files(&self, paths: &SearchPaths) -> Result<Vec<(PathBuf, f32)>> {
        let found = |lora: &LoraAsked| Ok((find(paths, &["loras"], &lora.file, "--lora")?, lora.weight));
        self.loras.iter().map(found).collect()
    }
}

impl Lost {
    fn of(provenance: &Provenance) -> Result<Self> {
        let mut lost = Self::default();
        for told in &provenance.styles {
            match told.strip_prefix("style:").map(str::parse) {
                Some(Ok(weight)) => lost.styles.push(weight),
                _ => lost.redux = true,
            }
        }
        let Some(from) = &provenance.from_pictures else { return Ok(lost) };
        let mapping = from.strength_mapping.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        lost.start = from.strength.map(|strength| (strength, mapping));
        lost.mask = from.mask;
        if let Some([left, top, right, bottom]) = from.outpaint {
            lost.margins = Margins { left, top, right, bottom };
        }
        lost.control = from.control.as_deref().map(|control| control == "canny");
        lost.references = from.references;
        Ok(lost)
    }
}

/// A file by ComfyUI's name, which may have folders in it but never leads out of ComfyUI's own.
fn find(paths: &SearchPaths, folders: &[&str], name: &str, flag: &str) -> Result<PathBuf> {
    let relative = PathBuf::from(name.replace('\\', "/"));
    let stays = relative.components().all(|part| matches!(part, PathComponent::Normal(_)));
    let shown = graph::shortened(name);
    if !stays || name.is_empty() {
        return Err(graph::wrong(format!("names the file '{shown}', which is not a name in one of ComfyUI's folders")));
    }
    let places = paths.comfyui.iter().flat_map(|root| {
        let models = root.join("models");
        let tree = if models.is_dir() { models } else { root.clone() };
        folders.iter().map(move |folder| tree.join(folder))
    });
    let places: Vec<PathBuf> = places.collect();
    if let Some(found) = places.iter().map(|place| place.join(&relative)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let looked: Vec<String> = places.iter().map(|place| format!("'{}'", place.display())).collect();
    let looked = if looked.is_empty() {
        "no folder of ComfyUI's is known".into()
    } else {
        format!("looked in {}", looked.join(", "))
    };
    let problem = format!("needs the file '{shown}', which is not there ({looked})");
    Err(graph::wrong(problem).hint(format!("set COMFYUI_PATH, or say {flag}")))
}

impl Recipe {
    /// A workflow's file: JSON, or a picture that ComfyUI wrote.
    ///
    /// # Errors
    /// [`Error::Asked`] about `workflow`.
    pub fn from_workflow_file(path: &Path) -> Result<Self> {
        let bytes =
            image_file::contents(path).map_err(|problem| graph::wrong(format!("'{}' {problem}", path.display())))?;
        let read = if Format::of(&bytes).is_some() {
            Self::from_workflow_picture(&bytes)
        } else {
            let json = String::from_utf8(bytes).map_err(|_| graph::wrong("is neither text nor a picture"));
            json.and_then(|json| Self::from_workflow(json.trim_start_matches('\u{FEFF}')))
        };
        read.map_err(|e| in_file(e, path))
    }

    /// How the picture in a file was made.
    ///
    /// # Errors
    /// As [`Recipe::from_picture`].
    pub fn from_picture_file(path: &Path) -> Result<Self> {
        let bytes = image_file::contents(path)
            .map_err(|problem| Error::asked("from", format!("'{}' {problem}", path.display())))?;
        Self::from_picture(&bytes).map_err(|e| in_file(e, path))
    }
}

/// An error about a file's contents, with the file.
fn in_file(mut error: Error, path: &Path) -> Error {
    if let Error::Asked { problem, .. } = &mut error {
        *problem = format!("'{}' {problem}", path.display());
    }
    error
}
