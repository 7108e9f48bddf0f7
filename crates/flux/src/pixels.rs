//! Pictures of 8-bit pixels, and how numbers become them: `round(255 · clamp(x, 0, 1))`, ties to even, as diffusers does.

use tensor::Tensor;

/// A picture of red, green and blue bytes, row by row from the top left, without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb8 {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Rgb8 {
    /// A picture of `width` by `height` pixels.
    ///
    /// # Panics
    /// If `pixels` are not `width · height · 3` bytes, or none.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Self {
        let expected = width as usize * height as usize * 3;
        assert!(expected > 0, "a picture of {width}x{height} pixels has nothing to show");
        assert_eq!(pixels.len(), expected, "bytes of a picture of {width}x{height} pixels");
        Self { width, height, pixels }
    }

    /// Pixels in a row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Red, green and blue at column `x` of row `y`.
    ///
    /// # Panics
    /// If it is outside of the picture.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "pixel ({x}, {y}) is outside of {self:?}");
        let start = 3 * (y as usize * self.width as usize + x as usize);
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    /// The upper left part of at most this size.
    #[must_use]
    pub fn cropped(&self, width: u32, height: u32) -> Self {
        let [width, height] = [width.clamp(1, self.width), height.clamp(1, self.height)];
        let rows = self.pixels.chunks_exact(3 * self.width as usize).take(height as usize);
        Self::new(width, height, rows.flat_map(|row| &row[..3 * width as usize]).copied().collect())
    }

    /// Whether all pixels are the same.
    pub fn is_flat(&self) -> bool {
        let (all, _) = self.pixels.as_chunks::<3>();
        all.windows(2).all(|pair| pair[0] == pair[1])
    }
}

impl AsRef<[u8]> for Rgb8 {
    fn as_ref(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for Rgb8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb8({}x{})", self.width, self.height)
    }
}

/// What black and white are in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// The autoencoder's.
    MinusOneToOne,
    /// The tiny autoencoder's.
    ZeroToOne,
}

/// `x` of 0 … 1 as a byte; out of range is clamped, not-a-number is 0.
pub(crate) fn to_u8(x: f32) -> u8 {
    (255.0 * x.clamp(0.0, 1.0)).round_ties_even() as u8
}

/// `picture [H, W, 3]` as bytes; `None` if a value is not a number.
pub(crate) fn from_tensor(picture: &Tensor, range: Range) -> Option<Rgb8> {
    let [height, width] = [picture.shape()[0] as u32, picture.shape()[1] as u32];
    let byte = |x: f32| match range {
        _ if x.is_nan() => None,
        Range::MinusOneToOne => Some(to_u8(x / 2.0 + 0.5)),
        Range::ZeroToOne => Some(to_u8(x)),
    };
    let pixels: Option<Vec<u8>> = picture.to_vec().into_iter().map(byte).collect();
    Some(Rgb8::new(width, height, pixels?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_to_even() {
        assert_eq!([0.0, 1.0, -3.0, 7.0, 0.5 / 255.0, 1.5 / 255.0, f32::NAN].map(to_u8), [0, 255, 0, 255, 0, 2, 0]);
    }

    #[test]
    fn cropping_keeps_the_upper_left() {
        let picture = Rgb8::new(2, 2, (0..12).collect());
        assert_eq!(picture.cropped(1, 2), Rgb8::new(1, 2, vec![0, 1, 2, 6, 7, 8]));
        assert_eq!(picture.cropped(9, 9), picture);
    }
}
