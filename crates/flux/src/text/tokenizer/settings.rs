//! What stands beside a tokenizer: `tokenizer_config.json` and `special_tokens_map.json`, both optional.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// The two files' contents; without them, the names that CLIP and T5 have had all along.
#[derive(Debug, Default)]
pub(super) struct Settings {
    config: Map<String, Value>,
    tokens: Map<String, Value>,
}

impl Settings {
    pub(super) fn read(folder: &Path, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let object = |name: &str| match read(name)? {
            Some(json) => serde_json::from_slice(&json).map_err(|e| Error::file(folder.join(name), e.to_string())),
            None => Ok(Map::new()),
        };
        Ok(Self { config: object("tokenizer_config.json")?, tokens: object("special_tokens_map.json")? })
    }

    /// Transformers writes 10^30 where it knows no limit; below 2 there is no room for the frame of a prompt.
    pub(super) fn model_max_length(&self) -> Option<usize> {
        let length = self.config.get("model_max_length")?.as_f64()?;
        (2.0..=1e6).contains(&length).then_some(length as usize)
    }

    /// Start, end and padding.
    pub(super) fn clip_frame(&self) -> (String, String, String) {
        let eos = self.token("eos_token", "<|endoftext|>").content;
        (self.token("bos_token", "<|startoftext|>").content, eos.clone(), self.token("pad_token", &eos).content)
    }

    /// End and padding.
    pub(super) fn t5_frame(&self) -> (String, String) {
        (self.token("eos_token", "</s>").content, self.token("pad_token", "<pad>").content)
    }

    pub(super) fn unk(&self) -> String {
        self.token("unk_token", &self.token("eos_token", "<|endoftext|>").content).content
    }

    /// CLIP's special tokens, each once.
    pub(super) fn clip_specials(&self) -> Vec<AddedToken> {
        let (bos, eos, pad) = self.clip_frame();
        let mut specials: Vec<AddedToken> = Vec::new();
        for (key, name) in [("bos_token", &bos), ("eos_token", &eos), ("pad_token", &pad), ("unk_token", &self.unk())] {
            if !specials.iter().any(|known| known.content == *name) {
                specials.push(self.token(key, name));
            }
        }
        specials
    }

    /// The token of that role: its text, or an object with flags, in the one file or the other.
    fn token(&self, role: &str, default: &str) -> AddedToken {
        let entry = [&self.config, &self.tokens].into_iter().find_map(|file| file.get(role).filter(|e| !e.is_null()));
        let name = match entry {
            Some(Value::String(name)) => name,
            Some(entry) => entry.get("content").and_then(Value::as_str).unwrap_or(default),
            None => default,
        };
        // Newer files keep the flags in a table by id; older ones with the role.
        let table = self.config.get("added_tokens_decoder").and_then(Value::as_object);
        let flags = table.and_then(|table| table.values().find(|entry| entry["content"] == name)).or(entry);
        let flag = |key: &str| flags.and_then(|f| f.get(key)).and_then(Value::as_bool).unwrap_or(false);
        AddedToken::from(name, true)
            .normalized(flag("normalized"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .single_word(flag("single_word"))
    }
}
