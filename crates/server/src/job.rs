//! A job: what was asked, what became of it, and how far it is. No I/O here; the queue decides, the journal keeps.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ask::Ask, blobs::BlobId, clock::Millis, error::Fault, owner::Owner};

/// A job's name: 26 characters of lower-case base 32 without lookalikes, 130 random bits, so it cannot be guessed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Arc<str>);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl JobId {
    /// A new one from 26 random bytes.
    pub fn from_random(random: [u8; 26]) -> Self {
        Self(random.iter().map(|byte| ALPHABET[usize::from(byte % 32)] as char).collect::<String>().into())
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not the name of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job's name is 26 lower-case letters and digits")]
pub struct NoJobId;

impl FromStr for JobId {
    type Err = NoJobId;

    fn from_str(text: &str) -> Result<Self, NoJobId> {
        let right = text.len() == 26 && text.bytes().all(|byte| ALPHABET.contains(&byte));
        if right { Ok(Self(text.into())) } else { Err(NoJobId) }
    }
}

impl TryFrom<String> for JobId {
    type Error = NoJobId;

    fn try_from(text: String) -> Result<Self, NoJobId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// Whose words a job was asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI's images.
    OpenAi,
    /// fal.ai.
    Fal,
    /// Replicate.
    Replicate,
    /// AUTOMATIC1111's `/sdapi`.
    Sdapi,
    /// darkroom's own.
    Native,
}

impl Dialect {
    /// For metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Fal => "fal",
            Self::Replicate => "replicate",
            Self::Sdapi => "sdapi",
            Self::Native => "native",
        }
    }

    /// Whether its vendor takes what cannot be made into the queue, and says so in the result.
    pub fn tells_later(self) -> bool {
        matches!(self, Self::Fal | Self::Replicate)
    }
}

/// What goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Only when nothing else waits.
    Low,
    /// The usual one.
    #[default]
    Normal,
}

/// What a dialect hands to the queue.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Whose words.
    pub dialect: Dialect,
    /// Who asked.
    pub owner: Owner,
    /// The vendor's name of what was called: `fal-ai/flux/krea/redux`, `black-forest-labs/flux-krea-dev`, `images/edits`.
    pub endpoint: String,
    /// What to make; or why it cannot be made, for dialects that accept first and tell later (fal's queue).
    pub ask: Result<Ask, Fault>,
    /// The body as it was given, for dialects that show it again. Data URIs in it are shortened by the dialect.
    pub raw: Value,
    /// What goes first.
    pub priority: Priority,
    /// How many jobs its owner may have that have not ended, if that is less than the queue's own limit.
    pub most_of_owner: Option<usize>,
    /// Two jobs of an owner with the same key are one job.
    pub idempotency_key: Option<String>,
    /// If it has not started by then it ends as [`Fault::TimedOut`].
    pub start_by: Option<Millis>,
    /// If it has not ended by then it is cancelled.
    pub finish_by: Option<Millis>,
    /// Ends when nobody waits for it any more (see `Jobs::submit`): for callers that have no other way to get the result.
    pub only_while_held: bool,
    /// Who wants to be told.
    pub webhook: Option<Webhook>,
    /// A secret that a URL carries instead of a key, for dialects that have such a route (Replicate's stream).
    pub secret: Option<String>,
}

impl NewJob {
    /// With nothing beside what is asked: of the usual priority, without deadlines, kept until it ended even if nobody waits.
    pub fn new(dialect: Dialect, owner: &Owner, endpoint: &str, ask: Result<Ask, Fault>) -> Self {
        Self {
            dialect,
            owner: owner.clone(),
            endpoint: endpoint.to_owned(),
            ask,
            raw: Value::Null,
            priority: Priority::Normal,
            most_of_owner: None,
            idempotency_key: None,
            start_by: None,
            finish_by: None,
            only_while_held: false,
            webhook: None,
            secret: None,
        }
    }

    /// The same in darkroom's own dialect, for anyone.
    pub fn plain(ask: Ask) -> Self {
        Self::new(Dialect::Native, &Owner::anyone(), "jobs", Ok(ask))
    }
}

