//! What the text encoders said about a prompt, kept on disk: asked again, T5 and CLIP need not run.
//!
//! A file's name is a hash of everything its numbers depend on (program, weights, configuration, arithmetic, token ids); its numbers are
//! f32 as computed, so a picture is the same with and without it. Neither prompts nor tokens are written. Files appear whole
//! (written under another name, then renamed), end in a checksum, and may be deleted at any time; one that is damaged is
//! ignored and replaced. A folder that cannot be written to costs nothing but the time saved.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use tensor::Bytes;

/// The first bytes of a file. The last digit counts changes of the format.
const MAGIC: &[u8; 16] = b"darkroom prompt1";

/// Counts changes of the numbers that encoders give for the same weights and tokens, in `text/` or in the kernels: what an older program
/// wrote must not be taken for this one's. Every release starts anew, besides.
const NUMERICS: u32 = 2;

/// Magic, and the four extents as u64.
const HEADER: usize = 16 + 4 * 8;

/// Of a SHA-256.
const CHECKSUM: usize = 32;

const EXTENSION: &str = "embeds";

/// A folder of embeddings.
///
/// ```
/// # fn main() -> Result<(), flux::Error> {
/// # let files = flux::model::ModelSpec::default().find(&flux::model::SearchPaths::default())?;
/// use flux::{LoadOptions, Pipeline, PromptCache};
///
/// let options = LoadOptions { prompt_cache: Some(PromptCache::new("embeddings")), ..LoadOptions::default() };
/// let pipeline = Pipeline::load(files, &options, &mut ())?; // the second time, a prompt takes no T5
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptCache {
    /// Where the files are; made when the first is written.
    pub folder: PathBuf,
    /// The most that all files may take, bytes; those not used for longest go first.
    pub max_bytes: u64,
}

/// What is kept of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Embeddings {
    /// T5's states and their shape.
    pub(crate) txt: ([usize; 2], Vec<f32>),
    /// CLIP's pooled state and its shape.
    pub(crate) pooled: ([usize; 2], Vec<f32>),
}

/// The hash of everything that embeddings depend on.
#[derive(Clone, Debug)]
pub(crate) struct Key(Sha256);

impl Key {
    pub(crate) fn new() -> Self {
        Self::of(env!("CARGO_PKG_VERSION"), NUMERICS)
    }

    fn of(version: &str, numerics: u32) -> Self {
        let mut key = Self(Sha256::new_with_prefix(MAGIC));
        key.text(version);
        key.ids(&[numerics]);
        key
    }

    /// Words, each with its length so that neighbours cannot run together.
    pub(crate) fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    /// Token ids.
    pub(crate) fn ids(&mut self, ids: &[u32]) {
        self.0.update((ids.len() as u64).to_le_bytes());
        for id in ids {
            self.0.update(id.to_le_bytes());
        }
    }

    /// A file of weights, wherever it lies: its length, its start (which holds the header) and samples of the rest. Reading
    /// all of it would take longer than some encoders.
    pub(crate) fn file(&mut self, bytes: &Bytes) {
        const START: usize = 256 << 10;
        const SAMPLE: usize = 4096;
        const SAMPLES: usize = 256;
        let content = bytes.get();
        self.0.update((content.len() as u64).to_le_bytes());
        self.0.update(&content[..content.len().min(START)]);
        for i in 1..=SAMPLES {
            let end = (content.len() as u128 * i as u128 / SAMPLES as u128) as usize;
            self.0.update(&content[end.saturating_sub(SAMPLE)..end]);
        }
        bytes.release();
    }

    #[cfg(test)]
    pub(crate) fn name(&self) -> String {
        self.file_name()
    }

    fn file_name(&self) -> String {
        let digest = self.0.clone().finalize();
        let number = digest.iter().take(16).fold(0u128, |number, &byte| number << 8 | u128::from(byte));
        format!("{number:032x}.{EXTENSION}")
    }
}

