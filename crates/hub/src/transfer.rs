//! A download: the list of files with the hub's sizes and hashes, what is here already, and the rest of it piece by piece.
//!
//! A file is written as `HASH.incomplete` and goes on from its length after any interruption, also by another program. It gets
//! its name when its hash is right. A name such as `main` stands for the new commit when all files are there.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use crate::{
    cache::{Cache, make_parent},
    error::{Error, Result, bytes},
    hash::Hash,
    http::{Client, Failure, Method, io_failure, odd},
    names::{Repository, fits, shown},
    remote::{Contents, Remote, RemoteFile},
    settings::Settings,
    watch::{Event, Watch, tell},
};

/// Left free on the disk, bytes.
const RESERVE: u64 = 64 << 20;

/// The longest licence that is read, bytes.
const LONGEST_LICENCE: u64 = 1 << 20;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A folder as diffusers has it.
    Folder,
    /// The transformer.
    Transformer,
    /// The autoencoder.
    Vae,
    /// CLIP-L.
    ClipL,
    /// T5.
    T5,
    /// The text of the licence.
    Licence,
    /// Anything else.
    Other,
}

/// Which files of a repository are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// One, by its path.
    File(String),
    /// All whose path or name fits a pattern with `*` and `?`.
    Pattern(String),
    /// A diffusers folder: `model_index.json` and the parts' folders, in safetensors.
    Diffusers,
    /// The only weights there are, or a diffusers folder.
    Whatever,
}

/// Files of one repository, and what for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where.
    pub repository: Repository,
    /// A branch, tag or commit.
    pub revision: String,
    /// What for.
    pub role: Role,
    /// Which.
    pub pick: Pick,
}

/// A file to be downloaded, or here already.
#[derive(Clone, Debug)]
pub struct Item {
    /// What for.
    pub role: Role,
    /// Where.
    pub repository: Repository,
    /// At which commit.
    pub commit: String,
    /// Path, size, hash.
    pub file: RemoteFile,
    /// Bytes that are here already.
    pub here: u64,
}

/// All files of a download.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The files, small ones first.
    pub items: Vec<Item>,
    /// Their repositories as the hub described them.
    pub contents: Vec<Contents>,
}

impl Transfer {
    /// Bytes of all files.
    pub fn total(&self) -> u64 {
        self.items.iter().map(|item| item.file.size).sum()
    }

    /// Bytes that are still to be downloaded.
    pub fn missing(&self) -> u64 {
        self.items.iter().map(|item| item.file.size.saturating_sub(item.here)).sum()
    }
}

/// The hub and the cache.
pub struct Hub {
    settings: Settings,
    cache: Cache,
    client: Client,
}

impl Hub {
    /// With these settings. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Offline`], [`Error::Asked`] about a variable, [`Error::Network`] if this system trusts nobody.
    pub fn new(settings: &Settings) -> Result<Self> {
        let cache = Cache::new(&settings.cache);
        Ok(Self { client: Client::new(settings)?, settings: settings.clone(), cache })
    }

