//! Operands as the register tile reads them.
//!
//! A *word* is 32 bits of factors: one f32, or two bf16 neighbours along the sum. The sum's axis is cut into blocks of
//! [`BLOCK`] words. A *strip* is a few rows of the left operand, word by word: `[word][row]`; a *panel* is two vectors of
//! columns of the right one: `[word][column]`. (Goto and van de Geijn, *Anatomy of high-performance matrix multiplication*.)

use std::ops::Range;

use super::{
    arch::{Simd, Vector, VectorSlice},
    blocks,
};
use crate::{DType, Precision, StoredRow, StoredRows, Weight};

/// Words of the sum's axis in one block: a strip of it (24 KiB) stays in the first cache, the panels of a task (128 KiB) in
/// the second.
pub(super) const BLOCK: usize = 512;

/// The most lanes that a vector has.
pub(super) const MAX_LANES: usize = 16;

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Factors {
    /// One f32.
    F32,
    /// One f32 that is a bf16: for machines that cannot multiply bf16.
    RoundedF32,
    /// Two bf16 numbers.
    Bf16Pairs,
}

impl Factors {
    /// How `simd` multiplies in this precision.
    pub(super) fn new(precision: Precision, simd: Simd) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::BF16 | Precision::Int8 if simd.has_bf16_pairs() => Self::Bf16Pairs,
            Precision::BF16 | Precision::Int8 => Self::RoundedF32,
        }
    }

    /// Factors in a word.
    #[inline(always)]
    pub(super) fn per_word(self) -> usize {
        if self == Self::Bf16Pairs { 2 } else { 1 }
    }

    /// Words that a row of `len` factors takes.
    pub(super) fn words(self, len: usize) -> usize {
        len.div_ceil(self.per_word())
    }
}

/// Rows whose elements lie in one place, or in several, side by side.
#[derive(Clone, Copy)]
pub(super) struct Joined<'a> {
    parts: &'a [&'a [f32]],
    count: usize,
}

impl<'a> Joined<'a> {
    /// `count` rows; each part has that many shorter ones.
    pub(super) fn new(parts: &'a [&'a [f32]], count: usize) -> Self {
        Self { parts, count }
    }

    /// Some elements of a row: where they are, or put together in `spare`.
    #[inline(always)]
    pub(super) fn elements<'b>(&self, row: usize, range: Range<usize>, spare: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let mut first = 0;
        for part in self.parts {
            let width = part.len() / self.count;
            if first <= range.start && range.end <= first + width {
                return &part[row * width..][range.start - first..range.end - first];
            }
            let [from, to] = [range.start, range.end].map(|end| end.clamp(first, first + width));
            if from < to {
                spare[from - range.start..to - range.start]
                    .copy_from_slice(&part[row * width..][from - first..to - first]);
            }
            first += width;
        }
        &spare[..range.len()]
    }

    /// Whole rows, one after the other.
    pub(super) fn join(&self) -> Vec<f32> {
        let mut joined = Vec::with_capacity(self.parts.iter().map(|part| part.len()).sum());
        for row in 0..self.count {
            for part in self.parts {
                let width = part.len() / self.count;
                joined.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        joined
    }
}

/// The blocks of an axis of `words`; at least one, so that an empty sum still writes its zeros.
pub(super) fn blocks(words: usize) -> impl Iterator<Item = Range<usize>> {
    (0..words.div_ceil(BLOCK).max(1)).map(move |i| i * BLOCK..((i + 1) * BLOCK).min(words))
}

/// The strips of `rows`: as few as tiles of `tile_rows` allow, and of nearly equal height.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strips {
    rows: usize,
    count: usize,
}

impl Strips {
    pub(super) fn new(rows: usize, tile_rows: usize) -> Self {
        Self { rows, count: rows.div_ceil(tile_rows) }
    }

    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Rows of the strip `index`.
    #[inline(always)]
    pub(super) fn rows(self, index: usize) -> Range<usize> {
        index * self.rows / self.count..(index + 1) * self.rows / self.count
    }
}

/// Makes words of the numbers in a row; the last word is filled up with zero.
#[inline(always)]
pub(super) fn to_words<V: Vector>(factors: Factors, numbers: &[f32], words: &mut [f32]) {
    match factors {
        Factors::F32 => words.copy_from_slice(numbers),
        Factors::RoundedF32 => {
            for (words, numbers) in words.chunks_mut(V::LANES).zip(numbers.chunks(V::LANES)) {
                V::from_slice(numbers).round_to_bf16().to_slice(words);
            }
        }
        Factors::Bf16Pairs => {
            for (words, numbers) in words.chunks_mut(V::LANES).zip(numbers.chunks(2 * V::LANES)) {
                let second = numbers.get(V::LANES..).unwrap_or_default();
                V::bf16_pairs(V::from_slice(numbers), V::from_slice(second)).to_slice(words);
            }
        }
    }
}

