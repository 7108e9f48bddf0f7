//! Prompts to token ids: byte-pair encoding for CLIP, a unigram model for T5, equal to transformers' tokenizers.
//!
//! Only a [`Screened`] prompt is taken. Ids come padded to a length in tokens; a longer prompt is cut so that its end
//! token stays last. Padding and truncation that a `tokenizer.json` asks for are ignored.
//! Source: the models' `tokenizer.json`; transformers 4.57 `CLIPTokenizer`.

mod embedded;
mod settings;
mod unigram;

use std::path::Path;
use std::sync::OnceLock;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, ModelWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};
use crate::safety::Screened;
use settings::Settings;
pub(crate) use unigram::is_inside;

const TOKENIZER: &str = "tokenizer.json";

/// CLIP's tokenizer: lower-cased words in byte pairs, `<|startoftext|>` before and `<|endoftext|>` behind.
#[derive(Debug)]
pub struct ClipTokenizer {
    text: Text,
    bos: u32,
    eos: u32,
    pad: u32,
    model_max_length: Option<usize>,
}

/// T5's tokenizer: pieces of normalised text, `</s>` behind.
#[derive(Debug)]
pub struct T5Tokenizer {
    text: Text,
    eos: u32,
    pad: u32,
    model_max_length: Option<usize>,
}

/// What both have: text to ids without any frame.
#[derive(Debug)]
struct Text(Tokenizer);

impl ClipTokenizer {
    /// The tokenizer of CLIP ViT-L/14, which all FLUX.1 models use; built on first use.
    pub fn embedded() -> &'static Self {
        static BUILT: OnceLock<ClipTokenizer> = OnceLock::new();
        BUILT.get_or_init(embedded::clip)
    }

    /// From the contents of a `tokenizer.json` found at `path`, with CLIP's usual names of the special tokens.
    ///
    /// # Errors
    /// [`Error::File`] naming `path`: not a byte-pair tokenizer, or without the special tokens.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        Self::framed(
            Text::from_json(path, json, "BPE", |m| matches!(m, ModelWrapper::BPE(_)))?,
            path,
            &Settings::default(),
        )
    }

    /// From a model's `tokenizer` folder. `read` gives the contents of a file in it, `None` if there is none; asked for
    /// are `tokenizer.json` or else `vocab.json` and `merges.txt`, and, if present, `tokenizer_config.json` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// What `read` returns, or [`Error::File`] naming the file at fault.
    pub fn from_files(folder: &Path, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let settings = Settings::read(folder, &read)?;
        if let Some(json) = read(TOKENIZER)? {
            let path = folder.join(TOKENIZER);
            let text = Text::from_json(&path, &json, "BPE", |m| matches!(m, ModelWrapper::BPE(_)))?;
            return Self::framed(text, &path, &settings);
        }
        match (read("vocab.json")?, read("merges.txt")?) {
            (Some(vocab), Some(merges)) => Self::from_vocab(folder, &vocab, &merges, &settings),
            _ => Err(Error::file(folder, "has neither tokenizer.json nor vocab.json with merges.txt")),
        }
    }

    /// From the contents of a `vocab.json` and a `merges.txt`, the form older diffusers folders have.
    fn from_vocab(folder: &Path, vocab: &[u8], merges: &[u8], settings: &Settings) -> Result<Self> {
        let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let vocab: std::collections::BTreeMap<String, u32> =
            serde_json::from_slice(vocab).map_err(|e| Error::file(&vocab_path, e.to_string()))?;
        let merges = std::str::from_utf8(merges)
            .map_err(|e| e.to_string())
            .and_then(parse_merges)
            .map_err(|problem| Error::file(&merges_path, problem))?;
        let specials = settings.clip_specials();
        if let Some(missing) = specials.iter().find(|token| !vocab.contains_key(&token.content)) {
            return Err(Error::file(&vocab_path, format!("lacks the special token '{}'", missing.content)));
        }
        let tokenizer = clip_tokenizer(vocab.into_iter().collect(), merges, &settings.unk(), &specials)
            .map_err(|e| Error::file(&merges_path, e.to_string()))?;
        Self::framed(Text(tokenizer), &vocab_path, settings)
    }

    fn framed(text: Text, path: &Path, settings: &Settings) -> Result<Self> {
        let (bos, eos, pad) = settings.clip_frame();
        let (bos, eos, pad) = (text.id(&bos, path)?, text.id(&eos, path)?, text.id(&pad, path)?);
        Ok(Self { text, bos, eos, pad, model_max_length: settings.model_max_length() })
    }

    /// `length` ids: the start token, the prompt's, the end token, padding. The length is 77 for the real model.
    ///
    /// # Errors
    /// [`Error::Asked`] about `prompt`, if a tokenizer from a file has no id for something in it.
    ///
    /// # Panics
    /// If `length` has no room for the two frame tokens.
    pub fn encode(&self, prompt: &Screened<&str>, length: usize) -> Result<Vec<u32>> {
        assert!(length >= 2, "CLIP needs at least 2 tokens, got {length}");
        let mut ids = vec![self.bos];
        ids.extend(self.text.ids(prompt)?.into_iter().take(length - 2));
        ids.push(self.eos);
        ids.resize(length, self.pad);
        Ok(ids)
    }

    /// The end token, whose state CLIP pools.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The tokens that `prompt` would take in full, frame included.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn count(&self, prompt: &Screened<&str>) -> Result<usize> {
        Ok(self.text.ids(prompt)?.len() + 2)
    }

    /// The length in tokens that the model was trained with, if the folder tells.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }
}

