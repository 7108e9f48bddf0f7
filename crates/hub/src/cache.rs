//! The hub's cache as Hugging Face's tools have it, so that both find each other's files.
//!
//! ```text
//! models--org--name/blobs/HASH                     bytes, named by what they are
//! models--org--name/snapshots/COMMIT/path/to/file  a link to its blob
//! models--org--name/refs/main                      the commit that a name stands for
//! .locks/models--org--name/HASH.lock               held while a blob is written
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    names::{Repository, check_revision, is_commit, is_safe_path},
    watch::{Event, Watch, tell},
};

/// What backup programs look for: <https://bford.info/cachedir/>.
const TAG: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of the Hugging Face hub; it can be downloaded again.\n";

/// The cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A lock that is held until it is dropped, or until the process ends.
pub(crate) struct Lock {
    _file: File,
}

impl Cache {
    /// The cache in that folder, which need not be there yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A repository's folder.
    pub fn folder(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.folder())
    }

    /// Where a file of a commit is, whether or not it is there.
    pub fn path(&self, repository: &Repository, commit: &str, file: &str) -> PathBuf {
        self.folder(repository).join("snapshots").join(commit).join(file)
    }

    /// The bytes of that name.
    pub(crate) fn blob(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.folder(repository).join("blobs").join(etag)
    }

    /// The bytes of that name as far as they came.
    pub(crate) fn incomplete(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.folder(repository).join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether a file is there with its size.
    pub fn has(&self, repository: &Repository, commit: &str, file: &str, size: u64) -> bool {
        fs::metadata(self.path(repository, commit, file)).is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// The commit that a name stands for.
    pub fn commit(&self, repository: &Repository, revision: &str) -> Option<String> {
        check_revision(revision).ok()?;
        let text = fs::read_to_string(self.folder(repository).join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Makes the root with its mark.
    pub(crate) fn prepare(&self) -> Result<()> {
        make_folder(&self.root)?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // A cache without the mark works as well.
            let _ = fs::write(&tag, TAG);
        }
        Ok(())
    }

    /// Waits until nobody else writes that blob.
    pub(crate) fn lock(&self, repository: &Repository, etag: &str, watch: &mut Watch<'_>) -> Result<Lock> {
        let path = self.root.join(".locks").join(repository.folder()).join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, &e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, &error)),
            }
            tell(watch, if told { Event::StillWaiting } else { Event::Locked { path: &path } })?;
            told = true;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Puts a blob into a snapshot.
    pub(crate) fn link(&self, repository: &Repository, commit: &str, file: &str, etag: &str) -> Result<()> {
        let (path, blob) = (self.path(repository, commit, file), self.blob(repository, etag));
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        make_parent(&path)?;
        // Under another name first: a reader sees the old file or the new one.
        let beside = path.with_file_name(format!(".{etag}.{}.tmp", std::process::id()));
        let _ = fs::remove_file(&beside);
        let linked = symlink(&target, &beside).or_else(|_| fs::hard_link(&blob, &beside));
        // A file system without any links gets the file itself.
        let placed = match linked {
            Ok(()) => fs::rename(&beside, &path),
            Err(_) => fs::rename(&blob, &path),
        };
        placed.map_err(|e| Error::io(&path, &e))
    }

    /// Lets a name stand for a commit.
    pub(crate) fn set_commit(&self, repository: &Repository, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        write_whole(&self.folder(repository).join("refs").join(revision), commit.as_bytes())
    }

    /// Repositories that are here.
    pub fn repositories(&self) -> Vec<Repository> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut all: Vec<Repository> =
            entries.filter_map(|entry| Repository::of_folder(entry.ok()?.file_name().to_str()?)).collect();
        all.sort();
        all
    }

    /// Files of a commit that are here, with their sizes.
    pub fn files(&self, repository: &Repository, commit: &str) -> Vec<(String, u64)> {
        let mut files = Vec::new();
        walk(&self.folder(repository).join("snapshots").join(commit), "", &mut files);
        files.sort();
        files
    }

    /// Bytes that a repository takes on the disk, unfinished downloads too.
    pub fn bytes(&self, repository: &Repository) -> u64 {
        let mut files = Vec::new();
        walk_real(&self.folder(repository), &mut files);
        files.iter().sum()
    }

    /// Takes files out of a snapshot, and their blobs where no snapshot has them any more. Returns the bytes that became free.
    ///
    /// # Errors
    /// [`Error::File`] naming what could not be removed.
    pub fn remove(&self, repository: &Repository, commit: &str, files: &[String]) -> Result<u64> {
        let before = self.bytes(repository);
        let folder = self.folder(repository);
        if !is_commit(commit) || files.iter().any(|file| !is_safe_path(file)) {
            return Err(Error::file(folder, "the record names files that no snapshot has"));
        }
        let snapshot = folder.join("snapshots").join(commit);
        for file in files {
            let path = snapshot.join(file);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(&path, &error)),
                _ => {}
            }
            for above in path.ancestors().skip(1).take_while(|above| *above != folder) {
                if fs::remove_dir(above).is_err() {
                    break;
                }
            }
        }
        self.sweep(repository)?;
        Ok(before.saturating_sub(self.bytes(repository)))
    }

    /// Removes blobs that no snapshot links to, and a repository in which nothing is left.
    fn sweep(&self, repository: &Repository) -> Result<()> {
        let folder = self.folder(repository);
        let mut used = Vec::new();
        links(&folder.join("snapshots"), &mut used);
        if let Ok(blobs) = fs::read_dir(folder.join("blobs")) {
            for blob in blobs.flatten().map(|entry| entry.path()) {
                let name = blob.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                // What somebody is downloading now is his.
                if !used.contains(&name) && !name.ends_with(".incomplete") {
                    fs::remove_file(&blob).map_err(|e| Error::io(&blob, &e))?;
                }
            }
        }
        let is_empty = |folder: &Path| fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
        if is_empty(&folder.join("snapshots")) {
            let unfinished = fs::read_dir(folder.join("blobs")).map_or(0, Iterator::count);
            if unfinished == 0 {
                self.remove_repository(repository)?;
            }
        }
        Ok(())
    }

    /// Removes a repository with all that is in it. Returns the bytes that became free.
    ///
    /// # Errors
    /// [`Error::File`] if something could not be removed.
    pub fn remove_repository(&self, repository: &Repository) -> Result<u64> {
        let folder = self.folder(repository);
        let bytes = self.bytes(repository);
        if folder.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, &e))?;
        }
        let _ = fs::remove_dir_all(self.root.join(".locks").join(repository.folder()));
        Ok(bytes)
    }

    /// Bytes that the cache's disk has free, where the system tells.
    pub fn free(&self) -> Option<u64> {
        let there = self.root.ancestors().find(|path| path.exists())?;
        free_bytes(there)
    }
}

