//! Numbers to storage formats.
//!
//! Plain formats round to the nearest code. `Q8_0`, `Q5_1`, `Q5_0`, `Q4_1` and `Q4_0` follow `PyPI` `gguf`'s `quantize`
//! (`gguf/quants.py`) operation by operation and give its bytes; the formats with scales of scales have [a search](super::search)
//! of their own. Loops run over arrays of sixteen lanes, in one order and without fused products, so that every machine writes
//! the same file.

use half::{bf16, f16};

use super::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::DType;

/// Elements that loops take at a time.
const LANES: usize = 16;

/// Whether there is an encoder for a format.
pub(crate) fn can_encode(dtype: DType) -> bool {
    let blocks = [DType::Q8_0, DType::Q5_1, DType::Q5_0, DType::Q4_1, DType::Q4_0, DType::Q6K, DType::Q5K, DType::Q4K];
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::I8) || blocks.contains(&dtype)
}

/// Writes a row, whole blocks, in a format; gives the scale that decoded elements are to be multiplied by (1 but for `I8`).
///
/// # Panics
/// If `bytes` does not have the row's size, or the format has no encoder.
#[inline(always)]
pub(crate) fn encode_row(dtype: DType, row: &[f32], bytes: &mut [u8]) -> f32 {
    assert_eq!(bytes.len(), dtype.bytes(row.len()), "bytes do not match the elements of {dtype:?}");
    match dtype {
        DType::F32 => encode_each(row, bytes, f32::to_le_bytes),
        DType::F16 => encode_each(row, bytes, |x| f16::from_f32(x).to_le_bytes()),
        DType::BF16 => encode_each(row, bytes, |x| bf16::from_f32(x).to_le_bytes()),
        DType::I8 => return int8(row, bytes),
        DType::Q8_0 => encode_blocks::<Q8_0, _, _>(row, bytes),
        DType::Q5_1 => encode_blocks::<Q5_1, _, _>(row, bytes),
        DType::Q5_0 => encode_blocks::<Q5_0, _, _>(row, bytes),
        DType::Q4_1 => encode_blocks::<Q4_1, _, _>(row, bytes),
        DType::Q4_0 => encode_blocks::<Q4_0, _, _>(row, bytes),
        DType::Q6K => encode_blocks::<Q6K, _, _>(row, bytes),
        DType::Q5K => encode_blocks::<Q5K, _, _>(row, bytes),
        DType::Q4K => encode_blocks::<Q4K, _, _>(row, bytes),
        _ => panic!("{dtype:?} cannot be written"),
    }
    1.0
}

#[inline(always)]
fn encode_each<const N: usize>(row: &[f32], bytes: &mut [u8], code: impl Fn(f32) -> [u8; N]) {
    for (x, bytes) in row.iter().zip(bytes.as_chunks_mut::<N>().0) {
        *bytes = code(*x);
    }
}

/// A format whose blocks of `LEN` elements and `BYTES` bytes can be written. (A trait and not a function that is handed on: those
/// are compiled without a level's instructions.)
pub(super) trait Encode<const LEN: usize, const BYTES: usize> {
    /// Writes a block.
    fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]);
}

#[inline(always)]
fn encode_blocks<E: Encode<LEN, BYTES>, const LEN: usize, const BYTES: usize>(row: &[f32], bytes: &mut [u8]) {
    for (x, bytes) in row.as_chunks::<LEN>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
        E::encode(x, bytes);
    }
}

