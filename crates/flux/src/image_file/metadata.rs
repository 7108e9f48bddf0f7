//! What a file tells about its picture: the mark that a model made it, the parameters as text, and all of it as JSON.
//!
//! Text: AUTOMATIC1111's infotext. Mark: IPTC's digital source type in XMP. JSON: PNG key `darkroom`, elsewhere the XMP
//! property `darkroom:provenance`, together with `darkroom:safety`, which is always there.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Found;
use crate::acceleration::Acceleration;
use crate::error::{Error, Result};
use crate::lora::LoraUsed;
use crate::sampler::Sampler;
use crate::schedule::{ScheduleKind, Spacing};

/// How much a file tells about its picture's making. That a model made it is told at every level, as are the program
/// and the safety policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MetadataLevel {
    /// Everything: the picture can be made again from its file.
    #[default]
    Full,
    /// Everything but the prompts.
    Minimal,
    /// Nothing more.
    None,
}

impl fmt::Display for MetadataLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Minimal => "minimal",
            Self::None => "none",
        })
    }
}

impl FromStr for MetadataLevel {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `metadata`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "full" => Ok(Self::Full),
            "minimal" => Ok(Self::Minimal),
            "none" => Ok(Self::None),
            _ => Err(Error::asked("metadata", format!("expected full, minimal or none, got '{name}'"))),
        }
    }
}

/// How a picture was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The program and its version: `darkroom 0.1.0`.
    pub software: String,
    /// The model's name.
    pub model: String,
    /// What was asked for; absent if it is not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What was to be avoided, if anything; only true guidance heeds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Steps from noise to picture.
    pub steps: u32,
    /// Distilled guidance scale; absent for models without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f32>,
    /// Classifier-free guidance scale; 1 is off.
    pub true_cfg: f32,
    /// Pictures that were seen beside the prompt: `redux`, `style:0.7`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub styles: Vec<String>,
    /// Where the noise came from.
    pub seed: u64,
    /// The noise generator, as [`crate::noise::Noise`] is written.
    pub noise: String,
    /// The sampler, as [`crate::sampler::Sampler`] is written; older files say nothing and mean Euler.
    #[serde(default = "euler")]
    pub sampler: String,
    /// What was reused, as [`crate::acceleration::Acceleration`] is written; absent if nothing was.
    #[serde(default = "none", skip_serializing_if = "is_none")]
    pub acceleration: String,
    /// The spacing of sigmas, as [`crate::schedule::ScheduleKind`] is written.
    pub schedule: String,
    /// T5 tokens, padding included.
    pub t5_length: u32,
    /// The type that the transformer computed in, such as `bf16`.
    pub precision: String,
    /// The safety policy's name.
    pub safety: String,
    /// Whether it was decoded in tiles, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_tiling: Option<bool>,
    /// How it was enlarged, one after the other; `width` and `height` are from before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upscaled: Vec<Upscaled>,
    /// What changed the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraUsed>,
    /// The pictures it was made from, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pictures: Option<FromPictures>,
}

/// A picture made larger by a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upscaled {
    /// How many times each side.
    pub scale: u32,
    /// The network's name: `span-x4`, or its file's.
    pub network: String,
}

impl Upscaled {
    /// As AUTOMATIC1111 writes it of its Extras: `, Postprocess upscale by: …`.
    pub(super) fn parameters(&self) -> String {
        format!(", Postprocess upscale by: {}, Postprocess upscaler: {}", self.scale, quoted(&self.network))
    }
}

