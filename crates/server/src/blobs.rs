//! Bytes under names that cannot be guessed: pictures given and made.
//!
//! An object in the store is one line of JSON, the [`Blob`], and then the bytes, so that a blob is there as a whole or not at all
//! and the index, which is in memory, is read again from the store itself. A `put` that says yes is on the disk (fsync).
//! Blobs end with their time; above the quota the oldest of whoever holds the most go first.

#[cfg(feature = "s3")]
mod bucket;
mod draft;
mod media;

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fmt, io,
    path::{Path as FilePath, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

pub use self::draft::Draft;
pub(crate) use self::media::file_name;
use self::media::media_type;
pub use self::media::sniff;
use crate::{
    clock::{Millis, now},
    config::{Config, Wrong},
    error::Fault,
    hex::hex,
    owner::Owner,
};

/// The name of a blob: 32 hexadecimal characters, 128 random bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobId(pub String);

impl BlobId {
    /// A new one.
    pub(crate) fn random() -> Result<Self, Fault> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(|_| Fault::Failed("the system gives no random numbers".into()))?;
        Ok(Self(hex(&bits)))
    }

    /// Where it lies in the store. `None` for what is not the name of a blob, so that no name reaches a path unchecked.
    fn place(&self) -> Option<Path> {
        let right = self.0.len() == 32 && self.0.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        right.then(|| Path::from_iter([&self.0[..2], &self.0]))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BlobId {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let id = Self(text.to_owned());
        if id.place().is_some() { Ok(id) } else { Err(not_found()) }
    }
}

/// What a blob is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A finished picture.
    Result,
    /// A file that somebody gave to be used later.
    Upload,
    /// What only the server itself reads: no URL leads to it, and no quota takes it.
    Internal,
    /// A picture that was given to a job: no URL leads to it, and it goes when the job ends.
    Given,
    /// A picture that was flagged and waits for a person: no URL leads to it but the reviewers' own, and no quota takes it.
    Held,
}

impl Purpose {
    /// Whether whoever has the URL may have the file.
    pub fn is_public(self) -> bool {
        matches!(self, Self::Result | Self::Upload)
    }
}

/// What a file that is to be kept is said to be.
#[derive(Clone, Debug)]
pub struct NewBlob<'a> {
    /// What it is for.
    pub purpose: Purpose,
    /// The media type; believed of what the server made, of other files where they begin like that.
    pub mime: &'a str,
    /// A file name for people.
    pub name: &'a str,
    /// For how long.
    pub keep: Duration,
    /// Whose it is.
    pub owner: &'a Owner,
    /// What else is to be known of it: see [`Blob::about`].
    pub about: Option<Value>,
}

impl<'a> NewBlob<'a> {
    /// Nothing else is known of it.
    pub fn new(purpose: Purpose, mime: &'a str, name: &'a str, keep: Duration, owner: &'a Owner) -> Self {
        Self { purpose, mime, name, keep, owner, about: None }
    }
}

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name.
    pub id: BlobId,
    /// A file name for people: letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// The media type. A picture's is one that its bytes begin like, whatever was claimed.
    pub mime: String,
    /// How many bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// Whose it is.
    pub owner: Owner,
    /// What it is for.
    pub purpose: Purpose,
    /// When it was stored.
    pub created: Millis,
    /// From when on it is not there any more.
    pub expires: Millis,
    /// What its uploader said of it; of a picture that is or was held, its job and why. Up to [`MOST_ABOUT`] bytes of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<Value>,
}

impl Blob {
    /// Whether a browser may show it: pictures only.
    pub fn is_picture(&self) -> bool {
        SHOWN.contains(&self.mime.as_str())
    }
}

/// Media types that are served as what they are. Everything else is served as bytes to be saved.
const SHOWN: [&str; 5] = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"];

/// The longest line before the bytes.
const LONGEST_LINE: u64 = 4096;

/// Most bytes of [`Blob::about`]: with the rest of it a line stays below [`LONGEST_LINE`].
pub const MOST_ABOUT: usize = 2048;

/// How long a picture that was given is kept if nobody takes it away before: longer than any job waits.
const KEEP_GIVEN: Duration = Duration::from_hours(30 * 24);

/// No quota takes a blob that is younger: OpenAI's and Replicate's results are there for an hour.
const SAFE_FOR: Millis = 60 * 60 * 1000;

/// Where blobs lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket.
    #[cfg(feature = "s3")]
    S3(crate::config::S3),
}

