//! Which member of the family a model is, and what is usual for it. Weights do not tell Krea from dev: names do.

/// A member of the FLUX.1 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// FLUX.1 Krea \[dev\].
    Krea,
    /// FLUX.1 \[dev\].
    Dev,
    /// FLUX.1 \[schnell\]: few steps, no guidance.
    Schnell,
    /// Another model of the architecture.
    Other,
}

impl Family {
    /// Told by a file's or folder's name.
    pub fn from_name(name: &str) -> Self {
        let name = name.to_lowercase();
        if name.contains("krea") {
            Self::Krea
        } else if name.contains("schnell") {
            Self::Schnell
        } else if name.contains("flux1-dev") || name.contains("flux.1-dev") {
            Self::Dev
        } else {
            Self::Other
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Krea => "FLUX.1 Krea [dev]",
            Self::Dev => "FLUX.1 [dev]",
            Self::Schnell => "FLUX.1 [schnell]",
            Self::Other => "FLUX.1 architecture",
        }
    }

    /// What is usual for it.
    pub fn defaults(self) -> Defaults {
        let krea = Defaults { width: 1024, height: 1024, steps: 28, guidance: 4.5, true_cfg: 1.0, t5_length: 512 };
        match self {
            Self::Krea | Self::Other => krea,
            Self::Dev => Defaults { guidance: 3.5, ..krea },
            Self::Schnell => Defaults { steps: 4, t5_length: 256, ..krea },
        }
    }
}

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
