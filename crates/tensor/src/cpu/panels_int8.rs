//! A weight as the int8 tile reads it: rounded by the rule of [`crate::int8`], in panels of two vectors of the weight's rows.
//!
//! A panel in one block is `[word][column]`, then [`PER_PANEL`] numbers. A task makes those of its columns, block by block, in its
//! second cache. For a weight that is [kept](crate::Kept) they are made once and lie in memory, `[panel][block]`: a byte for each
//! element (two without byte products) and 1/128 more, which tasks read as it lies. The traffic of making: the weight once in its own
//! format, the panels once.

use std::{ops::Range, sync::Arc};

use super::{
    Cpu,
    arch::{Kernel, Simd, Vector, VectorSlice},
    byte_tile::{PER_PANEL, PanelSums},
    pack::{self, Ahead, MAX_LANES},
    parallel::{Shared, with_scratch},
};
use crate::{
    DType, StoredRow, Taken, Weight,
    host::HostBuffer,
    int8::{BLOCK, WeightScale},
};

/// Columns whose panels are made at a time.
const COLUMNS: usize = 64;

/// How bytes are laid into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// Four bytes, or two 16-bit numbers.
    pub(super) bytes: bool,
}

impl Words {
    /// As `simd` multiplies them.
    pub(super) fn new(simd: Simd) -> Self {
        Self { bytes: simd.has_byte_products() }
    }

    /// Elements in a word.
    #[inline(always)]
    pub(super) fn per_word(self) -> usize {
        if self.bytes { 4 } else { 2 }
    }

    /// Words of `len` elements.
    #[inline(always)]
    pub(super) fn of(self, len: usize) -> usize {
        len.div_ceil(self.per_word())
    }

    /// A vector of words.
    #[inline(always)]
    pub(super) fn pack<V: Vector>(self, [a, b, c, d]: [V; 4]) -> V {
        if self.bytes { V::signed_bytes([a, b, c, d]) } else { V::signed_shorts(a, b) }
    }
}

/// The blocks of a sum of `len` elements.
#[inline(always)]
pub(super) fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len.div_ceil(BLOCK)).map(move |i| i * BLOCK..((i + 1) * BLOCK).min(len))
}

/// Some neighbouring panels in one block.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    /// From the first one's words on.
    numbers: &'a [f32],
    /// Elements of a panel's words.
    words: usize,
    /// From one panel to the next.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// The words and the numbers behind them of the panel `index`.
    #[inline(always)]
    pub(super) fn get(self, index: usize) -> (&'a [f32], &'a [f32]) {
        self.numbers[index * self.stride..][..self.words + PER_PANEL].split_at(self.words)
    }
}

/// A weight's panels in all blocks.
pub(super) struct KeptPanels {
    /// `[panel][block]`.
    numbers: HostBuffer,
    shape: PanelShape,
}

/// What the size of a panel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PanelShape {
    words: Words,
    /// Columns.
    width: usize,
    /// Elements of a row of the weight.
    row: usize,
}

impl PanelShape {
    fn new(weight: &Weight, simd: Simd) -> Self {
        Self { words: Words::new(simd), width: 2 * simd.lanes(), row: weight.row_len() }
    }

    /// Where the block that begins with the element `start` does.
    #[inline(always)]
    fn at(self, start: usize) -> usize {
        self.width * self.words.of(start) + PER_PANEL * start.div_ceil(BLOCK)
    }

    /// Elements of a panel in all blocks.
    #[inline(always)]
    fn len(self) -> usize {
        self.at(self.row)
    }
}

/// Elements that a weight takes in panels.
pub(super) fn kept_len(weight: &Weight, simd: Simd) -> usize {
    let shape = PanelShape::new(weight, simd);
    weight.out_features().div_ceil(shape.width) * shape.len()
}

impl KeptPanels {
    /// The panels of `columns` in a block.
    #[inline(always)]
    pub(super) fn of(&self, columns: Range<usize>, block: Range<usize>) -> Panels<'_> {
        let Self { shape, ref numbers } = *self;
        let first = columns.start / shape.width * shape.len() + shape.at(block.start);
        Panels {
            numbers: &numbers.values()[first..],
            words: shape.width * shape.words.of(block.len()),
            stride: shape.len(),
        }
    }
}