/// Packs a strip: `rows` (each of `words` words) to `to[word · rows + row]`.
///
/// # Safety
/// There are at most `LANES` rows, `words` words can be read from each, and `to` has room for all of them.
#[inline(always)]
pub(super) unsafe fn pack_strip<V: Vector>(rows: &[*const f32], words: usize, to: *mut f32) {
    let height = rows.len();
    let mut square = [0.0; MAX_LANES * MAX_LANES];
    // Rows that the strip lacks repeat the last one, and are not copied.
    let mut at = [rows[height - 1]; MAX_LANES];
    at[..height].copy_from_slice(rows);
    let mut word = 0;
    while word + V::LANES <= words {
        // SAFETY: a whole square is left in every row; the strip has room for `LANES` words of `height`.
        unsafe {
            V::transpose(&at[..V::LANES], square.as_mut_ptr(), V::LANES);
            for j in 0..V::LANES {
                let lanes = V::load(square.as_ptr().add(j * V::LANES));
                lanes.store_first(to.add((word + j) * height), height);
            }
            for at in &mut at {
                *at = at.wrapping_add(V::LANES);
            }
        }
        word += V::LANES;
    }
    for word in word..words {
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: both indices are within what the caller promises.
            unsafe { to.add(word * height + i).write(row.add(word).read()) };
        }
    }
}

/// Decodes the elements of one row from `start` on, which begin and end with whole blocks of its format.
#[inline(always)]
pub(super) fn decode<V: Vector>(row: StoredRow<'_>, start: usize, out: &mut [f32]) {
    let StoredRow { dtype, scale, bytes, .. } = row;
    let whole = out.len() - out.len() % V::LANES;
    let bytes = &bytes[dtype.bytes(start)..dtype.bytes(start + out.len())];
    // The format is known outside of the loop: one loop for each.
    match dtype {
        DType::F32 => decode_whole::<V>(DType::F32, scale, bytes, &mut out[..whole]),
        DType::F16 => decode_whole::<V>(DType::F16, scale, bytes, &mut out[..whole]),
        DType::BF16 => decode_whole::<V>(DType::BF16, scale, bytes, &mut out[..whole]),
        DType::F8E4M3 => decode_whole::<V>(DType::F8E4M3, scale, bytes, &mut out[..whole]),
        DType::F8E5M2 => decode_whole::<V>(DType::F8E5M2, scale, bytes, &mut out[..whole]),
        DType::I8 => decode_whole::<V>(DType::I8, scale, bytes, &mut out[..whole]),
        _ => return blocks::decode::<V>(row, start, out),
    }
    row.decode(start + whole, &mut out[whole..]);
}

#[inline(always)]
fn decode_whole<V: Vector>(dtype: DType, scale: f32, bytes: &[u8], out: &mut [f32]) {
    let scale = V::splat(scale);
    for (i, out) in out.chunks_exact_mut(V::LANES).enumerate() {
        // SAFETY: the caller has checked that there are bytes for all of `out`.
        unsafe { V::decode(dtype, bytes.as_ptr().add(dtype.bytes(i * V::LANES))) }.mul(scale).to_slice(out);
    }
}

/// Room that [`pack_columns`] needs beside its result: the rows of one vector of columns, a row of zeros, a decoded row.
pub(super) fn columns_scratch() -> usize {
    BLOCK * (MAX_LANES + 1) + 2 * BLOCK
}

/// Where columns are packed to: `values[panel][word][column]`.
pub(super) struct Panels<'a> {
    pub(super) values: &'a mut [f32],
    /// Words of a panel, and the one to begin with: several weights may stand in one panel, one below the other.
    pub(super) words: usize,
    pub(super) first: usize,
}

