//! From a shape and a tier of resolution to pixels: the tables of the gateway that FLUX.1 Krea \[dev\] is served by.
//!
//! Any ratio becomes the nearest row, any tier the nearest tier: `|ln(asked / row)|`, the first row of two as near. The 1K rows are
//! the gateway's own, to the pixel. Other tiers are these rows times a factor, down to multiples of 16, which the model renders
//! without a crop; 4K is the 1K picture enlarged four times. Source: Lumenfall's page on FLUX.1 Krea \[dev\].

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// Largest side of a picture, pixels.
pub const MAX_SIDE: u32 = 8192;
/// Largest picture, pixels: 4 MP are what the model can do with sense, four times that is refused.
pub const MAX_PIXELS: u64 = 16 << 20;

/// A shape of the gateway's, and its size at 1K, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Width to height, as people say it.
    pub aspect: (u32, u32),
    /// Width at 1K.
    pub width: u32,
    /// Height at 1K.
    pub height: u32,
}

/// All shapes in the order in which ties are decided.
pub const ROWS: [Row; 11] = [
    row(1, 1, 1024, 1024),
    row(4, 3, 1183, 887),
    row(3, 4, 887, 1182),
    row(4, 5, 916, 1145),
    row(5, 4, 1145, 916),
    row(2, 3, 836, 1254),
    row(3, 2, 1254, 836),
    row(9, 16, 768, 1365),
    row(16, 9, 1365, 768),
    row(9, 21, 670, 1564),
    row(21, 9, 1563, 670),
];

const fn row(w: u32, h: u32, width: u32, height: u32) -> Row {
    Row { aspect: (w, h), width, height }
}

/// How large a picture is, whatever its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A quarter of a megapixel.
    HalfK,
    /// About 2²⁰ pixels: what FLUX.1 was made for.
    #[default]
    OneK,
    /// Twice and a quarter as many.
    OneAndAHalfK,
    /// Four times as many, 2048×2048 at most.
    TwoK,
    /// Sixteen times as many: a 1K picture enlarged.
    FourK,
}

impl Tier {
    /// All of them, in the order in which ties are decided.
    pub const ALL: [Self; 5] = [Self::HalfK, Self::OneK, Self::OneAndAHalfK, Self::TwoK, Self::FourK];

    /// Side of the square, in units of 1024 pixels.
    fn side(self) -> f64 {
        match self {
            Self::HalfK => 0.5,
            Self::OneK => 1.0,
            Self::OneAndAHalfK => 1.5,
            Self::TwoK => 2.0,
            Self::FourK => 4.0,
        }
    }

    /// The nearest tier to a side in units of 1024 pixels.
    fn nearest(side: f64) -> Self {
        nearest(Self::ALL, Self::side, side)
    }

    /// The picture of this tier and shape.
    pub fn size(self, aspect: Aspect) -> Size {
        let Row { width, height, .. } = aspect.nearest();
        let scaled = |pixels: u32| ((f64::from(pixels) * self.side()) as u32 / 16).max(1) * 16;
        match self {
            Self::OneK => Size { width, height, upscale: None },
            Self::FourK => Size { width, height, upscale: Some(4) },
            _ => Size { width: scaled(width), height: scaled(height), upscale: None },
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}K", self.side())
    }
}

impl FromStr for Tier {
    type Err = Error;

    /// `1K`, or any other number of thousands (`3K` becomes 4K); or megapixels, `0.25` or `1MP`.
    ///
    /// # Errors
    /// [`Error::Asked`] about `resolution`.
    fn from_str(text: &str) -> Result<Self> {
        let expected = || {
            let tiers = "0.5K, 1K, 1.5K, 2K, 4K, or megapixels as 0.25 or 1";
            Error::asked("resolution", format!("expected {tiers}, got '{text}'"))
        };
        let lower = text.trim().to_ascii_lowercase();
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_normal() && *n > 0.0);
        let side = match lower.strip_suffix('k') {
            Some(thousands) => number(thousands),
            None => number(lower.strip_suffix("mp").unwrap_or(&lower)).map(f64::sqrt),
        };
        side.map(Self::nearest).ok_or_else(expected)
    }
}

/// Width to height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aspect {
    width: f64,
    height: f64,
}

impl Aspect {
    /// The square.
    pub const SQUARE: Self = Self { width: 1.0, height: 1.0 };

    /// Width divided by height.
    pub fn ratio(self) -> f64 {
        self.width / self.height
    }

