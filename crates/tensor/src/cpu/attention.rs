//! Attention without a matrix of scores (Dao et al., arXiv 2205.14135; Milakov and Gimelshein, arXiv 1805.02867).
//!
//! `y = softmax(scale · q·kᵀ + shift) · v` per head, `d` wide. Keys and values are packed once: keys as panels (lanes are keys),
//! values as panels of a block of keys (lanes are dimensions). A task takes strips of one head's queries; for each block of keys
//! it makes weights, tile by tile, while the scores are in registers, then adds their product with the values to its results. In
//! bf16 a word of weights is a pair of neighbouring keys: what rounding two vectors gives, without a shuffle.
//!
//! Traffic: q, k, v read once; packed keys and values once a task. Beside the products about 9 instructions for 16 scores, which
//! cost `d / 8` instructions in f32 and half of it in bf16. Measured shares of the peak are in `SPEED.md`.

use std::{f32::consts::LOG2_E, ops::Range};

use super::{
    Cpu,
    arch::{Kernel, Simd, Vector, VectorSlice},
    math, norm,
    pack::{self, Factors, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    rope,
};
use crate::{Precision, host::HostBuffer};

/// Words of weights in a row of a block: 256 keys in bf16, 128 in f32.
const BLOCK: usize = 128;

/// Words of queries, weights and results that a task keeps, about: half of a second cache.
const TASK: usize = 1 << 17;

/// Stands for −∞ where a key is hidden.
const UNSEEN: f32 = -1e30;

/// How far above `m` a score may be: 2⁶⁰ times a million keys is still far from the largest f32.
///
/// A row's weights are `2^(s − m)`, `s` in units of log₂ (`scale · log₂e` is multiplied into q before it is rounded) and `m` an
/// *integer*: the largest score of the first keys, rounded up, and raised only for a score that is more than this above it. As
/// `m` is an integer, a weight's rounding to bf16 depends neither on it nor, then, on the order of keys. A row is divided by the
/// sum of its *rounded* weights, so that it stays a weighted mean and their common error cancels.
const HEADROOM: f32 = 60.0;

/// The most rows that a tile has on any machine.
const MAX_ROWS: usize = 12;

/// Which keys are seen, with what shifts their scores.
#[derive(Clone, Copy)]
pub(super) enum Seen<'a> {
    /// All.
    All,
    /// Query `i` sees keys `0..=i`.
    Causal,
    /// All, their scores shifted by `[heads, queries + keys − 1]`: element `key − query + queries − 1`.
    Shifted(&'a [f32]),
    /// All, their scores shifted by `[keys]`, the same for every query.
    Keys(&'a [f32]),
}

/// Where the heads of all tokens are: those of each stream, one stream after the other.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) streams: &'a [HeadRows<'a>],
    /// If heads are normed and rotated first: angles `[tokens, d]` and the norm's epsilon.
    pub(super) rope: Option<(&'a [f32], f32)>,
}

/// Heads side by side in rows: `heads · d` of `columns`, from `start` on.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    pub(super) x: &'a [f32],
    pub(super) tokens: usize,
    pub(super) columns: usize,
    pub(super) start: usize,
    /// The norm's weight `[d]`, if there is one.
    pub(super) norm: &'a [f32],
}

impl<'a> Heads<'a> {
    /// One head of one token, and the weight of its norm.
    #[inline(always)]
    fn get(&self, token: usize, head: usize, d: usize) -> (&'a [f32], &'a [f32]) {
        let mut token = token;
        for stream in self.streams {
            if token < stream.tokens {
                return (&stream.x[token * stream.columns + stream.start + head * d..][..d], stream.norm);
            }
            token -= stream.tokens;
        }
        unreachable!("the streams have all tokens")
    }

    /// The words of one head of one token, multiplied by `factor`.
    #[inline(always)]
    fn words<V: Vector>(
        &self,
        factors: Factors,
        [token, head]: [usize; 2],
        factor: f32,
        spare: &mut [f32],
        to: &mut [f32],
    ) {
        let d = spare.len();
        let (x, norm) = self.get(token, head, d);
        if let Some((angles, eps)) = self.rope {
            norm::rms_norm::<V>(x, norm, eps, spare);
            rope::rotate_in_place::<V>(spare, &angles[token * d..][..d]);
        } else {
            spare.copy_from_slice(x);
        }
        if factor != 1.0 {
            for lanes in spare.chunks_mut(V::LANES) {
                V::from_slice(lanes).mul(V::splat(factor)).to_slice(lanes);
            }
        }
        pack::to_words::<V>(factors, spare, to);
    }
}

/// Sizes.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    /// `d` filled up to whole panels.
    width: usize,
    /// Lanes of a panel.
    panel: usize,
    factors: Factors,
    /// Words of a head.
    words: usize,
}

