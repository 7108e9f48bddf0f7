//! Decodes the [formats with blocks](crate::formats).
//!
//! A block is taken apart by byte loops of fixed size, which the compiler makes vectors of once they are compiled with a
//! level's instructions; codes then become numbers a vector at a time.

use super::arch::{Kernel, Vector, VectorSlice};
use crate::{
    BlockScales, DType, StoredRow,
    formats::{Apart, Block, IQ4NL, IQ4XS, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, nf4, nf4::RUN},
};

/// Decodes whole blocks of one row, from element `start` on.
#[inline(always)]
pub(super) fn decode<V: Vector>(row: StoredRow<'_>, start: usize, out: &mut [f32]) {
    V::call(Decode { row, start, out });
}

/// A function of its own: there are many formats, and many places where rows are decoded.
struct Decode<'a> {
    row: StoredRow<'a>,
    start: usize,
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { row: StoredRow { dtype, scale, bytes, blocks }, start, out } = self;
        let bytes = &bytes[dtype.bytes(start)..dtype.bytes(start + out.len())];
        match dtype {
            DType::Q8_0 => decode_as::<V, Q8_0, _>(bytes, out),
            DType::Q5_1 => decode_as::<V, Q5_1, _>(bytes, out),
            DType::Q5_0 => decode_as::<V, Q5_0, _>(bytes, out),
            DType::Q4_1 => decode_as::<V, Q4_1, _>(bytes, out),
            DType::Q4_0 => decode_as::<V, Q4_0, _>(bytes, out),
            DType::Q6K => decode_as::<V, Q6K, _>(bytes, out),
            DType::Q5K => decode_as::<V, Q5K, _>(bytes, out),
            DType::Q4K => decode_as::<V, Q4K, _>(bytes, out),
            DType::Q3K => decode_as::<V, Q3K, _>(bytes, out),
            DType::Q2K => decode_as::<V, Q2K, _>(bytes, out),
            DType::IQ4NL => decode_as::<V, IQ4NL, _>(bytes, out),
            DType::IQ4XS => decode_as::<V, IQ4XS, _>(bytes, out),
            DType::NF4 => decode_nf4::<V>(bytes, blocks.map(|(scales, first)| (scales, first + start)), out),
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | DType::I8 => {
                unreachable!("{dtype:?} has no blocks")
            }
        }
        if scale != 1.0 {
            for out in out.chunks_mut(V::LANES) {
                V::from_slice(out).mul(V::splat(scale)).to_slice(out);
            }
        }
    }
}

#[inline(always)]
fn decode_as<V: Vector, B: Block<BYTES>, const BYTES: usize>(bytes: &[u8], out: &mut [f32]) {
    let mut apart = Apart::new();
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.chunks_exact_mut(B::LEN)) {
        B::take_apart(block, &mut apart);
        for (group, out) in out.chunks_exact_mut(B::GROUP).enumerate() {
            let scale = V::splat(apart.scales[group]);
            for (i, out) in out.chunks_exact_mut(V::LANES).enumerate() {
                let codes = &apart.codes[group * B::GROUP + i * V::LANES..];
                let codes = match B::TABLE {
                    Some(table) => V::look_up(table, codes),
                    None => V::from_i8(codes),
                };
                let value = scale.mul(codes);
                let value = if B::MINIMA { value.sub(V::splat(apart.minima[group])) } else { value };
                value.to_slice(out);
            }
        }
    }
}

/// `scales` with the first element as they count; without them all scales are 1.
#[inline(always)]
fn decode_nf4<V: Vector>(bytes: &[u8], scales: Option<(&BlockScales, usize)>, out: &mut [f32]) {
    /// Runs whose scales are looked up together.
    const SOME: usize = 16;
    let values = match scales {
        Some((scales, _)) => &scales.values,
        None => &nf4::VALUES,
    };
    let (mut factors, mut codes) = ([1.0; SOME], [0; RUN]);
    for (i, (bytes, out)) in bytes.chunks(SOME * RUN / 2).zip(out.chunks_mut(SOME * RUN)).enumerate() {
        if let Some((scales, first)) = scales {
            scales.read(first + i * SOME * RUN, &mut factors[..out.len() / RUN]);
        }
        for (run, out) in out.chunks_exact_mut(RUN).enumerate() {
            nf4::codes(&bytes[run * RUN / 2..], &mut codes);
            let factor = V::splat(factors[run]);
            for (codes, out) in codes.chunks_exact(V::LANES).zip(out.chunks_exact_mut(V::LANES)) {
                V::look_up(values, codes).mul(factor).to_slice(out);
            }
        }
    }
}
