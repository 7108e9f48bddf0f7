//! A model's parameter in the format of its file, and where its bytes are.
//!
//! A matrix may be stacked from several tensors of a file (`to_q`, `to_k`, `to_v` make BFL's `qkv`) or take the halves of
//! one in another order (the final layer's modulation); [`Rows`] describes one such piece. Nothing is copied.

use std::{ops::Range, sync::Arc};

use crate::{
    BlockScales, DType, Kept, MappedFile, Shape,
    formats::nf4::{self, RUN},
};

/// In which arithmetic the products of a weight are computed; sums, norms and activations are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Weights and activations as f32.
    #[default]
    F32,
    /// Weights and activations rounded to bf16 (nearest even) just before they are multiplied.
    BF16,
    /// Weights rounded to 8 bits with a scale for each row, activations with a scale for each token. Products that have no
    /// such form (convolutions, attention, few tokens) are computed as [`Precision::BF16`].
    Int8,
}

impl Precision {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::F32, Self::BF16, Self::Int8];

    /// The arithmetic of layers that 8 bits would hurt: bf16 instead of int8.
    pub fn without_int8(self) -> Self {
        if self == Self::Int8 { Self::BF16 } else { self }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// A name that no arithmetic has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a precision; f32, bf16, int8 are")]
pub struct UnknownPrecision(String);

impl std::str::FromStr for Precision {
    type Err = UnknownPrecision;

    /// As it is shown; `fp32` is f32.
    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        match name {
            "f32" | "fp32" => Ok(Self::F32),
            "bf16" => Ok(Self::BF16),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownPrecision(name.to_owned())),
        }
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

    /// Has the system read them ahead, if they are in a file and it can.
    pub fn prefetch(&self) {
        if let Self::Mapped(file, range) = self {
            file.prefetch(range.clone());
        }
    }

    /// Lets go of the memory in which bytes of a file are; they come back when they are read again. Others stay.
    pub fn release(&self) {
        if let Self::Mapped(file, range) = self {
            file.release(range.clone());
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

/// What decoded elements are multiplied by.
#[derive(Clone, Debug)]
pub enum Scale {
    /// One number for all (1 but for scaled fp8).
    All(f32),
    /// One number for each row.
    PerRow(Arc<[f32]>),
    /// One number for each block, for [`DType::NF4`].
    PerBlock(Arc<BlockScales>),
}

impl Scale {
    /// No change.
    pub const NONE: Self = Self::All(1.0);

    /// The factor of row `index`.
    pub fn of_row(&self, index: usize) -> f32 {
        match self {
            Self::All(scale) => *scale,
            Self::PerRow(scales) => scales[index],
            Self::PerBlock(_) => 1.0,
        }
    }

    /// That of the rows `range`, each of `row` elements.
    fn slice(&self, range: Range<usize>, row: usize) -> Self {
        match self {
            Self::All(scale) => Self::All(*scale),
            Self::PerRow(scales) => Self::PerRow(scales[range].into()),
            Self::PerBlock(scales) => {
                Self::PerBlock(Arc::new(BlockScales { first: scales.first + range.start * row, ..(**scales).clone() }))
            }
        }
    }
}

/// One row of a weight as its file stores it.
#[derive(Clone, Copy, Debug)]
pub struct StoredRow<'a> {
    /// The format.
    pub dtype: DType,
    /// What decoded elements are multiplied by.
    pub scale: f32,
    /// The whole row.
    pub bytes: &'a [u8],
    /// The scales of its blocks, where they are not among its bytes, and the row's first element as those count.
    pub blocks: Option<(&'a BlockScales, usize)>,
}

impl StoredRow<'_> {
    /// Decodes the elements from `start` on into `out`; `start`, and the end unless it is the row's, are multiples of the
    /// format's [block](DType::block).
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        let bytes = &self.bytes[self.dtype.bytes(start)..self.dtype.bytes(start + out.len())];
        if let Some((blocks, first)) = self.blocks {
            nf4::decode(bytes, &blocks.values, out);
            for (run, out) in out.chunks_mut(RUN).enumerate() {
                let mut scale = [0.0];
                blocks.read(first + start + run * RUN, &mut scale);
                for value in out {
                    *value *= scale[0];
                }
            }
        } else {
            self.dtype.decode(bytes, out);
        }
        if self.scale != 1.0 {
            for value in out {
                *value *= self.scale;
            }
        }
    }
}

/// Consecutive rows of a weight as one file stores them: row-major, in one format.
#[derive(Clone, Debug)]
pub struct Rows {
    /// How many rows.
    pub count: usize,
    /// Their format.
    pub dtype: DType,
    /// What decoded elements are multiplied by.
    pub scale: Scale,
    /// Their bytes.
    pub bytes: Bytes,
}

impl Rows {
    /// The rows `range` of these.
    ///
    /// # Panics
    /// If `range` does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let row = self.bytes.len() / self.count.max(1);
        let bytes = self.bytes.slice(range.start * row..range.end * row);
        let elements = row / self.dtype.block_bytes() * self.dtype.block();
        Self { count: range.len(), dtype: self.dtype, scale: self.scale.slice(range, elements), bytes }
    }
}

