//! Decoding in overlapping tiles whose edges are blended: memory stays bounded for large pictures.
//!
//! The rule is diffusers' (`AutoencoderKL.tiled_decode`). Group norms and the middle attention see one tile at a time, so
//! colours change slightly; pictures of one tile are decoded whole.

use tensor::Tensor;

use super::Decoder;
use crate::error::Result;

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
        let config = decoder.config();
        Self { tile: (config.sample_size / config.factor()).max(1), overlap: 0.25 }
    }

    /// Whether latents of this size are more than one tile.
    pub fn applies(self, height: usize, width: usize) -> bool {
        height > self.tile || width > self.tile
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
        let [height, width, channels] = [0, 1, 2].map(|axis| latents.shape()[axis]);
        if !self.applies(height, width) {
            return decoder.decode(latents, observe);
        }
        let factor = decoder.config().factor();
        let step = ((self.tile as f64 * (1.0 - self.overlap)) as usize).max(1);
        let pixels = self.tile * factor;
        let blend = (pixels as f64 * self.overlap) as usize;
        let keep = pixels - blend;
        let out_channels = decoder.config().out_channels;
        let mut picture = Canvas::new(height * factor, width * factor, out_channels);
        // Only the row of tiles above is needed for blending.
        let mut above: Vec<Canvas> = Vec::new();
        for (i, top) in (0..height).step_by(step).enumerate() {
            let mut row: Vec<Canvas> = Vec::new();
            for (j, left) in (0..width).step_by(step).enumerate() {
                let part = latents
                    .slice(0, top, self.tile.min(height - top))
                    .slice(1, left, self.tile.min(width - left))
                    .reshape([self.tile.min(height - top), self.tile.min(width - left), channels]);
                let mut tile = Canvas::of(&decoder.decode(&part, observe)?);
                if let Some(above) = above.get(j).filter(|_| i > 0) {
                    tile.blend_below(above, blend);
                }
                if let Some(left) = row.last() {
                    tile.blend_right_of(left, blend);
                }
                picture.paste(&tile, i * keep, j * keep, keep);
                row.push(tile);
            }
            above = row;
        }
        Ok(Tensor::from_vec(latents.backend(), [picture.height, picture.width, out_channels], picture.values))
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
