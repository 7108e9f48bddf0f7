//! Norms of rows (layer, RMS) and of channel groups over a picture.
//!
//! Variances are taken around the mean, not as a difference of squares. A picture's statistics are taken over blocks of a
//! fixed number of pixels and put together in their order (Chan et al.), so that they do not depend on who computed them.

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
    parallel::with_scratch,
};
use crate::{
    GroupNorm,
    host::{HostBuffer, values},
};

/// Pixels whose statistics are taken together.
const PIXELS: usize = 128;

/// What follows a layer norm: `(1 + scale) · y + shift`.
#[derive(Clone, Copy)]
pub(super) struct Modulation<'a> {
    pub(super) shift: &'a [f32],
    pub(super) scale: &'a [f32],
}

/// Groups of channels and what follows their norm.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub(super) count: usize,
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl<'a> Groups<'a> {
    pub(super) fn of(norm: GroupNorm<'a>) -> Self {
        let GroupNorm { groups, weight, bias, eps } = norm;
        Self { count: groups, weight: values(weight), bias: values(bias), eps }
    }
}

/// What a group norm does to each channel once its statistics are known: `x · factor + offset`.
pub(super) struct Line {
    factors: Vec<f32>,
    offsets: Vec<f32>,
}

impl Line {
    /// One pixel's channels.
    #[inline(always)]
    pub(super) fn apply<V: Vector>(&self, x: &[f32], y: &mut [f32]) {
        let constants = self.factors.chunks(V::LANES).zip(self.offsets.chunks(V::LANES));
        for ((y, x), (factor, offset)) in y.chunks_mut(V::LANES).zip(x.chunks(V::LANES)).zip(constants) {
            V::from_slice(x).mul_add(V::from_slice(factor), V::from_slice(offset)).to_slice(y);
        }
    }
}

impl Cpu {
    /// Layer norm of each row of `width`.
    pub(super) fn norm_rows(
        &self,
        x: &[f32],
        width: usize,
        eps: f32,
        modulation: Option<Modulation<'_>>,
    ) -> HostBuffer {
        self.rows(x, width, |x, y| self.simd.run(LayerNorm { x, width, eps, modulation, y }))
    }

    /// RMS norm of each row of the weight's width.
    pub(super) fn rms_norm_rows(&self, x: &[f32], weight: &[f32], eps: f32) -> HostBuffer {
        self.rows(x, weight.len(), |x, y| self.simd.run(RmsNorm { x, weight, eps, y }))
    }

    fn rows(&self, x: &[f32], width: usize, norm: impl Fn(&[f32], &mut [f32]) + Sync) -> HostBuffer {
        let mut y = self.buffer(x.len());
        if !x.is_empty() {
            let chunk = width * self.threads.rows_per_task(x.len() / width, width);
            self.threads.for_each_chunk(y.values_mut(), chunk, 2 * x.len(), |task, y| {
                norm(&x[task * chunk..][..y.len()], y);
            });
        }
        y
    }

    /// Group norm of a picture with as many channels as the groups' weight is long.
    pub(super) fn norm_groups(&self, x: &[f32], groups: Groups<'_>) -> HostBuffer {
        let mut y = self.buffer(x.len());
        if !x.is_empty() {
            let line = self.measure_groups(x, groups);
            let chunk = PIXELS * groups.weight.len();
            self.threads.for_each_chunk(y.values_mut(), chunk, 2 * x.len(), |block, y| {
                let x = &x[block * chunk..][..y.len()];
                self.simd.run(Scale { x, line: &line, y });
            });
        }
        y
    }

    /// The line that is a group norm of this picture.
    pub(super) fn measure_groups(&self, x: &[f32], groups: Groups<'_>) -> Line {
        let channels = groups.weight.len();
        let chunk = PIXELS * channels;
        let blocks = x.len().div_ceil(chunk);
        let mut statistics = vec![0.0; blocks * groups.count * 2];
        self.threads.for_each_chunk(&mut statistics, groups.count * 2, 2 * x.len(), |block, statistics| {
            let x = &x[block * chunk..((block + 1) * chunk).min(x.len())];
            with_scratch(2 * channels, |scratch| self.simd.run(Measure { x, channels, scratch, statistics }));
        });

        let mut factors = vec![0.0; channels];
        let mut offsets = vec![0.0; channels];
        let per_group = channels / groups.count;
        for group in 0..groups.count {
            let mut all = Moments::default();
            for block in 0..blocks {
                let pixels = PIXELS.min(x.len() / channels - block * PIXELS);
                let at = (block * groups.count + group) * 2;
                let [mean, squares] = [statistics[at], statistics[at + 1]].map(f64::from);
                all.add(Moments { count: (pixels * per_group) as f64, mean, squares });
            }
            let deviation = (all.squares / all.count + f64::from(groups.eps)).sqrt();
            for channel in group * per_group..(group + 1) * per_group {
                let factor = f64::from(groups.weight[channel]) / deviation;
                factors[channel] = factor as f32;
                offsets[channel] = (f64::from(groups.bias[channel]) - all.mean * factor) as f32;
            }
        }
        Line { factors, offsets }
    }
}