impl Place {
    /// Where the configuration says: the bucket, or `files` in the data folder.
    ///
    /// # Errors
    /// A sentence for the operator, if this program was built without what it needs.
    pub fn configured(config: &Config) -> Result<Self, Wrong> {
        if config.s3.bucket.is_none() {
            return Ok(Self::Folder(config.data_dir.join("files")));
        }
        #[cfg(feature = "s3")]
        return Ok(Self::S3(config.s3.clone()));
        #[cfg(not(feature = "s3"))]
        Err(Wrong::Conflict(
            "s3.bucket: this program was built without S3; hint: leave --no-default-features out".into(),
        ))
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Blobs(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    place: Place,
    index: Mutex<Index>,
    quota: u64,
    /// A blob whose name was told is written, or could not be.
    written: Notify,
}

#[derive(Default)]
struct Index {
    entries: HashMap<BlobId, Entry>,
    /// Names that were told before and whose bytes are being written now.
    writing: HashSet<BlobId>,
    /// Bytes of all entries and of those that are being written.
    used: u64,
}

#[derive(Clone)]
struct Entry {
    blob: Arc<Blob>,
    /// How long the line before the bytes is.
    skip: u64,
}

impl Blobs {
    /// Opens the store and reads what is in it. `quota`: bytes, at most.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the folder cannot be made or read, or the bucket not be listed: for the operator.
    pub async fn open(place: &Place, quota: u64) -> Result<Self, Fault> {
        let store: Arc<dyn ObjectStore> = match place {
            Place::Folder(folder) => {
                let folder = folder.clone();
                let opened = tokio::task::spawn_blocking(move || open_folder(&folder)).await;
                Arc::new(opened.map_err(|_| Fault::Unavailable("the folder for pictures could not be opened".into()))??)
            }
            #[cfg(feature = "s3")]
            Place::S3(s3) => bucket::open(s3)?,
        };
        let inner = Inner { store, place: place.clone(), index: Mutex::default(), quota, written: Notify::new() };
        let blobs = Self(Arc::new(inner));
        blobs.read_index().await.map_err(|error| match place {
            Place::Folder(_) => fault(&error),
            #[cfg(feature = "s3")]
            Place::S3(s3) => bucket::refused(s3, &error),
        })?;
        blobs.sweep().await;
        Ok(blobs)
    }

    /// Keeps a file for a time. When this returns it is on the disk.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if there is no room or the disk fails; [`Fault::TooLarge`].
    pub async fn put(&self, bytes: Bytes, new: NewBlob<'_>) -> Result<Arc<Blob>, Fault> {
        self.put_as(BlobId::random()?, bytes, new, None).await
    }

    /// As [`Blobs::put`], for an upload whose name was told before the file came. What is there under that name stays: an upload
    /// that is sent again is the same upload.
    ///
    /// # Errors
    /// As [`Blobs::put`]; [`Fault::NotFound`] if the name is somebody else's.
    pub(crate) async fn put_told(&self, id: BlobId, bytes: Bytes, new: NewBlob<'_>) -> Result<Arc<Blob>, Fault> {
        let claim = loop {
            let written = self.0.written.notified();
            tokio::pin!(written);
            // From here on a word of it is not missed.
            written.as_mut().enable();
            if let Some(there) = self.meta(&id) {
                let same = there.owner == *new.owner && there.purpose == new.purpose;
                return if same { Ok(there) } else { Err(not_found()) };
            }
            if self.index().writing.insert(id.clone()) {
                break Claim { blobs: self.clone(), id: id.clone() };
            }
            written.await;
        };
        self.put_as(id, bytes, new, Some(claim)).await
    }

    /// A picture for a job, which goes again unless it is kept.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn give(&self, bytes: Bytes, mime: &str, name: &str, owner: &Owner) -> Result<Draft, Fault> {
        let (this, owner) = (self.clone(), owner.clone());
        let (mime, name) = (mime.to_owned(), name.to_owned());
        // A task of its own: if the one who asked goes away, what it ends with is dropped.
        let done = tokio::spawn(async move {
            let blob = this.put(bytes, NewBlob::new(Purpose::Given, &mime, &name, KEEP_GIVEN, &owner)).await?;
            let runtime = tokio::runtime::Handle::current();
            let discard = move |id| drop(runtime.spawn(async move { this.discard(&id).await }));
            Ok(Draft::new(blob.id.clone(), discard))
        });
        done.await.map_err(|_| Fault::Failed("writing a picture was broken off".into()))?
    }

    /// Takes away a picture that was given to a job which needs it no more.
    pub async fn discard(&self, id: &BlobId) {
        if self.entry(id).is_some_and(|entry| entry.blob.purpose == Purpose::Given)
            && let Err(fault) = self.delete(id).await
        {
            tracing::warn!(%fault, "a picture that was given stays until its time is over");
        }
    }

    /// What no quota takes (pictures of jobs that wait, parts of uploads, pictures held) has half of it, so that there is always room
    /// for results.
    fn spare(&self, size: u64) -> Result<(), Fault> {
        let index = self.index();
        let kept = index.entries.values().filter(|entry| !entry.blob.purpose.is_public());
        let kept: u64 = kept.map(|entry| entry.blob.bytes).sum();
        if kept + size > self.0.quota / 2 {
            let message = "pictures of jobs that wait and unfinished uploads fill this server; try again later";
            return Err(Fault::Unavailable(message.into()));
        }
        Ok(())
    }

    async fn put_as(
        &self,
        id: BlobId,
        bytes: Bytes,
        new: NewBlob<'_>,
        claim: Option<Claim>,
    ) -> Result<Arc<Blob>, Fault> {
        if new.about.as_ref().is_some_and(|about| about.to_string().len() > MOST_ABOUT) {
            return Err(Fault::TooLarge(format!("what is said of the file is longer than {MOST_ABOUT} bytes")));
        }
        if !new.purpose.is_public() {
            self.spare(bytes.len() as u64)?;
        }
        let created = now();
        let keep = Millis::try_from(new.keep.as_millis()).unwrap_or(Millis::MAX);
        let blob = Blob {
            id,
            name: file_name(new.name),
            mime: media_type(&bytes, new.mime, new.purpose),
            bytes: bytes.len() as u64,
            sha256: String::new(),
            owner: new.owner.clone(),
            purpose: new.purpose,
            created,
            expires: created.saturating_add(keep),
            about: new.about,
        };
        // A task of its own: what was begun is finished and counted even if the one who asked goes away.
        let this = self.clone();
        let write = async move {
            let _claim = claim;
            this.write(blob, bytes).await
        };
        let done = tokio::spawn(write).await;
        done.map_err(|_| Fault::Failed("writing a picture was broken off".into()))?
    }

    async fn write(&self, mut blob: Blob, bytes: Bytes) -> Result<Arc<Blob>, Fault> {
        let place = blob.id.place().ok_or_else(not_found)?;
        let size = blob.bytes;
        self.make_room(size).await?;
        let written = async {
            blob.sha256 = sha256(bytes.clone()).await?;
            let mut line = serde_json::to_vec(&blob).map_err(|_| Fault::Failed("a name cannot be written".into()))?;
            line.push(b'\n');
            let skip = line.len() as u64;
            let payload = PutPayload::from_iter([Bytes::from(line), bytes]);
            self.0.store.put(&place, payload).await.map_err(|error| self.fault(&error))?;
            Ok(Entry { blob: Arc::new(blob), skip })
        };
        let written = written.await;
        let mut index = self.index();
        match written {
            Ok(entry) => {
                let blob = entry.blob.clone();
                // One whose time is over may still be there.
                if let Some(before) = index.entries.insert(blob.id.clone(), entry) {
                    index.used = index.used.saturating_sub(before.blob.bytes);
                }
                Ok(blob)
            }
            Err(fault) => {
                index.used = index.used.saturating_sub(size);
                Err(fault)
            }
        }
    }

    /// What is known of a blob; `None` when its time is over.
    pub fn meta(&self, id: &BlobId) -> Option<Arc<Blob>> {
        self.entry(id).map(|entry| entry.blob)
    }

    fn entry(&self, id: &BlobId) -> Option<Entry> {
        self.index().entries.get(id).filter(|entry| entry.blob.expires > now()).cloned()
    }

    /// A blob's bytes.
    ///
    /// # Errors
    /// [`Fault::NotFound`]; [`Fault::Unavailable`] if the disk fails.
    pub async fn get(&self, id: &BlobId) -> Result<(Arc<Blob>, Bytes), Fault> {
        let entry = self.entry(id).ok_or_else(not_found)?;
        let (from, to) = (entry.skip, entry.skip + entry.blob.bytes);
        if from == to {
            return Ok((entry.blob, Bytes::new()));
        }
        let place = id.place().ok_or_else(not_found)?;
        let bytes = self.0.store.get_range(&place, from..to).await.map_err(|error| self.fault(&error))?;
        Ok((entry.blob, bytes))
    }

    /// A part of a blob's bytes, piece by piece. `from` is below `to`, `to` at most the number of bytes.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn stream(
        &self,
        id: &BlobId,
        from: u64,
        to: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, io::Error>>, Fault> {
        let entry = self.entry(id).ok_or_else(not_found)?;
        let place = id.place().ok_or_else(not_found)?;
        let (from, to) = (entry.skip + from, entry.skip + to);
        #[cfg(feature = "s3")]
        if let Place::S3(_) = self.0.place {
            return bucket::read(&self.0.store, place, from, to).await;
        }
        let options = GetOptions { range: Some((from..to).into()), ..GetOptions::default() };
        let got = self.0.store.get_opts(&place, options).await.map_err(|error| self.fault(&error))?;
        Ok(got.into_stream().map_err(|_| io::Error::other("the store failed")).boxed())
    }

    /// Takes a blob away; one that is not there is no error.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the disk fails.
    pub async fn delete(&self, id: &BlobId) -> Result<(), Fault> {
        let Some(place) = id.place() else { return Ok(()) };
        match self.0.store.delete(&place).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(self.fault(&error)),
        }
        let mut index = self.index();
        if let Some(entry) = index.entries.remove(id) {
            index.used = index.used.saturating_sub(entry.blob.bytes);
        }
        Ok(())
    }

