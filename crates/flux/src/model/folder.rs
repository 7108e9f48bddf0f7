//! A folder of model files: on disk, or embedded in the program.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    weights::Checkpoint,
};

/// Files under one root.
#[derive(Clone, Debug)]
pub(crate) enum Folder {
    Disk(PathBuf),
    Embedded { name: &'static str, files: &'static [(&'static str, &'static [u8])] },
}

impl Folder {
    /// How errors name a file of the folder.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(root) => root.join(file),
            Self::Embedded { name, .. } => Path::new(&format!("(embedded {name})")).join(file),
        }
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        match self {
            Self::Disk(root) => root.join(file).is_file(),
            Self::Embedded { files, .. } => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// A small file whole; `None` where there is none.
    pub(crate) fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        /// Configurations and tokenizers are a few megabytes at most.
        const LARGEST: u64 = 256 << 20;
        match self {
            Self::Embedded { files, .. } => {
                Ok(files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Disk(root) => {
                let path = root.join(file);
                let metadata = match std::fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => metadata,
                    Ok(_) => return Ok(None),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(Error::file(path, e.to_string())),
                };
                if metadata.len() > LARGEST {
                    return Err(Error::file(path, format!("is {} bytes long, far more than expected", metadata.len())));
                }
                std::fs::read(&path).map(|bytes| Some(Cow::Owned(bytes))).map_err(|e| Error::file(path, e.to_string()))
            }
        }
    }

    /// A small text file whole; `None` where there is none.
    pub(crate) fn text(&self, file: &str) -> Result<Option<String>> {
        self.read(file)?
            .map(|bytes| {
                String::from_utf8(bytes.into_owned()).map_err(|_| Error::file(self.path(file), "is not UTF-8 text"))
            })
            .transpose()
    }

    /// The weights `part/stem`: an index of shards, or a single file; `None` where there is neither.
    pub(crate) fn checkpoint(&self, stem: &str) -> Result<Option<Checkpoint>> {
        for name in [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")] {
            if !self.has(&name) {
                continue;
            }
            return match self {
                Self::Disk(root) => Checkpoint::open(&root.join(name)).map(Some),
                Self::Embedded { files, .. } => {
                    let bytes = files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes);
                    bytes.map(|bytes| Checkpoint::embedded(&name, bytes)).transpose()
                }
            };
        }
        Ok(None)
    }
}