impl PromptCache {
    /// A cache of up to one GiB: 120 prompts of FLUX.1 \[dev\].
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), max_bytes: 1 << 30 }
    }

    /// What is kept under this key.
    pub(crate) fn get(&self, key: &Key) -> Option<Embeddings> {
        let path = self.folder.join(key.file_name());
        let embeddings = decode(&fs::read(&path).ok()?)?;
        // Used now: others go first.
        if let Ok(file) = fs::File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(embeddings)
    }

    /// Keeps `embeddings` under this key, unless the folder cannot be written to.
    pub(crate) fn put(&self, key: &Key, embeddings: &Embeddings) {
        let bytes = encode(embeddings);
        if bytes.len() as u64 <= self.max_bytes && self.write(&key.file_name(), &bytes).is_ok() {
            self.shrink();
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut folders = fs::DirBuilder::new();
        let mut options = fs::OpenOptions::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
            folders.mode(0o700);
            options.mode(0o600);
        }
        folders.recursive(true).create(&self.folder)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.folder.join(format!("{}-{count}.unfinished", std::process::id()));
        let _ = fs::remove_file(&unfinished); // of a process of the same number that was killed
        let written = options.write(true).create_new(true).open(&unfinished).and_then(|mut file| file.write_all(bytes));
        let done = written.and_then(|()| fs::rename(&unfinished, self.folder.join(name)));
        if done.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        done
    }

    /// Deletes the files not used for longest until the rest is small enough, and what killed processes left.
    fn shrink(&self) {
        const ABANDONED: Duration = Duration::from_hours(1);
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let (Ok(metadata), Some(extension)) = (entry.metadata(), path.extension().map(ToOwned::to_owned)) else {
                continue;
            };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if extension == EXTENSION {
                files.push((modified, metadata.len(), path));
            } else if extension == "unfinished" && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total <= self.max_bytes {
                break;
            }
            let _ = fs::remove_file(path); // another process may have done it
            total -= len;
        }
    }
}

