//! From the size that was asked for to one that the model can draw, and back. Pure; sizes in pixels, width first.
//!
//! FLUX.1 draws what has at least 256 pixels on its short side and at most 4 megapixels: larger pictures are drawn at a quarter
//! and enlarged, smaller ones drawn larger and shrunk. A small model (the one in the box) draws only the shape and size it was
//! trained with: its picture is enlarged, and its edges are continued where another shape is asked for.

use flux::{
    model::LEAST_SIDE,
    pixels::Rgb8,
    resize::{Filter, resize},
};

use crate::{
    ask::OutputSize,
    error::{Fault, Rule},
};

/// Largest result, pixels.
pub(crate) const MOST_PIXELS: u64 = 64 << 20;

/// Largest picture that the model itself draws, pixels.
const MOST_DRAWN: u64 = 4 << 20;

/// How a picture of a size is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Canvas {
    /// What the model draws.
    pub(crate) drawn: (u32, u32),
    /// How many times a network enlarges that, 2 or 4.
    pub(crate) enlarged: Option<u32>,
    /// What it is resized to then: the output's size, or that of the model's shape inside (or around) it.
    pub(crate) fitted: (u32, u32),
    /// What is left when edges were cut or continued.
    pub(crate) output: (u32, u32),
}

impl Canvas {
    /// For a result of `output` pixels by a model whose usual size is `usual`. What begins from a picture is made `around` the output
    /// so that nothing of that picture is lost, otherwise inside of it.
    pub(crate) fn new(output: (u32, u32), usual: (u32, u32), around: bool) -> Self {
        let (width, height) = output;
        let (long, short) = (width.max(height), width.min(height));
        let pixels = u64::from(width) * u64::from(height);
        if usual.0.min(usual.1) < LEAST_SIDE {
            let scale = |by: fn(f64, f64) -> f64| by(ratio(width, usual.0), ratio(height, usual.1));
            let scale = if around { scale(f64::max) } else { scale(f64::min) };
            let fitted = (scaled(usual.0, scale), scaled(usual.1, scale));
            return Self { drawn: usual, enlarged: enlarged(scale), fitted, output };
        }
        let drawn = if pixels > MOST_DRAWN && short >= 2 * LEAST_SIDE {
            let factor = if short >= 4 * LEAST_SIDE { 4 } else { 2 };
            let drawn = (width.div_ceil(factor), height.div_ceil(factor));
            let fitted = (drawn.0 * factor, drawn.1 * factor);
            return Self { drawn, enlarged: Some(factor), fitted, output };
        } else if short < LEAST_SIDE || pixels > MOST_DRAWN {
            // The long side is cut in proportion, but not to more than the model can.
            let most = MOST_DRAWN as u32 / LEAST_SIDE;
            let side = |side: u32| scaled(side, ratio(LEAST_SIDE, short)).clamp(LEAST_SIDE, most.min(8192));
            (side(width), side(height))
        } else {
            output
        };
        Self { drawn, enlarged: enlarged(ratio(long, drawn.0.max(drawn.1))), fitted: output, output }
    }

    /// The finished picture from what the model drew (and a network enlarged).
    pub(crate) fn finish(&self, picture: &Rgb8) -> Rgb8 {
        let fitted = if (picture.width(), picture.height()) == self.fitted {
            picture.clone()
        } else {
            resize(picture, self.fitted.0, self.fitted.1, Filter::Lanczos)
        };
        framed(&fitted, self.output)
    }

    /// A picture that was given, in the shape of what is drawn: cut to the output's shape, and continued where more is drawn.
    pub(crate) fn given(&self, picture: &Rgb8) -> Rgb8 {
        let (width, height) = (picture.width(), picture.height());
        let shape = ratio(self.output.0, self.output.1);
        let off = ratio(width, height) / shape;
        let cut = if off > 1.01 {
            (scaled(height, shape).min(width), height)
        } else if off < 0.99 {
            (width, scaled(width, 1.0 / shape).min(height))
        } else {
            (width, height)
        };
        let wide = |side: u32, fitted: u32, output: u32| scaled(side, ratio(fitted, output).max(1.0));
        let whole = (wide(cut.0, self.fitted.0, self.output.0), wide(cut.1, self.fitted.1, self.output.1));
        framed(&framed(picture, cut), whole)
    }
}

