//! The header of a GGUF file: magic and version, counts, metadata, tensor infos; then the data, aligned.
//!
//! Versions 2 and 3, little-endian. A header may come from anywhere and may lie: everything it says is checked against the
//! file's size before anything is allocated by it. Arrays of the metadata stay in the file until somebody asks for them.
//! Extents come innermost first and are turned around. Source: `ggml/docs/gguf.md`, `gguf/gguf_reader.py`, `ggml.h`.

use std::{collections::BTreeMap, ops::Range};

use super::safetensors::Entry;

/// What a file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Most extents of a tensor: ggml has 4, stable-diffusion.cpp wrote 5.
const MAX_RANK: usize = 8;
/// Most arrays inside of one another.
const MAX_DEPTH: usize = 4;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Entry>,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of any width.
    Integer(i128),
    /// Of 32 or 64 bits.
    Float(f64),
    /// A truth.
    Bool(bool),
    /// Text; bytes that are not UTF-8 were replaced.
    Text(String),
    /// A list, still in the file.
    Array(Array),
}

impl Value {
    /// Numbers, truths and text as text; nothing for lists.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Integer(value) => Some(value.to_string()),
            Self::Float(value) => Some(value.to_string()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Text(value) => Some(value.clone()),
            Self::Array(_) => None,
        }
    }
}

/// A list in a file, whose bytes have been seen to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    kind: Kind,
    count: usize,
    bytes: Range<usize>,
}

impl Array {
    /// How many values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Numbers of a list of integers or truths; `file` is the file whole.
    pub fn integers(&self, file: &[u8]) -> Option<Vec<i64>> {
        let size = self.kind.size()?;
        let bytes = file.get(self.bytes.clone())?;
        let each = |bytes: &[u8]| self.kind.integer(bytes).and_then(|value| i64::try_from(value).ok());
        bytes.chunks_exact(size).map(each).collect()
    }

    /// Numbers of a list of floats of 32 bits.
    pub fn floats(&self, file: &[u8]) -> Option<Vec<f32>> {
        let bytes = file.get(self.bytes.clone()).filter(|_| self.kind == Kind::F32)?;
        Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// A list of bytes.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        file.get(self.bytes.clone()).filter(|_| self.kind.size() == Some(1))
    }

    /// A list of texts.
    pub fn texts<'a>(&self, file: &'a [u8]) -> Option<Vec<&'a str>> {
        if self.kind != Kind::Text {
            return None;
        }
        let mut reader = Reader { file: file.get(..self.bytes.end)?, at: self.bytes.start };
        (0..self.count).map(|_| std::str::from_utf8(reader.text("a text").ok()?).ok()).collect()
    }
}

/// Why a file is not a usable GGUF file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Another magic.
    #[error("does not begin with 'GGUF': not a GGUF file, or damaged; hint: download it again")]
    Other,
    /// A version that is not read.
    #[error("is a GGUF file of version {0}; versions 2 and 3 can be read; hint: convert it with a current llama.cpp")]
    Version(u32),
    /// Bytes the other way round.
    #[error("is a big-endian GGUF file; hint: 'gguf_convert_endian.py FILE little' of llama.cpp turns it around")]
    BigEndian,
    /// Shorter than its own header.
    #[error("is cut short: it ends within {0}; hint: download it again")]
    Short(String),
    /// Metadata that contradicts itself.
    #[error("has a lying header: {0}")]
    Metadata(String),
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

type Result<T> = std::result::Result<T, HeaderError>;

