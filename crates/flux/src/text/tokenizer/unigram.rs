//! T5's tokenizer from its pieces: those in the program, or those in a GGUF file beside the encoder's weights.
//!
//! A GGUF file's metadata has T5's own model as llama.cpp writes it: pieces, their scores and types, the character map
//! of the normalisation. Source: `convert_hf_to_gguf.py` (`T5Model.set_vocab`), T5's `tokenizer.json`.

use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{
    NormalizerWrapper, Precompiled, Replace, Sequence as Normalizers, Strip, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

use super::{T5Tokenizer, Text, embedded};
use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// The most pieces: ten times T5's.
const MOST: usize = 1 << 19;

/// `SentencePiece`'s types of pieces, of which text is made and which stand for themselves.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// What a unigram tokenizer is made of.
pub(super) struct Pieces {
    /// Piece and score, by id.
    pub(super) vocab: Vec<(String, f64)>,
    /// The id of what no piece covers.
    pub(super) unknown: usize,
    /// Pieces that are found in text before anything else.
    pub(super) special: Vec<String>,
    /// `SentencePiece`'s precompiled normalisation.
    pub(super) charsmap: Vec<u8>,
    /// Whether spaces at the end go and several become one.
    pub(super) clean_spaces: bool,
    /// Whether a text begins as a word does.
    pub(super) prefix: bool,
}

impl Pieces {
    pub(super) fn tokenizer(self) -> tokenizers::Result<Tokenizer> {
        let specials: Vec<AddedToken> = self.special.iter().map(|s| AddedToken::from(s.as_str(), true)).collect();
        let mut normalisers: Vec<NormalizerWrapper> = vec![Precompiled::from(&self.charsmap)?.into()];
        if self.clean_spaces {
            normalisers.push(Strip::new(false, true).into());
            normalisers.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), "▁")?.into());
        }
        let prepend = if self.prefix { PrependScheme::First } else { PrependScheme::Never };
        let mut tokenizer = Tokenizer::new(Unigram::from(self.vocab, Some(self.unknown), false)?);
        tokenizer
            .with_normalizer(Some(Normalizers::new(normalisers)))
            .with_pre_tokenizer(Some(Metaspace::new('▁', prepend, true)));
        tokenizer.add_special_tokens(&specials);
        Ok(tokenizer)
    }
}

/// Whether a checkpoint has a T5 tokenizer inside.
pub(crate) fn is_inside(checkpoint: &Checkpoint) -> bool {
    checkpoint.metadata("tokenizer.ggml.model") == Some("t5")
}

impl T5Tokenizer {
    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and the key: missing, of another type, or not fitting the others.
    pub fn from_gguf(checkpoint: &Checkpoint) -> Result<Self> {
        let path = checkpoint.origin();
        let bad = |key: &str, problem: &str| Error::file(path, format!("'tokenizer.ggml.{key}' {problem}"));
        let array = |key: &str| {
            let found = checkpoint.array(&format!("tokenizer.ggml.{key}"));
            found.ok_or_else(|| bad(key, "is missing").hint("give a tokenizer with --t5-tokenizer"))
        };
        let (tokens, file) = array("tokens")?;
        if tokens.len() > MOST {
            return Err(bad("tokens", &format!("has {} pieces, at most {MOST} are possible", tokens.len())));
        }
        let tokens = tokens.texts(file).ok_or_else(|| bad("tokens", "is not a list of texts"))?;
        let (scores, file) = array("scores")?;
        let scores = scores.floats(file).ok_or_else(|| bad("scores", "is not a list of floats"))?;
        let (types, file) = array("token_type")?;
        let types = types.integers(file).ok_or_else(|| bad("token_type", "is not a list of integers"))?;
        if scores.len() != tokens.len() || types.len() != tokens.len() {
            let counts = format!("{} scores and {} types", scores.len(), types.len());
            return Err(bad("tokens", &format!("has {} pieces, but there are {counts}", tokens.len())));
        }
        if let Some(score) = scores.iter().find(|s| !s.is_finite()) {
            return Err(bad("scores", &format!("has {score}, which is not a score")));
        }
        let id = |key: &str, default: usize| {
            let id = match checkpoint.metadata(&format!("tokenizer.ggml.{key}")) {
                Some(text) => text.parse().map_err(|_| bad(key, &format!("is '{text}', not a token")))?,
                None => default,
            };
            if id < tokens.len() { Ok(id) } else { Err(bad(key, &format!("is {id}, of {} tokens", tokens.len()))) }
        };
        let (pad, end, unknown) = (id("padding_token_id", 0)?, id("eos_token_id", 1)?, id("unknown_token_id", 2)?);
        let charsmap = match checkpoint.array("tokenizer.ggml.precompiled_charsmap") {
            Some((map, file)) => map.bytes(file).ok_or_else(|| bad("precompiled_charsmap", "is not bytes"))?.to_vec(),
            // All of T5 was trained with the same one.
            None => embedded::charsmap(),
        };
        let is_true = |key: &str| checkpoint.metadata(&format!("tokenizer.ggml.{key}")) != Some("false");
        let mut special = Vec::new();
        let mut vocab = Vec::with_capacity(tokens.len());
        for (id, ((token, score), kind)) in tokens.iter().zip(scores).zip(types).enumerate() {
            match kind {
                NORMAL => vocab.push(((*token).to_owned(), f64::from(score))),
                UNKNOWN | CONTROL | USER_DEFINED => {
                    special.push((*token).to_owned());
                    vocab.push(((*token).to_owned(), 0.0));
                }
                // Padding of the table: no text may become it, and its score must not count as the worst.
                _ => vocab.push((format!("\u{0}{id}"), 0.0)),
            }
        }
        let pieces = Pieces {
            vocab,
            unknown,
            special,
            charsmap,
            clean_spaces: is_true("remove_extra_whitespaces"),
            prefix: is_true("add_space_prefix"),
        };
        let text = Text::build(path, || pieces.tokenizer())?;
        let [pad, end] = [pad, end].map(|id| id as u32);
        Ok(Self { text, eos: end, pad, model_max_length: None })
    }
}
