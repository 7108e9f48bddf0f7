//! `nsfwjs`: a `MobileNetV2` that tells five kinds of pictures apart, in the program (`assets/safety/`).
//!
//! A picture is shrunk to 224×224 as TensorFlow.js does it (bilinear, corners on corners, nothing averaged), in [0, 1]; then
//! `[224, 224, 3]` → `[7, 7, 1280]` in blocks that widen, filter each channel, and narrow; the mean; three dense layers; five
//! probabilities. Batch norms are folded into the convolutions. Source: infinitered/nsfwjs 4.3.0, `core.js`; the layers'
//! order from its model, Sandler et al., "`MobileNetV2`".

use std::sync::{Arc, OnceLock};

use serde::Serialize;
use tensor::{Backend, Device, Padding, Shape, Tensor, Unary, Weight};

use crate::{
    error::{Error, Result},
    pixels::Rgb8,
    weights::Checkpoint,
};

/// Pixels of a side.
const SIDE: usize = 224;

const BLOCKS: usize = 17;

/// Blocks that halve the picture.
const HALVING: [usize; 4] = [1, 3, 6, 13];

/// A picture that is halved gets a row and a column of zeros below and on the right.
const BEFORE_HALVING: Padding = Padding { top: 0, left: 0, bottom: 1, right: 1 };

/// What the picture gate's network says of a picture: probabilities of its five classes, which sum to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Drawings that are safe for work.
    pub drawing: f32,
    /// Drawings of sex.
    pub hentai: f32,
    /// Photographs and all else that is safe for work.
    pub neutral: f32,
    /// Photographs of sex.
    pub porn: f32,
    /// Photographs that are suggestive.
    pub sexy: f32,
}

impl Scores {
    /// From the network's outputs before softmax, in its order.
    pub(super) fn from_logits(logits: [f32; 5]) -> Self {
        let most = logits.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let powers = logits.map(|logit| f64::from(logit - most).exp());
        let sum: f64 = powers.iter().sum();
        let [drawing, hentai, neutral, porn, sexy] = powers.map(|power| (power / sum) as f32);
        Self { drawing, hentai, neutral, porn, sexy }
    }

    /// How likely it shows sex: p(porn) + p(hentai).
    pub fn explicit(&self) -> f32 {
        self.porn + self.hentai
    }
}

/// The network.
pub(super) struct Classifier {
    backend: Arc<dyn Backend>,
    first: Layer,
    blocks: Vec<Block>,
    last: Layer,
    mean: Weight,
    dense: [Layer; 3],
}

/// A convolution of 1×1 or a dense layer, `[out, in]`; or a full one, `[out, in, 3, 3]`.
struct Layer {
    weight: Weight,
    bias: Tensor,
}

struct Block {
    expand: Option<Layer>,
    /// `[3, 3, channels]`.
    kernel: Tensor,
    bias: Tensor,
    halves: bool,
    project: Layer,
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Classifier(nsfwjs)")
    }
}

