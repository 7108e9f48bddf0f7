//! Attention without a matrix of scores (Dao et al., arXiv 2205.14135; Milakov and Gimelshein, arXiv
//! 1805.02867).
//!
//! Queries are the lanes: a tile of them stands beside each other as columns, keys come by in blocks, and maximum, exponential
//! and sum run down the columns without ever crossing lanes. The weights of a block of keys are then, as they lie, the strips
//! of their product with the values. Parallel over heads and groups of tiles.

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    math,
    pack::{self, Factors, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    tile::Tile,
};
use crate::host::HostBuffer;

/// Keys of a block: their scores for one tile stay in the first cache.
const KEYS: usize = 144;

/// Words of queries that a task keeps, about: a quarter of a second cache.
const QUERIES: usize = 1 << 16;

/// Stands for −∞: its exponential is zero beside any score's, and differences with itself are numbers.
const UNSEEN: f32 = -1e30;

/// Which keys are seen, with the elements of a bias.
#[derive(Clone, Copy)]
pub(super) enum Seen<'a> {
    /// All.
    All,
    /// Query `i` sees keys `0..=i`.
    Causal,
    /// All, their scores shifted by `[heads, queries, keys]`.
    Biased(&'a [f32]),
}

/// The operands of all tasks.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    scale: f32,
    seen: Seen<'a>,
}

impl<'a> Operands<'a> {
    /// One head of one token.
    #[inline(always)]
    fn head(&self, x: &'a [f32], token: usize, head: usize) -> &'a [f32] {
        &x[(token * self.heads + head) * self.d..][..self.d]
    }
}

impl Cpu {
    /// `softmax(scale · q·kᵀ) · v` per head: `q [queries, heads, d]`, `k, v [keys, heads, d]`.
    pub(super) fn attend(
        &self,
        [q, k, v]: [&[f32]; 3],
        [queries, keys, heads, d]: [usize; 4],
        scale: f32,
        seen: Seen<'_>,
    ) -> HostBuffer {
        let mut y = self.buffer(q.len());
        if q.is_empty() {
            return y;
        }
        let operands = Operands { q, k, v, queries, keys, heads, d, scale, seen };
        let tile = 2 * self.simd.lanes();
        let width = d.next_multiple_of(tile);
        let tiles = queries.div_ceil(tile);
        let fair = (tiles * heads).div_ceil(4 * self.threads.count());
        let per_group = (QUERIES / (tile * width)).min(fair).clamp(1, tiles);
        let groups = tiles.div_ceil(per_group);
        let layout = Layout { tile, width, d, tiles: per_group, keys: keys.min(KEYS) };
        let out = Shared::new(y.values_mut());
        self.threads.for_each(heads * groups, 2 * q.len() * keys, |task| {
            let (head, group) = (task / groups, task % groups);
            let queries = group * per_group * tile..((group + 1) * per_group * tile).min(queries);
            with_scratch(layout.len(), |scratch| {
                self.simd.run(Group { operands, layout, head, queries, scratch, y: out });
            });
        });
        y
    }
}

/// What a task keeps in its scratch memory.
#[derive(Clone, Copy)]
struct Layout {
    /// Queries of a tile.
    tile: usize,
    /// `d` filled up to whole panels.
    width: usize,
    d: usize,
    tiles: usize,
    keys: usize,
}

impl Layout {
    fn len(self) -> usize {
        self.sizes().iter().sum()
    }

    /// Queries `[tile][d][query]`; results `[tile][query][width]`; maxima and sums `[tile][query]`; keys in strips; values in
    /// panels; scores `[key][query]`; a bias or a row of zeros.
    fn sizes(self) -> [usize; 7] {
        let Self { tile, width, d, tiles, keys } = self;
        [
            tiles * d * tile,
            tiles * tile * width,
            tiles * tile * 2,
            keys * d,
            keys * width,
            keys * tile,
            (keys * tile).max(d),
        ]
    }
}

/// One task: some tiles of one head.
struct Group<'a> {
    operands: Operands<'a>,
    layout: Layout,
    head: usize,
    queries: Range<usize>,
    scratch: &'a mut [f32],
    y: Shared<'a>,
}

