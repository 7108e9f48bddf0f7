//! Pictures that a picture is made from: the flags, and what they ask for.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use flux::{
    Request,
    conditioning::{Control, Margins, Pictures, Start, StrengthMapping},
    image_file,
    model::Family,
    recipe::{Lost, PicturesAsked, Recipe},
};

use crate::Usage;

/// Pictures to begin from, to follow and to look at.
#[derive(Args, Clone)]
#[command(next_help_heading = "Pictures")]
pub(crate) struct ImageArgs {
    /// Begin from a picture: PNG, JPEG, WebP or GIF, turned by its EXIF, over white where transparent. The new one gets its size
    /// (at most twice the model's usual pixels) unless a size is asked for
    #[arg(short, long, value_name = "FILE", visible_alias = "init-img")]
    image: Option<PathBuf>,
    /// How far to go from it: 0 gives it back through the autoencoder, 1 keeps nothing [default: 0.6; 1 with --outpaint and for
    /// Fill models]
    #[arg(long, value_name = "0..1")]
    strength: Option<f64>,
    /// Which steps that is: diffusers leaves out the first ones, comfy makes all on the end of a longer schedule
    #[arg(long, value_name = "KIND")]
    strength_mapping: Option<StrengthMapping>,
    /// Paint anew where this picture is white, or transparent if it has transparency; the rest of --image is kept
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Paint around --image: pixels to add on the left, above, on the right and below
    #[arg(long, value_name = "L,T,R,B", value_parser = parse_margins)]
    outpaint: Option<Margins>,
    /// For Canny and Depth models: edges or depth to follow, ready as the model knows them
    #[arg(long, value_name = "FILE", visible_alias = "control-image", conflicts_with = "canny")]
    control: Option<PathBuf>,
    /// For Canny models: a picture whose edges to follow; they are found here
    #[arg(long, value_name = "FILE")]
    canny: Option<PathBuf>,
    /// For Kontext models: a picture to look at; may be given several times
    #[arg(long, value_name = "FILE", visible_alias = "ref-image")]
    reference: Vec<PathBuf>,
    /// Size of references: preferred (the nearest shape of those Kontext was trained with) or own
    #[arg(long, value_name = "KIND", default_value = "preferred", value_parser = ["preferred", "own"])]
    reference_size: String,
}

impl ImageArgs {
    /// The picture to begin from, if one is given.
    pub(crate) fn image(&self) -> Option<&Path> {
        self.image.as_deref()
    }

    /// Refuses flags that need another one, before a model is loaded. A recipe may have the picture that they speak of.
    pub(crate) fn check(&self, recipe: Option<&Recipe>) -> Result<()> {
        let lonely = [
            ("--strength", self.strength.is_some()),
            ("--strength-mapping", self.strength_mapping.is_some()),
            ("--mask", self.mask.is_some()),
            ("--outpaint", self.outpaint.is_some()),
        ];
        if self.image.is_none()
            && recipe.is_none_or(|recipe| recipe.pictures.start.is_none())
            && let Some((flag, _)) = lonely.into_iter().find(|(_, given)| *given)
        {
            return Err(
                Usage(format!("{flag} says what to do with a picture, but there is none; hint: --image FILE")).into()
            );
        }
        Ok(())
    }

    /// Of what a recipe asks for, leaves those that no flag gives. The picture to begin from keeps its place.
    pub(crate) fn put_aside(&self, asked: &mut PicturesAsked) {
        if let Some(start) = asked.start.as_mut().filter(|_| self.mask.is_some()) {
            start.mask = None;
        }
        if self.control.is_some() || self.canny.is_some() {
            asked.control = None;
        }
        if !self.reference.is_empty() {
            asked.references.clear();
        }
    }

    /// The flags that have to give again what is lost.
    pub(crate) fn missing(&self, lost: &Lost) -> Vec<String> {
        let mut flags = Vec::new();
        let mut need = |needed: bool, flag: &str| flags.extend(needed.then(|| flag.to_owned()));
        need(lost.start.is_some() && self.image.is_none(), "--image FILE");
        need(lost.mask && self.mask.is_none(), "--mask FILE");
        let control = self.control.is_some() || self.canny.is_some();
        need(lost.control == Some(false) && !control, "--control FILE");
        need(lost.control == Some(true) && !control, "--canny FILE");
        for _ in self.reference.len()..lost.references as usize {
            need(true, "--reference FILE");
        }
        flags
    }

