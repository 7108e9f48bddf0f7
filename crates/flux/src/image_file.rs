//! A reviewed picture to the bytes of a PNG, JPEG, WebP, AVIF or GIF file, and what is written into them about its making.
//!
//! Every file carries the mark that it was made by a model ([`MetadataLevel`] cannot switch it off); how it was made
//! is written twice, for people and AUTOMATIC1111-compatible tools, and as JSON. [`read`] finds all of it again.

mod avif;
mod decode;
mod gif;
mod metadata;
mod read;

use std::fmt;
use std::str::FromStr;

use png::text_metadata::{ITXtChunk, TEXtChunk};

use crate::error::{Error, Result};
pub use crate::lora::LoraUsed;
use crate::pixels::Rgb8;
use crate::safety::Reviewed;
pub use decode::{Decoded, MAX_FILE, MAX_INPUT_PIXELS, contents, decode, open};
use metadata::Notes;
pub use metadata::{FromPictures, MetadataLevel, Provenance, Upscaled};
pub use read::{Found, read};

/// PNG text keys: the one that other tools know, ours, and the standard's for XMP.
const PARAMETERS_KEY: &str = "parameters";
const PROVENANCE_KEY: &str = "darkroom";
const XMP_KEY: &str = "XML:com.adobe.xmp";

/// What begins a JPEG's application segment 1.
const JPEG_EXIF: &[u8] = b"Exif\0\0";
const JPEG_XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// A file format for pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Lossless, and what most tools read metadata from.
    #[default]
    Png,
    /// Lossy, full colour resolution.
    Jpeg,
    /// Lossy, or lossless at quality 100.
    Webp,
    /// AV1: lossy, full colour resolution, the smallest and the slowest to write.
    Avif,
    /// 256 colours.
    Gif,
}

impl Format {
    /// The media type, for HTTP.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Avif => "image/avif",
            Self::Gif => "image/gif",
        }
    }

    /// The format of a file that begins with `start`, of which 64 bytes tell enough.
    pub fn of(start: &[u8]) -> Option<Self> {
        let avif = || {
            // Its brands: the main one, a version, and all that it can be read as.
            let (brands, _) = avif::brands(start)?.as_chunks::<4>();
            brands.iter().any(|brand| matches!(brand, b"avif" | b"avis")).then_some(())
        };
        match () {
            () if start.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Self::Png),
            () if start.starts_with(&[0xFF, 0xD8, 0xFF]) => Some(Self::Jpeg),
            () if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP") => Some(Self::Webp),
            () if start.starts_with(b"GIF87a") || start.starts_with(b"GIF89a") => Some(Self::Gif),
            () if avif().is_some() => Some(Self::Avif),
            () => None,
        }
    }

    /// The usual end of a file's name, without a dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
            Self::Avif => "avif",
            Self::Gif => "gif",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Avif => "avif",
            Self::Gif => "gif",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    /// From a name or a file's extension, in any case.
    ///
    /// # Errors
    /// [`Error::Asked`] about `format`.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "png" => Ok(Self::Png),
            "jpeg" | "jpg" => Ok(Self::Jpeg),
            "webp" => Ok(Self::Webp),
            "avif" => Ok(Self::Avif),
            "gif" => Ok(Self::Gif),
            _ => Err(Error::asked("format", format!("expected png, jpeg, webp, avif or gif, got '{name}'"))),
        }
    }
}

/// How a picture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The file format.
    pub format: Format,
    /// 0 to 100; means nothing to PNG and GIF, and 100 is lossless in WebP.
    pub quality: u8,
    /// How much is told about the picture's making.
    pub metadata: MetadataLevel,
}

impl Default for Encoding {
    /// PNG with everything told; quality 90 if the format is changed.
    fn default() -> Self {
        Self { format: Format::Png, quality: 90, metadata: MetadataLevel::Full }
    }
}

/// The bytes of a file that shows `picture`.
///
/// # Errors
/// [`Error::Asked`] about `quality`, if it is above 100, or `format`, if it cannot hold a picture of that size.
pub fn encode(picture: &Reviewed<Rgb8>, provenance: &Provenance, encoding: Encoding) -> Result<Vec<u8>> {
    write(picture, &|level| provenance.notes(level), encoding)
}

/// The bytes of a file that shows an enlarged picture, with what its own file told of its making as far as the level goes, and
/// that it was enlarged. `safety` names the policy that reviewed it. A picture that no model made is marked as enhanced by one.
///
/// # Errors
/// As [`encode`].
pub fn encode_upscaled(
    picture: &Reviewed<Rgb8>,
    source: &Found,
    upscaled: &Upscaled,
    safety: &str,
    encoding: Encoding,
) -> Result<Vec<u8>> {
    write(picture, &|level| source.notes(upscaled, safety, level), encoding)
}

