//! Coding in overlapping tiles whose edges are blended: memory stays bounded for large pictures.
//!
//! The rule is diffusers' (`AutoencoderKL.tiled_decode`, `tiled_encode`). Group norms and the middle attention see one tile at a time, so
//! colours change slightly; pictures of one tile are decoded whole.

use std::convert::Infallible;

use tensor::Tensor;

use super::{Decoder, Encoder, VaeConfig};
use crate::error::Result;

/// Above so many pixels a picture is decoded in tiles unless its request says otherwise: its activations take several gigabytes.
pub(crate) const TILED_FROM: u64 = 2048 * 1024;

/// Whether the encoder sees a picture of this size in tiles: as asked, or where the plan or its size say so.
pub(crate) fn encodes_in_tiles(asked: Option<bool>, tiled: bool, width: usize, height: usize) -> bool {
    asked.unwrap_or(tiled || (width * height) as u64 > TILED_FROM)
}

/// Sizes of tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Side of a tile, latents.
    pub tile: usize,
    /// Fraction of a tile that the next one covers again.
    pub overlap: f64,
}

impl Tiling {
    /// Tiles as large as the pictures the autoencoder was trained on, a quarter overlapping.
    pub fn of(decoder: &Decoder) -> Self {
        Self::of_config(decoder.config())
    }

    /// The same for an autoencoder of these sizes.
    pub fn of_config(config: &VaeConfig) -> Self {
        Self { tile: (config.sample_size / config.factor()).max(1), overlap: 0.25 }
    }

    /// Whether latents of this size are more than one tile.
    pub fn applies(self, height: usize, width: usize) -> bool {
        height > self.tile || width > self.tile
    }

    /// How far one tile begins behind the last, latents; what a tile covers beyond it is blended.
    fn step(self) -> usize {
        ((self.tile as f64 * (1.0 - self.overlap)) as usize).clamp(1, self.tile.max(1))
    }

    /// Decodes `latents [h, w, c]` tile by tile.
    ///
    /// # Errors
    /// Only what `observe` returns.
    pub fn decode(
        self,
        decoder: &Decoder,
        latents: &Tensor,
        observe: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let [height, width] = [0, 1].map(|axis| latents.shape()[axis]);
        if !self.applies(height, width) {
            return decoder.decode(latents, observe);
        }
        let factor = decoder.config().factor();
        let tiles = Tiles { side: self.tile, step: self.step(), to: |latents| latents * factor };
        tiles.stitch(latents, |tile| decoder.decode(tile, observe))
    }

    /// Encodes `picture [H, W, 3]` tile by tile: mean and log-variance as [`Encoder::moments`] gives them. `H` and `W` are
    /// multiples of the autoencoder's factor.
    pub fn moments(self, encoder: &Encoder, picture: &Tensor) -> Tensor {
        let Ok(moments) = self.moments_watched(encoder, picture, &mut || Ok::<_, Infallible>(()));
        moments
    }

    /// As [`Tiling::moments`]; `observe` runs between levels, and its error (cancellation) ends the work.
    pub(crate) fn moments_watched<E>(
        self,
        encoder: &Encoder,
        picture: &Tensor,
        observe: &mut dyn FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        let factor = encoder.config.factor();
        let [height, width] = [0, 1].map(|axis| picture.shape()[axis]);
        if !self.applies(height.div_ceil(factor), width.div_ceil(factor)) {
            return encoder.moments_watched(picture, observe);
        }
        let tiles = Tiles { side: self.tile * factor, step: self.step() * factor, to: |pixels| pixels / factor };
        tiles.stitch(picture, |tile| encoder.moments_watched(tile, observe))
    }

    /// Encodes `picture [H, W, 3]` tile by tile: the mean in model space as [`Encoder::encode`] gives it.
    pub fn encode(self, encoder: &Encoder, picture: &Tensor) -> Tensor {
        encoder.mean(&self.moments(encoder, picture))
    }
}

/// Tiles of what is coded: `side` and `step` in its own units, `to` gives the units of the result.
struct Tiles<F> {
    side: usize,
    step: usize,
    to: F,
}