    /// Where a browser finds a blob. `base`: the server's public URL, with or without a slash at its end.
    pub fn url(&self, id: &BlobId, base: &str) -> String {
        let name = self.index().entries.get(id).map_or_else(|| "file".to_owned(), |entry| entry.blob.name.clone());
        format!("{}/files/{id}/{name}", base.trim_end_matches('/'))
    }

    /// Those of a kind, newest first.
    pub fn list(&self, which: impl Fn(&Blob) -> bool) -> Vec<Arc<Blob>> {
        let now = now();
        let wanted = |blob: &Blob| blob.expires > now && which(blob);
        let mut found: Vec<_> =
            self.index().entries.values().filter(|entry| wanted(&entry.blob)).map(|entry| entry.blob.clone()).collect();
        found.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        found
    }

    /// How many blobs there are, and their bytes.
    pub fn used(&self) -> (usize, u64) {
        let index = self.index();
        (index.entries.len(), index.used)
    }

    /// Takes away what is over its time. Returns how many.
    pub async fn sweep(&self) -> usize {
        let now = now();
        let over: Vec<BlobId> = {
            let index = self.index();
            index
                .entries
                .values()
                .filter(|entry| entry.blob.expires <= now)
                .map(|entry| entry.blob.id.clone())
                .collect()
        };
        let mut swept = 0;
        for id in over {
            match self.delete(&id).await {
                Ok(()) => swept += 1,
                // It is invisible already; the next time may do it.
                Err(fault) => tracing::warn!(%fault, "an expired blob stays"),
            }
        }
        swept
    }