impl Sizes {
    /// Panels of keys.
    fn panels(&self) -> usize {
        self.keys.div_ceil(self.panel)
    }

    /// Words that the weights of a panel of keys are.
    #[inline(always)]
    fn panel_words(&self) -> usize {
        self.panel / self.factors.per_word()
    }

    /// Panels of keys in a block.
    #[inline(always)]
    fn block_panels(&self) -> usize {
        BLOCK / self.panel_words()
    }

    /// The panels of block `block`.
    #[inline(always)]
    fn block(&self, block: usize) -> Range<usize> {
        let each = self.block_panels();
        block * each..((block + 1) * each).min(self.keys.div_ceil(self.panel))
    }

    fn new([queries, keys, heads, d]: [usize; 4], precision: Precision, simd: Simd) -> Self {
        let panel = 2 * simd.lanes();
        let factors = Factors::new(precision, simd);
        let width = d.next_multiple_of(panel);
        Self { queries, keys, heads, d, width, panel, factors, words: factors.words(d) }
    }

    /// Words of a head's packed keys `[panel][word][key]`, and of its values `[block][panel of d][word][lane]`.
    fn packed(&self) -> [usize; 2] {
        [self.panels() * self.words * self.panel, self.panels() * self.panel_words() * self.width]
    }
}

/// Words that the keys and values of all heads take when they are packed.
pub(super) fn packed_len([keys, heads, d]: [usize; 3], precision: Precision, simd: Simd) -> usize {
    heads * Sizes::new([0, keys, heads, d], precision, simd).packed().iter().sum::<usize>()
}

impl Cpu {
    /// `softmax(scale · q·kᵀ + shift) · v` per head → `[queries, heads · d]`.
    pub(super) fn attend(
        &self,
        [q, k, v]: [Heads<'_>; 3],
        [queries, keys, heads, d]: [usize; 4],
        scale: f32,
        seen: Seen<'_>,
        precision: Precision,
    ) -> HostBuffer {
        let mut y = self.buffer(queries * heads * d);
        if y.values().is_empty() {
            return y;
        }
        let sizes = Sizes::new([queries, keys, heads, d], precision, self.simd);
        let Sizes { width, .. } = sizes;
        let [keys_len, values_len] = sizes.packed();
        let mut packed = self.buffer(heads * (keys_len + values_len));
        let to = Shared::new(packed.values_mut());
        self.threads.for_each(sizes.panels(), 8 * heads * keys * d, |index| {
            with_scratch((MAX_LANES + 1) * sizes.words + d, |scratch| {
                self.simd.run(PackKeys { sizes, k, v, index, scratch, to });
            });
        });
        let packed = packed.values();

        let rows = self.simd.tile_rows();
        let strips = Strips::new(queries, rows);
        let fair = (strips.count() * heads).div_ceil(4 * self.threads.count());
        let per_task = (TASK / (rows * (sizes.words + BLOCK + width))).min(fair).clamp(1, strips.count());
        let groups = strips.count().div_ceil(per_task);
        let y_rows = Shared::new(y.values_mut());
        self.threads.for_each(heads * groups, queries * keys * heads * d, |task| {
            let (head, group) = (task / groups, task % groups);
            let own = group * strips.count() / groups..(group + 1) * strips.count() / groups;
            let layout = Layout { sizes, rows: strips.rows(own.end - 1).end - strips.rows(own.start).start };
            with_scratch(layout.sizes().iter().sum(), |scratch| {
                let [keys, values] = packed[head * (keys_len + values_len)..].split_at(keys_len).into();
                self.simd.run(Group { layout, q, scale, seen, head, strips, own, keys, values, scratch, y: y_rows });
            });
        });
        y
    }
}

/// Packs one panel of keys, and their values, of all heads: a token's heads lie beside each other.
struct PackKeys<'a> {
    sizes: Sizes,
    k: Heads<'a>,
    v: Heads<'a>,
    index: usize,
    scratch: &'a mut [f32],
    to: Shared<'a>,
}

