//! From what a person typed to the files of a model. What is missing is said by name, with the places looked at.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Family, Folder, ModelFiles, Part, PartFiles, StyleSearch, files::TokenizerFiles, pocket};
use crate::{
    error::{Error, Result},
    weights::{Checkpoint, Component, Naming},
};

/// What a person asked for.
#[derive(Clone, Debug, Default)]
pub struct ModelSpec {
    /// `-m`: a path, a known name (`krea`, `dev`, `schnell`, `kontext`, `fill`, `canny`, `depth`, `pocket`) or a repository (`org/name`); `None` is `pocket`
    /// unless parts are given.
    pub model: Option<OsString>,
    /// Files given one by one.
    pub parts: PartFiles,
}

/// Where models may lie.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    /// The Hugging Face hub's cache: the folder with `models--…` in it.
    pub hf_cache: Option<PathBuf>,
    /// ComfyUI's `models` folders (or the folders that hold them).
    pub comfyui: Vec<PathBuf>,
    /// Models whose files a program knows by a name, the first that fits counts: what was downloaded under it.
    pub named: Vec<(String, ModelSpec)>,
}

/// Repositories with text encoders and autoencoders in ComfyUI's or GGUF's form, and the folder in each.
const COMPANIONS: [(&str, &str); 3] = [
    ("models--comfyanonymous--flux_text_encoders", ""),
    ("models--city96--t5-v1_1-xxl-encoder-gguf", ""),
    ("models--Comfy-Org--Lumina_Image_2.0_Repackaged", "split_files"),
];

/// Names for repositories.
const KNOWN: [(&str, &str, &str); 7] = [
    ("krea", "black-forest-labs/FLUX.1-Krea-dev", "krea"),
    ("dev", "black-forest-labs/FLUX.1-dev", "flux1-dev"),
    ("schnell", "black-forest-labs/FLUX.1-schnell", "schnell"),
    ("kontext", "black-forest-labs/FLUX.1-Kontext-dev", "kontext"),
    ("fill", "black-forest-labs/FLUX.1-Fill-dev", "flux1-fill"),
    ("canny", "black-forest-labs/FLUX.1-Canny-dev", "flux1-canny"),
    ("depth", "black-forest-labs/FLUX.1-Depth-dev", "flux1-depth"),
];

const WEIGHTS: [&str; 3] = ["safetensors", "sft", "gguf"];

impl ModelSpec {
    /// Finds the files.
    ///
    /// # Errors
    /// [`Error::Asked`] for `model` with everything that was tried, or [`Error::File`] for a file that cannot be used.
    pub fn find(&self, paths: &SearchPaths) -> Result<ModelFiles> {
        let mut files = match &self.model {
            Some(model) => self.find_named(model, paths)?,
            None if self.parts.transformer.is_some() => self.find_parts(paths)?,
            None => pocket::files()?,
        };
        self.override_parts(&mut files)?;
        files.settle(self.parts.transformer.as_deref().map(stem).as_deref());
        files.styles = StyleSearch::around(&files, &self.parts, paths);
        Ok(files)
    }

