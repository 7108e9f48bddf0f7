//! Pictures that people give: PNG, JPEG, WebP and GIF files to pixels.
//!
//! Turned upright by their EXIF orientation; 16 bits rounded to 8; grey, palettes and CMYK made red, green and blue; alpha
//! apart, and the colours laid over white. Colour profiles are not applied. Moving pictures are refused: which frame is
//! meant, a person knows better. Files may be hostile: their size and their pixels are limited before anything is
//! allocated by them.

use std::{
    io::{Cursor, Read},
    num::NonZeroU64,
    path::Path,
};

use image::ImageDecoder;

use super::{Format, read};
use crate::{
    error::{Error, Result},
    pixels::Rgb8,
};

/// Largest file that is read, bytes.
pub const MAX_FILE: u64 = 256 << 20;

/// Largest picture that is read, pixels: a phone's 64 megapixels.
pub const MAX_INPUT_PIXELS: u64 = 64 << 20;

/// A picture as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What is seen, over white where it is transparent.
    pub picture: Rgb8,
    /// How opaque each pixel is, row by row, if the file says so and it is not opaque everywhere.
    pub alpha: Option<Vec<u8>>,
}

impl Decoded {
    /// As a mask, white where is to be painted anew: where it is transparent, if it has transparency; otherwise as it is.
    pub fn into_mask(self) -> Rgb8 {
        let Some(alpha) = self.alpha else { return self.picture };
        let pixels = alpha.iter().flat_map(|alpha| [255 - alpha; 3]).collect();
        Rgb8::new(self.picture.width(), self.picture.height(), pixels)
    }
}

/// Reads a picture file for a field of a request: `image`, `mask`, `control` …
///
/// # Errors
/// [`Error::Asked`] naming the field and the file: it cannot be read, is no PNG, JPEG, WebP or GIF picture, is damaged, moves, or
/// is larger than [`MAX_FILE`] or [`MAX_INPUT_PIXELS`].
pub fn open(field: &'static str, path: &Path) -> Result<Decoded> {
    let wrong = |problem: String| Error::asked(field, format!("'{}' {problem}", path.display()));
    let bytes = contents(path).map_err(wrong)?;
    decode(&bytes).map_err(wrong)
}

/// The bytes of a file that is not too long; a folder or a pipe without end is not read on.
///
/// # Errors
/// A sentence without its subject.
pub fn contents(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {} MiB, the most that is read of a picture", MAX_FILE >> 20));
    }
    Ok(bytes)
}

/// A picture file's pixels.
///
/// # Errors
/// A sentence without its subject: `is a TIFF file; …`.
pub fn decode(bytes: &[u8]) -> std::result::Result<Decoded, String> {
    let found = read(bytes).map_err(|_| unknown(bytes))?;
    let pixels = u64::from(found.width) * u64::from(found.height);
    if pixels > MAX_INPUT_PIXELS {
        let size = format!("{}×{}", found.width, found.height);
        return Err(format!("has {size} pixels; at most {} million are read", MAX_INPUT_PIXELS / 1_000_000));
    }
    if pixels == 0 {
        return Err("has no pixels".into());
    }
    let plane = match found.format {
        Format::Png => png(bytes)?,
        Format::Jpeg => jpeg(bytes)?,
        Format::Webp => webp(bytes)?,
        Format::Gif => gif(bytes)?,
        Format::Avif => return Err(other("an AVIF")),
    };
    Ok(plane.upright(read::orientation(bytes)).finish())
}

/// Why a file is none of the formats.
fn unknown(bytes: &[u8]) -> String {
    let at = |from: usize, what: &[u8]| bytes.get(from..).is_some_and(|rest| rest.starts_with(what));
    let kind = match () {
        () if bytes.is_empty() => return "is empty".into(),
        () if at(0, b"BM") => "a BMP",
        () if at(0, b"II*\0") || at(0, b"MM\0*") => "a TIFF",
        () if Format::of(bytes) == Some(Format::Avif) => "an AVIF",
        () if at(4, b"ftyphei") || at(4, b"ftypmif1") || at(4, b"ftyphevc") => "a HEIC",
        () if at(0, b"\xFF\x0A") || at(4, b"JXL ") => "a JPEG XL",
        () if at(0, b"8BPS") => "a Photoshop",
        () if at(0, b"\x89PNG") || at(0, b"\xFF\xD8") || at(8, b"WEBP") || at(0, b"GIF8") => {
            return "ends before its picture".into();
        }
        () => return "is not a PNG, JPEG, WebP or GIF file".into(),
    };
    other(kind)
}

fn other(kind: &str) -> String {
    format!("is {kind} file; PNG, JPEG, WebP and GIF are read; hint: convert it")
}

/// Interleaved samples.
struct Samples {
    width: usize,
    height: usize,
    /// Grey; grey and alpha; red, green, blue; the same and alpha.
    channels: usize,
    values: Vec<u8>,
}

