//! `PyTorch`'s CUDA generator: Philox4x32-10, the counter laid out over threads as a launch on the GPU lays it out.
//!
//! Element `i` comes from thread `i mod T`, component `⌊i / T⌋ mod 4`, round `⌊i / 4T⌋`; `T` depends on the device.
//! Source: Salmon et al. 2011; pytorch/aten/src/ATen/native/cuda/DistributionTemplates.h; `curand_normal.h`.

use std::f32::consts::TAU;

const THREADS_PER_BLOCK: usize = 256;
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;

/// A key and how far its counter has advanced.
#[derive(Clone, Debug)]
pub(super) struct Philox {
    seed: u64,
    /// In steps of four words, as the counter counts.
    offset: u64,
    most_blocks: usize,
}

impl Philox {
    pub(super) fn new(seed: u64, multiprocessors: u32) -> Self {
        Self { seed, offset: 0, most_blocks: multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR }
    }

    pub(super) fn fill(&mut self, values: &mut [f32]) {
        let blocks = values.len().div_ceil(THREADS_PER_BLOCK).min(self.most_blocks);
        let threads = blocks * THREADS_PER_BLOCK;
        if threads == 0 {
            return;
        }
        for round in values.chunks_mut(4 * threads) {
            for thread in 0..threads.min(round.len()) {
                let [a, b, c, d] = words(self.seed, self.offset, thread as u64);
                let ((x, y), (z, w)) = (box_muller(a, b), box_muller(c, d));
                for (component, value) in [x, y, z, w].into_iter().enumerate() {
                    if let Some(element) = round.get_mut(component * threads + thread) {
                        *element = value;
                    }
                }
            }
            self.offset += 1;
        }
    }
}

/// Ten rounds over the counter `offset | thread << 64`.
fn words(seed: u64, offset: u64, thread: u64) -> [u32; 4] {
    let mut c = [offset as u32, (offset >> 32) as u32, thread as u32, (thread >> 32) as u32];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let (p, q) = (0xD251_1F53_u64 * c[0] as u64, 0xCD9E_8D57_u64 * c[2] as u64);
        c = [(q >> 32) as u32 ^ c[1] ^ key[0], q as u32, (p >> 32) as u32 ^ c[3] ^ key[1], p as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Two words to two normal values: f32 arguments as the device forms them, then the true functions.
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let unit = 2.0_f32.powi(-32);
    let u = (a as f32).mul_add(unit, unit / 2.0) as f64;
    let v = (b as f32).mul_add(unit * TAU, unit * TAU / 2.0) as f64;
    let radius = (-2.0 * u.ln()).sqrt();
    ((radius * v.sin()) as f32, (radius * v.cos()) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_published_ones() {
        // Random123's known answers for philox4x32-10.
        assert_eq!(words(0, 0, 0), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(words(u64::MAX, u64::MAX, u64::MAX), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
    }

    #[test]
    fn elements_beyond_the_threads_come_from_further_components_and_rounds() {
        let threads = BLOCKS_PER_MULTIPROCESSOR * THREADS_PER_BLOCK;
        let mut engine = Philox::new(9, 1);
        let mut values = vec![0.0; 4 * threads + 7];
        engine.fill(&mut values);
        let [a, b, c, d] = words(9, 0, 5);
        assert_eq!((values[5], values[threads + 5]), box_muller(a, b));
        assert_eq!((values[2 * threads + 5], values[3 * threads + 5]), box_muller(c, d));
        let [a, b, ..] = words(9, 1, 5);
        assert_eq!(values[4 * threads + 5], box_muller(a, b).0);
        // The next draw goes on behind both rounds.
        let mut more = [0.0; 1];
        engine.fill(&mut more);
        let [a, b, ..] = words(9, 2, 0);
        assert_eq!(more[0], box_muller(a, b).0);
    }
}
