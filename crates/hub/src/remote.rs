//! What the hub says about a repository: its commit, its files with sizes and hashes, its licence, whether it is gated.
//!
//! Protocol: `GET /api/models/REPO/revision/REV`, `GET /api/models/REPO/tree/COMMIT?recursive=true` (pages by `Link`),
//! `HEAD` and `GET /REPO/resolve/COMMIT/FILE`, `GET /api/whoami-v2`; errors by status and `X-Error-Code`. Source: the public
//! documentation of the hub's `API` and `PyPI`'s `huggingface_hub` 2.4.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::{
    error::{Error, Gate, Missing, Result, bytes},
    http::{Answer, Client, Failure, Method, odd},
    names::{Repository, check_revision, is_commit, is_etag, is_safe_path, shown},
    settings::Settings,
    watch::Watch,
};

/// Everything but letters, digits and what is plain in a path.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
/// A revision is one segment: its slashes, too.
const IN_SEGMENT: &AsciiSet = &IN_PATH.add(b'/');

/// Pages of a listing that are read: a thousand files each.
const PAGES: usize = 50;

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Contents {
    /// `org/name`.
    pub repository: Repository,
    /// 40 digits.
    pub commit: String,
    /// What was asked for: `main`, or a tag or commit.
    pub revision: String,
    /// Whether terms have to be accepted at the hub.
    pub gated: bool,
    /// The licence as its card names it: an identifier, or a name of its own.
    pub licence: Option<String>,
    /// Where that licence's text is, if the card says.
    pub licence_link: Option<String>,
    /// All files, by path.
    pub files: Vec<RemoteFile>,
}

/// A file in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it is, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of a large file, git's SHA-1 of a small one: its blob's name.
    pub etag: String,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
}

#[derive(Deserialize)]
struct Card {
    // Some cards have lists.
    #[serde(default)]
    license: serde_json::Value,
    #[serde(default)]
    license_name: Option<String>,
    #[serde(default)]
    license_link: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// Asks the hub.
pub(crate) struct Remote<'a> {
    pub(crate) client: &'a Client,
    pub(crate) settings: &'a Settings,
}

