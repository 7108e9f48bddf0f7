//! Blocks of 256 whose groups have small integer scales under f16 ones: `Q6_K`, `Q5_K`, `Q4_K`, `Q3_K`, `Q2_K`.
//! Twos and fours: consecutive bytes hold consecutive elements, the next such row of elements is one shift further up.
//!
//! | format | bytes of a block | groups | value |
//! |---|---|---|---|
//! | `Q6_K` | 128 lower fours, 64 upper twos, 16 signed scales, d | 16 of 16 | (d·s)·(q − 32) |
//! | `Q5_K` | d, dmin, 12 of scales, 32 fifth bits, 128 lower fours | 8 of 32 | (d·s)·q − dmin·m |
//! | `Q4_K` | d, dmin, 12 of scales, 128 fours | 8 of 32 | (d·s)·q − dmin·m |
//! | `Q3_K` | 32 third bits, 64 lower twos, 12 of scales, d | 16 of 16 | (d·(s − 32))·(q − 4) |
//! | `Q2_K` | 16 of scales (lower half s, upper half m), 64 twos, d, dmin | 16 of 16 | (d·s)·q − dmin·m |

use super::{Apart, Block, f16_at};

pub(crate) struct Q6K;
pub(crate) struct Q5K;
pub(crate) struct Q4K;
pub(crate) struct Q3K;
pub(crate) struct Q2K;

impl Block<210> for Q6K {
    const LEN: usize = 256;
    const GROUP: usize = 16;

    #[inline(always)]
    fn take_apart(block: &[u8; 210], to: &mut Apart) {
        let d = f16_at(block, 208);
        for (scale, s) in to.scales.iter_mut().zip(&block[192..208]) {
            *scale = d * f32::from(*s as i8);
        }
        for (half, codes) in to.codes.chunks_exact_mut(128).enumerate() {
            let fours = &block[half * 64..][..64];
            let twos = &block[128 + half * 32..][..32];
            for i in 0..32 {
                codes[i] = (fours[i] & 15 | (twos[i] & 3) << 4).wrapping_sub(32);
                codes[32 + i] = (fours[32 + i] & 15 | (twos[i] >> 2 & 3) << 4).wrapping_sub(32);
                codes[64 + i] = (fours[i] >> 4 | (twos[i] >> 4 & 3) << 4).wrapping_sub(32);
                codes[96 + i] = (fours[32 + i] >> 4 | (twos[i] >> 6) << 4).wrapping_sub(32);
            }
        }
    }
}

impl Block<176> for Q5K {
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn take_apart(block: &[u8; 176], to: &mut Apart) {
        scales_and_minima(block, to);
        let fifths = &block[16..48];
        for (pair, codes) in to.codes.chunks_exact_mut(64).enumerate() {
            let fours = &block[48 + pair * 32..][..32];
            for i in 0..32 {
                codes[i] = fours[i] & 15 | (fifths[i] >> (2 * pair) & 1) << 4;
                codes[32 + i] = fours[i] >> 4 | (fifths[i] >> (2 * pair + 1) & 1) << 4;
            }
        }
    }
}

impl Block<144> for Q4K {
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn take_apart(block: &[u8; 144], to: &mut Apart) {
        scales_and_minima(block, to);
        for (pair, codes) in to.codes.chunks_exact_mut(64).enumerate() {
            let fours = &block[16 + pair * 32..][..32];
            for i in 0..32 {
                codes[i] = fours[i] & 15;
                codes[32 + i] = fours[i] >> 4;
            }
        }
    }
}

impl Block<110> for Q3K {
    const LEN: usize = 256;
    const GROUP: usize = 16;

    #[inline(always)]
    fn take_apart(block: &[u8; 110], to: &mut Apart) {
        let d = f16_at(block, 108);
        let packed = &block[96..108];
        for i in 0..16 {
            let lower = packed[i % 8] >> (4 * (i / 8)) & 15;
            let upper = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            to.scales[i] = d * f32::from((lower | upper << 4) as i8 - 32);
        }
        let thirds = &block[..32];
        for (half, codes) in to.codes.chunks_exact_mut(128).enumerate() {
            let twos = &block[32 + half * 32..][..32];
            for (shift, codes) in codes.chunks_exact_mut(32).enumerate() {
                for i in 0..32 {
                    let upper = thirds[i] >> (4 * half + shift) & 1;
                    codes[i] = (twos[i] >> (2 * shift) & 3 | upper << 2).wrapping_sub(4);
                }
            }
        }
    }
}

impl Block<84> for Q2K {
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const MINIMA: bool = true;

    #[inline(always)]
    fn take_apart(block: &[u8; 84], to: &mut Apart) {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        for ((scale, minimum), byte) in to.scales.iter_mut().zip(&mut to.minima).zip(&block[..16]) {
            *scale = d * f32::from(byte & 15);
            *minimum = dmin * f32::from(byte >> 4);
        }
        for (half, codes) in to.codes.chunks_exact_mut(128).enumerate() {
            let twos = &block[16 + half * 32..][..32];
            for (shift, codes) in codes.chunks_exact_mut(32).enumerate() {
                for i in 0..32 {
                    codes[i] = twos[i] >> (2 * shift) & 3;
                }
            }
        }
    }
}

/// The head of `Q4_K` and `Q5_K`: d, dmin, and eight scales and eight minima of six bits. The first four of each lie in the
/// lower six bits of four bytes; of the last four the lower half lies in four bytes of their own, the rest above the first.
#[inline(always)]
fn scales_and_minima(block: &[u8], to: &mut Apart) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (first_scales, first_minima, fours) = (word(4), word(8), word(12));
    let uppers = |first: u32| first >> 2 & 0x3030_3030;
    let scales = [first_scales & 0x3f3f_3f3f, fours & 0x0f0f_0f0f | uppers(first_scales)];
    let minima = [first_minima & 0x3f3f_3f3f, fours >> 4 & 0x0f0f_0f0f | uppers(first_minima)];
    for i in 0..8 {
        let byte = |words: [u32; 2]| (words[i / 4] >> (8 * (i % 4))) as u8;
        to.scales[i] = d * f32::from(byte(scales));
        to.minima[i] = dmin * f32::from(byte(minima));
    }
}
