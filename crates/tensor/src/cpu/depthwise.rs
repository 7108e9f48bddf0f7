//! Convolutions of each channel by itself, channels last: a pixel's channels lie side by side, as the kernel's do.
//!
//! A task takes some output rows. Each vector of channels is summed over the taps that fall on the picture, in the kernel's
//! order. A picture of a few megabytes is read once per row of the kernel, from the cache but for the first.

use super::{
    Cpu,
    arch::{Kernel, Vector, VectorSlice},
};
use crate::{Padding, host::HostBuffer};

/// A picture `[height, width, channels]`, a kernel `[height, width, channels]` and what is added, `[channels]`.
#[derive(Clone, Copy)]
pub(super) struct Depthwise<'a> {
    pub(super) x: &'a [f32],
    pub(super) picture: [usize; 3],
    pub(super) kernel: &'a [f32],
    pub(super) kernel_size: [usize; 2],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) stride: usize,
    pub(super) padding: Padding,
}

impl Cpu {
    /// The picture `[height_out, width_out, channels]`.
    pub(super) fn convolve_depthwise(&self, job: Depthwise<'_>, [height_out, width_out]: [usize; 2]) -> HostBuffer {
        let row = width_out * job.picture[2];
        let mut y = self.buffer(height_out * row);
        if y.values().is_empty() {
            return y;
        }
        let work = y.values().len() * job.kernel_size[0] * job.kernel_size[1];
        let rows = self.threads.rows_per_task(height_out, row);
        self.threads.for_each_chunk(y.values_mut(), rows * row, work, |task, y| {
            self.simd.run(Rows { job, first: task * rows, width_out, y });
        });
        y
    }
}

/// Some output rows.
struct Rows<'a> {
    job: Depthwise<'a>,
    first: usize,
    width_out: usize,
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { job, first, width_out, y } = self;
        let Depthwise { x, picture: [height, width, channels], kernel, kernel_size, bias, stride, padding } = job;
        for (pixel, y) in y.chunks_exact_mut(channels).enumerate() {
            let (row, column) = (first + pixel / width_out, pixel % width_out);
            // Coordinates that would be above or left of the picture wrap to ones that are far below and right of it.
            let (top, left) = ((row * stride).wrapping_sub(padding.top), (column * stride).wrapping_sub(padding.left));
            for start in (0..channels).step_by(V::LANES) {
                let lanes = start..channels.min(start + V::LANES);
                let mut sum = bias.map_or(V::splat(0.0), |bias| V::from_slice(&bias[lanes.clone()]));
                for i in 0..kernel_size[0] {
                    let r = top.wrapping_add(i);
                    if r >= height {
                        continue;
                    }
                    for j in 0..kernel_size[1] {
                        let s = left.wrapping_add(j);
                        if s >= width {
                            continue;
                        }
                        let (from, tap) = ((r * width + s) * channels, (i * kernel_size[1] + j) * channels);
                        let numbers = V::from_slice(&x[from + lanes.start..from + lanes.end]);
                        let factors = V::from_slice(&kernel[tap + lanes.start..tap + lanes.end]);
                        sum = numbers.mul_add(factors, sum);
                    }
                }
                sum.to_slice(&mut y[lanes]);
            }
        }
    }
}