impl Kernel for PackKeys<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { sizes, k, v, index, scratch, to } = self;
        let Sizes { keys, heads, d, width, panel, factors, words, .. } = sizes;
        let [keys_len, values_len] = sizes.packed();
        let (zeros, scratch) = scratch.split_at_mut(words);
        let (rows, spare) = scratch.split_at_mut(MAX_LANES * words);
        zeros.fill(0.0);
        let block = sizes.block(index / sizes.block_panels());
        let block_words = block.len() * sizes.panel_words();
        for head in 0..heads {
            let start = head * (keys_len + values_len);
            let at_panel = start + index * words * panel;
            // SAFETY: each panel belongs to one task.
            let packed = unsafe { to.slice(at_panel..at_panel + words * panel) };
            for half in 0..2 {
                let first = index * panel + half * V::LANES;
                let mut at = [zeros.as_ptr(); MAX_LANES];
                for (lane, at) in at[..V::LANES].iter_mut().enumerate().take(keys.saturating_sub(first)) {
                    let row = &mut rows[lane * words..][..words];
                    k.words::<V>(factors, [first + lane, head], 1.0, &mut spare[..d], row);
                    *at = row.as_ptr();
                }
                // SAFETY: every row has `words` words, the panel has room for as many rows of two vectors.
                unsafe {
                    let packed = packed.as_mut_ptr().add(half * V::LANES);
                    pack::transpose::<V>(&at[..V::LANES], words, packed, panel);
                }
            }

            let at_block = start + keys_len + block.start * sizes.panel_words() * width;
            for word in 0..sizes.panel_words() {
                let key = index * panel + word * factors.per_word();
                let value = |key: usize| if key < keys { v.get(key, head, d).0 } else { &[] };
                let [first, second] = [value(key), value(key + 1)];
                let word = (index - block.start) * sizes.panel_words() + word;
                for column in (0..width).step_by(V::LANES) {
                    let a = V::from_slice(first.get(column..).unwrap_or_default());
                    let lanes = match factors {
                        Factors::F32 => a,
                        Factors::RoundedF32 => a.round_to_bf16(),
                        Factors::Bf16Pairs => V::zip_bf16(a, V::from_slice(second.get(column..).unwrap_or_default())),
                    };
                    let at = at_block + (column / panel * block_words + word) * panel + column % panel;
                    // SAFETY: each panel's words belong to one task.
                    lanes.to_slice(unsafe { to.slice(at..at + V::LANES) });
                }
            }
        }
    }
}

/// What a task keeps in its scratch memory.
#[derive(Clone, Copy)]
struct Layout {
    sizes: Sizes,
    /// Queries of the task.
    rows: usize,
}

impl Layout {
    /// Strips of queries `[word][row]`; weights `[row][BLOCK]`; results `[row][width]`; the integer `m` of each row; sums
    /// `[row][lane]`; shifts of a tile's scores; words of a strip's rows; one head.
    fn sizes(self) -> [usize; 8] {
        let Self { sizes: Sizes { d, width, panel, words, .. }, rows } = self;
        [rows * words, rows * BLOCK, rows * width, rows, rows * MAX_LANES, MAX_ROWS * panel, MAX_ROWS * words, d]
    }
}

