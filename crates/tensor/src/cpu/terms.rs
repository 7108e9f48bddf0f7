//! Products that are added to a linear layer's while its sums are still in the second cache: what adapters of low rank give.
//!
//! A task adds them to its sums strip by strip, and stores each strip when it is complete: the layer's result is written once,
//! and whatever follows (a function, a gate) sees the sum of all. Traffic: the terms' own operands.

use std::ops::Range;

use super::{
    Cpu,
    arch::Vector,
    matmul::{Epilogue, store},
    pack::{self, BLOCK, Factors, Joined, Strips},
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
    weight: &'a Weight,
    /// Of the weight, those that are not zero.
    rows: Range<usize>,
}

impl Packed<'_> {
    fn words(&self) -> usize {
        self.factors.words(self.weight.row_len())
    }
}

impl<'a> Terms<'a> {
    /// For a product of `m` rows in `strips`.
    pub(super) fn pack(cpu: &Cpu, terms: &[Term<'a>], m: usize, strips: Strips) -> Self {
        let pack = |term: &Term<'a>| {
            let factors = Factors::new(term.weight.precision(), cpu.simd);
            let columns = term.start..term.start + term.weight.row_len();
            let x = cpu.pack_rows(Joined::new(&[values(term.x)], m), m, columns, factors, strips);
            Packed { x, factors, weight: term.weight, rows: term.rows.clone() }
        };
        Self { m, strips, all: terms.iter().map(pack).collect() }
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
                pack::pack_columns::<V>(term.weight, term.factors, columns.clone(), block.clone(), scratch, room);
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
                    let width = self.all[0].weight.out_features();
                    store::<V>(sums, rows, columns.clone(), width, y, epilogue);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
    }
}