/// What is told of the pictures that a picture was made from; not the pictures themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FromPictures {
    /// How far it went from the picture that it began from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Which steps that is, as [`crate::conditioning::StrengthMapping`] is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength_mapping: Option<String>,
    /// Whether a mask said what to paint anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mask: bool,
    /// Pixels added on the left, above, on the right and below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outpaint: Option<[u32; 4]>,
    /// What was followed: `picture`, or `canny` for the edges of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// How many reference pictures were looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub references: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Provenance {
    /// What may be told of it at that level, if anything.
    pub(super) fn told(&self, level: MetadataLevel) -> Option<Cow<'_, Self>> {
        match level {
            MetadataLevel::Full => Some(Cow::Borrowed(self)),
            MetadataLevel::Minimal => Some(Cow::Owned(Self { prompt: None, negative_prompt: None, ..self.clone() })),
            MetadataLevel::None => None,
        }
    }

    /// AUTOMATIC1111's infotext: the prompts on lines of their own, then settings by name.
    ///
    /// Control characters other than line ends and tabs are left out: no reader shows them, and some formats cannot hold
    /// them.
    pub fn parameters(&self) -> String {
        let mut text = String::new();
        if let Some(prompt) = &self.prompt {
            let _ = writeln!(text, "{prompt}");
        }
        if let Some(negative) = self.negative_prompt.as_deref().filter(|negative| !negative.is_empty()) {
            let _ = writeln!(text, "Negative prompt: {negative}");
        }
        let (sampler, schedule) = (sampler_label(&self.sampler), schedule_label(&self.schedule));
        let _ = write!(text, "Steps: {}, Sampler: {sampler}, Schedule type: {schedule}, ", self.steps);
        let _ = write!(text, "CFG scale: {}, ", self.true_cfg);
        if let Some(guidance) = self.guidance {
            let _ = write!(text, "Distilled CFG Scale: {guidance}, ");
        }
        let _ = write!(text, "Seed: {}, Size: {}x{}, ", self.seed, self.width, self.height);
        if let Some(strength) = self.from_pictures.as_ref().and_then(|pictures| pictures.strength) {
            let _ = write!(text, "Denoising strength: {strength}, ");
        }
        if !self.loras.is_empty() {
            let hashes: Vec<String> = self.loras.iter().map(|lora| format!("{}: {}", lora.name, lora.hash)).collect();
            let _ = write!(text, "Lora hashes: {}, ", serde_json::Value::from(hashes.join(", ")));
        }
        let _ = write!(text, "Model: {}, Version: {}", quoted(&self.model), quoted(&self.software));
        self.upscaled.iter().for_each(|upscaled| text.push_str(&upscaled.parameters()));
        text.retain(|c| !c.is_control() || c == '\n' || c == '\t');
        text
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of numbers and text is JSON")
    }

    /// What a file says of it at that level.
    pub(super) fn notes(&self, level: MetadataLevel) -> Notes {
        let told = self.told(level);
        Notes {
            parameters: told.as_ref().map(|told| told.parameters()),
            json: told.as_ref().map(|told| told.json()),
            comfy: Vec::new(),
            software: self.software.clone(),
            safety: self.safety.clone(),
            source: TRAINED,
        }
    }
}

impl Found {
    /// What the file of the enlarged picture says at that level.
    pub(super) fn notes(&self, upscaled: &Upscaled, safety: &str, level: MetadataLevel) -> Notes {
        if let Some(provenance) = &self.provenance {
            let mut provenance = Provenance { safety: safety.to_owned(), ..provenance.clone() };
            provenance.upscaled.push(upscaled.clone());
            return provenance.notes(level);
        }
        let comfy = [("prompt", &self.comfy_prompt), ("workflow", &self.comfy_editor)];
        let comfy = comfy.into_iter().filter_map(|(key, text)| Some((key, text.clone()?)));
        let by_model = self.ai_generated || self.parameters.is_some() || self.comfy_workflow().is_some();
        let full = level == MetadataLevel::Full;
        let parameters = self.parameters.as_ref().filter(|_| level != MetadataLevel::None).map(|text| {
            // Without the prompts: from the line of settings on.
            let settings = text.rfind("Steps: ").unwrap_or(text.len());
            format!("{}{}", if full { text } else { &text[settings..] }, upscaled.parameters())
        });
        Notes {
            parameters,
            json: None,
            comfy: if full { comfy.collect() } else { Vec::new() },
            software: concat!("darkroom ", env!("CARGO_PKG_VERSION")).into(),
            safety: safety.to_owned(),
            source: if by_model { TRAINED } else { ENHANCED },
        }
    }
}

/// All that a file says of its picture's making.
pub(super) struct Notes {
    /// Infotext.
    pub(super) parameters: Option<String>,
    /// Our own account.
    pub(super) json: Option<String>,
    /// `ComfyUI`'s texts and their keys, which have a place in PNG only.
    pub(super) comfy: Vec<(&'static str, String)>,
    software: String,
    safety: String,
    /// IPTC's term for where the picture comes from.
    source: &'static str,
}

impl Notes {
    /// The XMP packet: the mark always, and our own account if it is to be there.
    pub(super) fn xmp(&self, with_json: bool) -> String {
        let json = self.json.as_ref().filter(|_| with_json);
        let provenance = json.map_or_else(String::new, |json| {
            // XML has no way to write these two; they can only stand inside JSON strings, which can escape them.
            let json = json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff");
            format!("\n   <darkroom:provenance>{}</darkroom:provenance>", escaped(&json))
        });
        let (software, safety, source) = (escaped(&self.software), escaped(&self.safety), self.source);
        format!(
            r#"<?xpacket begin="{bom}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darkroom="urn:darkroom:1#">
   <Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{software}</xmp:CreatorTool>
   <darkroom:safety>{safety}</darkroom:safety>{provenance}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"#,
            bom = '\u{FEFF}',
        )
    }

