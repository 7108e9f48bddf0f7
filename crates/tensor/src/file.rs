//! A weights file mapped into memory: pages come from the disk when they are first read and are never copied whole.

use std::{fs::File, io, path::Path, sync::Arc};

/// A read-only memory map of a whole file.
#[derive(Clone)]
pub struct MappedFile(Arc<memmap2::Mmap>);

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// The file must not be truncated while it is mapped: reading past its new end raises SIGBUS, as with every program
    /// that maps files. Replacing a file by renaming another over it is safe.
    ///
    /// # Errors
    /// What opening or mapping the file gave.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this process; the one hazard, another program truncating the file
        // meanwhile, is stated above and cannot be excluded by any user of mmap.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(Arc::new(map)))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({} bytes)", self.0.len())
    }
}
