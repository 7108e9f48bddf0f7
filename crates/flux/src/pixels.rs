//! Pictures as they are shown: 8 bits a channel.

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
