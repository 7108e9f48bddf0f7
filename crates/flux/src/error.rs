//! Everything that can go wrong, by whose doing: *asked wrong* names the field, *the world failed* names the file; *we are
//! wrong* is a panic in `tensor`.
//!
//! Sentences are lower case without a full stop, say what was expected, and may end in a `hint:`. What only a user of the command
//! line can do about it, flags and commands, stands apart: other programs that show an error leave it out.

use std::path::PathBuf;

/// A failed generation or load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be met.
    #[error("{field}: {problem}{}", behind(hint.as_deref()))]
    Asked {
        /// The field as the library and the command line name it.
        field: &'static str,
        /// What is wrong and what was expected.
        problem: String,
        /// What to do about it on the command line.
        hint: Option<String>,
    },
    /// A file that cannot be used.
    #[error("{}: {problem}{}", path.display(), behind(hint.as_deref()))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
        /// What to do about it on the command line.
        hint: Option<String>,
    },
    /// A prompt or picture that the policy refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The picture came out as not-a-number or as one flat colour.
    #[error("{problem}; nothing was saved{}", behind(hint.as_deref()))]
    Degenerate {
        /// What is wrong with it.
        problem: String,
        /// What to do about it on the command line.
        hint: Option<String>,
    },
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
        Self::Asked { field, problem: problem.into(), hint: None }
    }

    /// A file that cannot be used.
    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into(), hint: None }
    }

    /// A picture that is none.
    pub(crate) fn degenerate(problem: impl Into<String>) -> Self {
        Self::Degenerate { problem: problem.into(), hint: None }
    }

    /// The same, with what to do about it on the command line.
    #[must_use]
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Asked { hint, .. } | Self::File { hint, .. } | Self::Degenerate { hint, .. } => {
                *hint = Some(text.into());
            }
            Self::Refused(_) | Self::Output(_) | Self::Cancelled => {}
        }
        self
    }
}

fn behind(hint: Option<&str>) -> String {
    hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_shown_and_stands_apart() {
        let asked = Error::asked("size", "is large").hint("--size 64x64");
        assert_eq!(asked.to_string(), "size: is large; hint: --size 64x64");
        assert!(matches!(asked, Error::Asked { problem, .. } if problem == "is large"));
        let file = Error::file("a.gguf", "is empty");
        assert_eq!(file.to_string(), "a.gguf: is empty");
        assert_eq!(file.hint("download it").to_string(), "a.gguf: is empty; hint: download it");
        let flat = Error::degenerate("the picture is flat").hint("--precision f32");
        assert_eq!(flat.to_string(), "the picture is flat; nothing was saved; hint: --precision f32");
    }
}
