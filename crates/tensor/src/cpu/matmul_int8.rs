//! Linear layers in int8: `y = x·Wᵀ` by the rule of [`crate::int8`], then what follows.
//!
//! `x` is rounded and packed into strips once. A task takes some columns (rows of the weight) and decodes, rounds and packs
//! them block by block into panels in its second cache; all strips stream past them. Weights stored as I8 are packed as they
//! lie. Traffic: `x` once as f32 and once as bytes for each task, the weight once in its own format for each 1536 rows of `x`,
//! `y` once. 82 to 88 % of the machine's peak at FLUX.1's shapes (`SPEED.md`).

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Simd, Vector, VectorSlice},
    byte_tile::{ByteTile, PER_PANEL, PanelSums},
    matmul::{Epilogue, Share, store},
    pack::{self, Ahead, Joined, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    terms::Terms,
    tile::MAX_ROWS,
};
use crate::{
    DType, StoredRow, Term, Weight,
    int8::{Activation, BLOCK, WeightScale},
};

/// Rows of `x` of a task, about: what they have summed up (384 KiB) stays in the second cache.
const ROWS: usize = 1536;

/// What stands behind the packed words of a block of `x`, for each row: step, offset and start of the sums.
const RULES: usize = 3;

/// How bytes are laid into words.
#[derive(Clone, Copy, Debug)]
struct Words {
    /// Four bytes, or two 16-bit numbers.
    bytes: bool,
}

impl Words {
    /// Elements in a word.
    #[inline(always)]
    fn per_word(self) -> usize {
        if self.bytes { 4 } else { 2 }
    }

    /// Words of `len` elements.
    #[inline(always)]
    fn of(self, len: usize) -> usize {
        len.div_ceil(self.per_word())
    }

    /// A vector of words.
    #[inline(always)]
    fn pack<V: Vector>(self, [a, b, c, d]: [V; 4]) -> V {
        if self.bytes { V::signed_bytes([a, b, c, d]) } else { V::signed_shorts(a, b) }
    }
}

/// The blocks of a sum of `len` elements.
#[inline(always)]
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len.div_ceil(BLOCK)).map(move |i| i * BLOCK..((i + 1) * BLOCK).min(len))
}