impl Cpu {
    /// A weight's panels, if it is kept; made now if this is its first product since it may be.
    pub(super) fn kept_panels(&self, weight: &Weight) -> Option<Arc<KeptPanels>> {
        let shape = PanelShape::new(weight, self.simd);
        let panels = weight.kept()?.get_or_make(|| {
            let numbers = self.make_panels(weight, shape);
            let taken = Taken { bytes: numbers.bytes(), stored: weight.byte_len() as u64 };
            (KeptPanels { numbers, shape }, taken)
        })?;
        // Another level's panels are none of ours.
        (panels.shape == shape).then_some(panels)
    }

    fn make_panels(&self, weight: &Weight, shape: PanelShape) -> HostBuffer {
        let PanelShape { words, width, row } = shape;
        let out = weight.out_features();
        let mut numbers = HostBuffer::alone(kept_len(weight, self.simd));
        let panels = Shared::new(numbers.values_mut());
        self.threads.for_each(out.div_ceil(COLUMNS), out * row, |task| {
            let columns = task * COLUMNS..((task + 1) * COLUMNS).min(out);
            let [first, end] = [columns.start / width, columns.end.div_ceil(width)];
            // SAFETY: tasks have whole panels, each its own.
            let panels = unsafe { panels.slice(first * shape.len()..end * shape.len()) };
            with_scratch(pack_scratch(words), |scratch| {
                self.simd.run(MakePanels { weight, shape, columns: columns.clone(), scratch, panels });
            });
            // Nobody reads the stored rows again: they need not be there beside all panels.
            weight.release_rows(columns);
        });
        // A system that brings a page brings its neighbours, too, some of them once more.
        weight.release_rows(0..out);
        numbers
    }
}

/// Makes the panels of some columns in all blocks.
struct MakePanels<'a> {
    weight: &'a Weight,
    shape: PanelShape,
    columns: Range<usize>,
    scratch: &'a mut [f32],
    panels: &'a mut [f32],
}

impl Kernel for MakePanels<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { weight, shape, columns, scratch, panels } = self;
        for block in blocks(shape.row) {
            let to = &mut panels[shape.at(block.start)..];
            let pack = PackPanels { weight, words: shape.words, columns: columns.clone(), block, stride: shape.len() };
            pack.run::<V>(scratch, to);
        }
    }
}

/// Asks the memory for a task's next panels, while something else is computed.
pub(super) enum NextPanels<'a> {
    /// For the rows that they are going to be made of.
    Stored(Ahead<'a>),
    /// For themselves.
    Kept(Lines<'a>),
}

/// Cache lines of some panels, one after the other.
pub(super) struct Lines<'a> {
    /// From the panel on that is being asked for.
    panels: Panels<'a>,
    /// Of this panel, the next.
    line: usize,
    /// Of all.
    left: usize,
}

impl Lines<'_> {
    /// Elements of a line.
    const LEN: usize = 16;

    /// Of a panel.
    #[inline(always)]
    fn per_panel(panels: Panels<'_>) -> usize {
        (panels.words + PER_PANEL).div_ceil(Self::LEN)
    }

    #[inline(always)]
    fn fetch_share<V: Vector>(&mut self, calls: usize) {
        let count = self.left.div_ceil(calls);
        self.left -= count;
        let per_panel = Self::per_panel(self.panels);
        for _ in 0..count {
            V::prefetch_far(self.panels.numbers[self.line * Self::LEN..].as_ptr().cast());
            self.line += 1;
            if self.line == per_panel {
                self.line = 0;
                self.panels.numbers = self.panels.numbers.get(self.panels.stride..).unwrap_or_default();
            }
        }
    }
}

impl<'a> NextPanels<'a> {
    /// For those of `columns` in a block.
    #[inline(always)]
    pub(super) fn new(
        weight: &'a Weight,
        kept: Option<&'a KeptPanels>,
        columns: Range<usize>,
        block: Range<usize>,
    ) -> Self {
        match kept {
            None => Self::Stored(Ahead::new(weight, columns, block)),
            Some(kept) => {
                let count = columns.len().div_ceil(kept.shape.width);
                let panels = kept.of(columns, block);
                Self::Kept(Lines { panels, line: 0, left: count * Lines::per_panel(panels) })
            }
        }
    }

