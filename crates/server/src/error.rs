//! Why a request or a job is not met, before a dialect words it: each dialect has its own status and shape for every [`Fault`].
//!
//! Sentences are for the one who asked: no path, no prompt, no key in them.

use flux::error::{Refused, Subject};
use serde::{Deserialize, Serialize};

/// Why something is not met. Kept in the journal, so that a job that failed says the same after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Fields that are missing or wrong, all that were found.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Problem>),
    /// A picture that was given and cannot be used.
    #[error("{field}: {message}")]
    Picture {
        /// The vendor's name of the field.
        field: String,
        /// What is wrong with it.
        kind: PictureFault,
        /// What was expected and what to do.
        message: String,
    },
    /// No such route, job, file.
    #[error("{0} was not found")]
    NotFound(String),
    /// A route that is there, asked in another way than it takes.
    #[error("this route is not asked with this method")]
    WrongMethod,
    /// A model that is not served here.
    #[error("the model '{0}' is not served here")]
    UnknownModel(String),
    /// No key or a wrong one.
    #[error("no valid API key was given")]
    Unauthenticated,
    /// A key without the right to this, or a browser's page that may not ask.
    #[error("{0}")]
    Forbidden(String),
    /// A body above the limit.
    #[error("{0}")]
    TooLarge(String),
    /// The queue or the caller's share of it is full; seconds until it is worth another try.
    #[error("{message}; try again in {retry_after} s")]
    Full {
        /// Seconds.
        retry_after: u32,
        /// Which limit.
        message: String,
    },
    /// The prompt or all pictures were refused by the safety policy.
    #[error("{message}")]
    Flagged {
        /// Where: before or after the work.
        stage: Stage,
        /// What was seen: `sexual`, `violence` …
        categories: Vec<String>,
        /// A sentence that does not repeat the prompt.
        message: String,
    },
    /// Not started, or not finished, within the time that was asked for.
    #[error("{0}")]
    TimedOut(String),
    /// Stopped because somebody asked for it.
    #[error("cancelled")]
    Cancelled,
    /// The engine failed: a file, a device, a bug.
    #[error("{0}")]
    Failed(String),
    /// The server cannot take work now: the disk is full, the folder is read-only, it is shutting down.
    #[error("{0}")]
    Unavailable(String),
}

/// A field that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// The vendor's name of it; inner ones with a dot: `image_size.width`.
    pub field: String,
    /// What was expected, a sentence.
    pub message: String,
    /// Which rule it breaks.
    pub rule: Rule,
}

/// What a value has to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// It has to be there.
    Missing,
    /// It has to be a string.
    Text,
    /// It has to be a whole number.
    Integer,
    /// It has to be a number.
    Number,
    /// It has to be true or false.
    Flag,
    /// It has to be at least this.
    AtLeast(f64),
    /// It has to be at most this.
    AtMost(f64),
    /// A string has to have at most this many characters.
    Longest(usize),
    /// It has to be one of these.
    OneOf(Vec<String>),
    /// The body has to be JSON (or multipart), an object.
    Body,
    /// Something else; the message says what.
    Other,
}

/// What is wrong with a picture that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureFault {
    /// It could not be fetched, or may not be.
    Download,
    /// It is no picture, or a broken one.
    Decode,
    /// Too many bytes or pixels.
    TooLarge,
}

/// When the safety policy refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The prompt, before any work.
    Prompt,
    /// The finished pictures.
    Picture,
}

impl Stage {
    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Picture => "picture",
        }
    }
}

impl From<&Refused> for Fault {
    fn from(refused: &Refused) -> Self {
        Self::Flagged {
            // A picture that was given is looked at before the work, as the prompt is.
            stage: if refused.subject == Subject::Picture { Stage::Picture } else { Stage::Prompt },
            categories: vec![refused.category.clone()],
            message: refused.reason.clone(),
        }
    }
}

impl Fault {
    /// One field that is wrong.
    pub fn invalid(field: impl Into<String>, rule: Rule, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Problem { field: field.into(), message: message.into(), rule }])
    }

    /// A value that `flux` refused: its problem, under the vendor's name of the field.
    pub fn refused(field: impl Into<String>, error: &flux::Error) -> Self {
        let problem = match error {
            flux::Error::Asked { problem, .. } => problem.clone(),
            other => other.to_string(),
        };
        Self::invalid(field, Rule::Other, problem)
    }
}
