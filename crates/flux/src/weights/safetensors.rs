//! The header of a safetensors file: `u64` length, then JSON `name → {dtype, shape, data_offsets}`, then the data.
//!
//! A header may come from anywhere and may lie. Everything it says is checked against the file's size before anything is
//! allocated by it: lengths, offsets, overlaps, duplicate names, products that overflow. Source: the format's README.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::de::{Deserializer as _, Error as _, MapAccess, Visitor};
use tensor::DType;

/// Longest header accepted, bytes; FLUX.1's takes 120 kB, the reference implementation's limit is the same.
pub const MAX_HEADER: usize = 100_000_000;
/// Most extents of a tensor.
const MAX_RANK: usize = 8;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Header {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Entry>,
    /// The free-form `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file's own name of the element type: `BF16`, `F8_E4M3`, `I64`, `Q4_K` …
    pub dtype: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file.
    pub bytes: Range<usize>,
}

impl Entry {
    /// The element type as one that a weight can have.
    pub fn weight_dtype(&self) -> Option<DType> {
        Some(match self.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "F8_E4M3" => DType::F8E4M3,
            "F8_E5M2" => DType::F8E5M2,
            "I8" => DType::I8,
            "NF4" => DType::NF4,
            "Q8_0" => DType::Q8_0,
            "Q5_1" => DType::Q5_1,
            "Q5_0" => DType::Q5_0,
            "Q4_1" => DType::Q4_1,
            "Q4_0" => DType::Q4_0,
            "Q6_K" => DType::Q6K,
            "Q5_K" => DType::Q5K,
            "Q4_K" => DType::Q4K,
            "Q3_K" => DType::Q3K,
            "Q2_K" => DType::Q2K,
            "IQ4_NL" => DType::IQ4NL,
            "IQ4_XS" => DType::IQ4XS,
            _ => return None,
        })
    }
}