/// One task: some strips of one head's queries.
struct Group<'a> {
    layout: Layout,
    q: Heads<'a>,
    scale: f32,
    seen: Seen<'a>,
    head: usize,
    strips: Strips,
    own: Range<usize>,
    keys: &'a [f32],
    values: &'a [f32],
    scratch: &'a mut [f32],
    y: Shared<'a>,
}

impl Kernel for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { layout, q, scale, seen, head, strips, own, keys, values, scratch, y } = self;
        let sizes = layout.sizes;
        let Sizes { queries, heads, d, width, panel, factors, words, .. } = sizes;
        let [q_len, weights_len, results_len, tops_len, sums_len, shift_len, rows_len, _] = layout.sizes();
        let (q_strips, scratch) = scratch.split_at_mut(q_len);
        let (weights, scratch) = scratch.split_at_mut(weights_len);
        let (results, scratch) = scratch.split_at_mut(results_len);
        let (tops, scratch) = scratch.split_at_mut(tops_len);
        let (sums, scratch) = scratch.split_at_mut(sums_len);
        let (shifts, scratch) = scratch.split_at_mut(shift_len);
        let (rows_of_words, spare) = scratch.split_at_mut(rows_len);
        let first = strips.rows(own.start).start;
        let end = strips.rows(own.end - 1).end;

        for strip in own.clone() {
            let rows = strips.rows(strip);
            let mut at = [std::ptr::null(); MAX_LANES];
            for ((query, to), at) in rows.clone().zip(rows_of_words.chunks_exact_mut(words)).zip(&mut at) {
                q.words::<V>(factors, [query, head], scale * LOG2_E, &mut spare[..d], to);
                *at = to.as_ptr();
            }
            let to = &mut q_strips[(rows.start - first) * words..(rows.end - first) * words];
            // SAFETY: every row has `words` words, and `to` has room for them.
            unsafe { pack::pack_strip::<V>(&at[..rows.len()], words, to.as_mut_ptr()) };
        }
        sums.fill(0.0);

        for block in 0..sizes.panels().div_ceil(sizes.block_panels()) {
            let panels = sizes.block(block);
            if matches!(seen, Seen::Causal) && panels.start * panel >= end {
                break;
            }
            for index in panels.clone() {
                for strip in own.clone() {
                    let rows = strips.rows(strip);
                    let at = rows.start - first;
                    let shift = shift::<V>(seen, &sizes, head, rows.clone(), index, shifts);
                    V::call(Scores {
                        factors,
                        words,
                        rows: rows.len(),
                        q: q_strips[at * words..(at + rows.len()) * words].as_ptr(),
                        k: keys[index * words * panel..(index + 1) * words * panel].as_ptr(),
                        shift,
                        first: index == 0,
                        done: (index - panels.start) * sizes.panel_words(),
                        weights: weights[at * BLOCK..(at + rows.len()) * BLOCK].as_mut_ptr(),
                        results: results[at * width..(at + rows.len()) * width].as_mut_ptr(),
                        width,
                        tops: tops[at..at + rows.len()].as_mut_ptr(),
                        sums: sums[at * V::LANES..(at + rows.len()) * V::LANES].as_mut_ptr(),
                    });
                }
            }
            let block_words = panels.len() * sizes.panel_words();
            let values = &values[panels.start * sizes.panel_words() * width..][..block_words * width];
            for (column, values) in values.chunks_exact(block_words * panel).enumerate() {
                for strip in own.clone() {
                    let rows = strips.rows(strip);
                    let at = rows.start - first;
                    V::call(Mix {
                        pairs: factors == Factors::Bf16Pairs,
                        words: block_words,
                        rows: rows.len(),
                        weights: weights[at * BLOCK..(at + rows.len()) * BLOCK].as_ptr(),
                        values: values.as_ptr(),
                        add: block > 0,
                        results: results[at * width..(at + rows.len()) * width][column * panel..].as_mut_ptr(),
                        width,
                    });
                }
            }
        }

        for (i, query) in (first..end.min(queries)).enumerate() {
            let factor = V::splat(1.0 / V::from_slice(&sums[i * V::LANES..]).sum());
            let start = (query * heads + head) * d;
            // SAFETY: the task alone has these queries of this head.
            let y = unsafe { y.slice(start..start + d) };
            for (y, result) in y.chunks_mut(V::LANES).zip(results[i * width..].chunks(V::LANES)) {
                V::from_slice(result).mul(factor).to_slice(y);
            }
        }
    }
}