    fn find_named(&self, model: &OsStr, paths: &SearchPaths) -> Result<ModelFiles> {
        let path = Path::new(model);
        if path.is_dir() {
            return self.find_in_folder(path, paths);
        }
        if path.is_file() {
            return self.find_around(path, paths);
        }
        // A path need not be UTF-8, all names are.
        let model = &*model.to_string_lossy();
        if model == pocket::NAME {
            return pocket::files();
        }
        if let Some((_, named)) = paths.named.iter().find(|(name, _)| name == model) {
            return self.find_downloaded(named, paths);
        }
        let (repository, pattern) = KNOWN
            .iter()
            .find(|(name, repository, _)| *name == model || *repository == model)
            .map_or((model, model), |(_, repository, pattern)| (repository, pattern));
        let mut tried = Vec::new();
        if repository.contains('/')
            && let Some(cache) = &paths.hf_cache
        {
            let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
            if folder.is_dir() {
                return self.find_in_folder(&folder, paths);
            }
            tried.push(folder);
        }
        for root in &paths.comfyui {
            let tree = tree_of(root);
            let transformers = candidates(&tree, Component::Transformer);
            if let Some(candidate) = transformers.iter().find(|c| name_of(&c.path).contains(pattern)) {
                return self.find_around(&candidate.path, paths);
            }
            tried.push(tree);
        }
        let tried: Vec<String> = tried.iter().map(|p| format!("'{}'", p.display())).collect();
        let tried = if tried.is_empty() { String::new() } else { format!(" (looked in {})", tried.join(", ")) };
        let is_known = KNOWN.iter().any(|(name, known, _)| *name == model || *known == model) || model.contains(':');
        let pull = if is_known { format!("'darkroom pull {model}' gets it; or ") } else { String::new() };
        let hint = format!(
            "{pull}give a path to a diffusers folder, a ComfyUI models folder, a .safetensors or a .gguf file, or one of the names \
             krea, dev, schnell, kontext, fill, canny, depth, pocket"
        );
        let problem = format!("there is no file, folder or known model '{model}'{tried}");
        Err(Error::asked("model", problem).hint(hint))
    }

    /// Files that are known by a name; those that are given here go before them.
    fn find_downloaded(&self, named: &Self, paths: &SearchPaths) -> Result<ModelFiles> {
        let (ours, theirs) = (&self.parts, &named.parts);
        let parts = PartFiles {
            transformer: ours.transformer.clone().or_else(|| theirs.transformer.clone()),
            vae: ours.vae.clone().or_else(|| theirs.vae.clone()),
            clip_l: ours.clip_l.clone().or_else(|| theirs.clip_l.clone()),
            t5xxl: ours.t5xxl.clone().or_else(|| theirs.t5xxl.clone()),
            ..ours.clone()
        };
        let spec = Self { model: named.model.clone(), parts };
        match spec.model.as_deref().map(Path::new) {
            Some(folder) if folder.is_dir() => spec.find_in_folder(folder, paths),
            Some(file) => spec.find_around(file, paths),
            None => spec.find_parts(paths),
        }
    }

    fn find_in_folder(&self, folder: &Path, paths: &SearchPaths) -> Result<ModelFiles> {
        if folder.join("model_index.json").is_file() {
            return ModelFiles::from_diffusers(&Folder::Disk(folder.to_owned()), &snapshot_name(folder));
        }
        if folder.join("snapshots").is_dir() {
            return self.find_in_folder(&snapshot(folder)?, paths);
        }
        let tree = tree_of(folder);
        let transformers = candidates(&tree, Component::Transformer);
        let chosen = match &self.parts.transformer {
            Some(given) => given.clone(),
            None => choose_transformer(&transformers, &tree)?,
        };
        self.find_around(&chosen, paths)
    }

    fn find_parts(&self, paths: &SearchPaths) -> Result<ModelFiles> {
        let file = self.parts.transformer.as_deref().unwrap_or(Path::new(""));
        self.find_around(file, paths)
    }

    /// A transformer or an all-in-one file; the other parts are inside it, given, or near it.
    fn find_around(&self, file: &Path, paths: &SearchPaths) -> Result<ModelFiles> {
        let main = if file.is_dir() { part_of(file, Component::Transformer)?.checkpoint } else { open(file)? };
        if Part::find(&main, Component::Transformer).is_none() {
            let held: Vec<&str> = crate::weights::detect(&main).iter().map(|d| d.component.name()).collect();
            let held = if held.is_empty() { "nothing that is known".into() } else { held.join(", ") };
            return Err(Error::file(file, format!("holds no FLUX transformer (found: {held})")));
        }
        let places = Places::new(file, paths);
        let (main, notice) = places.complete(main, file);
        let wanted = [
            (Component::Transformer, None, "--transformer"),
            (Component::Vae, self.parts.vae.as_deref(), "--vae"),
            (Component::ClipL, self.parts.clip_l.as_deref(), "--clip-l"),
            (Component::T5, self.parts.t5xxl.as_deref(), "--t5xxl"),
        ];
        let mut found = Vec::new();
        let (mut missing, mut flags) = (Vec::new(), Vec::new());
        for (component, given, flag) in wanted {
            let part = match given {
                Some(path) => Some(part_of(path, component)?),
                None => match Part::find(&main, component) {
                    Some(part) => Some(part),
                    None => places.find(component)?,
                },
            };
            if let Some(part) = part {
                found.push(part);
            } else {
                missing.push(format!("the {}", component.name()));
                flags.push(format!("{flag} FILE"));
            }
        }
        let Ok(parts) = <[Part; 4]>::try_from(found) else {
            let problem = format!("is complete but for {}; looked in {}", missing.join(", "), places.list());
            return Err(Error::file(file, problem).hint(flags.join(" ")));
        };
        let tiny = places.find(Component::TinyDecoder)?;
        Ok(ModelFiles { notice, ..ModelFiles::from_parts(&stem(file), parts, tiny) })
    }

