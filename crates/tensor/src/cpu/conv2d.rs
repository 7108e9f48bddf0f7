//! Convolutions, channels last, as sums of matrix products: one for each tap of the kernel.
//!
//! A task takes some pixels of a few output rows. It lays the input rows they see on their side, `[word][pixel]`, so that the
//! strip of a tap is the strip of its neighbour one element further: no patch is ever copied. With a stride, pixels are
//! sorted by their remainder first, a picture that is to be doubled is read at half the coordinates, and one that is to be normed is normed
//! while it is read. The kernel is packed into panels, `[panel][tap][word][column]`, once per call.

use super::{
    Cpu,
    arch::{Kernel, Vector},
    math,
    matmul::Epilogue,
    norm::Line,
    pack::{self, Factors, MAX_LANES, Strips},
    parallel::{Shared, with_scratch},
    tile::Tile,
};
use crate::{Padding, Unary, Weight, host::HostBuffer};

/// Output pixels of a row that a task takes, at most.
const PIXELS: usize = 64;

/// Words of input that a task lays on their side, about: half of a second cache.
const INPUT: usize = 1 << 17;

/// A picture `[height, width, channels]`.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: &'a [f32],
    pub(super) picture: [usize; 3],
    pub(super) before: Before<'a>,
}

/// What a picture goes through before it is convolved, while it is read.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Nothing,
    /// `x` has only every second pixel of every second row, and each stands for four.
    Double,
    /// A group norm whose statistics are known, then SiLU.
    NormSilu(&'a Line),
}

/// Sizes, all in elements of their own kind.
#[derive(Clone, Copy)]
struct Geometry {
    height: usize,
    width: usize,
    channels: usize,
    /// How often coordinates are halved before a pixel is read: 0 or 1.
    halved: u32,
    kernel_height: usize,
    kernel_width: usize,
    out: usize,
    height_out: usize,
    width_out: usize,
    stride: usize,
    padding: Padding,
    factors: Factors,
    /// Words of a pixel.
    words: usize,
    /// Output pixels of a task in each row, and its rows.
    pixels: usize,
    rows: usize,
    /// Pixels that an input row has room for, per remainder by the stride.
    room: usize,
}

impl Geometry {
    fn taps(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Words of one input row on its side.
    fn row_len(&self) -> usize {
        self.stride * self.words * self.room
    }

    /// Input rows that `rows` output rows see.
    fn input_rows(&self, rows: usize) -> usize {
        (rows - 1) * self.stride + self.kernel_height
    }
}

impl Cpu {
    /// `input [height, width, channels]` with `weight [out, channels, kh, kw]` → `[height', width', out]`.
    pub(super) fn convolve(
        &self,
        input: Input<'_>,
        weight: &Weight,
        epilogue: Epilogue<'_>,
        stride: usize,
        padding: Padding,
    ) -> HostBuffer {
        let Input { x, picture: [height, width, channels], before } = input;
        let [height_out, width_out, out] = padding.output([height, width, channels].into(), weight.shape(), stride);
        let mut y = self.buffer(height_out * width_out * out);
        if y.values().is_empty() {
            return y;
        }
        let factors = Factors::new(weight.precision(), self.simd);
        let [kernel_height, kernel_width] = [weight.shape()[2], weight.shape()[3]];
        let words = factors.words(channels);
        let pixels = width_out.div_ceil(width_out.div_ceil(PIXELS));
        let room = (pixels + (kernel_width - 1) / stride).next_multiple_of(self.simd.lanes());
        let rows = (INPUT / (stride * words * room).max(1)).saturating_sub(kernel_height - 1) / stride;
        let geometry = Geometry {
            height,
            width,
            channels,
            halved: u32::from(matches!(before, Before::Double)),
            kernel_height,
            kernel_width,
            out,
            height_out,
            width_out,
            stride,
            padding,
            factors,
            words,
            pixels,
            rows: rows.clamp(1, 4),
            room,
        };
        let work = y.values().len() * weight.row_len();

        let panel = 2 * self.simd.lanes();
        let panel_len = geometry.taps() * words * panel;
        let mut packed = self.buffer(out.div_ceil(panel) * panel_len);
        self.threads.for_each_chunk(packed.values_mut(), panel_len, 8 * out * weight.row_len(), |index, to| {
            let scratch = 2 * weight.row_len() + (MAX_LANES + 1) * geometry.taps() * words;
            with_scratch(scratch, |scratch| self.simd.run(PackPanel { geometry, weight, index, scratch, to }));
        });
        let panels = packed.values();

        let across = width_out.div_ceil(pixels);
        let input_len = geometry.input_rows(geometry.rows) * geometry.row_len();
        let out_y = Shared::new(y.values_mut());
        self.threads.for_each(height_out.div_ceil(geometry.rows) * across, work, |task| {
            let (row, pixel) = (task / across * geometry.rows, task % across * pixels);
            with_scratch(input_len + MAX_LANES * words + MAX_LANES.max(words) + channels, |scratch| {
                self.simd.run(Pixels { geometry, x, before, panels, row, pixel, scratch, y: out_y, epilogue });
            });
        });
        drop(packed);
        y
    }
}

/// Packs one panel of the kernel.
struct PackPanel<'a> {
    geometry: Geometry,
    weight: &'a Weight,
    index: usize,
    scratch: &'a mut [f32],
    to: &'a mut [f32],
}

