//! The one internal request that every dialect ends in. Kept in the journal as JSON, so it holds everything a picture depends
//! on: the seed is chosen when the job is accepted, defaults are filled in, pictures are blobs once they were fetched.

use flux::{image_file::Format, sampler::Sampler, schedule::ScheduleKind};
use serde::{Deserialize, Serialize};

use crate::{blobs::BlobId, data_uri::is_data, error::Fault};

/// What to make. All fields are decided: nothing is a default any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The model's name on this server's shelf (not an alias).
    pub model: String,
    /// What the pictures given are for.
    pub mode: Mode,
    /// May be empty for variations.
    pub prompt: String,
    /// Used where `true_cfg` is above 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The size of the finished picture.
    pub size: OutputSize,
    /// 1 to 50 for vendors' dialects.
    pub steps: u32,
    /// The distilled guidance scale.
    pub guidance: f32,
    /// Classifier-free guidance; off at 1.
    #[serde(default = "one")]
    pub true_cfg: f32,
    /// Of the first picture; picture i has `seed + i` (wrapping) and is what a request for it alone would give.
    pub seed: u64,
    /// How many pictures.
    pub pictures: u32,
    /// The picture that is begun from or varied, at most one for vendors' dialects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Source>,
    /// White (or transparent) is painted anew; `Mode::Inpaint` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Source>,
    /// The mask says what stays instead.
    #[serde(default)]
    pub mask_inverted: bool,
    /// The file format of the results.
    #[serde(with = "by_name")]
    pub format: Format,
    /// 0 to 100; nothing to PNG and GIF.
    pub quality: u8,
    /// How many velocities are reused.
    pub acceleration: Acceleration,
    /// Whether the caller wants the picture gate; the operator's policy may insist.
    pub safety: bool,
    /// What becomes of a picture that the gate flags.
    pub on_flagged: OnFlagged,
    /// Pictures of progress.
    #[serde(default)]
    pub previews: Previews,
    /// How the velocity is followed.
    #[serde(default, with = "by_name")]
    pub sampler: Sampler,
    /// Whose noise schedule.
    #[serde(default, with = "by_name")]
    pub schedule: ScheduleKind,
    /// LoRAs by the name of their file in the operator's folder, with weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<(String, f32)>,
    /// Seconds that the results are kept.
    pub keep_seconds: u64,
    /// Seconds that the model stays loaded afterwards if nothing else is asked of it; `u64::MAX`: for good. None: as the operator
    /// says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive_seconds: Option<u64>,
}

impl Ask {
    /// A picture from a prompt alone: 1024×1024, 28 steps, guidance 4.5, seed 0, as PNG, kept for a day.
    pub fn text(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            mode: Mode::Text,
            prompt: prompt.into(),
            negative_prompt: None,
            size: OutputSize::Exact { width: 1024, height: 1024 },
            steps: 28,
            guidance: 4.5,
            true_cfg: one(),
            seed: 0,
            pictures: 1,
            given: Vec::new(),
            mask: None,
            mask_inverted: false,
            format: Format::Png,
            quality: 90,
            acceleration: Acceleration::None,
            safety: true,
            on_flagged: OnFlagged::Drop,
            previews: Previews::default(),
            sampler: Sampler::default(),
            schedule: ScheduleKind::default(),
            loras: Vec::new(),
            keep_seconds: 24 * 3600,
            keep_alive_seconds: None,
        }
    }

    /// Pictures and masks given.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.given.iter().chain(&self.mask)
    }

    /// The same, to be changed.
    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        self.given.iter_mut().chain(&mut self.mask)
    }

    /// Those that are in the store.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobId> {
        self.sources().filter_map(|source| match source {
            Source::Blob { id, .. } => Some(id),
            Source::Url { .. } => None,
        })
    }

    /// Whether it asks for the same, whatever seed was chosen and whatever name its pictures got in the store: a request that was
    /// sent again.
    pub fn is_again(&self, other: &Self) -> bool {
        let plain = |ask: &Self| {
            let mut ask = Self { seed: 0, ..ask.clone() };
            ask.sources_mut().for_each(|source| {
                *source = Source::Url { url: String::new(), field: source.field().to_owned() };
            });
            ask
        };
        plain(self) == plain(other)
    }

    /// A fault about a picture, where the library has its own words for the fields (`image`, `mask`), in the vendor's.
    #[must_use]
    pub fn named(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Picture { field, kind, message } => {
                let source = match field.as_str() {
                    "image" => self.given.first(),
                    "mask" => self.mask.as_ref(),
                    _ => None,
                };
                let field = source.map_or(field, |source| source.field().to_owned());
                Fault::Picture { field, kind, message }
            }
            other => other,
        }
    }
}

fn one() -> f32 {
    1.0
}

/// What the pictures given are for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// From the prompt alone.
    Text,
    /// Begun from a picture; 0 keeps all of it, 1 nothing.
    Image {
        /// 0 to 1.
        strength: f32,
    },
    /// The mask's part of a picture is painted anew.
    Inpaint {
        /// 0 to 1.
        strength: f32,
    },
    /// A variation of a picture, with Redux where the model has it. Where it has not: begun from the picture at
    /// [`REDUX_STRENGTH`], which the logs say.
    Redux,
}

/// The strength that stands in for Redux where the model has none.
pub const REDUX_STRENGTH: f32 = 0.85;

/// The size of the finished picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputSize {
    /// Pixels, exactly.
    Exact {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// The first picture's own size, shrunk until no side is above `most`, each side rounded to a multiple of `multiple` (1: not).
    Follow {
        /// Pixels.
        most: u32,
        /// Pixels.
        multiple: u32,
    },
}

/// A picture that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// To be fetched: `http:`, `https:` or `data:`, and the vendor's name of the field for errors.
    Url {
        /// As given.
        url: String,
        /// `image_url`, `image` …
        field: String,
    },
    /// In the blob store, and the vendor's name of the field.
    Blob {
        /// The picture.
        id: BlobId,
        /// As above.
        field: String,
    },
}

impl Source {
    /// The vendor's name of the field that it was given in.
    pub fn field(&self) -> &str {
        match self {
            Self::Url { field, .. } | Self::Blob { field, .. } => field,
        }
    }

    /// Whether it is a URL that carries its bytes in itself.
    pub fn is_data(&self) -> bool {
        matches!(self, Self::Url { url, .. } if is_data(url))
    }
}

/// The modes of reuse that the gateways name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// Every velocity is computed.
    #[default]
    None,
    /// `flux::acceleration`'s `regular`.
    Regular,
    /// Its `high`.
    High,
}

impl Acceleration {
    /// By the gateways' names; `none` where none is named.
    pub fn named(name: Option<&str>) -> Self {
        match name {
            Some("regular") => Self::Regular,
            Some("high") => Self::High,
            _ => Self::None,
        }
    }
}

/// What becomes of a picture that the gate flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFlagged {
    /// It is left out; if all are, the job fails with [`crate::error::Fault::Flagged`].
    #[default]
    Drop,
    /// A black one takes its place, marked as flagged.
    Black,
}

/// Pictures of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previews {
    /// How many for each picture, evenly over the steps; 0: none.
    pub count: u8,
    /// Enlarged to the finished picture's size and in its format; otherwise small JPEGs.
    pub full_size: bool,
}

/// Types of `flux` that have a name: `Display` and `FromStr` are their spelling.
pub(crate) mod by_name {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
