//! Vendors' words: their JSON to an [`crate::ask::Ask`], and what became of it back to their JSON. Pure functions, one module for
//! each vendor; the HTTP around them is in `crate::http`.

pub mod fal;
pub mod native;
pub mod openai;
pub mod replicate;
pub mod sdapi;

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};
use flux::image_file::Format;
use serde_json::{Map, Value};

use crate::{
    ask::OutputSize,
    clock::Millis,
    data_uri::is_data,
    error::{Fault, Rule},
    fields::Values,
};

/// Characters of the longest prompt taken; the model reads 512 tokens of it.
pub const LONGEST_PROMPT: usize = 32_000;

/// Most LoRAs of a request.
const MOST_LORAS: usize = 16;

/// The largest weight of a LoRA, of either sign.
const MOST_WEIGHT: f32 = 100.0;

/// Pixels of the longest side that vendors take.
pub const LONGEST_SIDE: u32 = 14_142;

/// Pixels of the largest picture that vendors make: 2048×2048.
pub const MOST_PIXELS: u64 = 4 << 20;

/// Seeds that can be given; negative ones ask for a random one.
pub const SEEDS: (i128, i128) = (i64::MIN as i128, u64::MAX as i128);

/// What a dialect answers, before it becomes HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside `Content-Type: application/json`, lower-case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// A body without further headers.
    pub fn new(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// With a header more.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Worth asking again after so many seconds.
    pub fn retry_after(self, seconds: u32) -> Self {
        self.with("retry-after", seconds.to_string())
    }
}

/// The seed asked for; where there is none or a negative one, the random one given. Random ones have 32 bits: JavaScript rounds
/// whole numbers above 2⁵³, so its users could not ask for larger ones again.
pub fn seed(given: Option<i128>, random: u32) -> u64 {
    given.and_then(|seed| u64::try_from(seed).ok()).unwrap_or_else(|| u64::from(random))
}

/// A size asked for in pixels.
///
/// # Errors
/// [`Fault::Invalid`] about `field` if no model can make it.
pub fn exact_size(field: &str, width: u32, height: u32) -> Result<OutputSize, Fault> {
    if let Some(side) = [width, height].into_iter().find(|side| !(1..=LONGEST_SIDE).contains(side)) {
        let message = format!("has a side of {side} pixels; 1 to {LONGEST_SIDE} are possible");
        return Err(Fault::invalid(field, Rule::Other, message));
    }
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let message =
            format!("{width}x{height} has more than {MOST_PIXELS} pixels, as many as 2048x2048; ask for fewer");
        return Err(Fault::invalid(field, Rule::Other, message));
    }
    Ok(OutputSize::Exact { width, height })
}

/// `2026-11-21T09:40:39.730000Z`.
pub fn instant(at: Millis) -> String {
    date(at).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// `2026-11-21T09:40:39.730000+00:00`, for readers that know no `Z` (Python before 3.11).
pub fn instant_with_offset(at: Millis) -> String {
    date(at).to_rfc3339_opts(SecondsFormat::Micros, false)
}

/// What never comes is the last instant that has four digits for its year: readers know no others.
fn date(at: Millis) -> DateTime<chrono::Utc> {
    const LAST: Millis = 253_402_300_799_999;
    DateTime::from_timestamp_millis(at.min(LAST)).unwrap_or_default()
}

/// The object that a body is.
///
/// # Errors
/// [`Fault::Invalid`] about the body.
pub fn object(body: &Value) -> Result<&Map<String, Value>, Fault> {
    body.as_object().ok_or_else(|| Fault::invalid("body", Rule::Body, "has to be a JSON object"))
}

/// The value with its data URIs shortened to what a person can read, and with all that is beyond 256 KiB left out: for bodies that
/// are kept to be shown again.
pub fn shortened(value: &Value) -> Value {
    /// Characters that are kept of what is long.
    const KEPT: usize = 64;
    /// What a number, a name or a bracket counts as.
    const LEAST: usize = 16;

    fn within(value: &Value, left: &mut usize) -> Option<Value> {
        *left = left.checked_sub(LEAST)?;
        Some(match value {
            Value::String(text) if (text.len() > KEPT && is_data(text)) || text.len() > *left => {
                let kept: String = text.chars().take(KEPT).collect();
                Value::String(format!("{kept}..."))
            }
            Value::String(text) => {
                *left -= text.len();
                Value::String(text.clone())
            }
            Value::Array(items) => items.iter().map_while(|item| within(item, left)).collect(),
            Value::Object(members) => {
                let member = |(name, value): (&String, &Value)| {
                    *left = left.checked_sub(name.len())?;
                    Some((name.clone(), within(value, left)?))
                };
                Value::Object(members.iter().map_while(member).collect())
            }
            other => other.clone(),
        })
    }

    within(value, &mut (256 << 10)).unwrap_or_default()
}

/// LoRAs as a request may have them: at most [`MOST_LORAS`], none twice, with weights of which something can be made.
///
/// # Errors
/// [`Fault::Invalid`] about `field`.
pub fn usable_loras(field: &str, loras: Vec<(String, f32)>) -> Result<Vec<(String, f32)>, Fault> {
    let wrong = |message: String| Err(Fault::invalid(field, Rule::Other, message));
    if loras.len() > MOST_LORAS {
        return wrong(format!("names {} LoRAs; {MOST_LORAS} are the most", loras.len()));
    }
    for (at, (name, weight)) in loras.iter().enumerate() {
        if weight.abs().partial_cmp(&MOST_WEIGHT).is_none_or(std::cmp::Ordering::is_gt) {
            return wrong(format!("has a weight that is not between -{MOST_WEIGHT} and {MOST_WEIGHT}"));
        }
        if loras[..at].iter().any(|(other, _)| other == name) {
            return wrong("names a LoRA twice; expected one weight for each".into());
        }
    }
    Ok(loras)
}

/// The file format that a field names.
///
/// # Errors
/// [`Fault::Invalid`], if this build does not write it.
pub fn format(values: &Values, field: &str) -> Result<Format, Fault> {
    let name = values.the_text(field);
    name.parse().map_err(|_| Fault::invalid(field, Rule::Other, format!("'{name}' is not written by this build")))
}

/// JSON on one line with all but ASCII escaped: some clients decode each piece of a stream on its own and would break characters
/// that two pieces share.
pub fn ascii_json(value: &Value) -> String {
    let text = value.to_string();
    if text.is_ascii() {
        return text;
    }
    let mut ascii = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(ascii, "\\u{unit:04x}"); // a string takes everything
            }
        }
    }
    ascii
}

