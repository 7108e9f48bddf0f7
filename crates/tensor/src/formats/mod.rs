//! Quantised formats in blocks: some elements share a scale, and some a minimum.
//!
//! Each is a [`Block`]: its bytes are taken apart into integer codes and a scale (and minimum) for each group of them; a value
//! is then `scale · code`, or `scale · code − minimum`, each operation rounded to f32. That is the order of the
//! reference in Python's `gguf` (`gguf/quants.py`), which `tests/blocks.rs` compares every bit with; layouts are also those of ggml's
//! `ggml-common.h`. Taking apart is loops over arrays of fixed size, which the compiler makes vectors of.

pub(crate) mod encode;
mod iq4;
mod k;
pub(crate) mod nf4;
mod plain;
mod search;

pub(crate) use self::{
    iq4::{IQ4NL, IQ4XS},
    k::{Q2K, Q3K, Q4K, Q5K, Q6K},
    plain::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0},
};
use crate::DType;

/// The most elements of a block.
const MOST: usize = 256;

/// A block, taken apart.
pub(crate) struct Apart {
    /// A signed byte for each element, or an index of [`Block::TABLE`].
    pub(crate) codes: [u8; MOST],
    /// A scale for each group.
    pub(crate) scales: [f32; MOST / 16],
    /// What is subtracted from each group.
    pub(crate) minima: [f32; MOST / 16],
}

impl Apart {
    pub(crate) const fn new() -> Self {
        Self { codes: [0; MOST], scales: [0.0; MOST / 16], minima: [0.0; MOST / 16] }
    }
}

/// A format whose blocks take `BYTES` bytes.
pub(crate) trait Block<const BYTES: usize> {
    /// Elements of a block.
    const LEN: usize;
    /// Elements that share a scale.
    const GROUP: usize;
    /// Whether something is subtracted.
    const MINIMA: bool = false;
    /// The values of the codes, where they are not the codes themselves.
    const TABLE: Option<&'static [f32; 16]> = None;

    /// Takes a block apart.
    fn take_apart(block: &[u8; BYTES], to: &mut Apart);
}

/// Decodes whole blocks of a format that has them, in plain loops.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Q8_0 => decode_as::<Q8_0, _>(bytes, out),
        DType::Q5_1 => decode_as::<Q5_1, _>(bytes, out),
        DType::Q5_0 => decode_as::<Q5_0, _>(bytes, out),
        DType::Q4_1 => decode_as::<Q4_1, _>(bytes, out),
        DType::Q4_0 => decode_as::<Q4_0, _>(bytes, out),
        DType::Q6K => decode_as::<Q6K, _>(bytes, out),
        DType::Q5K => decode_as::<Q5K, _>(bytes, out),
        DType::Q4K => decode_as::<Q4K, _>(bytes, out),
        DType::Q3K => decode_as::<Q3K, _>(bytes, out),
        DType::Q2K => decode_as::<Q2K, _>(bytes, out),
        DType::IQ4NL => decode_as::<IQ4NL, _>(bytes, out),
        DType::IQ4XS => decode_as::<IQ4XS, _>(bytes, out),
        DType::NF4 => nf4::decode(bytes, &nf4::VALUES, out),
        DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | DType::I8 => {
            unreachable!("{dtype:?} has no blocks")
        }
    }
}

fn decode_as<B: Block<BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [f32]) {
    let mut apart = Apart::new();
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.chunks_exact_mut(B::LEN)) {
        B::take_apart(block, &mut apart);
        for (i, out) in out.iter_mut().enumerate() {
            let code = apart.codes[i];
            let code = B::TABLE.map_or(f32::from(code as i8), |table| table[usize::from(code & 15)]);
            *out = apart.scales[i / B::GROUP] * code;
            if B::MINIMA {
                *out -= apart.minima[i / B::GROUP];
            }
        }
    }
}

/// The f16 at `at`, as f32; in integers, since the compiler has no instruction for it on the oldest machines.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let sign = (bits & 0x8000) << 16;
    let size = (bits & 0x7fff) << 13;
    // The exponent's bias differs by 112. Below 2⁻¹⁴ the exponent is that of 2⁻¹⁴ and the leading one is not there.
    let normal = f32::from_bits(size + (112 << 23));
    let subnormal = f32::from_bits(size + (113 << 23)) - f32::from_bits(113 << 23);
    let infinite = f32::from_bits(size + (224 << 23));
    let value = match size {
        ..0x0080_0000 => subnormal,
        0x0f80_0000.. => infinite,
        _ => normal,
    };
    f32::from_bits(value.to_bits() | sign)
}

/// Sixteen bytes to 32 codes: lower halves first, then upper halves.
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (bytes, codes) = (&bytes[..16], &mut codes[..32]);
    for i in 0..16 {
        codes[i] = bytes[i] & 15;
        codes[16 + i] = bytes[i] >> 4;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_f16_is_exact() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (super::f16_at(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{bits:#x}");
        }
    }
}
