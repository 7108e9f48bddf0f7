//! Pictures beside the prompt: Redux's variation of one, and up to three whose style is followed.
//!
//! SigLIP sees a picture at 384×384 pixels, whatever its shape; Redux makes 729 tokens of it, which stand behind T5's. A weight
//! below 1 makes each of them count for less in attention (ln w is added to its scores as a key): with 0 nothing would see
//! them, so they are left out. Sources: BFL `sampling.py` (`prepare_redux`), diffusers `pipeline_flux_prior_redux.py`, ComfyUI
//! `StyleModelApply` (`attn_bias`).

use std::{ops::Range, sync::Arc};

use tensor::{Backend, Precision, Tensor};

use crate::{
    error::Result,
    memory::Extent,
    model::StyleFiles,
    pixels::Rgb8,
    resize::{Filter, resize},
    vision::{Redux, Siglip, SiglipConfig},
    watch::{self, Watch},
    weights::Weights,
};

/// Most pictures whose style is followed.
pub const MAX_STYLES: usize = 3;

/// How much a style counts where nothing is said.
pub const USUAL_WEIGHT: f32 = 0.7;

/// A picture whose style is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Style {
    /// The picture, of any size.
    pub picture: Rgb8,
    /// How much it counts: 0 as if it were not there, 1 in full.
    pub weight: f32,
}

/// The vision tower and the projector.
pub(crate) struct StyleEncoder {
    side: u32,
    siglip: Siglip,
    redux: Redux,
    extent: Extent,
}

impl StyleEncoder {
    /// `txt_in_features` is the width of T5's states.
    pub(crate) fn load(
        files: &StyleFiles,
        txt_in_features: usize,
        backend: &Arc<dyn Backend>,
        precision: Precision,
    ) -> Result<Self> {
        let weights = [&files.vision, &files.projector].map(|part| part.weights(backend, precision));
        Self::of(files.vision.siglip_config()?, txt_in_features, &weights)
    }

    /// From weights of the tower and the projector.
    pub(crate) fn of(config: SiglipConfig, txt_in_features: usize, [vision, projector]: &[Weights; 2]) -> Result<Self> {
        let (side, width) = (config.image_size as u32, config.hidden_size);
        let siglip = Siglip::load(config, vision)?;
        let redux = Redux::load(width, txt_in_features, projector)?;
        let mut extent = vision.extent();
        extent += projector.extent();
        Ok(Self { side, siglip, redux, extent })
    }

    /// Where its weights lie.
    pub(crate) fn extent(&self) -> &Extent {
        &self.extent
    }

    /// A picture's tokens `[tokens, txt_in_features]`. `observe` runs between layers, and its error (cancellation) ends the work.
    pub(crate) fn tokens(
        &self,
        backend: &Arc<dyn Backend>,
        picture: &Rgb8,
        observe: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let small = resize(picture, self.side, self.side, Filter::Bicubic);
        // The processor's two steps: to 0 … 1, then to −1 … 1.
        let values = small.as_ref().iter().map(|&byte| (f32::from(byte) / 255.0 - 0.5) / 0.5).collect();
        let side = self.side as usize;
        let states = self.siglip.forward(&Tensor::from_vec(backend, [side, side, 3], values), observe)?;
        Ok(self.redux.forward(&states))
    }
}

/// T5's states with the tokens of pictures behind them, and how much those count.
pub(crate) struct Styled {
    /// `[tokens, width]`.
    pub(crate) txt: Tensor,
    /// Tokens of each picture, and its weight.
    pub(crate) weights: Vec<(Range<usize>, f32)>,
}

/// Sees pictures that count, each with its weight; gives all memory of the vision tower back.
pub(crate) fn encode(
    pictures: &[(&Rgb8, f32)],
    txt: &Tensor,
    load: impl FnOnce() -> Result<StyleEncoder>,
    watch: &dyn Watch,
) -> Result<Option<Styled>> {
    if pictures.is_empty() {
        return Ok(None);
    }
    let encoder = load()?;
    let mut parts = vec![txt.clone()];
    let mut weights = Vec::new();
    let mut end = txt.shape()[0];
    for &(picture, weight) in pictures {
        let tokens = encoder.tokens(txt.backend(), picture, &mut || watch::check(watch))?;
        let start = end;
        end += tokens.shape()[0];
        weights.push((start..end, weight));
        parts.push(tokens);
    }
    encoder.extent.release();
    let txt = Tensor::concat(&parts.iter().collect::<Vec<_>>(), 0);
    drop((encoder, parts));
    txt.backend().release_idle();
    Ok(Some(Styled { txt, weights }))
}