fn png(bytes: &[u8]) -> std::result::Result<Samples, String> {
    let damaged = |e: png::DecodingError| format!("is damaged: {e}");
    let limits = png::Limits { bytes: usize::try_from(8 * MAX_INPUT_PIXELS + (64 << 20)).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(damaged)?;
    if reader.info().animation_control().is_some_and(|control| control.num_frames > 1) {
        return Err(MOVES.into());
    }
    let size = reader.output_buffer_size().ok_or("is too large")?;
    let mut values = vec![0; size];
    let frame = reader.next_frame(&mut values).map_err(damaged)?;
    values.truncate(frame.buffer_size());
    let channels = frame.color_type.samples();
    if frame.bit_depth == png::BitDepth::Sixteen {
        let (wide, _) = values.as_chunks::<2>();
        values = wide.iter().map(|v| rounded(u16::from_be_bytes(*v))).collect();
    }
    Ok(Samples { width: frame.width as usize, height: frame.height as usize, channels, values })
}

/// 16 bits to the nearest 8.
fn rounded(v: u16) -> u8 {
    ((u32::from(v) * 255 + 32767) / 65535) as u8
}

const MOVES: &str = "is a moving picture; hint: save the frame that is meant as a file of its own";

fn jpeg(bytes: &[u8]) -> std::result::Result<Samples, String> {
    // The decoder fills up what is missing with grey. Between two bytes of data, an end mark cannot stand.
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xFF, marker]);
    let (scan, end) = (last(0xDA), last(0xD9));
    if scan.is_none() || end < scan {
        return Err("is damaged: it ends within the picture".into());
    }
    let damaged = |e: image::ImageError| format!("is damaged: {e}");
    let decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let channels = decoder.color_type().channel_count() as usize;
    // What the header said to `read` is checked; this must be the same picture.
    if u64::from(width) * u64::from(height) > MAX_INPUT_PIXELS {
        return Err("is damaged: it has two sizes".into());
    }
    let mut values = vec![0; width as usize * height as usize * channels];
    decoder.read_image(&mut values).map_err(damaged)?;
    Ok(Samples { width: width as usize, height: height as usize, channels, values })
}

fn webp(bytes: &[u8]) -> std::result::Result<Samples, String> {
    let features = webp::BitstreamFeatures::new(bytes).ok_or("is damaged: its header cannot be read")?;
    if features.has_animation() {
        return Err(MOVES.into());
    }
    if u64::from(features.width()) * u64::from(features.height()) > MAX_INPUT_PIXELS {
        return Err("is damaged: it has two sizes".into());
    }
    let picture = webp::Decoder::new(bytes).decode().ok_or("is damaged: its pixels cannot be read")?;
    let channels = if picture.layout().is_alpha() { 4 } else { 3 };
    Ok(Samples {
        width: picture.width() as usize,
        height: picture.height() as usize,
        channels,
        values: picture.to_vec(),
    })
}

/// The one frame, where it stands on the screen; elsewhere it is transparent.
fn gif(bytes: &[u8]) -> std::result::Result<Samples, String> {
    let damaged = |e: gif::DecodingError| format!("is damaged: {e}");
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    options.set_memory_limit(gif::MemoryLimit::Bytes(NonZeroU64::new(8 * MAX_INPUT_PIXELS).unwrap_or(NonZeroU64::MIN)));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(damaged)?;
    let [width, height] = [decoder.width(), decoder.height()].map(usize::from);
    let frame = decoder.read_next_frame().map_err(damaged)?.ok_or("is damaged: it has no picture")?;
    let [left, top, across] = [frame.left, frame.top, frame.width].map(usize::from);
    let mut values = vec![0; 4 * width * height];
    for (y, row) in frame.buffer.chunks_exact(4 * across.max(1)).enumerate().take(height.saturating_sub(top)) {
        let shown = 4 * across.min(width.saturating_sub(left));
        let start = 4 * ((top + y) * width + left);
        if shown > 0 {
            values[start..start + shown].copy_from_slice(&row[..shown]);
        }
    }
    match decoder.next_frame_info() {
        Ok(Some(_)) => Err(MOVES.into()),
        _ => Ok(Samples { width, height, channels: 4, values }),
    }
}

impl Samples {
    /// Turned as an EXIF orientation (1 to 8) says.
    fn upright(self, orientation: u8) -> Self {
        let Self { width, height, channels, ref values } = self;
        let [w, h] = if orientation >= 5 { [height, width] } else { [width, height] };
        let source = |x: usize, y: usize| match orientation {
            2 => (width - 1 - x, y),
            3 => (width - 1 - x, height - 1 - y),
            4 => (x, height - 1 - y),
            5 => (y, x),
            6 => (y, height - 1 - x),
            7 => (width - 1 - y, height - 1 - x),
            8 => (width - 1 - y, x),
            _ => (x, y),
        };
        if !(2..=8).contains(&orientation) {
            return self;
        }
        let mut turned = Vec::with_capacity(values.len());
        for y in 0..h {
            for x in 0..w {
                let (sx, sy) = source(x, y);
                let start = (sy * width + sx) * channels;
                turned.extend_from_slice(&values[start..start + channels]);
            }
        }
        Self { width: w, height: h, channels, values: turned }
    }

    /// Red, green and blue over white, and alpha apart.
    fn finish(self) -> Decoded {
        let Self { width, height, channels, values } = self;
        let over_white = |value: u8, alpha: u8| {
            let [value, alpha] = [value, alpha].map(u32::from);
            ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let mut alpha = None;
        let pixels = match channels {
            1 => values.iter().flat_map(|v| [*v; 3]).collect(),
            3 => values,
            _ => {
                alpha = Some(values.chunks_exact(channels).map(|pixel| pixel[channels - 1]).collect::<Vec<u8>>());
                let colours = |pixel: &[u8]| {
                    let a = pixel[channels - 1];
                    let [r, g, b] = if channels == 2 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] };
                    [r, g, b].map(|v| over_white(v, a))
                };
                values.chunks_exact(channels).flat_map(colours).collect()
            }
        };
        let alpha = alpha.filter(|alpha| alpha.iter().any(|a| *a < 255));
        Decoded { picture: Rgb8::new(width as u32, height as u32, pixels), alpha }
    }
}
