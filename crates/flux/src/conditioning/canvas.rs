//! From the pictures that were given to those that the autoencoder sees: resized as diffusers does it (Lanczos, whatever the
//! shape), with margins, continued to whole tokens, and masks.

use std::sync::Arc;

use tensor::{Backend, Tensor};

use super::{Control, Margins, Start, canny};
use crate::{
    latents::Latents,
    pixels::Rgb8,
    resize::{Filter, resize},
};

/// How many times the model's usual number of pixels a picture may have whose size is followed.
const FOLLOWED: f64 = 2.0;

/// The size of a picture made from one of `width`×`height` pixels: the same, up to twice as many pixels as `usual`; larger ones
/// are shrunk to that, in multiples of 16. At least 16 to a side.
pub fn size_like((width, height): (u32, u32), usual: (u32, u32)) -> (u32, u32) {
    let pixels = |(w, h): (u32, u32)| f64::from(w) * f64::from(h);
    let most = FOLLOWED * pixels(usual);
    if pixels((width, height)) <= most {
        return (width.max(16), height.max(16));
    }
    let scale = (most / pixels((width, height))).sqrt();
    let side = |side: u32| 16 * ((f64::from(side) * scale / 16.0).round() as u32).max(1);
    (side(width), side(height))
}

/// A request's sizes, pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Asked for: width, height.
    pub(crate) asked: (u32, u32),
    /// Rendered: the next whole tokens.
    pub(crate) rendered: (u32, u32),
    /// Pixels of a latent.
    pub(crate) factor: u32,
}

impl Sizes {
    /// Of a picture of `asked` pixels, rendered in whole tokens of 2×2 latents of `factor` pixels.
    pub(crate) fn covering(asked: (u32, u32), factor: u32) -> Self {
        let cover = |side: u32| side.div_ceil(2 * factor) * 2 * factor;
        Self { asked, rendered: (cover(asked.0), cover(asked.1)), factor }
    }
}

/// The start and, where some of it is kept, what is painted anew.
pub(crate) fn start(start: &Start, sizes: Sizes) -> (Rgb8, Option<Mask>) {
    let (width, height) = sizes.asked;
    let widened = with_margins(&start.picture, start.margins);
    let picture = resize(&widened, width, height, Filter::Lanczos);
    let mask = start.keeps_some().then(|| mask(start, sizes));
    (continued(&picture, sizes.rendered), mask)
}

/// The control picture.
pub(crate) fn control(control: &Control, sizes: Sizes) -> Rgb8 {
    let (width, height) = sizes.asked;
    let picture = resize(control.picture(), width, height, Filter::Lanczos);
    let picture = match control {
        Control::Ready(_) => picture,
        Control::Canny(_) => canny::canny(&picture, canny::LOW, canny::HIGH),
    };
    continued(&picture, sizes.rendered)
}

/// Width and height that Kontext was trained with; their transposes are among them.
const PREFERRED: [(u32, u32); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// That of the sizes which Kontext was trained with whose shape is nearest: width, height, pixels.
pub fn preferred((width, height): (u32, u32)) -> (u32, u32) {
    let shape = |(w, h): (u32, u32)| f64::from(w) / f64::from(h);
    let distance = |size: &(u32, u32)| (shape((width, height)) - shape(*size)).abs();
    PREFERRED.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or((width, height))
}

/// The size at which a reference is encoded: whole tokens, of `multiple` pixels.
pub(crate) fn reference_size(reference: &Rgb8, as_it_is: bool, multiple: u32) -> (u32, u32) {
    let own = (reference.width(), reference.height());
    let (width, height) = if as_it_is { own } else { preferred(own) };
    (width / multiple * multiple, height / multiple * multiple)
}

/// A reference at that size.
pub(crate) fn reference(picture: &Rgb8, as_it_is: bool, multiple: u32) -> Rgb8 {
    let (width, height) = reference_size(picture, as_it_is, multiple);
    resize(picture, width, height, Filter::Lanczos)
}

/// Bytes as the autoencoder takes them, `[H, W, 3]` in [−1, 1].
pub(crate) fn tensor(backend: &Arc<dyn Backend>, picture: &Rgb8) -> Tensor {
    let values = picture.as_ref().iter().map(|v| 2.0 * (f32::from(*v) / 255.0) - 1.0).collect();
    Tensor::from_vec(backend, [picture.height() as usize, picture.width() as usize, 3], values)
}

/// The same, grey (0) where it is painted anew.
pub(crate) fn open_tensor(backend: &Arc<dyn Backend>, picture: &Rgb8, mask: &Mask) -> Tensor {
    let (pixels, _) = picture.as_ref().as_chunks::<3>();
    let open =
        |(pixel, open): (&[u8; 3], &bool)| pixel.map(|v| if *open { 0.0 } else { 2.0 * (f32::from(v) / 255.0) - 1.0 });
    let values = pixels.iter().zip(&mask.open).flat_map(open).collect();
    Tensor::from_vec(backend, [picture.height() as usize, picture.width() as usize, 3], values)
}

/// Grey levels as Pillow's `convert("L")`.
pub(crate) fn luma(picture: &Rgb8) -> impl Iterator<Item = u8> {
    let (pixels, _) = picture.as_ref().as_chunks::<3>();
    pixels.iter().map(|pixel| {
        let [r, g, b] = pixel.map(u32::from);
        ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
    })
}

/// Which pixels are painted anew, row by row at the rendered size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    width: usize,
    height: usize,
    open: Vec<bool>,
}

