//! Models on a disk or stick, for machines without a network: a folder, or the same in an uncompressed tar.
//!
//! ```text
//! manifest.json     records of the models, and SHA-256 and size of every blob
//! blobs/SHA256      the bytes
//! ```
//!
//! A bundle comes from strangers: nothing of it becomes a path but hashes and names that were checked, every byte is hashed
//! before it is where a model is looked for, and a model is there when all of its files are.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    cache::{Cache, free_bytes, make_parent},
    clock::now,
    error::{Error, Result},
    hash::{Hash, sha256_of_file},
    licence::Text,
    names::{Repository, shown},
    records::{Record, RecordFile, Records},
    transfer::Role,
    watch::{Event, Watch, tell},
};

/// The longest manifest that is read, bytes.
const LONGEST: u64 = 16 << 20;
const MANIFEST: &str = "manifest.json";
const KIND: &str = "darkroom-bundle";
const VERSION: u32 = 1;

/// What a bundle holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// When it was made, RFC 3339 in UTC.
    pub made: String,
    /// Its models.
    pub models: Vec<Record>,
    /// Size of each blob by its SHA-256.
    blobs: BTreeMap<String, u64>,
    /// The blob of each file's hash.
    of_etag: BTreeMap<String, String>,
}

impl Manifest {
    /// Bytes of all blobs; as many as can be counted, if somebody's manifest says more.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().copied().fold(0, u64::saturating_add)
    }

    /// The text of the licence that comes with a model, by its hash.
    pub fn licence_text(&self, model: &Record) -> Option<Text> {
        let file = model.files.iter().find(|file| file.role == Role::Licence)?;
        let sha256 = self.of_etag.get(&file.etag)?.clone();
        Some(Text { from: format!("{}@{}/{}", file.repository, file.commit, file.path), sha256, version: None })
    }

    fn check(&self) -> Result<(), String> {
        if self.format != KIND {
            return Err(format!("is not a bundle: its format is '{}', not '{KIND}'", shown(&self.format)));
        }
        if self.version != VERSION {
            return Err(format!("is a bundle of version {}; this program knows {VERSION}", self.version));
        }
        let is_sha = |text: &str| text.len() == 64 && crate::names::is_etag(text);
        if self.models.is_empty() || !self.blobs.keys().all(|sha| is_sha(sha)) {
            return Err("has a manifest without models, or with a hash that is none".into());
        }
        for model in &self.models {
            model.check().map_err(|problem| format!("has a model that cannot be used: {problem}"))?;
            for file in &model.files {
                let blob = self.of_etag.get(&file.etag);
                let fits = blob.is_some_and(|sha| self.blobs.get(sha) == Some(&file.size));
                let same = file.etag.len() != 64 || blob == Some(&file.etag);
                if !fits || !same {
                    return Err(format!("has a manifest that contradicts itself about '{}'", shown(&file.path)));
                }
            }
        }
        Ok(())
    }
}

/// Writes models into a new folder, or into a tar if `to` ends in `.tar`.
///
/// # Errors
/// [`Error::File`] if `to` is there already or cannot be written, [`Error::Corrupt`] if the cache's bytes have another hash than
/// their names, [`Error::Full`], [`Error::Cancelled`].
pub fn export(models: &[Record], cache: &Cache, to: &Path, watch: &mut Watch<'_>) -> Result<Manifest> {
    if to.symlink_metadata().is_ok() {
        return Err(Error::file(to, "is there already; hint: name a file or folder that is not"));
    }
    let mut manifest = Manifest {
        format: KIND.into(),
        version: VERSION,
        made: now(),
        models: models.to_vec(),
        blobs: BTreeMap::new(),
        of_etag: BTreeMap::new(),
    };
    let mut sources: BTreeMap<String, (PathBuf, &RecordFile)> = BTreeMap::new();
    for file in models.iter().flat_map(|model| &model.files) {
        let path = cache.path(&file.repository, &file.commit, &file.path);
        let sha = match file.etag.len() {
            64 => file.etag.clone(),
            _ => sha256_of_file(&path).map_err(|e| Error::io(&path, &e))?,
        };
        manifest.blobs.insert(sha.clone(), file.size);
        manifest.of_etag.insert(file.etag.clone(), sha.clone());
        sources.insert(sha, (path, file));
    }
    manifest.check().map_err(|problem| Error::file(to, problem))?;
    let around = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_parent(&around.join("x"))?;
    let needed = manifest.bytes().saturating_add(1 << 20);
    if let Some(free) = free_bytes(around)
        && needed > free
    {
        return Err(Error::file(
            to,
            format!("needs {}, {} are free there", crate::error::bytes(needed), crate::error::bytes(free)),
        ));
    }
    let is_tar = to.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"));
    // Under another name until it is whole.
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut writer = if is_tar { Writer::tar(&partial)? } else { Writer::folder(&partial)? };
    let written = write_all(&mut writer, &manifest, &sources, watch).and_then(|()| writer.finish());
    match written {
        Ok(()) => fs::rename(&partial, to).map_err(|e| Error::io(to, &e))?,
        Err(error) => {
            let _ = if is_tar { fs::remove_file(&partial) } else { fs::remove_dir_all(&partial) };
            return Err(error);
        }
    }
    Ok(manifest)
}

