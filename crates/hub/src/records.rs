//! Which files make the model that was asked for by name. A record has no paths, only repositories, commits and files, so that
//! the cache may move; one whose files went away is as good as none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    cache::{Cache, write_whole},
    clock::now,
    error::{Error, Result},
    names::{Repository, is_commit, is_etag, is_safe_path},
    transfer::{Item, Role, Transfer},
};

/// The longest record that is read, bytes.
const LONGEST: u64 = 4 << 20;

/// A model that was downloaded or imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is asked for by: `krea`, or `org/name`.
    pub name: String,
    /// `bf16`, `q8_0`; of a repository what was picked of it.
    pub variant: String,
    /// The licence's identifier.
    pub licence: String,
    /// When it was complete, RFC 3339 in UTC.
    pub pulled: String,
    /// Its files.
    pub files: Vec<RecordFile>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordFile {
    /// What for.
    pub role: Role,
    /// Where from.
    pub repository: Repository,
    /// At which commit.
    pub commit: String,
    /// Which name stood for the commit.
    pub revision: String,
    /// Where in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its blob's name.
    pub etag: String,
}

/// Where a model's parts are, for whoever loads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// A diffusers folder, or a file without further parts.
    pub model: Option<PathBuf>,
    /// The transformer's file.
    pub transformer: Option<PathBuf>,
    /// The autoencoder's file.
    pub vae: Option<PathBuf>,
    /// CLIP-L's file.
    pub clip_l: Option<PathBuf>,
    /// T5's file.
    pub t5: Option<PathBuf>,
}

impl Record {
    /// Of a finished download.
    pub fn new(name: &str, variant: &str, licence: &str, transfer: &Transfer) -> Self {
        let revision = |item: &Item| {
            let of = transfer.contents.iter().find(|contents| contents.repository == item.repository);
            of.map_or_else(|| "main".to_owned(), |contents| contents.revision.clone())
        };
        let file = |item: &Item| RecordFile {
            role: item.role,
            repository: item.repository.clone(),
            commit: item.commit.clone(),
            revision: revision(item),
            path: item.file.path.clone(),
            size: item.file.size,
            etag: item.file.etag.clone(),
        };
        Self {
            name: name.to_owned(),
            variant: variant.to_owned(),
            licence: licence.to_owned(),
            pulled: now(),
            files: transfer.items.iter().map(file).collect(),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// Files that are not in the cache any more, or not whole.
    pub fn missing<'a>(&'a self, cache: &Cache) -> Vec<&'a RecordFile> {
        let is_missing = |file: &&RecordFile| !cache.has(&file.repository, &file.commit, &file.path, file.size);
        self.files.iter().filter(is_missing).collect()
    }

    /// Where its parts are.
    pub fn parts(&self, cache: &Cache) -> Parts {
        let file = |role: Role| {
            let file = self.files.iter().find(|file| file.role == role)?;
            Some(cache.path(&file.repository, &file.commit, &file.path))
        };
        let of_folder = self.files.iter().find(|file| file.role == Role::Folder);
        let folder = of_folder.map(|file| cache.folder(&file.repository).join("snapshots").join(&file.commit));
        let weights: Vec<&RecordFile> = self.files.iter().filter(|file| file.role == Role::Other).collect();
        let only = match weights.as_slice() {
            [only] => Some(cache.path(&only.repository, &only.commit, &only.path)),
            _ => None,
        };
        Parts {
            model: folder.or(only),
            transformer: file(Role::Transformer),
            vae: file(Role::Vae),
            clip_l: file(Role::ClipL),
            t5: file(Role::T5),
        }
    }

    /// A record of strangers, checked before anything of it becomes a path.
    pub(crate) fn check(&self) -> Result<(), String> {
        let word = |text: &str| !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control);
        if !word(&self.name) || !word(&self.variant) || !word(&self.licence) {
            return Err("its name, variant or licence is not one line of text".into());
        }
        if self.name.split('/').count() > 2 || !is_safe_path(&self.name.replace('/', "-")) {
            return Err("its name is not the name of a model".into());
        }
        for file in &self.files {
            if !is_safe_path(&file.path) || !is_commit(&file.commit) || !is_etag(&file.etag) {
                return Err("it names a path, commit or hash that cannot be one".into());
            }
            crate::names::check_revision(&file.revision).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// All records.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Kept in that folder.
    pub fn new(data: &Path) -> Self {
        Self { folder: data.join("models") }
    }

    /// All that can be read, the latest first.
    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut all: Vec<Record> =
            paths.filter(|path| path.extension().is_some_and(|e| e == "json")).filter_map(|path| read(&path)).collect();
        all.sort_by(|a, b| (&b.pulled, &b.name, &b.variant).cmp(&(&a.pulled, &a.name, &a.variant)));
        all
    }

