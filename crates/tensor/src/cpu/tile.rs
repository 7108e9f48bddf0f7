//! The register tile: the one loop in which matrix products spend their time.
//!
//! `c += a·b` for up to `TILE_ROWS` rows of a strip and the two vectors of a panel; every element is one chain of fused
//! multiply-adds in the order of the sum, wherever it stands in the tile.

use super::{
    arch::{Kernel, Vector},
    pack::{Factors, MAX_LANES},
};

/// The most rows that a tile has on any machine.
pub(super) const MAX_ROWS: usize = 12;

/// A tile's operands.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// What words hold.
    pub(super) factors: Factors,
    /// Words of the sum.
    pub(super) words: usize,
    /// The strip: row `r` of word `w` is at `a[w · a_step + r]`.
    pub(super) a: *const f32,
    /// Words from one word of the strip to the next.
    pub(super) a_step: usize,
    /// The panel, two vectors per word.
    pub(super) b: *const f32,
    /// The result's first element.
    pub(super) c: *mut f32,
    /// Elements from one row of the result to the next.
    pub(super) c_step: usize,
    /// Rows of the tile, 1 to `TILE_ROWS`.
    pub(super) rows: usize,
    /// Columns of the result, 1 to two vectors.
    pub(super) columns: usize,
    /// Whether to add to what is in `c`.
    pub(super) add: bool,
}

impl Tile {
    /// Computes the tile.
    ///
    /// # Safety
    /// `rows` and `columns` are in their ranges; all elements of the strip and the panel can be read, `rows` times `columns`
    /// of `c` can be written (and read, if they are added to) and belong to nobody else.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.run_ahead::<V>(0) };
    }

    /// As [`Tile::run`], and asks the memory for what lies `ahead` words behind the strip: the next one, which else would be
    /// waited for at the start of each of its pages.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    pub(super) unsafe fn run_ahead<V: Vector>(self, ahead: usize) {
        debug_assert!((1..=V::TILE_ROWS).contains(&self.rows) && (1..=2 * V::LANES).contains(&self.columns));
        if self.columns == 2 * V::LANES {
            V::call(Checked(self, ahead));
            return;
        }
        // At the result's edge a whole tile is computed beside it.
        let mut whole = [0.0; MAX_ROWS * 2 * MAX_LANES];
        let step = 2 * V::LANES;
        let copy = |from: *const f32, from_step: usize, to: *mut f32, to_step: usize| {
            for r in 0..self.rows {
                // SAFETY: `rows` times `columns` elements are in both.
                unsafe { std::ptr::copy_nonoverlapping(from.add(r * from_step), to.add(r * to_step), self.columns) };
            }
        };
        if self.add {
            copy(self.c, self.c_step, whole.as_mut_ptr(), step);
        }
        V::call(Checked(Self { c: whole.as_mut_ptr(), c_step: step, ..self }, ahead));
        copy(whole.as_ptr(), step, self.c, self.c_step);
    }
}

/// A tile whose operands can be read and whose whole width can be written.
struct Checked(Tile, usize);

impl Kernel for Checked {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `Tile::run` was promised what this needs.
        unsafe {
            if V::HAS_PAIRS && self.0.factors == Factors::Bf16Pairs {
                self.0.rows::<V, true>(self.1);
            } else {
                self.0.rows::<V, false>(self.1);
            }
        }
    }
}

impl Tile {
    /// Makes the number of rows a constant.
    ///
    /// # Safety
    /// As for [`Tile::run`], with the tile's whole width.
    #[inline(always)]
    unsafe fn rows<V: Vector, const PAIRS: bool>(self, ahead: usize) {
        // SAFETY: the caller's promise is handed on.
        unsafe {
            match self.rows {
                1 => self.compute::<V, PAIRS, 1>(ahead),
                2 => self.compute::<V, PAIRS, 2>(ahead),
                3 => self.compute::<V, PAIRS, 3>(ahead),
                4 => self.compute::<V, PAIRS, 4>(ahead),
                5 => self.compute::<V, PAIRS, 5>(ahead),
                6 => self.compute::<V, PAIRS, 6>(ahead),
                7 => self.compute::<V, PAIRS, 7>(ahead),
                8 => self.compute::<V, PAIRS, 8>(ahead),
                9 => self.compute::<V, PAIRS, 9>(ahead),
                10 => self.compute::<V, PAIRS, 10>(ahead),
                11 => self.compute::<V, PAIRS, 11>(ahead),
                _ => self.compute::<V, PAIRS, 12>(ahead),
            }
        }
    }

    /// # Safety
    /// As for [`Tile::run`] with `R` rows and the tile's whole width.
    #[inline(always)]
    unsafe fn compute<V: Vector, const PAIRS: bool, const R: usize>(self, ahead: usize) {
        if R > V::TILE_ROWS {
            return;
        }
        let Self { words, mut a, a_step, mut b, c, c_step, add, .. } = self;
        // SAFETY: all indices are within what the caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; R];
            // What is in `c` is needed last, and has left the first cache since the block before.
            if add {
                for r in 0..R {
                    V::prefetch(c.wrapping_add(r * c_step));
                    V::prefetch(c.wrapping_add(r * c_step + V::LANES));
                }
            }
            for _ in 0..words {
                V::prefetch_far(a.wrapping_add(ahead).cast());
                let [b0, b1] = [V::load(b), V::load(b.add(V::LANES))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(a.add(r).read());
                    if PAIRS {
                        *sums = [sums[0].add_pair_products(factor, b0), sums[1].add_pair_products(factor, b1)];
                    } else {
                        *sums = [factor.mul_add(b0, sums[0]), factor.mul_add(b1, sums[1])];
                    }
                }
                a = a.add(a_step);
                b = b.add(2 * V::LANES);
            }
            for (r, [mut first, mut second]) in sums.into_iter().enumerate() {
                let c = c.add(r * c_step);
                if add {
                    first = first.add(V::load(c));
                    second = second.add(V::load(c.add(V::LANES)));
                }
                first.store(c);
                second.store(c.add(V::LANES));
            }
        }
    }
}
