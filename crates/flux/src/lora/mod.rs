//! LoRAs and their kin: small files that change a model, applied while it runs.
//!
//! A file is read in whatever spelling its trainer wrote it ([`Lora::open`]); its layers are looked up in the model's own list of
//! names. What it changes is added to the layers as products of low rank ([`added`](self::added)), so a model in any storage format can have
//! it, another weight takes effect at once, and without it the model is what it was, bit for bit. `Loras::merge` folds the
//! changes into weights stored as floats instead. Fails by naming the file and the tensor; tensors without a place are told.

mod added;
mod apply;
mod delta;
mod keys;
mod names;
mod peft;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

pub(crate) use self::{
    added::Added,
    apply::{Adapted, Applied, Model, apply},
};
use self::{delta::Group, peft::Peft};
use crate::{
    error::{Error, Result},
    weights::{Checkpoint, Component},
};

/// A file that changes a model: LoRA, LoKr, LoHa, DoRA, whole differences, or BFL's control LoRAs.
///
/// ```no_run
/// # fn main() -> Result<(), flux::Error> {
/// # let files = flux::model::ModelSpec::default().find(&flux::model::SearchPaths::default())?;
/// use std::sync::Arc;
/// use flux::{LoadOptions, Pipeline, lora::{Lora, Loras}};
///
/// let mut pipeline = Pipeline::load(files, &LoadOptions::default(), &mut ())?;
/// let style = Arc::new(Lora::open("style.safetensors".as_ref())?);
/// for weight in [0.5, 1.0] {
///     let reports = pipeline.set_loras(&Loras::from([(style.clone(), weight)]))?; // at once
///     println!("{}", reports[0]);
///     pipeline.generate(&pipeline.request("a fox"), &mut ())?;
/// }
/// pipeline.set_loras(&Loras::default())?; // as if there had been none
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lora {
    path: PathBuf,
    checkpoint: Checkpoint,
    /// By what the file calls the layers.
    groups: BTreeMap<String, Group>,
    /// Tensors whose names have no ending that is known.
    others: Vec<String>,
    peft: Peft,
    /// Tells it from every other that was opened.
    id: u64,
    hash: OnceLock<String>,
}

impl Lora {
    /// Reads the header of a safetensors file; its tensors stay where they are.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or holds nothing that changes a model.
    pub fn open(path: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let checkpoint = Checkpoint::open(path)?;
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut others = Vec::new();
        for (key, _) in checkpoint.tensors() {
            match keys::split(key) {
                Some((layer, role)) => {
                    if let Some(other) = groups.entry(layer.to_owned()).or_default().insert(role, key.to_owned()) {
                        let problem = format!("has '{other}' and '{key}', which mean the same");
                        return Err(Error::file(path, problem));
                    }
                }
                None => others.push(key.to_owned()),
            }
        }
        if groups.is_empty() {
            let problem =
                "holds no LoRA: no tensor is called like 'lora_down', 'lora_A', 'lokr_w1', 'hada_w1_a' or 'diff'";
            return Err(Error::file(path, problem).hint("'darkroom inspect' tells what it is"));
        }
        let peft = Peft::read(&checkpoint).map_err(|problem| Error::file(path, problem))?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { path: path.to_owned(), checkpoint, groups, others, peft, id, hash: OnceLock::new() })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How many layers it changes, if they are there.
    pub fn layers(&self) -> usize {
        self.groups.len()
    }

    /// The first twelve digits of the SHA-256 of all tensors, as AUTOMATIC1111 and model sites tell LoRAs apart ("AutoV3").
    /// Reads the file once.
    pub fn hash(&self) -> &str {
        self.hash.get_or_init(|| {
            let mut hash = Sha256::new();
            for file in self.checkpoint.files() {
                let content = file.get();
                let header = content.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
                let header = usize::try_from(header).unwrap_or(usize::MAX).saturating_add(8);
                hash.update(content.get(header..).unwrap_or_default());
                file.release();
            }
            let number = hash.finalize().iter().take(6).fold(0u64, |number, &byte| number << 8 | u64::from(byte));
            format!("{number:012x}")
        })
    }

