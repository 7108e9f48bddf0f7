//! Kinds of values: how each is written in a file, and in the environment, where everything is text.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use flux::{Precision, image_file::MetadataLevel};
use ipnet::IpNet;
use toml::Value;

/// A kind of value.
pub(super) trait Set: Sized {
    /// # Errors
    /// What was expected, a sentence.
    fn read(value: &Value) -> Result<Self, String>;

    /// As in a file; `None` if it is not set.
    fn show(&self) -> Option<Value>;
}

/// What must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The arithmetic of products; `None` is `auto`, what suits the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic(pub Option<Precision>);

/// How a vendor's outputs are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorOutput {
    /// URLs if the public URL is https, data URIs otherwise.
    Auto,
    /// URLs.
    Url,
    /// Data URIs.
    Data,
}

/// The log's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// Objects for programs.
    Json,
}

fn text<'a>(value: &'a Value, expected: &str) -> Result<&'a str, String> {
    value.as_str().map(str::trim).ok_or_else(|| format!("expected {expected}, got {value}"))
}

impl Set for String {
    fn read(value: &Value) -> Result<Self, String> {
        text(value, "text").map(str::to_owned)
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}

impl Set for PathBuf {
    fn read(value: &Value) -> Result<Self, String> {
        text(value, "a path").map(Self::from)
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string_lossy().into_owned()))
    }
}

impl Set for Secret {
    fn read(value: &Value) -> Result<Self, String> {
        // The value itself is not repeated.
        value.as_str().map(|text| Self(text.trim().to_owned())).ok_or_else(|| "expected text".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String("(a secret)".into()))
    }
}

impl Set for bool {
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::Boolean(flag) => Ok(*flag),
            Value::String(text) if matches!(text.trim(), "true" | "1" | "yes" | "on") => Ok(true),
            Value::String(text) if matches!(text.trim(), "false" | "0" | "no" | "off") => Ok(false),
            _ => Err(format!("expected true or false, got {value}")),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

macro_rules! parsed {
    ($($kind:ty: $none:literal, $expected:literal, $show:expr;)*) => {
        $(impl Set for $kind {
            fn read(value: &Value) -> Result<Self, String> {
                let number = value.as_integer().map(|number| number.to_string());
                let text = match &number {
                    Some(number) => number,
                    None => text(value, $expected)?,
                };
                text.parse().map_err(|_| format!("'{text}' is {}; expected {}", $none, $expected))
            }

            fn show(&self) -> Option<Value> {
                let show: fn(&Self) -> Value = $show;
                Some(show(self))
            }
        })*
    };
}

fn shown<T: fmt::Display>(value: &T) -> Value {
    Value::String(value.to_string())
}

parsed! {
    SocketAddr: "no address", "an address and a port, as 127.0.0.1:8000", |at| shown(at);
    IpNet: "no network", "a network, as 192.168.7.0/24", |net| shown(net);
    usize: "no whole number", "a whole number", |number| Value::Integer(i64::try_from(*number).unwrap_or(i64::MAX));
    u16: "no whole number", "a whole number up to 65535", |number| Value::Integer((*number).into());
    MetadataLevel: "no such level", "full, minimal or none", |level| shown(level);
}

impl Set for f64 {
    fn read(value: &Value) -> Result<Self, String> {
        let number = match value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => Some(*number as f64),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| format!("expected a number, got {value}"))
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl Set for Size {
    fn read(value: &Value) -> Result<Self, String> {
        const EXPECTED: &str = "a number with a unit, as 64MiB, 50MB or 10GB";
        if let Some(bytes) = value.as_integer() {
            return u64::try_from(bytes).map(Self).map_err(|_| format!("'{bytes}' is no size; expected {EXPECTED}"));
        }
        let text = text(value, EXPECTED)?;
        text.parse().map_err(|_| format!("'{text}' is no size; expected {EXPECTED}"))
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

/// What is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number with a unit, such as 64MiB, 50MB or 10GB")]
pub struct NotASize;

/// A number of bytes, or of a unit: decimal (`GB`, `G`) or binary (`GiB`).
impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let number: f64 = number.parse().map_err(|_| NotASize)?;
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "kib" => 1024.0,
            "m" | "mb" => 1e6,
            "mib" => 1024.0 * 1024.0,
            "g" | "gb" => 1e9,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            "t" | "tb" => 1e12,
            "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(NotASize),
        };
        let bytes = number * unit;
        if (0.0..1e18).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(NotASize) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// How a time that never ends is written.
const NEVER: &str = "never";

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A time as in a file.
///
/// # Errors
/// What was expected, a sentence.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    Set::read(&Value::String(text.to_owned()))
}

impl Set for Duration {
    fn read(value: &Value) -> Result<Self, String> {
        const EXPECTED: &str = "seconds, or a number with a unit, as 30s, 15m, 12h or 7d, or never";
        let (number, text) = match value {
            Value::Integer(seconds) => (Some(*seconds as f64), seconds.to_string()),
            _ => (None, text(value, EXPECTED)?.to_owned()),
        };
        let wrong = || format!("'{text}' is no time; expected {EXPECTED}");
        if text == NEVER || text == "-1" {
            return Ok(Self::MAX);
        }
        let seconds = number.or_else(|| {
            let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (number, unit) = text.split_at(at);
            let unit = if unit.is_empty() { "s" } else { unit.trim() };
            let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
            Some(number.parse::<f64>().ok()? * factor as f64)
        });
        let seconds = seconds.filter(|seconds| (0.0..1e12).contains(seconds)).ok_or_else(wrong)?;
        Ok(Self::from_secs_f64(seconds))
    }

