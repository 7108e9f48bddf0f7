//! Pictures that a workflow loads: what each is for, what is done with it first, where its file is.
//!
//! Sizes are those of ComfyUI's nodes (`common_upscale`, `nodes_flux.py`, `nodes_post_processing.py`, `vae_encode_crop_pixels`), to
//! the pixel; whatever filter a node names, pixels are resized by Pillow's Lanczos, which is ComfyUI's `lanczos`.

use std::path::{Component, Path, PathBuf};

use super::graph::{shortened, wrong};
use crate::{
    conditioning::{Control, Margins, Pictures, Start, StrengthMapping, kontext_size},
    error::Result,
    image_file::{self, Decoded},
    model::SearchPaths,
    pixels::Rgb8,
    request::Request,
    resize::{Filter, resize},
    sizes::MAX_SIDE,
    styles::Style,
};

/// What a workflow's pictures are for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PicturesAsked {
    /// What to begin from.
    pub start: Option<StartAsked>,
    /// What to follow, and whether its edges are to be found first.
    pub control: Option<(PictureAsked, bool)>,
    /// What to look at, in this order.
    pub references: Vec<PictureAsked>,
    /// What Redux makes tokens of, and how much each counts.
    pub styles: Vec<(PictureAsked, f32)>,
}

/// A picture by ComfyUI's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PictureAsked {
    /// In ComfyUI's folder `input`, unless ` [output]` stands behind it.
    pub file: String,
    /// What is done with it, in this order.
    pub changes: Vec<Change>,
}

/// Another size or shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// This size; a side of 0 follows the other one.
    Size {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Cut to the new shape first, around the middle. Otherwise it is stretched.
        centre: bool,
    },
    /// So many times the sides.
    Times(f64),
    /// So many times 1024² pixels, in its own shape.
    Megapixels(f64),
    /// That of Kontext's preferred sizes whose shape is nearest, cut to it around the middle.
    Preferred,
    /// The square in its middle.
    Square,
}

/// The picture that a workflow begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct StartAsked {
    /// Which.
    pub picture: PictureAsked,
    /// What is painted anew.
    pub mask: Option<MaskAsked>,
    /// Room around it that is painted anew.
    pub margins: Margins,
    /// How far to go from it: `denoise`, 0 to 1.
    pub strength: f64,
}

/// A mask: a channel of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskAsked {
    /// Which.
    pub picture: PictureAsked,
    /// Of its channels.
    pub channel: Channel,
    /// Whether it says what is kept.
    pub inverted: bool,
    /// Side of the square that each of its pixels becomes; 0 and 1 leave it as it is.
    pub grown: u32,
}

/// What of a picture is a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Channel {
    /// Painted anew where it is transparent.
    Alpha,
    Red,
    Green,
    Blue,
}

/// Where the pictures of a workflow may be.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The folder that the workflow's file is in.
    pub beside: Option<&'a Path>,
    /// ComfyUI's folders.
    pub paths: &'a SearchPaths,
    /// Takes the place of the file that the workflow begins with.
    pub image: Option<&'a Path>,
}

impl PicturesAsked {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start.is_none() && self.control.is_none() && self.references.is_empty() && self.styles.is_empty()
    }

    /// Reads them and puts them into a request. Its size becomes that of the first, unless the workflow says one (`sized`).
    ///
    /// # Errors
    /// [`crate::Error::Asked`] about `workflow`, naming a file that is not there with the places looked at and the flag that gives
    /// another; about the picture's field, if it cannot be used.
    pub fn open(&self, places: Places<'_>, sized: bool, request: &mut Request) -> Result<()> {
        let mut pictures = Pictures { references_as_they_are: true, ..Pictures::default() };
        if let Some(start) = &self.start {
            let picture = start.picture.open("image", "--image FILE", places)?.picture;
            let mask = start.mask.as_ref().map(|mask| mask.open(places)).transpose()?;
            pictures.start = Some(Start {
                picture: whole_latents(&picture, start.margins),
                strength: start.strength,
                mapping: StrengthMapping::Comfy,
                mask,
                margins: start.margins,
            });
        }
        if let Some((control, edges)) = &self.control {
            let flag = if *edges { "--canny FILE" } else { "--control FILE" };
            let picture = control.open("control", flag, places)?.picture;
            let picture = whole_latents(&picture, Margins::default());
            pictures.control = Some(if *edges { Control::Canny(picture) } else { Control::Ready(picture) });
        }
        for reference in &self.references {
            let picture = reference.open("reference", "--reference FILE", places)?.picture;
            pictures.references.push(whole_latents(&picture, Margins::default()));
        }
        for (style, weight) in &self.styles {
            let picture = style.open("style", "--style FILE", places)?.picture;
            request.styles.push(Style { picture, weight: *weight });
        }
        let first = pictures.start.as_ref().map(Start::canvas_size);
        let first = first.or_else(|| pictures.control.as_ref().map(|control| side_by_side(control.picture())));
        if let Some((width, height)) = first.filter(|_| !sized) {
            (request.width, request.height) = (width, height);
        }
        request.pictures = pictures;
        Ok(())
    }
}

