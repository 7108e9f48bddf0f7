//! Which member of the family a model is, and what is usual for it. Weights do not tell Krea from dev, nor Kontext: names do.

use super::Kind;

/// A member of the FLUX.1 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// FLUX.1 Krea \[dev\].
    Krea,
    /// FLUX.1 \[dev\].
    Dev,
    /// FLUX.1 \[schnell\]: few steps, no guidance.
    Schnell,
    /// FLUX.1 Kontext \[dev\]: looks at reference pictures.
    Kontext,
    /// FLUX.1 Fill \[dev\]: paints a part of a picture.
    Fill,
    /// FLUX.1 Canny \[dev\]: follows edges.
    Canny,
    /// FLUX.1 Depth \[dev\]: follows a depth map.
    Depth,
    /// Follows a control picture, nobody says of what.
    Control,
    /// Another model of the architecture.
    Other,
}

impl Family {
    /// Told by a file's or folder's name.
    pub fn from_name(name: &str) -> Self {
        let name = name.to_lowercase();
        if name.contains("kontext") {
            Self::Kontext
        } else if name.contains("krea") {
            Self::Krea
        } else if name.contains("schnell") {
            Self::Schnell
        } else if name.contains("fill") {
            Self::Fill
        } else if name.contains("canny") {
            Self::Canny
        } else if name.contains("depth") {
            Self::Depth
        } else if name.contains("flux1-dev") || name.contains("flux.1-dev") {
            Self::Dev
        } else {
            Self::Other
        }
    }

    /// What a name made of a model is, once its weights were seen.
    pub(super) fn seen(self, name: &str, kind: Option<Kind>) -> Self {
        let painted = [Self::Fill, Self::Canny, Self::Depth];
        match kind {
            Some(Kind::Fill) => Self::Fill,
            Some(Kind::Control) if name.to_lowercase().contains("depth") => Self::Depth,
            Some(Kind::Control) if name.to_lowercase().contains("canny") => Self::Canny,
            Some(Kind::Control) => Self::Control,
            // A name that merely sounds like it.
            Some(Kind::Base) if painted.contains(&self) && name.to_lowercase().contains("dev") => Self::Dev,
            Some(Kind::Base) if painted.contains(&self) => Self::Other,
            _ => self,
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Krea => "FLUX.1 Krea [dev]",
            Self::Dev => "FLUX.1 [dev]",
            Self::Schnell => "FLUX.1 [schnell]",
            Self::Kontext => "FLUX.1 Kontext [dev]",
            Self::Fill => "FLUX.1 Fill [dev]",
            Self::Canny => "FLUX.1 Canny [dev]",
            Self::Depth => "FLUX.1 Depth [dev]",
            Self::Control => "FLUX.1 with a control picture",
            Self::Other => "FLUX.1 architecture",
        }
    }

    /// What is usual for it: guidance and steps as in BFL's own programs.
    pub fn defaults(self) -> Defaults {
        let krea = Defaults { width: 1024, height: 1024, steps: 28, guidance: 4.5, true_cfg: 1.0, t5_length: 512 };
        match self {
            Self::Krea | Self::Other => krea,
            Self::Dev => Defaults { guidance: 3.5, ..krea },
            Self::Schnell => Defaults { steps: 4, t5_length: 256, ..krea },
            Self::Kontext => Defaults { steps: 30, guidance: 2.5, ..krea },
            Self::Fill | Self::Canny => Defaults { steps: 50, guidance: 30.0, ..krea },
            Self::Depth | Self::Control => Defaults { steps: 50, guidance: 10.0, ..krea },
        }
    }
}

/// Pixels of the shortest side that FLUX.1 draws well. A model whose own size is below draws that size alone.
pub const LEAST_SIDE: u32 = 256;

/// Settings that a request gets unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Evaluations of the transformer.
    pub steps: u32,
    /// The distilled guidance scale.
    pub guidance: f32,
    /// Classifier-free guidance; off at 1.
    pub true_cfg: f32,
    /// T5 tokens, padding included.
    pub t5_length: usize,
}

impl Default for Defaults {
    fn default() -> Self {
        Family::Krea.defaults()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_weights_tell_the_member() {
        let told = |name: &str, kind| Family::from_name(name).seen(name, Some(kind));
        assert_eq!(told("flux1-dev-kontext_fp8_scaled", Kind::Kontext), Family::Kontext);
        assert_eq!(told("FLUX.1-Kontext-dev", Kind::Kontext), Family::Kontext);
        assert_eq!(told("flux1-fill-dev", Kind::Fill), Family::Fill);
        assert_eq!(told("my-model", Kind::Fill), Family::Fill);
        assert_eq!(told("flux1-dev", Kind::Control), Family::Control);
        assert_eq!(told("flux1-depth-dev", Kind::Control), Family::Depth);
        assert_eq!(told("flux1-canny-dev", Kind::Control), Family::Canny);
        assert_eq!(told("landfills-of-krea", Kind::Base), Family::Krea);
        assert_eq!(told("landfills", Kind::Base), Family::Other);
        assert_eq!(told("flux1-krea-dev", Kind::Base), Family::Krea);
        let guidance = [Family::Fill, Family::Canny, Family::Depth, Family::Kontext].map(|f| f.defaults().guidance);
        assert_eq!(guidance, [30.0, 30.0, 10.0, 2.5]);
    }
}