impl Cpu {
    /// `y [m, out] = epilogue(x [m, in] · weightᵀ + terms)`; terms are computed in their own precision.
    pub(super) fn multiply_int8(
        &self,
        m: usize,
        x: Joined<'_>,
        weight: &Weight,
        terms: &[Term<'_>],
        epilogue: Epilogue<'_>,
        y: Shared<'_>,
    ) {
        let (n, k) = (weight.out_features(), weight.row_len());
        let words = Words { bytes: self.simd.has_byte_products() };
        let strips = Strips::new(m, self.simd.tile_rows());
        let mut packed = self.buffer(packed_len(m, k, self.simd));
        let packed_x = Shared::new(packed.values_mut());
        self.threads.for_each(strips.count(), m * k, |strip| {
            let rows = strips.rows(strip);
            with_scratch(words.of(BLOCK) * rows.len() + BLOCK, |scratch| {
                self.simd.run(PackRows { x, k, m, words, rows, scratch, to: packed_x });
            });
        });
        let x = packed.values();
        let terms = Terms::pack(self, terms, m, strips);

        let panel = 2 * self.simd.lanes();
        let division = self.divide(m, n, strips, ROWS);
        self.threads.for_each(division.tasks(), m * n * (k + 1), |task| {
            let Share { own, rows, columns, next } = division.share(task);
            let panels = columns.len().div_ceil(panel) * (panel * words.of(BLOCK.min(k)) + PER_PANEL);
            let all_columns = columns.len().next_multiple_of(panel);
            let panels = panels.max(terms.words() * all_columns);
            let sums = rows * all_columns;
            let beside = if terms.are_none() { 0 } else { pack::columns_scratch() };
            with_scratch(panels + sums + beside.max(pack_scratch(words)), |scratch| {
                let (panels, scratch) = scratch.split_at_mut(panels);
                let (sums, scratch) = scratch.split_at_mut(sums);
                let operands = Operands { m, x, weight, words, strips, terms: &terms };
                self.simd.run(Task { operands, own, columns, next, panels, sums, scratch, y, epilogue });
            });
        });
    }
}

/// The least and the greatest of some numbers, and 0, or NaN if one is not finite.
#[inline(always)]
fn range<V: Vector>(numbers: &[f32]) -> [f32; 3] {
    // Several chains, because each instruction waits for the one before.
    const CHAINS: usize = 4;
    let mut lows = [V::splat(numbers[0]); CHAINS];
    let mut highs = lows;
    let mut wrongs = [V::splat(0.0); CHAINS];
    let whole = numbers.len() - numbers.len() % (CHAINS * V::LANES);
    for numbers in numbers[..whole].chunks_exact(CHAINS * V::LANES) {
        for i in 0..CHAINS {
            let v = V::from_slice(&numbers[i * V::LANES..][..V::LANES]);
            lows[i] = lows[i].min(v);
            highs[i] = highs[i].max(v);
            wrongs[i] = v.mul_add(V::splat(0.0), wrongs[i]);
        }
    }
    let [mut low, mut high, mut wrong] = [numbers[0], numbers[0], 0.0];
    for i in 0..CHAINS {
        let [mut least, mut greatest] = [[0.0; MAX_LANES]; 2];
        lows[i].to_slice(&mut least[..V::LANES]);
        highs[i].to_slice(&mut greatest[..V::LANES]);
        for lane in 0..V::LANES {
            low = low.min(least[lane]);
            high = high.max(greatest[lane]);
        }
        wrong += wrongs[i].sum();
    }
    for &v in &numbers[whole..] {
        low = low.min(v);
        high = high.max(v);
        wrong += 0.0 * v;
    }
    [low, high, wrong]
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

/// Elements that `m` packed rows of `x` and their rules take.
pub(super) fn packed_len(m: usize, k: usize, simd: Simd) -> usize {
    let words = Words { bytes: simd.has_byte_products() };
    m * (words.of(k) + RULES * k.div_ceil(BLOCK))
}

/// Rounds and packs one strip of `x`: its words, block by block, `[block][strip][word][row]`, then the rules,
/// `[block][rule][row]`.
struct PackRows<'a> {
    x: Joined<'a>,
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
        let (spare, scratch) = scratch.split_at_mut(BLOCK);
        for (index, block) in blocks(k).enumerate() {
            let len = words.of(block.len());
            let rules = m * (words.of(k) + RULES * index) + rows.start;
            let mut at = [std::ptr::null(); MAX_ROWS];
            let packed = scratch.chunks_exact_mut(words.of(BLOCK));
            for ((row, at), packed) in at[..rows.len()].iter_mut().enumerate().zip(packed) {
                let numbers = x.elements(rows.start + row, block.clone(), spare);
                let [low, high, wrong] = range::<V>(numbers);
                let rule = Activation::new(low, high, wrong);
                let sum = words.activations::<V>(rule, numbers, &mut packed[..len]);
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

impl Words {
    /// The words of a block of activations, the last filled up with zeros; gives the sum of the integers.
    #[inline(always)]
    fn activations<V: Vector>(self, rule: Activation, numbers: &[f32], words: &mut [f32]) -> f32 {
        let [low, inverse, half] = [rule.low, rule.inverse, 128.0].map(V::splat);
        let per_vector = self.per_word() * V::LANES;
        let whole = numbers.len() / per_vector;
        let (body, tail) = numbers.split_at(whole * per_vector);
        let mut sums = [V::splat(0.0); 4];
        for (words, numbers) in words.chunks_exact_mut(V::LANES).zip(body.chunks_exact(per_vector)) {
            let mut parts = [V::splat(0.0); 4];
            for (i, numbers) in numbers.chunks_exact(V::LANES).enumerate() {
                parts[i] = V::from_slice(numbers).sub(low).mul(inverse).round().sub(half);
                sums[i] = sums[i].add(parts[i]);
            }
            self.pack(parts).to_slice(words);
        }
        let mut sum: f32 = sums.map(V::sum).iter().sum();
        if !tail.is_empty() {
            let mut integers = [0.0; 4 * MAX_LANES];
            for (q, x) in integers.iter_mut().zip(tail) {
                *q = ((x - rule.low) * rule.inverse).round_ties_even() - 128.0;
                sum += *q;
            }
            let part = |i: usize| V::from_slice(&integers[i * V::LANES..][..V::LANES]);
            self.pack([part(0), part(1), part(2), part(3)]).to_slice(&mut words[whole * V::LANES..]);
        }
        sum
    }
}

/// Room that [`PackPanels`] needs beside its result: one decoded row, a row of zeros, the words of one vector of columns.
fn pack_scratch(words: Words) -> usize {
    BLOCK + (MAX_LANES + 1) * words.of(BLOCK)
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
        // Two rows ahead.
        let mut near = Ahead::new(weight, columns.clone(), block.clone());
        near.fetch::<V, true>(2);
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

/// What all tasks share.
#[derive(Clone, Copy)]
struct Operands<'a> {
    m: usize,
    /// Packed, with its rules.
    x: &'a [f32],
    weight: &'a Weight,
    words: Words,
    strips: Strips,
    terms: &'a Terms<'a>,
}

/// One task: some columns for some strips.
struct Task<'a> {
    operands: Operands<'a>,
    own: Range<usize>,
    columns: Range<usize>,
    /// The columns of the task after this one.
    next: Range<usize>,
    panels: &'a mut [f32],
    /// The result so far: `[strip][panel][row][column]`.
    sums: &'a mut [f32],
    scratch: &'a mut [f32],
    y: Shared<'a>,
    epilogue: Epilogue<'a>,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { operands, own, columns, next, panels, sums, scratch, y, epilogue } = self;
        let Operands { m, x, weight, words, strips, terms } = operands;
        let (width, k) = (weight.out_features(), weight.row_len());
        let panel = 2 * V::LANES;
        let all_columns = columns.len().next_multiple_of(panel);
        let (all_words, all_rules) = x.split_at(m * words.of(k));
        let first_row = strips.rows(own.start).start;
        for (index, block) in blocks(k).enumerate() {
            let len = words.of(block.len());
            let last = block.end == k;
            PackPanels { weight, words, columns: columns.clone(), block: block.clone() }.run::<V>(scratch, panels);
            let (panel_words, scales) = panels.split_at(all_columns / panel * len * panel);
            let mut ahead = if last {
                Ahead::new(weight, next.clone(), 0..BLOCK.min(k))
            } else {
                Ahead::new(weight, columns.clone(), block.end..(block.end + BLOCK).min(k))
            };
            for strip in own.clone() {
                ahead.fetch_share::<V>(own.end - strip);
                let rows = strips.rows(strip);
                let strip = &all_words[m * words.of(block.start) + rows.start * len..][..rows.len() * len];
                let rules = &all_rules[RULES * m * index..][..RULES * m];
                let sums = &mut sums[(rows.start - first_row) * all_columns..][..rows.len() * all_columns];
                if last {
                    epilogue.fetch::<V>(y, rows.clone(), width, columns.clone());
                }
                for (i, sums) in sums.chunks_exact_mut(rows.len() * panel).enumerate() {
                    let tile = ByteTile {
                        bytes: words.bytes,
                        words: len,
                        a: strip.as_ptr(),
                        rules: rules[rows.start..].as_ptr(),
                        tokens: m,
                        b: panel_words[i * len * panel..][..len * panel].as_ptr(),
                        scales: scales[i * PER_PANEL..][..PER_PANEL].as_ptr(),
                        c: sums.as_mut_ptr(),
                        rows: rows.len(),
                        add: index > 0,
                    };
                    // SAFETY: strip and panel have `len` words, `sums` the tile's size; `words` is what the machine has.
                    unsafe { tile.run::<V>() };
                }
                if last && terms.are_none() {
                    store::<V>(sums, rows, columns.clone(), width, y, epilogue);
                }
            }
        }
        if !terms.are_none() {
            terms.finish::<V>(own, columns, [panels, sums, scratch], y, epilogue);
        }
    }
}