fn write_all(
    writer: &mut Writer,
    manifest: &Manifest,
    sources: &BTreeMap<String, (PathBuf, &RecordFile)>,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let json = serde_json::to_vec_pretty(manifest).map_err(|e| Error::file(MANIFEST, e.to_string()))?;
    writer.add(MANIFEST, json.len() as u64, &mut json.as_slice())?;
    for (sha, (path, file)) in sources {
        tell(watch, Event::Starting { file: &file.path, size: file.size, have: 0 })?;
        let source = File::open(path).map_err(|e| Error::io(path, &e))?;
        let mut reader = Hashing { reader: source, hash: Hash::of_etag(sha, file.size), watch, stopped: false };
        let added = writer.add(&format!("blobs/{sha}"), file.size, &mut reader);
        if reader.stopped {
            return Err(Error::Cancelled);
        }
        added?;
        let came = reader.hash.digits();
        if came != *sha {
            let problem =
                format!("the cache's bytes have hash {came}, not {sha}; hint: 'darkroom rm' it and pull it again");
            return Err(Error::Corrupt { what: path.display().to_string(), problem });
        }
        tell(watch, Event::Done { file: &file.path })?;
    }
    Ok(())
}

/// A folder or a tar that is being written.
enum Writer {
    Folder(PathBuf),
    Tar { path: PathBuf, builder: tar::Builder<File> },
}

impl Writer {
    fn folder(path: &Path) -> Result<Self> {
        fs::create_dir(path).map_err(|e| Error::io(path, &e))?;
        Ok(Self::Folder(path.to_owned()))
    }

    fn tar(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::io(path, &e))?;
        Ok(Self::Tar { path: path.to_owned(), builder: tar::Builder::new(file) })
    }

    fn add(&mut self, name: &str, size: u64, bytes: &mut dyn Read) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                make_parent(&path)?;
                let copied = File::create_new(&path).and_then(|mut file| {
                    let copied = std::io::copy(bytes, &mut file)?;
                    file.sync_all()?;
                    Ok(copied)
                });
                let copied = copied.map_err(|e| Error::io(&path, &e))?;
                if copied == size { Ok(()) } else { Err(Error::file(path, format!("has {copied} bytes, not {size}"))) }
            }
            Self::Tar { path, builder } => {
                let mut header = tar::Header::new_gnu();
                header.set_size(size);
                header.set_mode(0o644);
                header.set_mtime(0);
                header.set_entry_type(tar::EntryType::Regular);
                builder.append_data(&mut header, name, bytes).map_err(|e| Error::io(path, &e))
            }
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Tar { path, builder } => {
                let file = builder.into_inner().map_err(|e| Error::io(&path, &e))?;
                file.sync_all().map_err(|e| Error::io(&path, &e))
            }
        }
    }
}

/// Hashes what goes through, and tells.
struct Hashing<'a, R> {
    reader: R,
    hash: Hash,
    watch: &'a mut Watch<'a>,
    stopped: bool,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        if !(self.watch)(Event::Received { bytes: read as u64 }) {
            self.stopped = true;
            return Err(std::io::Error::other("cancelled"));
        }
        Ok(read)
    }
}

/// What a bundle says that it holds. Its bytes are not read.
///
/// # Errors
/// [`Error::File`] if it is no bundle or its manifest cannot be used.
pub fn read_manifest(from: &Path) -> Result<Manifest> {
    if from.is_dir() {
        let path = from.join(MANIFEST);
        let file = File::open(&path).map_err(|e| Error::file(from, format!("is not a bundle: '{MANIFEST}': {e}")))?;
        return parse(from, file);
    }
    let file = File::open(from).map_err(|e| Error::io(from, &e))?;
    let mut archive = tar::Archive::new(file);
    let mut entries = archive.entries().map_err(|e| Error::io(from, &e))?;
    match entries.next() {
        Some(Ok(entry))
            if entry.path_bytes().as_ref() == MANIFEST.as_bytes() && entry.header().entry_type().is_file() =>
        {
            parse(from, entry)
        }
        _ => Err(Error::file(
            from,
            format!("is not a bundle: expected a folder, or a tar that begins with '{MANIFEST}'"),
        )),
    }
}

