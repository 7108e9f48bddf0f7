//! Pictures with more pixels: small networks that enlarge two or four times, tile by tile.
//!
//! SPAN ×2 and ×4 are in the program (`assets/upscaler/`); Real-ESRGAN and its kin are read from the user's file. Pictures go in
//! and come out as [`Rgb8`]; inside they are `[H, W, 3]` in [0, 1], as both networks were trained. A tile sees a margin of its
//! neighbours: where that is as wide as the network looks, tiles give the whole picture's values; else they differ a little.

mod rrdb;
mod span;
mod tiles;

use std::{path::Path, sync::Arc};

use tensor::{Backend, Device, Precision, Tensor, dry_run::DryRun};

use self::{rrdb::Rrdb, span::Span, tiles::Tile};
use crate::{
    error::{Error, Result},
    memory::{self, Extent},
    pixels::{Rgb8, to_u8},
    plan,
    watch::{self, Event, Watch},
    weights::{Checkpoint, Naming, Weights},
};

/// What the networks in the program are called, and their factors.
const EMBEDDED: [(u32, &str, &[u8]); 2] = [
    (2, "span-x2", include_bytes!("../../assets/upscaler/span_x2.safetensors")),
    (4, "span-x4", include_bytes!("../../assets/upscaler/span_x4.safetensors")),
];

/// Largest result, pixels: 16384×16384.
pub const MAX_PIXELS: u64 = 1 << 28;

/// A network that makes pictures larger.
#[derive(Debug)]
pub struct Upscaler {
    name: String,
    network: Network,
    backend: Arc<dyn Backend>,
    extent: Extent,
    parameters: u64,
}

#[derive(Debug)]
enum Network {
    Span(Box<Span>),
    Rrdb(Box<Rrdb>),
}

impl Upscaler {
    /// The network in the program that enlarges `scale` times, 2 or 4.
    ///
    /// ```
    /// use flux::{pixels::Rgb8, upscale::Upscaler};
    ///
    /// let upscaler = Upscaler::embedded(2, &tensor::Device::default().open())?;
    /// let larger = upscaler.upscale(&Rgb8::new(8, 5, vec![200; 120]), &mut ())?;
    /// assert_eq!((larger.width(), larger.height()), (16, 10));
    /// # Ok::<(), flux::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Asked`] about `upscale` for another factor.
    pub fn embedded(scale: u32, backend: &Arc<dyn Backend>) -> Result<Self> {
        let Some((_, name, bytes)) = EMBEDDED.iter().find(|(factor, ..)| *factor == scale) else {
            return Err(Error::asked("upscale", format!("is {scale}; 2 and 4 are possible")));
        };
        Self::load(&Arc::new(Checkpoint::embedded(name, bytes)?), name, backend)
    }

    /// A network of the user's: Real-ESRGAN ×4plus or ×2plus, or another `RRDBNet`, as safetensors, in its own or in ESRGAN's
    /// first names; or a SPAN whose convolutions are merged for use.
    ///
    /// # Errors
    /// [`Error::File`] naming what is wrong with it; of a pickle (`.pth`) that only safetensors are read.
    pub fn open(path: &Path, backend: &Arc<dyn Backend>) -> Result<Self> {
        if is_pickle(path) {
            let problem = "is a pickle, which may hold a program; only safetensors are read; hint: the same network is \
                           published as RealESRGAN_x4plus.safetensors";
            return Err(Error::file(path, problem));
        }
        Self::load(&Arc::new(Checkpoint::open(path)?), &stem(path), backend)
    }

    /// The network in `file`, or the one in the program if there is none, if it enlarges `scale` times.
    ///
    /// # Errors
    /// As [`Upscaler::embedded`] and [`Upscaler::open`]; [`Error::Asked`] about `upscaler` if the file's factor is another.
    pub fn find(scale: u32, file: Option<&Path>, backend: &Arc<dyn Backend>) -> Result<Self> {
        let Some(path) = file else { return Self::embedded(scale, backend) };
        let found = Self::open(path, backend)?;
        if found.scale() == scale {
            return Ok(found);
        }
        let problem = format!("'{}' enlarges {} times, {scale} times was asked for", path.display(), found.scale());
        Err(Error::asked("upscaler", problem))
    }

