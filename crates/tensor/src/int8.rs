//! The rule of [`Precision::Int8`](crate::Precision::Int8). The sum's axis is cut into blocks of [`BLOCK`] elements; within each
//!
//! ```text
//! an activation  x ≈ offset + step·q    q = −128 … 127, offset and step by token (the token's least and greatest number)
//! a weight       w ≈ scale·p            p = −127 … 127, scale by row (the row's greatest magnitude)
//! Σ x·w          ≈ scale·(step·Σ q·p + offset·Σ p), both sums exact; blocks are added in f32
//! ```
//! A weight stored as I8 is taken as it lies: its bytes are `p`, its row's scale is `scale`. A number that is not finite, or
//! that makes a range so, makes the whole result of its token, or of its row of the weight, NaN or infinite.

/// Elements of a block. Shorter blocks follow the numbers more closely, and end in more additions to the result: at 1024 those
/// take 2 % of the time.
pub(crate) const BLOCK: usize = 1024;

/// Rows of `x` from which on products are computed this way; fewer are computed as bf16: to round the weight would take longer than
/// what is gained by it.
pub(crate) const LEAST_ROWS: usize = 32;

/// Ranges below this count as nothing: their inverse might not be finite.
const NOTHING: f32 = 1e-30;

/// How a token's activations become integers, in one block: `q = round((x − low) · inverse) − 128`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activation {
    pub(crate) low: f32,
    pub(crate) inverse: f32,
    pub(crate) step: f32,
    pub(crate) offset: f32,
}

impl Activation {
    /// From the least and the greatest number; `wrong` is 0, or NaN if a number was not finite.
    #[inline(always)]
    pub(crate) fn new(low: f32, high: f32, wrong: f32) -> Self {
        let range = high - low;
        let inverse = if range > NOTHING { 255.0 / range } else { 0.0 };
        let step = if inverse > 0.0 { range / 255.0 } else { 0.0 };
        // Nothing, but NaN if the range is not finite.
        let wrong = wrong + 0.0 * range;
        Self { low, inverse, step: step + wrong, offset: low + 128.0 * step }
    }
}

/// How the elements of a weight's row become integers, in one block: `p = round(w · inverse)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightScale {
    pub(crate) inverse: f32,
    pub(crate) scale: f32,
}

impl WeightScale {
    /// From the greatest magnitude, which is NaN if one element is.
    #[inline(always)]
    pub(crate) fn new(largest: f32) -> Self {
        let inverse = if largest > NOTHING { 127.0 / largest } else { 0.0 };
        let scale = if inverse > 0.0 { largest / 127.0 } else { 0.0 };
        // Nothing, but NaN if the magnitude is not finite.
        Self { inverse, scale: scale + 0.0 * largest }
    }
}
