//! The register tile of int8 products: `c (+)= scale · (step · Σ q·p + offset · Σ p)`, as [`crate::int8`] defines it.
//!
//! A word holds four bytes, where the machine multiplies them (`vpdpbusd`: signed times unsigned): `q` as it is, `p + 128`;
//! the sums then begin at `−128 Σ q`. Elsewhere it holds two 16-bit numbers, `q` and `p`. Sums are exact in i32: at most 2¹⁰
//! products below 2¹⁵, so that every machine has the same integers.

use super::{
    arch::{Kernel, Vector},
    pack::MAX_LANES,
};

/// Numbers of a panel beside its words, a vector for each of its two: the scales, and `scale · Σ p`.
pub(super) const PER_PANEL: usize = 4 * MAX_LANES;

/// A tile's operands.
#[derive(Clone, Copy)]
pub(super) struct ByteTile {
    /// Whether words hold four bytes.
    pub(super) bytes: bool,
    /// Words of the sum.
    pub(super) words: usize,
    /// The strip: row `r` of word `w` is at `a[w · rows + r]`.
    pub(super) a: *const f32,
    /// The first row's step, offset and start of the sums (i32), each `tokens` after the one before.
    pub(super) rules: *const f32,
    /// Rows of x.
    pub(super) tokens: usize,
    /// The panel, two vectors per word.
    pub(super) b: *const f32,
    /// What [`PER_PANEL`] says.
    pub(super) scales: *const f32,
    /// The tile's result, row by row of two vectors.
    pub(super) c: *mut f32,
    /// Rows of the tile, 1 to `TILE_ROWS`.
    pub(super) rows: usize,
    /// Whether to add to what is in `c`.
    pub(super) add: bool,
}

impl ByteTile {
    /// Computes the tile.
    ///
    /// # Safety
    /// `rows` is in its range; all elements of the strip, the panel and what belongs to them can be read, `rows` times two
    /// vectors of `c` can be written (and read, if they are added to) and belong to nobody else. The machine has byte
    /// products if `bytes`.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector>(self) {
        debug_assert!((1..=V::TILE_ROWS).contains(&self.rows));
        if self.bytes {
            // SAFETY: the caller's promise is handed on.
            unsafe { V::call_with_bytes(Checked::<true>(self)) };
        } else {
            V::call(Checked::<false>(self));
        }
    }
}

/// A tile whose operands can be read and whose result can be written.
struct Checked<const BYTES: bool>(ByteTile);

impl<const BYTES: bool> Kernel for Checked<BYTES> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `ByteTile::run` was promised what this needs.
        unsafe { self.0.rows::<V, BYTES>() };
    }
}

#[inline(always)]
fn add_products<V: Vector, const BYTES: bool>(sum: V, a: V, b: V) -> V {
    if BYTES { sum.add_byte_products(a, b) } else { sum.add_short_products(a, b) }
}

impl ByteTile {
    /// Makes the number of rows a constant.
    ///
    /// # Safety
    /// As for [`ByteTile::run`].
    #[inline(always)]
    unsafe fn rows<V: Vector, const BYTES: bool>(self) {
        // SAFETY: the caller's promise is handed on.
        unsafe {
            match self.rows {
                1 => self.compute::<V, BYTES, 1>(),
                2 => self.compute::<V, BYTES, 2>(),
                3 => self.compute::<V, BYTES, 3>(),
                4 => self.compute::<V, BYTES, 4>(),
                5 => self.compute::<V, BYTES, 5>(),
                6 => self.compute::<V, BYTES, 6>(),
                7 => self.compute::<V, BYTES, 7>(),
                8 => self.compute::<V, BYTES, 8>(),
                9 => self.compute::<V, BYTES, 9>(),
                10 => self.compute::<V, BYTES, 10>(),
                11 => self.compute::<V, BYTES, 11>(),
                _ => self.compute::<V, BYTES, 12>(),
            }
        }
    }