    fn load(checkpoint: &Arc<Checkpoint>, name: &str, backend: &Arc<dyn Backend>) -> Result<Self> {
        let prefix = ["", "params_ema.", "params.", "module."].into_iter().find(|prefix| {
            let has = |layer: &str| checkpoint.entry(&format!("{prefix}{layer}.weight")).is_some();
            has(span::FIRST) || rrdb::FIRST.into_iter().any(has)
        });
        let Some(prefix) = prefix else {
            let problem = "is not a known upscaler: neither an RRDBNet (Real-ESRGAN, ESRGAN) nor a SPAN";
            return Err(Error::file(checkpoint.origin(), problem));
        };
        let weights = Weights::new(checkpoint.clone(), prefix, Naming::Same, backend.clone(), Precision::F32);
        let network = if weights.has(&format!("{}.weight", span::FIRST)) {
            Network::Span(Box::new(Span::load(checkpoint, &weights)?))
        } else {
            Network::Rrdb(Box::new(Rrdb::load(checkpoint, &weights)?))
        };
        Ok(Self {
            name: name.to_owned(),
            network,
            backend: backend.clone(),
            extent: weights.extent(),
            parameters: weights.parameters_taken(),
        })
    }

    /// What it is called: `span-x4`, or the file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many times it enlarges each side.
    pub fn scale(&self) -> u32 {
        match &self.network {
            Network::Span(span) => span.scale() as u32,
            Network::Rrdb(rrdb) => rrdb.scale() as u32,
        }
    }

    /// Where its weights lie.
    pub(crate) fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Numbers in it.
    pub(crate) fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Refuses a picture whose enlargement would be too large, or take more than `limit` bytes (`None`: what the machine has
    /// available); gives the bytes that it takes at the most.
    ///
    /// # Errors
    /// [`Error::Asked`] about `upscale` or `memory_limit`; as [`Upscaler::find`].
    pub fn check(
        scale: u32,
        file: Option<&Path>,
        (width, height): (u32, u32),
        device: Device,
        limit: Option<u64>,
    ) -> Result<u64> {
        check(scale, width, height)?;
        let counter = DryRun::new();
        let backend: Arc<dyn Backend> = counter.clone();
        let upscaler = Self::find(scale, file, &backend)?;
        counter.reset();
        let pictures = upscaler.rehearse(width, height)?;
        let peak = plan::overhead(device) + upscaler.extent.bytes() + counter.report().peak_bytes + pictures;
        match limit.or_else(memory::available) {
            Some(limit) if peak > limit => {
                let size = format!("{width}×{height} pixels, enlarged {scale} times,");
                let problem = format!("{size} take {} of the {} there are", plan::shown(peak), plan::shown(limit));
                Err(Error::asked("memory_limit", problem))
            }
            _ => Ok(peak),
        }
    }

    /// Bytes beside the weights while a picture of this size is enlarged, the picture and its result included; computed on
    /// the [`tensor::dry_run`] backend, on which this must have been loaded.
    pub(crate) fn rehearse(&self, width: u32, height: u32) -> Result<u64> {
        let mut copy = 0;
        self.each_tile(width, height, |tile| {
            let values = self.forward(tile, vec![0.0; 3 * tile.seen[0].len() * tile.seen[1].len()]);
            copy = copy.max(4 * values.shape().count() as u64);
            Ok(())
        })?;
        let pixels = u64::from(width) * u64::from(height);
        Ok(3 * pixels * (1 + u64::from(self.scale()).pow(2)) + copy)
    }

    /// The picture, enlarged. `watch` is told of each tile and may stop between two.
    ///
    /// # Errors
    /// [`Error::Asked`] if the result would be too large, [`Error::Cancelled`], [`Error::Degenerate`] if it is not numbers.
    pub fn upscale(&self, picture: &Rgb8, watch: &mut dyn Watch) -> Result<Rgb8> {
        let (width, height) = (picture.width(), picture.height());
        check(self.scale(), width, height)?;
        let scale = self.scale() as usize;
        let bytes = picture.as_ref();
        let row = 3 * width as usize;
        let mut result = vec![0; row * height as usize * scale * scale];
        let result_row = row * scale;
        let mut done = 0;
        let tiles = tiles::of(width as usize, height as usize, self.limits()).count() as u32;
        self.each_tile(width, height, |tile| {
            watch::check(watch)?;
            watch.event(Event::Upscaling { tile: done + 1, tiles });
            done += 1;
            let [rows, columns] = &tile.seen;
            let seen = rows.clone().flat_map(|y| &bytes[y * row + 3 * columns.start..y * row + 3 * columns.end]);
            let values = self.forward(tile, seen.map(|&byte| f32::from(byte) / 255.0).collect());
            let values = values.to_vec();
            // The tile's own part of what came out.
            let across = 3 * scale * columns.len();
            let [own_rows, own_columns] = &tile.own;
            let first = 3 * scale * (own_columns.start - columns.start);
            let count = 3 * scale * own_columns.len();
            for y in scale * own_rows.start..scale * own_rows.end {
                let from = &values[(y - scale * rows.start) * across + first..][..count];
                let to = &mut result[y * result_row + 3 * scale * own_columns.start..][..count];
                for (to, &value) in to.iter_mut().zip(from) {
                    if value.is_nan() {
                        return Err(Error::degenerate(format!("'{}' gave values that are not numbers", self.name)));
                    }
                    *to = to_u8(value);
                }
            }
            Ok(())
        })?;
        self.extent.release();
        self.backend.release_idle();
        let factor = self.scale();
        Ok(Rgb8::new(width * factor, height * factor, result))
    }

    /// `[H, W, 3]` in [0, 1] → `[scale·H, scale·W, 3]`, in one piece.
    #[track_caller]
    pub fn enlarge(&self, picture: &Tensor) -> Tensor {
        match &self.network {
            Network::Span(span) => span.forward(picture),
            Network::Rrdb(rrdb) => rrdb.forward(picture),
        }
    }

    fn limits(&self) -> tiles::Limits {
        match &self.network {
            Network::Span(_) => span::TILES,
            Network::Rrdb(_) => rrdb::TILES,
        }
    }

    fn each_tile(&self, width: u32, height: u32, mut work: impl FnMut(&Tile) -> Result<()>) -> Result<()> {
        tiles::of(width as usize, height as usize, self.limits()).try_for_each(|tile| work(&tile))
    }

    /// `values [h, w, 3]` of what a tile sees → `[scale·h, scale·w, 3]`.
    fn forward(&self, tile: &Tile, values: Vec<f32>) -> Tensor {
        let [rows, columns] = &tile.seen;
        self.enlarge(&Tensor::from_vec(&self.backend, [rows.len(), columns.len(), 3], values))
    }
}

/// What [`Upscaler::find`] is going to call it.
pub(crate) fn name(scale: u32, file: Option<&Path>) -> String {
    match file {
        Some(path) => stem(path),
        None => format!("span-x{scale}"),
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses results that are too large.
pub(crate) fn check(scale: u32, width: u32, height: u32) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height) * u64::from(scale).pow(2);
    if pixels <= MAX_PIXELS {
        return Ok(());
    }
    let problem = format!("makes {width}×{height} into {pixels} pixels; at most {MAX_PIXELS} are possible");
    Err(Error::asked("upscale", problem))
}

/// `PyTorch`'s files: a zip archive, or a pickle that begins with `PyTorch`'s number.
fn is_pickle(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && (&start == b"PK\x03\x04" || &start == b"\x80\x02\x8a\x0a")
}

/// Channels become pixels, in `PyTorch`'s order: `[H, W, C·r·r]` → `[r·H, r·W, C]`.
fn pixel_shuffle(x: &Tensor, r: usize) -> Tensor {
    let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2] / (r * r)];
    let pixels = x.reshape([h * w, c, r * r]).permute(&[0, 2, 1]);
    pixels.reshape([h, w, r, r * c]).permute(&[0, 2, 1, 3]).reshape([r * h, r * w, c])
}

