//! Linear layers in int8: `y = x·Wᵀ` by the rule of [`crate::int8`], then what follows.
//!
//! `x` is rounded and packed into strips once. A task takes some columns (rows of the weight) and decodes, rounds and packs
//! them block by block into panels in its second cache; all strips stream past them. Weights stored as I8 are packed as they
//! lie. Traffic: `x` once as f32 and once as bytes for each task, the weight once in its own format, `y` once for each block
//! of 1024 elements.

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Simd, Vector, VectorSlice},
    byte_tile::{ByteTile, PER_PANEL, PanelSums},
    matmul::Epilogue,
    pack::{self, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    tile::MAX_ROWS,
};
use crate::{
    DType, StoredRow, Weight,
    int8::{Activation, BLOCK, WeightScale},
};

/// Columns of a task, at most.
const COLUMNS: usize = 64;

/// What stands behind the packed words of a block of `x`, for each row: step, offset and start of the sums.
const RULES: usize = 3;

/// How bytes are laid into words.
#[derive(Clone, Copy, Debug)]
struct Words {
    /// Four bytes, or two 16-bit numbers.
    bytes: bool,
}

impl Words {
    /// Words of `len` elements.
    #[inline(always)]
    fn of(self, len: usize) -> usize {
        len.div_ceil(if self.bytes { 4 } else { 2 })
    }

    /// Lays out integers; words that are not filled end in zeros.
    #[inline(always)]
    fn pack<V: Vector>(self, numbers: &[f32], words: &mut [f32]) {
        let per_vector = if self.bytes { 4 * V::LANES } else { 2 * V::LANES };
        for (words, numbers) in words.chunks_mut(V::LANES).zip(numbers.chunks(per_vector)) {
            let part = |i: usize| V::from_slice(numbers.get(i * V::LANES..).unwrap_or_default());
            let packed = if self.bytes {
                V::signed_bytes([part(0), part(1), part(2), part(3)])
            } else {
                V::signed_shorts(part(0), part(1))
            };
            packed.to_slice(words);
        }
    }
}

/// The blocks of a sum of `len` elements.
#[inline(always)]
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len.div_ceil(BLOCK)).map(move |i| i * BLOCK..((i + 1) * BLOCK).min(len))
}

impl Cpu {
    /// `y [m, out] = epilogue(x [m, in] · weightᵀ)`.
    pub(super) fn multiply_int8(&self, m: usize, x: &[f32], weight: &Weight, epilogue: Epilogue<'_>, y: Shared<'_>) {
        let (n, k) = (weight.out_features(), weight.row_len());
        let words = Words { bytes: self.simd.has_byte_products() };
        let strips = Strips::new(m, self.simd.tile_rows());
        let mut packed = self.buffer(packed_len(m, k, self.simd));
        let packed_x = Shared::new(packed.values_mut());
        self.threads.for_each(strips.count(), m * k, |strip| {
            let rows = strips.rows(strip);
            let x = &x[rows.start * k..rows.end * k];
            with_scratch(BLOCK + BLOCK * rows.len(), |scratch| {
                self.simd.run(PackRows { x, k, m, words, rows, scratch, to: packed_x });
            });
        });
        let x = packed.values();

        // Few columns and many threads: cut the rows, too.
        let panel = 2 * self.simd.lanes();
        let columns = n.div_ceil(4 * self.threads.count()).next_multiple_of(panel).min(COLUMNS);
        let column_tasks = n.div_ceil(columns);
        let row_tasks = (2 * self.threads.count()).div_ceil(column_tasks).min(strips.count());
        self.threads.for_each(column_tasks * row_tasks, m * n * (k + 1), |task| {
            let (column_task, row_task) = (task / row_tasks, task % row_tasks);
            let columns = column_task * columns..((column_task + 1) * columns).min(n);
            let own = row_task * strips.count() / row_tasks..(row_task + 1) * strips.count() / row_tasks;
            let panels = columns.len().div_ceil(panel) * (panel * words.of(BLOCK.min(k)) + PER_PANEL);
            with_scratch(panels + pack_scratch(words), |scratch| {
                let (panels, scratch) = scratch.split_at_mut(panels);
                self.simd.run(Task { m, x, weight, words, strips, own, columns, panels, scratch, y, epilogue });
            });
        });
    }
}

