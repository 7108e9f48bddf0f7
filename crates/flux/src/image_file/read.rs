//! What a picture file tells about itself, whoever wrote it.
//!
//! Pixels are not decoded. Files may be hostile: nothing here panics, and no more than a few times the file's size is
//! allocated. A file that ends early is read as far as it goes.

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use super::metadata::{EXIF_DIRECTORY, USER_COMMENT};
use super::{Format, JPEG_EXIF, JPEG_XMP, PARAMETERS_KEY, PROVENANCE_KEY, Provenance, XMP_KEY, avif, gif};
use crate::error::{Error, Result};

/// The main directory's tag of how the picture is turned.
const ORIENTATION: u16 = 0x0112;

/// Names of `ComfyUI`'s texts: the graph as it was run, and as it was drawn.
const COMFY: [&str; 2] = ["prompt", "workflow"];

/// Names of foreign texts that are reported; a file of nothing but names must not fill the memory.
const MOST_OTHERS: usize = 64;

/// What [`read`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The file's format, by its contents.
    pub format: Format,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Infotext, as AUTOMATIC1111 and others write it.
    pub parameters: Option<String>,
    /// What this program wrote about the picture's making.
    pub provenance: Option<Provenance>,
    /// Whether the file says that a trained model made the picture, or a part of it.
    pub ai_generated: bool,
    /// The names of other texts, such as `ComfyUI`'s `prompt` and `workflow`, each once.
    pub other: Vec<String>,
    /// `ComfyUI`'s graph as it was run, in its API format.
    pub comfy_prompt: Option<String>,
    /// `ComfyUI`'s graph as its editor saves it.
    pub comfy_editor: Option<String>,
}

impl Found {
    /// `ComfyUI`'s graph: as it was run, or else as it was drawn.
    pub fn comfy_workflow(&self) -> Option<&str> {
        self.comfy_prompt.as_deref().or(self.comfy_editor.as_deref())
    }
}

/// Reads a picture file's metadata.
///
/// # Errors
/// [`Error::Asked`] about `picture`: it is none of the formats, or ends before its size.
pub fn read(bytes: &[u8]) -> Result<Found> {
    let mut reader = Reader { budget: bytes.len().saturating_mul(4), ..Reader::default() };
    let Some(format) = Format::of(bytes) else {
        return Err(Error::asked("picture", "expected a PNG, JPEG, WebP, AVIF or GIF file"));
    };
    reader.file(format, bytes);
    let (width, height) =
        reader.size.ok_or_else(|| Error::asked("picture", "the file ends before the picture's size"))?;
    let Reader { parameters, provenance, ai_generated, other, comfy: [comfy_prompt, comfy_editor], .. } = reader;
    Ok(Found { format, width, height, parameters, provenance, ai_generated, other, comfy_prompt, comfy_editor })
}

/// How a picture file is turned, as EXIF has it: 1 (upright, also where nothing is said) to 8.
pub(super) fn orientation(bytes: &[u8]) -> u8 {
    let mut reader = Reader::default();
    if let Some(format) = Format::of(bytes) {
        reader.file(format, bytes);
    }
    reader.orientation.filter(|turn| (1..=8).contains(turn)).unwrap_or(1) as u8
}

#[derive(Default)]
struct Reader {
    size: Option<(u32, u32)>,
    parameters: Option<String>,
    provenance: Option<Provenance>,
    ai_generated: bool,
    other: Vec<String>,
    /// Texts by the names of [`COMFY`].
    comfy: [Option<String>; 2],
    orientation: Option<u16>,
    /// Bytes that compressed text may still unpack to.
    budget: usize,
}

impl Reader {
    fn file(&mut self, format: Format, bytes: &[u8]) {
        match format {
            Format::Png => self.png(bytes.get(8..).unwrap_or_default()),
            Format::Jpeg => self.jpeg(bytes.get(2..).unwrap_or_default()),
            Format::Webp => self.webp(bytes.get(12..).unwrap_or_default()),
            Format::Avif => self.avif(bytes).unwrap_or_default(),
            Format::Gif => self.gif(bytes).unwrap_or_default(),
        }
    }