/// What is added to a tile's scores: rows of a panel's width, `step` apart.
#[derive(Clone, Copy)]
struct Shift {
    at: *const f32,
    step: isize,
}

/// The shift of the scores of `rows` and the panel `index`, if it has one: as it lies, one element further back for each row or
/// the same for all, or made in `room`.
#[inline(always)]
fn shift<V: Vector>(
    seen: Seen<'_>,
    sizes: &Sizes,
    head: usize,
    rows: Range<usize>,
    index: usize,
    room: &mut [f32],
) -> Option<Shift> {
    let Sizes { queries, keys, panel, .. } = *sizes;
    let first = index * panel;
    let whole = first + panel <= keys;
    let shifts_of = |row: usize, key: usize| head * (queries + keys - 1) + key + queries - 1 - row;
    match seen {
        Seen::All if whole => return None,
        Seen::Causal if whole && first + panel <= rows.start + 1 => return None,
        Seen::Shifted(shifts) if whole => {
            let last_row = &shifts[shifts_of(rows.end - 1, first)..][..rows.len() - 1 + panel];
            return Some(Shift { at: last_row[rows.len() - 1..].as_ptr(), step: -1 });
        }
        Seen::Keys(shifts) if whole => {
            return Some(Shift { at: shifts[first..first + panel].as_ptr(), step: 0 });
        }
        _ => {}
    }
    for (row, to) in rows.zip(room.chunks_exact_mut(panel)) {
        let seen_keys = match seen {
            Seen::Causal => keys.min(row + 1),
            _ => keys,
        };
        let visible = seen_keys.saturating_sub(first).min(panel);
        match seen {
            Seen::Shifted(shifts) => to[..visible].copy_from_slice(&shifts[shifts_of(row, first)..][..visible]),
            Seen::Keys(shifts) => to[..visible].copy_from_slice(&shifts[first..][..visible]),
            Seen::All | Seen::Causal => to[..visible].fill(0.0),
        }
        to[visible..].fill(UNSEEN);
    }
    Some(Shift { at: room.as_ptr(), step: panel as isize })
}

/// Makes the number of rows a constant.
macro_rules! with_rows {
    ($tile:expr, $rows:expr, $pairs:literal) => {
        match $rows {
            1 => $tile.compute::<V, $pairs, 1>(),
            2 => $tile.compute::<V, $pairs, 2>(),
            3 => $tile.compute::<V, $pairs, 3>(),
            4 => $tile.compute::<V, $pairs, 4>(),
            5 => $tile.compute::<V, $pairs, 5>(),
            6 => $tile.compute::<V, $pairs, 6>(),
            7 => $tile.compute::<V, $pairs, 7>(),
            8 => $tile.compute::<V, $pairs, 8>(),
            9 => $tile.compute::<V, $pairs, 9>(),
            10 => $tile.compute::<V, $pairs, 10>(),
            11 => $tile.compute::<V, $pairs, 11>(),
            _ => $tile.compute::<V, $pairs, 12>(),
        }
    };
}

