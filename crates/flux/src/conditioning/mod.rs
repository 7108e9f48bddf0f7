//! Pictures that a picture is made from: a start (image-to-image, inpainting, outpainting), a control picture (edges or depth),
//! references (Kontext).
//!
//! What a model can take is told by how many channels its `img_in` has ([`Kind`]); anything else is refused by name. Rules and
//! the order of random draws are those of diffusers' `FluxImg2ImgPipeline`, `FluxInpaintPipeline`, `FluxFillPipeline`,
//! `FluxControlPipeline` and `FluxKontextPipeline`.

pub mod canny;
pub(crate) mod canvas;
pub(crate) mod encode;

use std::fmt;
use std::str::FromStr;

use crate::{
    error::{Error, Result},
    image_file::{FromPictures, MAX_INPUT_PIXELS},
    model::{Family, Kind},
    pixels::Rgb8,
    schedule::MAX_STEPS,
    sizes::MAX_SIDE,
};
use canvas::Sizes;
pub use canvas::{preferred as kontext_size, size_like};

/// Most reference pictures of one request.
pub const MAX_REFERENCES: usize = 8;

/// The pictures of a request; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pictures {
    /// What to begin from.
    pub start: Option<Start>,
    /// What to follow: for Canny and Depth models.
    pub control: Option<Control>,
    /// What to look at, in this order: for Kontext models.
    pub references: Vec<Rgb8>,
    /// Take references at their own size. Otherwise each is resized to that of Kontext's preferred sizes whose shape is
    /// nearest.
    pub references_as_they_are: bool,
}

/// A picture to begin from: image-to-image, with a mask inpainting, with margins outpainting.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The picture; it is resized to the request's size, whatever its shape.
    pub picture: Rgb8,
    /// How far to go from it: 0 gives it back through the autoencoder, 1 keeps nothing of it.
    pub strength: f64,
    /// Which steps that is.
    pub mapping: StrengthMapping,
    /// White is painted anew, black is kept; resized as the picture, grey counts from a half on.
    pub mask: Option<Rgb8>,
    /// Room around the picture that is painted anew.
    pub margins: Margins,
}

impl Start {
    /// diffusers' strength of image-to-image.
    pub const STRENGTH: f64 = 0.6;

    /// From this picture with the usual strength, all of it.
    pub fn new(picture: Rgb8) -> Self {
        Self {
            picture,
            strength: Self::STRENGTH,
            mapping: StrengthMapping::default(),
            mask: None,
            margins: Margins::default(),
        }
    }

    /// Whether some of the picture is to be kept as it is.
    pub fn keeps_some(&self) -> bool {
        self.mask.is_some() || self.margins != Margins::default()
    }

    /// Width and height of the picture with its margins.
    pub fn canvas_size(&self) -> (u32, u32) {
        let Margins { left, top, right, bottom } = self.margins;
        let add = |a: u32, b: u32, c: u32| a.saturating_add(b).saturating_add(c);
        (add(left, self.picture.width(), right), add(top, self.picture.height(), bottom))
    }

    /// How many of `steps` are made.
    pub fn steps(&self, steps: u32) -> u32 {
        match self.mapping {
            StrengthMapping::Diffusers => steps - skipped(steps, self.strength),
            StrengthMapping::Comfy if self.strength <= 0.0 => 0,
            StrengthMapping::Comfy => steps,
        }
    }

    /// The noise levels of the steps that are made. `schedule` gives those of a number of steps.
    pub(crate) fn sigmas(&self, steps: u32, schedule: impl Fn(usize) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        let all = match self.mapping {
            StrengthMapping::Comfy if self.strength > 0.0 && self.strength <= WHOLE => {
                schedule((f64::from(steps) / self.strength) as usize)?
            }
            _ => schedule(steps as usize)?,
        };
        Ok(all[all.len() - 1 - self.steps(steps) as usize..].to_vec())
    }

