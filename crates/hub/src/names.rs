//! Names that come from elsewhere, checked before they become parts of paths or addresses.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A model's repository on the hub: `org/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

impl Repository {
    /// `org/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its folder in the cache: `models--org--name`.
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// The repository of a folder in the cache.
    pub fn of_folder(folder: &str) -> Option<Self> {
        let (organisation, name) = folder.strip_prefix("models--")?.split_once("--")?;
        format!("{organisation}/{name}").parse().ok()
    }
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |part: &str| {
            let characters = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            let ends = part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
            !part.is_empty() && part.len() <= 96 && characters && !ends && !part.contains("--") && !part.contains("..")
        };
        match text.split_once('/') {
            Some((organisation, name)) if plain(organisation) && plain(name) => Ok(Self(text.to_owned())),
            _ => Err(Error::asked(
                "name",
                format!(
                    "'{}' is not a repository; expected org/name, as black-forest-labs/FLUX.1-Krea-dev",
                    shown(text)
                ),
            )),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Repository {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.0
    }
}

/// Whether a file's path stays below its folder on every system: plain names between single slashes.
pub(crate) fn is_safe_path(path: &str) -> bool {
    // Windows' names of devices, drives and streams, too: a bundle travels.
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com1", "lpt1"];
    let plain = |part: &str| {
        let stem = part.split('.').next().unwrap_or("").to_ascii_lowercase();
        let characters = !part.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c));
        !part.is_empty()
            && part.len() <= 255
            && characters
            && !part.ends_with(['.', ' '])
            && !DEVICES.contains(&stem.as_str())
    };
    path.len() <= 1024 && path.split('/').all(plain)
}

/// Whether it is a commit's name: 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether it names a blob that can be checked: a git blob's SHA-1, or a large file's SHA-256.
pub(crate) fn is_etag(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64) && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A branch, tag or commit, which becomes a file's path in `refs`.
pub(crate) fn check_revision(text: &str) -> Result<()> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if plain && is_safe_path(text) && !text.contains("..") && !text.starts_with('-') {
        return Ok(());
    }
    Err(Error::asked("revision", format!("'{}' is not a branch, a tag or a commit", shown(text))))
}

/// Text of strangers in a message: without control characters, and not endless.
pub(crate) fn shown(text: &str) -> String {
    let clean: String = text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if clean.len() < text.len() && text.chars().count() > 200 { format!("{clean}…") } else { clean }
}

/// Whether `text` fits a pattern with `*` (any characters) and `?` (any one). Takes time in the product of both lengths.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, seen)) => {
                    star = Some((at, seen + 1));
                    p = at + 1;
                    t = seen + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_two_plain_names() {
        let name: Repository = "black-forest-labs/FLUX.1-Krea-dev".parse().unwrap();
        assert_eq!(name.folder(), "models--black-forest-labs--FLUX.1-Krea-dev");
        assert_eq!(Repository::of_folder(&name.folder()), Some(name));
        for bad in ["", "krea", "a/b/c", "a/..", "../b", "a/b--c", "a /b", "a/b\n", "a/-b", "a\\b/c", "a/"] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_stay_below_their_folder() {
        for good in ["a.json", "text_encoder_2/model-00001-of-00002.safetensors", ".gitattributes", "a b/c"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in
            ["", "/a", "a//b", "../a", "a/..", "a/./b", "a/", "a\\b", "c:/a", "a\0", "nul", "b/COM1.txt", "a.", "a\n"]
        {
            assert!(!is_safe_path(bad), "{bad}");
        }
    }

    #[test]
    fn patterns() {
        assert!(fits("*Q4_K_S.gguf", "flux1-krea-dev-Q4_K_S.gguf") && fits("a?c*", "abcd") && fits("*", ""));
        assert!(!fits("*.gguf", "a.gguf.txt") && !fits("a?c", "ac") && !fits("", "a"));
        assert!(!fits(&"*a".repeat(50), &"a".repeat(40)));
    }

    #[test]
    fn strangers_words_are_short_and_plain() {
        assert_eq!(shown("a\x1b[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), 201);
    }
}
