//! A picture in tiles: what each of them makes, and what it sees of its neighbours for that.

use std::ops::Range;

/// How large tiles are, pixels of the picture to be enlarged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest side that is computed at a time, margins included.
    pub(super) side: usize,
    /// How much of its neighbours a tile sees on each side.
    pub(super) margin: usize,
    /// What tiles begin at: multiples of it, as the margin is.
    pub(super) multiple: usize,
}

/// Rows and columns of a part of the picture.
pub(super) type Area = [Range<usize>; 2];

/// A part of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// What it makes; the tiles of a picture cover it once.
    pub(super) own: Area,
    /// What it sees: as much, and the margin where the picture goes on.
    pub(super) seen: Area,
}

/// The tiles of a picture, row by row, all of about the same size.
pub(super) fn of(width: usize, height: usize, limits: Limits) -> impl Iterator<Item = Tile> {
    let columns = cut(width, limits);
    cut(height, limits).into_iter().flat_map(move |(own_rows, seen_rows)| {
        columns
            .clone()
            .into_iter()
            .map(move |(own, seen)| Tile { own: [own_rows.clone(), own], seen: [seen_rows.clone(), seen] })
    })
}

/// One direction: what is made and what is seen.
fn cut(length: usize, Limits { side, margin, multiple }: Limits) -> Vec<(Range<usize>, Range<usize>)> {
    let count = if length <= side { 1 } else { length.div_ceil(side - 2 * margin - (multiple - 1)) };
    let at = |index: usize| if index == count { length } else { index * length / count / multiple * multiple };
    let part = |index: usize| {
        let own = at(index)..at(index + 1);
        let seen = own.start.saturating_sub(margin)..(own.end + margin).min(length);
        (own, seen)
    };
    (0..count).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_picture_once_and_see_their_margin() {
        let limits = |multiple| Limits { side: 40, margin: 8, multiple };
        let sizes = [(1, 1), (40, 40), (41, 40), (24, 100), (1000, 37), (333, 222)];
        for ((width, height), multiple) in sizes.into_iter().flat_map(|size| [(size, 1), (size, 2)]) {
            let limits = limits(multiple);
            let mut covered = vec![0; width * height];
            for Tile { own: [rows, columns], seen } in of(width, height, limits) {
                for (own, (seen, length)) in [&rows, &columns].into_iter().zip(seen.iter().zip([height, width])) {
                    assert!(seen.len() <= limits.side && !own.is_empty() && seen.start.is_multiple_of(multiple));
                    assert_eq!(seen.start, own.start.saturating_sub(8));
                    assert_eq!(seen.end, (own.end + 8).min(length));
                }
                for y in rows {
                    columns.clone().for_each(|x| covered[y * width + x] += 1);
                }
            }
            assert!(covered.iter().all(|&times| times == 1), "{width}×{height}");
        }
        assert_eq!(of(40, 40, limits(1)).count(), 1);
    }
}
