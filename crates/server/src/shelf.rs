//! The models that are served, under which names, and the LoRAs beside them. What is loaded is the engine's; this tells others of it,
//! and tells the engine what others wish.
//!
//! A name that is not here is refused: no request names a file. The [`Stock`] can be replaced and the LoRAs' folder is read whenever
//! somebody asks, so neither needs a restart.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use serde::Serialize;

use crate::{
    clock::Millis,
    error::Fault,
    stock::{Served, Stock},
};

/// Most LoRAs that a folder is searched for.
const MOST_LORAS: usize = 10_000;

/// The handle; clones share the shelf.
#[derive(Clone, Debug)]
pub struct Shelf(Arc<RwLock<Inner>>);

#[derive(Debug)]
struct Inner {
    stock: Arc<Stock>,
    /// Of models that were loaded at least once, by name.
    states: BTreeMap<String, Known>,
    /// What the engine is to do when it has a moment.
    wishes: Vec<Wish>,
}

/// What somebody wishes of the engine. The model is one of the shelf's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The next picture shall not wait for this model.
    Load(String),
    /// The memory of this model is wanted for something else.
    Unload(String),
}

/// What is known of a model that is or was loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    pub(crate) family: &'static str,
    pub(crate) notice: Option<String>,
    /// The most memory that its last picture was planned to take; 0 if it is not loaded.
    pub(crate) bytes: u64,
    pub(crate) loaded: bool,
    pub(crate) last_used: Millis,
}

/// A model as others see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelState {
    /// What it is called here.
    pub name: String,
    /// Which member of the FLUX.1 family it is; known once it was loaded.
    pub family: Option<&'static str>,
    /// What its users should know.
    pub notice: Option<String>,
    /// Whether the next picture needs no loading.
    pub loaded: bool,
    /// The most memory its last picture was planned to take; 0 if it is not loaded.
    pub bytes: u64,
    /// When it made its last picture.
    pub last_used: Option<Millis>,
}

/// A LoRA's file as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoraFile {
    pub(crate) path: PathBuf,
    /// Another file under the same name has another.
    pub(crate) stamp: (u64, Option<SystemTime>),
}

impl Shelf {
    /// With this on it.
    pub fn new(stock: Stock) -> Self {
        Self(Arc::new(RwLock::new(Inner { stock: Arc::new(stock), states: BTreeMap::new(), wishes: Vec::new() })))
    }

    /// Puts other models in the place of those before; jobs that were accepted for one that is gone fail by its name.
    pub fn replace(&self, stock: Stock) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.states.retain(|name, _| stock.models.iter().any(|model| model.name == *name));
        inner.stock = Arc::new(stock);
    }

    /// All models, in the operator's order.
    pub fn models(&self) -> Vec<ModelState> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let state = |model: &Served| {
            let state = inner.states.get(&model.name);
            ModelState {
                name: model.name.clone(),
                family: state.map(|state| state.family),
                notice: state.and_then(|state| state.notice.clone()),
                loaded: state.is_some_and(|state| state.loaded),
                bytes: state.map_or(0, |state| state.bytes),
                last_used: state.map(|state| state.last_used),
            }
        };
        inner.stock.models.iter().map(state).collect()
    }

    /// Names of all LoRAs in the operator's folder, in order.
    pub async fn loras(&self) -> Vec<String> {
        let stock = self.stock();
        let names = move || stock.loras.as_deref().map(|folder| list(folder).into_keys().collect());
        // Folders in folders, perhaps on a network: the threads that serve have other things to do.
        tokio::task::spawn_blocking(names).await.ok().flatten().unwrap_or_default()
    }

    /// The file of a LoRA that a client named. Names are compared with those of the files that are there, so none leads elsewhere.
    pub(crate) fn lora(&self, name: &str) -> Result<LoraFile, Fault> {
        let stock = self.stock();
        let found = stock.loras.as_deref().and_then(|folder| list(folder).remove(name));
        let unknown = || {
            let message = format!("there is no LoRA '{}' on this server", name.chars().take(100).collect::<String>());
            Fault::invalid("loras", crate::error::Rule::Other, message)
        };
        let path = found.ok_or_else(unknown)?;
        let found = fs::metadata(&path).map_err(|_| unknown())?;
        Ok(LoraFile { path, stamp: (found.len(), found.modified().ok()) })
    }

    /// What is on it now.
    pub fn stock(&self) -> Arc<Stock> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).stock.clone()
    }

    /// Has the engine do it, when it has a moment. The last wish about a model counts.
    pub(crate) fn wish(&self, wish: Wish) {
        let (Wish::Load(model) | Wish::Unload(model)) = &wish;
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.wishes.retain(|(Wish::Load(other) | Wish::Unload(other))| other != model);
        inner.wishes.push(wish);
    }

    /// What the engine is to do now.
    pub(crate) fn wishes(&self) -> Vec<Wish> {
        std::mem::take(&mut self.0.write().unwrap_or_else(PoisonError::into_inner).wishes)
    }

    /// Says what became of a model.
    pub(crate) fn tell(&self, name: &str, change: impl FnOnce(&mut Known)) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if inner.stock.models.iter().any(|model| model.name == name) {
            change(inner.states.entry(name.to_owned()).or_default());
        }
    }
}