    fn remote(&self) -> Remote<'_> {
        Remote { client: &self.client, settings: &self.settings }
    }

    /// What a repository holds.
    ///
    /// # Errors
    /// [`Error::Gate`], [`Error::NotPublished`], [`Error::Network`].
    pub fn contents(&self, repository: &Repository, revision: &str, watch: &mut Watch<'_>) -> Result<Contents> {
        tell(watch, Event::Asking { repository: repository.as_str() })?;
        self.remote().contents(repository, revision, watch)
    }

    /// Finds all files, whether they may be downloaded, and what of them is here. Nothing is downloaded.
    ///
    /// # Errors
    /// As [`Hub::contents`]; [`Error::NotPublished`] with a list of what is there if a file is not.
    pub fn prepare(&self, wanted: &[Wanted], watch: &mut Watch<'_>) -> Result<Transfer> {
        let mut contents: Vec<Contents> = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        for wanted in wanted {
            let known =
                contents.iter().position(|c| c.repository == wanted.repository && c.revision == wanted.revision);
            let at = if let Some(at) = known {
                at
            } else {
                contents.push(self.contents(&wanted.repository, &wanted.revision, watch)?);
                contents.len() - 1
            };
            let of = &contents[at];
            let picked = pick(of, &wanted.pick)?;
            if let Some(largest) = picked.iter().max_by_key(|file| file.size) {
                self.remote().may_have(of, largest, watch)?;
            }
            let licences = of.files.iter().filter(|file| is_licence(file)).map(|file| (Role::Licence, file));
            for (role, file) in picked.into_iter().map(|file| (wanted.role, file)).chain(licences) {
                let is_there = |item: &Item| item.repository == of.repository && item.file.path == file.path;
                if !items.iter().any(is_there) {
                    items.push(Item {
                        role,
                        repository: of.repository.clone(),
                        commit: of.commit.clone(),
                        here: self.here(&of.repository, file),
                        file: file.clone(),
                    });
                }
            }
        }
        items.sort_by(|a, b| (a.file.size, &a.file.path).cmp(&(b.file.size, &b.file.path)));
        Ok(Transfer { items, contents })
    }

    /// Bytes of a file that the cache has.
    fn here(&self, repository: &Repository, file: &RemoteFile) -> u64 {
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        if self.cache.blob(repository, &file.etag).is_file() {
            return file.size;
        }
        length(&self.cache.incomplete(repository, &file.etag)).min(file.size)
    }

    /// The text of the licence that lies in a repository, downloaded if it has to be.
    ///
    /// # Errors
    /// As a download.
    pub fn licence_text(&self, transfer: &Transfer, watch: &mut Watch<'_>) -> Result<Option<(Item, String)>> {
        // Of the repository that was asked for first.
        let first = transfer.contents.first().map(|contents| &contents.repository);
        let item = transfer.items.iter().find(|item| item.role == Role::Licence && Some(&item.repository) == first);
        let Some(item) = item else { return Ok(None) };
        self.cache.prepare()?;
        self.download(item, watch)?;
        let path = self.cache.blob(&item.repository, &item.file.etag);
        let text = fs::read(&path).map_err(|e| Error::io(&path, &e))?;
        Ok(Some((item.clone(), String::from_utf8_lossy(&text).into_owned())))
    }

    /// Downloads what is missing, checks it, and puts it where other programs look for it.
    ///
    /// # Errors
    /// [`Error::Full`] before the first byte; [`Error::Network`] when patience is at its end; [`Error::Corrupt`];
    /// [`Error::File`]; [`Error::Cancelled`]. What came is kept.
    pub fn fetch(&self, transfer: &Transfer, watch: &mut Watch<'_>) -> Result<()> {
        self.cache.prepare()?;
        let needed = transfer.missing();
        if let Some(free) = self.cache.free()
            && needed > 0
            && needed.saturating_add(RESERVE) > free
        {
            return Err(Error::Full { path: self.cache.root().to_owned(), needed, free });
        }
        for item in &transfer.items {
            tell(
                watch,
                Event::Starting {
                    file: &item.file.path,
                    size: item.file.size,
                    have: self.here(&item.repository, &item.file),
                },
            )?;
            self.download(item, watch)?;
            self.cache.link(&item.repository, &item.commit, &item.file.path, &item.file.etag)?;
            tell(watch, Event::Done { file: &item.file.path })?;
        }
        for contents in &transfer.contents {
            self.cache.set_commit(&contents.repository, &contents.revision, &contents.commit)?;
        }
        Ok(())
    }

    /// One file, until its blob is there.
    fn download(&self, item: &Item, watch: &mut Watch<'_>) -> Result<()> {
        let blob = self.cache.blob(&item.repository, &item.file.etag);
        let is_there = || fs::metadata(&blob).is_ok_and(|meta| meta.len() == item.file.size);
        if is_there() {
            return Ok(());
        }
        let _lock = self.cache.lock(&item.repository, &item.file.etag, watch)?;
        if is_there() {
            return Ok(());
        }
        let mut partial = Partial::open(&self.cache.incomplete(&item.repository, &item.file.etag), &item.file, watch)?;
        let address = self.remote().address(&item.repository, &item.commit, &item.file.path);
        let mut wrong = 0;
        self.client.patiently(watch, |watch, progress| {
            while !partial.is_complete() {
                self.piece(item, &address, &mut partial, watch, progress)?;
            }
            let came = partial.hash.clone().digits();
            if came == item.file.etag {
                return Ok(());
            }
            wrong += 1;
            partial.restart(watch)?;
            let problem = format!("came with hash {came}, {} was promised; it was dropped", item.file.etag);
            let error = Error::Corrupt { what: shown(&item.file.path), problem };
            // Once may be an old piece of another program's; twice is no accident.
            Err(if wrong > 1 {
                Failure::Final(error)
            } else {
                Failure::Passing { error, after: Some(std::time::Duration::ZERO) }
            })
        })?;
        partial.finish(&blob)
    }

    /// One answer, as far as it goes.
    fn piece(
        &self,
        item: &Item,
        address: &str,
        partial: &mut Partial,
        watch: &mut Watch<'_>,
        progress: &mut bool,
    ) -> Result<(), Failure> {
        let from = Some(partial.have).filter(|have| *have > 0);
        let mut answer = self.client.ask(Method::Get, address, from)?;
        let host = answer.host.clone();
        let broken = |problem: String| Failure::Passing { error: odd(&host, problem), after: None };
        match answer.status {
            200 if from.is_some() => partial.restart(watch)?,
            200 => {}
            206 if answer.header("content-range").and_then(range_start) == from => {}
            206 | 416 => {
                partial.restart(watch)?;
                return Err(broken(format!(
                    "answers with another part of '{}' than was asked for",
                    shown(&item.file.path)
                )));
            }
            status if host != self.client.host() => {
                return Err(broken(format!("refuses '{}' with status {status}", shown(&item.file.path))));
            }
            _ => {
                let text = answer.text().ok();
                return Err(self.remote().refusal(&item.repository, &answer, text.as_deref()));
            }
        }
        let mut reader = answer.body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = reader.read(&mut buffer).map_err(|e| io_failure(&host, &e))?;
            if read == 0 {
                break;
            }
            if partial.have + read as u64 > partial.size {
                partial.restart(watch)?;
                return Err(broken(format!(
                    "sends more than the {} of '{}'",
                    bytes(partial.size),
                    shown(&item.file.path)
                )));
            }
            partial.append(&buffer[..read])?;
            *progress = true;
            tell(watch, Event::Received { bytes: read as u64 })?;
        }
        if partial.is_complete() {
            return Ok(());
        }
        let (have, size) = (bytes(partial.have), bytes(partial.size));
        Err(broken(format!("broke the connection off after {have} of {size} of '{}'", shown(&item.file.path))))
    }
}

