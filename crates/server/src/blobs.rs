//! Bytes under names that cannot be guessed: pictures given and made.

use serde::{Deserialize, Serialize};

/// The name of a blob: 32 hexadecimal characters, 128 random bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobId(pub String);