/// The least and the greatest of some numbers, and 0, or NaN if one is not finite.
#[inline(always)]
fn range<V: Vector>(numbers: &[f32]) -> [f32; 3] {
    let first = V::splat(numbers[0]);
    let [mut low, mut high, mut wrong] = [first, first, V::splat(0.0)];
    let whole = numbers.len() - numbers.len() % V::LANES;
    for numbers in numbers[..whole].chunks_exact(V::LANES) {
        let v = V::from_slice(numbers);
        low = low.min(v);
        high = high.max(v);
        wrong = v.mul_add(V::splat(0.0), wrong);
    }
    let [mut least, mut greatest] = [numbers[0]; 2];
    let [mut lows, mut highs] = [[0.0; MAX_LANES]; 2];
    low.to_slice(&mut lows[..V::LANES]);
    high.to_slice(&mut highs[..V::LANES]);
    let mut wrong = wrong.sum();
    for i in 0..V::LANES {
        least = least.min(lows[i]);
        greatest = greatest.max(highs[i]);
    }
    for &v in &numbers[whole..] {
        least = least.min(v);
        greatest = greatest.max(v);
        wrong += 0.0 * v;
    }
    [least, greatest, wrong]
}

/// Elements that `m` packed rows of `x` and their rules take.
pub(super) fn packed_len(m: usize, k: usize, simd: Simd) -> usize {
    let words = Words { bytes: simd.has_byte_products() };
    m * (words.of(k) + RULES * k.div_ceil(BLOCK))
}

/// Rounds and packs one strip of `x`: its words, block by block, `[block][strip][word][row]`, then the rules,
/// `[block][rule][row]`.
struct PackRows<'a> {
    x: &'a [f32],
    k: usize,
    m: usize,
    words: Words,
    rows: Range<usize>,
    scratch: &'a mut [f32],
    to: Shared<'a>,
}

impl Kernel for PackRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { x, k, m, words, rows, scratch, to } = self;
        let (integers, packed) = scratch.split_at_mut(BLOCK);
        for (index, block) in blocks(k).enumerate() {
            let len = words.of(block.len());
            let rules = m * (words.of(k) + RULES * index) + rows.start;
            let mut at = [std::ptr::null(); MAX_ROWS];
            for ((row, at), packed) in at[..rows.len()].iter_mut().enumerate().zip(packed.chunks_exact_mut(BLOCK)) {
                let numbers = &x[row * k..][block.clone()];
                let [low, high, wrong] = range::<V>(numbers);
                let rule = Activation::new(low, high, wrong);
                let integers = &mut integers[..numbers.len()];
                let mut sum = V::splat(0.0);
                let [low, inverse, half] = [rule.low, rule.inverse, 128.0].map(V::splat);
                let whole = numbers.len() - numbers.len() % V::LANES;
                let (body, tail) = integers.split_at_mut(whole);
                for (q, x) in body.chunks_exact_mut(V::LANES).zip(numbers.chunks_exact(V::LANES)) {
                    let rounded = V::from_slice(x).sub(low).mul(inverse).round().sub(half);
                    sum = sum.add(rounded);
                    rounded.to_slice(q);
                }
                let mut sum = sum.sum();
                for (q, x) in tail.iter_mut().zip(&numbers[whole..]) {
                    *q = ((x - rule.low) * rule.inverse).round_ties_even() - 128.0;
                    sum += *q;
                }
                let packed = &mut packed[..len];
                words.pack::<V>(integers, packed);
                *at = packed.as_ptr();
                let start = if words.bytes { -128 * sum as i32 } else { 0 };
                for (i, value) in [rule.step, rule.offset, f32::from_bits(start as u32)].into_iter().enumerate() {
                    // SAFETY: each row has its own places.
                    unsafe { to.at(rules + row + i * m).write(value) };
                }
            }
            let start = m * words.of(block.start) + rows.start * len;
            // SAFETY: each strip has its own place in each block.
            let to = unsafe { to.slice(start..start + rows.len() * len) };
            // SAFETY: every row has `len` words, and `to` has room for them.
            unsafe { pack::pack_strip::<V>(&at[..rows.len()], len, to.as_mut_ptr()) };
        }
    }
}

/// Room that [`PackPanels`] needs beside its result: the words of one vector of columns, and one decoded row.
fn pack_scratch(words: Words) -> usize {
    (MAX_LANES + 1) * words.of(BLOCK) + BLOCK
}

/// Decodes, rounds and packs the block `block` of a weight's rows `columns`: `[panel][word][column]`, then [`PER_PANEL`]
/// numbers for each panel.
struct PackPanels<'a> {
    weight: &'a Weight,
    words: Words,
    columns: Range<usize>,
    block: Range<usize>,
}