/// A matrix `[out, in]` or a convolution kernel `[out, in, height, width]`, stacked from rows.
#[derive(Clone, Debug)]
pub struct Weight {
    shape: Shape,
    rows: Vec<Rows>,
    precision: Precision,
    /// Not shared by weights that are made of this one: their numbers are others.
    kept: Option<Kept>,
}

impl Weight {
    /// A weight of this shape whose first extent is the sum of the rows.
    ///
    /// # Panics
    /// If the rows do not add up to the shape or a piece has the wrong number of bytes.
    pub fn new(shape: impl Into<Shape>, rows: Vec<Rows>, precision: Precision) -> Self {
        let shape = shape.into();
        let row = shape.count() / shape[0].max(1);
        // A row is stored as whole blocks, so that it can be found without its neighbours.
        assert!(
            rows.iter().all(|r| row.is_multiple_of(r.dtype.block())),
            "rows of {row} elements are not whole blocks"
        );
        assert_eq!(rows.iter().map(|r| r.count).sum::<usize>(), shape[0], "rows do not add up to {shape}");
        for piece in &rows {
            match &piece.scale {
                Scale::All(_) => {}
                Scale::PerRow(scales) => assert_eq!(scales.len(), piece.count, "a scale for each row"),
                Scale::PerBlock(scales) => {
                    assert!(piece.dtype == DType::NF4 && scales.size.is_multiple_of(RUN) && scales.size > 0);
                    let end = scales.first + piece.count * row;
                    assert!(end.div_ceil(scales.size) <= scales.blocks(), "a scale for each block");
                }
            }
            let expected = piece.dtype.bytes(piece.count * row);
            assert_eq!(
                piece.bytes.len(),
                expected,
                "{} rows of {row} {:?} take {expected} bytes",
                piece.count,
                piece.dtype
            );
        }
        Self { shape, rows, precision, kept: None }
    }