fn parse(from: &Path, reader: impl Read) -> Result<Manifest> {
    let mut text = Vec::new();
    reader.take(LONGEST + 1).read_to_end(&mut text).map_err(|e| Error::io(from, &e))?;
    if text.len() as u64 > LONGEST {
        return Err(Error::file(from, format!("has a manifest of more than {LONGEST} bytes")));
    }
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|e| Error::file(from, format!("has a manifest that cannot be read: {e}")))?;
    manifest.check().map_err(|problem| Error::file(from, problem))?;
    Ok(manifest)
}

/// Takes a bundle's models into the cache. A model counts when all of its bytes were checked.
///
/// # Errors
/// [`Error::File`] if the bundle holds other things than its manifest says, [`Error::Corrupt`] for a wrong hash,
/// [`Error::Full`], [`Error::Cancelled`].
pub fn import(from: &Path, manifest: &Manifest, cache: &Cache, records: &Records, watch: &mut Watch<'_>) -> Result<()> {
    cache.prepare()?;
    let mut import = Import::new(from, manifest, cache);
    let needed = import.missing();
    if let Some(free) = cache.free()
        && needed > free
    {
        return Err(Error::Full { path: cache.root().to_owned(), needed, free });
    }
    if from.is_dir() {
        import.folder(watch)?;
    } else {
        import.tar(watch)?;
    }
    import.check_whole()?;
    manifest.models.iter().try_for_each(|model| link(model, cache, records))
}

/// Where a blob belongs: a repository, and the name that it has there.
type Place<'a> = (&'a Repository, &'a str);

/// A bundle on its way into the cache.
struct Import<'a> {
    from: &'a Path,
    manifest: &'a Manifest,
    cache: &'a Cache,
    /// By SHA-256.
    places: BTreeMap<&'a str, Vec<Place<'a>>>,
    /// SHA-256 of the blobs that came.
    taken: Vec<String>,
}

impl<'a> Import<'a> {
    fn new(from: &'a Path, manifest: &'a Manifest, cache: &'a Cache) -> Self {
        let mut places: BTreeMap<&str, Vec<Place<'_>>> = BTreeMap::new();
        for file in manifest.models.iter().flat_map(|model| &model.files) {
            let Some(sha) = manifest.of_etag.get(&file.etag) else { continue };
            let of_sha = places.entry(sha).or_default();
            if !of_sha.contains(&(&file.repository, &file.etag)) {
                of_sha.push((&file.repository, &file.etag));
            }
        }
        Self { from, manifest, cache, places, taken: Vec::new() }
    }

    fn is_there(&self, (repository, etag): Place<'_>, size: u64) -> bool {
        fs::metadata(self.cache.blob(repository, etag)).is_ok_and(|meta| meta.len() == size)
    }

    /// Bytes that the cache lacks.
    fn missing(&self) -> u64 {
        let of_blob = |(sha, &size): (&String, &u64)| {
            let places = self.places.get(sha.as_str()).into_iter().flatten();
            size.saturating_mul(places.filter(|place| !self.is_there(**place, size)).count() as u64)
        };
        self.manifest.blobs.iter().map(of_blob).fold(0, u64::saturating_add)
    }

    fn folder(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        for (sha, size) in &self.manifest.blobs {
            let path = self.from.join("blobs").join(sha);
            let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
            if !is_file {
                return Err(Error::file(path, "is missing from the bundle, or not a plain file"));
            }
            let mut file = File::open(&path).map_err(|e| Error::io(&path, &e))?;
            let length = file.metadata().map_err(|e| Error::io(&path, &e))?.len();
            if length != *size {
                return Err(Error::file(path, format!("has {length} bytes, the manifest says {size}")));
            }
            self.take(&format!("blobs/{sha}"), length, &mut file, watch)?;
        }
        Ok(())
    }

    fn tar(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let from = self.from;
        let file = File::open(from).map_err(|e| Error::io(from, &e))?;
        let mut archive = tar::Archive::new(file);
        let entries = archive.entries().map_err(|e| Error::io(from, &e))?;
        // The first is the manifest.
        for entry in entries.skip(1) {
            let mut entry = entry.map_err(|e| Error::file(from, format!("breaks off: {e}")))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !entry.header().entry_type().is_file() {
                return Err(Error::file(from, format!("holds '{}', which is not a plain file", shown(&name))));
            }
            let size = entry.size();
            self.take(&name, size, &mut entry, watch)?;
        }
        Ok(())
    }

