//! Everything that can go wrong, by whose doing. Sentences are lower case without a full stop, say what was expected, and may
//! end in a `hint:`; only the explanation of a gate has several lines.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// A download, bundle or record that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be met.
    #[error("{field}: {problem}")]
    Asked {
        /// The flag, variable or field.
        field: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A file or folder on this machine.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// The repository's owner wants to know who downloads.
    #[error(transparent)]
    Gate(Box<Gate>),
    /// What was asked for is not published there.
    #[error("{0}")]
    NotPublished(String),
    /// The other side could not be reached, or broke off for good.
    #[error("{host}: {problem}")]
    Network {
        /// Whom we talked to.
        host: String,
        /// What happened, how often, and what to do.
        problem: String,
    },
    /// What came is not what was promised.
    #[error("{what}: {problem}")]
    Corrupt {
        /// Which file.
        what: String,
        /// What was expected and what came.
        problem: String,
    },
    /// Too little space.
    #[error(
        "{}: the disk has {} free, {} are needed; hint: free some, set HF_HUB_CACHE to a folder on a larger disk, or take a smaller \
         variant",
        path.display(), bytes(*free), bytes(*needed)
    )]
    Full {
        /// The cache.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The network may not be used.
    #[error("{0}")]
    Offline(String),
    /// The licence was not accepted.
    #[error("{0}")]
    Licence(String),
    /// Stopped by the caller.
    #[error("cancelled; what was downloaded is kept, the same command goes on from there")]
    Cancelled,
}

impl Error {
    pub(crate) fn asked(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Asked { field, problem: problem.into() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into() }
    }

    /// A failed operation on a file, in words.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        let problem = match error.kind() {
            io::ErrorKind::StorageFull => {
                "the disk is full; hint: free some space and run the same command again, it goes on where it stopped"
                    .into()
            }
            io::ErrorKind::QuotaExceeded => {
                "your quota on this disk is used up; hint: HF_HUB_CACHE names another folder".into()
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                format!("{error}; hint: HF_HUB_CACHE and DARKROOM_DATA name folders that you may write")
            }
            _ => error.to_string(),
        };
        Self::file(path, problem)
    }
}

/// Why a gated repository is closed, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// `org/name`.
    pub repository: String,
    /// The page on which its terms are accepted.
    pub page: String,
    /// Where tokens are made.
    pub tokens: String,
    /// What is missing.
    pub missing: Missing,
    /// What the hub said, if anything.
    pub said: Option<String>,
}

/// What a gated repository wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nobody is logged in.
    Token,
    /// A token that the hub does not know; where it came from.
    ValidToken(String),
    /// The token's owner has not accepted the terms, or waits for an answer; where the token came from.
    Acceptance(String),
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, page, tokens, .. } = self;
        let token = |f: &mut fmt::Formatter<'_>, step: u32| {
            writeln!(
                f,
                "  {step}. make a token at {tokens} (kind: read, or fine-grained with access to public gated repositories)"
            )?;
            writeln!(f, "  {}. export HF_TOKEN=hf_…, or: darkroom pull --token-file FILE …", step + 1)
        };
        match &self.missing {
            Missing::Token => {
                writeln!(f, "{repository} is gated: its owner wants its terms accepted by somebody who is logged in")?;
                writeln!(f, "  1. make an account and log in: https://huggingface.co/join")?;
                writeln!(f, "  2. open {page}, read the terms and accept them")?;
                token(f, 3)?;
                write!(f, "  5. run the same command again")?;
            }
            Missing::ValidToken(source) => {
                writeln!(
                    f,
                    "{repository} is gated, and the token from {source} is not valid: expired, revoked or mistyped"
                )?;
                token(f, 1)?;
                write!(f, "  3. run the same command again")?;
            }
            Missing::Acceptance(source) => {
                writeln!(
                    f,
                    "{repository} is gated: the token from {source} is valid, but its owner has no access yet"
                )?;
                writeln!(f, "  1. open {page}, logged in as the token's owner, and accept the terms")?;
                writeln!(f, "  2. some owners answer by hand: wait for their message")?;
                writeln!(f, "  3. a fine-grained token also needs 'access to public gated repositories': {tokens}")?;
                write!(f, "  4. run the same command again")?;
            }
        }
        match &self.said {
            Some(said) => write!(f, "\nthe hub said: {said}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Gate {}

impl From<Gate> for Error {
    fn from(gate: Gate) -> Self {
        Self::Gate(Box::new(gate))
    }
}

/// `23.8 GB`: decimal, as disks and downloads are counted.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!([0, 999, 1000, 23_802_816_640].map(bytes), ["0 B", "999 B", "1.0 kB", "23.8 GB"]);
    }
}