/// A file as far as it came.
struct Partial {
    path: std::path::PathBuf,
    file: File,
    etag: String,
    size: u64,
    have: u64,
    hash: Hash,
}

impl Partial {
    fn open(path: &Path, of: &RemoteFile, watch: &mut Watch<'_>) -> Result<Self> {
        make_parent(path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|e| Error::io(path, &e))?;
        let hash = Hash::of_etag(&of.etag, of.size);
        let mut partial = Self { path: path.to_owned(), file, etag: of.etag.clone(), size: of.size, have: 0, hash };
        partial.read_again(watch)?;
        Ok(partial)
    }

    /// Takes over what is there.
    fn read_again(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let length = self.file.metadata().map_err(|e| Error::io(&self.path, &e))?.len();
        if length > self.size {
            return self.restart(watch);
        }
        let mut buffer = vec![0; 1 << 20];
        while self.have < length {
            let read = self.file.read(&mut buffer).map_err(|e| Error::io(&self.path, &e))?;
            if read == 0 {
                break;
            }
            self.hash.update(&buffer[..read]);
            self.have += read as u64;
            tell(watch, Event::Checked { bytes: read as u64 })?;
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.have == self.size
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, &e))?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let dropped = self.have;
        self.have = 0;
        self.hash = Hash::of_etag(&self.etag, self.size);
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| Error::io(&self.path, &e))?;
        tell(watch, Event::Dropped { bytes: dropped })
    }

    fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, &e))?;
        drop(self.file);
        fs::rename(&self.path, blob).map_err(|e| Error::io(blob, &e))
    }
}

/// Where `bytes 7-99/100` begins.
fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn is_licence(file: &RemoteFile) -> bool {
    let name = file.path.to_ascii_lowercase();
    (name.starts_with("license") || name.starts_with("licence")) && !name.contains('/') && file.size <= LONGEST_LICENCE
}