impl PackPanels<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, scratch: &mut [f32], to: &mut [f32]) {
        let Self { weight, words, ref columns, ref block } = *self;
        let len = words.of(block.len());
        let (decoded, scratch) = scratch.split_at_mut(BLOCK);
        let (zeros, rows) = scratch.split_at_mut(words.of(BLOCK));
        zeros[..len].fill(0.0);
        let mut stored = weight.stored_rows(columns.start);
        let panels = columns.len().div_ceil(2 * V::LANES);
        let (panel_words, scales) = to.split_at_mut(panels * len * 2 * V::LANES);
        let panel_words = panel_words.chunks_exact_mut(len * 2 * V::LANES);
        for (panel, (to, scales)) in panel_words.zip(scales.chunks_exact_mut(PER_PANEL)).enumerate() {
            for half in 0..2 {
                let mut at = [zeros.as_ptr(); MAX_LANES];
                let missing = ((2 * panel + half) * V::LANES).min(columns.len());
                let present = (columns.len() - missing).min(V::LANES);
                let scales = &mut scales[half * V::LANES..][..V::LANES];
                scales[present..].fill(0.0);
                for ((at, row), scale) in
                    at[..present].iter_mut().zip(rows.chunks_exact_mut(words.of(BLOCK))).zip(scales)
                {
                    let Some(stored) = stored.next() else { unreachable!("the weight has all columns") };
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
    }
}

impl Words {
    /// The words of a block of a weight's row; gives its scale.
    #[inline(always)]
    fn weight_row<V: Vector>(
        self,
        stored: StoredRow<'_>,
        block: Range<usize>,
        decoded: &mut [f32],
        words: &mut [f32],
    ) -> f32 {
        let decoded = &mut decoded[..block.len()];
        let scale = if stored.dtype == DType::I8 {
            pack::decode::<V>(StoredRow { scale: 1.0, ..stored }, block.start, decoded);
            stored.scale
        } else {
            pack::decode::<V>(stored, block.start, decoded);
            let [low, high, wrong] = range::<V>(decoded);
            let rule = WeightScale::new(high.max(-low), wrong);
            let inverse = V::splat(rule.inverse);
            for p in decoded.chunks_mut(V::LANES) {
                V::from_slice(p).mul(inverse).round().to_slice(p);
            }
            rule.scale
        };
        self.pack::<V>(decoded, words);
        if self.bytes {
            let sign = V::splat(f32::from_bits(0x8080_8080));
            for words in words.chunks_mut(V::LANES) {
                V::from_slice(words).xor(sign).to_slice(words);
            }
        }
        scale
    }
}

/// One task: some columns for some strips.
struct Task<'a> {
    m: usize,
    x: &'a [f32],
    weight: &'a Weight,
    words: Words,
    strips: Strips,
    own: Range<usize>,
    columns: Range<usize>,
    panels: &'a mut [f32],
    scratch: &'a mut [f32],
    y: Shared<'a>,
    epilogue: Epilogue<'a>,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { m, x, weight, words, strips, own, columns, panels, scratch, y, epilogue } = self;
        let (width, k) = (weight.out_features(), weight.row_len());
        let panel = 2 * V::LANES;
        let (all_words, all_rules) = x.split_at(m * words.of(k));
        for (index, block) in blocks(k).enumerate() {
            let len = words.of(block.len());
            let last = block.end == k;
            PackPanels { weight, words, columns: columns.clone(), block: block.clone() }.run::<V>(scratch, panels);
            let (panel_words, scales) = panels.split_at(columns.len().div_ceil(panel) * len * panel);
            for strip in own.clone() {
                let rows = strips.rows(strip);
                let strip = &all_words[m * words.of(block.start) + rows.start * len..][..rows.len() * len];
                let rules = &all_rules[RULES * m * index..][..RULES * m];
                for (i, first) in columns.clone().step_by(panel).enumerate() {
                    let tile = ByteTile {
                        bytes: words.bytes,
                        words: len,
                        a: strip.as_ptr(),
                        rules: rules[rows.start..].as_ptr(),
                        tokens: m,
                        b: panel_words[i * len * panel..][..len * panel].as_ptr(),
                        scales: scales[i * PER_PANEL..][..PER_PANEL].as_ptr(),
                        c: y.at(rows.start * width + first),
                        c_step: width,
                        rows: rows.len(),
                        columns: (columns.end - first).min(panel),
                        add: index > 0,
                    };
                    // SAFETY: strip and panel have `len` words; the task alone has these rows and columns of y; `words` is
                    // what the machine has.
                    unsafe { tile.run::<V>() };
                }
                if last {
                    for row in rows {
                        // SAFETY: the task alone has these rows and columns of y.
                        let y = unsafe { y.slice(row * width + columns.start..row * width + columns.end) };
                        epilogue.finish::<V>(y, row, width, columns.clone());
                    }
                }
            }
        }
    }
}