    /// Asks for so many that the last call (`calls` counts down to 1) asks for the last ones.
    #[inline(always)]
    pub(super) fn fetch_share<V: Vector>(&mut self, calls: usize) {
        match self {
            Self::Stored(ahead) => ahead.fetch_share::<V>(calls),
            Self::Kept(lines) => lines.fetch_share::<V>(calls),
        }
    }
}

/// Room that [`PackPanels`] needs beside its result: one decoded row, a row of zeros, the words of one vector of columns.
pub(super) fn pack_scratch(words: Words) -> usize {
    BLOCK + (MAX_LANES + 1) * words.of(BLOCK)
}

/// Decodes, rounds and packs the block `block` of a weight's rows `columns`.
pub(super) struct PackPanels<'a> {
    pub(super) weight: &'a Weight,
    pub(super) words: Words,
    pub(super) columns: Range<usize>,
    pub(super) block: Range<usize>,
    /// From one panel to the next.
    pub(super) stride: usize,
}

impl PackPanels<'_> {
    /// To `to`, from the first panel's first word on; `scratch` is what [`pack_scratch`] says.
    #[inline(always)]
    pub(super) fn run<'b, V: Vector>(&self, scratch: &mut [f32], to: &'b mut [f32]) -> Panels<'b> {
        let Self { weight, words, ref columns, ref block, stride } = *self;
        let len = words.of(block.len());
        let (decoded, scratch) = scratch.split_at_mut(BLOCK);
        let (zeros, rows) = scratch.split_at_mut(words.of(BLOCK));
        zeros[..len].fill(0.0);
        let mut stored = weight.stored_rows(columns.start);
        // Two rows ahead.
        let mut near = Ahead::new(weight, columns.clone(), block.clone());
        near.fetch::<V, true>(2);
        let in_words = len * 2 * V::LANES;
        for panel in 0..columns.len().div_ceil(2 * V::LANES) {
            let (to, scales) = to[panel * stride..][..in_words + PER_PANEL].split_at_mut(in_words);
            for half in 0..2 {
                let mut at = [zeros.as_ptr(); MAX_LANES];
                let missing = ((2 * panel + half) * V::LANES).min(columns.len());
                let present = (columns.len() - missing).min(V::LANES);
                let scales = &mut scales[half * V::LANES..][..V::LANES];
                scales[present..].fill(0.0);
                let rows = rows.chunks_exact_mut(words.of(BLOCK));
                for ((at, row), scale) in at[..present].iter_mut().zip(rows).zip(scales) {
                    let Some(stored) = stored.next() else { unreachable!("the weight has all columns") };
                    near.fetch::<V, true>(1);
                    let row = &mut row[..len];
                    *scale = words.weight_row::<V>(stored, block.clone(), decoded, row);
                    *at = row.as_ptr();
                }
                // SAFETY: every row has `len` words, the panel has room for them.
                unsafe {
                    pack::transpose::<V>(&at[..V::LANES], len, to.as_mut_ptr().add(half * V::LANES), 2 * V::LANES);
                }
            }
            let sums = PanelSums { bytes: words.bytes, words: len, b: to.as_ptr(), scales: scales.as_mut_ptr() };
            // SAFETY: the panel is packed, and the machine has what `words` says.
            unsafe { sums.run::<V>() };
        }
        Panels { numbers: to, words: in_words, stride }
    }
}

