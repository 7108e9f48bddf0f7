//! Linear layers: `y = x·Wᵀ`, then bias and whatever else follows while a row is still in the first cache.
//!
//! `x` is packed into strips once. A task takes some columns (rows of the weight), decodes them block by block into panels in
//! its second cache and streams all strips past them: every element of the weight is decoded by one task only. Up to
//! [`FEW`] rows of `x` are multiplied with the weight's rows as they lie in the file, at the speed of the memory. 89 to 95 % of
//! the machine's bf16 peak at FLUX.1's shapes (`SPEED.md`).

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    few_rows::FEW,
    math,
    pack::{self, Ahead, BLOCK, Factors, Joined, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    terms::Terms,
    tile::Tile,
};
use crate::{Precision, Term, Unary, Weight, host::HostBuffer, int8};

/// Columns of a task, at most. Measured at 768 × 3072 → 3072, one thread, bf16: 64 gives 213 GFLOP/s, 128 gives 200, 256 gives
/// 197; the panels are reused by every strip and must not leave the second cache.
const COLUMNS: usize = 64;

/// Rows of `x` of a task, about: what they have summed up (256 KiB) stays in the second cache beside the panels. In `y` itself
/// it would not: rows lie multiples of 4 KiB apart, and all fall into the same few sets of the cache.
const ROWS: usize = 1024;

/// What follows the product.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    /// Is added first.
    pub(super) bias: Option<&'a [f32]>,
    /// Comes next.
    pub(super) then: Then<'a>,
}

/// What a product ends with.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    /// Nothing more.
    Nothing,
    /// A function of each element.
    Unary(Unary),
    /// `residual + gate · y`.
    GatedAdd {
        /// One number per column.
        gate: &'a [f32],
        /// As large as the result.
        residual: &'a [f32],
    },
    /// `residual + y`.
    Add {
        /// As large as the result.
        residual: &'a [f32],
    },
}

impl Epilogue<'_> {
    /// Asks the memory for what [`Epilogue::finish`] reads and writes in the rows `rows` of `y`: without it, a store waits for
    /// each line of the result.
    #[inline(always)]
    pub(super) fn fetch<V: Vector>(&self, y: Shared<'_>, rows: Range<usize>, width: usize, columns: Range<usize>) {
        let residual = match self.then {
            Then::Nothing | Then::Unary(_) => None,
            Then::GatedAdd { residual, .. } | Then::Add { residual } => Some(residual),
        };
        for row in rows {
            for column in columns.clone().step_by(V::LANES) {
                V::prefetch_far(y.at(row * width + column).cast());
                if let Some(residual) = residual {
                    V::prefetch_far(residual[row * width + column..].as_ptr().cast());
                }
            }
        }
    }

    /// Finishes the elements `columns` of row `row`, of `width` in all.
    #[inline(always)]
    pub(super) fn finish<V: Vector>(&self, y: &mut [f32], row: usize, width: usize, columns: Range<usize>) {
        if let Some(bias) = self.bias {
            for (y, bias) in y.chunks_mut(V::LANES).zip(bias[columns.clone()].chunks(V::LANES)) {
                V::from_slice(y).add(V::from_slice(bias)).to_slice(y);
            }
        }
        match self.then {
            Then::Nothing => {}
            Then::Unary(f) => math::apply::<V>(f, y),
            Then::Add { residual } => {
                let residual = &residual[row * width..][columns];
                for (y, residual) in y.chunks_mut(V::LANES).zip(residual.chunks(V::LANES)) {
                    V::from_slice(residual).add(V::from_slice(y)).to_slice(y);
                }
            }
            Then::GatedAdd { gate, residual } => {
                let residual = &residual[row * width..][columns.clone()];
                let operands = gate[columns].chunks(V::LANES).zip(residual.chunks(V::LANES));
                for (y, (gate, residual)) in y.chunks_mut(V::LANES).zip(operands) {
                    V::from_slice(gate).mul_add(V::from_slice(y), V::from_slice(residual)).to_slice(y);
                }
            }
        }
    }
}