    fn show(&self) -> Option<Value> {
        if *self == Self::MAX {
            return Some(Value::String(NEVER.into()));
        }
        let whole = (self.subsec_nanos() == 0).then(|| {
            let fits = |(_, unit): &(&str, u64)| self.as_secs() >= *unit && self.as_secs().is_multiple_of(*unit);
            UNITS
                .into_iter()
                .find(fits)
                .map_or_else(|| "0s".into(), |(name, unit)| format!("{}{name}", self.as_secs() / unit))
        });
        Some(Value::String(whole.unwrap_or_else(|| format!("{}s", self.as_secs_f64()))))
    }
}

impl Set for Arithmetic {
    fn read(value: &Value) -> Result<Self, String> {
        match text(value, "auto, f32, bf16 or int8")? {
            "auto" => Ok(Self(None)),
            name => name
                .parse()
                .map(|precision| Self(Some(precision)))
                .map_err(|_| format!("'{name}' is none of auto, f32, bf16, int8")),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(self.0.as_ref().map_or_else(|| Value::String("auto".into()), shown))
    }
}

impl Set for VendorOutput {
    fn read(value: &Value) -> Result<Self, String> {
        match text(value, "auto, url or data")? {
            "auto" => Ok(Self::Auto),
            "url" => Ok(Self::Url),
            "data" => Ok(Self::Data),
            other => Err(format!("'{other}' is none of auto, url, data")),
        }
    }

    fn show(&self) -> Option<Value> {
        let name = match self {
            Self::Auto => "auto",
            Self::Url => "url",
            Self::Data => "data",
        };
        Some(Value::String(name.into()))
    }
}

impl Set for LogFormat {
    fn read(value: &Value) -> Result<Self, String> {
        match text(value, "text or json")? {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("'{other}' is neither text nor json")),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(if *self == Self::Text { "text" } else { "json" }.into()))
    }
}

impl<T: Set> Set for Option<T> {
    fn read(value: &Value) -> Result<Self, String> {
        T::read(value).map(Some)
    }

    fn show(&self) -> Option<Value> {
        self.as_ref().and_then(Set::show)
    }
}

/// An array; as text, with commas.
impl<T: Set> Set for Vec<T> {
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::Array(values) => values.iter().map(T::read).collect(),
            Value::String(text) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                parts.map(|part| T::read(&Value::String(part.to_owned()))).collect()
            }
            _ => Err(format!("expected a list, got {value}")),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(Set::show).collect()))
    }
}

/// A table of texts; as text, `a=b,c=d`.
impl Set for BTreeMap<String, String> {
    fn read(value: &Value) -> Result<Self, String> {
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not as name=value"))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        };
        match value {
            Value::Table(table) => {
                table.iter().map(|(name, value)| Ok((name.clone(), text(value, "text")?.to_owned()))).collect()
            }
            Value::String(text) => text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect(),
            _ => Err(format!("expected a table, got {value}")),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Table(self.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_they_are_shown() {
        for (text, seconds) in
            [("30", 30.0), ("90s", 90.0), ("2m", 120.0), ("1.5h", 5400.0), ("7d", 604_800.0), ("0", 0.0)]
        {
            let read = Duration::read(&Value::String(text.into())).unwrap();
            assert_eq!(read.as_secs_f64(), seconds, "{text}");
            assert_eq!(Duration::read(&read.show().unwrap()), Ok(read));
        }
        assert_eq!(Duration::read(&Value::Integer(5)), Ok(Duration::from_secs(5)));
        assert_eq!(Duration::read(&Duration::MAX.show().unwrap()), Ok(Duration::MAX));
        for (text, bytes) in [("10", 10), ("50MB", 50_000_000), ("64 MiB", 64 << 20), ("1.5k", 1500)] {
            let read = Size::read(&Value::String(text.into())).unwrap();
            assert_eq!(read, Size(bytes), "{text}");
            assert_eq!(Size::read(&read.show().unwrap()), Ok(read));
        }
        for wrong in ["", "MB", "1XB", "1e9", "-5", "1.2.3m", "∞"] {
            assert!(Duration::read(&Value::String(wrong.into())).is_err(), "{wrong}");
            assert!(Size::read(&Value::String(wrong.into())).is_err(), "{wrong}");
        }
    }
}