    /// The row that is nearest to it.
    pub fn nearest(self) -> Row {
        nearest(ROWS, |row| f64::from(row.aspect.0) / f64::from(row.aspect.1), self.ratio())
    }
}

impl FromStr for Aspect {
    type Err = Error;

    /// `3:2`, `2.35:1`.
    ///
    /// # Errors
    /// [`Error::Asked`] about `aspect`.
    fn from_str(text: &str) -> Result<Self> {
        let expected = || Error::asked("aspect", format!("expected WIDTH:HEIGHT, such as 3:2 or 2.35:1, got '{text}'"));
        let (width, height) = text.split_once([':', '/']).ok_or_else(expected)?;
        let side = |text: &str| text.trim().parse::<f64>().ok().filter(|side| side.is_normal() && *side > 0.0);
        let aspect = Self { width: side(width).ok_or_else(expected)?, height: side(height).ok_or_else(expected)? };
        if aspect.ratio().is_normal() { Ok(aspect) } else { Err(expected()) }
    }
}

/// The candidate whose value is nearest to `asked` by its logarithm; the first of several as near.
fn nearest<T: Copy, const N: usize>(candidates: [T; N], value: impl Fn(T) -> f64, asked: f64) -> T {
    /// Distances that are equal on paper, of 9:16 and 16:9 from 1:1, differ in their last bits.
    const EQUAL: f64 = 1e-9;
    let distance = |candidate: T| (asked.ln() - value(candidate).ln()).abs();
    let mut best = candidates[0];
    for candidate in candidates {
        if distance(candidate) < distance(best) - EQUAL {
            best = candidate;
        }
    }
    best
}

/// What becomes of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rendered, pixels.
    pub width: u32,
    /// Rendered, pixels.
    pub height: u32,
    /// How many times it is enlarged afterwards, if it is.
    pub upscale: Option<u32>,
}

/// A size asked for in one or several of the gateway's ways; what is most exact decides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish<'a> {
    /// `1024x768` (also `1024*768`): exactly that, and nothing else counts. `16:9`: as `aspect`. `auto`: nothing.
    pub size: Option<&'a str>,
    /// The shape; without it a square.
    pub aspect: Option<Aspect>,
    /// The tier; without it 1K.
    pub resolution: Option<Tier>,
}