#[cfg(unix)]
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// A file whole or not at all: under another name first, then renamed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".darkroom-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private; these have the permissions of any other new file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let written = builder.tempfile_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    });
    let file = written.map_err(|e| Error::io(path, &e))?;
    file.persist(path).map_err(|e| Error::io(path, &e.error))?;
    Ok(())
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), make_folder)
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, &e))
}

/// Files below a folder, links followed.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, u64)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_dir() => walk(&entry.path(), &format!("{name}/"), files),
            Ok(meta) => files.push((name, meta.len())),
            Err(_) => {}
        }
    }
}

/// Sizes of what really lies below a folder.
fn walk_real(folder: &Path, sizes: &mut Vec<u64>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk_real(&entry.path(), sizes),
            Ok(kind) if kind.is_file() => sizes.push(entry.metadata().map_or(0, |meta| meta.len())),
            _ => {}
        }
    }
}

/// Names of blobs that links below a folder lead to.
fn links(folder: &Path, names: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => links(&entry.path(), names),
            Ok(kind) if kind.is_symlink() => {
                let target = fs::read_link(entry.path()).ok();
                names.extend(target.and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned())));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn with_blob(cache: &Cache, repository: &Repository, etag: &str, bytes: &[u8]) {
        write_whole(&cache.blob(repository, etag), bytes).unwrap();
    }

    #[test]
    fn links_are_relative_and_blobs_live_as_long_as_somebody_links_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("hub"));
        let repository: Repository = "org/name".parse().unwrap();
        with_blob(&cache, &repository, A, b"one");
        with_blob(&cache, &repository, B, b"second");
        cache.link(&repository, A, "vae/x.json", A).unwrap();
        cache.link(&repository, A, "y.json", B).unwrap();
        cache.link(&repository, B, "vae/x.json", A).unwrap();
        cache.set_commit(&repository, "main", A).unwrap();
        let link = fs::read_link(cache.path(&repository, A, "vae/x.json")).unwrap();
        assert_eq!(link, Path::new(&format!("../../../blobs/{A}")));
        assert!(cache.has(&repository, A, "vae/x.json", 3) && !cache.has(&repository, A, "vae/x.json", 4));
        assert_eq!(cache.files(&repository, A), [("vae/x.json".to_owned(), 3), ("y.json".to_owned(), 6)]);
        assert_eq!(cache.commit(&repository, "main").as_deref(), Some(A));

        let both = ["vae/x.json".to_owned(), "y.json".to_owned()];
        assert_eq!(cache.remove(&repository, A, &both).unwrap(), 6, "the other snapshot has one of them still");
        assert!(cache.remove(&repository, B, &["../../../etc".into()]).is_err());
        cache.remove(&repository, B, &both[..1]).unwrap();
        assert!(!cache.folder(&repository).exists() && cache.repositories().is_empty());
        assert!(cache.free().is_none_or(|free| free > 0));
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let repository: Repository = "org/name".parse().unwrap();
        let lock = cache.lock(&repository, A, &mut |_| true).unwrap();
        let mut asked = 0;
        let second = cache.lock(&repository, A, &mut |_| {
            asked += 1;
            asked < 2
        });
        assert!(matches!(second, Err(Error::Cancelled)));
        drop(lock);
        assert!(cache.lock(&repository, A, &mut |_| true).is_ok());
    }
}