impl Remote<'_> {
    /// What is in a repository.
    pub(crate) fn contents(&self, repository: &Repository, revision: &str, watch: &mut Watch<'_>) -> Result<Contents> {
        check_revision(revision)?;
        let endpoint = &self.settings.endpoint;
        let name = utf8_percent_encode(revision, IN_SEGMENT);
        let (info, _): (Info, _) =
            self.json(repository, &format!("{endpoint}/api/models/{repository}/revision/{name}"), watch)?;
        if !is_commit(&info.sha) {
            return Err(odd(
                &self.client.host(),
                format!("names no commit of {repository}, but '{}'", shown(&info.sha)),
            ));
        }
        let mut files = Vec::new();
        let mut page = Some(format!("{endpoint}/api/models/{repository}/tree/{}?recursive=true", info.sha));
        for _ in 0..PAGES {
            let Some(address) = page.take() else { break };
            let (entries, next): (Vec<Entry>, _) = self.json(repository, &address, watch)?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                files.push(entry.checked(repository)?);
            }
            // Only the hub itself goes on with its list.
            page = next.filter(|next| next.starts_with(&format!("{endpoint}/")));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let card = info.card;
        let name = |card: &Card| match (card.license.as_str(), &card.license_name) {
            (Some("other") | None, Some(own)) => Some(shown(own)),
            (stated, _) => stated.map(shown),
        };
        Ok(Contents {
            repository: repository.clone(),
            commit: info.sha,
            revision: revision.to_owned(),
            gated: !matches!(info.gated, serde_json::Value::Null | serde_json::Value::Bool(false)),
            licence: card.as_ref().and_then(name),
            licence_link: card.and_then(|card| card.license_link).map(|link| shown(&link)),
            files,
        })
    }

    /// Whether a file may be downloaded; the hub's own words about it against those of its list.
    pub(crate) fn may_have(&self, of: &Contents, file: &RemoteFile, watch: &mut Watch<'_>) -> Result<()> {
        let address = self.address(&of.repository, &of.commit, &file.path);
        self.client.patiently(watch, |_, _| {
            let answer = self.client.ask(Method::Head, &address, None)?;
            if answer.status >= 400 {
                return Err(self.refusal(&of.repository, &answer, None));
            }
            let etag = answer.header("x-linked-etag").or(answer.header("etag")).map(plain_etag);
            match etag {
                Some(etag) if is_etag(etag) && etag != file.etag => {
                    let problem = format!("the hub lists hash {}, and then says {etag}", file.etag);
                    Err(Error::Corrupt { what: format!("{}/{}", of.repository, file.path), problem }.into())
                }
                _ => Ok(()),
            }
        })
    }

    pub(crate) fn address(&self, repository: &Repository, commit: &str, path: &str) -> String {
        format!("{}/{repository}/resolve/{commit}/{}", self.settings.endpoint, utf8_percent_encode(path, IN_PATH))
    }

    fn json<T: serde::de::DeserializeOwned>(
        &self,
        repository: &Repository,
        address: &str,
        watch: &mut Watch<'_>,
    ) -> Result<(T, Option<String>)> {
        self.client.patiently(watch, |_, _| {
            let mut answer = self.client.ask(Method::Get, address, None)?;
            let text = answer.text()?;
            if answer.status >= 400 {
                return Err(self.refusal(repository, &answer, Some(&text)));
            }
            let next = answer.header("link").and_then(next_page);
            let value = serde_json::from_str(&text).map_err(|e| {
                let hint = "hint: is HF_ENDPOINT a hub's address?";
                odd(&answer.host, format!("does not answer as a hub does ({e}); {hint}"))
            })?;
            Ok((value, next))
        })
    }

    /// What a status from 400 on means for who asked.
    pub(crate) fn refusal(&self, repository: &Repository, answer: &Answer, body: Option<&str>) -> Failure {
        let of_body = body.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let of_body = of_body.as_ref().and_then(|value| value.get("error")?.as_str());
        let said = answer.header("x-error-message").or(of_body).map(shown);
        let page = self.settings.page(repository.as_str());
        let error = match (answer.status, answer.header("x-error-code")) {
            (_, Some("RepoNotFound")) | (404, None) => {
                let who = if self.client.token().is_some() {
                    "that the token's owner may see"
                } else {
                    "that everybody may see"
                };
                Error::NotPublished(format!(
                    "there is no model '{repository}' {who} ({page}); hint: is the name right?"
                ))
            }
            (_, Some("RevisionNotFound")) => {
                Error::NotPublished(format!("{repository} has no such revision; see {page}"))
            }
            (_, Some("EntryNotFound")) => {
                Error::NotPublished(format!("{repository} has no such file; see {page}/tree/main"))
            }
            (401 | 403, code) => return self.gate(repository, page, answer.status, code, said).into(),
            (status, _) => {
                let said = said.map(|said| format!(": {said}")).unwrap_or_default();
                odd(&answer.host, format!("refuses with status {status}{said}"))
            }
        };
        error.into()
    }

    /// The hub answers a missing and a wrong token alike: whether it knows the token is another question.
    fn gate(
        &self,
        repository: &Repository,
        page: String,
        status: u16,
        code: Option<&str>,
        said: Option<String>,
    ) -> Error {
        let missing = match self.client.token() {
            None if self.settings.token.is_some() => {
                let problem = "is plain http, over which no token is sent; hint: an address with https";
                return Error::asked("HF_ENDPOINT", problem);
            }
            None => Missing::Token,
            Some(token) => {
                let known = self.client.ask(Method::Get, &format!("{}/api/whoami-v2", self.settings.endpoint), None);
                match known {
                    Ok(answer) if answer.status == 401 => Missing::ValidToken(token.source.clone()),
                    Err(_) if status == 401 => Missing::ValidToken(token.source.clone()),
                    Ok(_) | Err(_) => Missing::Acceptance(token.source.clone()),
                }
            }
        };
        // Without a token every private or missing repository looks alike; only a gate says that it is one.
        if missing == Missing::Token && code != Some("GatedRepo") && status == 401 {
            let problem = format!(
                "the hub shows '{repository}' to nobody without a token: it does not exist, or is private; hint: is the name \
                 right? ({page})"
            );
            return Error::NotPublished(problem);
        }
        let tokens = format!("{}/settings/tokens", self.settings.endpoint);
        Gate { repository: repository.to_string(), page, tokens, missing, said }.into()
    }
}

impl Entry {
    fn checked(self, repository: &Repository) -> Result<RemoteFile> {
        let (etag, size) = match self.lfs {
            Some(lfs) => (lfs.oid, lfs.size),
            None => (self.oid, self.size),
        };
        let corrupt = |problem: &str| {
            Err(Error::Corrupt { what: format!("{repository}/{}", shown(&self.path)), problem: problem.to_owned() })
        };
        if !is_safe_path(&self.path) {
            return corrupt("the hub lists a path that leads out of its folder; nothing of it is used");
        }
        if !is_etag(&etag) {
            return corrupt("the hub lists no hash for it, so that it could not be checked");
        }
        Ok(RemoteFile { path: self.path, size, etag })
    }
}

/// `W/"abc"` → `abc`.
fn plain_etag(text: &str) -> &str {
    text.trim().trim_start_matches("W/").trim_matches('"')
}

/// The next page in a `Link` header.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

impl RemoteFile {
    /// Whether it holds weights, by its name.
    pub(crate) fn is_weights(&self) -> bool {
        [".safetensors", ".sft", ".gguf"].iter().any(|end| self.path.ends_with(end))
    }
}

impl Contents {
    /// A short list of its weights for an error.
    pub(crate) fn listing(&self) -> String {
        let mut lines: Vec<String> = self
            .files
            .iter()
            .filter(|file| file.is_weights())
            .map(|file| format!("  {:>9}  {}", bytes(file.size), file.path))
            .collect();
        let more = lines.len().saturating_sub(60);
        lines.truncate(60);
        if more > 0 {
            lines.push(format!("  … and {more} more"));
        }
        if lines.is_empty() { "  (no weights)".into() } else { lines.join("\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_and_links_are_read() {
        assert_eq!((plain_etag("W/\"ab\""), plain_etag("\"ab\""), plain_etag("ab")), ("ab", "ab", "ab"));
        let link = "<https://h/api?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://h/api?cursor=x"));
        assert_eq!(next_page("<https://h/>; rel=\"prev\""), None);
    }
}
