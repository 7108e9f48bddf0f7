//! Storage formats of weights: layout, range, and the exact f32 value of each code.

use half::{bf16, f16};

use crate::formats;

/// How the elements of a weight are stored. All are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16: range ±65504, 11 bits of precision.
    F16,
    /// The upper half of a binary32: full range, 8 bits of precision.
    BF16,
    /// 1-4-3, bias 7, no infinity, NaN at 0x7f and 0xff; range ±448.
    F8E4M3,
    /// 1-5-2, bias 15, with infinities; range ±57344.
    F8E5M2,
    /// A signed byte: −127 to 127.
    I8,
    /// Blocks of 32 bytes with a scale: 8.5 bits an element.
    Q8_0,
    /// Blocks of 32 with a scale and a minimum: 6 bits.
    Q5_1,
    /// Blocks of 32 with a scale: 5.5 bits.
    Q5_0,
    /// Blocks of 32 with a scale and a minimum: 5 bits.
    Q4_1,
    /// Blocks of 32 with a scale: 4.5 bits.
    Q4_0,
    /// Blocks of 256, scales of scales: 6.5625 bits.
    Q6K,
    /// Blocks of 256, scales and minima of scales: 5.5 bits.
    Q5K,
    /// The same: 4.5 bits.
    Q4K,
    /// Blocks of 256, scales of scales: 3.4375 bits.
    Q3K,
    /// Blocks of 256, scales and minima of scales: 2.625 bits.
    Q2K,
    /// Blocks of 32 with a scale; one of 16 uneven values: 4.5 bits.
    IQ4NL,
    /// The same with scales of scales, in blocks of 256: 4.25 bits.
    IQ4XS,
    /// Four bits that choose among 16 values, the first of two in a byte's upper half; scales and values lie elsewhere
    /// ([`crate::BlockScales`]).
    NF4,
}

impl DType {
    /// GGUF's blocks, the most bits first.
    pub const BLOCKS: [Self; 12] = [
        Self::Q8_0,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q6K,
        Self::Q5K,
        Self::Q4K,
        Self::Q3K,
        Self::Q2K,
        Self::IQ4NL,
        Self::IQ4XS,
    ];

    /// Elements that are stored together and can only be decoded together; 1 for plain numbers.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2 | Self::I8 => 1,
            Self::Q8_0 | Self::Q5_1 | Self::Q5_0 | Self::Q4_1 | Self::Q4_0 | Self::IQ4NL => 32,
            Self::Q6K | Self::Q5K | Self::Q4K | Self::Q3K | Self::Q2K | Self::IQ4XS => 256,
            Self::NF4 => 64,
        }
    }

    /// Bytes of one [block](DType::block).
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 => 1,
            Self::Q8_0 => 34,
            Self::Q5_1 => 24,
            Self::Q5_0 => 22,
            Self::Q4_1 => 20,
            Self::Q4_0 | Self::IQ4NL => 18,
            Self::Q6K => 210,
            Self::Q5K => 176,
            Self::Q4K => 144,
            Self::Q3K => 110,
            Self::Q2K => 84,
            Self::IQ4XS => 136,
            Self::NF4 => 32,
        }
    }

    /// Bytes that `count` elements, whole blocks, take.
    #[inline(always)]
    pub const fn bytes(self, count: usize) -> usize {
        count / self.block() * self.block_bytes()
    }

    /// The name used in reports: `f32`, `bf16`, `fp8 e4m3fn`, `Q4_K` …
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8E4M3 => "fp8 e4m3fn",
            Self::F8E5M2 => "fp8 e5m2",
            Self::I8 => "int8",
            Self::Q8_0 => "Q8_0",
            Self::Q5_1 => "Q5_1",
            Self::Q5_0 => "Q5_0",
            Self::Q4_1 => "Q4_1",
            Self::Q4_0 => "Q4_0",
            Self::Q6K => "Q6_K",
            Self::Q5K => "Q5_K",
            Self::Q4K => "Q4_K",
            Self::Q3K => "Q3_K",
            Self::Q2K => "Q2_K",
            Self::IQ4NL => "IQ4_NL",
            Self::IQ4XS => "IQ4_XS",
            Self::NF4 => "nf4",
        }
    }

    /// Whether [`crate::cpu::Encoder`] writes it.
    pub fn can_encode(self) -> bool {
        formats::encode::can_encode(self)
    }

    /// Decodes `out.len()` elements from the start of `bytes`, exactly.
    ///
    /// `bytes` may be unaligned, as tensors in a file are. Formats with [blocks](DType::block) want whole ones.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), self.bytes(out.len()), "bytes do not match the elements of {self:?}");
        match self {
            Self::F32 => decode_each(bytes, out, f32::from_le_bytes),
            Self::F16 => decode_each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => decode_each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F8E4M3 => decode_each(bytes, out, |[b]| F8E4M3_VALUES[b as usize]),
            Self::F8E5M2 => decode_each(bytes, out, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
            Self::I8 => decode_each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
            _ => formats::decode(self, bytes, out),
        }
    }
}

#[inline(always)]
fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (out, element) in out.iter_mut().zip(elements) {
        *out = value(*element);
    }
}

/// The value of each e4m3fn code.
static F8E4M3_VALUES: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = f8_e4m3_value(code as u8);
        code += 1;
    }
    table
};

const fn f8_e4m3_value(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = ((code >> 3) & 15) as i32;
    let mantissa = (code & 7) as f32;
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    if exponent == 0 {
        return sign * mantissa / 512.0; // subnormal: m/8 · 2⁻⁶
    }
    // 2^(exponent − 7) by its bit pattern.
    let power = f32::from_bits(((exponent - 7 + 127) as u32) << 23);
    sign * (1.0 + mantissa / 8.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_values_at_the_landmarks() {
        for (code, value) in
            [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xb8, -1.0)]
        {
            assert_eq!(F8E4M3_VALUES[code], value, "code {code:#x}");
        }
        assert!(F8E4M3_VALUES[0x7f].is_nan() && F8E4M3_VALUES[0xff].is_nan());
    }

    #[test]
    fn every_format_decodes_one_half() {
        let cases: [(DType, &[u8]); 5] = [
            (DType::F32, &[0, 0, 0, 0x3f]),
            (DType::F16, &[0, 0x38]),
            (DType::BF16, &[0, 0x3f]),
            (DType::F8E4M3, &[0x30]),
            (DType::F8E5M2, &[0x38]),
        ];
        for (dtype, bytes) in cases {
            let mut out = [0.0];
            dtype.decode(bytes, &mut out);
            assert_eq!(out, [0.5], "{dtype:?}");
        }
    }
}