    fn png(&mut self, mut rest: &[u8]) {
        while let (Some(length), Some(name)) = (be32(rest, 0), rest.get(4..8)) {
            let Some(data) = rest.get(8..).and_then(|data| data.get(..length as usize)) else { return };
            match name {
                b"IHDR" => self.size = be32(data, 0).zip(be32(data, 4)),
                b"tEXt" | b"zTXt" | b"iTXt" => self.png_text(name, data).unwrap_or_default(),
                b"eXIf" => self.exif(data),
                b"IEND" => return,
                _ => {}
            }
            rest = rest.get(8 + data.len() + 4..).unwrap_or_default();
        }
    }

    /// A keyword, then text: Latin-1, the same compressed, or UTF-8, perhaps compressed, behind language and translation.
    fn png_text(&mut self, kind: &[u8], data: &[u8]) -> Option<()> {
        let (key, data) = split_at_zero(data)?;
        let key: String = latin1(key);
        let comfy = COMFY.iter().position(|name| *name == key);
        if ![PARAMETERS_KEY, PROVENANCE_KEY, XMP_KEY].contains(&key.as_str()) {
            self.note(&key);
            comfy?;
        }
        let text = match kind {
            b"tEXt" => latin1(data),
            b"zTXt" => latin1(&self.inflate(data.get(1..)?)?),
            _ => {
                let (compressed, data) = (*data.first()?, data.get(2..)?);
                let (_language, data) = split_at_zero(data)?;
                let (_translated_key, data) = split_at_zero(data)?;
                let unpacked = if compressed == 1 { &self.inflate(data)? } else { data };
                String::from_utf8_lossy(unpacked).into_owned()
            }
        };
        if let Some(comfy) = comfy {
            self.comfy[comfy] = self.comfy[comfy].take().or(Some(text));
            return Some(());
        }
        match key.as_str() {
            PARAMETERS_KEY => self.parameters = self.parameters.take().or(Some(text)),
            PROVENANCE_KEY => self.provenance = self.provenance.take().or(serde_json::from_str(&text).ok()),
            _ => self.xmp(&text),
        }
        Some(())
    }

    fn jpeg(&mut self, mut rest: &[u8]) {
        while let [0xFF, marker, behind @ ..] = rest {
            // Fill bytes and markers without a segment.
            if matches!(marker, 0xFF | 0x01 | 0xD0..=0xD7) {
                rest = if *marker == 0xFF { &rest[1..] } else { behind };
                continue;
            }
            let length = be16(behind, 0).unwrap_or(0) as usize;
            let Some(data) = behind.get(2..length) else { return };
            match marker {
                // Start of scan or end of image: only pixels follow.
                0xD9 | 0xDA => return,
                // Start of frame, but for the codes between that mean something else.
                0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(marker) => {
                    self.size = be16(data, 3).map(u32::from).zip(be16(data, 1).map(u32::from));
                }
                0xE1 => {
                    if let Some(exif) = data.strip_prefix(JPEG_EXIF) {
                        self.exif(exif);
                    } else if let Some(xmp) = data.strip_prefix(JPEG_XMP) {
                        self.xmp(&String::from_utf8_lossy(xmp));
                    }
                }
                0xFE => self.note("comment"),
                _ => {}
            }
            rest = &behind[length..];
        }
    }

