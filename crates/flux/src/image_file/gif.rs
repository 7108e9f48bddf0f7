//! A picture as a GIF file: 256 colours of its own, errors spread over the neighbours; XMP and infotext as extensions.
//!
//! Colours are Dekker's `NeuQuant`'s, spread after Floyd and Steinberg; a picture of 256 colours or fewer stays as it is. Source
//! of the XMP extension and its end: Adobe's XMP Specification, part 3.

use std::collections::HashSet;

use color_quant::NeuQuant;

use super::{Encoded, metadata::Notes};
use crate::pixels::Rgb8;

/// What begins the extension that holds XMP.
pub(super) const XMP_EXTENSION: &[u8; 11] = b"XMP DataXMP";

/// How many pixels the colours are learned from; more cost time and gain nothing that is seen.
const LEARNED_FROM: usize = 200_000;

pub(super) fn encode(picture: &Rgb8, notes: &Notes) -> Encoded {
    let side = |pixels: u32| u16::try_from(pixels).map_err(|_| "a side has at most 65535 pixels");
    let (width, height) = (side(picture.width())?, side(picture.height())?);
    let (palette, indices) = indexed(picture);
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &palette)?;
    encoder.write_frame(&gif::Frame::from_indexed_pixels(width, height, indices, None))?;
    drop(encoder);

    // Behind the header and the colours, whose number it tells.
    let at = 13 + 3 * (2 << (bytes[10] & 7));
    let mut extensions = Vec::new();
    if let Some(parameters) = &notes.parameters {
        extensions.extend([0x21, 0xFE]);
        for block in parameters.as_bytes().chunks(255) {
            extensions.push(block.len() as u8);
            extensions.extend(block);
        }
        extensions.push(0);
    }
    // The packet is no row of blocks: whoever reads it as one lands on a byte of its end that counts to the very last.
    extensions.extend([0x21, 0xFF, XMP_EXTENSION.len() as u8]);
    extensions.extend(XMP_EXTENSION);
    extensions.extend(notes.xmp(true).as_bytes());
    extensions.push(1);
    extensions.extend((0..=255).rev());
    extensions.push(0);
    bytes.splice(at..at, extensions);
    Ok(bytes)
}

/// Red, green and blue of each colour; which colour each pixel has.
fn indexed(picture: &Rgb8) -> (Vec<u8>, Vec<u8>) {
    let (pixels, _) = picture.as_ref().as_chunks::<3>();
    let mut colours = HashSet::new();
    let few = pixels.iter().all(|pixel| {
        colours.insert(*pixel);
        colours.len() <= 256
    });
    if few {
        let mut palette: Vec<[u8; 3]> = colours.into_iter().collect();
        palette.sort_unstable();
        let index = |pixel: &[u8; 3]| palette.binary_search(pixel).unwrap_or(0) as u8;
        let indices = pixels.iter().map(index).collect();
        return (palette.concat(), indices);
    }
    let opaque: Vec<u8> = pixels.iter().flat_map(|&[r, g, b]| [r, g, b, 255]).collect();
    let one_of = (pixels.len() / LEARNED_FROM).clamp(1, 30);
    let quantizer = NeuQuant::new(one_of as i32, 256, &opaque);
    let palette = quantizer.color_map_rgb();
    let indices = spread(picture, |pixel| {
        let index = quantizer.index_of(&[pixel[0], pixel[1], pixel[2], 255]);
        let colour = 3 * index;
        (index as u8, [palette[colour], palette[colour + 1], palette[colour + 2]])
    });
    (palette, indices)
}

/// The nearest colour of each pixel, what is wrong with it given on: 7/16 to the right, 3/16, 5/16 and 1/16 below.
fn spread(picture: &Rgb8, nearest: impl Fn([u8; 3]) -> (u8, [u8; 3])) -> Vec<u8> {
    let width = picture.width() as usize;
    let mut indices = Vec::with_capacity(picture.as_ref().len() / 3);
    // Sixteenths owed to this row and the next; one more pixel at each end catches what falls beside.
    let mut owed = [vec![[0_i32; 3]; width + 2], vec![[0_i32; 3]; width + 2]];
    for row in picture.as_ref().chunks_exact(3 * width) {
        for (x, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
            let wanted = [0, 1, 2].map(|c| (i32::from(pixel[c]) + (owed[0][x + 1][c] + 8) / 16).clamp(0, 255));
            let (index, is) = nearest(wanted.map(|v| v as u8));
            indices.push(index);
            for c in 0..3 {
                let error = wanted[c] - i32::from(is[c]);
                owed[0][x + 2][c] += 7 * error;
                owed[1][x][c] += 3 * error;
                owed[1][x + 1][c] += 5 * error;
                owed[1][x + 2][c] += error;
            }
        }
        owed.swap(0, 1);
        owed[1].fill([0; 3]);
    }
    indices
}
