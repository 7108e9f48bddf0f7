//! Linear layers in int8: `y = x·Wᵀ` by the rule of [`crate::int8`], then what follows.
//!
//! `x` is rounded and packed into strips once. A task takes some columns (rows of the weight) as panels ([`panels_int8`](super::panels_int8)),
//! made block by block in its second cache or kept in memory; all strips stream past them. Traffic: `x` once as f32 and once as
//! bytes for each task, the weight once in its own format, or as panels, for each 1536 rows of `x`, `y` once. 82 to 88 % of the
//! machine's peak at FLUX.1's shapes (`SPEED.md`).

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Simd, Vector, VectorSlice},
    byte_tile::{ByteTile, PER_PANEL},
    matmul::{Epilogue, Share, store},
    pack::{self, Joined, MAX_LANES, Strips},
    panels_int8::{KeptPanels, NextPanels, PackPanels, Words, blocks, pack_scratch},
    parallel::{Shared, with_scratch},
    terms::Terms,
    tile::MAX_ROWS,
};
use crate::{
    Term, Weight,
    int8::{Activation, BLOCK},
};

/// Rows of `x` of a task, about: what they have summed up (384 KiB) stays in the second cache.
const ROWS: usize = 1536;

/// What stands behind the packed words of a block of `x`, for each row: step, offset and start of the sums.
const RULES: usize = 3;

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
        let words = Words::new(self.simd);
        let kept = self.kept_panels(weight);
        let kept = kept.as_deref();
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
            let all_columns = columns.len().next_multiple_of(panel);
            let [mut panels, mut beside] =
                if terms.are_none() { [0; 2] } else { [terms.words() * all_columns, pack::columns_scratch()] };
            if kept.is_none() {
                panels = panels.max(all_columns / panel * (panel * words.of(BLOCK.min(k)) + PER_PANEL));
                beside = beside.max(pack_scratch(words));
            }
            let sums = rows * all_columns;
            with_scratch(panels + sums + beside, |scratch| {
                let (panels, scratch) = scratch.split_at_mut(panels);
                let (sums, scratch) = scratch.split_at_mut(sums);
                let operands = Operands { m, x, weight, kept, words, strips, terms: &terms };
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

/// Elements that `m` packed rows of `x` and their rules take.
pub(super) fn packed_len(m: usize, k: usize, simd: Simd) -> usize {
    let words = Words::new(simd);
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

/// What all tasks share.
#[derive(Clone, Copy)]
struct Operands<'a> {
    m: usize,
    /// Packed, with its rules.
    x: &'a [f32],
    weight: &'a Weight,
    kept: Option<&'a KeptPanels>,
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
        let Operands { m, x, weight, kept, words, strips, terms } = operands;
        let (width, k) = (weight.out_features(), weight.row_len());
        let panel = 2 * V::LANES;
        let all_columns = columns.len().next_multiple_of(panel);
        let (all_words, all_rules) = x.split_at(m * words.of(k));
        let first_row = strips.rows(own.start).start;
        for (index, block) in blocks(k).enumerate() {
            let len = words.of(block.len());
            let last = block.end == k;
            let panels = if let Some(kept) = kept {
                kept.of(columns.clone(), block.clone())
            } else {
                let stride = len * panel + PER_PANEL;
                let pack = PackPanels { weight, words, columns: columns.clone(), block: block.clone(), stride };
                pack.run::<V>(scratch, panels)
            };
            let mut ahead = if last {
                NextPanels::new(weight, kept, next.clone(), 0..BLOCK.min(k))
            } else {
                NextPanels::new(weight, kept, columns.clone(), block.end..(block.end + BLOCK).min(k))
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
                    let (b, scales) = panels.get(i);
                    let tile = ByteTile {
                        bytes: words.bytes,
                        words: len,
                        a: strip.as_ptr(),
                        rules: rules[rows.start..].as_ptr(),
                        tokens: m,
                        b: b.as_ptr(),
                        scales: scales.as_ptr(),
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
