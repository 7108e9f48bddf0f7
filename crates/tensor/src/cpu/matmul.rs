//! Linear layers: `y = x·Wᵀ`, then bias and whatever else follows while a row is still in the first cache.
//!
//! `x` is packed into strips once. A task takes some columns (rows of the weight), decodes them block by block into panels in
//! its second cache and streams all strips past them: every element of the weight is decoded by one task only. Up to
//! [`FEW`] rows of `x` are multiplied with the weight's rows as they lie in the file, at the speed of the memory.

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    math,
    pack::{self, BLOCK, Factors, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    tile::Tile,
};
use crate::{DType, Precision, Unary, Weight, host::HostBuffer};

/// So few rows of `x` do not pay for packing.
const FEW: usize = 4;

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
            let rounded = (weight.precision() == Precision::BF16).then(|| {
                let mut rounded = vec![0.0; x.len()];
                self.simd.run(Round { numbers: x, to: &mut rounded });
                rounded
            });
            let x = rounded.as_deref().unwrap_or(x);
            let columns = n.div_ceil(4 * self.threads.count()).next_multiple_of(4).min(COLUMNS);
            // Reading the weight takes the time of some products.
            self.threads.for_each(n.div_ceil(columns), work.max(4 * n * k), |task| {
                let columns = task * columns..((task + 1) * columns).min(n);
                self.simd.run(FewRows { m, x, weight, columns, y: out, epilogue });
            });
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

/// Rounds to bf16, in f32.
struct Round<'a> {
    numbers: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        pack::to_words::<V>(Factors::RoundedF32, self.numbers, self.to);
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

/// One task of a product with at most [`FEW`] rows: dot products along the weight's rows.
struct FewRows<'a> {
    m: usize,
    /// Rounded to bf16 if the precision says so.
    x: &'a [f32],
    weight: &'a Weight,
    columns: Range<usize>,
    y: Shared<'a>,
    epilogue: Epilogue<'a>,
}

impl Kernel for FewRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        match self.m {
            1 => self.columns::<V, 1>(),
            2 => self.columns::<V, 2>(),
            3 => self.columns::<V, 3>(),
            _ => self.columns::<V, FEW>(),
        }
    }
}

impl FewRows<'_> {
    #[inline(always)]
    fn columns<V: Vector, const M: usize>(self) {
        let width = self.weight.out_features();
        let k = self.weight.row_len();
        let mut column = self.columns.start;
        let mut piece_start = 0;
        for piece in self.weight.rows() {
            let piece_end = piece_start + piece.count;
            let size = piece.dtype.bytes(k);
            while column < self.columns.end.min(piece_end) {
                let count = if column + 4 <= self.columns.end.min(piece_end) { 4 } else { 1 };
                let bytes = &piece.bytes.get()[(column - piece_start) * size..][..count * size];
                let round =
                    self.weight.precision() == Precision::BF16 && (piece.dtype != DType::BF16 || piece.scale != 1.0);
                let row = Row { dtype: piece.dtype, scale: piece.scale, round, bytes, k };
                if count == 4 {
                    self.store(column, row.dots::<V, M, 4>(self.x));
                } else {
                    self.store(column, row.dots::<V, M, 1>(self.x));
                }
                column += count;
            }
            piece_start = piece_end;
        }
        for row in 0..M {
            // SAFETY: the task alone has these columns of y.
            let y = unsafe { self.y.slice(row * width + self.columns.start..row * width + self.columns.end) };
            self.epilogue.finish::<V>(y, row, width, self.columns.clone());
        }
    }

    #[inline(always)]
    fn store<const M: usize, const R: usize>(&self, column: usize, dots: [[f32; R]; M]) {
        for (row, dots) in dots.iter().enumerate() {
            let start = row * self.weight.out_features() + column;
            // SAFETY: the task alone has these columns of y.
            unsafe { self.y.slice(start..start + R) }.copy_from_slice(dots);
        }
    }
}

/// Consecutive rows of a weight, as they are stored.
struct Row<'a> {
    dtype: DType,
    scale: f32,
    /// Whether elements are still to be rounded to bf16.
    round: bool,
    bytes: &'a [u8],
    k: usize,
}

impl Row<'_> {
    /// Dot products of `M` rows of x with `R` rows of the weight.
    #[inline(always)]
    fn dots<V: Vector, const M: usize, const R: usize>(&self, x: &[f32]) -> [[f32; R]; M] {
        // The format is known outside of the loop: one loop for each.
        match self.dtype {
            DType::F32 => self.dots_of::<V, M, R>(DType::F32, x),
            DType::F16 => self.dots_of::<V, M, R>(DType::F16, x),
            DType::BF16 => self.dots_of::<V, M, R>(DType::BF16, x),
            DType::F8E4M3 => self.dots_of::<V, M, R>(DType::F8E4M3, x),
            DType::F8E5M2 => self.dots_of::<V, M, R>(DType::F8E5M2, x),
        }
    }

    #[inline(always)]
    fn dots_of<V: Vector, const M: usize, const R: usize>(&self, dtype: DType, x: &[f32]) -> [[f32; R]; M] {
        let k = self.k;
        let size = dtype.bytes(k);
        assert!(self.bytes.len() == R * size && x.len() == M * k, "rows do not fit");
        let mut sums = [[V::splat(0.0); R]; M];
        let whole = k - k % V::LANES;
        for at in (0..whole).step_by(V::LANES) {
            for r in 0..R {
                // SAFETY: `LANES` elements are left in row `r`.
                let w = unsafe { V::decode(dtype, self.bytes.as_ptr().add(r * size + dtype.bytes(at))) };
                self.add(w, r, at, V::LANES, x, &mut sums);
            }
        }
        if whole < k {
            for r in 0..R {
                let mut tail = [0.0; MAX_LANES];
                let tail = &mut tail[..k - whole];
                dtype.decode(&self.bytes[r * size + dtype.bytes(whole)..(r + 1) * size], tail);
                self.add(V::from_slice(tail), r, whole, k - whole, x, &mut sums);
            }
        }
        let mut dots = [[0.0; R]; M];
        for (dots, sums) in dots.iter_mut().zip(sums) {
            for (dot, sum) in dots.iter_mut().zip(sums) {
                *dot = sum.sum();
            }
        }
        dots
    }

    /// Adds the products of `len` decoded elements of row `r`, from `at` on.
    #[inline(always)]
    fn add<V: Vector, const M: usize, const R: usize>(
        &self,
        w: V,
        r: usize,
        at: usize,
        len: usize,
        x: &[f32],
        sums: &mut [[V; R]; M],
    ) {
        let w = if self.scale == 1.0 { w } else { w.mul(V::splat(self.scale)) };
        let w = if self.round { w.round_to_bf16() } else { w };
        for (row, sums) in sums.iter_mut().enumerate() {
            sums[r] = w.mul_add(V::from_slice(&x[row * self.k + at..][..len]), sums[r]);
        }
    }
}
