//! A blob that nothing refers to yet.

use std::fmt;

use super::BlobId;

/// A blob that goes again when this is dropped, unless it was kept: for pictures given to a job that may yet be refused, or whose
/// caller may go away.
#[must_use = "the blob goes when this is dropped"]
pub struct Draft {
    id: BlobId,
    discard: Option<Box<dyn FnOnce(BlobId) + Send>>,
}

impl Draft {
    /// Of a blob that `discard` takes away.
    pub fn new(id: BlobId, discard: impl FnOnce(BlobId) + Send + 'static) -> Self {
        Self { id, discard: Some(Box::new(discard)) }
    }

    /// The blob's name.
    pub fn id(&self) -> &BlobId {
        &self.id
    }

    /// Somebody else sees to it from now on.
    pub fn keep(mut self) {
        self.discard = None;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(discard) = self.discard.take() {
            discard(self.id.clone());
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Draft").field(&self.id).finish()
    }
}