fn pick<'a>(contents: &'a Contents, pick: &Pick) -> Result<Vec<&'a RemoteFile>> {
    let name_of = |path: &'a str| path.rsplit('/').next().unwrap_or(path);
    let all = || contents.files.iter();
    let lacks = |what: &str| {
        let problem = format!(
            "{} has no {what} at commit {}; its weights are\n{}\nhint: darkroom pull {}:FILE",
            contents.repository,
            &contents.commit[..12.min(contents.commit.len())],
            contents.listing(),
            contents.repository
        );
        Err(Error::NotPublished(problem))
    };
    let picked: Vec<&RemoteFile> = match pick {
        Pick::File(path) => all().filter(|file| file.path == *path).collect(),
        Pick::Pattern(pattern) => {
            all().filter(|file| fits(pattern, &file.path) || fits(pattern, name_of(&file.path))).collect()
        }
        Pick::Diffusers => diffusers(contents),
        Pick::Whatever if all().any(|file| file.path == "model_index.json") => diffusers(contents),
        Pick::Whatever => {
            let weights: Vec<&RemoteFile> = all().filter(|file| file.is_weights()).collect();
            if weights.len() > 1 {
                return lacks("'model_index.json' and more than one file of weights: say which");
            }
            weights
        }
    };
    match (picked.is_empty(), pick) {
        (false, _) => Ok(picked),
        (true, Pick::File(path)) => lacks(&format!("file '{path}'")),
        (true, Pick::Pattern(pattern)) => lacks(&format!("file that fits '{}'", shown(pattern))),
        (true, Pick::Diffusers) => lacks("'model_index.json'"),
        (true, Pick::Whatever) => lacks("weights in safetensors or GGUF"),
    }
}

/// `model_index.json` and the parts' folders, without the same weights in other forms.
fn diffusers(contents: &Contents) -> Vec<&RemoteFile> {
    if !contents.files.iter().any(|file| file.path == "model_index.json") {
        return Vec::new();
    }
    let belongs = |file: &&RemoteFile| match file.path.split_once('/') {
        None => file.path == "model_index.json",
        Some((folder, name)) => {
            let part = folder == "scheduler"
                || ["tokenizer", "text_encoder", "transformer", "vae", "image_e", "feature_extractor"]
                    .iter()
                    .any(|start| folder.starts_with(start));
            let kind = [".json", ".txt", ".model", ".safetensors"].iter().any(|end| name.ends_with(end));
            // `model.fp16.safetensors` is another copy of what is wanted.
            let copy = [".fp16", ".fp32", ".bf16", ".non_ema"].iter().any(|variant| name.contains(variant));
            part && kind && !copy && !name.contains('/')
        }
    };
    contents.files.iter().filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(paths: &[&str]) -> Contents {
        let file = |path: &&str| RemoteFile { path: (*path).to_owned(), size: 1_500_000, etag: "0".repeat(64) };
        Contents {
            repository: "org/name".parse().unwrap(),
            commit: "c".repeat(40),
            revision: "main".into(),
            gated: false,
            licence: None,
            licence_link: None,
            files: paths.iter().map(file).collect(),
        }
    }

    fn picked<'a>(of: &'a Contents, what: &Pick) -> Vec<&'a str> {
        pick(of, what).unwrap().into_iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn a_diffusers_folder_comes_without_the_same_weights_in_other_forms() {
        let of = contents(&[
            "README.md",
            "ae.safetensors",
            "flux1-dev.safetensors",
            "model_index.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer_2/spiece.model",
            "transformer/diffusion_pytorch_model.bin",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
        ]);
        let folder = picked(&of, &Pick::Diffusers);
        assert_eq!(folder.len(), 5);
        assert!(
            !folder.contains(&"flux1-dev.safetensors")
                && !folder.iter().any(|f| f.contains(".bin") || f.contains("fp16"))
        );
        assert_eq!(picked(&of, &Pick::Whatever), folder);
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let of = contents(&["a-Q4_K_S.gguf", "sub/a-Q8_0.gguf", "README.md"]);
        assert_eq!(picked(&of, &Pick::Pattern("*q8_0*".to_uppercase())), ["sub/a-Q8_0.gguf"]);
        assert_eq!(picked(&of, &Pick::Pattern("a-Q8_0.gguf".into())), ["sub/a-Q8_0.gguf"]);
        for missing in [Pick::File("b.gguf".into()), Pick::Pattern("b*".into()), Pick::Diffusers, Pick::Whatever] {
            let told = pick(&of, &missing).unwrap_err().to_string();
            assert!(told.contains("1.5 MB  a-Q4_K_S.gguf") && told.contains("sub/a-Q8_0.gguf"), "{told}");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_start("bytes 7-99/100"), Some(7));
        assert_eq!((range_start("bytes */100"), range_start("items 7-9/10")), (None, None));
    }
}
