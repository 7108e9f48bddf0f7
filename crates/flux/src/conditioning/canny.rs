//! Edges of a picture by Canny's method, pixel for pixel as `OpenCV`'s `Canny(picture, low, high)` finds them in 8-bit colour:
//! Sobel's 3×3 derivatives of the channel with the steepest slope, |dx| + |dy|, the ridge of it, and whatever of a ridge
//! touches a place above `high`.
//!
//! Source: `OpenCV` `modules/imgproc/src/canny.cpp`.

use crate::pixels::Rgb8;

/// The thresholds that FLUX.1 Canny \[dev\] was trained with: BFL's `CannyImageEncoder`.
pub const LOW: i32 = 50;
/// See [`LOW`].
pub const HIGH: i32 = 200;

/// White edges on black. A ridge above `high` is an edge, one above `low` where it touches another edge; thresholds the wrong
/// way round are exchanged.
pub fn canny(picture: &Rgb8, low: i32, high: i32) -> Rgb8 {
    let [width, height] = [picture.width() as usize, picture.height() as usize];
    let (low, high) = (low.min(high), low.max(high));
    let slopes = Slopes::of(picture);
    let mut edges = vec![false; width * height];
    let mut ridge = vec![false; width * height];
    let mut open = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let steepness = slopes.steepness(x as isize, y as isize);
            if steepness > low && slopes.is_ridge(x, y) {
                ridge[y * width + x] = true;
                if steepness > high {
                    edges[y * width + x] = true;
                    open.push((x, y));
                }
            }
        }
    }
    // From every sure edge along the ridges.
    while let Some((x, y)) = open.pop() {
        for ny in y.saturating_sub(1)..(y + 2).min(height) {
            for nx in x.saturating_sub(1)..(x + 2).min(width) {
                let at = ny * width + nx;
                if ridge[at] && !edges[at] {
                    edges[at] = true;
                    open.push((nx, ny));
                }
            }
        }
    }
    let pixels = edges.into_iter().flat_map(|edge| [if edge { 255 } else { 0 }; 3]).collect();
    Rgb8::new(picture.width(), picture.height(), pixels)
}

/// The derivatives (dx, dy) of each pixel's steepest channel.
struct Slopes {
    width: usize,
    height: usize,
    values: Vec<(i16, i16)>,
}

impl Slopes {
    fn of(picture: &Rgb8) -> Self {
        let [width, height] = [picture.width() as usize, picture.height() as usize];
        let pixels = picture.as_ref();
        let mut values = Vec::with_capacity(width * height);
        for y in 0..height {
            // Beyond the edge the picture goes on with its last row and column.
            let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
            for x in 0..width {
                let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
                let mut steepest = (0i16, 0i16);
                let mut norm = -1;
                for c in 0..3 {
                    let v =
                        |row: usize, column: usize| i16::from(pixels[3 * (rows[row] * width + columns[column]) + c]);
                    let dx = (v(0, 2) - v(0, 0)) + 2 * (v(1, 2) - v(1, 0)) + (v(2, 2) - v(2, 0));
                    let dy = (v(2, 0) - v(0, 0)) + 2 * (v(2, 1) - v(0, 1)) + (v(2, 2) - v(0, 2));
                    let size = i32::from(dx).abs() + i32::from(dy).abs();
                    if size > norm {
                        (norm, steepest) = (size, (dx, dy));
                    }
                }
                values.push(steepest);
            }
        }
        Self { width, height, values }
    }

    /// |dx| + |dy|; 0 outside of the picture.
    fn steepness(&self, x: isize, y: isize) -> i32 {
        let inside = (0..self.width as isize).contains(&x) && (0..self.height as isize).contains(&y);
        if !inside {
            return 0;
        }
        let (dx, dy) = self.values[y as usize * self.width + x as usize];
        i32::from(dx).abs() + i32::from(dy).abs()
    }

    /// Whether it is steepest here along its slope, which is taken as one of four directions.
    fn is_ridge(&self, x: usize, y: usize) -> bool {
        /// tan 22.5° with 15 binary digits.
        const TAN_22: i32 = 13573;
        let (dx, dy) = self.values[y * self.width + x];
        let [x, y] = [x as isize, y as isize];
        let here = self.steepness(x, y);
        let [across, down] = [i32::from(dx).abs(), i32::from(dy).abs() << 15];
        let flat = across * TAN_22;
        if down < flat {
            here > self.steepness(x - 1, y) && here >= self.steepness(x + 1, y)
        } else if down > flat + (across << 16) {
            here > self.steepness(x, y - 1) && here >= self.steepness(x, y + 1)
        } else {
            let s = if (dx ^ dy) < 0 { -1 } else { 1 };
            here > self.steepness(x - s, y - 1) && here > self.steepness(x + s, y + 1)
        }
    }
}
