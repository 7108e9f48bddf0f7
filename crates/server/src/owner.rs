//! Whose a job, a file or a key is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Who asked: a key's name, or [`Owner::anyone`] on a server without keys. Jobs are shown to their owner alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(pub Arc<str>);

impl Owner {
    /// The caller of a server without keys.
    pub fn anyone() -> Self {
        Self("anyone".into())
    }
}