impl Classifier {
    /// The one in the program, which all gates share.
    ///
    /// # Errors
    /// [`Error::File`] if the program is damaged.
    pub(super) fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Classifier> = OnceLock::new();
        if let Some(classifier) = SHARED.get() {
            return Ok(classifier);
        }
        // One thread: a picture takes tens of milliseconds, and the others belong to the transformer.
        let loaded = Self::load(&Device::Cpu { threads: Some(1) }.open())?;
        Ok(SHARED.get_or_init(|| loaded))
    }

    fn load(backend: &Arc<dyn Backend>) -> Result<Self> {
        let bytes = include_bytes!("../../assets/safety/nsfwjs_mobilenet_v2.safetensors");
        let file = File { checkpoint: Checkpoint::embedded("nsfwjs", bytes)?, backend };
        let block = |i: usize| {
            let name = |part: &str| format!("block_{i}.{part}");
            let (shape, kernel) = file.kernel(&name("depthwise"), Channels::Last)?;
            Ok(Block {
                expand: if i > 0 { Some(file.layer(&name("expand"))?) } else { None },
                bias: file.list(&name("depthwise.bias"), shape.last().copied().unwrap_or(0))?,
                kernel: Tensor::from_vec(backend, Shape::new(&shape), kernel),
                halves: HALVING.contains(&i),
                project: file.layer(&name("project"))?,
            })
        };
        let pixels = SIDE / 32 * (SIDE / 32);
        Ok(Self {
            first: file.layer("first")?,
            blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
            last: file.layer("last")?,
            mean: Weight::from_f32([1, pixels], &vec![1.0 / pixels as f32; pixels]),
            dense: [file.layer("dense_1")?, file.layer("dense_2")?, file.layer("dense_3")?],
            backend: backend.clone(),
        })
    }

    /// What it says of a picture.
    pub(super) fn scores(&self, picture: &Rgb8) -> Scores {
        let mut x = Tensor::from_vec(&self.backend, [SIDE, SIDE, 3], shrunk(picture));
        x = x.conv2d_unary(&self.first.weight, Some(&self.first.bias), 2, BEFORE_HALVING, Unary::Relu6);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        let x = self.last.each_pixel(&x, Some(Unary::Relu6));
        let x = x.reshape([x.shape()[0] * x.shape()[1], x.shape()[2]]).permute(&[1, 0]);
        let mut x = x.linear(&self.mean, None).reshape([1, x.shape()[0]]);
        let [first, second, third] = &self.dense;
        for layer in [first, second] {
            x = x.linear_unary(&layer.weight, Some(&layer.bias), Unary::Relu);
        }
        let logits = x.linear(&third.weight, Some(&third.bias)).to_vec();
        drop(x);
        self.backend.release_idle();
        let logits = <[f32; 5]>::try_from(logits).unwrap_or([f32::NAN; 5]);
        Scores::from_logits(logits)
    }
}

impl Layer {
    /// A convolution of 1×1: `[H, W, in]` → `[H, W, out]`.
    fn each_pixel(&self, x: &Tensor, f: Option<Unary>) -> Tensor {
        let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let rows = x.reshape([h * w, c]);
        let y = match f {
            Some(f) => rows.linear_unary(&self.weight, Some(&self.bias), f),
            None => rows.linear(&self.weight, Some(&self.bias)),
        };
        y.reshape([h, w, self.weight.out_features()])
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        let wide = self.expand.as_ref().map(|expand| expand.each_pixel(x, Some(Unary::Relu6)));
        let wide = wide.as_ref().unwrap_or(x);
        let (stride, padding) = if self.halves { (2, BEFORE_HALVING) } else { (1, Padding::all(1)) };
        let filtered = wide.depthwise_conv2d(&self.kernel, Some(&self.bias), stride, padding).unary(Unary::Relu6);
        let y = self.project.each_pixel(&filtered, None);
        if y.shape() == x.shape() { y.add(x) } else { y }
    }
}

/// The embedded file: kernels in bytes, each with its least value and scale; factors and biases of what was a batch norm.
struct File<'a> {
    checkpoint: Checkpoint,
    backend: &'a Arc<dyn Backend>,
}

/// Which of a kernel's axes the factors of its batch norm belong to.
#[derive(Clone, Copy, PartialEq)]
enum Channels {
    First,
    Last,
}