    fn override_parts(&self, files: &mut ModelFiles) -> Result<()> {
        let parts = &self.parts;
        let slots = [
            (&parts.transformer, Component::Transformer, &mut files.transformer),
            (&parts.vae, Component::Vae, &mut files.vae),
            (&parts.clip_l, Component::ClipL, &mut files.clip_l),
            (&parts.t5xxl, Component::T5, &mut files.t5),
        ];
        for (given, component, slot) in slots {
            if let Some(path) = given
                && slot.checkpoint.origin() != path
            {
                *slot = part_of(path, component)?;
            }
        }
        for (given, slot) in
            [(&parts.clip_tokenizer, &mut files.clip_tokenizer), (&parts.t5_tokenizer, &mut files.t5_tokenizer)]
        {
            if let Some(path) = given {
                *slot = TokenizerFiles::Json(path.clone());
            }
        }
        Ok(())
    }
}

impl Part {
    /// The component in a file, in a sharded checkpoint's index, or in a part's folder of a diffusers model.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or holds no such component.
    pub fn open(path: &Path, component: Component) -> Result<Self> {
        part_of(path, component)
    }
}

fn open(path: &Path) -> Result<Arc<Checkpoint>> {
    Checkpoint::open(path).map(Arc::new)
}

/// The component in a file or (sharded, or a part of a diffusers folder) a folder given for it.
pub(super) fn part_of(path: &Path, component: Component) -> Result<Part> {
    if path.is_dir() {
        for stem in ["diffusion_pytorch_model", "model"] {
            if let Some(checkpoint) = Folder::Disk(path.to_owned()).checkpoint(stem)? {
                let mut part = in_checkpoint(&Arc::new(checkpoint), path, component)?;
                let config = path.join("config.json");
                if let Ok(json) = std::fs::read_to_string(&config) {
                    part.config = Some((config, json));
                }
                return Ok(part);
            }
        }
        return Err(Error::file(
            path,
            "is a folder without 'diffusion_pytorch_model.safetensors' or 'model.safetensors'",
        ));
    }
    in_checkpoint(&open(path)?, path, component)
}

fn in_checkpoint(checkpoint: &Arc<Checkpoint>, path: &Path, component: Component) -> Result<Part> {
    Part::find(checkpoint, component).ok_or_else(|| Error::file(path, format!("holds no {}", component.name())))
}

/// Where the other parts of a single-file model may be.
#[derive(Clone, Debug)]
pub(super) struct Places {
    trees: Vec<PathBuf>,
}

impl Places {
    pub(super) fn new(transformer: &Path, paths: &SearchPaths) -> Self {
        let parent = transformer.parent().map_or_else(PathBuf::new, Path::to_owned);
        // Beside the file, in the ComfyUI tree around it, then in the trees that are known.
        let mut trees = vec![parent.clone()];
        trees.extend(parent.ancestors().skip(1).take(2).map(Path::to_owned));
        trees.extend(paths.comfyui.iter().map(|root| tree_of(root)));
        if let Some(cache) = &paths.hf_cache {
            let snapshots = COMPANIONS.iter().filter_map(|(repository, folder)| {
                let repository = cache.join(repository);
                if repository.is_dir() { Some(snapshot(&repository).ok()?.join(folder)) } else { None }
            });
            trees.extend(snapshots);
        }
        Self { trees }
    }

