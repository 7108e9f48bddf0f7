//! The FLUX.1 transformer: packed latents, text and a noise level in, velocity out.
//!
//! Reads like BFL's `model.py` (public repository `black-forest-labs/flux`, `src/flux/model.py`); fields have the
//! checkpoint's names. One picture at a time: a batch gains at most 6 % where all work is compute-bound.

mod blocks;
mod config;
mod embed;

use std::{fmt, sync::Arc};

use tensor::{Backend, Tensor};

use self::{
    blocks::{DoubleStreamBlock, LastLayer, SingleStreamBlock},
    embed::MlpEmbedder,
};
pub use self::{
    config::FluxConfig,
    embed::{Rope, guidance_argument, sinusoid},
};
use crate::{
    error::Result,
    lora::{self, Adapted, LoraReport, Loras, Model},
    memory::Layout,
    nn::{Linear, Parts},
    weights::{Component, Weights},
};

/// A FLUX.1 transformer.
#[derive(Debug)]
pub struct Flux {
    config: FluxConfig,
    img_in: Linear,
    txt_in: Linear,
    time_in: MlpEmbedder,
    vector_in: MlpEmbedder,
    guidance_in: Option<MlpEmbedder>,
    double_blocks: Vec<DoubleStreamBlock>,
    single_blocks: Vec<SingleStreamBlock>,
    final_layer: LastLayer,
    layout: Layout,
    adapted: Adapted,
}

/// What one evaluation of the transformer is conditioned on.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// T5's hidden states `[text tokens, context_in_dim]`.
    pub txt: &'a Tensor,
    /// CLIP's pooled vector `[1, vec_in_dim]`; BFL's `y`.
    pub pooled: &'a Tensor,
    /// What the guidance sinusoid is taken of, see [`guidance_argument`]; ignored by models without `guidance_in`.
    pub guidance_argument: f32,
    /// Angles of text and picture tokens.
    pub rope: &'a Rope,
}

/// A place in the forward pass, written as in the checkpoint: `double_blocks.3.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// After `img_in`.
    ImgIn,
    /// After `txt_in`.
    TxtIn,
    /// The modulation vector: time + guidance + pooled text.
    Vec,
    /// A double block's picture stream.
    DoubleImg(usize),
    /// A double block's text stream.
    DoubleTxt(usize),
    /// A single block's stream: text, then picture.
    Single(usize),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImgIn => f.write_str("img_in"),
            Self::TxtIn => f.write_str("txt_in"),
            Self::Vec => f.write_str("vec"),
            Self::DoubleImg(i) => write!(f, "double_blocks.{i}.img"),
            Self::DoubleTxt(i) => write!(f, "double_blocks.{i}.txt"),
            Self::Single(i) => write!(f, "single_blocks.{i}"),
        }
    }
}

/// Sees each block's output; an error (cancellation) ends the pass.
pub type Observe<'a> = &'a mut dyn FnMut(Site, &Tensor) -> Result<()>;

/// A way past most blocks, taken where it leads about as far.
pub(crate) trait Shortcut {
    /// The picture's stream before and after the first double block; gives the stream after all blocks, if the others need not run.
    fn after_first(&mut self, before: &Tensor, after: &Tensor) -> Option<Tensor>;

    /// All blocks have run: the picture's stream before and after the first, and after the last.
    fn computed(&mut self, before: &Tensor, after_first: &Tensor, last: &Tensor);
}

impl Flux {
    /// Takes the parameters from `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another size than `config` asks for.
    pub fn load(config: FluxConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size();
        let mut flux = Self {
            img_in: weights.linear("img_in", d, config.in_channels)?.sensitive(),
            txt_in: weights.linear("txt_in", d, config.context_in_dim)?.sensitive(),
            time_in: MlpEmbedder::load("time_in", config.time_dim(), d, weights)?,
            vector_in: MlpEmbedder::load("vector_in", config.vec_in_dim, d, weights)?,
            guidance_in: if config.guidance_embed {
                Some(MlpEmbedder::load("guidance_in", config.time_dim(), d, weights)?)
            } else {
                None
            },
            final_layer: LastLayer::load("final_layer", &config, weights)?,
            double_blocks: Vec::new(),
            single_blocks: Vec::new(),
            layout: Layout::default(),
            adapted: Adapted::default(),
            config,
        };
        flux.layout.fixed = weights.extent();
        for i in 0..flux.config.depth {
            flux.double_blocks.push(DoubleStreamBlock::load(&format!("double_blocks.{i}"), &flux.config, weights)?);
            flux.layout.blocks.push(weights.extent());
        }
        for i in 0..flux.config.depth_single_blocks {
            flux.single_blocks.push(SingleStreamBlock::load(&format!("single_blocks.{i}"), &flux.config, weights)?);
            flux.layout.blocks.push(weights.extent());
        }
        flux.adaptable().may_keep();
        Ok(flux)
    }

