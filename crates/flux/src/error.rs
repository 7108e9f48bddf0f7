//! Everything that can go wrong, by whose doing: *asked wrong* names the field, *the world failed* names the file; *we are
//! wrong* is a panic in `tensor`.
//!
//! Sentences are lower case without a full stop, say what was expected, and may end in a `hint:`.

use std::path::PathBuf;

/// A failed generation or load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be met.
    #[error("{field}: {problem}")]
    Asked {
        /// The field as the library and the command line name it.
        field: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file that cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A prompt or picture that the policy refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The picture came out as not-a-number or as one flat colour.
    #[error("{0}")]
    Degenerate(String),
    /// What could not be written to where the caller said.
    #[error(transparent)]
    Output(std::io::Error),
    /// Stopped by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A request that cannot be met.
    pub(crate) fn asked(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Asked { field, problem: problem.into() }
    }

    /// A file that cannot be used.
    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into() }
    }
}

/// A refusal by [`crate::safety::Safety`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by the {policy} policy: {reason}")]
pub struct Refused {
    /// Which policy, by its name.
    pub policy: String,
    /// What was refused.
    pub subject: Subject,
    /// What it was taken for: `sexual content`, `slurs`, or a category of the operator's list.
    pub category: String,
    /// Why, in a sentence that quotes nothing of it.
    pub reason: String,
}

/// What a policy decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// What was asked for.
    Prompt,
    /// A picture that somebody gave, as this field.
    Given(&'static str),
    /// A picture that was made.
    Picture,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