/// A number as JSON writes it: `4`, not `4.0`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn seeds_are_taken_whole_and_chosen_where_there_is_none() {
        assert_eq!(seed(Some(17454220438242315174), 5), 17454220438242315174);
        assert_eq!(seed(Some(0), 5), 0);
        assert_eq!(seed(Some(-1), 5), 5);
        assert_eq!(seed(None, u32::MAX), u64::from(u32::MAX));
    }

    #[test]
    fn instants_have_microseconds_and_a_zone() {
        assert_eq!(instant(1_763_718_039_730), "2025-11-21T09:40:39.730000Z");
        assert_eq!(instant_with_offset(1_763_718_039_730), "2025-11-21T09:40:39.730000+00:00");
        assert_eq!(instant(i64::MAX), "9999-12-31T23:59:59.999000Z");
    }

    #[test]
    fn data_is_shortened_wherever_it_stands() {
        let long = format!("data:image/png;base64,{}", "A".repeat(1000));
        let told = shortened(&json!({"a": [long], "b": {"c": "data:,x"}, "prompt": "B".repeat(100)}));
        assert_eq!(told["a"][0].as_str().unwrap().len(), 67);
        assert_eq!(told["b"]["c"], "data:,x");
        assert_eq!(told["prompt"].as_str().unwrap().len(), 100);
        // However much it is, and however it is spread.
        for large in [json!({"junk": "A".repeat(1 << 20), "prompt": "a"}), json!({"junk": vec![0; 1 << 20]})] {
            assert!(shortened(&large).to_string().len() < 300 << 10);
        }
        let large: Map<String, Value> = (0..100_000).map(|name| (name.to_string(), json!("A".repeat(20)))).collect();
        assert!(shortened(&Value::Object(large)).to_string().len() < 300 << 10);
    }

    #[test]
    fn loras_are_few_and_their_weights_finite() {
        let lora = |name: &str, weight: f32| (name.to_owned(), weight);
        assert!(usable_loras("loras", vec![lora("a", 1.0), lora("b", -100.0)]).is_ok());
        for weight in [f32::NAN, f32::INFINITY, 100.5] {
            assert!(usable_loras("loras", vec![lora("a", weight)]).unwrap_err().to_string().contains("weight"));
        }
        assert!(usable_loras("loras", vec![lora("a", 1.0), lora("a", 0.5)]).is_err());
        let many = (0..17).map(|i| lora(&i.to_string(), 1.0)).collect();
        assert!(usable_loras("loras", many).unwrap_err().to_string().contains("17"));
    }

    #[test]
    fn ascii_json_reads_back() {
        let value = json!({"prompt": "Füchsin 🦊 \"\n"});
        let text = ascii_json(&value);
        assert!(text.is_ascii());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(ascii_json(&json!("🦊")), r#""\ud83e\udd8a""#);
    }

    #[test]
    fn sizes_end_at_four_megapixels() {
        assert_eq!(exact_size("s", 2048, 2048), Ok(OutputSize::Exact { width: 2048, height: 2048 }));
        assert!(exact_size("s", 2049, 2048).unwrap_err().to_string().starts_with("s: 2049x2048"));
    }
}
