//! Products that are added to a linear layer's while its sums are still in the second cache: what adapters of low rank give.
//!
//! Terms that take neighbouring columns of one input to the same rows are one product: of several adapters' second factors, one
//! that is as deep as all of them. A task adds them to its sums strip by strip, and stores each strip when it is complete: the layer's result is written once,
//! and whatever follows (a function, a gate) sees the sum of all. Traffic: the terms' own operands.

use std::ops::Range;

use super::{
    Cpu,
    arch::Vector,
    matmul::{Epilogue, store},
    pack::{self, BLOCK, Factors, Joined, Panels, Strips},
    parallel::Shared,
    tile::Tile,
};
use crate::{
    Term, Weight,
    host::{HostBuffer, values},
};

/// Terms with their left operands packed.
pub(super) struct Terms<'a> {
    m: usize,
    strips: Strips,
    all: Vec<Packed<'a>>,
}

struct Packed<'a> {
    /// In strips.
    x: HostBuffer,
    factors: Factors,
    /// Side by side: what one of several takes begins with a word of its own.
    weights: Vec<&'a Weight>,
    /// Of the weights, those that are not zero.
    rows: Range<usize>,
}

impl Packed<'_> {
    fn words(&self) -> usize {
        self.weights.iter().map(|weight| self.factors.words(weight.row_len())).sum()
    }

    /// Packs the words `block` of the columns; of several weights, all words are one block.
    #[inline(always)]
    fn pack_columns<V: Vector>(
        &self,
        columns: Range<usize>,
        block: Range<usize>,
        scratch: &mut [f32],
        panels: &mut [f32],
    ) {
        let words = block.len();
        if let [weight] = self.weights[..] {
            let to = &mut Panels { values: panels, words, first: 0 };
            return pack::pack_columns::<V>(weight, self.factors, columns, block, scratch, to);
        }
        let mut first = 0;
        for weight in &self.weights {
            let own = self.factors.words(weight.row_len());
            let to = &mut Panels { values: &mut *panels, words, first };
            pack::pack_columns::<V>(weight, self.factors, columns.clone(), 0..own, scratch, to);
            first += own;
        }
    }
}

/// How many of the first terms are one product, of no more than [`BLOCK`] words.
fn together(terms: &[Term<'_>], factors: Factors) -> usize {
    let Some((first, others)) = terms.split_first() else { return 0 };
    let mut end = first.start + first.weight.row_len();
    let fits = |term: &&Term<'_>| {
        let beside = term.start == end && (end - first.start).is_multiple_of(factors.per_word());
        end += term.weight.row_len();
        let same = std::ptr::eq(values(term.x), values(first.x)) && term.rows == first.rows;
        let alike = term.weight.precision() == first.weight.precision();
        beside && same && alike && factors.words(end - first.start) <= BLOCK
    };
    1 + others.iter().take_while(fits).count()
}

impl<'a> Terms<'a> {
    /// For a product of `m` rows in `strips`.
    pub(super) fn pack(cpu: &Cpu, terms: &[Term<'a>], m: usize, strips: Strips) -> Self {
        let mut all = Vec::new();
        let mut rest = terms;
        while let Some(first) = rest.first() {
            let factors = Factors::new(first.weight.precision(), cpu.simd);
            let (one, behind) = rest.split_at(together(rest, factors));
            rest = behind;
            let weights: Vec<&Weight> = one.iter().map(|term| term.weight).collect();
            let columns = first.start..first.start + weights.iter().map(|weight| weight.row_len()).sum::<usize>();
            let x = cpu.pack_rows(Joined::new(&[values(first.x)], m), m, columns, factors, strips);
            all.push(Packed { x, factors, weights, rows: first.rows.clone() });
        }
        Self { m, strips, all }
    }

    pub(super) fn are_none(&self) -> bool {
        self.all.is_empty()
    }

    /// Words of the panels that [`Terms::finish`] needs room for.
    pub(super) fn words(&self) -> usize {
        self.all.iter().map(Packed::words).sum::<usize>().min(BLOCK)
    }

    /// Adds the terms to the sums `[strip][panel][row][column]` of the strips `own` and stores them. `room` is for panels of
    /// [`Terms::words`], the sums, and [`pack::columns_scratch`].
    #[inline(always)]
    pub(super) fn finish<V: Vector>(
        &self,
        own: Range<usize>,
        columns: Range<usize>,
        [panels, sums, scratch]: [&mut [f32]; 3],
        y: Shared<'_>,
        epilogue: Epilogue<'_>,
    ) {
        let panel = 2 * V::LANES;
        let all_columns = columns.len().next_multiple_of(panel);
        let first_row = self.strips.rows(own.start).start;
        let touched = self.all.iter().filter(|term| term.rows.start < columns.end && columns.start < term.rows.end);
        let blocks: Vec<(&Packed<'_>, Range<usize>)> =
            touched.flat_map(|term| pack::blocks(term.words()).map(move |block| (term, block))).collect();
        let mut rest = blocks.as_slice();
        loop {
            // As many as there is room for.
            let mut words = 0;
            let fits = rest.iter().take_while(|(_, block)| {
                words += block.len();
                words <= BLOCK
            });
            let (some, behind) = rest.split_at(fits.count());
            rest = behind;
            let mut at = 0;
            for (term, block) in some {
                let room = &mut panels[at * all_columns..];
                term.pack_columns::<V>(columns.clone(), block.clone(), scratch, room);
                at += block.len();
            }
            for strip in own.clone() {
                let rows = self.strips.rows(strip);
                let sums = &mut sums[(rows.start - first_row) * all_columns..][..rows.len() * all_columns];
                let mut at = 0;
                for (term, block) in some {
                    let words = block.len();
                    let strip = &term.x.values()[self.m * block.start + rows.start * words..][..rows.len() * words];
                    let panels = &panels[at * all_columns..][..words * all_columns];
                    for (i, sums) in sums.chunks_exact_mut(rows.len() * panel).enumerate() {
                        let tile = Tile {
                            factors: term.factors,
                            words,
                            a: strip.as_ptr(),
                            a_step: rows.len(),
                            b: panels[i * words * panel..][..words * panel].as_ptr(),
                            c: sums.as_mut_ptr(),
                            c_step: panel,
                            rows: rows.len(),
                            columns: panel,
                            add: true,
                        };
                        // SAFETY: strip and panel have `words` words, `sums` has the tile's size.
                        unsafe { tile.run::<V>() };
                    }
                    at += words;
                }
                if rest.is_empty() {
                    let width = self.all[0].weights[0].out_features();
                    store::<V>(sums, rows, columns.clone(), width, y, epilogue);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
    }
}