    /// A file of the bundle to all places that want it.
    fn take(&mut self, name: &str, size: u64, reader: &mut dyn Read, watch: &mut Watch<'_>) -> Result<()> {
        let known = name
            .strip_prefix("blobs/")
            .and_then(|sha| Some((sha, self.places.get(sha)?, *self.manifest.blobs.get(sha)?)));
        let Some((sha, places, expected)) = known else {
            return Err(Error::file(self.from, format!("holds '{}', which its manifest does not name", shown(name))));
        };
        if size != expected || self.taken.iter().any(|other| other == sha) {
            return Err(Error::file(self.from, format!("holds '{}' with another size, or twice", shown(name))));
        }
        self.taken.push(sha.to_owned());
        if let Some(place) = places.iter().find(|place| !self.is_there(**place, size)) {
            put(self.from, self.cache, *place, (sha, size), reader, watch)?;
        }
        // The same bytes for other repositories.
        let Some(first) = places.iter().find(|place| self.is_there(**place, size)) else { return Ok(()) };
        for place in places.iter().filter(|place| !self.is_there(**place, size)) {
            let (source, target) = (self.cache.blob(first.0, first.1), self.cache.blob(place.0, place.1));
            make_parent(&target)?;
            let copied = fs::hard_link(&source, &target).or_else(|_| fs::copy(&source, &target).map(|_| ()));
            copied.map_err(|e| Error::io(&target, &e))?;
        }
        Ok(())
    }

    fn check_whole(&self) -> Result<()> {
        let Manifest { blobs, models, of_etag, .. } = self.manifest;
        let Some(sha) = blobs.keys().find(|sha| !self.taken.contains(sha)) else { return Ok(()) };
        let file = models.iter().flat_map(|model| &model.files).find(|file| of_etag.get(&file.etag) == Some(sha));
        let name = file.map_or(sha.as_str(), |file| &file.path);
        Err(Error::file(self.from, format!("is not whole: the bytes of '{}' are missing", shown(name))))
    }
}

/// A model whose blobs are all there.
fn link(model: &Record, cache: &Cache, records: &Records) -> Result<()> {
    for file in &model.files {
        cache.link(&file.repository, &file.commit, &file.path, &file.etag)?;
    }
    for file in &model.files {
        // What is here already may be newer.
        if cache.commit(&file.repository, &file.revision).is_none() {
            cache.set_commit(&file.repository, &file.revision, &file.commit)?;
        }
    }
    records.save(&Record { pulled: now(), ..model.clone() })
}

/// One blob into the cache.
fn put(
    from: &Path,
    cache: &Cache,
    (repository, etag): Place<'_>,
    (sha, size): (&str, u64),
    reader: &mut dyn Read,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let (blob, incomplete) = (cache.blob(repository, etag), cache.incomplete(repository, etag));
    let _lock = cache.lock(repository, etag, watch)?;
    tell(watch, Event::Starting { file: sha, size, have: 0 })?;
    make_parent(&incomplete)?;
    let mut file = File::create(&incomplete).map_err(|e| Error::io(&incomplete, &e))?;
    let (mut by_sha, mut by_etag) = (Hash::of_etag(sha, size), Hash::of_etag(etag, size));
    let mut buffer = vec![0; 1 << 20];
    let mut copied = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(|e| Error::file(from, format!("breaks off: {e}")))?;
        if read == 0 {
            break;
        }
        copied += read as u64;
        if copied > size {
            break;
        }
        by_sha.update(&buffer[..read]);
        if etag.len() != 64 {
            by_etag.update(&buffer[..read]);
        }
        file.write_all(&buffer[..read]).map_err(|e| Error::io(&incomplete, &e))?;
        if !watch(Event::Received { bytes: read as u64 }) {
            let _ = fs::remove_file(&incomplete);
            return Err(Error::Cancelled);
        }
    }
    let came = by_sha.digits();
    let git = if etag.len() == 64 { etag.to_owned() } else { by_etag.digits() };
    if copied != size || came != sha || git != etag {
        let _ = fs::remove_file(&incomplete);
        let problem = format!("a blob has {copied} bytes and hash {came}; {size} and {sha} were promised");
        return Err(Error::Corrupt { what: from.display().to_string(), problem });
    }
    file.sync_all().map_err(|e| Error::io(&incomplete, &e))?;
    drop(file);
    fs::rename(&incomplete, &blob).map_err(|e| Error::io(&blob, &e))?;
    tell(watch, Event::Done { file: sha })
}