impl File<'_> {
    fn layer(&self, name: &str) -> Result<Layer> {
        let (shape, values) = self.kernel(name, Channels::First)?;
        let bias = self.list(&format!("{name}.bias"), shape[0])?;
        // What sees one pixel is a matrix.
        let shape = if shape[2..].iter().all(|side| *side == 1) { &shape[..2] } else { &shape[..] };
        Ok(Layer { weight: Weight::from_f32(Shape::new(shape), &values), bias })
    }

    /// Its shape and its numbers: `(code · scale + least) · factor`.
    fn kernel(&self, name: &str, channels: Channels) -> Result<(Vec<usize>, Vec<f32>)> {
        let weight = format!("{name}.weight");
        let (codes, entry) = self.checkpoint.bytes(&weight).ok_or_else(|| self.damaged(&weight))?;
        let shape = entry.shape.clone();
        let range = self.numbers(&format!("{name}.range"), 2)?;
        let [least, scale] = [range[0], range[1]].map(f64::from);
        let count = if channels == Channels::First { shape[0] } else { shape[shape.len() - 1] };
        let factors = match self.checkpoint.entry(&format!("{name}.factor")) {
            Some(_) => self.numbers(&format!("{name}.factor"), count)?,
            None => vec![1.0; count],
        };
        let each = codes.get().len() / count;
        let factor = |at: usize| factors[if channels == Channels::First { at / each } else { at % count }];
        let number = |(at, code): (usize, &u8)| ((f64::from(*code) * scale + least) as f32) * factor(at);
        Ok((shape, codes.get().iter().enumerate().map(number).collect()))
    }

    fn list(&self, name: &str, len: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.backend, [len], self.numbers(name, len)?))
    }

    fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (bytes, _) = self.checkpoint.bytes(name).ok_or_else(|| self.damaged(name))?;
        let (numbers, _) = bytes.get().as_chunks::<4>();
        let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if numbers.len() == len { Ok(numbers) } else { Err(self.damaged(name)) }
    }

    fn damaged(&self, name: &str) -> Error {
        Error::file(self.checkpoint.origin(), format!("(in the program) has no '{name}' of the size expected"))
    }
}

/// `[224, 224, 3]` in [0, 1]. The first pixel of the small picture is the first of the large one, the last the last; between,
/// the four pixels around a point are mixed, however many others there are.
fn shrunk(picture: &Rgb8) -> Vec<f32> {
    let [width, height] = [picture.width(), picture.height()].map(|side| side as usize);
    let place = |at: usize, side: usize| {
        let exact = (side - 1) as f64 / (SIDE - 1) as f64 * at as f64;
        let before = exact.floor();
        (before as usize, (exact.ceil() as usize).min(side - 1), exact - before)
    };
    let pixels = picture.as_ref();
    let value =
        |x: usize, y: usize, channel: usize| f64::from(f32::from(pixels[3 * (y * width + x) + channel]) / 255.0);
    let mut small = Vec::with_capacity(SIDE * SIDE * 3);
    for row in 0..SIDE {
        let (above, below, down) = place(row, height);
        for column in 0..SIDE {
            let (left, right, across) = place(column, width);
            for channel in 0..3 {
                let mixed = |y: usize| {
                    let [a, b] = [value(left, y, channel), value(right, y, channel)];
                    a + (b - a) * across
                };
                let [top, bottom] = [mixed(above), mixed(below)];
                small.push((top + (bottom - top) * down) as f32);
            }
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_stay_corners() {
        let picture = Rgb8::new(2, 2, vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]);
        let small = shrunk(&picture);
        let at = |x: usize, y: usize| &small[3 * (y * SIDE + x)..][..3];
        assert_eq!(at(0, 0), [1.0, 0.0, 0.0]);
        assert_eq!(at(223, 0), [0.0, 1.0, 0.0]);
        assert_eq!(at(0, 223), [0.0, 0.0, 1.0]);
        assert_eq!(at(223, 223), [1.0, 1.0, 1.0]);
        assert!((at(111, 0)[1] - 111.0 / 223.0).abs() < 1e-6);
        // A picture of that size is taken as it is, one pixel is everywhere.
        let same: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (i * 7 % 256) as u8).collect();
        let expected: Vec<f32> = same.iter().map(|v| f32::from(*v) / 255.0).collect();
        assert_eq!(shrunk(&Rgb8::new(224, 224, same)), expected);
        assert!(shrunk(&Rgb8::new(1, 1, vec![51; 3])).iter().all(|v| *v == 0.2));
    }

    #[test]
    fn probabilities_come_from_any_logits() {
        let even = Scores::from_logits([3.0; 5]);
        assert_eq!([even.drawing, even.hentai, even.neutral, even.porn, even.sexy], [0.2; 5]);
        let sure = Scores::from_logits([-1e30, 1e30, 0.0, 0.0, 0.0]);
        assert_eq!((sure.hentai, sure.explicit()), (1.0, 1.0));
        assert!(Scores::from_logits([f32::NAN; 5]).explicit().is_nan());
    }
}