impl Words {
    /// The words of a block of a weight's row, the last filled up with zeros; gives its scale.
    #[inline(always)]
    fn weight_row<V: Vector>(
        self,
        stored: StoredRow<'_>,
        block: Range<usize>,
        decoded: &mut [f32],
        words: &mut [f32],
    ) -> f32 {
        // Bytes are stored as 128 more than they are.
        let sign = V::splat(f32::from_bits(if self.bytes { 0x8080_8080 } else { 0 }));
        if stored.dtype == DType::I8 && self.bytes && block.len().is_multiple_of(4 * V::LANES) {
            let bytes = &stored.bytes[block];
            for (words, bytes) in words.chunks_exact_mut(V::LANES).zip(bytes.chunks_exact(4 * V::LANES)) {
                // SAFETY: the chunk has as many bytes as a vector.
                unsafe { V::load(bytes.as_ptr().cast()) }.xor(sign).to_slice(words);
            }
            return stored.scale;
        }
        if stored.dtype == DType::BF16 && stored.scale == 1.0 && self.bytes && block.len().is_multiple_of(4 * V::LANES)
        {
            // The format that most files have, without a detour over memory.
            let bytes = &stored.bytes[2 * block.start..2 * block.end];
            let rule = WeightScale::new(largest_bf16::<V>(bytes));
            let inverse = V::splat(rule.inverse);
            for (words, bytes) in words.chunks_exact_mut(V::LANES).zip(bytes.chunks_exact(8 * V::LANES)) {
                // SAFETY: the chunk has four vectors of two bytes each.
                let part = |i: usize| unsafe { V::decode(DType::BF16, bytes.as_ptr().add(2 * i * V::LANES)) };
                let [a, b, c, d] = [part(0), part(1), part(2), part(3)];
                V::signed_bytes([a.mul(inverse), b.mul(inverse), c.mul(inverse), d.mul(inverse)])
                    .xor(sign)
                    .to_slice(words);
            }
            return rule.scale;
        }
        let decoded = &mut decoded[..block.len()];
        let rule = if stored.dtype == DType::I8 {
            pack::decode::<V>(StoredRow { scale: 1.0, ..stored }, block.start, decoded);
            WeightScale { inverse: 1.0, scale: stored.scale }
        } else {
            pack::decode::<V>(stored, block.start, decoded);
            WeightScale::new(largest::<V>(decoded))
        };
        let inverse = V::splat(rule.inverse);
        let per_vector = self.per_word() * V::LANES;
        let whole = decoded.len() / per_vector;
        let (words, last_words) = words.split_at_mut(whole * V::LANES);
        let (numbers, last_numbers) = decoded.split_at(whole * per_vector);
        if self.bytes {
            for (words, numbers) in words.chunks_exact_mut(V::LANES).zip(numbers.chunks_exact(4 * V::LANES)) {
                let part = |i: usize| V::from_slice(&numbers[i * V::LANES..][..V::LANES]).mul(inverse);
                V::signed_bytes([part(0), part(1), part(2), part(3)]).xor(sign).to_slice(words);
            }
        } else {
            for (words, numbers) in words.chunks_exact_mut(V::LANES).zip(numbers.chunks_exact(2 * V::LANES)) {
                let part = |i: usize| V::from_slice(&numbers[i * V::LANES..][..V::LANES]).mul(inverse);
                V::signed_shorts(part(0), part(1)).to_slice(words);
            }
        }
        if !last_words.is_empty() {
            let part = |i: usize| V::from_slice(last_numbers.get(i * V::LANES..).unwrap_or_default()).mul(inverse);
            self.pack([part(0), part(1), part(2), part(3)]).xor(sign).to_slice(last_words);
        }
        rule.scale
    }
}

/// The greatest magnitude; NaN if an element is not a number.
#[inline(always)]
fn largest<V: Vector>(numbers: &[f32]) -> f32 {
    let mut most = [V::splat(0.0); 2];
    for pair in numbers.chunks(2 * V::LANES) {
        most[0] = most[0].max_magnitude(V::from_slice(pair));
        most[1] = most[1].max_magnitude(V::from_slice(pair.get(V::LANES..).unwrap_or_default()));
    }
    let mut lanes = [0.0_f32; MAX_LANES];
    most[0].max_magnitude(most[1]).to_slice(&mut lanes[..V::LANES]);
    f32::from_bits(lanes.into_iter().map(f32::to_bits).fold(0, u32::max))
}

/// The same of bf16 numbers as they are stored, whole vectors of pairs.
#[inline(always)]
fn largest_bf16<V: Vector>(bytes: &[u8]) -> f32 {
    let mut most = [V::splat(0.0); 2];
    for pairs in bytes.chunks_exact(4 * V::LANES) {
        // SAFETY: the chunk has as many bytes as a vector.
        let pairs = unsafe { V::load(pairs.as_ptr().cast()) };
        // The first number of a pair lies in the low bits of the second's f32: it decides between equals only.
        most = [most[0].max_magnitude(pairs), most[1].max_magnitude(pairs.low_bf16())];
    }
    let mut lanes = [0.0_f32; MAX_LANES];
    most[0].max_magnitude(most[1]).to_slice(&mut lanes[..V::LANES]);
    f32::from_bits(lanes.into_iter().map(|lane| lane.to_bits() & 0xffff_0000).fold(0, u32::max))
}