    /// Reads the pictures, with those of a recipe where no flag gives another. `lost` is what is known of a picture that is made
    /// again.
    fn pictures(&self, family: Family, asked: Pictures, lost: &Lost) -> Result<Pictures> {
        let read = |field, path: &PathBuf| image_file::open(field, path).map(|decoded| decoded.picture);
        let start = match (asked.start, &self.image) {
            (None, None) => None,
            // It has taken the recipe's place.
            (Some(start), _) => Some(start),
            (None, Some(path)) => {
                let margins = self.outpaint.unwrap_or(lost.margins);
                let whole = margins != Margins::default() || family == Family::Fill;
                let usual = (if whole { 1.0 } else { Start::STRENGTH }, StrengthMapping::default());
                let (strength, mapping) = lost.start.unwrap_or(usual);
                Some(Start { strength, mapping, margins, ..Start::new(read("image", path)?) })
            }
        };
        let start = match start {
            None => None,
            Some(start) => Some(Start {
                strength: self.strength.unwrap_or(start.strength),
                mapping: self.strength_mapping.unwrap_or(start.mapping),
                mask: match &self.mask {
                    Some(path) => Some(image_file::open("mask", path)?.into_mask()),
                    None => start.mask,
                },
                margins: self.outpaint.unwrap_or(start.margins),
                ..start
            }),
        };
        let control = match (&self.control, &self.canny) {
            (Some(path), _) => Some(Control::Ready(read("control", path)?)),
            (None, Some(path)) => Some(Control::Canny(read("canny", path)?)),
            (None, None) => asked.control,
        };
        if self.reference.is_empty() {
            return Ok(Pictures { start, control, ..asked });
        }
        let references = self.reference.iter().map(|path| read("reference", path)).collect::<flux::Result<_>>()?;
        Ok(Pictures { start, control, references, references_as_they_are: self.reference_size == "own" })
    }

    /// Puts the pictures into a request that has the model's usual size, and with them theirs. Those of a recipe are there.
    pub(crate) fn apply(&self, family: Family, request: &mut Request, recipe: Option<&Recipe>) -> Result<()> {
        let asked = std::mem::take(&mut request.pictures);
        let (no_recipe, none) = (asked.is_empty(), Lost::default());
        let lost = recipe.map_or(&none, |recipe| &recipe.lost);
        request.pictures = self.pictures(family, asked, lost)?;
        if no_recipe
            && *lost == none
            && let Some((width, height)) = request.pictures.size((request.width, request.height))
        {
            (request.width, request.height) = (width, height);
        }
        Ok(())
    }
}

/// What to know of a request's pictures, if anything.
pub(crate) fn note(request: &Request) -> Option<String> {
    let start = request.pictures.start.as_ref()?;
    let (width, height) = start.canvas_size();
    let shape = |w: u32, h: u32| f64::from(w) / f64::from(h);
    let stretched = (shape(width, height) / shape(request.width, request.height) - 1.0).abs();
    (stretched > 0.03)
        .then(|| format!("the picture of {width}×{height} is stretched to {}×{}", request.width, request.height))
}

fn parse_margins(text: &str) -> Result<Margins, String> {
    let expected = || format!("'{text}' is not four numbers of pixels; expected LEFT,TOP,RIGHT,BOTTOM, as 0,0,256,0");
    let sides =
        text.split(',').map(|side| side.trim().parse().map_err(|_| expected())).collect::<Result<Vec<u32>, _>>()?;
    let [left, top, right, bottom] = sides[..] else { return Err(expected()) };
    if sides.iter().all(|side| *side == 0) {
        return Err("adds nothing: all four are 0".into());
    }
    Ok(Margins { left, top, right, bottom })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins() {
        assert_eq!(parse_margins("1, 2,3,4"), Ok(Margins { left: 1, top: 2, right: 3, bottom: 4 }));
        for wrong in ["", "1,2,3", "1,2,3,4,5", "-1,0,0,0", "a,b,c,d", "0,0,0,0"] {
            assert!(parse_margins(wrong).is_err(), "{wrong}");
        }
    }
}