/// The pixels of a result.
///
/// # Errors
/// [`Fault::Invalid`] about `size`.
pub(crate) fn output(size: OutputSize, given: Option<(u32, u32)>) -> Result<(u32, u32), Fault> {
    let (width, height) = match (size, given) {
        (OutputSize::Exact { width, height }, _) => (width, height),
        (OutputSize::Follow { most, multiple }, Some((width, height))) => {
            let scale = (f64::from(most) / f64::from(width.max(height))).min(1.0);
            let multiple = multiple.max(1);
            let side = |side: u32| {
                let times = (f64::from(side) * scale / f64::from(multiple)).round().max(1.0) as u32;
                let most = (most / multiple).max(1);
                times.min(most) * multiple
            };
            (side(width), side(height))
        }
        (OutputSize::Follow { .. }, None) => {
            let message = "follows a picture, and none was given";
            return Err(Fault::invalid("size", Rule::Other, message));
        }
    };
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MOST_PIXELS {
        let message = format!("{width}x{height} cannot be made; at most {MOST_PIXELS} pixels are possible");
        return Err(Fault::invalid("size", Rule::Other, message));
    }
    Ok((width, height))
}

fn ratio(a: u32, b: u32) -> f64 {
    f64::from(a) / f64::from(b)
}

fn scaled(side: u32, scale: f64) -> u32 {
    (f64::from(side) * scale).round().clamp(1.0, 65536.0) as u32
}

/// A network's factor for an enlargement; none where resizing alone loses nothing.
fn enlarged(scale: f64) -> Option<u32> {
    match scale {
        scale if scale > 2.0 => Some(4),
        scale if scale > 1.15 => Some(2),
        _ => None,
    }
}

/// The middle of a picture, or the picture with its edges continued: as they are beside the picture, and evenly in their mean colour
/// farther away.
fn framed(picture: &Rgb8, (width, height): (u32, u32)) -> Rgb8 {
    if (picture.width(), picture.height()) == (width, height) {
        return picture.clone();
    }
    let wide = columns(picture, width);
    // Rows are the columns of the picture laid on its side.
    turned(&columns(&turned(&wide), height))
}

/// With so many columns.
fn columns(picture: &Rgb8, width: u32) -> Rgb8 {
    let (have, height) = (picture.width(), picture.height());
    if width == have {
        return picture.clone();
    }
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    if width < have {
        let left = (have - width) / 2;
        for y in 0..height {
            pixels.extend((left..left + width).flat_map(|x| picture.pixel(x, y)));
        }
        return Rgb8::new(width, height, pixels);
    }
    let left = (width - have) / 2;
    let mean = |x: u32| -> [f64; 3] {
        std::array::from_fn(|c| (0..height).map(|y| f64::from(picture.pixel(x, y)[c])).sum::<f64>() / f64::from(height))
    };
    let means = [mean(0), mean(have - 1)];
    let fade = f64::from(have) / 8.0;
    let beside = |edge: [u8; 3], mean: [f64; 3], distance: u32| -> [u8; 3] {
        let share = (f64::from(distance) / fade).min(1.0);
        // Slow at both ends.
        let share = share * share * (3.0 - 2.0 * share);
        std::array::from_fn(|c| (f64::from(edge[c]) * (1.0 - share) + mean[c] * share).round() as u8)
    };
    for y in 0..height {
        for x in 0..width {
            pixels.extend(if x < left {
                beside(picture.pixel(0, y), means[0], left - x)
            } else if x >= left + have {
                beside(picture.pixel(have - 1, y), means[1], x + 1 - left - have)
            } else {
                picture.pixel(x - left, y)
            });
        }
    }
    Rgb8::new(width, height, pixels)
}