impl Kernel for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { operands, layout, head, queries, scratch, y } = self;
        let Operands { k, v, keys, heads, d, seen, .. } = operands;
        let Layout { tile, width, .. } = layout;
        let [q_len, o_len, state_len, k_len, v_len, s_len, _] = layout.sizes();
        let (q_tiles, rest) = scratch.split_at_mut(q_len);
        let (results, rest) = rest.split_at_mut(o_len);
        let (state, rest) = rest.split_at_mut(state_len);
        let (k_strips, rest) = rest.split_at_mut(k_len);
        let (v_panels, rest) = rest.split_at_mut(v_len);
        let (scores, spare) = rest.split_at_mut(s_len);

        operands.pack_queries::<V>(head, queries.clone(), spare, q_tiles);
        results.fill(0.0);
        for state in state.chunks_exact_mut(2 * tile) {
            let (maxima, sums) = state.split_at_mut(tile);
            maxima.fill(UNSEEN);
            sums.fill(0.0);
        }
        for start in (0..keys).step_by(KEYS) {
            if matches!(seen, Seen::Causal) && start >= queries.end {
                break;
            }
            let block = start..(start + KEYS).min(keys);
            let strips = Strips::new(block.len(), V::TILE_ROWS);
            for strip in 0..strips.count() {
                let rows = strips.rows(strip);
                let mut at = [std::ptr::null(); MAX_LANES];
                for (at, key) in at.iter_mut().zip(rows.clone()) {
                    *at = operands.head(k, start + key, head).as_ptr();
                }
                // SAFETY: a head has `d` elements, the strips have room for all keys of a block.
                unsafe { pack::pack_strip::<V>(&at[..rows.len()], d, k_strips[rows.start * d..].as_mut_ptr()) };
            }
            for (row, key) in block.clone().enumerate() {
                let value = operands.head(v, key, head);
                for (panel, value) in value.chunks(tile).enumerate() {
                    let to = &mut v_panels[(panel * block.len() + row) * tile..][..tile];
                    to[..value.len()].copy_from_slice(value);
                    to[value.len()..].fill(0.0);
                }
            }
            let each = q_tiles.chunks_exact(d * tile).zip(results.chunks_exact_mut(tile * width));
            for ((first, state), (q, results)) in
                queries.clone().step_by(tile).zip(state.chunks_exact_mut(2 * tile)).zip(each)
            {
                let own = first..(first + tile).min(queries.end);
                if matches!(seen, Seen::Causal) && start >= own.end {
                    continue;
                }
                for strip in 0..strips.count() {
                    let rows = strips.rows(strip);
                    let product = Tile {
                        factors: Factors::F32,
                        words: d,
                        a: k_strips[rows.start * d..].as_ptr(),
                        a_step: rows.len(),
                        b: q.as_ptr(),
                        c: scores[rows.start * tile..].as_mut_ptr(),
                        c_step: tile,
                        rows: rows.len(),
                        columns: tile,
                        add: false,
                    };
                    // SAFETY: strip and queries have `d` words; scores have room for the block's keys.
                    unsafe { product.run::<V>() };
                }
                let scores = &mut scores[..block.len() * tile];
                operands.mask::<V>(head, own, block.clone(), spare, scores);
                soften::<V>(scores, tile, state, results, width);
                let columns = Strips::new(tile, V::TILE_ROWS);
                for (panel, values) in v_panels[..width * block.len()].chunks_exact(block.len() * tile).enumerate() {
                    for strip in 0..columns.count() {
                        let rows = columns.rows(strip);
                        let product = Tile {
                            factors: Factors::F32,
                            words: block.len(),
                            a: scores[rows.start..].as_ptr(),
                            a_step: tile,
                            b: values.as_ptr(),
                            c: results[rows.start * width + panel * tile..].as_mut_ptr(),
                            c_step: width,
                            rows: rows.len(),
                            columns: tile,
                            add: true,
                        };
                        // SAFETY: weights and values have the block's keys; results have room for the tile.
                        unsafe { product.run::<V>() };
                    }
                }
            }
        }

        for (i, query) in queries.enumerate() {
            let sum = state[i / tile * 2 * tile + tile + i % tile];
            let factor = V::splat(1.0 / sum);
            let start = (query * heads + head) * d;
            // SAFETY: the task alone has these queries of this head.
            let y = unsafe { y.slice(start..start + d) };
            for (y, result) in y.chunks_mut(V::LANES).zip(results[i * width..].chunks(V::LANES)) {
                V::from_slice(result).mul(factor).to_slice(y);
            }
        }
    }
}