impl Wish<'_> {
    /// The pixels.
    ///
    /// ```
    /// use flux::sizes::Wish;
    ///
    /// let wish = Wish { aspect: Some("7:4".parse()?), resolution: Some("1K".parse()?), ..Wish::default() };
    /// let size = wish.size()?;
    /// assert_eq!((size.width, size.height, size.upscale), (1365, 768, None));
    /// # Ok::<(), flux::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Asked`] about `size`.
    pub fn size(&self) -> Result<Size> {
        let tier = self.resolution.unwrap_or_default();
        let shape = self.aspect.unwrap_or(Aspect::SQUARE);
        let Some(text) = self.size.filter(|text| *text != "auto") else { return Ok(tier.size(shape)) };
        if let Ok(aspect) = text.parse() {
            return Ok(tier.size(aspect));
        }
        let sides = text.split_once(['x', 'X', '×', '*']);
        let side = |text: &str| text.trim().parse::<u32>().ok().filter(|&side| side > 0);
        match sides.map(|(w, h)| (side(w), side(h))) {
            Some((Some(width), Some(height))) => Ok(Size { width, height, upscale: None }),
            _ => Err(Error::asked("size", format!("expected WIDTHxHEIGHT, such as 1024x768, or W:H, got '{text}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(aspect: &str, tier: &str) -> (u32, u32, Option<u32>) {
        let wish = Wish { aspect: Some(aspect.parse().unwrap()), resolution: Some(tier.parse().unwrap()), size: None };
        let Size { width, height, upscale } = wish.size().unwrap();
        (width, height, upscale)
    }

    /// The gateway's page, row by row.
    #[test]
    fn the_rows_at_1k() {
        let rows = [
            ("4:3", 1183, 887),
            ("4:5", 916, 1145),
            ("5:4", 1145, 916),
            ("1:1", 1024, 1024),
            ("3:4", 887, 1182),
            ("2:3", 836, 1254),
            ("3:2", 1254, 836),
            ("9:16", 768, 1365),
            ("16:9", 1365, 768),
            ("9:21", 670, 1564),
            ("21:9", 1563, 670),
        ];
        assert_eq!(rows.len(), ROWS.len());
        for (aspect, width, height) in rows {
            assert_eq!(of(aspect, "1K"), (width, height, None), "{aspect}");
            assert_eq!(of(aspect, "4K"), (width, height, Some(4)), "{aspect}");
            let wish = Wish { size: Some(aspect), ..Wish::default() };
            assert_eq!(wish.size().unwrap(), Size { width, height, upscale: None }, "{aspect}");
        }
    }

    #[test]
    fn every_tier_renders_what_the_model_can() {
        for row in ROWS {
            let aspect = format!("{}:{}", row.aspect.0, row.aspect.1);
            for (tier, most) in [("0.5K", 512 * 512), ("1.5K", 1536 * 1536), ("2K", 2048 * 2048)] {
                let (width, height, upscale) = of(&aspect, tier);
                assert!(width % 16 == 0 && height % 16 == 0 && upscale.is_none(), "{aspect} {tier}");
                assert!(width * height <= most && width * height > most / 10 * 9, "{aspect} {tier}: {width}×{height}");
                let ratio = f64::from(width) / f64::from(height);
                let asked = f64::from(row.aspect.0) / f64::from(row.aspect.1);
                assert!((ratio / asked - 1.0).abs() < 0.04, "{aspect} {tier}: {ratio}");
            }
        }
        assert_eq!(of("1:1", "0.5K"), (512, 512, None));
        assert_eq!(of("1:1", "2K"), (2048, 2048, None));
        assert_eq!(of("16:9", "1.5K"), (2032, 1152, None));
    }

    #[test]
    fn anything_becomes_what_is_nearest() {
        for (asked, row) in [
            ("7:1", (21, 9)),
            ("1:8", (9, 21)),
            ("2.35:1", (21, 9)),
            ("1.9:1", (16, 9)),
            ("1000:999", (1, 1)),
            ("1.91/1", (16, 9)),
        ] {
            assert_eq!(asked.parse::<Aspect>().unwrap().nearest().aspect, row, "{asked}");
        }
        for (asked, tier) in [
            ("1k", Tier::OneK),
            ("3K", Tier::FourK),
            ("8K", Tier::FourK),
            ("0.1K", Tier::HalfK),
            ("1.2K", Tier::OneK),
            ("0.25", Tier::HalfK),
            ("0.25MP", Tier::HalfK),
            ("1", Tier::OneK),
            ("4 MP", Tier::TwoK),
            ("100MP", Tier::FourK),
        ] {
            assert_eq!(asked.parse::<Tier>().unwrap(), tier, "{asked}");
        }
        assert_eq!(Tier::ALL.map(|tier| tier.to_string()), ["0.5K", "1K", "1.5K", "2K", "4K"]);
    }

    /// The page's example is of a model with two shapes; a true tie goes to the first.
    #[test]
    fn ties() {
        let of = |asked: f64, rows: [f64; 2]| nearest(rows, |row| row, asked);
        assert_eq!(of(7.0, [4.0, 8.0]), 8.0);
        assert_eq!(of(4.0, [2.0, 8.0]), 2.0);
        assert_eq!(of(4.0, [8.0, 2.0]), 8.0);
        assert_eq!(of(1.0, [16.0 / 9.0, 9.0 / 16.0]), 16.0 / 9.0);
    }

    #[test]
    fn a_size_beats_all_else() {
        let aspect = Some("16:9".parse().unwrap());
        let wish = |size| Wish { size: Some(size), aspect, resolution: Some(Tier::FourK) };
        for size in ["640x480", "640*480", " 640 × 480", "640X480"] {
            assert_eq!(wish(size).size().unwrap(), Size { width: 640, height: 480, upscale: None });
        }
        assert_eq!(wish("1:1").size().unwrap(), Size { width: 1024, height: 1024, upscale: Some(4) });
        assert_eq!(wish("auto").size().unwrap(), Size { width: 1365, height: 768, upscale: Some(4) });
        for wrong in ["", "640", "0x5", "x", "-1x5", "a:b", "1:0", "99999999999x1"] {
            assert!(wish(wrong).size().unwrap_err().to_string().starts_with("size: expected"), "{wrong}");
        }
        for wrong in ["", "k", "0K", "-1K", "nan", "infK", "1KK", "big"] {
            assert!(wrong.parse::<Tier>().unwrap_err().to_string().starts_with("resolution: expected"), "{wrong}");
        }
        for wrong in ["", "1", "1:", "0:1", "nan:1", "1e300:1e-300", "1:inf"] {
            assert!(wrong.parse::<Aspect>().unwrap_err().to_string().starts_with("aspect: expected"), "{wrong}");
        }
    }
}
