//! AVX2 with FMA and F16C: eight lanes, 16 registers; with or without products of bytes.

#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "a list of all intrinsics says nothing"))]

use std::arch::x86_64::*;

use super::{Kernel, Vector};
use crate::DType;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// Intrinsics that touch no memory.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: this type is only reached through `run`, which has the features.
        unsafe { $($body)* }
    };
}

/// All bits in the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __m256i {
    intrinsics!(_mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
}

impl Vector for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        intrinsics!(run(kernel))
    }

    #[inline(always)]
    unsafe fn call_with_bytes<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this type is only reached with all other features; the caller promises this one.
        unsafe { run_vnni(kernel) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(intrinsics!(_mm256_set1_ps(value)))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: masked lanes are not read.
        Self(unsafe { _mm256_maskload_ps(from, first(count)) })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, first(count), self.0) }
    }

    #[inline(always)]
    fn prefetch(at: *const f32) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }

    #[inline(always)]
    fn prefetch_far(at: *const u8) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T1>(at.cast()));
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_add_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_sub_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_mul_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_div_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(intrinsics!(_mm256_fmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Self(intrinsics!(_mm256_fnmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_max_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_min_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(intrinsics!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(intrinsics! {
            let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127)));
            _mm256_mul_ps(self.0, _mm256_castsi256_ps(exponent))
        })
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        Self(intrinsics!(_mm256_sub_ps(self.0, _mm256_floor_ps(self.0))))
    }

    #[inline(always)]
    fn scale_floor(self, n: Self) -> Self {
        Self(intrinsics! {
            let n = _mm256_floor_ps(_mm256_max_ps(n.0, _mm256_set1_ps(-127.0)));
            let exponent = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
            _mm256_mul_ps(self.0, _mm256_castsi256_ps(exponent))
        })
    }

    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        intrinsics!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, limit.0))) != 0
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        intrinsics! {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn rotate(self, angles: Self) -> Self {
        Self(intrinsics! {
            let cos = _mm256_moveldup_ps(angles.0);
            let sin = _mm256_movehdup_ps(angles.0);
            let swapped = _mm256_permute_ps::<0b10_11_00_01>(self.0);
            _mm256_fmaddsub_ps(self.0, cos, _mm256_mul_ps(swapped, sin))
        })
    }

    #[inline(always)]
    fn low_bf16(self) -> Self {
        Self(intrinsics!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0)))))
    }

    #[inline(always)]
    fn round_to_bf16(self) -> Self {
        Self(intrinsics! {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let rounded = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
            _mm256_blendv_ps(rounded, self.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0))
        })
    }

    #[inline(always)]
    fn bf16_pairs(_: Self, _: Self) -> Self {
        unreachable!("AVX2 multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn zip_bf16(_: Self, _: Self) -> Self {
        unreachable!("AVX2 multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn add_pair_products(self, _: Self, _: Self) -> Self {
        unreachable!("AVX2 multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn signed_bytes(numbers: [Self; 4]) -> Self {
        Self(intrinsics! {
            let [a, b, c, d] = numbers.map(|n| _mm256_cvtps_epi32(n.0));
            // Four numbers of each in both 128-bit lanes; they belong together by the vector they come from.
            let mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)))
        })
    }

    #[inline(always)]
    fn signed_shorts(first: Self, second: Self) -> Self {
        Self(intrinsics! {
            let mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(first.0), _mm256_cvtps_epi32(second.0));
            _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(mixed))
        })
    }

    #[inline(always)]
    fn add_byte_products(self, a: Self, b: Self) -> Self {
        Self(intrinsics! {
            let [sum, a, b] = [self, a, b].map(|v| _mm256_castps_si256(v.0));
            _mm256_castsi256_ps(_mm256_dpbusd_avx_epi32(sum, b, a))
        })
    }

    #[inline(always)]
    fn add_short_products(self, a: Self, b: Self) -> Self {
        Self(intrinsics! {
            let [sum, a, b] = [self, a, b].map(|v| _mm256_castps_si256(v.0));
            _mm256_castsi256_ps(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b)))
        })
    }

    #[inline(always)]
    fn i32_to_f32(self) -> Self {
        Self(intrinsics!(_mm256_cvtepi32_ps(_mm256_castps_si256(self.0))))
    }

    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        Self(intrinsics!(_mm256_xor_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn max_magnitude(self, b: Self) -> Self {
        Self(intrinsics! {
            let magnitude = _mm256_set1_epi32(i32::MAX);
            let [a, b] = [self, b].map(|v| _mm256_and_si256(_mm256_castps_si256(v.0), magnitude));
            _mm256_castsi256_ps(_mm256_max_epi32(a, b))
        })
    }

    #[inline(always)]
    unsafe fn decode(dtype: DType, from: *const u8) -> Self {
        // SAFETY: the caller promises the bytes; the loads need no alignment.
        Self(unsafe {
            match dtype {
                DType::F32 => _mm256_loadu_ps(from.cast()),
                DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                DType::BF16 => {
                    let codes = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(codes))
                }
                DType::F8E4M3 => {
                    // The code's exponent and mantissa at their places in an f32, 120 powers of two too small.
                    let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
                    let sign = _mm256_and_si256(codes, _mm256_set1_epi32(i32::MIN));
                    let size = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
                    let small = _mm256_castsi256_ps(_mm256_or_si256(sign, _mm256_slli_epi32::<20>(size)));
                    let value = _mm256_mul_ps(small, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)));
                    let nan = _mm256_cmpeq_epi32(size, _mm256_set1_epi32(0x7f));
                    _mm256_blendv_ps(value, _mm256_set1_ps(f32::NAN), _mm256_castsi256_ps(nan))
                }
                DType::F8E5M2 => {
                    let codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
                    _mm256_cvtph_ps(_mm_slli_epi16::<8>(codes))
                }
                DType::I8 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                _ => unreachable!("{dtype:?} is decoded block by block"),
            }
        })
    }

    #[inline(always)]
    fn look_up(table: &[f32; 16], codes: &[u8]) -> Self {
        let codes = &codes[..Self::LANES];
        // SAFETY: there are eight codes and sixteen values; the rest is arithmetic.
        Self(unsafe {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
            let lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), codes);
            let upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), codes);
            _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
        })
    }

    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], to: *mut f32, stride: usize) {
        // SAFETY: the caller promises the memory; the rest is arithmetic.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            for (r, &row) in r.iter_mut().zip(rows) {
                *r = _mm256_loadu_ps(row);
            }
            // In each 128-bit lane: pairs of rows, then fours of rows …
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in [0, 4] {
                r[i] = _mm256_shuffle_ps::<0b01_00_01_00>(t[i], t[i + 2]);
                r[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(t[i], t[i + 2]);
                r[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(t[i + 1], t[i + 3]);
                r[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(t[i + 1], t[i + 3]);
            }
            // … then the lanes themselves.
            for c in 0..4 {
                _mm256_storeu_ps(to.add(c * stride), _mm256_permute2f128_ps::<0x20>(r[c], r[c + 4]));
                _mm256_storeu_ps(to.add((c + 4) * stride), _mm256_permute2f128_ps::<0x31>(r[c], r[c + 4]));
            }
        }
    }
}