impl Operands<'_> {
    /// Tiles of queries on their side, scaled; queries that the last tile lacks are zero.
    #[inline(always)]
    fn pack_queries<V: Vector>(&self, head: usize, queries: Range<usize>, zeros: &mut [f32], to: &mut [f32]) {
        let tile = 2 * V::LANES;
        zeros[..self.d].fill(0.0);
        for (first, to) in queries.clone().step_by(tile).zip(to.chunks_exact_mut(self.d * tile)) {
            for half in 0..2 {
                let mut at = [zeros.as_ptr(); MAX_LANES];
                for (lane, at) in at[..V::LANES].iter_mut().enumerate() {
                    let query = first + half * V::LANES + lane;
                    if query < queries.end {
                        *at = self.head(self.q, query, head).as_ptr();
                    }
                }
                // SAFETY: a head has `d` elements, the tile has room for `d` rows of two vectors.
                unsafe {
                    let to = to.as_mut_ptr().add(half * V::LANES);
                    pack::transpose::<V>(&at[..V::LANES], self.d, to, tile);
                }
            }
            for lanes in to.chunks_exact_mut(V::LANES) {
                V::from_slice(lanes).mul(V::splat(self.scale)).to_slice(lanes);
            }
        }
    }

    /// Shifts or hides the scores `[key][query]` of `keys` for a tile of `queries`.
    #[inline(always)]
    fn mask<V: Vector>(
        &self,
        head: usize,
        queries: Range<usize>,
        keys: Range<usize>,
        spare: &mut [f32],
        scores: &mut [f32],
    ) {
        let tile = 2 * V::LANES;
        match self.seen {
            Seen::All => {}
            Seen::Causal if keys.end <= queries.start + 1 => {}
            Seen::Causal => {
                for (key, scores) in keys.zip(scores.chunks_exact_mut(tile)) {
                    let hidden = key.saturating_sub(queries.start).min(tile);
                    scores[..hidden].fill(UNSEEN);
                }
            }
            Seen::Biased(bias) => {
                for half in 0..2 {
                    let mut at = [std::ptr::null(); MAX_LANES];
                    for (lane, at) in at[..V::LANES].iter_mut().enumerate() {
                        // Lanes without a query take the last one's bias; nobody reads their result.
                        let query = (queries.start + half * V::LANES + lane).min(queries.end - 1);
                        *at = bias[(head * self.queries + query) * self.keys + keys.start..][..keys.len()].as_ptr();
                    }
                    // SAFETY: each row has the block's keys, `spare` has room for them.
                    unsafe {
                        let to = spare[..keys.len() * tile].as_mut_ptr().add(half * V::LANES);
                        pack::transpose::<V>(&at[..V::LANES], keys.len(), to, tile);
                    }
                }
                for (score, bias) in scores.chunks_exact_mut(V::LANES).zip(spare.chunks_exact(V::LANES)) {
                    V::from_slice(score).add(V::from_slice(bias)).to_slice(score);
                }
            }
        }
    }
}

/// Makes weights of a block's scores `[key][query]`: exponentials of their distance to the largest score so far. Sums and
/// results of earlier blocks are brought to the same measure.
#[inline(always)]
fn soften<V: Vector>(scores: &mut [f32], tile: usize, state: &mut [f32], results: &mut [f32], width: usize) {
    let (maxima, sums) = state.split_at_mut(tile);
    let before = [V::from_slice(maxima), V::from_slice(&maxima[V::LANES..])];
    let mut max = before;
    for scores in scores.chunks_exact(2 * V::LANES) {
        max = [max[0].max(V::from_slice(scores)), max[1].max(V::from_slice(&scores[V::LANES..]))];
    }
    let mut sum = [V::splat(0.0); 2];
    for scores in scores.chunks_exact_mut(2 * V::LANES) {
        let (first, second) = scores.split_at_mut(V::LANES);
        let weights = [math::exp(V::from_slice(first).sub(max[0])), math::exp(V::from_slice(second).sub(max[1]))];
        sum = [sum[0].add(weights[0]), sum[1].add(weights[1])];
        weights[0].to_slice(first);
        weights[1].to_slice(second);
    }
    let mut factors = [1.0; 2 * MAX_LANES];
    for half in 0..2 {
        let at = half * V::LANES..(half + 1) * V::LANES;
        let factor = math::exp(before[half].sub(max[half]));
        V::from_slice(&sums[at.clone()]).mul_add(factor, sum[half]).to_slice(&mut sums[at.clone()]);
        max[half].to_slice(&mut maxima[at.clone()]);
        factor.to_slice(&mut factors[at]);
    }
    for (&factor, results) in factors.iter().zip(results.chunks_exact_mut(width)) {
        if factor != 1.0 {
            for lanes in results.chunks_exact_mut(V::LANES) {
                V::from_slice(lanes).mul(V::splat(factor)).to_slice(lanes);
            }
        }
    }
}
