//! TAEF1, the tiny autoencoder for previews: model-space latents `[h, w, 16]` ↔ pictures `[8h, 8w, 3]` in [0, 1].
//!
//! Source: `madebyollin/taesd`, `taesd.py`. A plain sequence of layers; files name them by their index in it. ComfyUI's
//! files have a prefix, diffusers' leave the clamp out of the decoder's count.

use tensor::{Padding, Tensor, Unary};

use crate::{
    error::{Error, Result},
    nn::Conv2d,
    weights::Weights,
};

/// The residual block: `relu(conv(relu(conv(relu(conv(x))))) + skip(x))`.
#[derive(Debug)]
struct Block {
    conv: Box<[Conv2d; 3]>,
}

impl Block {
    fn load(name: &str, channels: usize, weights: &Weights) -> Result<Self> {
        let conv = |i: usize| weights.conv2d(&format!("{name}.conv.{i}"), channels, channels, 3);
        Ok(Self { conv: Box::new([conv(0)?, conv(2)?, conv(4)?]) })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, third] = &*self.conv;
        let h = first.same(x).unary(Unary::Relu);
        let h = second.same(&h).unary(Unary::Relu);
        third.same(&h).add(x).unary(Unary::Relu)
    }
}

/// A layer of either half.
#[derive(Debug)]
enum Layer {
    Conv(Conv2d, Padding, usize),
    Block(Block),
    Relu,
    Upsample,
}

fn run(layers: &[Layer], x: &Tensor) -> Tensor {
    layers.iter().fold(x.clone(), |x, layer| match layer {
        Layer::Conv(conv, padding, stride) => conv.strided(&x, *stride, *padding),
        Layer::Block(block) => block.forward(&x),
        Layer::Relu => x.unary(Unary::Relu),
        Layer::Upsample => x.upsample_nearest_2x(),
    })
}

fn conv(name: &str, out: usize, from: usize, stride: usize, weights: &Weights) -> Result<Layer> {
    Ok(Layer::Conv(weights.conv2d_bias_if_any(name, out, from, 3)?, Padding::all(1), stride))
}

/// Channels inside, from the weight of the first convolution.
fn width(name: &str, weights: &Weights) -> Result<(usize, usize)> {
    match weights.stored_shape(&format!("{name}.weight")).as_deref() {
        Some([out, from, 3, 3]) => Ok((*out, *from)),
        _ => Err(Error::asked("taef1", format!("is not a tiny autoencoder: it lacks a 3×3 convolution '{name}'"))),
    }
}

/// Latents to a preview.
#[derive(Debug)]
pub struct TinyDecoder {
    layers: Vec<Layer>,
    latent_channels: usize,
}

impl TinyDecoder {
    /// Takes the parameters from `weights`: either spelling of the layer indices.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(weights: &Weights) -> Result<Self> {
        // The original counts the clamp as layer 0, diffusers does not.
        let (prefix, shift) = if weights.has("decoder.layers.0.weight") { ("decoder.layers.", 1) } else { ("", 0) };
        let name = |index: usize| format!("{prefix}{}", index - shift);
        let (n, latent_channels) = width(&name(1), weights)?;
        let mut layers = vec![conv(&name(1), n, latent_channels, 1, weights)?, Layer::Relu];
        let mut index = 3;
        for _ in 0..3 {
            for _ in 0..3 {
                layers.push(Layer::Block(Block::load(&name(index), n, weights)?));
                index += 1;
            }
            layers.push(Layer::Upsample);
            layers.push(conv(&name(index + 1), n, n, 1, weights)?);
            index += 2;
        }
        layers.push(Layer::Block(Block::load(&name(index), n, weights)?));
        layers.push(conv(&name(index + 1), 3, n, 1, weights)?);
        Ok(Self { layers, latent_channels })
    }

    /// Channels of the latents it takes.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// `[h, w, 16]` → `[8h, 8w, 3]`, about [0, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let clamped = latents.affine(1.0 / 3.0, 0.0).unary(Unary::Tanh).affine(3.0, 0.0);
        run(&self.layers, &clamped)
    }
}

/// A picture to latents.
#[derive(Debug)]
pub struct TinyEncoder {
    layers: Vec<Layer>,
}

impl TinyEncoder {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size.
    pub fn load(weights: &Weights) -> Result<Self> {
        let prefix = if weights.has("encoder.layers.0.weight") { "encoder.layers." } else { "" };
        let name = |index: usize| format!("{prefix}{index}");
        let (n, from) = width(&name(0), weights)?;
        let mut layers = vec![conv(&name(0), n, from, 1, weights)?, Layer::Block(Block::load(&name(1), n, weights)?)];
        let mut index = 2;
        for _ in 0..3 {
            layers.push(conv(&name(index), n, n, 2, weights)?);
            for block in 1..=3 {
                layers.push(Layer::Block(Block::load(&name(index + block), n, weights)?));
            }
            index += 4;
        }
        let (latent_channels, _) = width(&name(index), weights)?;
        layers.push(conv(&name(index), latent_channels, n, 1, weights)?);
        Ok(Self { layers })
    }

    /// `[8h, 8w, 3]` in [0, 1] → `[h, w, 16]` in model space.
    pub fn encode(&self, picture: &Tensor) -> Tensor {
        run(&self.layers, picture)
    }
}
