//! What a vector is on each kind of processor, and which kind this one is.
//!
//! An algorithm is a [`Kernel`], written once for any [`Vector`]; [`Simd::run`] compiles it for each level and picks the
//! machine's. Everything between `run` and the intrinsics is `#[inline(always)]` (and hands no closure to code that is not), or
//! it would lose the target features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::DType;

/// Vector extensions that the backend has code for, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// AVX-512 (F, BW, DQ, VL) with products of bf16 pairs and of four bytes (VNNI): Zen 4, Cooper Lake, Sapphire Rapids.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL) with VNNI: Cascade Lake, Ice Lake.
    Avx512Vnni,
    /// AVX-512 (F, BW, DQ, VL): Skylake.
    Avx512,
    /// AVX2 with FMA, F16C and AVX-VNNI: Alder Lake.
    Avx2Vnni,
    /// AVX2 with FMA and F16C: Haswell, Zen.
    Avx2,
    /// What the compiler makes of plain arrays: NEON on aarch64, SSE2 on old x86-64.
    Portable,
}

impl Level {
    /// All levels, best first.
    pub const ALL: [Self; 6] =
        [Self::Avx512Bf16, Self::Avx512Vnni, Self::Avx512, Self::Avx2Vnni, Self::Avx2, Self::Portable];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let avx512_vnni = || avx512() && is_x86_feature_detected!("avx512vnni");
            match self {
                Self::Avx512Bf16 => avx512_vnni() && avx2() && is_x86_feature_detected!("avx512bf16"),
                Self::Avx512Vnni => avx512_vnni() && avx2(),
                Self::Avx512 => avx512() && avx2(),
                Self::Avx2Vnni => avx2() && is_x86_feature_detected!("avxvnni"),
                Self::Avx2 => avx2(),
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|level| level.is_available()).unwrap_or(Self::Portable)
    }
}

/// A level that the machine was seen to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simd(Level);

impl Simd {
    /// # Panics
    /// If the machine lacks this level.
    pub(crate) fn new(level: Level) -> Self {
        assert!(level.is_available(), "this machine has no {level:?}");
        Self(level)
    }

    /// Runs a kernel with the level's vectors.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::new` saw that the machine has the level's features.
            Level::Avx512Bf16 => unsafe { avx512::run_bf16(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512Vnni | Level::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2Vnni | Level::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run::<portable::Portable>(),
        }
    }

    /// Lanes of a vector.
    pub(crate) fn lanes(self) -> usize {
        self.run(Constants)[0]
    }

    /// Rows of a register tile.
    pub(crate) fn tile_rows(self) -> usize {
        self.run(Constants)[1]
    }

    /// Whether products of bf16 pairs are an instruction.
    pub(crate) fn has_bf16_pairs(self) -> bool {
        self.0 == Level::Avx512Bf16
    }

    /// Whether products of four bytes are an instruction.
    pub(crate) fn has_byte_products(self) -> bool {
        matches!(self.0, Level::Avx512Bf16 | Level::Avx512Vnni | Level::Avx2Vnni)
    }
}

/// The level's constants.
struct Constants;

impl Kernel for Constants {
    type Output = [usize; 2];
    #[inline(always)]
    fn run<V: Vector>(self) -> [usize; 2] {
        [V::LANES, V::TILE_ROWS]
    }
}

/// An algorithm with its operands.
pub(crate) trait Kernel {
    /// What it gives.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, as is all that they call.
    fn run<V: Vector>(self) -> Self::Output;
}

/// Some f32 lanes in a register. A lane may also hold an i32, or a *word*: a pair of bf16 or 16-bit numbers or four bytes, the
/// first in the lowest bits.
///
/// Implementations may use a level's instructions without asking, so a generic function over `Vector` must only be reached
/// through [`Simd::run`].
pub(crate) trait Vector: Copy {
    /// How many lanes.
    const LANES: usize;
    /// Rows of the largest register tile (its width is two vectors): as many as leave registers for the operands.
    const TILE_ROWS: usize;

    /// Whether `bf16_pairs` and `add_pair_products` exist.
    const HAS_PAIRS: bool = false;

    /// Runs a kernel as a function of its own, so that it is compiled once for several callers.
    fn call<K: Kernel>(kernel: K) -> K::Output;

    /// The same for a kernel with [byte products](Vector::add_byte_products).
    ///
    /// # Safety
    /// The machine [has them](Simd::has_byte_products).
    unsafe fn call_with_bytes<K: Kernel>(kernel: K) -> K::Output;

    /// The same number in all lanes.
    fn splat(value: f32) -> Self;

    /// # Safety
    /// `LANES` elements can be read at `from`; no alignment is needed.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// `LANES` elements can be written at `to`; no alignment is needed.
    unsafe fn store(self, to: *mut f32);

    /// The first `count ≤ LANES` lanes; zero in the others.
    ///
    /// # Safety
    /// `count` elements can be read at `from`.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;

    /// # Safety
    /// `count ≤ LANES` elements can be written at `to`.
    unsafe fn store_first(self, to: *mut f32, count: usize);

    /// Asks for the cache line at `at`, which may be any address.
    fn prefetch(at: *const f32);

