//! Which model: the flags that all verbs share, and where models are looked for.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;
use flux::model::{ModelFiles, ModelSpec, PartFiles, SearchPaths};
use hub::{cache::Cache, records::Records};

/// Which model to use.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A diffusers folder, a ComfyUI models folder, a .safetensors file, or a name: krea, krea:q8_0, dev, schnell, org/name, pocket.
    /// Without it the small model in the box is used (pocket: draws icons, not photographs)
    #[arg(short, long, value_name = "PATH|NAME")]
    pub(crate) model: Option<OsString>,
    /// The transformer's file (flux1-krea-dev.safetensors)
    #[arg(long, value_name = "FILE", visible_alias = "diffusion-model")]
    transformer: Option<PathBuf>,
    /// The autoencoder's file (ae.safetensors)
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// CLIP-L's file (clip_l.safetensors)
    #[arg(long, value_name = "FILE", alias = "clip_l")]
    clip_l: Option<PathBuf>,
    /// T5-XXL's file (t5xxl_fp16.safetensors …)
    #[arg(long, value_name = "FILE")]
    t5xxl: Option<PathBuf>,
    /// CLIP's tokenizer.json, if not the usual one
    #[arg(long, value_name = "FILE")]
    clip_tokenizer: Option<PathBuf>,
    /// T5's tokenizer.json, if not the usual one
    #[arg(long, value_name = "FILE")]
    t5_tokenizer: Option<PathBuf>,
    /// Redux's file (flux1-redux-dev.safetensors), or a folder of FLUX.1 Redux [dev] with SigLIP in it
    #[arg(long, value_name = "PATH")]
    redux_model: Option<PathBuf>,
    /// SigLIP's file (sigclip_vision_patch14_384.safetensors), which sees pictures for Redux
    #[arg(long, value_name = "FILE", visible_alias = "clip-vision")]
    vision_model: Option<PathBuf>,
}

impl ModelArgs {
    /// Whether anything was said about the model.
    pub(crate) fn is_given(&self) -> bool {
        self.model.is_some() || self.transformer.is_some()
    }

    /// Finds the files.
    pub(crate) fn find(&self) -> flux::Result<ModelFiles> {
        self.over(ModelSpec::default()).find(&search_paths())
    }

    /// What was asked for here, and the rest of what is asked for elsewhere.
    pub(crate) fn over(&self, other: ModelSpec) -> ModelSpec {
        let ModelSpec { model, parts } = other;
        ModelSpec {
            model: self.model.clone().or(model),
            parts: PartFiles {
                transformer: self.transformer.clone().or(parts.transformer),
                vae: self.vae.clone().or(parts.vae),
                clip_l: self.clip_l.clone().or(parts.clip_l),
                t5xxl: self.t5xxl.clone().or(parts.t5xxl),
                clip_tokenizer: self.clip_tokenizer.clone().or(parts.clip_tokenizer),
                t5_tokenizer: self.t5_tokenizer.clone().or(parts.t5_tokenizer),
                redux_model: self.redux_model.clone().or(parts.redux_model),
                vision_model: self.vision_model.clone().or(parts.vision_model),
            },
        }
    }
}

/// Where models may lie, as other tools have it: `HF_HUB_CACHE`, `HF_HOME`, `COMFYUI_PATH`; and what was pulled.
pub(crate) fn search_paths() -> SearchPaths {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = var("HOME").or_else(|| var("USERPROFILE"));
    let comfyui = var("COMFYUI_PATH").or_else(|| home.map(|home| home.join("ComfyUI")).filter(|path| path.is_dir()));
    let hf_cache = hub::settings::cache_folder(&variable);
    let named = match (&hf_cache, hub::settings::data_folder(&variable)) {
        (Some(cache), Some(data)) => pulled(&Cache::new(cache), &Records::new(&data)),
        _ => Vec::new(),
    };
    SearchPaths { hf_cache, comfyui: comfyui.into_iter().collect(), named }
}

/// A variable's value as text.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What was pulled or imported and is whole, the latest first: `krea` is the latest variant of it, `krea:q8_0` that one.
fn pulled(cache: &Cache, records: &Records) -> Vec<(String, ModelSpec)> {
    let mut named = Vec::new();
    for record in records.all() {
        if !record.missing(cache).is_empty() {
            continue;
        }
        let parts = record.parts(cache);
        let spec = ModelSpec {
            model: parts.model.map(PathBuf::into_os_string),
            parts: PartFiles {
                transformer: parts.transformer,
                vae: parts.vae,
                clip_l: parts.clip_l,
                t5xxl: parts.t5,
                ..PartFiles::default()
            },
        };
        if spec.model.is_some() || spec.parts.transformer.is_some() {
            named.push((format!("{}:{}", record.name, record.variant), spec.clone()));
            named.push((record.name, spec));
        }
    }
    named
}