impl Cpu {
    /// `y [m, out] = epilogue(x [m, in] · weightᵀ + terms)`; the columns of x are those of its parts, side by side. No terms for
    /// up to [`FEW`] rows.
    pub(super) fn matmul(
        &self,
        m: usize,
        x: &[&[f32]],
        weight: &Weight,
        terms: &[Term<'_>],
        epilogue: Epilogue<'_>,
    ) -> HostBuffer {
        let (n, k) = (weight.out_features(), weight.row_len());
        let mut y = self.buffer(m * n);
        if m * n == 0 {
            return y;
        }
        let out = Shared::new(y.values_mut());
        let x = Joined::new(x, m);
        if weight.precision() == Precision::Int8 && m >= int8::LEAST_ROWS && k > 0 {
            self.multiply_int8(m, x, weight, terms, epilogue, out);
            return y;
        }
        if m <= FEW {
            self.multiply_few_rows(m, x, weight, epilogue, out);
        } else {
            self.multiply_floats(m, x, weight, terms, epilogue, out);
        }
        if weight.kept().is_some_and(|kept| kept.taken().is_some()) {
            // Its stored rows count as gone.
            weight.release_rows(0..n);
        }
        y
    }

    /// As [`Cpu::matmul`], with f32 or bf16 factors.
    fn multiply_floats(
        &self,
        m: usize,
        x: Joined<'_>,
        weight: &Weight,
        terms: &[Term<'_>],
        epilogue: Epilogue<'_>,
        y: Shared<'_>,
    ) {
        let (n, k) = (weight.out_features(), weight.row_len());
        let factors = Factors::new(weight.precision(), self.simd);
        let words = factors.words(k);
        let strips = Strips::new(m, self.simd.tile_rows());
        let packed = self.pack_rows(x, m, 0..k, factors, strips);
        let x = packed.values();
        let terms = Terms::pack(self, terms, m, strips);

        let panel = 2 * self.simd.lanes();
        let division = self.divide(m, n, strips, ROWS);
        self.threads.for_each(division.tasks(), m * n * (k + 1), |task| {
            let Share { own, rows, columns, next } = division.share(task);
            let all_columns = columns.len().next_multiple_of(panel);
            let [panels, sums] = [BLOCK.min(words).max(terms.words()), rows].map(|rows| rows * all_columns);
            with_scratch(panels + sums + pack::columns_scratch(), |scratch| {
                let (panels, scratch) = scratch.split_at_mut(panels);
                let (sums, scratch) = scratch.split_at_mut(sums);
                let operands = Operands { m, x, weight, factors, strips, terms: &terms };
                self.simd.run(Task { operands, own, columns, next, panels, sums, scratch, y, epilogue });
            });
        });
    }

    /// The columns `columns` of `m` rows, in strips.
    pub(super) fn pack_rows(
        &self,
        x: Joined<'_>,
        m: usize,
        columns: Range<usize>,
        factors: Factors,
        strips: Strips,
    ) -> HostBuffer {
        let mut packed = self.buffer(m * factors.words(columns.len()));
        let packed_x = Shared::new(packed.values_mut());
        self.threads.for_each(strips.count(), m * columns.len(), |strip| {
            let rows = strips.rows(strip);
            with_scratch(BLOCK * (rows.len() + 2), |scratch| {
                let columns = columns.clone();
                self.simd.run(PackRows { x, columns, m, factors, rows, scratch, to: packed_x });
            });
        });
        packed
    }
}

/// How the tasks of a product share its result.
#[derive(Clone, Copy)]
pub(super) struct Division {
    strips: Strips,
    out: usize,
    /// Columns of a task.
    columns: usize,
    column_tasks: usize,
    row_tasks: usize,
    threads: usize,
}

/// What one task computes.
pub(super) struct Share {
    /// Strips, and their rows together.
    pub(super) own: Range<usize>,
    pub(super) rows: usize,
    pub(super) columns: Range<usize>,
    /// The columns that its thread is likely to take next.
    pub(super) next: Range<usize>,
}

impl Cpu {
    /// Divides `m` rows in strips by `out` columns; a task has about `most_rows` rows at most.
    pub(super) fn divide(&self, m: usize, out: usize, strips: Strips, most_rows: usize) -> Division {
        let threads = self.threads.count();
        let columns = out.div_ceil(4 * threads).next_multiple_of(2 * self.simd.lanes()).min(COLUMNS);
        let column_tasks = out.div_ceil(columns);
        // Few columns and many threads: cut the rows, too.
        let row_tasks = (2 * threads).div_ceil(column_tasks).max(m.div_ceil(most_rows)).min(strips.count());
        Division { strips, out, columns, column_tasks, row_tasks, threads }
    }
}

impl Division {
    pub(super) fn tasks(self) -> usize {
        self.column_tasks * self.row_tasks
    }

    pub(super) fn share(self, task: usize) -> Share {
        let Self { strips, out, columns, column_tasks, row_tasks, threads } = self;
        let (row_task, column_task) = (task / column_tasks, task % column_tasks);
        let of_task = |task: usize| task * columns..((task + 1) * columns).min(out);
        let own = row_task * strips.count() / row_tasks..(row_task + 1) * strips.count() / row_tasks;
        Share {
            rows: strips.rows(own.end - 1).end - strips.rows(own.start).start,
            own,
            columns: of_task(column_task),
            next: of_task((column_task + threads) % column_tasks),
        }
    }
}

/// Packs one strip of `x`, all blocks: block by block for all strips, so that a task reads it from start to end.
struct PackRows<'a> {
    x: Joined<'a>,
    columns: Range<usize>,
    m: usize,
    factors: Factors,
    rows: Range<usize>,
    scratch: &'a mut [f32],
    to: Shared<'a>,
}

impl Kernel for PackRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { x, columns, m, factors, rows, scratch, to } = self;
        let (spare, scratch) = scratch.split_at_mut(2 * BLOCK);
        let (first, k) = (columns.start, columns.len());
        for block in pack::blocks(factors.words(k)) {
            let words = block.len();
            let elements = block.start * factors.per_word()..(block.end * factors.per_word()).min(k);
            let mut at = [std::ptr::null(); MAX_LANES];
            for ((row, at), scratch) in at[..rows.len()].iter_mut().enumerate().zip(scratch.chunks_exact_mut(BLOCK)) {
                let row = rows.start + row;
                let elements = first + elements.start..first + elements.end;
                *at = if factors == Factors::F32 {
                    x.elements(row, elements, scratch).as_ptr()
                } else {
                    pack::to_words::<V>(factors, x.elements(row, elements, spare), &mut scratch[..words]);
                    scratch.as_ptr()
                };
            }
            let start = m * block.start + rows.start * words;
            // SAFETY: each strip has its own place in each block.
            let to = unsafe { to.slice(start..start + rows.len() * words) };
            // SAFETY: every row has `words` words, and `to` has room for them.
            unsafe { pack::pack_strip::<V>(&at[..rows.len()], words, to.as_mut_ptr()) };
        }
    }
}

