//! HMAC with SHA-256, under the server's own keys.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// One that is to be fed.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    // HMAC fills a key up with zeros to the block of its hash; a whole block has no length that could be wrong.
    Hmac::new(&block.into())
}