impl Header {
    /// Reads the header of a file given whole (usually memory-mapped; only the header is touched).
    ///
    /// # Errors
    /// [`HeaderError`]; never panics, never allocates more than a small multiple of the header's real size.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut reader = Reader { file, at: 0 };
        if !file.starts_with(MAGIC) {
            return Err(HeaderError::Other);
        }
        reader.take(4, "the magic")?;
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            // 3 with its bytes turned around.
            v if v != 0 && v.trailing_zeros() >= 16 => return Err(HeaderError::BigEndian),
            v => return Err(HeaderError::Version(v)),
        }
        let tensor_count = reader.u64("the number of tensors")?;
        let value_count = reader.u64("the number of metadata values")?;
        // Counts are believed one by one: whoever lies runs out of bytes.
        let mut metadata = BTreeMap::new();
        for index in 0..value_count {
            let what = || format!("metadata value {} of {value_count}", index + 1);
            let key = utf8(reader.text(&what())?, || format!("the key of {}", what()))?.to_owned();
            let kind = reader.kind(&key)?;
            let value = reader.value(kind, &key, MAX_DEPTH)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(HeaderError::Metadata(format!("the metadata has '{key}' twice")));
            }
        }
        let alignment = alignment(&metadata)?;
        let mut infos = Vec::new();
        for index in 0..tensor_count {
            infos.push(reader.info(&format!("the info of tensor {} of {tensor_count}", index + 1))?);
        }
        let data = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let mut tensors = BTreeMap::new();
        for info in infos {
            let (name, entry) = info.check(data, alignment, file.len(), &metadata, file)?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(HeaderError::Lying { name, problem: "is named twice".into() });
            }
        }
        no_overlap(&tensors)?;
        Ok(Self { version, tensors, metadata })
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Integer(value)) => match usize::try_from(*value) {
            Ok(value) if value.is_power_of_two() => Ok(value),
            _ => Err(HeaderError::Metadata(format!("'general.alignment' is {value}; a power of two was expected"))),
        },
        Some(_) => Err(HeaderError::Metadata("'general.alignment' is not an integer".into())),
    }
}

/// Types of metadata, by their number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(number as usize).copied()
    }

    /// Bytes of a value, where all have as many.
    fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Text | Self::Array => return None,
        })
    }

    /// An integer or a truth from its bytes.
    fn integer(self, bytes: &[u8]) -> Option<i128> {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        Some(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 | Self::Bool => unsigned.into(),
            Self::I8 => (unsigned as i8).into(),
            Self::I16 => (unsigned as i16).into(),
            Self::I32 => (unsigned as i32).into(),
            Self::I64 => (unsigned as i64).into(),
            Self::F32 | Self::F64 | Self::Text | Self::Array => return None,
        })
    }
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next bytes of `what`.
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let bytes = self.file.get(self.at..).and_then(|rest| rest.get(..count));
        let bytes = bytes.ok_or_else(|| HeaderError::Short(what.to_owned()))?;
        self.at += count;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().unwrap_or_default()))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().unwrap_or_default()))
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.u64(what)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(&format!("metadata '{key}'"))?;
        Kind::from_number(number)
            .ok_or_else(|| HeaderError::Metadata(format!("metadata '{key}' is of the unknown type {number}")))
    }

    fn value(&mut self, kind: Kind, key: &str, depth: usize) -> Result<Value> {
        let what = format!("metadata '{key}'");
        match kind {
            Kind::Text => Ok(Value::Text(String::from_utf8_lossy(self.text(&what)?).into_owned())),
            Kind::Array => Ok(Value::Array(self.array(key, depth)?)),
            Kind::F32 => Ok(Value::Float(f32::from_bits(self.u32(&what)?).into())),
            Kind::F64 => Ok(Value::Float(f64::from_bits(self.u64(&what)?))),
            _ => {
                let bytes = self.take(kind.size().unwrap_or_default(), &what)?;
                let value = kind.integer(bytes).unwrap_or_default();
                Ok(if kind == Kind::Bool { Value::Bool(value != 0) } else { Value::Integer(value) })
            }
        }
    }

    /// Steps over a list and remembers where it is.
    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        let what = format!("metadata '{key}'");
        let kind = self.kind(key)?;
        let count = usize::try_from(self.u64(&what)?).unwrap_or(usize::MAX);
        let start = self.at;
        match kind.size() {
            Some(size) => {
                self.take(count.saturating_mul(size), &what)?;
            }
            None if kind == Kind::Text => {
                for _ in 0..count {
                    self.text(&what)?;
                }
            }
            None => {
                let depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| HeaderError::Metadata(format!("{what} has lists in lists in lists")))?;
                for _ in 0..count {
                    self.array(key, depth)?;
                }
            }
        }
        Ok(Array { kind, count, bytes: start..self.at })
    }

    fn info(&mut self, what: &str) -> Result<Info> {
        let name = utf8(self.text(what)?, || format!("the name in {what}"))?.to_owned();
        let what = format!("the info of tensor '{name}'");
        let rank = self.u32(&what)? as usize;
        if rank > MAX_RANK {
            let problem = format!("has {rank} extents, at most {MAX_RANK} are allowed");
            return Err(HeaderError::Lying { name, problem });
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(self.u64(&what)?);
        }
        shape.reverse();
        Ok(Info { ggml_type: self.u32(&what)?, offset: self.u64(&what)?, name, shape })
    }
}