fn encode(embeddings: &Embeddings) -> Vec<u8> {
    let Embeddings { txt, pooled } = embeddings;
    let mut bytes = Vec::with_capacity(HEADER + 4 * (txt.1.len() + pooled.1.len()) + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend([txt.0, pooled.0].concat().iter().flat_map(|&extent| (extent as u64).to_le_bytes()));
    bytes.extend(txt.1.iter().chain(&pooled.1).flat_map(|value| value.to_le_bytes()));
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Embeddings> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    let (header, values) = content.split_at_checked(HEADER)?;
    if !header.starts_with(MAGIC) || Sha256::digest(content).as_slice() != checksum {
        return None;
    }
    let mut extents = header[MAGIC.len()..].chunks_exact(8).map(|extent| {
        let extent = extent.iter().rev().fold(0, |value: u64, &byte| value << 8 | u64::from(byte));
        usize::try_from(extent).ok()
    });
    let mut shape = || Some([extents.next()??, extents.next()??]);
    let (txt, pooled) = (shape()?, shape()?);
    let counts = [txt, pooled].map(|[rows, columns]| rows.checked_mul(columns));
    let [Some(txt_count), Some(pooled_count)] = counts else { return None };
    let mut values: Vec<f32> =
        values.chunks_exact(4).map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])).collect();
    if Some(values.len()) != txt_count.checked_add(pooled_count) {
        return None;
    }
    let rest = values.split_off(txt_count);
    Some(Embeddings { txt: (txt, values), pooled: (pooled, rest) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn embeddings(seed: f32) -> Embeddings {
        Embeddings {
            txt: ([3, 2], (0..6u8).map(|i| seed + f32::from(i)).collect()),
            pooled: ([1, 2], vec![seed, -0.0]),
        }
    }

    fn kept(cache: &PromptCache) -> Vec<PathBuf> {
        fs::read_dir(&cache.folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn key(ids: &[u32]) -> Key {
        let mut key = Key::new();
        key.text("weights");
        key.ids(ids);
        key
    }

    #[test]
    fn what_was_put_is_got_in_every_bit() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PromptCache::new(folder.path().join("a/b"));
        assert_eq!(cache.get(&key(&[1])), None);
        cache.put(&key(&[1]), &embeddings(0.1));
        let got = cache.get(&key(&[1])).unwrap();
        assert_eq!(got, embeddings(0.1));
        assert!(got.pooled.1[1].is_sign_negative());
        assert_eq!(cache.get(&key(&[1, 2])), None);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&kept(&cache)[0]).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_another_program_said_is_not_taken() {
        let name = |version, numerics| Key::of(version, numerics).file_name();
        assert_eq!(name("0.1.0", 2), name("0.1.0", 2));
        assert_ne!(name("0.1.0", 2), name("0.1.0", 3));
        assert_ne!(name("0.1.0", 2), name("0.1.1", 2));
    }

    #[test]
    fn damaged_files_are_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PromptCache::new(folder.path());
        cache.put(&key(&[1]), &embeddings(1.0));
        let path = kept(&cache).remove(0);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.get(&key(&[1])), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&key(&[1])), None, "byte {at}");
        }
        cache.put(&key(&[1]), &embeddings(2.0));
        assert_eq!(cache.get(&key(&[1])), Some(embeddings(2.0)));
        // A header that lies about its extents, with a checksum that is right.
        for extent in [u64::MAX, 1 << 62, 4] {
            let mut lie = whole[..whole.len() - CHECKSUM].to_vec();
            lie[MAGIC.len()..MAGIC.len() + 8].copy_from_slice(&extent.to_le_bytes());
            let checksum = Sha256::digest(&lie);
            lie.extend_from_slice(&checksum);
            assert_eq!(decode(&lie), None);
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let size = encode(&embeddings(0.0)).len() as u64;
        let cache = PromptCache { max_bytes: 3 * size, ..PromptCache::new(folder.path()) };
        let old = |i: u32, seconds| {
            let file = fs::File::options().append(true).open(cache.folder.join(key(&[i]).file_name())).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        for i in 0..3u8 {
            cache.put(&key(&[u32::from(i)]), &embeddings(f32::from(i)));
            old(u32::from(i), 100 - u64::from(i));
        }
        assert!(cache.get(&key(&[0])).is_some()); // which makes it the latest
        cache.put(&key(&[3]), &embeddings(3.0));
        let left: Vec<u32> = (0..4).filter(|&i| cache.get(&key(&[i])).is_some()).collect();
        assert_eq!(left, [0, 2, 3]);
        // What is larger than all of it is not kept.
        PromptCache { max_bytes: size - 1, ..cache.clone() }.put(&key(&[4]), &embeddings(4.0));
        assert!(cache.get(&key(&[4])).is_none() && kept(&cache).len() == 3);
    }

    #[test]
    fn a_file_of_weights_is_told_by_its_content() {
        let name = |content: &[u8]| {
            let mut key = Key::new();
            key.file(&Bytes::from(Arc::<[u8]>::from(content)));
            key.file_name()
        };
        let content = vec![7; 3 << 20];
        let mut other = content.clone();
        other[(3 << 20) - 1] = 8;
        assert_eq!(name(&content), name(&content.clone()));
        assert_ne!(name(&content), name(&other));
        assert_ne!(name(&content), name(&content[1..]));
        name(&[]);
    }

    #[test]
    fn many_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PromptCache::new(folder.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..50 {
                        cache.put(&key(&[i % 5]), &embeddings((i % 5) as f32));
                        let got = cache.get(&key(&[i % 5]));
                        assert!(got.is_none_or(|got| got == embeddings((i % 5) as f32)));
                    }
                });
            }
        });
        assert_eq!(kept(&cache).len(), 5);
    }
}