    fn webp(&mut self, mut rest: &[u8]) {
        while let (Some(name), Some(length)) = (rest.get(..4), le32(rest, 4)) {
            let length = length as usize;
            // A picture's data may be cut off; its size stands at the front.
            let data = rest.get(8..).unwrap_or_default();
            let data = data.get(..length).unwrap_or(data);
            let size = match name {
                b"VP8X" => le24(data, 4).zip(le24(data, 7)).map(|(w, h)| (w + 1, h + 1)),
                b"VP8 " => le16(data, 6).zip(le16(data, 8)).map(|(w, h)| (w as u32 & 0x3FFF, h as u32 & 0x3FFF)),
                b"VP8L" => le32(data, 1).map(|bits| ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)),
                _ => None,
            };
            self.size = self.size.or(size);
            match name {
                b"EXIF" => self.exif(data.strip_prefix(JPEG_EXIF).unwrap_or(data)),
                b"XMP " => self.xmp(&String::from_utf8_lossy(data)),
                _ => {}
            }
            rest = rest.get(8..).and_then(|rest| rest.get(length.saturating_add(length % 2)..)).unwrap_or_default();
        }
    }

    /// Items of the picture's description; which they are stands in one list, where they are in another.
    fn avif(&mut self, bytes: &[u8]) -> Option<()> {
        let meta = avif::find(bytes, *b"meta")?.get(4..)?;
        let properties = avif::find(meta, *b"iprp").and_then(|iprp| avif::find(iprp, *b"ipco")).unwrap_or_default();
        // A picture of tiles, or one with a thumbnail, has several sizes: the whole is the largest.
        let sizes = avif::boxes(properties).filter(|(name, _)| name == b"ispe");
        let sizes = sizes.filter_map(|(_, size)| be32(size, 4).zip(be32(size, 8)));
        self.size = sizes.max_by_key(|(width, height)| u64::from(*width) * u64::from(*height));

        let infos = avif::find(meta, *b"iinf")?;
        let infos = infos.get(if infos.first() == Some(&0) { 6 } else { 8 }..)?;
        let places = avif::find(meta, *b"iloc")?;
        for (_, info) in avif::boxes(infos).filter(|(name, info)| name == b"infe" && info.first() == Some(&2)) {
            let (Some(id), Some(kind)) = (be16(info, 4), info.get(8..12)) else { continue };
            let behind_name = || split_at_zero(info.get(12..)?).map(|(_, behind)| behind);
            let xmp = kind == b"mime" && behind_name().is_some_and(|content| content.starts_with(avif::XMP_TYPE));
            if !xmp && kind != b"Exif" {
                continue;
            }
            let Some(data) = avif::place(places, id).and_then(|(at, length)| bytes.get(at..at.checked_add(length)?))
            else {
                continue;
            };
            if xmp {
                self.xmp(&String::from_utf8_lossy(data));
            } else if let Some(tiff) = be32(data, 0).and_then(|at| data.get((at as usize).checked_add(4)?..)) {
                self.exif(tiff);
            }
        }
        Some(())
    }

    fn gif(&mut self, bytes: &[u8]) -> Option<()> {
        self.size = le16(bytes, 6).zip(le16(bytes, 8)).map(|(width, height)| (width.into(), height.into()));
        let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 * (2 << (flags & 7)) };
        let mut rest = bytes.get(13 + colours(*bytes.get(10)?)..)?;
        loop {
            rest = match rest {
                [0x21, 0xFF, 11, behind @ ..] if behind.starts_with(gif::XMP_EXTENSION) => {
                    let packet = &behind[11..];
                    let end = packet.windows(3).position(|three| three == [1, 0xFF, 0xFE]).unwrap_or(packet.len());
                    self.xmp(&String::from_utf8_lossy(&packet[..end]));
                    gif_blocks(packet)?.1
                }
                [0x21, 0xFE, behind @ ..] => {
                    let (text, behind) = gif_blocks(behind)?;
                    let text = String::from_utf8_lossy(&text).into_owned();
                    if text.contains("Steps: ") {
                        self.parameters = self.parameters.take().or(Some(text));
                    } else {
                        self.note("comment");
                    }
                    behind
                }
                [0x21, _, behind @ ..] => gif_blocks(behind)?.1,
                [0x2C, behind @ ..] => gif_blocks(behind.get(10 + colours(*behind.get(8)?)..)?)?.1,
                _ => return None,
            };
        }
    }

    /// A TIFF block: infotext is the comment in its Exif directory; `ComfyUI` puts `prompt:…` into tags of the main one.
    fn exif(&mut self, tiff: &[u8]) {
        const ASCII: u16 = 2;
        let big_endian = tiff.starts_with(b"MM");
        let u16_at = |at| if big_endian { be16(tiff, at) } else { le16(tiff, at) };
        let u32_at = |at| if big_endian { be32(tiff, at) } else { le32(tiff, at) };
        let entries = |directory: usize| {
            let count = u16_at(directory).unwrap_or(0) as usize;
            (0..count).map(move |i| directory.saturating_add(2 + 12 * i)).map_while(move |at| {
                let (tag, kind) = u16_at(at).zip(u16_at(at.saturating_add(2)))?;
                let (count, value) = u32_at(at.saturating_add(4)).zip(u32_at(at.saturating_add(8)))?;
                Some((tag, kind, count as usize, value as usize))
            })
        };
        let data =
            |count: usize, value: usize| tiff.get(value..).and_then(|data| data.get(..count)).unwrap_or_default();
        let main = || u32_at(4).into_iter().flat_map(|main| entries(main as usize));

        let mut found = [None, None];
        for (.., count, value) in main().filter(|(_, kind, ..)| *kind == ASCII) {
            for (name, comfy) in COMFY.iter().zip(&mut found) {
                let data = data(count, value);
                if data.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes())) {
                    let text = data.get(name.len() + 1..).unwrap_or_default();
                    let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
                    *comfy = comfy.take().or(Some(text));
                }
            }
        }
        for ((name, found), comfy) in COMFY.iter().zip(found).zip(0..) {
            if found.is_some() {
                self.note(name);
                self.comfy[comfy] = self.comfy[comfy].take().or(found);
            }
        }
        // A 16-bit value stands in the first half of its field.
        let half = |value: usize| if big_endian { value >> 16 } else { value & 0xFFFF } as u16;
        let turned = main().find(|(tag, ..)| *tag == ORIENTATION).map(|(.., value)| half(value));
        self.orientation = self.orientation.or(turned);
        let exif = main().find(|(tag, ..)| *tag == EXIF_DIRECTORY);
        let user_comment = exif.and_then(|(.., value)| entries(value).find(|(tag, ..)| *tag == USER_COMMENT));
        if let Some((.., count, value)) = user_comment.filter(|_| self.parameters.is_none()) {
            self.parameters = comment(data(count, value), big_endian);
        }
    }

    /// Looks for two things only, whatever else the packet holds.
    fn xmp(&mut self, packet: &str) {
        self.ai_generated |= packet.contains("DigitalSourceType") && packet.contains("rainedAlgorithmicMedia");
        let json = packet
            .split_once("<darkroom:provenance>")
            .and_then(|(_, behind)| behind.split_once("</darkroom:provenance>"))
            .map(|(json, _)| {
                json.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
            });
        if let Some(json) = json.filter(|_| self.provenance.is_none()) {
            self.provenance = serde_json::from_str(&json).ok();
        }
    }

    fn inflate(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        // What fails has cost work too: after that, nothing more is unpacked.
        let budget = std::mem::take(&mut self.budget);
        let unpacked = decompress_to_vec_zlib_with_limit(data, budget).ok()?;
        self.budget = budget - unpacked.len();
        Some(unpacked)
    }

    fn note(&mut self, name: &str) {
        if self.other.len() < MOST_OTHERS && !self.other.iter().any(|known| known == name) {
            self.other.push(name.to_owned());
        }
    }
}