fn mask(start: &Start, sizes: Sizes) -> Mask {
    let (width, height) = sizes.asked;
    let (rendered_width, rendered_height) = sizes.rendered;
    let painted = start.mask.as_ref().map(|mask| {
        let laid = if start.margins == Margins::default() {
            resize(mask, width, height, Filter::Lanczos)
        } else {
            let own = resize(mask, start.picture.width(), start.picture.height(), Filter::Lanczos);
            resize(&with_margins(&own, start.margins), width, height, Filter::Lanczos)
        };
        luma(&continued(&laid, sizes.rendered)).map(|v| v >= 128).collect::<Vec<_>>()
    });
    let (columns, rows) = kept(start, sizes);
    let [w, h] = [rendered_width as usize, rendered_height as usize];
    let mut open = painted.unwrap_or_else(|| vec![false; w * h]);
    for (y, row) in open.chunks_exact_mut(w).enumerate() {
        for (x, open) in row.iter_mut().enumerate() {
            *open |= !(columns.contains(&(x as u32)) && rows.contains(&(y as u32)));
        }
    }
    Mask { width: w, height: h, open }
}

/// The columns and rows of the picture inside of its margins, in whole latents: a latent that a margin touches is painted.
/// What continues the picture to whole tokens belongs to its neighbour.
fn kept(start: &Start, sizes: Sizes) -> (std::ops::Range<u32>, std::ops::Range<u32>) {
    let Margins { left, top, right, bottom } = start.margins;
    let (canvas_width, canvas_height) = start.canvas_size();
    let side = |before: u32, after: u32, canvas: u32, asked: u32| {
        let scale = f64::from(asked) / f64::from(canvas);
        let factor = f64::from(sizes.factor);
        let first = (f64::from(before) * scale / factor).ceil() * factor;
        let last = (f64::from(canvas - after) * scale / factor).floor() * factor;
        first as u32..if after == 0 { u32::MAX } else { last as u32 }
    };
    (side(left, right, canvas_width, sizes.asked.0), side(top, bottom, canvas_height, sizes.asked.1))
}

impl Mask {
    /// For blending: 1 where a latent is painted anew, by its upper left pixel, as PyTorch's `interpolate` picks it; the same
    /// for all channels.
    pub(crate) fn latents(&self, channels: usize, factor: usize) -> Latents {
        let [height, width] = [self.height / factor, self.width / factor];
        let plane = (0..height * width).map(|i| {
            let [y, x] = [i / width * factor, i % width * factor];
            f32::from(self.open[y * self.width + x])
        });
        let plane: Vec<f32> = plane.collect();
        Latents { channels, height, width, values: plane.repeat(channels) }
    }

    /// For Fill: the pixels of each latent as its channels, row by row.
    pub(crate) fn channels(&self, factor: usize) -> Latents {
        let [height, width] = [self.height / factor, self.width / factor];
        let mut values = Vec::with_capacity(self.open.len());
        for c in 0..factor * factor {
            for i in 0..height * width {
                let [y, x] = [i / width * factor + c / factor, i % width * factor + c % factor];
                values.push(f32::from(self.open[y * self.width + x]));
            }
        }
        Latents { channels: factor * factor, height, width, values }
    }
}

