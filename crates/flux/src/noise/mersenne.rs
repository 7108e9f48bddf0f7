//! `PyTorch`'s CPU generator: MT19937 words made normal by Box and Muller, sixteen values at a time.
//!
//! Fewer than 16 values take another path, in double precision, whose second value waits in the generator.
//! Source: pytorch/aten/src/ATen/native/cpu/DistributionTemplates.h `normal_fill`, `core/MT19937RNGEngine.h`.

use std::f32::consts::TAU;
use std::f64;

use half::bf16;

use super::cephes;

const WORDS: usize = 624;
const BLOCK: usize = 16;

/// The engine's state, and the normal value that an odd number of small draws leaves over.
#[derive(Clone, Debug)]
pub(super) struct Mersenne {
    state: [u32; WORDS],
    next: usize,
    left_over: Option<f64>,
}

impl Mersenne {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = [seed as u32; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: WORDS, left_over: None }
    }

    pub(super) fn fill_f32(&mut self, values: &mut [f32]) {
        self.fill(values, |word| (word & 0xFF_FFFF) as f32 * 2.0_f32.powi(-24), block_f32, |value| value as f32);
    }

    pub(super) fn fill_bf16(&mut self, values: &mut [f32]) {
        self.fill(values, |word| (word & 0xFF) as f32 / 256.0, block_bf16, |value| round_bf16(value as f32));
    }

    /// All uniforms are drawn before any is transformed; a length that is no multiple of 16 gets its last 16 values anew.
    fn fill(
        &mut self,
        values: &mut [f32],
        uniform: impl Fn(u32) -> f32,
        block: impl Fn(&mut [f32]),
        round: impl Fn(f64) -> f32,
    ) {
        if values.len() < BLOCK {
            values.fill_with(|| round(self.single()));
            return;
        }
        values.fill_with(|| uniform(self.word()));
        values.chunks_exact_mut(BLOCK).for_each(&block);
        if !values.len().is_multiple_of(BLOCK) {
            let tail = values.len() - BLOCK;
            values[tail..].fill_with(|| uniform(self.word()));
            block(&mut values[tail..]);
        }
    }

    fn single(&mut self) -> f64 {
        if let Some(value) = self.left_over.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (f64::consts::TAU * u1).sin_cos();
        self.left_over = Some(radius * sin);
        radius * cos
    }

    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (self.word() as u64, self.word() as u64);
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * 2.0_f64.powi(-53)
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
            let odd = if mixed & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + 397) % WORDS] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Uniforms 0–7 give radii, 8–15 angles. `+ 0.0` is the mean: it makes -0 into +0.
fn block_f32(values: &mut [f32]) {
    for j in 0..BLOCK / 2 {
        let radius = (-2.0 * cephes::ln(1.0 - values[j])).sqrt();
        let (sin, cos) = cephes::sin_cos(TAU * values[j + 8]);
        values[j] = radius * cos + 0.0;
        values[j + 8] = radius * sin + 0.0;
    }
}

/// As [`block_f32`], each operation rounded to bfloat16. Transcendentals are taken in f64, so that no platform's f32
/// library shows.
fn block_bf16(values: &mut [f32]) {
    let round = |value: f64| round_bf16(value as f32) as f64;
    for j in 0..BLOCK / 2 {
        let u1 = round(1.0 - values[j] as f64);
        let radius = round(round(-2.0 * round(u1.ln())).sqrt());
        let angle = round(f64::consts::TAU * values[j + 8] as f64);
        values[j] = round(radius * round(angle.cos())) as f32 + 0.0;
        values[j + 8] = round(radius * round(angle.sin())) as f32 + 0.0;
    }
}

fn round_bf16(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_published_ones() {
        // Matsumoto and Nishimura's reference: the 10,000th word of seed 5489.
        let mut engine = Mersenne::new(5489);
        let word = (0..10_000).map(|_| engine.word()).last();
        assert_eq!(word, Some(4_123_659_995));
    }

    #[test]
    fn zero_is_positive() {
        let mut values = [0.0; 16];
        block_f32(&mut values);
        assert!(values.iter().all(|v| v.to_bits() == 0));
        block_bf16(&mut values);
        assert!(values.iter().all(|v| v.to_bits() == 0));
    }
}