/// The text of an Exif `UserComment`: eight bytes name its encoding. UTF-16 is read in the order of its mark, or as
/// AUTOMATIC1111 writes it, or else in the file's.
fn comment(data: &[u8], big_endian: bool) -> Option<String> {
    let (encoding, text) = data.split_at_checked(8)?;
    if encoding != b"UNICODE\0" {
        let text = String::from_utf8_lossy(text);
        return Some(text.trim_end_matches(['\0', ' ']).to_owned());
    }
    let (text, big_endian) = match text {
        [0xFE, 0xFF, text @ ..] => (text, true),
        [0xFF, 0xFE, text @ ..] => (text, false),
        // Nearly all text begins with a character whose high byte is zero.
        [0, low, ..] if *low != 0 => (text, true),
        [low, 0, ..] if *low != 0 => (text, false),
        _ => (text, big_endian),
    };
    let units = text
        .as_chunks()
        .0
        .iter()
        .map(|unit| if big_endian { u16::from_be_bytes(*unit) } else { u16::from_le_bytes(*unit) });
    Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// A row of blocks, each behind its length, up to an empty one; and what is behind them.
fn gif_blocks(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut data = Vec::new();
    loop {
        let (length, behind) = rest.split_first()?;
        let (block, behind) = behind.split_at_checked(usize::from(*length))?;
        if block.is_empty() {
            return Some((data, behind));
        }
        data.extend(block);
        rest = behind;
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn split_at_zero(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let zero = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..zero], &bytes[zero + 1..]))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn le24(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}