impl<F: Fn(usize) -> usize> Tiles<F> {
    /// Codes each tile of `x [h, w, c]` with `code`, blends its edges with the tiles above and to the left, and puts all
    /// together.
    fn stitch<E>(
        &self,
        x: &Tensor,
        mut code: impl FnMut(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Tensor, E> {
        let [height, width] = [0, 1].map(|axis| x.shape()[axis]);
        let keep = (self.to)(self.step);
        let blend = (self.to)(self.side) - keep;
        let mut whole: Option<Canvas> = None;
        // Only the row of tiles above is needed for blending.
        let mut above: Vec<Canvas> = Vec::new();
        for (i, top) in (0..height).step_by(self.step).enumerate() {
            let strip = x.slice(0, top, self.side.min(height - top));
            let mut row: Vec<Canvas> = Vec::new();
            for (j, left) in (0..width).step_by(self.step).enumerate() {
                let mut tile = Canvas::of(&code(&strip.slice(1, left, self.side.min(width - left)))?);
                if let Some(above) = above.get(j) {
                    tile.blend_below(above, blend);
                }
                if let Some(left) = row.last() {
                    tile.blend_right_of(left, blend);
                }
                let whole =
                    whole.get_or_insert_with(|| Canvas::new((self.to)(height), (self.to)(width), tile.channels));
                whole.paste(&tile, i * keep, j * keep, keep);
                row.push(tile);
            }
            above = row;
        }
        let Canvas { height, width, channels, values } = whole.unwrap_or_else(|| Canvas::new(0, 0, 0));
        Ok(Tensor::from_vec(x.backend(), [height, width, channels], values))
    }
}

/// A picture on the host, channels last.
struct Canvas {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f32>,
}

impl Canvas {
    fn new(height: usize, width: usize, channels: usize) -> Self {
        Self { height, width, channels, values: vec![0.0; height * width * channels] }
    }

    fn of(x: &Tensor) -> Self {
        let [height, width, channels] = [0, 1, 2].map(|axis| x.shape()[axis]);
        Self { height, width, channels, values: x.to_vec() }
    }

    fn pixel(&self, y: usize, x: usize) -> std::ops::Range<usize> {
        let start = (y * self.width + x) * self.channels;
        start..start + self.channels
    }

    /// The top rows fade from the bottom rows of the tile above.
    fn blend_below(&mut self, above: &Self, extent: usize) {
        let extent = extent.min(above.height).min(self.height);
        for y in 0..extent {
            let weight = y as f32 / extent as f32;
            for x in 0..self.width.min(above.width) {
                let other = above.pixel(above.height - extent + y, x);
                let own = self.pixel(y, x);
                mix(&mut self.values[own], &above.values[other], weight);
            }
        }
    }

    /// The left columns fade from the right columns of the tile to the left.
    fn blend_right_of(&mut self, left: &Self, extent: usize) {
        let extent = extent.min(left.width).min(self.width);
        for y in 0..self.height.min(left.height) {
            for x in 0..extent {
                let weight = x as f32 / extent as f32;
                let other = left.pixel(y, left.width - extent + x);
                let own = self.pixel(y, x);
                mix(&mut self.values[own], &left.values[other], weight);
            }
        }
    }

    /// Copies the first `keep` rows and columns of `tile` to (`top`, `left`), as far as there is room.
    fn paste(&mut self, tile: &Self, top: usize, left: usize, keep: usize) {
        let rows = keep.min(tile.height).min(self.height.saturating_sub(top));
        let columns = keep.min(tile.width).min(self.width.saturating_sub(left));
        for y in 0..rows {
            let from = tile.pixel(y, 0).start;
            let to = self.pixel(top + y, left).start;
            let len = columns * self.channels;
            self.values[to..to + len].copy_from_slice(&tile.values[from..from + len]);
        }
    }
}

/// `own = other · (1 − weight) + own · weight`.
fn mix(own: &mut [f32], other: &[f32], weight: f32) {
    for (own, other) in own.iter_mut().zip(other) {
        *own = other * (1.0 - weight) + *own * weight;
    }
}
