//! `data:` URLs (RFC 2397), as generously as browsers and vendors read them: with or without a media type and parameters, spaces
//! and line ends in base64, the URL alphabet, missing padding, percent-encoding in either form.

use std::borrow::Cow;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use bytes::Bytes;
use percent_encoding::percent_decode;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is wrong with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It holds more than it may.
    TooLarge,
    /// It cannot be read; a sentence.
    Malformed(&'static str),
}

/// Whether it is one.
pub fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// One with these bytes.
pub fn encode(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", BASE64_STANDARD.encode(bytes))
}

/// The bytes of one, at most so many.
///
/// # Errors
/// [`Wrong`].
pub fn decode(url: &str, most: u64) -> Result<Bytes, Wrong> {
    let rest = if is_data(url) { &url[5..] } else { return Err(Wrong::Malformed("is not a data URI")) };
    let (about, data) = rest.split_once(',').ok_or(Wrong::Malformed("is a data URI without a comma"))?;
    let is_base64 = about.rsplit_once(';').is_some_and(|(_, last)| last.trim().eq_ignore_ascii_case("base64"));
    // A fragment is no part of the data.
    let data = data.split('#').next().unwrap_or("");
    if is_base64 { base64(data, most) } else { percent(data, most) }
}

/// Base64 as people send it.
///
/// # Errors
/// [`Wrong`].
pub fn base64(text: &str, most: u64) -> Result<Bytes, Wrong> {
    let text: Cow<'_, [u8]> = percent_decode(text.as_bytes()).into();
    let plain = |byte: u8| match byte {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        byte if byte.is_ascii_whitespace() => None,
        byte => Some(byte),
    };
    let text: Vec<u8> = text.iter().copied().filter_map(plain).collect();
    if (text.len() as u64 / 4) * 3 > most.saturating_add(3) {
        return Err(Wrong::TooLarge);
    }
    let bytes = LENIENT.decode(text).map_err(|_| Wrong::Malformed("is not base64"))?;
    sized(bytes, most)
}

fn percent(text: &str, most: u64) -> Result<Bytes, Wrong> {
    sized(percent_decode(text.as_bytes()).collect(), most)
}

fn sized(bytes: Vec<u8>, most: u64) -> Result<Bytes, Wrong> {
    match bytes.len() as u64 {
        0 => Err(Wrong::Malformed("is empty")),
        length if length > most => Err(Wrong::TooLarge),
        _ => Ok(bytes.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_are_read() {
        let expected: &[u8] = b"\xfb\xff\xfe picture";
        for good in [
            "data:image/png;base64,+//+IHBpY3R1cmU=",
            "data:image/png;charset=x;base64,+//+IHBpY3R1cmU",
            "data:;base64,-__-IHBpY3R1cmU=",
            "data:base64,%fb%ff%fe%20picture",
            "DATA:;BASE64,+//+IHBp\r\n Y3R1cmU=\n",
            "data:application/octet-stream;base64,%2B%2F%2F%2BIHBpY3R1cmU%3D",
            "data:text/plain,%fb%ff%fe%20picture",
            "data:,%fb%ff%fe%20picture#name",
        ] {
            assert_eq!(decode(good, 11).as_deref(), Ok(expected), "{good}");
            assert_eq!(decode(good, 10), Err(Wrong::TooLarge), "{good}");
        }
        for wrong in [
            "data:",
            "data:image/png;base64",
            "data:image/png;base64,",
            "data:;base64,!!!!",
            "data:;base64,A",
            "http://x",
            "d",
            "data:,",
        ] {
            assert!(matches!(decode(wrong, 1000), Err(Wrong::Malformed(_))), "{wrong}");
        }
    }

    #[test]
    fn what_is_too_large_is_not_decoded() {
        let huge = format!("data:;base64,{}", "A".repeat(1_000_000));
        assert_eq!(decode(&huge, 1000), Err(Wrong::TooLarge));
    }
}
