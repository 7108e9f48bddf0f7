//! What a caller is told while something goes on, and how it stops it.

use std::path::Path;

use crate::error::{Error, Result};

/// Who is told what goes on, and answers `false` to stop.
pub type Watch<'a> = dyn FnMut(Event<'_>) -> bool + 'a;

/// Tells, and ends what is going on if it is to stop.
pub(crate) fn tell(watch: &mut Watch<'_>, event: Event<'_>) -> Result<()> {
    if watch(event) { Ok(()) } else { Err(Error::Cancelled) }
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The hub is asked what a repository holds.
    Asking {
        /// `org/name`.
        repository: &'a str,
    },
    /// A file begins.
    Starting {
        /// Its path.
        file: &'a str,
        /// Bytes.
        size: u64,
        /// Bytes that are here from before.
        have: u64,
    },
    /// Bytes from before are read again for the hash.
    Checked {
        /// How many more.
        bytes: u64,
    },
    /// Bytes came.
    Received {
        /// How many more.
        bytes: u64,
    },
    /// What came so far is dropped: the other side began anew, or the hash was wrong.
    Dropped {
        /// How many.
        bytes: u64,
    },
    /// A file is complete and has its hash.
    Done {
        /// Its path.
        file: &'a str,
    },
    /// Something failed that may succeed later.
    Waiting {
        /// How long.
        seconds: f64,
        /// What failed.
        why: &'a str,
    },
    /// Another program downloads the same file.
    Locked {
        /// Its lock.
        path: &'a Path,
    },
    /// Still waiting.
    StillWaiting,
}
