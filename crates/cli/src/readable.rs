//! Paths and amounts as people read them.

use std::path::Path;

pub(crate) use hub::bytes;

/// A path for people.
pub(crate) fn shown(path: &Path) -> String {
    format!("'{}'", path.display())
}