    /// The same, no nearer than the second cache.
    fn prefetch_far(at: *const u8);

    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// `self · b + c`, rounded once where the machine can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c − self · b`, likewise.
    fn neg_mul_add(self, b: Self, c: Self) -> Self;
    fn max(self, b: Self) -> Self;
    fn min(self, b: Self) -> Self;
    /// To the nearest integer, ties to even; for |x| < 2²².
    fn round(self) -> Self;
    /// `self · 2ⁿ` for integers −126 ≤ n ≤ 127 and results that are not subnormal.
    fn scale(self, n: Self) -> Self;
    /// `x − ⌊x⌋`, for |x| < 2²².
    fn fraction(self) -> Self;
    /// `self · 2^⌊n⌋` for n < 128; as good as zero where n < −126.
    fn scale_floor(self, n: Self) -> Self;
    /// Whether any lane is greater than the same lane of `limit`.
    fn any_above(self, limit: Self) -> bool;
    /// The sum of all lanes, in an order of its own that never changes.
    fn sum(self) -> f32;

    /// Pairs of lanes (a, b), rotated by pairs of (cos, sin): (cos·a − sin·b, sin·a + cos·b).
    fn rotate(self, angles: Self) -> Self;

    /// Of words of two bf16 numbers, the first of each, as f32.
    fn low_bf16(self) -> Self;
    /// To the nearest bf16, ties to even, as f32.
    fn round_to_bf16(self) -> Self;
    /// Words from `2 · LANES` consecutive numbers, rounded to bf16.
    fn bf16_pairs(first: Self, second: Self) -> Self;
    /// Words from the numbers of the same lane of `a` and `b`, rounded to bf16.
    fn zip_bf16(a: Self, b: Self) -> Self;
    /// Per lane `self + a₀b₀ + a₁b₁` for words a, b.
    fn add_pair_products(self, a: Self, b: Self) -> Self;

    /// Words of four signed bytes from `4 · LANES` consecutive numbers, rounded (ties to even) and kept to −128…127.
    fn signed_bytes(numbers: [Self; 4]) -> Self;
    /// Words of two signed 16-bit numbers from `2 · LANES` consecutive numbers, rounded.
    fn signed_shorts(first: Self, second: Self) -> Self;
    /// Per lane `self + a₀b₀ + a₁b₁ + a₂b₂ + a₃b₃` in i32, for signed bytes a and unsigned bytes b. Only within
    /// [`Vector::call_with_bytes`].
    fn add_byte_products(self, a: Self, b: Self) -> Self;
    /// Per lane `self + a₀b₀ + a₁b₁` in i32, for signed 16-bit numbers a, b.
    fn add_short_products(self, a: Self, b: Self) -> Self;
    /// An i32 in each lane, as f32.
    fn i32_to_f32(self) -> Self;
    /// The bits in which the two differ.
    fn xor(self, b: Self) -> Self;
    /// The greater of |self| and |b|; a NaN is greater than all numbers.
    fn max_magnitude(self, b: Self) -> Self;

    /// `LANES` numbers from their storage format, one without [blocks](DType::block).
    ///
    /// # Safety
    /// `LANES` elements of `dtype` can be read at `from`.
    unsafe fn decode(dtype: DType, from: *const u8) -> Self;

    /// The values of `LANES` codes below 16.
    ///
    /// # Panics
    /// If there are fewer codes.
    fn look_up(table: &[f32; 16], codes: &[u8]) -> Self;

    /// A square of `LANES` rows of words, on its side: word `j` of row `i` goes to `to[j · stride + i]`.
    ///
    /// # Safety
    /// `rows` has `LANES` pointers, `LANES` words can be read from each and written to each of `LANES` rows of `to`.
    unsafe fn transpose(rows: &[*const f32], to: *mut f32, stride: usize);
}

/// The loops that run over a slice, vector by vector.
pub(crate) trait VectorSlice: Vector {
    /// Lanes from the start of `from`: all, or as many as there are, then zeros.
    #[inline(always)]
    fn from_slice(from: &[f32]) -> Self {
        if from.len() >= Self::LANES {
            // SAFETY: the slice is long enough.
            unsafe { Self::load(from.as_ptr()) }
        } else {
            // SAFETY: `count` is the slice's length.
            unsafe { Self::load_first(from.as_ptr(), from.len()) }
        }
    }

    /// Lanes from signed bytes.
    ///
    /// # Panics
    /// If there are fewer than `LANES`.
    #[inline(always)]
    fn from_i8(bytes: &[u8]) -> Self {
        let bytes = &bytes[..Self::LANES];
        // SAFETY: there are `LANES` bytes.
        unsafe { Self::decode(DType::I8, bytes.as_ptr()) }
    }

    /// Writes as many lanes as there is room for.
    #[inline(always)]
    fn to_slice(self, to: &mut [f32]) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice is long enough.
            unsafe { self.store(to.as_mut_ptr()) }
        } else {
            // SAFETY: `count` is the slice's length.
            unsafe { self.store_first(to.as_mut_ptr(), to.len()) }
        }
    }
}

impl<V: Vector> VectorSlice for V {}