fn utf8(bytes: &[u8], what: impl FnOnce() -> String) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| HeaderError::Metadata(format!("{} is not UTF-8", what())))
}

/// What the file says of a tensor.
struct Info {
    name: String,
    /// Outermost first.
    shape: Vec<u64>,
    ggml_type: u32,
    /// From the start of the data.
    offset: u64,
}

impl Info {
    /// The entry, checked against the file: data begins at `data`, the file ends at `len`.
    fn check(
        self,
        data: usize,
        alignment: usize,
        len: usize,
        metadata: &BTreeMap<String, Value>,
        file: &[u8],
    ) -> Result<(String, Entry)> {
        let Self { name, shape, ggml_type, offset } = self;
        let lying = |problem: String| HeaderError::Lying { name: name.clone(), problem };
        let Some((dtype, block, size)) = ggml_type_of(ggml_type) else {
            return Err(lying(format!("is of the unknown ggml type {ggml_type}; hint: a newer darkroom may know it")));
        };
        // Also of no elements: products of some of the extents are taken later.
        let extents = shape.iter().filter(|&&d| d != 0).try_fold(1u64, |n, &d| n.checked_mul(d));
        if extents.is_none_or(|n| n > 1 << 60) {
            return Err(lying(format!("of shape {shape:?} is larger than any file")));
        }
        let count: u64 = shape.iter().product();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(lying(format!("has rows of {row} elements, which are not whole blocks of {block} ({dtype})")));
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(lying(format!("begins at {offset}, which is not a multiple of the alignment {alignment}")));
        }
        let bytes = count / block * size;
        let begin = (data as u64).checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(lying(format!("begins at {offset}, past the end of any file")));
        };
        if bytes > 0 && end > len as u64 {
            return Err(HeaderError::Truncated { name, end, have: len });
        }
        // An empty tensor lies nowhere.
        let bytes = if bytes == 0 { 0..0 } else { begin as usize..end as usize };
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let shape = match original_shape(&name, metadata, file)? {
            Some(original) if original.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(count as usize) => {
                original
            }
            Some(original) => {
                return Err(lying(format!("of shape {shape:?} cannot have had the shape {original:?}")));
            }
            None => shape,
        };
        Ok((name, Entry { dtype: dtype.to_owned(), shape, bytes }))
    }
}

/// ComfyUI-GGUF flattens tensors that blocks do not fit and keeps the shape that they had.
fn original_shape(name: &str, metadata: &BTreeMap<String, Value>, file: &[u8]) -> Result<Option<Vec<usize>>> {
    let key = format!("comfy.gguf.orig_shape.{name}");
    let Some(value) = metadata.get(&key) else { return Ok(None) };
    let extents = match value {
        Value::Array(array) if array.len() <= MAX_RANK => array.integers(file),
        _ => None,
    };
    let shape = extents.and_then(|e| e.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>());
    let problem = || HeaderError::Metadata(format!("'{key}' is not a list of at most {MAX_RANK} extents"));
    shape.map(Some).ok_or_else(problem)
}

/// Name, elements of a block and its bytes, by the type's number in ggml. Numbers that are missing were taken back.
fn ggml_type_of(number: u32) -> Option<(&'static str, u64, u64)> {
    Some(match number {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 40),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        20 => ("IQ4_NL", 32, 18),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        23 => ("IQ4_XS", 256, 136),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        40 => ("NVFP4", 64, 36),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    })
}

fn no_overlap(tensors: &BTreeMap<String, Entry>) -> Result<()> {
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
    use tensor::DType;

    use super::*;

    #[test]
    fn sizes_of_types_are_those_of_the_formats() {
        let mut known = 0;
        for number in 0..64 {
            let Some((name, block, bytes)) = ggml_type_of(number) else { continue };
            let entry = Entry { dtype: name.into(), shape: vec![1], bytes: 0..0 };
            // 'I8' is a weight's type only with scales beside it.
            let Some(dtype) = entry.weight_dtype().filter(|d| *d != DType::I8) else { continue };
            assert_eq!((dtype.block() as u64, dtype.block_bytes() as u64), (block, bytes), "{name}");
            known += 1;
        }
        assert_eq!(known, 15);
    }
}