/// The picture with margins: its edge goes on into them.
fn with_margins(picture: &Rgb8, margins: Margins) -> Rgb8 {
    if margins == Margins::default() {
        return picture.clone();
    }
    let Margins { left, top, right, bottom } = margins;
    let (width, height) = (left + picture.width() + right, top + picture.height() + bottom);
    sampled(picture, width, height, left, top)
}

/// Continued to the right and below by its last column and row.
fn continued(picture: &Rgb8, (width, height): (u32, u32)) -> Rgb8 {
    if (picture.width(), picture.height()) == (width, height) {
        return picture.clone();
    }
    sampled(picture, width, height, 0, 0)
}

/// A larger canvas with `picture` at (`left`, `top`), each pixel around it that of the nearest in it.
fn sampled(picture: &Rgb8, width: u32, height: u32, left: u32, top: u32) -> Rgb8 {
    let nearest = |at: u32, before: u32, side: u32| at.saturating_sub(before).min(side - 1) as usize;
    let stride = 3 * picture.width() as usize;
    let columns: Vec<usize> = (0..width).map(|x| 3 * nearest(x, left, picture.width())).collect();
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    for y in 0..height {
        let row = &picture.as_ref()[stride * nearest(y, top, picture.height())..][..stride];
        for &x in &columns {
            pixels.extend_from_slice(&row[x..x + 3]);
        }
    }
    Rgb8::new(width, height, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_pictures() {
        let usual = (1024, 1024);
        assert_eq!(size_like((1024, 768), usual), (1024, 768));
        assert_eq!(size_like((1023, 767), usual), (1023, 767));
        assert_eq!(size_like((4000, 3000), usual), (1680, 1248));
        assert_eq!(size_like((3, 200), usual), (16, 200));
        assert_eq!(size_like((100_000, 30), (96, 96)), (7840, 16));
    }

    #[test]
    fn kontext_sizes() {
        assert_eq!(preferred((1000, 1000)), (1024, 1024));
        assert_eq!(preferred((3000, 2000)), (1248, 832));
        assert_eq!(preferred((10, 900)), (672, 1568));
        let picture = Rgb8::new(50, 35, vec![0; 50 * 35 * 3]);
        assert_eq!(reference_size(&picture, true, 16), (48, 32));
        assert_eq!(reference_size(&picture, false, 16), (1248, 832));
    }

    /// A picture of 8×8 with 4 pixels more on the left and 2 below, latents of 2 pixels.
    #[test]
    fn margins_are_open_and_edges_go_on() {
        let picture = Rgb8::new(8, 8, (0..192).map(|i| i as u8).collect());
        let margins = Margins { left: 4, bottom: 2, ..Margins::default() };
        let start_ = Start { margins, ..Start::new(picture.clone()) };
        let sizes = Sizes { asked: (12, 10), rendered: (12, 12), factor: 2 };
        let (canvas, mask) = start(&start_, sizes);
        assert_eq!((canvas.width(), canvas.height()), (12, 12));
        assert_eq!(canvas.pixel(0, 0), picture.pixel(0, 0));
        assert_eq!(canvas.pixel(4, 0), picture.pixel(0, 0));
        assert_eq!(canvas.pixel(11, 11), picture.pixel(7, 7));
        let mask = mask.expect("some is kept");
        let rows: Vec<String> =
            mask.open.chunks(12).map(|row| row.iter().map(|open| if *open { '#' } else { '.' }).collect()).collect();
        assert!(rows[..8].iter().all(|row| row == "####........"), "{rows:?}");
        assert!(rows[8..].iter().all(|row| row == "############"), "{rows:?}");
        let latents = mask.latents(3, 2);
        assert_eq!([latents.channels, latents.height, latents.width], [3, 6, 6]);
        assert_eq!(latents.values[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(mask.channels(2).values.iter().sum::<f32>(), (8 * 4 + 4 * 12) as f32);
    }

    /// A margin that ends within a latent opens it whole.
    #[test]
    fn margins_open_whole_latents() {
        let picture = Rgb8::new(9, 8, vec![7; 216]);
        let margins = Margins { left: 3, right: 4, ..Margins::default() };
        let start_ = Start { margins, ..Start::new(picture) };
        let (_, mask) = start(&start_, Sizes { asked: (16, 8), rendered: (16, 8), factor: 8 });
        assert_eq!(mask.expect("some is kept").latents(1, 8).values, [1.0, 1.0]);
    }
}