/// Repeats a body for rows `0..R`. The compiler does not unroll a loop as long as that, and what a loop indexes lies in memory.
macro_rules! for_rows {
    ($count:ident, $row:ident => $body:block) => {
        for_rows!($count, $row => $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($count:ident, $row:ident => $body:block, $($index:literal)*) => {
        $(
            if $index < $count {
                let $row = if $index < $count { $index } else { 0 };
                $body
            }
        )*
    };
}

/// One product in every lane.
#[inline(always)]
fn multiply<V: Vector, const PAIRS: bool>(a: V, b: V, sum: V) -> V {
    if PAIRS { sum.add_pair_products(a, b) } else { a.mul_add(b, sum) }
}

/// Weights of a strip's rows and a panel's keys. All pointers are to `rows` rows.
struct Scores {
    factors: Factors,
    words: usize,
    rows: usize,
    /// The strip, `[word][row]`.
    q: *const f32,
    /// The panel, `[word][key]`.
    k: *const f32,
    shift: Option<Shift>,
    /// Whether these are the first keys.
    first: bool,
    /// Words of the block's weights that exist already.
    done: usize,
    /// `[row][BLOCK]`.
    weights: *mut f32,
    /// `[row][width]`, of the blocks before.
    results: *mut f32,
    width: usize,
    /// Each row's `m`.
    tops: *mut f32,
    /// `[row][lane]`.
    sums: *mut f32,
}

impl Kernel for Scores {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `Group` has put whole strips and panels here, and has them alone.
        unsafe {
            if V::HAS_PAIRS && self.factors == Factors::Bf16Pairs {
                with_rows!(self, self.rows, true);
            } else {
                with_rows!(self, self.rows, false);
            }
        }
    }
}

impl Scores {
    /// # Safety
    /// All pointers are to `R` rows; of `words` words, a panel's keys, a block's weights from `done` on and a vector of sums.
    #[inline(always)]
    unsafe fn compute<V: Vector, const PAIRS: bool, const R: usize>(self) {
        if R > V::TILE_ROWS {
            return;
        }
        let panel = 2 * V::LANES;
        let Self { words, mut q, mut k, tops, .. } = self;
        let mut scores = [[V::splat(0.0); 2]; R];
        // SAFETY: all indices are within what the caller promises.
        unsafe {
            for _ in 0..words {
                let [k0, k1] = [V::load(k), V::load(k.add(V::LANES))];
                for_rows!(R, r => {
                    let factor = V::splat(q.add(r).read());
                    scores[r][0] = multiply::<V, PAIRS>(factor, k0, scores[r][0]);
                    scores[r][1] = multiply::<V, PAIRS>(factor, k1, scores[r][1]);
                });
                q = q.add(R);
                k = k.add(panel);
            }
            if let Some(Shift { at, step }) = self.shift {
                let log2e = V::splat(LOG2_E);
                for_rows!(R, r => {
                    let at = at.offset(r as isize * step);
                    scores[r][0] = V::load(at).mul_add(log2e, scores[r][0]);
                    scores[r][1] = V::load(at.add(V::LANES)).mul_add(log2e, scores[r][1]);
                });
            }
            let mut above = V::splat(0.0);
            for_rows!(R, r => {
                above = above.max(scores[r][0].max(scores[r][1]).sub(V::splat(tops.add(r).read())));
            });
            if self.first || above.any_above(V::splat(HEADROOM)) {
                let mut all = [0.0; MAX_ROWS * 2 * MAX_LANES];
                for_rows!(R, r => {
                    scores[r][0].store(all.as_mut_ptr().add(r * panel));
                    scores[r][1].store(all.as_mut_ptr().add(r * panel + V::LANES));
                });
                self.raise(&all[..R * panel], V::LANES, PAIRS);
            }
            let [weights, sums] = [self.weights.add(self.done), self.sums];
            for_rows!(R, r => {
                let top = V::splat(tops.add(r).read());
                let first = math::exp2::<V, PAIRS>(scores[r][0].sub(top));
                let second = math::exp2::<V, PAIRS>(scores[r][1].sub(top));
                let [weights, sums] = [weights.add(r * BLOCK), sums.add(r * V::LANES)];
                if PAIRS {
                    let pairs = V::bf16_pairs(first, second);
                    pairs.store(weights);
                    // A pair of ones.
                    V::load(sums).add_pair_products(pairs, V::splat(f32::from_bits(0x3f80_3f80))).store(sums);
                } else {
                    let round = self.factors == Factors::RoundedF32;
                    let first = if round { first.round_to_bf16() } else { first };
                    let second = if round { second.round_to_bf16() } else { second };
                    first.store(weights);
                    second.store(weights.add(V::LANES));
                    V::load(sums).add(first.add(second)).store(sums);
                }
            });
        }
    }

    /// Sets or raises `m` of each row whose largest score needs it, and brings what is there to the same measure. `m` is an
    /// integer: a change is a power of two and costs no digits.
    ///
    /// # Safety
    /// As for [`Scores::compute`].
    #[cold]
    #[inline(never)]
    unsafe fn raise(&self, scores: &[f32], lanes: usize, pairs: bool) {
        for (r, scores) in scores.chunks_exact(2 * lanes).enumerate() {
            // SAFETY: the caller promises the rows.
            let [top, sums, results, weights] = unsafe {
                [
                    std::slice::from_raw_parts_mut(self.tops.add(r), 1),
                    std::slice::from_raw_parts_mut(self.sums.add(r * lanes), lanes),
                    std::slice::from_raw_parts_mut(self.results.add(r * self.width), self.width),
                    std::slice::from_raw_parts_mut(self.weights.add(r * BLOCK), self.done),
                ]
            };
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if self.first {
                top[0] = largest.ceil();
            } else if largest - top[0] > HEADROOM {
                let factor = (top[0] - largest.ceil()).exp2();
                top[0] = largest.ceil();
                sums.iter_mut().chain(results).for_each(|sum| *sum *= factor);
                for word in weights {
                    *word = if pairs {
                        let [low, high] = [word.to_bits() << 16, word.to_bits() & 0xffff_0000];
                        let [low, high] = [low, high].map(|bits| (f32::from_bits(bits) * factor).to_bits());
                        f32::from_bits(low >> 16 | high & 0xffff_0000)
                    } else {
                        *word * factor
                    };
                }
            }
        }
    }
}

/// `results += weights · values` for a strip's rows and a panel of a head's dimensions. All pointers are to `rows` rows.
struct Mix {
    pairs: bool,
    words: usize,
    rows: usize,
    /// `[row][BLOCK]`.
    weights: *const f32,
    /// The panel, `[word][lane]`.
    values: *const f32,
    /// Whether there are results to be added to.
    add: bool,
    /// A panel's lanes of rows that are `width` apart.
    results: *mut f32,
    width: usize,
}

impl Kernel for Mix {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `Group` has put whole rows of a block and a whole panel here, and has the results alone.
        unsafe {
            if V::HAS_PAIRS && self.pairs {
                with_rows!(self, self.rows, true);
            } else {
                with_rows!(self, self.rows, false);
            }
        }
    }
}

