//! Pictures of 8-bit pixels, and how numbers become them: `round(255 · clamp(x, 0, 1))`, ties to even, as diffusers does.

use tensor::Tensor;

/// A picture of red, green, blue bytes, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb8 {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `3 · width · height` bytes.
    pub pixels: Vec<u8>,
}

impl AsRef<[u8]> for Rgb8 {
    fn as_ref(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for Rgb8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb8({}×{})", self.width, self.height)
    }
}

impl Rgb8 {
    /// The upper left part of at most this size.
    pub fn cropped(&self, width: u32, height: u32) -> Self {
        let [width, height] = [width.min(self.width), height.min(self.height)];
        let row = 3 * self.width as usize;
        let pixels = self.pixels.chunks_exact(row.max(1)).take(height as usize).flat_map(|r| &r[..3 * width as usize]);
        Self { width, height, pixels: pixels.copied().collect() }
    }

    /// Whether all pixels are the same.
    pub fn is_flat(&self) -> bool {
        let (all, _) = self.pixels.as_chunks::<3>();
        all.windows(2).all(|pair| pair[0] == pair[1])
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

/// `picture [H, W, 3]` as bytes.
pub(crate) fn from_tensor(picture: &Tensor, range: Range) -> Rgb8 {
    let [height, width] = [picture.shape()[0] as u32, picture.shape()[1] as u32];
    let values = picture.to_vec();
    let byte = |x: &f32| match range {
        Range::MinusOneToOne => to_u8(x / 2.0 + 0.5),
        Range::ZeroToOne => to_u8(*x),
    };
    Rgb8 { width, height, pixels: values.iter().map(byte).collect() }
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
        let picture = Rgb8 { width: 2, height: 2, pixels: (0..12).collect() };
        assert_eq!(picture.cropped(1, 2), Rgb8 { width: 1, height: 2, pixels: vec![0, 1, 2, 6, 7, 8] });
        assert_eq!(picture.cropped(9, 9), picture);
    }
}
