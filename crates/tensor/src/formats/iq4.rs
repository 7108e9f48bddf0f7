//! Four bits that choose among sixteen values, denser around zero: `IQ4_NL`, `IQ4_XS`.
//!
//! | format | elements | bytes of a block | value |
//! |---|---|---|---|
//! | `IQ4_NL` | 32 | d, 16 pairs | d·v[q] |
//! | `IQ4_XS` | 256 in groups of 32 | d, 8 upper twos of scales, 8 lower fours, 8·16 pairs | (d·(s − 32))·v[q] |

use super::{Apart, Block, f16_at, nibbles};

pub(crate) struct IQ4NL;
pub(crate) struct IQ4XS;

/// v
static VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

impl Block<18> for IQ4NL {
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const TABLE: Option<&'static [f32; 16]> = Some(&VALUES);

    #[inline(always)]
    fn take_apart(block: &[u8; 18], to: &mut Apart) {
        to.scales[0] = f16_at(block, 0);
        nibbles(&block[2..], &mut to.codes);
    }
}

impl Block<136> for IQ4XS {
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const TABLE: Option<&'static [f32; 16]> = Some(&VALUES);

    #[inline(always)]
    fn take_apart(block: &[u8; 136], to: &mut Apart) {
        let d = f16_at(block, 0);
        let twos = u32::from(u16::from_le_bytes([block[2], block[3]]));
        let fours = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        for i in 0..8 {
            let scale = fours >> (4 * i) & 15 | (twos >> (2 * i) & 3) << 4;
            to.scales[i] = d * (scale as i32 - 32) as f32;
        }
        for (group, codes) in to.codes.chunks_exact_mut(32).enumerate() {
            nibbles(&block[8 + group * 16..], codes);
        }
    }
}
