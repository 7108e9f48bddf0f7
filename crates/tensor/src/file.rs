//! A weights file mapped into memory: pages come from the disk when they are first read and are never copied whole.

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

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

    /// Has the system read these bytes ahead, if it can.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() {
            // Advice that is not taken costs nothing but time.
            let _ = self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Lets go of the memory in which these bytes are; who reads them again gets them from the file. Bytes that share a page
    /// with them go, too.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() {
            // SAFETY: `DontNeed` may change what memory holds only where it is private or was written. This map is shared with
            // its file and read-only: a page that is dropped comes back with the file's bytes.
            let _ =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of files that are mapped into this process and in memory.
    #[cfg(target_os = "linux")]
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_bytes_leave_memory_and_come_back_the_same() {
        const SIZE: usize = 64 << 20;
        let path = std::env::temp_dir().join(format!("tensor-release-{}", std::process::id()));
        std::fs::write(&path, (0..SIZE).map(|i| (i / 4096 % 251) as u8).collect::<Vec<u8>>()).unwrap();
        let file = MappedFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let sum = || file.bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>();
        let before = sum();
        let full = resident();
        file.release(0..SIZE);
        assert!(resident() + (SIZE as u64 / 2) < full, "{full} bytes became {}", resident());
        file.prefetch(1000..SIZE / 2 + 1);
        assert_eq!(sum(), before);
        file.release(5000..5000);
        file.release(SIZE - 1..SIZE);
        assert_eq!(sum(), before);
    }
}