/// Packs the words `block` of a weight's rows `columns` into panels, columns that are missing in the last panel zero.
#[inline(always)]
pub(super) fn pack_columns<V: Vector>(
    weight: &Weight,
    factors: Factors,
    columns: Range<usize>,
    block: Range<usize>,
    scratch: &mut [f32],
    to: &mut Panels<'_>,
) {
    let words = block.len();
    assert!(to.first + words <= to.words, "{words} words from {} on in panels of {}", to.first, to.words);
    let elements = block.start * factors.per_word()..(block.end * factors.per_word()).min(weight.row_len());
    let (rows, rest) = scratch.split_at_mut(BLOCK * MAX_LANES);
    let (zeros, decoded) = rest.split_at_mut(BLOCK);
    let decoded = &mut decoded[..elements.len()];
    zeros[..words].fill(0.0);
    let mut stored = weight.stored_rows(columns.start);
    let mut ahead = Ahead::new(weight, columns.clone(), elements.clone());
    ahead.fetch::<V, false>(V::LANES);
    let panels = columns.len().div_ceil(2 * V::LANES);
    assert!(to.values.len() >= panels * to.words * 2 * V::LANES, "no room for {panels} panels");
    for half in 0..2 * panels {
        ahead.fetch::<V, false>(V::LANES);
        let mut at = [zeros.as_ptr(); MAX_LANES];
        let missing = (half * V::LANES).min(columns.len());
        let present = (columns.len() - missing).min(V::LANES);
        for (at, row) in at[..present].iter_mut().zip(rows.chunks_exact_mut(BLOCK)) {
            let Some(stored) = stored.next() else { unreachable!("the weight has all columns") };
            let are_words = stored.scale == 1.0
                && match factors {
                    Factors::F32 => stored.dtype == DType::F32,
                    Factors::RoundedF32 => false,
                    Factors::Bf16Pairs => stored.dtype == DType::BF16 && elements.len() == 2 * words,
                };
            if are_words {
                *at =
                    stored.bytes[stored.dtype.bytes(elements.start)..stored.dtype.bytes(elements.end)].as_ptr().cast();
            } else {
                if factors == Factors::F32 {
                    decode::<V>(stored, elements.start, &mut row[..words]);
                } else {
                    decode::<V>(stored, elements.start, decoded);
                    to_words::<V>(factors, decoded, &mut row[..words]);
                }
                *at = row.as_ptr();
            }
        }
        let panel = &mut to.values[(half / 2 * to.words + to.first) * 2 * V::LANES..];
        // SAFETY: every row has `words` words (in the file, in scratch, or zeros), the panel has room for them: `to` was checked.
        unsafe {
            transpose::<V>(&at[..V::LANES], words, panel.as_mut_ptr().add(half % 2 * V::LANES), 2 * V::LANES);
        }
    }
}

/// Writes a vector of rows on their side: word `j` of row `i` to `to[j · stride + i]`. Rows may start at any byte.
///
/// # Safety
/// `rows` has `LANES` pointers, `words` words can be read from each, and `to` has room for `words` times `stride`.
#[inline(always)]
pub(super) unsafe fn transpose<V: Vector>(rows: &[*const f32], words: usize, to: *mut f32, stride: usize) {
    let mut at = [std::ptr::null(); MAX_LANES];
    at[..V::LANES].copy_from_slice(rows);
    let whole = words - words % V::LANES;
    for word in (0..whole).step_by(V::LANES) {
        // SAFETY: a whole square is left in every row, and there is room for it.
        unsafe { V::transpose(&at[..V::LANES], to.add(word * stride), stride) };
        for at in &mut at {
            *at = at.wrapping_add(V::LANES);
        }
    }
    for word in whole..words {
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: both indices are within what the caller promises.
            unsafe { to.add(word * stride + i).write(row.add(word).read_unaligned()) };
        }
    }
}

/// Asks the memory for rows of a weight that will be packed soon, while something else is computed.
pub(super) struct Ahead<'a> {
    rows: StoredRows<'a>,
    left: usize,
    elements: Range<usize>,
}

impl<'a> Ahead<'a> {
    /// For the elements `elements` (whole blocks of the format) of the rows `columns`.
    #[inline(always)]
    pub(super) fn new(weight: &'a Weight, columns: Range<usize>, elements: Range<usize>) -> Self {
        Self { rows: weight.stored_rows(columns.start), left: columns.len(), elements }
    }

    /// Asks for the next rows, so many that the last call (`calls` counts down to 1) asks for the last one.
    #[inline(always)]
    pub(super) fn fetch_share<V: Vector>(&mut self, calls: usize) {
        self.fetch::<V, false>(self.left.div_ceil(calls));
    }

    /// Asks for the next `count` rows, `NEAR` for the first cache.
    #[inline(always)]
    pub(super) fn fetch<V: Vector, const NEAR: bool>(&mut self, count: usize) {
        let count = count.min(self.left);
        self.left -= count;
        for _ in 0..count {
            let Some(row) = self.rows.next() else { return };
            let bytes = &row.bytes[row.dtype.bytes(self.elements.start)..row.dtype.bytes(self.elements.end)];
            for line in bytes.chunks(64) {
                if NEAR {
                    V::prefetch(line.as_ptr().cast());
                } else {
                    V::prefetch_far(line.as_ptr());
                }
            }
        }
    }
}
