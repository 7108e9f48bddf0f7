//! Linear layers: `y = x·Wᵀ`, then bias and whatever else follows while a row is still in the first cache.
//!
//! `x` is packed into strips once. A task takes some columns (rows of the weight), decodes them block by block into panels in
//! its second cache and streams all strips past them: every element of the weight is decoded by one task only. Up to
//! [`FEW`] rows of `x` are multiplied with the weight's rows as they lie in the file, at the speed of the memory.

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    few_rows::FEW,
    math,
    pack::{self, BLOCK, Factors, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    tile::Tile,
};
use crate::{Precision, Unary, Weight, host::HostBuffer, int8};

/// Columns of a task, at most. Measured at 768 × 3072 → 3072, one thread, bf16: 64 gives 213 GFLOP/s, 128 gives 200, 256 gives
/// 197; the panels are reused by every strip and must not leave the second cache.
const COLUMNS: usize = 64;

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
}

impl Epilogue<'_> {
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
    /// `y [m, out] = epilogue(x [m, in] · weightᵀ)`.
    pub(super) fn matmul(&self, m: usize, x: &[f32], weight: &Weight, epilogue: Epilogue<'_>) -> HostBuffer {
        let (n, k) = (weight.out_features(), weight.row_len());
        let mut y = self.buffer(m * n);
        if m * n == 0 {
            return y;
        }
        let work = m * n * (k + 1);
        let out = Shared::new(y.values_mut());
        if m <= FEW {
            self.multiply_few_rows(m, x, weight, epilogue, out);
            return y;
        }
        if weight.precision() == Precision::Int8 && m >= int8::LEAST_ROWS && k > 0 {
            self.multiply_int8(m, x, weight, epilogue, out);
            return y;
        }

        let factors = Factors::new(weight.precision(), self.simd);
        let words = factors.words(k);
        let strips = Strips::new(m, self.simd.tile_rows());
        let mut packed = self.buffer(m * words);
        let packed_x = Shared::new(packed.values_mut());
        self.threads.for_each(strips.count(), m * k, |strip| {
            let rows = strips.rows(strip);
            let x = &x[rows.start * k..rows.end * k];
            with_scratch(BLOCK * rows.len(), |scratch| {
                self.simd.run(PackRows { x, k, m, factors, rows, scratch, to: packed_x });
            });
        });
        let x = packed.values();

        // Few columns and many threads: cut the rows, too.
        let panel = 2 * self.simd.lanes();
        let columns = n.div_ceil(4 * self.threads.count()).next_multiple_of(panel).min(COLUMNS);
        let column_tasks = n.div_ceil(columns);
        let row_tasks = (2 * self.threads.count()).div_ceil(column_tasks).min(strips.count());
        self.threads.for_each(column_tasks * row_tasks, work, |task| {
            let (column_task, row_task) = (task / row_tasks, task % row_tasks);
            let columns = column_task * columns..((column_task + 1) * columns).min(n);
            let own = row_task * strips.count() / row_tasks..(row_task + 1) * strips.count() / row_tasks;
            let panels = columns.len().next_multiple_of(panel) * BLOCK.min(words);
            with_scratch(panels + pack::columns_scratch(), |scratch| {
                let (panels, scratch) = scratch.split_at_mut(panels);
                self.simd.run(Task { m, x, weight, factors, strips, own, columns, panels, scratch, y: out, epilogue });
            });
        });
        drop(packed);
        y
    }
}

/// Packs one strip of `x`, all blocks: block by block for all strips, so that a task reads it from start to end.
struct PackRows<'a> {
    x: &'a [f32],
    k: usize,
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
        let Self { x, k, m, factors, rows, scratch, to } = self;
        for block in pack::blocks(factors.words(k)) {
            let words = block.len();
            let elements = block.start * factors.per_word()..(block.end * factors.per_word()).min(k);
            let mut at = [std::ptr::null(); MAX_LANES];
            for ((row, at), scratch) in at[..rows.len()].iter_mut().enumerate().zip(scratch.chunks_exact_mut(BLOCK)) {
                let numbers = &x[row * k..][elements.clone()];
                *at = if factors == Factors::F32 {
                    numbers.as_ptr()
                } else {
                    pack::to_words::<V>(factors, numbers, &mut scratch[..words]);
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

/// One task: some columns for some strips.
struct Task<'a> {
    m: usize,
    x: &'a [f32],
    weight: &'a Weight,
    factors: Factors,
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
        let Self { m, x, weight, factors, strips, own, columns, panels, scratch, y, epilogue } = self;
        let (width, all_words) = (weight.out_features(), factors.words(weight.row_len()));
        let panel = 2 * V::LANES;
        for block in pack::blocks(all_words) {
            let words = block.len();
            let last = block.end == all_words;
            pack::pack_columns::<V>(weight, factors, columns.clone(), block.clone(), scratch, panels);
            for strip in own.clone() {
                let rows = strips.rows(strip);
                let strip = &x[m * block.start + rows.start * words..][..rows.len() * words];
                for (i, first) in columns.clone().step_by(panel).enumerate() {
                    let b = &panels[i * words * panel..][..words * panel];
                    let tile = Tile {
                        factors,
                        words,
                        a: strip.as_ptr(),
                        a_step: rows.len(),
                        b: b.as_ptr(),
                        c: y.at(rows.start * width + first),
                        c_step: width,
                        rows: rows.len(),
                        columns: (columns.end - first).min(panel),
                        add: block.start > 0,
                    };
                    // SAFETY: strip and panel have `words` words; the task alone has these rows and columns of y.
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