/// Rows and columns exchanged.
fn turned(picture: &Rgb8) -> Rgb8 {
    let (width, height) = (picture.width(), picture.height());
    let pixels = (0..width).flat_map(|x| (0..height).flat_map(move |y| picture.pixel(x, y))).collect();
    Rgb8::new(height, width, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUX: (u32, u32) = (1024, 1024);
    const SMALL: (u32, u32) = (96, 96);

    #[test]
    fn what_flux_can_draw_is_drawn_as_it_is() {
        for size in [(1024, 1024), (1183, 887), (256, 256), (2048, 2048), (670, 1564)] {
            let expected = Canvas { drawn: size, enlarged: None, fitted: size, output: size };
            assert_eq!(Canvas::new(size, FLUX, false), expected);
        }
    }

    #[test]
    fn larger_and_smaller_ones_come_out_exactly() {
        let canvas = Canvas::new((4732, 3548), FLUX, false);
        assert_eq!((canvas.drawn, canvas.enlarged, canvas.fitted), ((1183, 887), Some(4), (4732, 3548)));
        let canvas = Canvas::new((4099, 1030), FLUX, false);
        assert_eq!((canvas.drawn, canvas.enlarged, canvas.fitted), ((1025, 258), Some(4), (4100, 1032)));
        let canvas = Canvas::new((8192, 600), FLUX, false);
        assert_eq!((canvas.drawn, canvas.enlarged), ((4096, 300), Some(2)));
        let canvas = Canvas::new((64, 128), FLUX, false);
        assert_eq!((canvas.drawn, canvas.enlarged, canvas.fitted), ((256, 512), None, (64, 128)));
        for output in [(64, 128), (1, 1), (3, 700), (14142, 1), (20, 14142), (8192, 513), (300, 14142)] {
            for usual in [FLUX, SMALL] {
                for around in [false, true] {
                    let canvas = Canvas::new(output, usual, around);
                    let (width, height) = canvas.drawn;
                    assert!(
                        u64::from(width) * u64::from(height) <= MOST_DRAWN && width.max(height) <= 8192,
                        "{canvas:?}"
                    );
                    assert_eq!(canvas.output, output);
                }
            }
        }
    }

    #[test]
    fn a_small_model_draws_what_it_learned() {
        let square = Canvas::new((1024, 1024), SMALL, false);
        assert_eq!(square, Canvas { drawn: SMALL, enlarged: Some(4), fitted: FLUX, output: FLUX });
        let wide = Canvas::new((1365, 768), SMALL, false);
        assert_eq!((wide.drawn, wide.fitted), (SMALL, (768, 768)));
        let begun = Canvas::new((1365, 768), SMALL, true);
        assert_eq!((begun.drawn, begun.fitted), (SMALL, (1365, 1365)));
        let small = Canvas::new((64, 48), SMALL, false);
        assert_eq!((small.drawn, small.enlarged, small.fitted), (SMALL, None, (48, 48)));
        let drawn = Rgb8::new(384, 384, (0..3 * 384 * 384).map(|i| (i % 251) as u8).collect());
        for output in [(1024, 1024), (1365, 768), (64, 48), (33, 700)] {
            for around in [false, true] {
                let finished = Canvas::new(output, SMALL, around).finish(&drawn);
                assert_eq!((finished.width(), finished.height()), output);
            }
        }
    }

    #[test]
    fn edges_go_on_and_middles_stay() {
        let picture = Rgb8::new(2, 2, vec![10, 10, 10, 20, 20, 20, 30, 30, 30, 40, 40, 40]);
        let wide = framed(&picture, (6, 2));
        assert_eq!((wide.pixel(2, 0), wide.pixel(3, 1)), ([10; 3], [40; 3]));
        assert_eq!((wide.pixel(0, 0), wide.pixel(0, 1)), ([20; 3], [20; 3]), "the left edge's mean");
        assert_eq!(wide.pixel(5, 0), [30; 3]);
        assert_eq!(framed(&wide, (2, 2)), picture);
        let tall = framed(&picture, (2, 4));
        assert_eq!((tall.pixel(0, 0), tall.pixel(1, 3)), ([15; 3], [35; 3]));
    }

    #[test]
    fn given_pictures_take_the_shape_of_what_is_drawn() {
        let picture = Rgb8::new(200, 100, vec![7; 200 * 100 * 3]);
        let shape = |canvas: Canvas| {
            let given = canvas.given(&picture);
            (given.width(), given.height())
        };
        assert_eq!(shape(Canvas::new((1024, 512), FLUX, true)), (200, 100));
        assert_eq!(shape(Canvas::new((1024, 1024), FLUX, true)), (100, 100), "cut, not squeezed");
        assert_eq!(shape(Canvas::new((1024, 512), SMALL, true)), (200, 200), "continued, and cut again at the end");
    }

    #[test]
    fn sizes_that_follow() {
        let follow = |most, multiple, given| output(OutputSize::Follow { most, multiple }, Some(given)).unwrap();
        assert_eq!(follow(1440, 16, (100, 50)), (96, 48));
        assert_eq!(follow(1440, 16, (4000, 3000)), (1440, 1088));
        assert_eq!(follow(1000, 1, (3000, 1)), (1000, 1));
        assert!(output(OutputSize::Follow { most: 10, multiple: 1 }, None).is_err());
        assert!(output(OutputSize::Exact { width: 0, height: 9 }, None).is_err());
        assert!(output(OutputSize::Exact { width: 65536, height: 65536 }, None).is_err());
    }
}