    fn check(&self, kind: Kind) -> Result<()> {
        if !(0.0..=1.0).contains(&self.strength) {
            return Err(Error::asked("strength", format!("is {}; 0 to 1 are possible", self.strength)));
        }
        if self.mapping == StrengthMapping::Comfy && self.strength > 0.0 && self.strength < LEAST_COMFY {
            let problem =
                format!("is {}; with the comfy mapping 0, or {LEAST_COMFY} to 1, are possible", self.strength);
            return Err(Error::asked("strength", problem));
        }
        check_size("image", &self.picture)?;
        let (width, height) = self.canvas_size();
        if self.margins != Margins::default() && width.max(height) > 4 * MAX_SIDE {
            let problem = format!("makes a canvas of {width}×{height} pixels; {} to a side are possible", 4 * MAX_SIDE);
            return Err(Error::asked("outpaint", problem));
        }
        if let Some(mask) = &self.mask {
            check_size("mask", mask)?;
            let shape = |p: &Rgb8| f64::from(p.width()) / f64::from(p.height());
            if (shape(mask) / shape(&self.picture) - 1.0).abs() > 0.05 {
                let problem = format!(
                    "is {}×{} pixels, the picture {}×{}: they do not lie on each other; hint: a mask has the picture's shape",
                    mask.width(),
                    mask.height(),
                    self.picture.width(),
                    self.picture.height()
                );
                return Err(Error::asked("mask", problem));
            }
            if self.margins == Margins::default() && canvas::luma(mask).all(|v| v < 128) {
                let problem = "is black everywhere, so that nothing would be painted; hint: white is painted anew";
                return Err(Error::asked("mask", problem));
            }
        }
        if kind == Kind::Fill && !self.keeps_some() {
            let problem = "is missing: a Fill model paints what a mask or margins leave open";
            return Err(Error::asked("mask", problem).hint("--mask FILE, or --outpaint"));
        }
        if self.keeps_some() && self.strength <= 0.0 {
            return Err(Error::asked("strength", "is 0, so that nothing would be painted; hint: up to 1"));
        }
        Ok(())
    }
}

/// From this strength on ComfyUI's node makes all steps.
const WHOLE: f64 = 0.9999;

/// Least strength of the comfy mapping: it makes a schedule of `steps / strength` steps.
const LEAST_COMFY: f64 = 0.01;

/// The steps that diffusers leaves out: in f64, cut off.
fn skipped(steps: u32, strength: f64) -> u32 {
    let steps = f64::from(steps.min(MAX_STEPS));
    (steps - (steps * strength).min(steps)).max(0.0) as u32
}

/// Pixels around a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Margins {
    pub left: u32,
    pub top: u32,
    pub right: u32,
    pub bottom: u32,
}

/// Which steps a strength is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StrengthMapping {
    /// As diffusers: the first `1 − strength` of the steps are left out. The seed's generator first draws the autoencoder's
    /// sample of the picture, then the noise. `diffusers`.
    #[default]
    Diffusers,
    /// As ComfyUI's `denoise`: all steps are made, on the last part of a longer schedule. The picture is the mean of the
    /// autoencoder's distribution, and the noise is that of text-to-image. `comfy`.
    Comfy,
}

impl fmt::Display for StrengthMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Diffusers => "diffusers",
            Self::Comfy => "comfy",
        })
    }
}

impl FromStr for StrengthMapping {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `strength_mapping` if the name is none of those above.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "diffusers" => Ok(Self::Diffusers),
            "comfy" => Ok(Self::Comfy),
            _ => Err(Error::asked("strength_mapping", format!("expected diffusers or comfy, got '{name}'"))),
        }
    }
}

/// A picture to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Edges or depth as the model was trained with; resized to the request's size.
    Ready(Rgb8),
    /// A picture whose edges are to be followed: resized, then [`canny::canny`] with the usual thresholds.
    Canny(Rgb8),
}

impl Control {
    /// The picture as given.
    pub fn picture(&self) -> &Rgb8 {
        match self {
            Self::Ready(picture) | Self::Canny(picture) => picture,
        }
    }
}

