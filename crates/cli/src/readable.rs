//! Paths and amounts as people read them.

use std::path::Path;

/// A path for people.
pub(crate) fn shown(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// `23.8 GB`: decimal, as disks and downloads are counted.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!([0, 999, 1000, 23_802_816_640].map(bytes), ["0 B", "999 B", "1.0 kB", "23.8 GB"]);
    }
}