/// T5's pieces, their scores, and the character map of its normalisation: what a file of its encoder has inside.
pub(crate) fn t5_pieces() -> (Vec<String>, Vec<f32>, Vec<u8>) {
    let (pieces, scores) = embedded::t5_pieces();
    (pieces, scores, embedded::charsmap())
}

impl T5Tokenizer {
    /// The tokenizer of T5 v1.1, which all FLUX.1 models use; built on first use.
    pub fn embedded() -> &'static Self {
        static BUILT: OnceLock<T5Tokenizer> = OnceLock::new();
        BUILT.get_or_init(embedded::t5)
    }

    /// From the contents of a `tokenizer.json` found at `path`, with T5's usual names of the special tokens.
    ///
    /// # Errors
    /// [`Error::File`] naming `path`: not a unigram tokenizer, or without the special tokens.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        Self::from_json_with(path, json, &Settings::default())
    }

    /// From a model's `tokenizer_2` folder. `read` gives the contents of a file in it, `None` if there is none; asked
    /// for are `tokenizer.json` and, if present, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// What `read` returns, or [`Error::File`] naming the file at fault.
    pub fn from_files(folder: &Path, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let settings = Settings::read(folder, &read)?;
        match read(TOKENIZER)? {
            Some(json) => Self::from_json_with(&folder.join(TOKENIZER), &json, &settings),
            None => Err(Error::file(folder, "has no tokenizer.json; a spiece.model alone cannot be read")),
        }
    }

    fn from_json_with(path: &Path, json: &[u8], settings: &Settings) -> Result<Self> {
        let text = Text::from_json(path, json, "Unigram", |m| matches!(m, ModelWrapper::Unigram(_)))?;
        Self::framed(text, path, settings)
    }

    fn framed(text: Text, path: &Path, settings: &Settings) -> Result<Self> {
        let (eos, pad) = settings.t5_frame();
        let (eos, pad) = (text.id(&eos, path)?, text.id(&pad, path)?);
        Ok(Self { text, eos, pad, model_max_length: settings.model_max_length() })
    }

    /// `length` ids: the prompt's, the end token, padding. The \[dev\] family uses 512, \[schnell\] 256.
    ///
    /// # Errors
    /// [`Error::Asked`] about `prompt`, if a tokenizer from a file has no id for something in it.
    ///
    /// # Panics
    /// If `length` is 0.
    pub fn encode(&self, prompt: &Screened<&str>, length: usize) -> Result<Vec<u32>> {
        assert!(length >= 1, "T5 needs at least 1 token");
        let mut ids = self.text.ids(prompt)?;
        ids.truncate(length - 1);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        Ok(ids)
    }

    /// The tokens that `prompt` would take in full, end token included.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn count(&self, prompt: &Screened<&str>) -> Result<usize> {
        Ok(self.text.ids(prompt)?.len() + 1)
    }

    /// The length in tokens that the model was trained with, if the folder tells.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }
}