impl Kernel for PackPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { geometry: Geometry { channels, out, factors, words, .. }, weight, index, scratch, to } = self;
        let taps = self.geometry.taps();
        let (numbers, scratch) = scratch.split_at_mut(channels * taps);
        let (sorted, scratch) = scratch.split_at_mut(channels * taps);
        let (zeros, rows) = scratch.split_at_mut(taps * words);
        zeros.fill(0.0);
        for half in 0..2 {
            let first = (2 * index + half) * V::LANES;
            let mut at = [zeros.as_ptr(); MAX_LANES];
            for (i, at) in at[..V::LANES].iter_mut().enumerate().take(out.saturating_sub(first)) {
                weight.decode_row(first + i, numbers);
                // From [channel][tap] to [tap][channel].
                for (channel, taps_of_channel) in numbers.chunks_exact(taps).enumerate() {
                    for (tap, &number) in taps_of_channel.iter().enumerate() {
                        sorted[tap * channels + channel] = number;
                    }
                }
                let row = &mut rows[i * taps * words..][..taps * words];
                for (row, numbers) in row.chunks_exact_mut(words).zip(sorted.chunks_exact(channels)) {
                    pack::to_words::<V>(factors, numbers, row);
                }
                *at = row.as_ptr();
            }
            // SAFETY: every row has all words; the panel has room for as many rows of two vectors.
            unsafe {
                let to = to.as_mut_ptr().add(half * V::LANES);
                pack::transpose::<V>(&at[..V::LANES], taps * words, to, 2 * V::LANES);
            }
        }
    }
}

/// One task: some pixels of some output rows.
struct Pixels<'a> {
    geometry: Geometry,
    x: &'a [f32],
    before: Before<'a>,
    panels: &'a [f32],
    /// The first of them.
    row: usize,
    pixel: usize,
    scratch: &'a mut [f32],
    y: Shared<'a>,
    epilogue: Epilogue<'a>,
}

