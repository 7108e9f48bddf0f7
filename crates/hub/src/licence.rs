//! Whose terms a model is under, and what was accepted when. Nothing here gives a permission: the licence's text does, and it is
//! the licensor's.
//!
//! Acceptances are lines of JSON in `licences.jsonl`, which only grows.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    cache::make_parent,
    clock::now,
    error::{Error, Result},
    hash::sha256,
};

/// The longest record that is read, bytes.
const LONGEST: u64 = 16 << 20;

/// A licence that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Licence {
    /// As the hub's cards name it.
    pub id: &'static str,
    /// Its own name.
    pub name: &'static str,
    /// Its text.
    pub link: &'static str,
    /// The licensor's policy on acceptable use, if it has one.
    pub policy: Option<&'static str>,
    /// What whoever uses the model should know before reading the text; it does not replace it.
    pub points: &'static [&'static str],
}

/// FLUX.1 [dev] and what is made of it: Krea, Kontext, Fill, Canny, Depth, Redux.
pub const DEV: Licence = Licence {
    id: "flux-1-dev-non-commercial-license",
    name: "FLUX.1 [dev] Non-Commercial License",
    link: "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    policy: Some("https://bfl.ai/legal/usage-policy"),
    points: &[
        "the model may be used for non-commercial purposes only; commercial use needs another licence from Black Forest Labs",
        "whoever deploys it has to filter or review what it makes",
        "pictures may not be used to train a model that competes with it; other limits on their use are in the text",
        "unlawful, harmful and deceptive uses are forbidden by the licence and by the policy on acceptable use",
    ],
};

/// FLUX.1 [schnell], the autoencoder, T5.
pub const APACHE: Licence = Licence {
    id: "apache-2.0",
    name: "Apache License 2.0",
    link: "https://www.apache.org/licenses/LICENSE-2.0",
    policy: Some("https://bfl.ai/legal/usage-policy"),
    points: &["the text of the licence and notices go along with copies"],
};

/// The terms of one download, as they are shown and recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The model that was asked for: a name or `org/name`.
    pub model: String,
    /// The licence's identifier.
    pub id: String,
    /// The licence's name.
    pub name: String,
    /// Where its text is.
    pub link: String,
    /// The policy on acceptable use.
    pub policy: Option<String>,
    /// What to know before reading.
    pub points: Vec<String>,
    /// The text that came with the weights.
    pub text: Option<Text>,
}

/// A licence's text in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Which repository, commit and file: `org/name@commit/LICENSE.md`.
    pub from: String,
    /// Hash of its bytes.
    pub sha256: String,
    /// The version that its first lines name, as `v1.1.1`.
    pub version: Option<String>,
}

/// One acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The model.
    pub model: String,
    /// The licence's identifier.
    pub licence: String,
    /// The licence's name.
    pub name: String,
    /// Where its text is.
    pub link: String,
    /// The policy on acceptable use.
    pub policy: Option<String>,
    /// The text that was accepted, if one came with the weights.
    pub text: Option<Text>,
    /// When, RFC 3339 in UTC.
    pub accepted: String,
    /// `typed` or `--accept-license`.
    pub how: String,
}

impl Text {
    /// Of a text and where it is from.
    pub fn new(from: String, text: &str) -> Self {
        Self { from, sha256: sha256(text.as_bytes()), version: version(text) }
    }
}

/// `v1.1.1` in the first lines.
fn version(text: &str) -> Option<String> {
    let head: String = text.chars().take(600).collect();
    let words = head.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').map(|word| word.trim_end_matches('.'));
    let is_version = |word: &&str| {
        let digits = word.strip_prefix(['v', 'V']).unwrap_or("");
        digits.contains('.')
            && digits.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    words.into_iter().find(is_version).map(str::to_owned)
}

impl Terms {
    /// Of a licence that is known.
    pub fn known(model: &str, licence: &Licence) -> Self {
        Self {
            model: model.to_owned(),
            id: licence.id.to_owned(),
            name: licence.name.to_owned(),
            link: licence.link.to_owned(),
            policy: licence.policy.map(str::to_owned),
            points: licence.points.iter().map(|&point| point.to_owned()).collect(),
            text: None,
        }
    }

    /// Of what a repository's card states.
    pub fn stated(model: &str, page: &str, id: Option<&str>, link: Option<&str>) -> Self {
        if let Some(known) = [&DEV, &APACHE].into_iter().find(|known| Some(known.id) == id) {
            let policy = if known.id == DEV.id { known.policy } else { None };
            return Self { policy: policy.map(str::to_owned), ..Self::known(model, known) };
        }
        let link = match link {
            Some(link) if link.starts_with("https://") => link.to_owned(),
            Some(file) => format!("{page}/blob/main/{file}"),
            None => page.to_owned(),
        };
        let name = id.unwrap_or("none is stated");
        let point = match id {
            Some(_) => "darkroom knows nothing more about it: read the text",
            None => "without a licence nothing is permitted: ask the owner",
        };
        Self {
            model: model.to_owned(),
            id: id.unwrap_or("unstated").to_owned(),
            name: name.to_owned(),
            link,
            policy: None,
            points: vec![point.to_owned()],
            text: None,
        }
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("licence   {}", self.name), format!("text      {}", self.link)];
        lines.extend(self.policy.iter().map(|policy| format!("policy    {policy}  (acceptable use)")));
        if let Some(text) = &self.text {
            let version = text.version.as_ref().map(|v| format!("{v}, ")).unwrap_or_default();
            lines.push(format!("came as   {}  ({version}sha256 {}…)", text.from, &text.sha256[..12]));
        }
        lines.extend(self.points.iter().map(|point| format!("  - {point}")));
        lines
    }
}