    pub(super) fn find(&self, component: Component) -> Result<Option<Part>> {
        for tree in &self.trees {
            for candidate in candidates(tree, component) {
                if let Some(part) = candidate.open()?.and_then(|checkpoint| Part::find(&checkpoint, component)) {
                    return Ok(Some(part));
                }
            }
        }
        Ok(None)
    }

    /// A transformer of which somebody kept the blocks alone, with the rest from a whole one of the same kind and width that is
    /// near it; and what to say about that. Where there is none, it stays as it is, and its configuration will say so.
    fn complete(&self, main: Arc<Checkpoint>, file: &Path) -> (Arc<Checkpoint>, Option<String>) {
        let Some(part) = Part::find(&main, Component::Transformer).filter(Part::is_pruned) else { return (main, None) };
        let kind = |path: &Path| {
            let name = name_of(path);
            let variants = ["kontext", "fill", "canny", "depth"].map(|variant| name.contains(variant));
            (Family::from_name(&name), variants)
        };
        for tree in &self.trees {
            for candidate in candidates(tree, Component::Transformer) {
                // Of a name that says nothing, nothing is known.
                if kind(file).0 == Family::Other || kind(&candidate.path) != kind(file) {
                    continue;
                }
                let Ok(Some(other)) = candidate.open() else { continue };
                let Some(other) = Part::find(&other, Component::Transformer) else { continue };
                if other.detected.naming == Naming::Same && !other.is_pruned() && other.width() == part.width() {
                    let (ours, theirs) = (&part.detected.prefix, &other.detected.prefix);
                    let whole = main.completed(ours, &other.checkpoint, theirs);
                    let from = candidate.path.display();
                    return (Arc::new(whole), Some(format!("what is outside of the blocks comes from '{from}'")));
                }
            }
        }
        (main, None)
    }

    pub(super) fn list(&self) -> String {
        self.trees.iter().map(|p| format!("'{}'", p.display())).collect::<Vec<_>>().join(", ")
    }
}

/// `ComfyUI` or `ComfyUI/models` → `ComfyUI/models`.
fn tree_of(root: &Path) -> PathBuf {
    let models = root.join("models");
    if models.is_dir() { models } else { root.to_owned() }
}

/// A file that may hold a component.
struct Candidate {
    path: PathBuf,
    /// Whether its name says so; otherwise only its place does.
    promised: bool,
}

