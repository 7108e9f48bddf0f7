//! Operations that only move elements: copies of runs, as long as the shapes allow.

use super::Cpu;
use crate::{Shape, host::HostBuffer};

impl Cpu {
    /// Copies rows of `row` elements: row `i` of the result is filled by `copy(i, …)`.
    fn gather(&self, rows: usize, row: usize, copy: impl Fn(usize, &mut [f32]) + Sync) -> HostBuffer {
        let mut y = self.buffer(rows * row);
        if row > 0 {
            let per_task = self.threads.rows_per_task(rows, row);
            self.threads.for_each_chunk(y.values_mut(), per_task * row, rows * row, |task, y| {
                for (i, y) in y.chunks_mut(row).enumerate() {
                    copy(task * per_task + i, y);
                }
            });
        }
        y
    }

    /// Parts one after the other in each of `outer` rows.
    pub(super) fn join(&self, outer: usize, parts: &[&[f32]]) -> HostBuffer {
        let run = |part: &[f32]| part.len() / outer.max(1);
        let row = parts.iter().map(|part| run(part)).sum();
        self.gather(outer, row, |i, y| {
            let mut at = 0;
            for part in parts {
                let run = run(part);
                y[at..at + run].copy_from_slice(&part[i * run..(i + 1) * run]);
                at += run;
            }
        })
    }

    /// Elements `start..start + len` of each row of `row`.
    pub(super) fn cut(&self, x: &[f32], row: usize, start: usize, len: usize) -> HostBuffer {
        let rows = x.len().checked_div(row).unwrap_or(0);
        self.gather(rows, len, |i, y| y.copy_from_slice(&x[i * row + start..][..len]))
    }

    /// The axes of `shape` in another order.
    pub(super) fn reorder(&self, x: &[f32], shape: Shape, axes: &[usize]) -> HostBuffer {
        // Four axes, the first ones of extent 1 where there are fewer.
        let mut extents = [1; Shape::MAX_RANK];
        let mut strides = [0; Shape::MAX_RANK];
        let missing = Shape::MAX_RANK - axes.len();
        for (i, &axis) in axes.iter().enumerate() {
            extents[missing + i] = shape[axis];
            strides[missing + i] = shape.dims()[axis + 1..].iter().product();
        }
        let [_, second, third, row] = extents;
        self.gather(extents[0] * second * third, row, |i, y| {
            let outer = [i / (second * third), i / third % second, i % third];
            let start: usize = outer.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            match strides[3] {
                1 => y.copy_from_slice(&x[start..start + row]),
                stride => y.iter_mut().zip(x[start..].iter().step_by(stride.max(1))).for_each(|(y, &x)| *y = x),
            }
        })
    }

    /// Each pixel twice in both directions.
    pub(super) fn double(&self, x: &[f32], [height, width, channels]: [usize; 3]) -> HostBuffer {
        self.gather(2 * height, 2 * width * channels, |row, y| {
            let x = &x[row / 2 * width * channels..][..width * channels];
            for (y, x) in y.chunks_exact_mut(2 * channels).zip(x.chunks_exact(channels)) {
                y[..channels].copy_from_slice(x);
                y[channels..].copy_from_slice(x);
            }
        })
    }
}