    /// Sweeps again and again, for a task of its own.
    pub async fn keep_sweeping(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            self.sweep().await;
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `size` as used, after taking away what has to go for it.
    async fn make_room(&self, size: u64) -> Result<(), Fault> {
        if size > self.0.quota {
            return Err(Fault::TooLarge("the file is larger than all that this server keeps".into()));
        }
        let going = {
            let mut index = self.index();
            let over = (index.used + size).saturating_sub(self.0.quota);
            if over == 0 {
                index.used += size;
                return Ok(());
            }
            // A little more than is needed, so that not every blob has to look for room.
            let Some(going) = index.to_go(over, self.0.quota / 50, now()) else {
                return Err(Fault::Unavailable("this server keeps as many files as it may; try again later".into()));
            };
            // Counted at once: what another writer asks for meanwhile comes on top.
            index.used += size;
            going
        };
        for id in going {
            if let Err(fault) = self.delete(&id).await {
                let mut index = self.index();
                index.used = index.used.saturating_sub(size);
                return Err(fault);
            }
        }
        Ok(())
    }

    async fn read_index(&self) -> object_store::Result<()> {
        let store = &self.0.store;
        let far = !matches!(self.0.place, Place::Folder(_));
        let lines = store.list(None).map_ok(|object| read_line(store.as_ref(), object, far));
        let read: Vec<Option<Entry>> = lines.try_buffer_unordered(32).try_collect().await?;
        let strange = read.iter().filter(|entry| entry.is_none()).count();
        if strange > 0 {
            // Not ours, or of another version: it may be somebody's, so it stays.
            tracing::warn!(objects = strange, "in the store of pictures is what is no blob: left alone");
        }
        let mut index = self.index();
        for entry in read.into_iter().flatten() {
            index.used += entry.blob.bytes;
            index.entries.insert(entry.blob.id.clone(), entry);
        }
        Ok(())
    }

    /// What a failure of the store is for the one who asked.
    fn fault(&self, error: &object_store::Error) -> Fault {
        match self.0.place {
            Place::Folder(_) => fault(error),
            #[cfg(feature = "s3")]
            Place::S3(_) => bucket::fault(error),
        }
    }
}

/// The right to write under a name that was told: of two uploads to one URL the second waits for the first.
struct Claim {
    blobs: Blobs,
    id: BlobId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.blobs.index().writing.remove(&self.id);
        self.blobs.0.written.notify_waiters();
    }
}