fn side_by_side(picture: &Rgb8) -> (u32, u32) {
    (picture.width(), picture.height())
}

impl PictureAsked {
    fn open(&self, field: &'static str, flag: &str, places: Places<'_>) -> Result<Decoded> {
        let given = places.image.filter(|_| field == "image").map(Path::to_owned);
        let path = given.map_or_else(|| find(&self.file, flag, places), Ok)?;
        let Decoded { mut picture, alpha } = image_file::open(field, &path)?;
        for change in &self.changes {
            picture = change.of(&picture).map_err(|problem| wrong(format!("makes '{}' {problem}", self.file)))?;
        }
        Ok(Decoded { picture, alpha })
    }
}

impl MaskAsked {
    fn open(&self, places: Places<'_>) -> Result<Rgb8> {
        // A picture that takes another's place brings its own mask.
        let Decoded { picture, alpha } = self.picture.open("image", "--image FILE, or --mask FILE", places)?;
        let (width, height) = side_by_side(&picture);
        let pixels = picture.as_ref().as_chunks::<3>().0.iter();
        let mut values: Vec<u8> = match self.channel {
            Channel::Alpha => {
                let Some(alpha) = alpha else {
                    let file = shortened(&self.picture.file);
                    let problem = format!("paints anew where '{file}' is transparent, which it is nowhere");
                    return Err(wrong(problem).hint("--mask FILE, white where to paint"));
                };
                alpha.iter().map(|alpha| 255 - alpha).collect()
            }
            Channel::Red => pixels.map(|[red, ..]| *red).collect(),
            Channel::Green => pixels.map(|[_, green, _]| *green).collect(),
            Channel::Blue => pixels.map(|[.., blue]| *blue).collect(),
        };
        if self.inverted {
            for value in &mut values {
                *value = 255 - *value;
            }
        }
        if self.grown > 1 {
            values = grown(&values, width as usize, self.grown as usize);
        }
        Ok(Rgb8::new(width, height, values.iter().flat_map(|value| [*value; 3]).collect()))
    }
}

/// Each pixel the greatest of the square of this side around it.
fn grown(values: &[u8], width: usize, side: usize) -> Vec<u8> {
    // As a convolution with zeros around, of whose result the upper left part is kept.
    let before = side / 2;
    let rows: Vec<Vec<u8>> = values.chunks_exact(width).map(|row| greatest(row, before, side)).collect();
    let mut all = vec![0; values.len()];
    for column in 0..width {
        let whole: Vec<u8> = rows.iter().map(|row| row[column]).collect();
        for (row, value) in greatest(&whole, before, side).into_iter().enumerate() {
            all[row * width + column] = value;
        }
    }
    all
}

/// The greatest of `side` neighbours, of which `before` come first.
fn greatest(values: &[u8], before: usize, side: usize) -> Vec<u8> {
    let of = |at: usize| {
        let end = (at + side - before).min(values.len());
        values[at.saturating_sub(before)..end].iter().copied().max().unwrap_or(0)
    };
    (0..values.len()).map(of).collect()
}

impl Change {
    fn of(self, picture: &Rgb8) -> std::result::Result<Rgb8, String> {
        let (old_width, old_height) = side_by_side(picture);
        let [w, h] = [old_width, old_height].map(f64::from);
        let side = |side: f64| (side.round_ties_even() as u32).max(1);
        let (width, height, centre) = match self {
            Self::Size { width: 0, height: 0, .. } => return Ok(picture.clone()),
            Self::Size { width: 0, height, centre } => (side(w * f64::from(height) / h), height, centre),
            Self::Size { width, height: 0, centre } => (width, side(h * f64::from(width) / w), centre),
            Self::Size { width, height, centre } => (width, height, centre),
            Self::Times(times) => (side(w * times), side(h * times), false),
            Self::Megapixels(pixels) => {
                let times = ((pixels * 1024.0 * 1024.0).trunc() / (w * h)).sqrt();
                (side(w * times), side(h * times), false)
            }
            Self::Preferred => {
                let (width, height) = kontext_size((old_width, old_height));
                (width, height, true)
            }
            Self::Square => {
                let side = old_width.min(old_height);
                return Ok(middle(picture, side, side));
            }
        };
        if width.max(height) > MAX_SIDE {
            return Err(format!("{width}×{height} pixels; {MAX_SIDE} to a side are possible"));
        }
        let cut = if centre { cut_to(picture, f64::from(width) / f64::from(height)) } else { picture.clone() };
        Ok(resize(&cut, width, height, Filter::Lanczos))
    }
}

/// The part around the middle that has about this shape: as much is cut off on both sides.
fn cut_to(picture: &Rgb8, shape: f64) -> Rgb8 {
    let [width, height] = [picture.width(), picture.height()].map(f64::from);
    let own = width / height;
    let off = |all: f64, part: f64| ((all - all * part) / 2.0).round_ties_even() as u32;
    let (x, y) = if own > shape { (off(width, shape / own), 0) } else { (0, off(height, own / shape)) };
    middle(picture, (picture.width() - 2 * x).max(1), (picture.height() - 2 * y).max(1))
}