/// Signed bytes and the row's scale, its largest element / 127.
#[inline(always)]
fn int8(row: &[f32], bytes: &mut [u8]) -> f32 {
    let largest = row.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    for (x, byte) in row.iter().zip(bytes) {
        *byte = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
    scale
}

/// 1/d, or 0 where that is no number.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The largest and the smallest.
#[inline(always)]
pub(super) fn extremes(x: &[f32]) -> (f32, f32) {
    let (mut high, mut low) = ([f32::MIN; LANES], [f32::MAX; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            high[i] = if x[i] > high[i] { x[i] } else { high[i] };
            low[i] = if x[i] < low[i] { x[i] } else { low[i] };
        }
    }
    let (mut highest, mut lowest) = (high[0], low[0]);
    for i in 1..LANES {
        highest = if high[i] > highest { high[i] } else { highest };
        lowest = if low[i] < lowest { low[i] } else { lowest };
    }
    (highest, lowest)
}

/// The element of the largest size; of two of one size the first.
#[inline(always)]
fn furthest(x: &[f32; 32]) -> f32 {
    let (highest, lowest) = extremes(x);
    if highest > -lowest {
        highest
    } else if -lowest > highest {
        lowest
    } else {
        x.iter().copied().find(|x| x.abs() == highest).unwrap_or(highest)
    }
}

#[inline(always)]
fn put_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Codes below 16: the first sixteen into lower halves, the others into upper halves.
#[inline(always)]
fn put_nibbles(codes: &[u8; 32], bytes: &mut [u8]) {
    for (i, byte) in bytes[..16].iter_mut().enumerate() {
        *byte = codes[i] & 15 | codes[16 + i] << 4;
    }
}

#[inline(always)]
fn put_fifth_bits(codes: &[u8; 32], bytes: &mut [u8]) {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4) << i);
    bytes[..4].copy_from_slice(&bits.to_le_bytes());
}

/// `(x − low) · inverse + half`, cut off, at most `top`.
#[inline(always)]
fn codes(x: &[f32; 32], low: f32, inverse: f32, half: f32, top: u8) -> [u8; 32] {
    let mut codes = [0; 32];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((x - low) * inverse + half) as u8;
        *code = (*code).min(top);
    }
    codes
}

impl Encode<32, 34> for Q8_0 {
    #[inline(always)]
    fn encode(x: &[f32; 32], block: &mut [u8; 34]) {
        let (highest, lowest) = extremes(x);
        let d = highest.max(-lowest) / 127.0;
        let inverse = inverse(d);
        put_f16(block, 0, d);
        for (byte, x) in block[2..].iter_mut().zip(x) {
            // Halves go away from zero.
            let size = (x * inverse).abs();
            let whole = size.trunc();
            let rounded = whole + ((size - whole) * 2.0).trunc();
            *byte = (if *x < 0.0 { -rounded } else { rounded }) as i8 as u8;
        }
    }
}

impl Encode<32, 24> for Q5_1 {
    #[inline(always)]
    fn encode(x: &[f32; 32], block: &mut [u8; 24]) {
        let (highest, lowest) = extremes(x);
        let d = (highest - lowest) / 31.0;
        let codes = codes(x, lowest, inverse(d), 0.5, 31);
        put_f16(block, 0, d);
        put_f16(block, 2, lowest);
        put_fifth_bits(&codes, &mut block[4..]);
        put_nibbles(&codes, &mut block[8..]);
    }
}

impl Encode<32, 22> for Q5_0 {
    #[inline(always)]
    fn encode(x: &[f32; 32], block: &mut [u8; 22]) {
        let d = furthest(x) / -16.0;
        let codes = codes(x, 0.0, inverse(d), 16.5, 31);
        put_f16(block, 0, d);
        put_fifth_bits(&codes, &mut block[2..]);
        put_nibbles(&codes, &mut block[6..]);
    }
}

impl Encode<32, 20> for Q4_1 {
    #[inline(always)]
    fn encode(x: &[f32; 32], block: &mut [u8; 20]) {
        let (highest, lowest) = extremes(x);
        let d = (highest - lowest) / 15.0;
        let codes = codes(x, lowest, inverse(d), 0.5, 15);
        put_f16(block, 0, d);
        put_f16(block, 2, lowest);
        put_nibbles(&codes, &mut block[4..]);
    }
}

impl Encode<32, 18> for Q4_0 {
    #[inline(always)]
    fn encode(x: &[f32; 32], block: &mut [u8; 18]) {
        let d = furthest(x) / -8.0;
        let codes = codes(x, 0.0, inverse(d), 8.5, 15);
        put_f16(block, 0, d);
        put_nibbles(&codes, &mut block[2..]);
    }
}
