//! Kinds of transformers: what they take beside noise and text.

use super::Family;

/// What a transformer takes beside noise and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: dev, Krea, schnell.
    Base,
    /// The latents of a control picture as further channels: Canny, Depth.
    Control,
    /// The latents of the picture without what is to be painted, and the mask, as further channels.
    Fill,
    /// Reference pictures as further tokens. Its tensors are those of [`Kind::Base`]: only names tell.
    Kontext,
}

impl Kind {
    /// Told by the channels of `img_in`. `latent` are an autoencoder's channels, `factor` its pixels a latent.
    pub fn of(family: Family, in_channels: usize, latent: usize, factor: usize) -> Option<Self> {
        let packed = 4 * latent;
        match in_channels {
            n if n == packed && family == Family::Kontext => Some(Self::Kontext),
            n if n == packed => Some(Self::Base),
            n if n == 2 * packed => Some(Self::Control),
            n if n == 2 * packed + 4 * factor * factor => Some(Self::Fill),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_tell_the_kind() {
        let kind = |family, channels| Kind::of(family, channels, 16, 8);
        assert_eq!(kind(Family::Krea, 64), Some(Kind::Base));
        assert_eq!(kind(Family::Kontext, 64), Some(Kind::Kontext));
        assert_eq!(kind(Family::Other, 128), Some(Kind::Control));
        assert_eq!(kind(Family::Other, 384), Some(Kind::Fill));
        assert_eq!(kind(Family::Other, 96), None);
    }
}