impl Mix {
    /// # Safety
    /// There are `R` rows of weights and results, the former and `values` of `words` words.
    #[inline(always)]
    unsafe fn compute<V: Vector, const PAIRS: bool, const R: usize>(self) {
        if R > V::TILE_ROWS {
            return;
        }
        let Self { words, mut weights, mut values, add, results, width, .. } = self;
        // SAFETY: all indices are within what the caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; R];
            if add {
                for r in 0..R {
                    V::prefetch(results.add(r * width));
                    V::prefetch(results.add(r * width + V::LANES));
                }
            }
            for _ in 0..words {
                let [v0, v1] = [V::load(values), V::load(values.add(V::LANES))];
                for_rows!(R, r => {
                    let weight = V::splat(weights.add(r * BLOCK).read());
                    sums[r][0] = multiply::<V, PAIRS>(weight, v0, sums[r][0]);
                    sums[r][1] = multiply::<V, PAIRS>(weight, v1, sums[r][1]);
                });
                weights = weights.add(1);
                values = values.add(2 * V::LANES);
            }
            for_rows!(R, r => {
                let results = results.add(r * width);
                let [mut first, mut second] = sums[r];
                if add {
                    first = first.add(V::load(results));
                    second = second.add(V::load(results.add(V::LANES)));
                }
                first.store(results);
                second.store(results.add(V::LANES));
            });
        }
    }
}
