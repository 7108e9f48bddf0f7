//! What a graph says of pictures: backwards from latents, conditionings and masks to the nodes that load files.

use super::{At, Sampling, Walk, named};
use crate::{
    conditioning::Margins,
    error::Result,
    recipe::{
        Recipe,
        graph::wrong,
        pictures::{Change, Channel, MaskAsked, PictureAsked, StartAsked},
    },
};

/// A picture before it is known what it is for.
struct Source<'a> {
    picture: PictureAsked,
    margins: Margins,
    /// The node that adds the margins: its mask is theirs.
    padded: Option<&'a str>,
    edges: bool,
}

impl<'a> Walk<'a> {
    /// What fills `input`, back to the file.
    fn source(&self, at: At<'a>, input: &str, recipe: &mut Recipe) -> Result<Source<'a>> {
        let mut source =
            Source { picture: PictureAsked::default(), margins: Margins::default(), padded: None, edges: false };
        let mut here = self.node(at, input)?;
        loop {
            let name = || named(here.id, here.node);
            // Margins stand around what everything before them made.
            let resized = source.padded.is_none() && !source.edges;
            match here.node.class.as_str() {
                "LoadImage" => {
                    source.picture.file = self.text(here, "image")?;
                    source.picture.changes.reverse();
                    return Ok(source);
                }
                "ImageScale" => {
                    let centre = self.text(here, "crop")? == "center";
                    let (width, height) = (self.small(here, "width")?, self.small(here, "height")?);
                    source.picture.changes.push(Change::Size { width, height, centre });
                    self.filter(here, recipe)?;
                }
                "ImageScaleBy" => {
                    source.picture.changes.push(Change::Times(self.number(here, "scale_by")?));
                    self.filter(here, recipe)?;
                }
                "ImageScaleToTotalPixels" => {
                    let steps = self.value(here, "resolution_steps").ok();
                    if let Some(value) = steps.filter(|value| value.as_f64() != Some(1.0)) {
                        return Self::bad(here, "resolution_steps", value, "1");
                    }
                    source.picture.changes.push(Change::Megapixels(self.number(here, "megapixels")?));
                    self.filter(here, recipe)?;
                }
                "FluxKontextImageScale" => source.picture.changes.push(Change::Preferred),
                "ImagePadForOutpaint" if source.padded.is_none() && source.picture.changes.is_empty() => {
                    let [left, top, right, bottom] =
                        ["left", "top", "right", "bottom"].map(|side| self.small(here, side));
                    source.margins = Margins { left: left?, top: top?, right: right?, bottom: bottom? };
                    source.padded = Some(here.id);
                    if self.whole(here, "feathering")? > 0 {
                        recipe
                            .notes
                            .push("margins are painted anew from the picture's edge on, without feathering".into());
                    }
                }
                "Canny" if resized && source.picture.changes.is_empty() => {
                    source.edges = true;
                    recipe.notes.push("edges are found with darkroom's own thresholds, not the node's".into());
                }
                _ => return Err(wrong(format!("takes a picture from {}, where none can be followed", name()))),
            }
            here = self.node(here, "image")?;
        }
    }

    /// A picture for which neither margins nor edges have a meaning.
    fn plain(&self, at: At<'a>, input: &str, recipe: &mut Recipe) -> Result<PictureAsked> {
        let source = self.source(at, input, recipe)?;
        if source.padded.is_some() || source.edges {
            let what = if source.edges { "edges" } else { "a padded picture" };
            return Err(wrong(format!(
                "gives {what} to '{input}' of {}, which is not possible here",
                named(at.id, at.node)
            )));
        }
        Ok(source.picture)
    }

    fn filter(&self, at: At<'a>, recipe: &mut Recipe) -> Result<()> {
        let method = self.text(at, "upscale_method")?;
        if method != "lanczos" {
            recipe.notes.push(format!("{} resizes by Lanczos here, not by '{method}'", named(at.id, at.node)));
        }
        Ok(())
    }

    /// The latents that sampling begins with; `false` if they are of no picture.
    pub(super) fn started(&self, sampling: &Sampling<'a>, recipe: &mut Recipe) -> Result<bool> {
        let (at, strength) = (sampling.latent, sampling.denoise);
        match at.node.class.as_str() {
            "VAEEncode" => {
                let picture = self.plain(at, "pixels", recipe)?;
                recipe.pictures.start = Some(StartAsked { picture, mask: None, margins: Margins::default(), strength });
            }
            "SetLatentNoiseMask" => {
                let encoded = self.node(at, "samples")?;
                if encoded.node.class != "VAEEncode" {
                    let from = named(encoded.id, encoded.node);
                    return Err(wrong(format!("masks the latents of {from}; those of 'VAEEncode' were expected")));
                }
                let source = self.source(encoded, "pixels", recipe)?;
                recipe.pictures.start = Some(self.masked(at, source, 0, strength, recipe)?);
            }
            "VAEEncodeForInpaint" => {
                if strength < 1.0 {
                    let problem = format!("begins with grey under the mask at a denoise of {strength}");
                    let hint = "1 is possible; hint: 'SetLatentNoiseMask' behind 'VAEEncode'";
                    return Err(wrong(format!("{problem} ({}); {hint}", named(at.id, at.node))));
                }
                let source = self.source(at, "pixels", recipe)?;
                let grown = self.small(at, "grow_mask_by")?;
                recipe.pictures.start = Some(self.masked(at, source, grown, strength, recipe)?);
            }
            "InpaintModelConditioning" => {
                let source = self.source(at, "pixels", recipe)?;
                if self.value(at, "noise_mask").is_ok_and(|value| value.as_bool() != Some(false)) {
                    let problem =
                        "a Fill model alone keeps what the mask leaves: 'noise_mask' is not held after every step";
                    recipe.notes.push(problem.into());
                }
                recipe.pictures.start = Some(self.masked(at, source, 0, strength, recipe)?);
            }
            // Empty latents of the picture's size.
            "InstructPixToPixConditioning" if strength >= 1.0 => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// With the mask that fills `mask` of `at`.
    fn masked(
        &self,
        at: At<'a>,
        source: Source<'a>,
        grown: u32,
        strength: f64,
        recipe: &mut Recipe,
    ) -> Result<StartAsked> {
        let Source { picture, margins, padded, edges } = source;
        if edges {
            return Err(wrong(format!("begins with edges in {}, which is not possible here", named(at.id, at.node))));
        }
        let (of, _) = self.linked(at, "mask")?;
        let own = padded == Some(of.id);
        if padded.is_some() && !own {
            let problem = format!("masks a padded picture in {} by {}", named(at.id, at.node), named(of.id, of.node));
            return Err(wrong(format!("{problem}; the mask of the node that pads it was expected")));
        }
        let mask = if own { None } else { Some(self.mask(at, grown, recipe)?) };
        Ok(StartAsked { picture, mask, margins, strength })
    }

    fn mask(&self, at: At<'a>, grown: u32, recipe: &mut Recipe) -> Result<MaskAsked> {
        let channel = |this: &Self, at: At<'a>| {
            let value = this.text(at, "channel")?;
            match value.as_str() {
                "alpha" => Ok(Channel::Alpha),
                "red" => Ok(Channel::Red),
                "green" => Ok(Channel::Green),
                "blue" => Ok(Channel::Blue),
                _ => Self::bad(at, "channel", &value.clone().into(), "alpha, red, green or blue"),
            }
        };
        let mut inverted = false;
        let (mut here, mut slot) = self.linked(at, "mask")?;
        loop {
            let of = |picture, channel| Ok(MaskAsked { picture, channel, inverted, grown });
            match here.node.class.as_str() {
                "LoadImage" if slot == 1 => {
                    let picture = PictureAsked { file: self.text(here, "image")?, changes: Vec::new() };
                    return of(picture, Channel::Alpha);
                }
                "LoadImageMask" => {
                    let picture = PictureAsked { file: self.text(here, "image")?, changes: Vec::new() };
                    return of(picture, channel(self, here)?);
                }
                "ImageToMask" => {
                    let picture = self.plain(here, "image", recipe)?;
                    return of(picture, channel(self, here)?);
                }
                "InvertMask" => inverted = !inverted,
                _ => {
                    let from = named(here.id, here.node);
                    return Err(wrong(format!("takes a mask from {from}, where none can be followed")));
                }
            }
            (here, slot) = self.linked(here, "mask")?;
        }
    }

    /// What a node on a conditioning's way says of pictures; the input to go on with, if it is one of those. What the negative
    /// conditioning says again is passed by.
    pub(super) fn conditioned(&self, at: At<'a>, negative: bool, recipe: &mut Recipe) -> Result<Option<&'static str>> {
        let pair = if negative { "negative" } else { "positive" };
        Ok(Some(match at.node.class.as_str() {
            "InpaintModelConditioning" => pair,
            "InstructPixToPixConditioning" => {
                let source = self.source(at, "pixels", recipe)?;
                if source.padded.is_some() {
                    return Err(wrong(format!("follows a padded picture in {}", named(at.id, at.node))));
                }
                recipe.pictures.control = Some((source.picture, source.edges));
                pair
            }
            "ReferenceLatent" => {
                let encoded = self.node(at, "latent")?;
                if encoded.node.class != "VAEEncode" {
                    let from = named(encoded.id, encoded.node);
                    return Err(wrong(format!("refers to the latents of {from}; those of 'VAEEncode' were expected")));
                }
                if !negative {
                    let reference = self.plain(encoded, "pixels", recipe)?;
                    recipe.pictures.references.insert(0, reference); // the last one is met first
                }
                "conditioning"
            }
            "FluxKontextMultiReferenceLatentMethod" => {
                let method = self.text(at, "reference_latents_method")?;
                if method != "offset" {
                    return Self::bad(at, "reference_latents_method", &method.into(), "offset");
                }
                "conditioning"
            }
            "StyleModelApply" => {
                if !negative {
                    self.style(at, recipe)?;
                }
                "conditioning"
            }
            _ => return Ok(None),
        }))
    }

    fn style(&self, at: At<'a>, recipe: &mut Recipe) -> Result<()> {
        // Older workflows have neither.
        let strength = if at.node.inputs.contains_key("strength") { self.number(at, "strength")? } else { 1.0 };
        let biased = self.text(at, "strength_type").is_ok_and(|kind| kind == "attn_bias");
        if !(0.0..=1.0).contains(&strength) || (strength != 1.0 && !biased) {
            let expected = if biased { "0 to 1" } else { "1, or 'attn_bias' as 'strength_type'," };
            return Self::bad(at, "strength", &strength.into(), expected);
        }
        let loader = self.node(at, "style_model")?;
        recipe.files.style = Some(self.text(loader, "style_model_name")?);
        let seen = self.node(at, "clip_vision_output")?;
        if seen.node.class != "CLIPVisionEncode" {
            return Err(wrong(format!("takes a style from {}, which sees no picture", named(seen.id, seen.node))));
        }
        recipe.files.vision = Some(self.text(self.node(seen, "clip_vision")?, "clip_name")?);
        let mut picture = self.plain(seen, "image", recipe)?;
        // What was there before crops were asked for is cut.
        if self.text(seen, "crop").map_or(true, |crop| crop == "center") {
            picture.changes.push(Change::Square);
        }
        recipe.pictures.styles.insert(0, (picture, strength as f32));
        Ok(())
    }
}
