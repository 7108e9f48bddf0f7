//! What a file claims to be: its name and its media type, as far as they are believed.

use super::Purpose;

/// Only what means nothing in a path, a header or a shell.
pub(crate) fn file_name(asked: &str) -> String {
    let last = asked.rsplit(['/', '\\']).next().unwrap_or("");
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    let name: String = last.trim_start_matches('.').chars().take(100).map(safe).collect();
    if name.is_empty() { "file".into() } else { name }
}

/// The media type to keep: the bytes' own if they begin like a picture. Results are believed: the server made them.
pub(super) fn media_type(bytes: &[u8], claimed: &str, purpose: Purpose) -> String {
    if purpose == Purpose::Result {
        return claimed.to_owned();
    }
    if let Some(mime) = sniff(bytes) {
        return mime.to_owned();
    }
    let essence = claimed.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '+' | '-');
    let honest = !essence.starts_with("image/") && essence.contains('/') && essence.len() <= 100;
    if honest && essence.chars().all(plain) { essence } else { "application/octet-stream".into() }
}

/// Which picture format bytes begin like.
pub fn sniff(bytes: &[u8]) -> Option<&'static str> {
    let at = |from: usize, what: &[u8]| bytes.get(from..from + what.len()) == Some(what);
    if at(0, b"\x89PNG\r\n\x1a\n") {
        Some("image/png")
    } else if at(0, b"\xff\xd8\xff") {
        Some("image/jpeg")
    } else if at(0, b"RIFF") && at(8, b"WEBP") {
        Some("image/webp")
    } else if at(0, b"GIF87a") || at(0, b"GIF89a") {
        Some("image/gif")
    } else if at(4, b"ftypavif") || at(4, b"ftypavis") {
        Some("image/avif")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_nothing_to_a_path() {
        for (asked, kept) in [
            ("../../etc/passwd", "passwd"),
            ("a b\r\n.png", "a_b__.png"),
            ("..", "file"),
            ("C:\\x\\.htaccess", "htaccess"),
        ] {
            assert_eq!(file_name(asked), kept);
        }
    }

    #[test]
    fn a_claim_to_be_a_picture_is_not_believed() {
        let of = |bytes: &[u8], claimed| media_type(bytes, claimed, Purpose::Upload);
        assert_eq!(of(b"<svg onload=alert(1)>", "image/svg+xml"), "application/octet-stream");
        assert_eq!(of(b"<html>", "image/png"), "application/octet-stream");
        assert_eq!(of(b"\x89PNG\r\n\x1a\nand more", "text/html"), "image/png");
        assert_eq!(of(b"{}", "application/json; charset=utf-8"), "application/json");
        assert_eq!(of(b"{}", "a/b\r\nx: y"), "application/octet-stream");
    }
}