/// Why a file is not a usable safetensors file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Known by its first bytes to be something else.
    #[error("is {0}, not safetensors")]
    Other(&'static str),
    /// Shorter than its own header.
    #[error("is cut short: {have} bytes, but the header alone needs {need}; hint: download it again")]
    Short {
        /// Bytes of the file.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// An absurd header length.
    #[error("claims a header of {0} bytes (at most {MAX_HEADER}): not a safetensors file, or damaged")]
    Huge(u64),
    /// Not UTF-8, or not the JSON that is expected.
    #[error("has a damaged header: {0}")]
    Damaged(String),
    /// A tensor's data ends after the file does.
    #[error("is cut short: tensor '{name}' ends at byte {end}, the file has {have}; hint: download it again")]
    Truncated {
        /// The tensor.
        name: String,
        /// Its end.
        end: u64,
        /// Bytes of the file.
        have: usize,
    },
    /// A tensor whose numbers contradict each other.
    #[error("has a lying header: tensor '{name}' {problem}")]
    Lying {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl Header {
    /// Reads the header of a file given whole (usually memory-mapped; only the header is touched).
    ///
    /// # Errors
    /// [`HeaderError`]; never panics, never allocates more than a small multiple of the header's real size.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        if let Some(kind) = other_kind(file) {
            return Err(HeaderError::Other(kind));
        }
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(HeaderError::Short { have: file.len(), need: 8 });
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER as u64 {
            return Err(HeaderError::Huge(length));
        }
        let length = length as usize;
        let Some(json) = rest.get(..length) else {
            return Err(HeaderError::Short { have: file.len(), need: 8 + length });
        };
        let json = std::str::from_utf8(json).map_err(|e| HeaderError::Damaged(format!("not UTF-8: {e}")))?;
        let raw = RawHeader::parse(json)?;
        let data = 8 + length;
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw.tensors {
            let entry = raw.check(&name, data, file.len())?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(HeaderError::Lying { name, problem: "is named twice".into() });
            }
        }
        no_overlap(&tensors)?;
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// Files that people pass by mistake.
fn other_kind(file: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| file.starts_with(magic);
    Some(match () {
        () if file.is_empty() => "an empty file",
        () if starts(b"\x89PNG") => "a PNG picture",
        () if starts(b"\xff\xd8\xff") => "a JPEG picture",
        () if starts(b"RIFF") => "a WebP picture",
        () if starts(b"GIF8") => "a GIF picture",
        () if starts(b"GGUF") => "a GGUF file",
        () if starts(b"PK\x03\x04") => "a zip archive (a PyTorch pickle?)",
        () if starts(b"version https://git-lfs") => "a Git LFS pointer (run 'git lfs pull')",
        () if starts(b"<!DOCTYPE") || starts(b"<html") => "a web page (was the download refused?)",
        () => return None,
    })
}

struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawHeader {
    fn parse(json: &str) -> Result<Self, HeaderError> {
        let mut de = serde_json::Deserializer::from_str(json);
        let raw = de.deserialize_map(HeaderVisitor).map_err(|e| HeaderError::Damaged(e.to_string()))?;
        de.end().map_err(|e| HeaderError::Damaged(e.to_string()))?; // trailing spaces are padding, all else is not
        Ok(raw)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
        let mut seen_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut seen_metadata, true) {
                    return Err(A::Error::custom("'__metadata__' appears twice"));
                }
                raw.metadata = map.next_value()?;
            } else {
                raw.tensors.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}

impl RawEntry {
    /// The entry, checked against the file: data begins at `data`, the file ends at `len`.
    fn check(self, name: &str, data: usize, len: usize) -> Result<Entry, HeaderError> {
        let lying = |problem: String| HeaderError::Lying { name: name.to_owned(), problem };
        if self.shape.len() > MAX_RANK {
            return Err(lying(format!("has {} extents, at most {MAX_RANK} are allowed", self.shape.len())));
        }
        let (begin, end) = self.data_offsets;
        if begin > end {
            return Err(lying(format!("ends ({end}) before it begins ({begin})")));
        }
        if end > (len - data) as u64 {
            return Err(HeaderError::Truncated {
                name: name.to_owned(),
                end: end.saturating_add(data as u64),
                have: len,
            });
        }
        // Also of no elements: products of some of the extents are taken later.
        let extents = self.shape.iter().filter(|&&d| d != 0).try_fold(1u64, |n, &d| n.checked_mul(d));
        if extents.is_none_or(|n| n > 1 << 60) {
            return Err(lying(format!("of shape {:?} is larger than any file", self.shape)));
        }
        let count = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let bits = dtype_bits(&self.dtype).ok_or_else(|| lying(format!("has the unknown dtype '{}'", self.dtype)))?;
        let size = count.and_then(|n| n.checked_mul(bits)).map(|bits| bits.div_ceil(8));
        if size != Some(end - begin) {
            let shape = &self.shape;
            return Err(lying(format!(
                "of shape {shape:?} and dtype {} does not take {} bytes",
                self.dtype,
                end - begin
            )));
        }
        let shape = self.shape.iter().map(|&d| d as usize).collect();
        Ok(Entry { dtype: self.dtype, shape, bytes: data + begin as usize..data + end as usize })
    }
}

fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

fn no_overlap(tensors: &BTreeMap<String, Entry>) -> Result<(), HeaderError> {
    let mut ranges: Vec<_> = tensors.iter().filter(|(_, e)| !e.bytes.is_empty()).collect();
    ranges.sort_by_key(|(_, e)| e.bytes.start);
    for pair in ranges.windows(2) {
        let [(first, a), (second, b)] = [pair[0], pair[1]];
        if b.bytes.start < a.bytes.end {
            return Err(HeaderError::Lying { name: second.clone(), problem: format!("overlaps '{first}'") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn problem(json: &str, data: usize) -> String {
        Header::parse(&file(json, data)).expect_err("this header must be refused").to_string()
    }

    #[test]
    fn a_good_header() {
        let header = Header::parse(&file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}   "#,
            16,
        ))
        .expect("parses");
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.tensors["a"].shape, [2, 3]);
        assert_eq!(header.tensors["b"].bytes.len(), 4);
        assert_eq!(header.tensors["a"].weight_dtype(), Some(DType::BF16));
    }

    #[test]
    fn lies_are_named() {
        let cases = [
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "cut short"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 8, "does not take 4 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "before it begins"),
            (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,9],"data_offsets":[0,8]}}"#, 8, "larger than any"),
            (r#"{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}"#, 8, "larger than any"),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "named twice",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                8,
                "overlaps 'a'",
            ),
            (r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#, 8, "unknown dtype"),
            (r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, 8, "extents"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 8, "damaged"),
            (r#"{"a":[]}"#, 8, "damaged"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#, 8, "twice"),
            ("[]", 8, "damaged"),
            ("{} x", 8, "damaged"),
        ];
        for (json, data, expected) in cases {
            let problem = problem(json, data);
            assert!(problem.contains(expected), "{json}: {problem}");
        }
    }

    #[test]
    fn files_that_are_something_else() {
        assert_eq!(Header::parse(b"").expect_err("empty"), HeaderError::Other("an empty file"));
        assert_eq!(Header::parse(b"\x89PNG\r\n\x1a\n....").expect_err("png"), HeaderError::Other("a PNG picture"));
        assert_eq!(Header::parse(&[1, 2, 3]).expect_err("short"), HeaderError::Short { have: 3, need: 8 });
        assert_eq!(Header::parse(&[255; 64]).expect_err("huge"), HeaderError::Huge(u64::MAX));
        let mut not_utf8 = file("{\"a\"}", 0);
        not_utf8[9] = 0xff;
        assert!(matches!(Header::parse(&not_utf8), Err(HeaderError::Damaged(_))));
    }
}