/// What ComfyUI encodes: the middle, in whole latents of 8 pixels. With margins around, all of it.
fn whole_latents(picture: &Rgb8, margins: Margins) -> Rgb8 {
    let whole = |side: u32| if side < 8 { side } else { side / 8 * 8 };
    if margins == Margins::default() {
        middle(picture, whole(picture.width()), whole(picture.height()))
    } else {
        picture.clone()
    }
}

/// `width`×`height` pixels around the middle.
fn middle(picture: &Rgb8, width: u32, height: u32) -> Rgb8 {
    let [x, y] = [(picture.width() - width) / 2, (picture.height() - height) / 2].map(|side| side as usize);
    let rows = picture.as_ref().chunks_exact(3 * picture.width() as usize).skip(y).take(height as usize);
    Rgb8::new(width, height, rows.flat_map(|row| &row[3 * x..][..3 * width as usize]).copied().collect())
}

/// The file of a picture by ComfyUI's name, which may have folders in it but never leads out of them.
fn find(name: &str, flag: &str, places: Places<'_>) -> Result<PathBuf> {
    let (plain, folder) = match name.strip_suffix(" [output]") {
        Some(plain) => (plain, "output"),
        None => (name.strip_suffix(" [input]").unwrap_or(name), "input"),
    };
    let relative = PathBuf::from(plain.replace('\\', "/"));
    let stays = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let shown = shortened(name);
    if !stays || plain.is_empty() {
        return Err(wrong(format!("names the picture '{shown}', which is not a name in one of ComfyUI's folders")));
    }
    let roots = places.paths.comfyui.iter().flat_map(|root| {
        // A folder of models lies beside the one of pictures.
        let above = root.parent().map(Path::to_owned);
        [Some(root.clone()), above.filter(|_| root.ends_with("models"))].into_iter().flatten()
    });
    let folders = places.beside.map(Path::to_owned).into_iter().chain(roots.map(|root| root.join(folder)));
    let folders: Vec<PathBuf> = folders.collect();
    if let Some(found) = folders.iter().map(|folder| folder.join(&relative)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let looked: Vec<String> = folders.iter().map(|folder| format!("'{}'", folder.display())).collect();
    let looked = if looked.is_empty() { "nowhere".into() } else { looked.join(", ") };
    let problem = format!("needs the picture '{shown}', which is not there (looked in {looked})");
    Err(wrong(problem).hint(format!("put it beside the workflow, set COMFYUI_PATH, or say {flag}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank(width: u32, height: u32) -> Rgb8 {
        Rgb8::new(width, height, vec![7; 3 * (width * height) as usize])
    }

    /// From the formulas of ComfyUI's nodes, in Python.
    #[test]
    fn sizes_are_comfyuis() {
        let size = |change: Change, width, height| side_by_side(&change.of(&blank(width, height)).unwrap());
        assert_eq!(size(Change::Megapixels(1.0), 1500, 1000), (1254, 836));
        assert_eq!(size(Change::Megapixels(0.25), 33, 400), (147, 1783));
        assert_eq!(size(Change::Size { width: 0, height: 100, centre: false }, 333, 200), (166, 100));
        assert_eq!(size(Change::Size { width: 64, height: 0, centre: false }, 333, 200), (64, 38));
        assert_eq!(size(Change::Size { width: 64, height: 32, centre: true }, 333, 200), (64, 32));
        assert_eq!(size(Change::Times(0.5), 333, 201), (166, 100));
        assert_eq!(size(Change::Preferred, 300, 200), (1248, 832));
        assert_eq!(size(Change::Square, 30, 20), (20, 20));
        let huge = Change::Times(1e9).of(&blank(2, 2)).unwrap_err();
        assert!(huge.contains("8192"), "{huge}");
        assert_eq!(side_by_side(&whole_latents(&blank(333, 7), Margins::default())), (328, 7));
        // Cut around the middle: 3 wide, 1 pixel off on both sides.
        let row = Rgb8::new(5, 1, (0..15).collect());
        assert_eq!(middle(&row, 3, 1).as_ref(), (3..12).collect::<Vec<u8>>());
    }

    /// torch: `conv2d(mask.round(), ones(1, 1, 6, 6), padding=3)`, clamped, the upper left part.
    #[test]
    fn masks_grow_as_comfyuis() {
        let mut mask = vec![0; 12 * 12];
        mask[5 * 12 + 5] = 255;
        let grown = grown(&mask, 12, 6);
        let white: Vec<usize> = (0..12).filter(|x| grown[5 * 12 + x] == 255).collect();
        assert_eq!(white, [3, 4, 5, 6, 7, 8]);
        assert_eq!(grown.iter().map(|value| u32::from(*value)).sum::<u32>(), 36 * 255);
    }
}
