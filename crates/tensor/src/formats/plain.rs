//! Blocks of 32 with a scale, and perhaps a minimum, as f16: `Q8_0`, `Q5_1`, `Q5_0`, `Q4_1`, `Q4_0`.
//! Lower halves of pairs of four bits are the first 16 elements, upper halves the last.
//!
//! | format | bytes of a block | value |
//! |---|---|---|
//! | `Q8_0` | d, 32 signed bytes | d·q |
//! | `Q5_1` | d, m, 32 fifth bits, 16 pairs of four bits | d·q + m |
//! | `Q5_0` | d, 32 fifth bits, 16 pairs of four bits | d·(q − 16) |
//! | `Q4_1` | d, m, 16 pairs | d·q + m |
//! | `Q4_0` | d, 16 pairs | d·(q − 8) |

use super::{Apart, Block, f16_at, nibbles};

pub(crate) struct Q8_0;
pub(crate) struct Q5_1;
pub(crate) struct Q5_0;
pub(crate) struct Q4_1;
pub(crate) struct Q4_0;

impl Block<34> for Q8_0 {
    const LEN: usize = 32;
    const GROUP: usize = 32;

    #[inline(always)]
    fn take_apart(block: &[u8; 34], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        to.codes[..32].copy_from_slice(&block[2..]);
    }
}

impl Block<24> for Q5_1 {
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn take_apart(block: &[u8; 24], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        to.minima[0] = -f16_at(block, 2); // subtracting −m is adding m, in every bit
        nibbles(&block[8..], &mut to.codes);
        fifth_bits(&block[4..], &mut to.codes);
    }
}

impl Block<22> for Q5_0 {
    const LEN: usize = 32;
    const GROUP: usize = 32;

    #[inline(always)]
    fn take_apart(block: &[u8; 22], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        nibbles(&block[6..], &mut to.codes);
        fifth_bits(&block[2..], &mut to.codes);
        centre(&mut to.codes, 16);
    }
}

impl Block<20> for Q4_1 {
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn take_apart(block: &[u8; 20], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        to.minima[0] = -f16_at(block, 2);
        nibbles(&block[4..], &mut to.codes);
    }
}

impl Block<18> for Q4_0 {
    const LEN: usize = 32;
    const GROUP: usize = 32;

    #[inline(always)]
    fn take_apart(block: &[u8; 18], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        nibbles(&block[2..], &mut to.codes);
        centre(&mut to.codes, 8);
    }
}

/// Bit `i` of four bytes is worth 16 in element `i`.
#[inline(always)]
fn fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((bits >> i & 1) << 4) as u8;
    }
}

#[inline(always)]
fn centre(codes: &mut [u8], middle: u8) {
    for code in &mut codes[..32] {
        *code = code.wrapping_sub(middle);
    }
}