impl Index {
    /// What goes so that at least `over` bytes and perhaps `more` are free, oldest of the largest holder first; `None` if there
    /// is not as much that may go.
    fn to_go(&self, over: u64, more: u64, now: Millis) -> Option<Vec<BlobId>> {
        let mut holds: HashMap<&Owner, u64> = HashMap::new();
        for entry in self.entries.values() {
            *holds.entry(&entry.blob.owner).or_default() += entry.blob.bytes;
        }
        let may_go = |blob: &Blob| blob.expires <= now || (blob.purpose.is_public() && blob.created <= now - SAFE_FOR);
        let mut candidates: Vec<&Blob> = self.entries.values().map(|e| &*e.blob).filter(|b| may_go(b)).collect();
        candidates.sort_by_key(|blob| {
            let held = holds.get(&blob.owner).copied().unwrap_or(0);
            (blob.expires > now, Reverse(held), blob.created)
        });
        let mut freed = 0;
        let mut going = Vec::new();
        for blob in candidates {
            if freed >= over + more {
                break;
            }
            freed += blob.bytes;
            going.push(blob.id.clone());
        }
        (freed >= over).then_some(going)
    }
}

/// A folder of the user's own, and in it nothing half written: what a run that was killed left is taken away.
fn open_folder(folder: &FilePath) -> Result<LocalFileSystem, Fault> {
    std::fs::create_dir_all(folder).map_err(|error| fault_of_io(&error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let own = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, own).map_err(|error| fault_of_io(&error))?;
    }
    for shelf in std::fs::read_dir(folder).map_err(|error| fault_of_io(&error))?.flatten() {
        let Ok(files) = std::fs::read_dir(shelf.path()) else { continue };
        for file in files.flatten() {
            // The store's own name for a file that is being written.
            if file.file_name().to_string_lossy().contains('#') && std::fs::remove_file(file.path()).is_err() {
                tracing::warn!("a file that was not finished could not be removed");
            }
        }
    }
    let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| fault(&error))?;
    Ok(store.with_fsync(true))
}

/// The line of an object; `None` if it is no blob. Of a store that is `far`, a failure is no answer: the blob may be there.
async fn read_line(store: &dyn ObjectStore, object: ObjectMeta, far: bool) -> object_store::Result<Option<Entry>> {
    let id = object.location.filename().and_then(|name| name.parse::<BlobId>().ok());
    if object.size == 0 || id.is_none_or(|id| id.place().as_ref() != Some(&object.location)) {
        return Ok(None);
    }
    let start = match store.get_range(&object.location, 0..object.size.min(LONGEST_LINE)).await {
        Ok(start) => start,
        Err(error) if far && !matches!(error, object_store::Error::NotFound { .. }) => return Err(error),
        Err(_) => return Ok(None),
    };
    let read = || {
        let end = start.iter().position(|&byte| byte == b'\n')?;
        let blob: Blob = serde_json::from_slice(&start[..end]).ok()?;
        let skip = end as u64 + 1;
        let whole = blob.id.place()? == object.location && skip.checked_add(blob.bytes)? == object.size;
        whole.then(|| Entry { blob: Arc::new(blob), skip })
    };
    Ok(read())
}

async fn sha256(bytes: Bytes) -> Result<String, Fault> {
    let hash = move || hex(&Sha256::digest(&bytes));
    // About a millisecond for each of these; the threads that serve have other things to do.
    tokio::task::spawn_blocking(hash).await.map_err(|_| Fault::Failed("a file could not be hashed".into()))
}

fn not_found() -> Fault {
    Fault::NotFound("the file".into())
}

/// What a failure of the store is for the one who asked; the log has no more, for paths are in the rest.
fn fault(error: &object_store::Error) -> Fault {
    if let object_store::Error::NotFound { .. } = error {
        return not_found();
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return fault_of_io(error);
        }
        cause = error.source();
    }
    Fault::Unavailable("the store of pictures does not answer".into())
}

fn fault_of_io(error: &io::Error) -> Fault {
    Fault::Unavailable(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "the server's disk is full".into()
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "the server may not write to its folder".into()
        }
        kind => format!("the server's folder fails ({kind})"),
    })
}

#[cfg(test)]
mod tests;