/// Who wants to be told about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// About what; which of them make sense is the dialect's matter.
    pub moments: Vec<Moment>,
    /// What begins the URLs in what is told: as whoever asked reached this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// A moment in a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The work began.
    Start,
    /// There are pictures.
    Output,
    /// There are more lines.
    Logs,
    /// It ended, well or not.
    Completed,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted; its pictures are being fetched, or it waits for its turn.
    Queued,
    /// The worker has it.
    Running,
    /// Its pictures are there.
    Succeeded,
    /// It has a [`Fault`].
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl State {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Pictures, in the order of their seeds; those that were left out are missing.
    Succeeded {
        /// At least one.
        pictures: Vec<Made>,
        /// Seconds of computing.
        seconds: f64,
    },
    /// Why it failed.
    Failed(Fault),
    /// Somebody stopped it.
    Cancelled,
}

/// A finished picture: its bytes are in the blob store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Where the bytes are.
    pub blob: BlobId,
    /// `image/png` …
    pub mime: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How many bytes.
    pub bytes: u64,
    /// The seed that makes this very picture alone.
    pub seed: u64,
    /// Whether the picture gate flagged it; then it is black.
    pub flagged: bool,
}

/// How far a running job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Which picture, from 0.
    pub picture: u32,
    /// How many there are.
    pub pictures: u32,
    /// Steps done of this picture.
    pub step: u32,
    /// How many it takes.
    pub steps: u32,
    /// Seconds of the last step.
    pub seconds_per_step: f64,
}

impl Progress {
    /// Share of the work that is done, 0 to 1.
    pub fn share(&self) -> f64 {
        let all = f64::from(self.pictures) * f64::from(self.steps);
        if all > 0.0 { (f64::from(self.picture) * f64::from(self.steps) + f64::from(self.step)) / all } else { 0.0 }
    }
}

/// A line of a job's log, for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub at: Millis,
    /// One line, no prompt in it.
    pub message: String,
}

/// A picture of progress, reviewed like every other.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Which picture of the job, from 0.
    pub picture: u32,
    /// Which preview of this picture, from 0.
    pub index: u32,
    /// The step after which it was made, from 1.
    pub step: u32,
    /// The file.
    pub bytes: Bytes,
    /// `image/jpeg` …
    pub mime: &'static str,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// What can be seen of a job at one moment; cheap to clone.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its name.
    pub id: JobId,
    /// Whose words.
    pub dialect: Dialect,
    /// Who asked.
    pub owner: Owner,
    /// What was called.
    pub endpoint: Arc<str>,
    /// What is made; `None` if the body was wrong.
    pub ask: Option<Arc<Ask>>,
    /// The body as given.
    pub raw: Arc<Value>,
    /// The secret of its stream.
    pub secret: Option<Arc<str>>,
    /// Where it stands.
    pub state: State,
    /// How many go before it, if it is queued.
    pub position: Option<u32>,
    /// When it was accepted.
    pub accepted: Millis,
    /// When the work began (the last time).
    pub started: Option<Millis>,
    /// When it ended.
    pub finished: Option<Millis>,
    /// How far it is, while it runs.
    pub progress: Option<Progress>,
    /// Its log so far.
    pub logs: Arc<[LogLine]>,
    /// Pictures of progress so far; empty once it has ended.
    pub previews: Arc<[Arc<Preview>]>,
    /// How it ended.
    pub outcome: Option<Arc<Outcome>>,
}

impl JobView {
    /// The pictures, if it succeeded.
    pub fn made(&self) -> &[Made] {
        match self.outcome.as_deref() {
            Some(Outcome::Succeeded { pictures, .. }) => pictures,
            _ => &[],
        }
    }

    /// Why it failed, if it did.
    pub fn fault(&self) -> Option<&Fault> {
        match self.outcome.as_deref() {
            Some(Outcome::Failed(fault)) => Some(fault),
            Some(Outcome::Cancelled) => Some(&Fault::Cancelled),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_nothing_else_does() {
        let id = JobId::from_random(std::array::from_fn(|i| (i * 37) as u8));
        assert_eq!(id.as_str().parse::<JobId>(), Ok(id.clone()));
        assert_eq!(serde_json::from_value::<JobId>(serde_json::to_value(&id).unwrap()).unwrap(), id);
        for wrong in ["", "../../etc/passwd", "0123456789abcdefghjkmnpqr!", "0123456789ABCDEFGHJKMNPQRS"] {
            assert_eq!(wrong.parse::<JobId>(), Err(NoJobId), "{wrong}");
        }
    }
}