    /// A weight from f32 values.
    pub fn from_f32(shape: impl Into<Shape>, values: &[f32]) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.count(), "{} values for {shape}", values.len());
        let bytes: Arc<[u8]> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let rows = Rows { count: shape[0], dtype: DType::F32, scale: Scale::NONE, bytes: bytes.into() };
        Self::new(shape, vec![rows], Precision::F32)
    }

    /// The same weight, multiplied in another arithmetic.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, kept: None, ..self }
    }

    /// A place where the weight may be kept in the form that kernels read, if they have one of their own for its arithmetic:
    /// for [`Precision::Int8`]. Clones share it.
    pub fn keep(&mut self) -> Option<Kept> {
        if self.precision == Precision::Int8 {
            self.kept.get_or_insert_default();
        }
        self.kept.clone()
    }

    /// The place, if there is one.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Lets go of the memory in which mapped bytes of the rows `range` are.
    pub(crate) fn release_rows(&self, range: Range<usize>) {
        self.slice_rows(range).rows.iter().for_each(|piece| piece.bytes.release());
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

    /// The weight of some of the rows; nothing is copied.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn slice_rows(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.out_features(), "rows {range:?} of {}", self.shape);
        let mut rows = Vec::new();
        let mut first = 0;
        for piece in &self.rows {
            let part = range.start.clamp(first, first + piece.count)..range.end.clamp(first, first + piece.count);
            if !part.is_empty() {
                rows.push(piece.slice(part.start - first..part.end - first));
            }
            first += piece.count;
        }
        Self { shape: self.shape.with(0, range.len()), rows, precision: self.precision, kept: None }
    }

    /// The rows of all parts, first part first, with the first one's precision; nothing is copied.
    ///
    /// # Panics
    /// If there are no parts, or their rows differ in length.
    pub fn stacked(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { panic!("nothing to stack") };
        let mut whole = Self { kept: None, ..first };
        for part in parts {
            let count = whole.out_features() + part.out_features();
            assert!(part.shape.with(0, 0) == whole.shape.with(0, 0), "{} under {}", part.shape, whole.shape);
            whole.shape = whole.shape.with(0, count);
            whole.rows.extend(part.rows);
        }
        whole
    }

    /// Rows of zeros, which take no memory.
    pub fn zeros(rows: usize, row_len: usize, precision: Precision) -> Self {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let dtype = DType::BF16;
        let at_once = (ZEROS.len() / dtype.bytes(row_len).max(1)).max(1);
        let piece = |count: usize| {
            let len = dtype.bytes(count * row_len);
            let bytes = ZEROS.get(..len).map_or_else(|| Bytes::from(Arc::from(vec![0; len])), Bytes::Static);
            Rows { count, dtype, scale: Scale::NONE, bytes }
        };
        let pieces = (0..rows).step_by(at_once).map(|first| piece(at_once.min(rows - first))).collect();
        Self::new([rows, row_len], pieces, precision)
    }

    /// Each row times its factor; nothing is copied. `None` for formats whose blocks have scales of their own beside them.
    ///
    /// # Panics
    /// If there is not a factor for each row.
    pub fn scaled_rows(&self, factors: &[f32]) -> Option<Self> {
        assert_eq!(factors.len(), self.out_features(), "a factor for each row");
        let mut rest = factors;
        let mut scaled = Self { kept: None, ..self.clone() };
        for piece in &mut scaled.rows {
            let (own, behind) = rest.split_at(piece.count);
            rest = behind;
            if matches!(piece.scale, Scale::PerBlock(_)) {
                return None;
            }
            let scales = own.iter().enumerate().map(|(row, factor)| piece.scale.of_row(row) * factor);
            piece.scale = Scale::PerRow(scales.collect());
        }
        Some(scaled)
    }

    /// All elements times `factor`; nothing is copied. `None` as for [`Weight::scaled_rows`].
    pub fn scaled(&self, factor: f32) -> Option<Self> {
        let mut scaled = Self { kept: None, ..self.clone() };
        for piece in &mut scaled.rows {
            match &mut piece.scale {
                Scale::All(scale) => *scale *= factor,
                Scale::PerRow(scales) => *scales = scales.iter().map(|scale| scale * factor).collect(),
                Scale::PerBlock(_) => return None,
            }
        }
        Some(scaled)
    }

    /// Bytes of storage.
    pub fn byte_len(&self) -> usize {
        self.rows.iter().map(|r| r.bytes.len()).sum()
    }

    /// The rows from `first` on as they are stored.
    #[inline(always)]
    pub fn stored_rows(&self, first: usize) -> StoredRows<'_> {
        StoredRows { rest: &self.rows, index: first, row_len: self.row_len() }
    }

    /// Decodes the row `index` into `out` (`row_len` elements), without rounding to the compute precision.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn decode_row(&self, index: usize, out: &mut [f32]) {
        match self.stored_rows(index).next() {
            Some(row) => row.decode(0, out),
            None => panic!("row {index} is outside of {}", self.shape),
        }
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

/// The rows of a weight from some row on.
#[derive(Clone, Debug)]
pub struct StoredRows<'a> {
    rest: &'a [Rows],
    index: usize,
    row_len: usize,
}

impl<'a> Iterator for StoredRows<'a> {
    type Item = StoredRow<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<StoredRow<'a>> {
        while self.index >= self.rest.first()?.count {
            self.index -= self.rest[0].count;
            self.rest = &self.rest[1..];
        }
        let piece = &self.rest[0];
        let size = piece.dtype.bytes(self.row_len);
        let bytes = &piece.bytes.get()[self.index * size..(self.index + 1) * size];
        let blocks = match &piece.scale {
            Scale::PerBlock(scales) => Some((&**scales, self.index * self.row_len)),
            Scale::All(_) | Scale::PerRow(_) => None,
        };
        let row = StoredRow { dtype: piece.dtype, scale: piece.scale.of_row(self.index), bytes, blocks };
        self.index += 1;
        Some(row)
    }
}