    /// # Safety
    /// As for [`ByteTile::run`] with `R` rows.
    #[inline(always)]
    unsafe fn compute<V: Vector, const BYTES: bool, const R: usize>(self) {
        if R > V::TILE_ROWS {
            return;
        }
        let Self { words, mut a, rules, tokens, mut b, scales, c, add, .. } = self;
        // SAFETY: all indices are within what the caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [V::splat(rules.add(2 * tokens + r).read()); 2];
            }
            // What is in `c` is needed last, and has left the first cache since the block before.
            for i in 0..2 * R {
                V::prefetch(c.wrapping_add(i * V::LANES));
            }
            // The next strip lies behind this one.
            let ahead = words * R;
            for _ in 0..words {
                V::prefetch_far(a.wrapping_add(ahead).cast());
                let [b0, b1] = [V::load(b), V::load(b.add(V::LANES))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(a.add(r).read());
                    sums[0] = add_products::<V, BYTES>(sums[0], factor, b0);
                    sums[1] = add_products::<V, BYTES>(sums[1], factor, b1);
                }
                a = a.add(R);
                b = b.add(2 * V::LANES);
            }
            for (r, sums) in sums.into_iter().enumerate() {
                let step = V::splat(rules.add(r).read());
                let offset = V::splat(rules.add(tokens + r).read());
                for (half, sum) in sums.into_iter().enumerate() {
                    let c = c.add((2 * r + half) * V::LANES);
                    let before = if add { V::load(c) } else { V::splat(0.0) };
                    let scale = V::load(scales.add(half * V::LANES));
                    let scaled_sum = V::load(scales.add((2 + half) * V::LANES));
                    let product = sum.i32_to_f32().mul(scale);
                    step.mul_add(product, offset.mul_add(scaled_sum, before)).store(c);
                }
            }
        }
    }
}

/// Finishes what [`PER_PANEL`] describes: from the scales and a packed panel to `scale · Σ p`.
#[derive(Clone, Copy)]
pub(super) struct PanelSums {
    /// As in [`ByteTile`].
    pub(super) bytes: bool,
    /// Words of the sum.
    pub(super) words: usize,
    /// The panel.
    pub(super) b: *const f32,
    /// The scales, and room for the sums behind them.
    pub(super) scales: *mut f32,
}

impl PanelSums {
    /// # Safety
    /// The panel and the scales can be read, the sums written. The machine has byte products if `bytes`.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector>(self) {
        if self.bytes {
            // SAFETY: the caller's promise is handed on.
            unsafe { V::call_with_bytes(Sums::<true>(self)) };
        } else {
            V::call(Sums::<false>(self));
        }
    }

    /// # Safety
    /// As for [`PanelSums::run`].
    #[inline(always)]
    unsafe fn compute<V: Vector, const BYTES: bool>(self) {
        let Self { words, mut b, scales, .. } = self;
        let ones = V::splat(f32::from_bits(if BYTES { 0x0101_0101 } else { 0x0001_0001 }));
        let start = if BYTES { -128 * 4 * words as i32 } else { 0 };
        // SAFETY: all indices are within what the caller promises.
        unsafe {
            let mut sums = [V::splat(f32::from_bits(start as u32)); 2];
            for _ in 0..words {
                sums[0] = add_products::<V, BYTES>(sums[0], ones, V::load(b));
                sums[1] = add_products::<V, BYTES>(sums[1], ones, V::load(b.add(V::LANES)));
                b = b.add(2 * V::LANES);
            }
            for (half, sum) in sums.into_iter().enumerate() {
                let scale = V::load(scales.add(half * V::LANES));
                sum.i32_to_f32().mul(scale).store(scales.add((2 + half) * V::LANES));
            }
        }
    }
}

/// A panel that can be read, with scales that can be written.
struct Sums<const BYTES: bool>(PanelSums);

impl<const BYTES: bool> Kernel for Sums<BYTES> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `PanelSums::run` was promised what this needs.
        unsafe { self.0.compute::<V, BYTES>() };
    }
}
