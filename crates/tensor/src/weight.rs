//! A model's parameter in the format of its file, and where its bytes are.
//!
//! A matrix may be stacked from several tensors of a file (`to_q`, `to_k`, `to_v` make BFL's `qkv`) or take the halves of
//! one in another order (the final layer's modulation); [`Rows`] describes one such piece. Nothing is copied.

use std::{ops::Range, sync::Arc};

use crate::{DType, MappedFile, Shape};

/// In which arithmetic the products of a weight are computed; sums, norms and activations are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Weights and activations as f32.
    #[default]
    F32,
    /// Weights and activations rounded to bf16 (nearest even) just before they are multiplied.
    BF16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
        })
    }
}

/// Where the bytes of a tensor are.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// A range of a memory-mapped file.
    Mapped(MappedFile, Range<usize>),
    /// A range of a shared block in memory.
    Owned(Arc<[u8]>, Range<usize>),
    /// Embedded in the program.
    Static(&'static [u8]),
    /// Nowhere: only the size is known. For [`crate::dry_run`].
    Absent(usize),
}

impl Bytes {
    /// The bytes; empty where they are absent.
    pub fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(file, range) => &file.bytes()[range.clone()],
            Self::Owned(bytes, range) => &bytes[range.clone()],
            Self::Static(bytes) => bytes,
            Self::Absent(_) => &[],
        }
    }

    /// How many bytes there are (or would be).
    pub fn len(&self) -> usize {
        match self {
            Self::Absent(len) => *len,
            _ => self.get().len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of these bytes.
    ///
    /// # Panics
    /// If `range` does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} is outside of {} bytes", self.len());
        match self {
            Self::Mapped(file, outer) => Self::Mapped(file.clone(), outer.start + range.start..outer.start + range.end),
            Self::Owned(bytes, outer) => Self::Owned(bytes.clone(), outer.start + range.start..outer.start + range.end),
            Self::Static(bytes) => Self::Static(&bytes[range]),
            Self::Absent(_) => Self::Absent(range.len()),
        }
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        let range = 0..bytes.len();
        Self::Owned(bytes, range)
    }
}

/// Consecutive rows of a weight as one file stores them: row-major, in one format, with one scale.
#[derive(Clone, Debug)]
pub struct Rows {
    /// How many rows.
    pub count: usize,
    /// Their format.
    pub dtype: DType,
    /// What a decoded element is multiplied by (1 but for scaled fp8).
    pub scale: f32,
    /// Their bytes.
    pub bytes: Bytes,
}

/// A matrix `[out, in]` or a convolution kernel `[out, in, height, width]`, stacked from rows.
#[derive(Clone, Debug)]
pub struct Weight {
    shape: Shape,
    rows: Vec<Rows>,
    precision: Precision,
}

impl Weight {
    /// A weight of this shape whose first extent is the sum of the rows.
    ///
    /// # Panics
    /// If the rows do not add up to the shape or a piece has the wrong number of bytes.
    pub fn new(shape: impl Into<Shape>, rows: Vec<Rows>, precision: Precision) -> Self {
        let shape = shape.into();
        let row = shape.count() / shape[0].max(1);
        assert_eq!(rows.iter().map(|r| r.count).sum::<usize>(), shape[0], "rows do not add up to {shape}");
        for piece in &rows {
            let expected = piece.dtype.bytes(piece.count * row);
            assert_eq!(
                piece.bytes.len(),
                expected,
                "{} rows of {row} {:?} take {expected} bytes",
                piece.count,
                piece.dtype
            );
        }
        Self { shape, rows, precision }
    }

    /// A weight from f32 values.
    pub fn from_f32(shape: impl Into<Shape>, values: &[f32]) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.count(), "{} values for {shape}", values.len());
        let bytes: Arc<[u8]> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let rows = Rows { count: shape[0], dtype: DType::F32, scale: 1.0, bytes: bytes.into() };
        Self::new(shape, vec![rows], Precision::F32)
    }

    /// The same weight, multiplied in another arithmetic.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// `[out, in]` or `[out, in, height, width]`.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Rows of the matrix: out-features.
    pub fn out_features(&self) -> usize {
        self.shape[0]
    }

    /// Elements in a row.
    pub fn row_len(&self) -> usize {
        self.shape.count() / self.shape[0].max(1)
    }

    /// The arithmetic of its products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The pieces, first rows first.
    pub fn rows(&self) -> &[Rows] {
        &self.rows
    }

    /// Bytes of storage.
    pub fn byte_len(&self) -> usize {
        self.rows.iter().map(|r| r.bytes.len()).sum()
    }

    /// Decodes the row `index` into `out` (`row_len` elements), without rounding to the compute precision.
    pub fn decode_row(&self, mut index: usize, out: &mut [f32]) {
        let row = self.row_len();
        for piece in &self.rows {
            if index < piece.count {
                let size = piece.dtype.bytes(row);
                piece.dtype.decode(&piece.bytes.get()[index * size..(index + 1) * size], out);
                if piece.scale != 1.0 {
                    for v in out.iter_mut() {
                        *v *= piece.scale;
                    }
                }
                return;
            }
            index -= piece.count;
        }
        panic!("row {index} is outside of {}", self.shape);
    }

    /// All elements as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let row = self.row_len();
        let mut out = vec![0.0; self.shape.count()];
        if row > 0 {
            for (index, out) in out.chunks_exact_mut(row).enumerate() {
                self.decode_row(index, out);
            }
        }
        out
    }
}