/// How many numbers, their mean, and the sum of their squared distances from it.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Those of both sets together.
    fn add(&mut self, other: Self) {
        let count = self.count + other.count;
        let distance = other.mean - self.mean;
        self.mean += distance * (other.count / count);
        self.squares += other.squares + distance * distance * (self.count * other.count / count);
        self.count = count;
    }
}

/// `Σ f(x)` over a row, in four chains.
#[inline(always)]
fn sum<V: Vector>(x: &[f32], f: impl Fn(V) -> V) -> f32 {
    let mut sums = [V::splat(0.0); 4];
    let mut whole = x.chunks_exact(4 * V::LANES);
    for four in whole.by_ref() {
        for (sum, x) in sums.iter_mut().zip(four.chunks_exact(V::LANES)) {
            *sum = sum.add(f(V::from_slice(x)));
        }
    }
    let mut total = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
    for x in whole.remainder().chunks(V::LANES) {
        // Lanes without an element are left out after `f`.
        let mut tail = [0.0; super::pack::MAX_LANES];
        f(V::from_slice(x)).to_slice(&mut tail[..x.len()]);
        total += V::from_slice(&tail[..x.len()]).sum();
    }
    total
}

struct LayerNorm<'a> {
    x: &'a [f32],
    width: usize,
    eps: f32,
    modulation: Option<Modulation<'a>>,
    y: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (x, y) in self.x.chunks(self.width).zip(self.y.chunks_mut(self.width)) {
            let mean = sum(x, |x: V| x) / self.width as f32;
            let center = V::splat(mean);
            let squares = sum(x, |x: V| x.sub(center).mul(x.sub(center)));
            let factor = V::splat(1.0 / (squares / self.width as f32 + self.eps).sqrt());
            let lanes = x.chunks(V::LANES).zip(y.chunks_mut(V::LANES));
            if let Some(Modulation { shift, scale }) = self.modulation {
                for ((x, y), (shift, scale)) in lanes.zip(shift.chunks(V::LANES).zip(scale.chunks(V::LANES))) {
                    let normed = V::from_slice(x).sub(center).mul(factor);
                    let scale = V::from_slice(scale).add(V::splat(1.0));
                    normed.mul_add(scale, V::from_slice(shift)).to_slice(y);
                }
            } else {
                for (x, y) in lanes {
                    V::from_slice(x).sub(center).mul(factor).to_slice(y);
                }
            }
        }
    }
}

/// RMS norm of one row.
#[inline(always)]
pub(super) fn rms_norm<V: Vector>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let squares = sum(x, |x: V| x.mul(x));
    let factor = V::splat(1.0 / (squares / x.len() as f32 + eps).sqrt());
    let operands = x.chunks(V::LANES).zip(weight.chunks(V::LANES));
    for (y, (x, weight)) in y.chunks_mut(V::LANES).zip(operands) {
        V::from_slice(x).mul(factor).mul(V::from_slice(weight)).to_slice(y);
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let width = self.weight.len();
        for (x, y) in self.x.chunks(width).zip(self.y.chunks_mut(width)) {
            rms_norm::<V>(x, self.weight, self.eps, y);
        }
    }
}

/// Mean and squared distances of each group in a block of pixels.
struct Measure<'a> {
    x: &'a [f32],
    channels: usize,
    scratch: &'a mut [f32],
    /// Per group: mean, sum of squared distances.
    statistics: &'a mut [f32],
}

impl Kernel for Measure<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { x, channels, scratch, statistics } = self;
        let per_group = 2 * channels / statistics.len();
        let count = (x.len() / channels * per_group) as f32;
        let (sums, means) = scratch.split_at_mut(channels);
        sums.fill(0.0);
        for pixel in x.chunks(channels) {
            for (sum, x) in sums.chunks_mut(V::LANES).zip(pixel.chunks(V::LANES)) {
                V::from_slice(sum).add(V::from_slice(x)).to_slice(sum);
            }
        }
        let groups = sums.chunks(per_group).zip(means.chunks_mut(per_group));
        for ((sums, means), statistics) in groups.zip(statistics.chunks_mut(2)) {
            statistics[0] = sums.iter().sum::<f32>() / count;
            means.fill(statistics[0]);
        }
        sums.fill(0.0);
        for pixel in x.chunks(channels) {
            let lanes = pixel.chunks(V::LANES).zip(means.chunks(V::LANES));
            for (sum, (x, mean)) in sums.chunks_mut(V::LANES).zip(lanes) {
                let distance = V::from_slice(x).sub(V::from_slice(mean));
                distance.mul_add(distance, V::from_slice(sum)).to_slice(sum);
            }
        }
        for (sums, statistics) in sums.chunks(per_group).zip(statistics.chunks_mut(2)) {
            statistics[1] = sums.iter().sum();
        }
    }
}

struct Scale<'a> {
    x: &'a [f32],
    line: &'a Line,
    y: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let channels = self.line.factors.len();
        for (y, x) in self.y.chunks_mut(channels).zip(self.x.chunks(channels)) {
            self.line.apply::<V>(x, y);
        }
    }
}