/// Files of a folder by their names without the ending; those in its folders with them: `people/ink`.
fn list(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut all = BTreeMap::new();
    let mut add = |folder: &Path, prefix: &str, folders: &mut Vec<(PathBuf, String)>| {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let (Some(stem), true) = (path.file_stem().and_then(|stem| stem.to_str()), all.len() < MOST_LORAS) else {
                continue;
            };
            if path.is_dir() {
                folders.push((path.clone(), format!("{prefix}{}/", entry.file_name().to_string_lossy())));
            } else if path.extension().is_some_and(|ending| ending == "safetensors" || ending == "sft") {
                all.insert(format!("{prefix}{stem}"), path.clone());
            }
        }
    };
    let mut folders = Vec::new();
    add(folder, "", &mut folders);
    for (folder, prefix) in folders {
        add(&folder, &prefix, &mut Vec::new());
    }
    all
}

#[cfg(test)]
mod tests {
    use flux::model::ModelSpec;

    use super::*;

    #[test]
    fn names_aliases_and_nothing_else() {
        let served = |name: &str| Served { name: name.into(), spec: ModelSpec::default() };
        let aliases =
            BTreeMap::from([("mine", "pocket"), ("pocket", "krea")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        let stock = |models: Vec<Served>| Stock { models, aliases: aliases.clone(), ..Stock::default() };
        let shelf = Shelf::new(stock(vec![served("pocket"), served("krea")]));
        let find = |asked: Option<&str>| shelf.stock().resolve(asked);
        assert_eq!(find(None), Some("pocket".into()));
        assert_eq!(find(Some("mine")), Some("pocket".into()));
        assert_eq!(find(Some("pocket")), Some("pocket".into()), "a name goes before an alias");
        assert_eq!(find(Some("../secret")), None);
        shelf.tell("krea", |state| state.loaded = true);
        assert!(shelf.models()[1].loaded && !shelf.models()[0].loaded);
        shelf.replace(stock(vec![served("dev")]));
        assert_eq!(shelf.models().len(), 1);
        assert_eq!(find(Some("mine")), None, "its model is gone");
        shelf.replace(Stock::default());
        assert!(find(None).is_none());
    }

    #[test]
    fn the_last_wish_about_a_model_counts() {
        let shelf = Shelf::new(Stock::default());
        for wish in [Wish::Load("a".into()), Wish::Load("b".into()), Wish::Unload("a".into())] {
            shelf.wish(wish);
        }
        assert_eq!(shelf.wishes(), [Wish::Load("b".into()), Wish::Unload("a".into())]);
        assert_eq!(shelf.wishes(), []);
    }

    #[tokio::test]
    async fn loras_are_those_of_the_folder_now() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(Stock { loras: Some(folder.path().join("loras")), ..Stock::default() });
        assert!(shelf.loras().await.is_empty());
        fs::create_dir_all(folder.path().join("loras/people")).unwrap();
        for file in ["loras/ink.safetensors", "loras/people/ann.safetensors", "loras/notes.txt", "secret.safetensors"] {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        assert_eq!(shelf.loras().await, ["ink", "people/ann"]);
        assert_eq!(shelf.lora("ink").unwrap().stamp.0, 1);
        for wrong in ["../secret", "people/../ink", "notes", "", "INK", "./ink"] {
            assert!(matches!(shelf.lora(wrong), Err(Fault::Invalid(_))), "{wrong}");
        }
    }
}