fn write(
    picture: &Reviewed<Rgb8>,
    notes: &dyn Fn(MetadataLevel) -> Notes,
    Encoding { format, quality, metadata }: Encoding,
) -> Result<Vec<u8>> {
    if quality > 100 {
        return Err(Error::asked("quality", format!("expected 0 to 100, got {quality}")));
    }
    let picture = picture.get();
    let encoded = match format {
        Format::Png => png(picture, &notes(metadata)),
        Format::Jpeg => jpeg(picture, notes, quality, metadata),
        Format::Webp => webp(picture, &notes(metadata), quality),
        Format::Avif => avif::encode(picture, &notes(metadata), quality),
        Format::Gif => gif::encode(picture, &notes(metadata)),
    };
    encoded.map_err(|problem| {
        Error::asked("format", format!("{format} cannot hold {}x{}: {problem}", picture.width(), picture.height()))
    })
}

/// A file's bytes, or what the encoder has against them.
type Encoded = std::result::Result<Vec<u8>, Box<dyn std::error::Error>>;

/// Text goes into `tEXt` where its Latin-1 suffices, as AUTOMATIC1111 does it, else into `iTXt`.
fn png(picture: &Rgb8, notes: &Notes) -> Encoded {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // On photographs as small as the default and twenty times as fast.
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_text_chunk(&ITXtChunk::new(XMP_KEY, notes.xmp(false)))?;
    if let Some(parameters) = &notes.parameters {
        if parameters.is_ascii() {
            writer.write_text_chunk(&TEXtChunk::new(PARAMETERS_KEY, parameters.as_str()))?;
        } else {
            writer.write_text_chunk(&ITXtChunk::new(PARAMETERS_KEY, parameters.as_str()))?;
        }
    }
    let others = notes.comfy.iter().map(|(key, text)| (*key, text));
    for (key, text) in notes.json.iter().map(|json| (PROVENANCE_KEY, json)).chain(others) {
        writer.write_text_chunk(&ITXtChunk::new(key, text.as_str()))?;
    }
    writer.write_image_data(picture.as_ref())?;
    writer.finish()?;
    Ok(bytes)
}

/// A segment holds 65,533 bytes: what does not fit is told at the next lower level.
fn jpeg(picture: &Rgb8, notes: &dyn Fn(MetadataLevel) -> Notes, quality: u8, level: MetadataLevel) -> Encoded {
    const MOST: usize = 65_533;
    const APP1: [u8; 2] = [0xFF, 0xE1];

    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality.max(1)).encode(
        picture.as_ref(),
        picture.width(),
        picture.height(),
        image::ExtendedColorType::Rgb8,
    )?;

    let segments = |level| {
        let notes = notes(level);
        let exif = notes.exif().map(|exif| [JPEG_EXIF, &exif].concat());
        let xmp = [JPEG_XMP, notes.xmp(true).as_bytes()].concat();
        exif.into_iter().chain([xmp]).collect::<Vec<_>>()
    };
    let levels = [level, MetadataLevel::Minimal, MetadataLevel::None];
    let fitting = levels.into_iter().map(segments).find(|all| all.iter().all(|segment| segment.len() <= MOST));

    let mut inserted = Vec::new();
    for segment in fitting.unwrap_or_default() {
        inserted.extend(APP1);
        inserted.extend((segment.len() as u16 + 2).to_be_bytes());
        inserted.extend(segment);
    }
    // Behind the start marker and the JFIF segment, which readers expect first.
    let at = 4 + u16::from_be_bytes([bytes[4], bytes[5]]) as usize;
    bytes.splice(at..at, inserted);
    Ok(bytes)
}

/// The picture's own chunk in the extended container, which has room for metadata.
fn webp(picture: &Rgb8, notes: &Notes, quality: u8) -> Encoded {
    const EXIF_FLAG: u8 = 0x08;
    const XMP_FLAG: u8 = 0x04;

    // Without loss, "quality" means effort: 20 makes photographs as small as 100 does, in half the time.
    let (lossless, quality) = if quality == 100 { (true, 20) } else { (false, quality) };
    let simple = webp::Encoder::from_rgb(picture.as_ref(), picture.width(), picture.height())
        .encode_simple(lossless, quality as f32)
        .map_err(|e| format!("{e:?}"))?;
    let exif = notes.exif();

    let mut extended = vec![XMP_FLAG | if exif.is_some() { EXIF_FLAG } else { 0 }, 0, 0, 0];
    extended.extend(&(picture.width() - 1).to_le_bytes()[..3]);
    extended.extend(&(picture.height() - 1).to_le_bytes()[..3]);

    let mut body = b"WEBP".to_vec();
    push_chunk(&mut body, *b"VP8X", &extended);
    body.extend(&simple[12..]);
    if let Some(exif) = exif {
        push_chunk(&mut body, *b"EXIF", &exif);
    }
    push_chunk(&mut body, *b"XMP ", notes.xmp(true).as_bytes());
    let mut bytes = Vec::with_capacity(body.len() + 8);
    push_chunk(&mut bytes, *b"RIFF", &body);
    Ok(bytes)
}

/// RIFF: a name, the length, the data, and a zero byte if the length is odd.
fn push_chunk(bytes: &mut Vec<u8>, name: [u8; 4], data: &[u8]) {
    bytes.extend(name);
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len() + data.len() % 2, 0);
}