/// What was accepted on this machine.
#[derive(Clone, Debug)]
pub struct Acceptances {
    path: PathBuf,
}

impl Acceptances {
    /// Kept in that folder.
    pub fn new(data: &Path) -> Self {
        Self { path: data.join("licences.jsonl") }
    }

    /// All, oldest first. A line that cannot be read is none.
    ///
    /// # Errors
    /// [`Error::File`] if the file is there and cannot be read.
    pub fn all(&self) -> Result<Vec<Acceptance>> {
        match fs::metadata(&self.path) {
            Err(_) => return Ok(Vec::new()),
            Ok(meta) if meta.len() > LONGEST => {
                return Err(Error::file(&self.path, "is too long for a list of acceptances"));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(&self.path).map_err(|e| Error::io(&self.path, &e))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The acceptance of exactly these terms, if there is one: another text has to be accepted anew.
    ///
    /// # Errors
    /// As [`Acceptances::all`].
    pub fn find(&self, terms: &Terms) -> Result<Option<Acceptance>> {
        let hash = |text: &Option<Text>| text.as_ref().map(|text| text.sha256.clone());
        let same =
            |a: &Acceptance| a.model == terms.model && a.licence == terms.id && hash(&a.text) == hash(&terms.text);
        Ok(self.all()?.into_iter().rfind(same))
    }

    /// Writes an acceptance down.
    ///
    /// # Errors
    /// [`Error::File`] if that is not possible.
    pub fn record(&self, terms: &Terms, how: &str) -> Result<Acceptance> {
        let acceptance = Acceptance {
            model: terms.model.clone(),
            licence: terms.id.clone(),
            name: terms.name.clone(),
            link: terms.link.clone(),
            policy: terms.policy.clone(),
            text: terms.text.clone(),
            accepted: now(),
            how: how.to_owned(),
        };
        make_parent(&self.path)?;
        let line = serde_json::to_string(&acceptance).map_err(|e| Error::file(&self.path, e.to_string()))? + "\n";
        let written = File::options().create(true).append(true).open(&self.path).and_then(|mut file| {
            file.write_all(line.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|e| Error::io(&self.path, &e))?;
        Ok(acceptance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_text_has_to_be_accepted_anew() {
        let folder = tempfile::tempdir().unwrap();
        let acceptances = Acceptances::new(&folder.path().join("data"));
        let mut terms = Terms::known("krea", &DEV);
        terms.text = Some(Text::new("org/name@c/LICENSE.md".into(), "FLUX.1 [dev] Non-Commercial License v1.1.1\n…"));
        assert_eq!(acceptances.find(&terms).unwrap(), None);
        let written = acceptances.record(&terms, "typed").unwrap();
        assert_eq!(written.text.as_ref().unwrap().version.as_deref(), Some("v1.1.1"));
        assert!(written.accepted.ends_with('Z') && written.accepted.len() == 20);
        assert_eq!(acceptances.find(&terms).unwrap(), Some(written));

        let other = Terms { text: Some(Text::new("org/name@d/LICENSE.md".into(), "v2.0.0")), ..terms.clone() };
        assert_eq!(acceptances.find(&other).unwrap(), None);
        assert_eq!(acceptances.find(&Terms { model: "dev".into(), ..terms.clone() }).unwrap(), None);
        assert_eq!(acceptances.find(&Terms { text: None, ..terms }).unwrap(), None);
        assert_eq!(acceptances.all().unwrap().len(), 1);
    }

    #[test]
    fn no_terms_promise_commercial_use() {
        let all = [Terms::known("krea", &DEV), Terms::stated("a/b", "https://h/a/b", Some(DEV.id), None)];
        for terms in all {
            let text = terms.lines().join("\n");
            assert!(text.contains("non-commercial purposes only") && text.contains("usage-policy"), "{text}");
        }
        let unstated = Terms::stated("a/b", "https://h/a/b", None, None).lines().join("\n");
        assert!(unstated.contains("nothing is permitted"), "{unstated}");
    }
}