/// What of a request's pictures decides about memory and work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Bytes of the pictures, which lie in memory all the time.
    pub bytes: u64,
    /// Whether a picture of the request's size is encoded.
    pub encodes: bool,
    /// The largest reference, pixels: width, height.
    pub largest_reference: Option<[u32; 2]>,
    /// Tokens of all references.
    pub reference_tokens: usize,
}

impl Given {
    /// No pictures.
    pub const NONE: Self = Self { bytes: 0, encodes: false, largest_reference: None, reference_tokens: 0 };
}

impl Pictures {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.start.is_none() && self.control.is_none() && self.references.is_empty()
    }

    /// All of them, with the fields they are for.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Rgb8)> {
        let start = self.start.as_ref().map(|start| ("image", &start.picture));
        let mask = self.start.as_ref().and_then(|start| start.mask.as_ref()).map(|mask| ("mask", mask));
        let control = self.control.as_ref().map(|control| ("control", control.picture()));
        let references = self.references.iter().map(|reference| ("reference", reference));
        start.into_iter().chain(mask).chain(control).chain(references)
    }

    /// The size of a picture made from them: that of the start with its margins, the control picture, or the first reference, as
    /// [`size_like`] follows it; for a reference that is resized, its own new size. `usual` is the model's.
    pub fn size(&self, usual: (u32, u32)) -> Option<(u32, u32)> {
        let own = |picture: &Rgb8| (picture.width(), picture.height());
        if let Some(start) = &self.start {
            return Some(size_like(start.canvas_size(), usual));
        }
        if let Some(control) = &self.control {
            return Some(size_like(own(control.picture()), usual));
        }
        let first = own(self.references.first()?);
        Some(if self.references_as_they_are { size_like(first, usual) } else { canvas::preferred(first) })
    }

    /// What of them decides about memory and work.
    pub(crate) fn given(&self, sizes: Sizes) -> Given {
        let multiple = 2 * sizes.factor; // pixels of a token
        if self.is_empty() {
            return Given::NONE;
        }
        let bytes = |(width, height): (u32, u32)| 3 * u64::from(width) * u64::from(height);
        let size = |reference: &Rgb8| canvas::reference_size(reference, self.references_as_they_are, multiple);
        let references = self.references.iter().map(size);
        let tokens =
            references.clone().map(|(width, height)| (width / multiple) as usize * (height / multiple) as usize);
        let own = self.all().map(|(_, picture)| picture.as_ref().len() as u64).sum::<u64>();
        // Beside those given: the canvas before and after it is resized, a mask the same.
        let start =
            self.start.iter().map(|start| 2 * bytes(start.canvas_size()) + 4 * bytes(sizes.rendered)).sum::<u64>();
        Given {
            bytes: own + start + 2 * bytes(sizes.rendered),
            encodes: self.start.is_some() || self.control.is_some(),
            largest_reference: references.clone().max_by_key(|size| bytes(*size)).map(|(w, h)| [w, h]),
            reference_tokens: tokens.sum(),
        }
    }

    /// What a picture's metadata says of them.
    pub(crate) fn told(&self) -> Option<FromPictures> {
        let start = self.start.as_ref();
        let margins = start.map(|start| start.margins).filter(|margins| *margins != Margins::default());
        (!self.is_empty()).then(|| FromPictures {
            strength: start.map(|start| start.strength),
            strength_mapping: start.map(|start| start.mapping.to_string()),
            mask: start.is_some_and(|start| start.mask.is_some()),
            outpaint: margins.map(|Margins { left, top, right, bottom }| [left, top, right, bottom]),
            control: self.control.as_ref().map(|control| {
                String::from(match control {
                    Control::Ready(_) => "picture",
                    Control::Canny(_) => "canny",
                })
            }),
            references: self.references.len() as u32,
        })
    }

    /// Refuses what the model cannot take, or misses what it needs. A reference is at least `least_side` pixels high and wide.
    ///
    /// # Errors
    /// [`Error::Asked`] naming the field.
    pub fn check(&self, kind: Kind, family: Family, least_side: u32) -> Result<()> {
        if let Some(start) = &self.start {
            start.check(kind)?;
        } else if kind == Kind::Fill {
            let hint = "--image FILE with --mask FILE or --outpaint LEFT,TOP,RIGHT,BOTTOM";
            return Err(Error::asked("image", "is missing: a Fill model paints a part of a picture").hint(hint));
        }
        match (&self.control, kind) {
            (None, Kind::Control) => {
                let hint = "--control FILE with its edges or depth, or --canny FILE to have the edges found";
                return Err(Error::asked("control", "is missing: this model follows a control picture").hint(hint));
            }
            (Some(_), Kind::Base | Kind::Fill | Kind::Kontext) => {
                let problem = "was given, but this model follows none; hint: FLUX.1-Canny-dev and FLUX.1-Depth-dev do";
                return Err(Error::asked("control", problem));
            }
            (Some(Control::Canny(_)), Kind::Control) if family == Family::Depth => {
                let problem = "are edges (canny), but this model follows depth";
                return Err(Error::asked("control", problem).hint("--control FILE with a depth map"));
            }
            _ => {}
        }
        if let Some(control) = &self.control {
            check_size("control", control.picture())?;
        }
        if !self.references.is_empty() && kind != Kind::Kontext {
            let problem = "was given, but this model looks at none; hint: FLUX.1-Kontext-dev does (a file's name has to say \
                           kontext: its weights are shaped like dev's)";
            return Err(Error::asked("reference", problem));
        }
        if self.references.len() > MAX_REFERENCES {
            let problem = format!("was given {} times; at most {MAX_REFERENCES} are possible", self.references.len());
            return Err(Error::asked("reference", problem));
        }
        for reference in &self.references {
            check_size("reference", reference)?;
            let (width, height) = canvas::reference_size(reference, self.references_as_they_are, least_side);
            if width.min(height) == 0 || width.max(height) > MAX_SIDE {
                let problem = format!(
                    "is {}×{} pixels; {least_side} to {MAX_SIDE} to a side are possible",
                    reference.width(),
                    reference.height()
                );
                return Err(Error::asked("reference", problem));
            }
        }
        Ok(())
    }
}