impl Kernel for Pixels<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { geometry, x, before, panels, row, pixel, scratch, y, epilogue } = self;
        let Geometry { channels, out, height_out, width_out, stride, factors, words, room, .. } = geometry;
        let rows = geometry.rows.min(height_out - row);
        let pixels = geometry.pixels.min(width_out - pixel);
        let (spare, input) = scratch.split_at_mut(MAX_LANES * words + MAX_LANES.max(words) + channels);
        for (i, to) in input.chunks_exact_mut(geometry.row_len()).take(geometry.input_rows(rows)).enumerate() {
            geometry.lay_down::<V>(x, before, row * stride + i, pixel * stride, spare, to);
        }

        let panel = 2 * V::LANES;
        let strips = Strips::new(pixels, V::TILE_ROWS);
        for (index, weights) in panels.chunks_exact(geometry.taps() * words * panel).enumerate() {
            let first = index * panel;
            for tap in 0..geometry.taps() {
                let (i, j) = (tap / geometry.kernel_width, tap % geometry.kernel_width);
                for block in pack::blocks(words) {
                    let b = &weights[(tap * words + block.start) * panel..][..block.len() * panel];
                    for r in 0..rows {
                        let seen = &input[(r * stride + i) * geometry.row_len()..][..geometry.row_len()];
                        let seen = &seen[(j % stride * words + block.start) * room + j / stride..];
                        for strip in 0..strips.count() {
                            let strip = strips.rows(strip);
                            let tile = Tile {
                                factors,
                                words: block.len(),
                                a: seen[strip.start..].as_ptr(),
                                a_step: room,
                                b: b.as_ptr(),
                                c: y.at(((row + r) * width_out + pixel + strip.start) * out + first),
                                c_step: out,
                                rows: strip.len(),
                                columns: (out - first).min(panel),
                                add: tap + block.start > 0,
                            };
                            // SAFETY: the strip's pixels and the tap's shift fit `room`; the panel has the block's words;
                            // the task alone has these pixels of y.
                            unsafe { tile.run::<V>() };
                        }
                    }
                }
            }
        }
        for r in 0..rows {
            let start = (row + r) * width_out + pixel;
            for pixel in start..start + pixels {
                // SAFETY: the task alone has these pixels of y.
                let y = unsafe { y.slice(pixel * out..(pixel + 1) * out) };
                epilogue.finish::<V>(y, pixel, out, 0..out);
            }
        }
    }
}

impl Geometry {
    /// Lays an input row on its side, from pixel `first` on: `[remainder][word][pixel]`. Coordinates count from the
    /// padding's edge; what is outside of the picture is zero.
    #[inline(always)]
    fn lay_down<V: Vector>(
        &self,
        x: &[f32],
        before: Before<'_>,
        row: usize,
        first: usize,
        spare: &mut [f32],
        to: &mut [f32],
    ) {
        let Self { height, width, channels, halved, stride, padding, factors, words, room, .. } = *self;
        let row = row.wrapping_sub(padding.top);
        if row >= height {
            to.fill(0.0);
            return;
        }
        let stored = (width >> halved) * channels;
        let picture = &x[(row >> halved) * stored..][..stored];
        let (normed, spare) = spare.split_at_mut(channels);
        let (zeros, words_of_pixels) = spare.split_at_mut(MAX_LANES.max(words));
        zeros.fill(0.0);
        for (remainder, to) in to.chunks_exact_mut((words * room).max(1)).enumerate() {
            for at_pixel in (0..room).step_by(V::LANES) {
                let mut at = [zeros.as_ptr(); MAX_LANES];
                for (lane, at) in at[..V::LANES].iter_mut().enumerate() {
                    let column = (first + (at_pixel + lane) * stride + remainder).wrapping_sub(padding.left);
                    if column < width {
                        let pixel = &picture[(column >> halved) * channels..][..channels];
                        let row = &mut words_of_pixels[lane * words..][..words];
                        *at = if let Before::NormSilu(line) = before {
                            line.apply::<V>(pixel, normed);
                            math::apply::<V>(Unary::Silu, normed);
                            pack::to_words::<V>(factors, normed, row);
                            row.as_ptr()
                        } else if factors == Factors::F32 {
                            pixel.as_ptr()
                        } else {
                            pack::to_words::<V>(factors, pixel, row);
                            row.as_ptr()
                        };
                    }
                }
                // SAFETY: every pixel has `words` words, `to` has room for `words` rows of `room` pixels.
                unsafe { pack::transpose::<V>(&at[..V::LANES], words, to.as_mut_ptr().add(at_pixel), room) };
            }
        }
    }
}