/// What all tasks share.
#[derive(Clone, Copy)]
struct Operands<'a> {
    m: usize,
    /// Packed.
    x: &'a [f32],
    weight: &'a Weight,
    factors: Factors,
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
        let Operands { m, x, weight, factors, strips, terms } = operands;
        let all_words = factors.words(weight.row_len());
        let panel = 2 * V::LANES;
        let all_columns = columns.len().next_multiple_of(panel);
        let first_row = strips.rows(own.start).start;
        let elements = |words: Range<usize>| {
            words.start * factors.per_word()..(words.end * factors.per_word()).min(weight.row_len())
        };
        for block in pack::blocks(all_words) {
            let words = block.len();
            let last = block.end == all_words;
            let to = &mut pack::Panels { values: panels, words: block.len(), first: 0 };
            pack::pack_columns::<V>(weight, factors, columns.clone(), block.clone(), scratch, to);
            let mut ahead = if last {
                Ahead::new(weight, next.clone(), elements(0..BLOCK.min(all_words)))
            } else {
                Ahead::new(weight, columns.clone(), elements(block.end..(block.end + BLOCK).min(all_words)))
            };
            for strip in own.clone() {
                ahead.fetch_share::<V>(own.end - strip);
                let rows = strips.rows(strip);
                let strip = &x[m * block.start + rows.start * words..][..rows.len() * words];
                let sums = &mut sums[(rows.start - first_row) * all_columns..][..rows.len() * all_columns];
                if last {
                    epilogue.fetch::<V>(y, rows.clone(), weight.out_features(), columns.clone());
                }
                for (i, sums) in sums.chunks_exact_mut(rows.len() * panel).enumerate() {
                    let tile = Tile {
                        factors,
                        words,
                        a: strip.as_ptr(),
                        a_step: rows.len(),
                        b: panels[i * words * panel..][..words * panel].as_ptr(),
                        c: sums.as_mut_ptr(),
                        c_step: panel,
                        rows: rows.len(),
                        columns: panel,
                        add: block.start > 0,
                    };
                    // SAFETY: strip and panel have `words` words, `sums` has the tile's size.
                    unsafe { tile.run_ahead::<V>(strip.len()) };
                }
                if last && terms.are_none() {
                    store::<V>(sums, rows, columns.clone(), weight.out_features(), y, epilogue);
                }
            }
        }
        if !terms.are_none() {
            terms.finish::<V>(own, columns, [panels, sums, scratch], y, epilogue);
        }
    }
}

/// Writes a strip's sums, `[panel][row][column]`, to the rows `rows` of `y` and finishes them. The columns are the caller's.
#[inline(always)]
pub(super) fn store<V: Vector>(
    sums: &[f32],
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    y: Shared<'_>,
    epilogue: Epilogue<'_>,
) {
    let panel = 2 * V::LANES;
    for (i, row) in rows.clone().enumerate() {
        // SAFETY: the caller's task alone has these rows and columns of y.
        let y = unsafe { y.slice(row * width + columns.start..row * width + columns.end) };
        for (y, sums) in y.chunks_mut(panel).zip(sums.chunks_exact(rows.len() * panel)) {
            let sums = &sums[i * panel..][..y.len()];
            for (y, sums) in y.chunks_mut(V::LANES).zip(sums.chunks(V::LANES)) {
                V::from_slice(sums).to_slice(y);
            }
        }
        epilogue.finish::<V>(y, row, width, columns.clone());
    }
}
