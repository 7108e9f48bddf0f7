//! AVX-512: sixteen lanes, 32 registers; with or without products of bf16 pairs and of bytes.
//!
//! `vdpbf16ps` and `vcvtne2ps2bf16` take subnormal bf16 numbers (below 1.2e-38) for zero and round to nearest even.

#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "a list of all intrinsics says nothing"))]

use std::{arch::x86_64::*, mem::transmute};

use super::{Kernel, Vector};
use crate::DType;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(__m512);

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<false>>()
}

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<true>>()
}

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn run_vnni<K: Kernel, const BF16: bool>(kernel: K) -> K::Output {
    kernel.run::<Avx512<BF16>>()
}

/// Intrinsics that touch no memory.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: this type is only reached through the functions above, which have the features.
        unsafe { $($body)* }
    };
}

#[inline(always)]
fn first(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

impl<const BF16: bool> Vector for Avx512<BF16> {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    const HAS_PAIRS: bool = BF16;

    #[inline(always)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        intrinsics!(if BF16 { run_bf16(kernel) } else { run(kernel) })
    }

    #[inline(always)]
    unsafe fn call_with_bytes<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this type is only reached with all other features; the caller promises this one.
        unsafe { run_vnni::<K, BF16>(kernel) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self(intrinsics!(_mm512_set1_ps(value)))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: masked lanes are not read.
        Self(unsafe { _mm512_maskz_loadu_ps(first(count), from) })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
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
        Self(intrinsics!(_mm512_add_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_sub_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_mul_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_div_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(intrinsics!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Self(intrinsics!(_mm512_fnmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_max_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_min_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        Self(intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(intrinsics!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        Self(intrinsics!(_mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale_floor(self, n: Self) -> Self {
        Self(intrinsics!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, limit.0)) != 0
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        intrinsics!(_mm512_reduce_add_ps(self.0))
    }

    #[inline(always)]
    fn rotate(self, angles: Self) -> Self {
        Self(intrinsics! {
            let cos = _mm512_moveldup_ps(angles.0);
            let sin = _mm512_movehdup_ps(angles.0);
            let swapped = _mm512_permute_ps::<0b10_11_00_01>(self.0);
            _mm512_fmaddsub_ps(self.0, cos, _mm512_mul_ps(swapped, sin))
        })
    }

    #[inline(always)]
    fn low_bf16(self) -> Self {
        Self(intrinsics!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0)))))
    }

    #[inline(always)]
    fn round_to_bf16(self) -> Self {
        Self(intrinsics! {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            _mm512_mask_mov_ps(rounded, nan, self.0)
        })
    }

    #[inline(always)]
    fn bf16_pairs(first: Self, second: Self) -> Self {
        debug_assert!(BF16);
        Self(intrinsics!(transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second.0, first.0))))
    }

    #[inline(always)]
    fn zip_bf16(a: Self, b: Self) -> Self {
        debug_assert!(BF16);
        Self(intrinsics! {
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b.0, a.0));
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(halves)));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        })
    }

    #[inline(always)]
    fn add_pair_products(self, a: Self, b: Self) -> Self {
        debug_assert!(BF16);
        Self(intrinsics!(_mm512_dpbf16_ps(
            self.0,
            transmute::<__m512, __m512bh>(a.0),
            transmute::<__m512, __m512bh>(b.0)
        )))
    }

    #[inline(always)]
    fn signed_bytes(numbers: [Self; 4]) -> Self {
        Self(intrinsics! {
            let [a, b, c, d] = numbers.map(|n| _mm512_cvtps_epi32(n.0));
            // Four numbers of each in every 128-bit lane; they belong together by the vector they come from.
            let mixed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_castsi512_ps(_mm512_permutexvar_epi32(order, mixed))
        })
    }

    #[inline(always)]
    fn signed_shorts(first: Self, second: Self) -> Self {
        Self(intrinsics! {
            let mixed = _mm512_packs_epi32(_mm512_cvtps_epi32(first.0), _mm512_cvtps_epi32(second.0));
            _mm512_castsi512_ps(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), mixed))
        })
    }

    #[inline(always)]
    fn add_byte_products(self, a: Self, b: Self) -> Self {
        Self(intrinsics! {
            let [sum, a, b] = [self, a, b].map(|v| _mm512_castps_si512(v.0));
            _mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, b, a))
        })
    }

    #[inline(always)]
    fn add_short_products(self, a: Self, b: Self) -> Self {
        Self(intrinsics! {
            let [sum, a, b] = [self, a, b].map(|v| _mm512_castps_si512(v.0));
            _mm512_castsi512_ps(_mm512_add_epi32(sum, _mm512_madd_epi16(a, b)))
        })
    }

    #[inline(always)]
    fn i32_to_f32(self) -> Self {
        Self(intrinsics!(_mm512_cvtepi32_ps(_mm512_castps_si512(self.0))))
    }

    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        Self(intrinsics!(_mm512_xor_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn max_magnitude(self, b: Self) -> Self {
        Self(intrinsics! {
            let [a, b] = [self, b].map(|v| _mm512_castps_si512(_mm512_abs_ps(v.0)));
            _mm512_castsi512_ps(_mm512_max_epi32(a, b))
        })
    }

    #[inline(always)]
    unsafe fn decode(dtype: DType, from: *const u8) -> Self {
        // SAFETY: the caller promises the bytes; the loads need no alignment.
        Self(unsafe {
            match dtype {
                DType::F32 => _mm512_loadu_ps(from.cast()),
                DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                DType::BF16 => {
                    let codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(codes))
                }
                DType::F8E4M3 => {
                    // The code's exponent and mantissa at their places in an f32, 120 powers of two too small.
                    let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
                    let sign = _mm512_and_si512(codes, _mm512_set1_epi32(i32::MIN));
                    let size = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
                    let small = _mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_slli_epi32::<20>(size)));
                    let value = _mm512_mul_ps(small, _mm512_set1_ps(f32::from_bits((127 + 120) << 23)));
                    let nan = _mm512_cmpeq_epi32_mask(size, _mm512_set1_epi32(0x7f));
                    _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(f32::NAN))
                }
                DType::F8E5M2 => {
                    let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast()));
                    _mm512_cvtph_ps(_mm256_slli_epi16::<8>(codes))
                }
                DType::I8 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))),
                _ => unreachable!("{dtype:?} is decoded block by block"),
            }
        })
    }

    #[inline(always)]
    fn look_up(table: &[f32; 16], codes: &[u8]) -> Self {
        let codes = &codes[..Self::LANES];
        // SAFETY: there are sixteen codes and sixteen values; the rest is arithmetic.
        Self(unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table.as_ptr()))
        })
    }

    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], to: *mut f32, stride: usize) {
        // SAFETY: the caller promises the memory; the rest is arithmetic.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (r, &row) in r.iter_mut().zip(rows) {
                *r = _mm512_loadu_ps(row);
            }
            // In each 128-bit lane: pairs of rows, then fours of rows …
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
            let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
            for i in (0..16).step_by(4) {
                r[i] = low(t[i], t[i + 2]);
                r[i + 1] = high(t[i], t[i + 2]);
                r[i + 2] = low(t[i + 1], t[i + 3]);
                r[i + 3] = high(t[i + 1], t[i + 3]);
            }
            // … then the lanes themselves.
            for c in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(r[c], r[c + 4]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(r[c], r[c + 4]);
                let even_2 = _mm512_shuffle_f32x4::<0x88>(r[c + 8], r[c + 12]);
                let odd_2 = _mm512_shuffle_f32x4::<0xdd>(r[c + 8], r[c + 12]);
                _mm512_storeu_ps(to.add(c * stride), _mm512_shuffle_f32x4::<0x88>(even, even_2));
                _mm512_storeu_ps(to.add((c + 4) * stride), _mm512_shuffle_f32x4::<0x88>(odd, odd_2));
                _mm512_storeu_ps(to.add((c + 8) * stride), _mm512_shuffle_f32x4::<0xdd>(even, even_2));
                _mm512_storeu_ps(to.add((c + 12) * stride), _mm512_shuffle_f32x4::<0xdd>(odd, odd_2));
            }
        }
    }
}
