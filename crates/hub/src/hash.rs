//! What a blob's name promises: SHA-256 of a large file, or git's SHA-1 of `blob LENGTH\0` and the bytes of a small one.

use std::{fmt::Write as _, io::Read, path::Path};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A running hash for a blob of that name.
#[derive(Clone)]
pub(crate) enum Hash {
    Large(Sha256),
    Git(Sha1),
}

impl Hash {
    /// For a name of 64 or 40 digits and a file of `size` bytes.
    pub(crate) fn of_etag(etag: &str, size: u64) -> Self {
        if etag.len() == 64 {
            return Self::Large(Sha256::new());
        }
        let mut git = Sha1::new();
        git.update(format!("blob {size}\0"));
        Self::Git(git)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Large(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn digits(self) -> String {
        match self {
            Self::Large(hash) => digits(&hash.finalize()),
            Self::Git(hash) => digits(&hash.finalize()),
        }
    }
}

/// SHA-256 of bytes, as digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    digits(&Sha256::digest(bytes))
}

/// SHA-256 of a file, as digits.
pub(crate) fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digits(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs_are_gits_and_lfs() {
        // `printf 'hello\n' | git hash-object --stdin`, and `sha256sum`.
        let of = |etag: &str| {
            let mut hash = Hash::of_etag(etag, 6);
            hash.update(b"hel");
            hash.update(b"lo\n");
            hash.digits()
        };
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let large = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!((of(git).as_str(), of(large).as_str()), (git, large));
        assert_eq!(sha256(b"hello\n"), large);
    }
}