    /// Those of a name, the latest first: `krea` is all its variants, `krea:q8_0` is one.
    pub fn named(&self, name: &str) -> Vec<Record> {
        let fits = |record: &Record| record.name == name || format!("{}:{}", record.name, record.variant) == name;
        self.all().into_iter().filter(fits).collect()
    }

    /// Writes one down, over an older one of the same name and variant.
    ///
    /// # Errors
    /// [`Error::File`] if that is not possible.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(record);
        let json = serde_json::to_vec_pretty(record).map_err(|e| Error::file(&path, e.to_string()))?;
        write_whole(&path, &json)
    }

    /// Forgets a model and removes those of its files that no other record has. Returns the bytes that became free.
    ///
    /// # Errors
    /// [`Error::File`] naming what could not be removed.
    pub fn remove(&self, record: &Record, cache: &Cache) -> Result<u64> {
        let path = self.path(record);
        fs::remove_file(&path).map_err(|e| Error::io(&path, &e))?;
        let kept: Vec<RecordFile> = self.all().into_iter().flat_map(|other| other.files).collect();
        let same =
            |a: &RecordFile, b: &RecordFile| (&a.repository, &a.commit, &a.path) == (&b.repository, &b.commit, &b.path);
        let mut gone: Vec<&RecordFile> =
            record.files.iter().filter(|file| !kept.iter().any(|other| same(file, other))).collect();
        gone.sort_by(|a, b| (&a.repository, &a.commit).cmp(&(&b.repository, &b.commit)));
        let mut freed = 0;
        for of_one in gone.chunk_by(|a, b| (&a.repository, &a.commit) == (&b.repository, &b.commit)) {
            let paths: Vec<String> = of_one.iter().map(|file| file.path.clone()).collect();
            freed += cache.remove(&of_one[0].repository, &of_one[0].commit, &paths)?;
        }
        Ok(freed)
    }

    fn path(&self, record: &Record) -> PathBuf {
        let name = format!("{}@{}", record.name.replace('/', "--"), record.variant);
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
        self.folder.join(format!("{}.json", name.chars().map(plain).collect::<String>()))
    }
}

fn read(path: &Path) -> Option<Record> {
    if fs::metadata(path).ok()?.len() > LONGEST {
        return None;
    }
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    record.check().ok()?;
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(variant: &str, files: &[(Role, &str, &str)]) -> Record {
        let file = |(role, repository, path): &(Role, &str, &str)| RecordFile {
            role: *role,
            repository: repository.parse().unwrap(),
            commit: "c".repeat(40),
            revision: "main".into(),
            path: (*path).to_owned(),
            size: 3,
            etag: crate::hash::sha256(path.as_bytes()),
        };
        Record {
            name: "krea".into(),
            variant: variant.into(),
            licence: "x".into(),
            pulled: format!("2026-01-0{}T00:00:00Z", variant.len()),
            files: files.iter().map(file).collect(),
        }
    }

    fn filled(cache: &Cache, record: &Record) {
        for file in &record.files {
            write_whole(&cache.blob(&file.repository, &file.etag), b"abc").unwrap();
            cache.link(&file.repository, &file.commit, &file.path, &file.etag).unwrap();
        }
    }

    #[test]
    fn a_model_goes_with_the_files_that_nobody_else_has() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, records) = (Cache::new(folder.path().join("hub")), Records::new(folder.path()));
        let t5 = (Role::T5, "c/t5", "t5.gguf");
        let q4 = record("q4_k", &[(Role::Transformer, "q/krea", "q4.gguf"), t5]);
        let q8 = record("q8", &[(Role::Transformer, "q/krea", "q8.gguf"), t5]);
        for one in [&q4, &q8] {
            filled(&cache, one);
            records.save(one).unwrap();
        }
        assert_eq!(records.named("krea"), [q4.clone(), q8.clone()], "the latest first");
        assert_eq!(records.named("krea:q8"), std::slice::from_ref(&q8));
        assert!(q8.missing(&cache).is_empty());
        let parts = q8.parts(&cache);
        assert!(
            parts.transformer.unwrap().ends_with("q8.gguf") && parts.t5.unwrap().is_file() && parts.model.is_none()
        );

        assert_eq!(records.remove(&q4, &cache).unwrap(), 3);
        assert!(q8.missing(&cache).is_empty() && q4.missing(&cache).len() == 1);
        assert_eq!(records.remove(&q8, &cache).unwrap(), 6);
        assert!(cache.repositories().is_empty() && records.all().is_empty());
    }

    #[test]
    fn records_that_lead_elsewhere_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        let mut bad = record("q4_k", &[(Role::Other, "a/b", "x")]);
        bad.files[0].path = "../../x".into();
        records.save(&bad).unwrap();
        write_whole(&folder.path().join("models/y.json"), b"{").unwrap();
        assert!(records.all().is_empty());
    }
}