/// The way back: `[r·H, r·W, C]` → `[H, W, C·r·r]`.
fn pixel_unshuffle(x: &Tensor, r: usize) -> Tensor {
    let [h, w, c] = [x.shape()[0] / r, x.shape()[1] / r, x.shape()[2]];
    let pixels = x.reshape([h, r, w, r * c]).permute(&[0, 2, 1, 3]);
    pixels.reshape([h * w, r * r, c]).permute(&[0, 2, 1]).reshape([h, w, c * r * r])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_become_pixels_as_in_pytorch() {
        let backend: Arc<dyn Backend> = tensor::reference::Reference::new();
        let x = Tensor::from_vec(&backend, [1, 2, 8], (0..16).map(|v| v as f32).collect());
        let y = pixel_shuffle(&x, 2);
        // torch.nn.functional.pixel_shuffle of the same numbers, channels first.
        let expected = [0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15];
        assert_eq!(y.shape(), [2, 4, 2].into());
        assert_eq!(y.to_vec(), expected.map(|v| v as f32));
        assert_eq!(pixel_unshuffle(&y, 2).to_vec(), x.to_vec());
    }

    #[test]
    fn only_two_factors_are_in_the_program() {
        let backend: Arc<dyn Backend> = tensor::reference::Reference::new();
        for scale in [0, 1, 3, 8] {
            let error = Upscaler::find(scale, None, &backend).unwrap_err().to_string();
            assert_eq!(error, format!("upscale: is {scale}; 2 and 4 are possible"));
        }
        for scale in [2, 4] {
            assert_eq!(Upscaler::find(scale, None, &backend).unwrap().name(), name(scale, None));
        }
        assert!(check(4, 4096, 4096).is_ok());
        assert!(check(4, 4097, 4096).unwrap_err().to_string().starts_with("upscale: makes 4097×4096 into"));
    }
}