fn check_size(field: &'static str, picture: &Rgb8) -> Result<()> {
    let pixels = u64::from(picture.width()) * u64::from(picture.height());
    if pixels > MAX_INPUT_PIXELS {
        let size = format!("{}×{}", picture.width(), picture.height());
        return Err(Error::asked(field, format!("is {size} pixels; at most {MAX_INPUT_PIXELS} are possible")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(strength: f64, mapping: StrengthMapping) -> Start {
        Start { strength, mapping, ..Start::new(Rgb8::new(2, 1, vec![0; 6])) }
    }

    fn even(steps: usize) -> Vec<f32> {
        (0..=steps).map(|i| 1.0 - i as f32 / steps as f32).collect()
    }

    /// Python: `int(max(n - min(n * s, n), 0))`.
    #[test]
    fn steps_as_diffusers_counts_them() {
        let made = |n, s| start(s, StrengthMapping::Diffusers).steps(n);
        assert_eq!([made(28, 0.6), made(10, 0.9), made(40, 0.95), made(4, 0.2)], [17, 9, 38, 1]);
        assert_eq!([made(28, 0.0), made(28, 1.0), made(28, 0.3), made(3, 0.01)], [0, 28, 9, 1]);
        let sigmas = start(0.6, StrengthMapping::Diffusers).sigmas(5, |n| Ok(even(n))).unwrap();
        assert_eq!(sigmas.len(), 4);
        assert!((sigmas[0] - 0.6).abs() < 1e-6);
        assert_eq!(start(0.0, StrengthMapping::Diffusers).sigmas(5, |n| Ok(even(n))).unwrap(), [0.0]);
    }

    #[test]
    fn comfy_makes_all_steps_of_a_longer_schedule() {
        let sigmas = start(0.6, StrengthMapping::Comfy).sigmas(5, |n| Ok(even(n))).unwrap();
        // 8 steps, of which the last 5.
        assert_eq!(sigmas, even(8)[3..]);
        assert_eq!(start(1.0, StrengthMapping::Comfy).sigmas(5, |n| Ok(even(n))).unwrap(), even(5));
        assert_eq!(start(0.0, StrengthMapping::Comfy).sigmas(5, |n| Ok(even(n))).unwrap(), [0.0]);
        for mapping in [StrengthMapping::Diffusers, StrengthMapping::Comfy] {
            assert_eq!(mapping.to_string().parse::<StrengthMapping>().unwrap(), mapping);
        }
    }

    #[test]
    fn what_does_not_fit_the_model_is_named() {
        let picture = || Rgb8::new(32, 32, vec![9; 3 * 32 * 32]);
        let image = || Start::new(picture());
        let white = Rgb8::new(32, 32, vec![255; 3 * 32 * 32]);
        let with = |start: Start| Pictures { start: Some(start), ..Pictures::default() };
        let control = |control| Pictures { control: Some(control), ..Pictures::default() };
        let none = Pictures::default;
        let references = |n| Pictures { references: vec![picture(); n], ..Pictures::default() };
        let wrong: [(&str, &str, Kind, Family, Pictures); 16] = [
            ("strength", "0 to 1", Kind::Base, Family::Krea, with(Start { strength: 1.5, ..image() })),
            ("strength", "0 to 1", Kind::Base, Family::Krea, with(Start { strength: f64::NAN, ..image() })),
            ("strength", "nothing would", Kind::Base, Family::Krea, {
                with(Start { strength: 0.0, mask: Some(white.clone()), ..image() })
            }),
            ("strength", "comfy", Kind::Base, Family::Krea, {
                with(Start { strength: 1e-9, mapping: StrengthMapping::Comfy, ..image() })
            }),
            ("mask", "black everywhere", Kind::Base, Family::Krea, with(Start { mask: Some(picture()), ..image() })),
            ("mask", "shape", Kind::Base, Family::Krea, {
                with(Start { mask: Some(Rgb8::new(2, 1, vec![255; 6])), ..image() })
            }),
            ("outpaint", "canvas", Kind::Base, Family::Krea, {
                with(Start { margins: Margins { left: u32::MAX, ..Margins::default() }, ..image() })
            }),
            ("image", "--mask", Kind::Fill, Family::Fill, none()),
            ("mask", "--outpaint", Kind::Fill, Family::Fill, with(image())),
            ("control", "--canny", Kind::Control, Family::Canny, none()),
            ("control", "follows none", Kind::Base, Family::Krea, control(Control::Ready(picture()))),
            ("control", "follows none", Kind::Fill, Family::Fill, {
                Pictures { control: Some(Control::Canny(picture())), ..with(Start { mask: Some(white), ..image() }) }
            }),
            ("control", "depth", Kind::Control, Family::Depth, control(Control::Canny(picture()))),
            ("reference", "kontext", Kind::Base, Family::Dev, references(1)),
            ("reference", "at most", Kind::Kontext, Family::Kontext, references(9)),
            ("reference", "to a side", Kind::Kontext, Family::Kontext, {
                let small = Rgb8::new(15, 40, vec![0; 15 * 40 * 3]);
                Pictures { references: vec![small], references_as_they_are: true, ..none() }
            }),
        ];
        for (field, word, kind, family, pictures) in wrong {
            let error = pictures.check(kind, family, 16).expect_err(word);
            assert!(matches!(&error, Error::Asked { problem, .. } if !problem.contains("--")), "{error:?}");
            let error = error.to_string();
            assert!(error.starts_with(field) && error.contains(word), "{error} should be about {field}, {word}");
        }
        none().check(Kind::Kontext, Family::Kontext, 16).unwrap();
        references(2).check(Kind::Kontext, Family::Kontext, 16).unwrap();
        with(image()).check(Kind::Base, Family::Schnell, 16).unwrap();
        control(Control::Canny(picture())).check(Kind::Control, Family::Other, 16).unwrap();
    }
}