impl Candidate {
    /// The file's tensors. A broken file is an error only where its name promises the part.
    fn open(&self) -> Result<Option<Arc<Checkpoint>>> {
        match open(&self.path) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(error) if self.promised => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// Files of a tree that may hold a component, best first: by name, then by place alone.
fn candidates(tree: &Path, component: Component) -> Vec<Candidate> {
    // The last folder of each is for everything: there a file needs the right name.
    let (folders, words): (&[&str], &[&str]) = match component {
        Component::Transformer => (&["diffusion_models", "unet", "checkpoints", ""], &["flux", "krea"]),
        Component::Vae => (&["vae", ""], &["ae", "flux", "vae"]),
        Component::ClipL => (&["text_encoders", "clip", ""], &["clip_l"]),
        Component::T5 => (&["text_encoders", "clip", ""], &["t5xxl", "t5-v1_1-xxl"]),
        Component::TinyDecoder => (&["vae_approx", "vae", ""], &["taef1_decoder", "taef1"]),
        Component::TinyEncoder => (&["vae_approx", "vae", ""], &["taef1_encoder", "taef1"]),
        Component::Vision => (&["clip_vision", ""], &["sigclip", "siglip"]),
        Component::Redux => (&["style_models", ""], &["redux"]),
    };
    let mut found = Vec::new();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(tree.join(folder)) else { continue };
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let weights = files.filter(|path| path.extension().is_some_and(|e| WEIGHTS.iter().any(|w| e == *w)));
        let mut here: Vec<Candidate> = weights
            .map(|path| Candidate { promised: component.promised_by(&name_of(&path), words), path })
            .filter(|candidate| candidate.promised || !folder.is_empty())
            .collect();
        // The most exact first: fp16 before fp8, then by name so that a choice never depends on the disk.
        here.sort_by_key(|c| (!c.promised, bits_missing(&name_of(&c.path)), name_of(&c.path)));
        found.extend(here);
    }
    found.sort_by_key(|c| !c.promised); // stable: a better place stays first
    found
}

/// How far a file's numbers are from 16 bits, as its name tells: `Q4_K_M` in a GGUF's, `fp8` in others.
fn bits_missing(name: &str) -> u32 {
    let quantised = name.rmatch_indices('q').find_map(|(at, _)| name[at + 1..].chars().next()?.to_digit(10));
    match quantised {
        Some(bits @ 1..=8) if Path::new(name).extension().is_some_and(|e| e == "gguf") => 16 - bits,
        _ if name.contains("fp8") => 8,
        _ => 0,
    }
}

impl Component {
    fn promised_by(self, name: &str, words: &[&str]) -> bool {
        let whole = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let promised = words.iter().any(|word| if *word == "ae" { whole == "ae" } else { whole.contains(word) });
        match self {
            // A tiny autoencoder's name contains a full one's.
            Self::Vae => promised && !whole.contains("taef1"),
            _ => promised,
        }
    }
}

fn choose_transformer(candidates: &[Candidate], tree: &Path) -> Result<PathBuf> {
    let promised: Vec<&Candidate> = candidates.iter().filter(|c| c.promised).collect();
    // Names decide among several; only where no name says FLUX are the files themselves asked.
    let found: Vec<&Path> = if promised.is_empty() {
        let holds = |c: &&Candidate| matches!(c.open(), Ok(Some(checkpoint)) if Part::find(&checkpoint, Component::Transformer).is_some());
        candidates.iter().filter(holds).map(|c| c.path.as_path()).collect()
    } else {
        promised.iter().map(|c| c.path.as_path()).collect()
    };
    let krea: Vec<&Path> = found.iter().copied().filter(|path| name_of(path).contains("krea")).collect();
    match (krea.as_slice(), found.as_slice()) {
        ([only], _) | (_, [only]) => Ok((*only).to_owned()),
        (_, []) => Err(Error::file(
            tree,
            "holds neither 'model_index.json' (a diffusers folder) nor a FLUX file in 'diffusion_models', 'unet' or \
             'checkpoints' (a ComfyUI tree)",
        )
        .hint("name the file itself with --transformer")),
        _ => {
            let names: Vec<String> = found.iter().map(|p| format!("'{}'", p.display())).collect();
            Err(Error::file(tree, format!("holds several FLUX models: {}; hint: name one", names.join(", "))))
        }
    }
}

/// The newest snapshot that the cache's `refs/main` names, or the only one.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(revision) = std::fs::read_to_string(folder.join("refs/main")) {
        let named = snapshots.join(revision.trim());
        if named.is_dir() {
            return Ok(named);
        }
    }
    let mut all: Vec<PathBuf> = std::fs::read_dir(&snapshots)
        .map_err(|e| Error::file(&snapshots, e.to_string()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    all.sort();
    all.pop().ok_or_else(|| Error::file(snapshots, "holds no snapshot; hint: download the model again"))
}

/// `models--black-forest-labs--FLUX.1-Krea-dev/snapshots/…` → the repository's name; otherwise the folder's.
fn snapshot_name(folder: &Path) -> String {
    let of_cache = folder.ancestors().find_map(|a| a.file_name()?.to_str()?.strip_prefix("models--"));
    let name = of_cache.map(|name| name.rsplit("--").next().unwrap_or(name).to_owned());
    name.unwrap_or_else(|| folder.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned()))
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().to_lowercase())
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