    /// What adapters can change, and what they have changed.
    pub(crate) fn adaptable(&mut self) -> Model<'_> {
        let mut parts = Parts::default();
        parts.linear("img_in", &mut self.img_in);
        parts.linear("txt_in", &mut self.txt_in);
        self.time_in.parts("time_in", &mut parts);
        self.vector_in.parts("vector_in", &mut parts);
        if let Some(guidance_in) = &mut self.guidance_in {
            guidance_in.parts("guidance_in", &mut parts);
        }
        self.final_layer.parts("final_layer", &mut parts);
        let depth = self.double_blocks.len();
        for (i, block) in self.double_blocks.iter_mut().enumerate() {
            parts.block = Some(i);
            block.parts(&format!("double_blocks.{i}"), &mut parts);
        }
        for (i, block) in self.single_blocks.iter_mut().enumerate() {
            parts.block = Some(depth + i);
            block.parts(&format!("single_blocks.{i}"), &mut parts);
        }
        Model { component: Component::Transformer, parts, layout: &mut self.layout, adapted: &mut self.adapted }
    }

    /// Applies LoRAs with their weights in the place of those before; what they hold for text encoders is left out. For a
    /// whole model see [`Pipeline::set_loras`](crate::Pipeline::set_loras).
    ///
    /// # Errors
    /// As there; the transformer stays as it was.
    pub fn set_loras(&mut self, loras: &Loras, backend: &Arc<dyn Backend>) -> Result<Vec<LoraReport>> {
        let applied = lora::apply(&mut [self.adaptable()], loras, backend)?;
        self.widen();
        Ok(applied.reports)
    }

    /// Takes as many channels as `img_in` does: a control LoRA has it take more.
    pub(crate) fn widen(&mut self) {
        self.config.in_channels = self.img_in.in_features();
    }

    /// Where its weights lie; double blocks come before single ones.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The block of [`Flux::layout`] that has been used when this is observed.
    pub(crate) fn block_done(&self, site: Site) -> Option<usize> {
        match site {
            Site::ImgIn | Site::TxtIn | Site::Vec | Site::DoubleImg(_) => None,
            Site::DoubleTxt(i) => Some(i),
            Site::Single(i) => Some(self.double_blocks.len() + i),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The velocity `noise − latent` of packed latents `img [picture tokens, in_channels]` at noise level `sigma`
    /// (1 = noise, 0 = picture) → `[picture tokens, out_channels]`.
    ///
    /// # Errors
    /// Only what `observe` returns.
    pub fn forward(&self, img: &Tensor, sigma: f32, condition: Condition<'_>, observe: Observe<'_>) -> Result<Tensor> {
        self.forward_with(img, sigma, condition, observe, None)
    }

    /// As [`Flux::forward`]; a shortcut is offered where the first double block is done.
    pub(crate) fn forward_with(
        &self,
        img: &Tensor,
        sigma: f32,
        condition: Condition<'_>,
        observe: Observe<'_>,
        mut shortcut: Option<&mut dyn Shortcut>,
    ) -> Result<Tensor> {
        let mut vec = self.time_in.forward(&self.sinusoid(img, 1000.0 * sigma));
        if let Some(guidance_in) = &self.guidance_in {
            vec = vec.add(&guidance_in.forward(&self.sinusoid(img, condition.guidance_argument)));
        }
        let vec = vec.add(&self.vector_in.forward(condition.pooled));
        observe(Site::Vec, &vec)?;
        let vec = vec.silu(); // every modulation begins with it

        let mut img = self.img_in.forward(img);
        observe(Site::ImgIn, &img)?;
        let mut txt = self.txt_in.forward(condition.txt);
        observe(Site::TxtIn, &txt)?;

        let [txt_tokens, img_tokens] = [txt.shape()[0], img.shape()[0]];
        // What a shortcut compares with, as long as it is needed.
        let mut ends = None;
        for (i, block) in self.double_blocks.iter().enumerate() {
            let before = if i == 0 && shortcut.is_some() { Some(img.clone()) } else { None };
            (img, txt) = block.forward(&img, &txt, &vec, condition.rope);
            observe(Site::DoubleImg(i), &img)?;
            observe(Site::DoubleTxt(i), &txt)?;
            if let (Some(before), Some(shortcut)) = (before, &mut shortcut) {
                if let Some(last) = shortcut.after_first(&before, &img) {
                    return Ok(self.final_layer.forward(&last, &vec));
                }
                ends = Some((before, img.clone()));
            }
        }
        let mut x = Tensor::concat(&[&txt, &img], 0);
        for (i, block) in self.single_blocks.iter().enumerate() {
            x = block.forward(&x, &vec, condition.rope);
            observe(Site::Single(i), &x)?;
        }
        let last = x.slice(0, txt_tokens, img_tokens);
        if let (Some((before, after_first)), Some(shortcut)) = (ends, shortcut) {
            drop(x);
            shortcut.computed(&before, &after_first, &last);
        }
        Ok(self.final_layer.forward(&last, &vec))
    }

    fn sinusoid(&self, on: &Tensor, argument: f32) -> Tensor {
        let dim = self.config.time_dim();
        Tensor::from_vec(on.backend(), [1, dim], sinusoid(argument, dim))
    }
}