    /// What embeddings of a changed text encoder depend on.
    pub(crate) fn files(&self) -> &[tensor::Bytes] {
        self.checkpoint.files()
    }
}

/// LoRAs with their weights, which add up.
#[derive(Clone, Debug, Default)]
pub struct Loras {
    /// Each with its weight: 1 as it was trained, 0 is off, below 0 is the opposite.
    pub used: Vec<(Arc<Lora>, f32)>,
    /// Whether to fold them into the weights instead, which must be stored as F32, F16 or BF16: a step takes no longer than
    /// without, but the changed layers take memory of their own, and are rounded to the format they are stored in.
    pub merge: bool,
}

impl<const N: usize> From<[(Arc<Lora>, f32); N]> for Loras {
    fn from(used: [(Arc<Lora>, f32); N]) -> Self {
        Self { used: used.into(), merge: false }
    }
}

/// The greatest magnitude of a weight.
const MOST: f32 = 1000.0;

impl Loras {
    /// Refuses weights that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        match self.used.iter().find(|(_, weight)| !(-MOST..=MOST).contains(weight)) {
            None => Ok(()),
            Some((lora, weight)) => {
                let name = lora.path().display();
                Err(Error::asked("lora", format!("{name} has the weight {weight}; -{MOST} to {MOST} are possible")))
            }
        }
    }
}

/// A LoRA as a picture's file tells of it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraUsed {
    /// The file's name without its ending.
    pub name: String,
    /// Its weight.
    pub weight: f32,
    /// [`Lora::hash`].
    pub hash: String,
}

impl LoraUsed {
    pub(crate) fn all(loras: &Loras) -> Vec<Self> {
        let used = loras.used.iter().filter(|(_, weight)| *weight != 0.0);
        used.map(|(lora, weight)| Self { name: lora.name(), weight: *weight, hash: lora.hash().to_owned() }).collect()
    }
}

/// What became of a LoRA's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraReport {
    /// The file's name without its ending.
    pub name: String,
    /// The weight it was given.
    pub weight: f32,
    /// How many tensors were matched to which component.
    pub matched: Vec<(Component, usize)>,
    /// Those that were left out.
    pub unmatched: Vec<Unmatched>,
}

/// A tensor that has no place in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    /// Its name.
    pub key: String,
    /// Why.
    pub why: String,
}

impl LoraReport {
    /// Whether a text encoder is changed.
    pub(crate) fn changes_text(&self) -> bool {
        self.weight != 0.0 && self.matched.iter().any(|(component, _)| *component != Component::Transformer)
    }

    /// Refuses a LoRA of which something was left out.
    ///
    /// # Errors
    /// [`Error::Asked`] about `strict`, naming the tensors.
    pub fn strict(&self) -> Result<()> {
        /// More names than these help nobody.
        const SHOWN: usize = 8;
        if self.unmatched.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.unmatched.iter().take(SHOWN).map(|left| format!("'{}'", left.key)).collect();
        let more = self.unmatched.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let problem = format!("'{}' has tensors without a place in this model: {}{more}", self.name, names.join(", "));
        Err(Error::asked("strict", problem))
    }
}

/// One line: `style (weight 0.8): 608 tensors for the transformer, 72 for the CLIP-L text encoder; 2 were left out`.
impl fmt::Display for LoraReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (weight {}): ", self.name, self.weight)?;
        for (i, (component, count)) in self.matched.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            let tensors = if i == 0 { " tensors" } else { "" };
            write!(f, "{separator}{count}{tensors} for the {}", component.name())?;
        }
        if !self.unmatched.is_empty() {
            write!(f, "; {} left out", self.unmatched.len())?;
        }
        Ok(())
    }
}
