//! Products with so few rows of `x` that packing them does not pay: dot products with the weight's rows as they lie in the
//! file, at the speed of the memory. A modulation is one.

use std::ops::Range;

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    blocks,
    matmul::Epilogue,
    pack::Joined,
    parallel::Shared,
};
use crate::{DType, Precision, StoredRow, Weight};

/// The most rows of `x`.
pub(crate) const FEW: usize = 4;

/// Columns of a task, at most.
const COLUMNS: usize = 64;

/// Elements of a format without vector code that are decoded at a time: whole blocks of every format.
const CHUNK: usize = 256;

impl Cpu {
    /// `y [m, out] = epilogue(x [m, in] · weightᵀ)` for `m` up to [`FEW`].
    pub(super) fn multiply_few_rows(
        &self,
        m: usize,
        x: Joined<'_>,
        weight: &Weight,
        epilogue: Epilogue<'_>,
        y: Shared<'_>,
    ) {
        let (n, k) = (weight.out_features(), weight.row_len());
        let mut x = x.join();
        if weight.precision() != Precision::F32 {
            self.simd.run(Round(&mut x));
        }
        let x = &x;
        let columns = n.div_ceil(4 * self.threads.count()).next_multiple_of(4).min(COLUMNS);
        // Reading the weight takes the time of some products.
        let work = (m * n * (k + 1)).max(4 * n * k);
        self.threads.for_each(n.div_ceil(columns), work, |task| {
            let columns = task * columns..((task + 1) * columns).min(n);
            self.simd.run(FewRows { m, x, weight, columns, y, epilogue });
        });
    }
}

/// Rounds to bf16, in f32.
struct Round<'a>(&'a mut [f32]);

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for numbers in self.0.chunks_mut(V::LANES) {
            V::from_slice(numbers).round_to_bf16().to_slice(numbers);
        }
    }
}

/// One task: dot products along some of the weight's rows.
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
        let round = self.weight.precision() != Precision::F32;
        let mut stored = self.weight.stored_rows(self.columns.start);
        let mut column = self.columns.start;
        while column < self.columns.end {
            let mut four = stored.clone();
            if column + 4 <= self.columns.end {
                let rows = Few::<4> { rows: std::array::from_fn(|_| next(&mut four)), round };
                if rows.rows.iter().all(|row| row.dtype == rows.rows[0].dtype) {
                    self.store(column, rows.dots::<V, M>(self.x));
                    stored = four;
                    column += 4;
                    continue;
                }
            }
            self.store(column, Few { rows: [next(&mut stored)], round }.dots::<V, M>(self.x));
            column += 1;
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

#[inline(always)]
fn next<'a>(stored: &mut impl Iterator<Item = StoredRow<'a>>) -> StoredRow<'a> {
    match stored.next() {
        Some(row) => row,
        None => unreachable!("the weight has all columns"),
    }
}

/// Rows of a weight in one format.
struct Few<'a, const R: usize> {
    rows: [StoredRow<'a>; R],
    /// Whether elements are multiplied as bf16.
    round: bool,
}

impl<const R: usize> Few<'_, R> {
    /// Dot products of `M` rows of x with these.
    #[inline(always)]
    fn dots<V: Vector, const M: usize>(&self, x: &[f32]) -> [[f32; R]; M] {
        let mut sums = [[V::splat(0.0); R]; M];
        // The format is known outside of the loop: one loop for each.
        let done = match self.rows[0].dtype {
            DType::F32 => self.add_plain::<V, M>(DType::F32, x, &mut sums),
            DType::F16 => self.add_plain::<V, M>(DType::F16, x, &mut sums),
            DType::BF16 => self.add_plain::<V, M>(DType::BF16, x, &mut sums),
            DType::F8E4M3 => self.add_plain::<V, M>(DType::F8E4M3, x, &mut sums),
            DType::F8E5M2 => self.add_plain::<V, M>(DType::F8E5M2, x, &mut sums),
            DType::I8 => self.add_plain::<V, M>(DType::I8, x, &mut sums),
            _ => 0,
        };
        self.add_decoded::<V, M>(done, x, &mut sums);
        let mut dots = [[0.0; R]; M];
        for (dots, sums) in dots.iter_mut().zip(sums) {
            for (dot, sum) in dots.iter_mut().zip(sums) {
                *dot = sum.sum();
            }
        }
        dots
    }

    /// For formats of which vectors can be decoded: all whole vectors. Gives where they end.
    #[inline(always)]
    fn add_plain<V: Vector, const M: usize>(&self, dtype: DType, x: &[f32], sums: &mut [[V; R]; M]) -> usize {
        let k = x.len() / M;
        let whole = k - k % V::LANES;
        assert!(self.rows.iter().all(|row| row.bytes.len() == dtype.bytes(k)), "rows do not fit");
        for at in (0..whole).step_by(V::LANES) {
            for r in 0..R {
                // SAFETY: `LANES` elements are left in row `r`.
                let w = unsafe { V::decode(dtype, self.rows[r].bytes.as_ptr().add(dtype.bytes(at))) };
                let scale = self.rows[r].scale;
                let w = if scale == 1.0 { w } else { w.mul(V::splat(scale)) };
                self.add(w, r, at, V::LANES, x, sums);
            }
        }
        whole
    }

    /// The elements from `start` on: all of formats with blocks, of others what is left.
    #[inline(always)]
    fn add_decoded<V: Vector, const M: usize>(&self, start: usize, x: &[f32], sums: &mut [[V; R]; M]) {
        let k = x.len() / M;
        let mut decoded = [0.0; CHUNK];
        for start in (start..k).step_by(CHUNK) {
            let decoded = &mut decoded[..CHUNK.min(k - start)];
            for (r, row) in self.rows.iter().enumerate() {
                if row.dtype.block() > 1 {
                    blocks::decode::<V>(*row, start, decoded);
                } else {
                    row.decode(start, decoded);
                }
                for (i, numbers) in decoded.chunks(V::LANES).enumerate() {
                    self.add(V::from_slice(numbers), r, start + i * V::LANES, numbers.len(), x, sums);
                }
            }
        }
    }

    /// Adds the products of `len` elements of row `r`, from `at` on.
    #[inline(always)]
    fn add<V: Vector, const M: usize>(&self, w: V, r: usize, at: usize, len: usize, x: &[f32], sums: &mut [[V; R]; M]) {
        let k = x.len() / M;
        // A bf16 without a scale would not change.
        let exact = self.rows[r].dtype == DType::BF16 && self.rows[r].scale == 1.0;
        let w = if self.round && !exact { w.round_to_bf16() } else { w };
        for (row, sums) in sums.iter_mut().enumerate() {
            sums[r] = w.mul_add(V::from_slice(&x[row * k + at..][..len]), sums[r]);
        }
    }
}