    /// A TIFF block, big endian as AUTOMATIC1111 writes it, that holds the parameters as `UserComment`.
    pub(super) fn exif(&self) -> Option<Vec<u8>> {
        let parameters = self.parameters.as_ref()?;
        let mut comment = b"UNICODE\0".to_vec();
        comment.extend(parameters.encode_utf16().flat_map(u16::to_be_bytes));
        let directory = |tag: u16, kind: u16, count: u32, value: u32| {
            let mut bytes = vec![0, 1];
            bytes.extend([tag, kind].map(u16::to_be_bytes).concat());
            bytes.extend([count, value, 0].map(u32::to_be_bytes).concat());
            bytes
        };
        // The header is 8 bytes, each directory with its one entry 18.
        let header = b"MM\0*\0\0\0\x08";
        let main = directory(EXIF_DIRECTORY, 4, 1, 8 + 18);
        let exif = directory(USER_COMMENT, 7, comment.len() as u32, 8 + 18 + 18);
        Some([&header[..], &main, &exif, &comment].concat())
    }
}

/// TIFF tags: where the directory of Exif's own tags is, and the text that infotext goes into.
pub(super) const EXIF_DIRECTORY: u16 = 0x8769;
pub(super) const USER_COMMENT: u16 = 0x9286;

/// IPTC's terms for what a trained model made, and for what one only enhanced.
const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
const ENHANCED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced";

/// What a file without a sampler means.
fn euler() -> String {
    Sampler::Euler.name().into()
}

/// What a file that says nothing of acceleration means.
fn none() -> String {
    Acceleration::None.to_string()
}

fn is_none(acceleration: &str) -> bool {
    acceleration.is_empty() || acceleration == none()
}

/// AUTOMATIC1111's name of a sampler.
fn sampler_label(name: &str) -> &'static str {
    match name.parse().unwrap_or_default() {
        Sampler::Euler => "Euler",
        Sampler::Heun => "Heun",
        Sampler::Dpmpp2m => "DPM++ 2M",
        Sampler::EulerAncestral => "Euler a",
        Sampler::Lcm => "LCM",
    }
}

/// AUTOMATIC1111's name of a schedule. Ours is its "Simple" but for last digits.
fn schedule_label(name: &str) -> &'static str {
    match name.parse().unwrap_or_default() {
        ScheduleKind::Reference => "Simple",
        ScheduleKind::Comfy { spacing, .. } => match spacing {
            Spacing::Simple => "Simple",
            Spacing::Normal => "Normal",
            Spacing::Beta => "Beta",
            Spacing::SgmUniform => "SGM Uniform",
            Spacing::Karras => "Karras",
        },
    }
}

/// A value in infotext: as it is, or as a JSON string if it has a character with a meaning there.
fn quoted(value: &str) -> Cow<'_, str> {
    if value.contains([',', ':', '\n', '"']) {
        Cow::Owned(serde_json::Value::from(value).to_string())
    } else {
        Cow::Borrowed(value)
    }
}

/// Text between XML tags. `json` and names hold no control characters that XML forbids.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        Provenance {
            software: "darkroom 0.1.0".into(),
            model: "flux1-krea-dev".into(),
            prompt: Some("a cat,\nsitting".into()),
            negative_prompt: Some("dogs".into()),
            width: 1024,
            height: 768,
            steps: 28,
            guidance: Some(4.5),
            true_cfg: 1.0,
            seed: u64::MAX,
            ..Provenance::default()
        }
    }

    #[test]
    fn infotext_is_automatic1111s() {
        let expected = "a cat,\nsitting\nNegative prompt: dogs\nSteps: 28, Sampler: Euler, Schedule type: Simple, \
            CFG scale: 1, Distilled CFG Scale: 4.5, Seed: 18446744073709551615, Size: 1024x768, \
            Model: flux1-krea-dev, Version: darkroom 0.1.0";
        assert_eq!(provenance().parameters(), expected);
        let minimal = provenance().told(MetadataLevel::Minimal).unwrap().parameters();
        assert_eq!(minimal, &expected[expected.find("Steps").unwrap()..]);
    }

    #[test]
    fn loras_are_told_as_automatic1111_does() {
        let used = |name: &str, hash: &str| LoraUsed { name: name.into(), weight: 0.5, hash: hash.into() };
        let loras = vec![used("ink", "0123456789ab"), used("a \"b\"", "ba9876543210")];
        let text = Provenance { loras, ..provenance() }.parameters();
        assert!(text.contains(r#", Lora hashes: "ink: 0123456789ab, a \"b\": ba9876543210", Model:"#), "{text}");
    }

    #[test]
    fn infotext_quotes_names_and_leaves_out_control_characters() {
        let odd = Provenance { model: "a, \"b\"".into(), prompt: Some("a\u{0}\u{7}\tb\r\nc".into()), ..provenance() };
        let text = odd.parameters();
        assert!(text.starts_with("a\tb\nc\nNegative"), "{text}");
        assert!(text.contains(r#"Model: "a, \"b\"", Version"#), "{text}");
    }

    #[test]
    fn the_mark_is_in_every_packet() {
        for level in [MetadataLevel::Full, MetadataLevel::Minimal, MetadataLevel::None] {
            let xmp = provenance().notes(level).xmp(true);
            assert!(xmp.contains(">http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia<"));
            assert_eq!(xmp.contains("a cat"), level == MetadataLevel::Full);
            assert_eq!(xmp.contains("1024"), level != MetadataLevel::None);
            assert_eq!(level.to_string().parse::<MetadataLevel>().unwrap(), level);
        }
        assert!("some".parse::<MetadataLevel>().is_err());
    }
}