impl Text {
    fn from_json(path: &Path, json: &[u8], kind: &str, is_kind: impl Fn(&ModelWrapper) -> bool) -> Result<Self> {
        let mut tokenizer = Self::build(path, || Tokenizer::from_bytes(json))?.0;
        if !is_kind(tokenizer.get_model()) {
            return Err(Error::file(path, format!("'model' is not of type {kind}")));
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::file(path, e.to_string()))?;
        Ok(Self(tokenizer))
    }

    /// What `build` makes of the contents of `path`.
    fn build(
        path: &Path,
        build: impl FnOnce() -> tokenizers::Result<Tokenizer> + std::panic::UnwindSafe,
    ) -> Result<Self> {
        // The library panics on some malformed files; a bad file must not take the process along.
        let built = std::panic::catch_unwind(build);
        let built = built.map_err(|_| Error::file(path, "is malformed in a way the tokenizers library cannot name"))?;
        built.map(Self).map_err(|e| Error::file(path, e.to_string()))
    }

    fn id(&self, token: &str, path: &Path) -> Result<u32> {
        let lacking = || Error::file(path, format!("lacks the special token '{token}'"));
        self.0.token_to_id(token).ok_or_else(lacking)
    }

    fn ids(&self, prompt: &Screened<&str>) -> Result<Vec<u32>> {
        // A character map of a bad file may lead anywhere.
        let encoding = std::panic::AssertUnwindSafe(|| self.0.encode_fast(*prompt.get(), false));
        let Ok(encoding) = std::panic::catch_unwind(encoding) else {
            return Err(Error::asked("prompt", "the model's tokenizer is damaged: it fails at this text"));
        };
        encoding.map(|e| e.get_ids().to_vec()).map_err(|e| Error::asked("prompt", e.to_string()))
    }
}

/// The tokenizer that a CLIP vocabulary alone stands for: transformers 4's `CLIPTokenizer` without ftfy, which BFL,
/// diffusers and `ComfyUI` call. Transformers 5 cleans less: it neither drops control characters nor splits Chinese
/// ones. A `tokenizer.json`, which it saves, says so itself.
fn clip_tokenizer(vocab: Vocab, merges: Merges, unk: &str, specials: &[AddedToken]) -> tokenizers::Result<Tokenizer> {
    const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .end_of_word_suffix("</w>".into())
        .unk_token(unk.into())
        .build()?;
    let clean = BertNormalizer::new(true, true, Some(false), false);
    let white_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(Normalizers::new(vec![clean.into(), NFC.into(), white_space.into(), Lowercase.into()])))
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), ByteLevel::new(false, true, true).into()])));
    tokenizer.add_special_tokens(specials);
    Ok(tokenizer)
}

/// A `merges.txt`: two symbols a line, best first. As in transformers, what exceeds CLIP's own number is not used.
fn parse_merges(text: &str) -> std::result::Result<Merges, String> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("#version") && !line.trim().is_empty())
        .take(embedded::CLIP_MERGES)
        .map(|(number, line)| match line.trim_end().split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(format!("line {}: expected two symbols, got '{line}'", number + 1)),
        })
        .collect()
}
