//! Normal noise by seed, bit for bit as `PyTorch` draws it: from the same seed comes the same picture.
//!
//! Values are ~ N(0, 1), in the order of a contiguous tensor. Which of `PyTorch`'s generators is meant is part of the
//! request ([`Noise`]), because each of them gives other numbers for the same seed.
//! Source: pytorch/aten/src/ATen/native/{cpu/DistributionTemplates.h, cuda/DistributionTemplates.h}.

mod cephes;
mod mersenne;
mod philox;

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use mersenne::Mersenne;
use philox::Philox;

/// Multiprocessors of an H100 SXM, the device that [`Noise::Philox`] imitates unless told otherwise.
pub const H100_MULTIPROCESSORS: u32 = 132;

/// Which generator noise is drawn from.
///
/// Its text form is `cpu-f32`, `cpu-bf16` or `philox:MULTIPROCESSORS` (`philox` alone means `philox:132`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Noise {
    /// `torch.randn(…, generator=CPU)` in float32, as on every x86-64 machine with AVX2. `ComfyUI` draws this.
    #[default]
    CpuF32,
    /// The same in bfloat16, as BFL and diffusers draw it: coarser (8-bit uniforms, |x| ≤ 3.33) and other numbers.
    CpuBf16,
    /// A CUDA device's generator, as the Krea repository draws it. The device's own sine and logarithm are approximate:
    /// values agree with a GPU's to about 1e-6, not bit for bit.
    Philox {
        /// Multiprocessors of the imitated GPU, in units of 2048 resident threads. It matters because a launch runs at
        /// most that many threads, and the elements beyond them come from second draws: an H100 (132) has a thread for
        /// each of the 262,144 values of a 1024² picture, an A100 (108) has not. An RTX 4090 has 128 multiprocessors
        /// of 1536 threads: say 96.
        multiprocessors: u32,
    },
}

impl Noise {
    /// The first `n` values of a fresh generator.
    pub fn normal(self, seed: u64, n: usize) -> Vec<f32> {
        Generator::new(self, seed).randn(n)
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CpuF32 => f.write_str("cpu-f32"),
            Self::CpuBf16 => f.write_str("cpu-bf16"),
            Self::Philox { multiprocessors } => write!(f, "philox:{multiprocessors}"),
        }
    }
}

impl FromStr for Noise {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `noise` if the name is none of those above.
    fn from_str(name: &str) -> Result<Self, Error> {
        let philox = |count: &str| match count.parse() {
            Ok(multiprocessors) if (1..=4096).contains(&multiprocessors) => Ok(Self::Philox { multiprocessors }),
            _ => {
                Err(Error::asked("noise", format!("expected 1 to 4096 multiprocessors after 'philox:', got '{count}'")))
            }
        };
        match name {
            "cpu-f32" => Ok(Self::CpuF32),
            "cpu-bf16" => Ok(Self::CpuBf16),
            "philox" => Ok(Self::Philox { multiprocessors: H100_MULTIPROCESSORS }),
            _ => match name.strip_prefix("philox:") {
                Some(count) => philox(count),
                None => {
                    Err(Error::asked("noise", format!("expected cpu-f32, cpu-bf16, philox or philox:N, got '{name}'")))
                }
            },
        }
    }
}

/// A seeded generator for draws in succession, as img2img makes them: the encoder's sample first, then the noise.
#[derive(Clone, Debug)]
pub struct Generator(Source);

#[derive(Clone, Debug)]
enum Source {
    CpuF32(Mersenne),
    CpuBf16(Mersenne),
    Cuda(Philox),
}

impl Generator {
    /// `torch.Generator().manual_seed(seed)`. The CPU kinds see only the seed's low 32 bits, as in `PyTorch`.
    pub fn new(noise: Noise, seed: u64) -> Self {
        Self(match noise {
            Noise::CpuF32 => Source::CpuF32(Mersenne::new(seed)),
            Noise::CpuBf16 => Source::CpuBf16(Mersenne::new(seed)),
            Noise::Philox { multiprocessors } => Source::Cuda(Philox::new(seed, multiprocessors)),
        })
    }

    /// The next `torch.randn(n)`: values ~ N(0, 1). One draw of 32 and two of 16 agree on the CPU, but in general the
    /// lengths of the draws matter.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        match &mut self.0 {
            Source::CpuF32(engine) => engine.fill_f32(&mut values),
            Source::CpuBf16(engine) => engine.fill_bf16(&mut values),
            Source::Cuda(engine) => engine.fill(&mut values),
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in ["cpu-f32", "cpu-bf16", "philox:132", "philox:96"] {
            assert_eq!(name.parse::<Noise>().unwrap().to_string(), name);
        }
        assert_eq!("philox".parse::<Noise>().unwrap(), Noise::Philox { multiprocessors: H100_MULTIPROCESSORS });
        for name in ["", "cpu", "philox:", "philox:0", "philox:-1", "CPU-F32", "philox:99999999999"] {
            assert!(name.parse::<Noise>().is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_is_drawn_for_nothing() {
        for noise in [Noise::CpuF32, Noise::CpuBf16, Noise::Philox { multiprocessors: 1 }] {
            let mut generator = Generator::new(noise, 3);
            assert!(generator.randn(0).is_empty());
            assert_eq!(generator.randn(32), noise.normal(3, 32));
        }
    }
}
