//! Plain arrays of eight lanes, which the compiler turns into whatever vectors the target is known to have.

use std::array;

use half::bf16;

use super::{Kernel, Vector};
use crate::DType;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

/// `a · b + c`; where the target has no such instruction, the library's exact version would take a hundred times as long.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// To the nearest integer, for |x| < 2²²: adding 1.5·2²³ leaves no bits for a fraction.
#[inline(always)]
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The largest integer not above `x`, for |x| < 2²².
#[inline(always)]
fn floor(x: f32) -> f32 {
    let nearest = round(x);
    if nearest > x { nearest - 1.0 } else { nearest }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

    #[inline(never)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn call_with_bytes<K: Kernel>(_: K) -> K::Output {
        unreachable!("the portable level multiplies 16-bit numbers instead")
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: only `count` elements are read.
        Self(array::from_fn(|i| if i < count { unsafe { from.add(i).read() } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        for (i, &value) in self.0.iter().enumerate().take(count) {
            // SAFETY: only `count` elements are written.
            unsafe { to.add(i).write(value) }
        }
    }

    #[inline(always)]
    fn prefetch(_: *const f32) {}

    #[inline(always)]
    fn prefetch_far(_: *const u8) {}

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(array::from_fn(|i| mul_add(self.0[i], b.0[i], c.0[i])))
    }

    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        Self(array::from_fn(|i| mul_add(-self.0[i], b.0[i], c.0[i])))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        self.map(round)
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        self.zip(n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        self.map(|a| a - floor(a))
    }

    #[inline(always)]
    fn scale_floor(self, n: Self) -> Self {
        self.zip(n, |a, n| a * f32::from_bits(((floor(n.max(-127.0)) as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn any_above(self, limit: Self) -> bool {
        self.0.iter().zip(limit.0).any(|(&a, limit)| a > limit)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn rotate(self, angles: Self) -> Self {
        Self(array::from_fn(|i| {
            let (even, odd) = (self.0[i & !1], self.0[i | 1]);
            let (cos, sin) = (angles.0[i & !1], angles.0[i | 1]);
            if i % 2 == 0 { cos * even - sin * odd } else { sin * even + cos * odd }
        }))
    }

    #[inline(always)]
    fn low_bf16(self) -> Self {
        self.map(|a| f32::from_bits(a.to_bits() << 16))
    }

    #[inline(always)]
    fn round_to_bf16(self) -> Self {
        self.map(|a| bf16::from_f32(a).to_f32())
    }

    #[inline(always)]
    fn bf16_pairs(_: Self, _: Self) -> Self {
        unreachable!("the portable level multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn zip_bf16(_: Self, _: Self) -> Self {
        unreachable!("the portable level multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn add_pair_products(self, _: Self, _: Self) -> Self {
        unreachable!("the portable level multiplies rounded f32 numbers instead")
    }

    #[inline(always)]
    fn signed_bytes(_: [Self; 4]) -> Self {
        unreachable!("the portable level multiplies 16-bit numbers instead")
    }

    #[inline(always)]
    fn signed_shorts(first: Self, second: Self) -> Self {
        let (first, second) = (first.round(), second.round());
        let number = |i: usize| if i < 8 { first.0[i] } else { second.0[i - 8] };
        let short = |i: usize| u32::from(number(i) as i16 as u16);
        Self(array::from_fn(|i| f32::from_bits(short(2 * i) | short(2 * i + 1) << 16)))
    }

    #[inline(always)]
    fn add_byte_products(self, _: Self, _: Self) -> Self {
        unreachable!("the portable level multiplies 16-bit numbers instead")
    }

    #[inline(always)]
    fn add_short_products(self, a: Self, b: Self) -> Self {
        let halves = |word: f32| [word.to_bits() as i16, (word.to_bits() >> 16) as i16].map(i32::from);
        Self(array::from_fn(|i| {
            let ([a0, a1], [b0, b1]) = (halves(a.0[i]), halves(b.0[i]));
            f32::from_bits((self.0[i].to_bits() as i32 + a0 * b0 + a1 * b1) as u32)
        }))
    }

    #[inline(always)]
    fn i32_to_f32(self) -> Self {
        self.map(|word| word.to_bits() as i32 as f32)
    }

    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        self.zip(b, |a, b| f32::from_bits(a.to_bits() ^ b.to_bits()))
    }

    #[inline(always)]
    fn max_magnitude(self, b: Self) -> Self {
        self.zip(b, |a, b| f32::from_bits(a.abs().to_bits().max(b.abs().to_bits())))
    }

    #[inline(always)]
    unsafe fn decode(dtype: DType, from: *const u8) -> Self {
        let mut values = [0.0; 8];
        // SAFETY: the caller promises as many bytes as eight elements take.
        let bytes = unsafe { std::slice::from_raw_parts(from, dtype.bytes(8)) };
        dtype.decode(bytes, &mut values);
        Self(values)
    }

    #[inline(always)]
    fn look_up(table: &[f32; 16], codes: &[u8]) -> Self {
        Self(array::from_fn(|i| table[usize::from(codes[i] & 15)]))
    }

    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32], to: *mut f32, stride: usize) {
        for (i, row) in rows.iter().enumerate() {
            for j in 0..Self::LANES {
                // SAFETY: the caller promises eight words in each row of both squares.
                unsafe { to.add(j * stride + i).write(row.add(j).read_unaligned()) }
            }
        }
    }
}
