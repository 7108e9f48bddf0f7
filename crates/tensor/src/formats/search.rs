//! Encoders of the formats whose groups have small integer scales under f16 ones: `Q6_K`, `Q5_K`, `Q4_K`.
//!
//! What minimises the squared error is searched for, in two steps. First each group for itself: a few codes around the
//! plain ones (extremes onto the outermost codes), and for each the best line through (code, element), which is linear
//! least squares; the best of them is kept. Then, with the group's scale (and minimum) rounded to its integer under the
//! block's f16, neighbours of that integer are tried, with the codes nearest under what will really be decoded.

use half::f16;

use super::{
    Q4K, Q5K, Q6K,
    encode::{Encode, extremes, inverse},
    f16_at,
};

const LANES: usize = 16;

/// Candidates for a group's codes: the plain range and up to one code more or less.
const STEPS: i32 = 10;

#[inline(always)]
fn sum(x: [f32; LANES]) -> f32 {
    let mut x = x;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            x[i] += x[i + width];
        }
    }
    x[0]
}

/// Rounds to f16 and gives what that is.
#[inline(always)]
fn put_f16(bytes: &mut [u8], at: usize, value: f32) -> f32 {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    f16_at(bytes, at)
}

/// A line from codes to elements: `scale · code − minimum`.
#[derive(Clone, Copy)]
struct Line {
    scale: f32,
    minimum: f32,
}

/// The best line found for a group, codes 0 to `top`, with a minimum that is not negative.
#[inline(always)]
fn line(x: &[f32; 32], top: f32) -> Line {
    let (high, low) = extremes(x);
    let low = if low < 0.0 { low } else { 0.0 };
    let plain = Line { scale: (high - low) / top, minimum: -low };
    let per_code = inverse(high - low);
    if per_code == 0.0 || high <= low {
        return Line { scale: 0.0, minimum: -low };
    }
    let (mut all, mut squares) = ([0.0; LANES], [0.0; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            all[i] += x[i];
            squares[i] += x[i] * x[i];
        }
    }
    let (n, all, squares) = (32.0, sum(all), sum(squares));
    let (mut best, mut least) = (plain, f32::INFINITY);
    for step in -STEPS..=STEPS {
        let inverse = (top + step as f32 * 0.1) * per_code;
        let (mut q1, mut q2, mut qx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let q = ((x[i] - low) * inverse).round_ties_even();
                let q = if q < top { q } else { top };
                q1[i] += q;
                q2[i] += q * q;
                qx[i] += q * x[i];
            }
        }
        let (q1, q2, qx) = (sum(q1), sum(q2), sum(qx));
        let determinant = n * q2 - q1 * q1;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (n * qx - q1 * all) / determinant;
        let mut offset = (q2 * all - q1 * qx) / determinant;
        if offset > 0.0 {
            (scale, offset) = (qx / q2, 0.0);
        }
        let error = squares + scale * (scale * q2 - 2.0 * qx) + offset * (2.0 * scale * q1 + n * offset - 2.0 * all);
        if error < least && scale > 0.0 {
            (best, least) = (Line { scale, minimum: -offset }, error);
        }
    }
    best
}

/// The squared error of a group under a line, each element with its nearest code.
#[inline(always)]
fn error_of_line(x: &[f32; 32], line: Line, top: f32) -> f32 {
    let inverse = inverse(line.scale);
    let mut squares = [0.0; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let q = ((x[i] + line.minimum) * inverse).round_ties_even();
            let q = if q < top { q } else { top };
            let q = if q > 0.0 { q } else { 0.0 };
            let off = x[i] - (line.scale * q - line.minimum);
            squares[i] += off * off;
        }
    }
    sum(squares)
}

/// Scales and minima of `Q4_K` and `Q5_K` into the block's first 16 bytes; codes 0 to `top` of all elements.
#[inline(always)]
fn lines(x: &[f32; 256], top: f32, head: &mut [u8]) -> [u8; 256] {
    const MOST: f32 = 63.0;
    let groups = x.as_chunks::<32>().0;
    let mut lines = [Line { scale: 0.0, minimum: 0.0 }; 8];
    let (mut scale, mut minimum) = (0f32, 0f32);
    for (to, x) in lines.iter_mut().zip(groups) {
        *to = line(x, top);
        scale = scale.max(to.scale);
        minimum = minimum.max(to.minimum);
    }
    let d = put_f16(head, 0, scale / MOST);
    let dmin = put_f16(head, 2, minimum / MOST);
    let (per_scale, per_minimum) = (inverse(d), inverse(dmin));
    let (mut scales, mut minima) = ([0u8; 8], [0u8; 8]);
    let mut codes = [0; 256];
    for (group, x) in groups.iter().enumerate() {
        let near = |x: f32, per: f32| (x * per).round_ties_even().clamp(0.0, MOST);
        let (s, m) = (near(lines[group].scale, per_scale), near(lines[group].minimum, per_minimum));
        let mut best = (f32::INFINITY, s, m);
        for s in [s - 1.0, s, s + 1.0] {
            for m in [m - 1.0, m, m + 1.0] {
                if !(0.0..=MOST).contains(&s) || !(0.0..=MOST).contains(&m) {
                    continue;
                }
                let error = error_of_line(x, Line { scale: d * s, minimum: dmin * m }, top);
                if error < best.0 {
                    best = (error, s, m);
                }
            }
        }
        let (_, s, m) = best;
        (scales[group], minima[group]) = (s as u8, m as u8);
        let line = Line { scale: d * s, minimum: dmin * m };
        let inverse = inverse(line.scale);
        for (code, x) in codes[32 * group..].iter_mut().zip(x) {
            *code = ((x + line.minimum) * inverse).round_ties_even().clamp(0.0, top) as u8;
        }
    }
    // Six bits each: the first four of each kind whole, with the upper two bits of the last four above them.
    for i in 0..4 {
        head[4 + i] = scales[i] | scales[4 + i] >> 4 << 6;
        head[8 + i] = minima[i] | minima[4 + i] >> 4 << 6;
        head[12 + i] = scales[4 + i] & 15 | minima[4 + i] << 4;
    }
    codes
}

impl Encode<256, 144> for Q4K {
    #[inline(always)]
    fn encode(x: &[f32; 256], block: &mut [u8; 144]) {
        let codes = lines(x, 15.0, &mut block[..16]);
        for (codes, fours) in codes.as_chunks::<64>().0.iter().zip(block[16..].as_chunks_mut::<32>().0) {
            for i in 0..32 {
                fours[i] = codes[i] | codes[32 + i] << 4;
            }
        }
    }
}

impl Encode<256, 176> for Q5K {
    #[inline(always)]
    fn encode(x: &[f32; 256], block: &mut [u8; 176]) {
        let codes = lines(x, 31.0, &mut block[..16]);
        let (fifths, fours) = block[16..].split_at_mut(32);
        fifths.fill(0);
        for (pair, (codes, fours)) in codes.as_chunks::<64>().0.iter().zip(fours.as_chunks_mut::<32>().0).enumerate() {
            for i in 0..32 {
                fours[i] = codes[i] & 15 | codes[32 + i] << 4;
                fifths[i] |= codes[i] >> 4 << (2 * pair) | codes[32 + i] >> 4 << (2 * pair + 1);
            }
        }
    }
}

/// The best scale found for a group with codes −32 to 31.
#[inline(always)]
fn scale(x: &[f32; 16]) -> f32 {
    let (high, low) = extremes(x);
    // The furthest element goes near −32, the end of the longer side.
    let furthest = if high > -low { high } else { low };
    let per_code = -inverse(furthest);
    let (mut best, mut most) = (-furthest / 32.0, -1.0);
    for step in -STEPS..=STEPS {
        let inverse = (32.0 + step as f32 * 0.1) * per_code;
        let (mut q2, mut qx) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            let q = (x[i] * inverse).round_ties_even();
            let q = if q < 31.0 { q } else { 31.0 };
            let q = if q > -32.0 { q } else { -32.0 };
            q2[i] = q * q;
            qx[i] = q * x[i];
        }
        // With the best scale qx/q2 the error is Σx² less this.
        let (q2, qx) = (sum(q2), sum(qx));
        if q2 > 0.0 && qx * qx > most * q2 {
            (best, most) = (qx / q2, qx * qx / q2);
        }
    }
    best
}

#[inline(always)]
fn error_of_scale(x: &[f32; 16], scale: f32) -> f32 {
    let inverse = inverse(scale);
    let mut squares = [0.0; LANES];
    for i in 0..LANES {
        let q = (x[i] * inverse).round_ties_even();
        let q = if q < 31.0 { q } else { 31.0 };
        let q = if q > -32.0 { q } else { -32.0 };
        let off = x[i] - scale * q;
        squares[i] = off * off;
    }
    sum(squares)
}

impl Encode<256, 210> for Q6K {
    #[inline(always)]
    fn encode(x: &[f32; 256], block: &mut [u8; 210]) {
        let groups = x.as_chunks::<16>().0;
        let mut scales = [0f32; 16];
        let mut largest = 0f32;
        for (to, x) in scales.iter_mut().zip(groups) {
            *to = scale(x);
            largest = if to.abs() > largest.abs() { *to } else { largest };
        }
        // The largest goes onto −128, which is the end of the longer side.
        let d = put_f16(block, 208, largest / -128.0);
        let per_scale = inverse(d);
        let mut codes = [0u8; 256];
        for (group, x) in groups.iter().enumerate() {
            let s = (scales[group] * per_scale).round_ties_even().clamp(-128.0, 127.0);
            let mut best = (f32::INFINITY, s);
            for s in [s - 1.0, s, s + 1.0] {
                if (-128.0..=127.0).contains(&s) {
                    let error = error_of_scale(x, d * s);
                    if error < best.0 {
                        best = (error, s);
                    }
                }
            }
            let s = best.1;
            block[192 + group] = s as i8 as u8;
            let inverse = inverse(d * s);
            for (code, x) in codes[16 * group..].iter_mut().zip(x) {
                *code = ((x * inverse).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8;
            }
        }
        for (half, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
            for i in 0..32 {
                block[64 * half + i] = codes[i] & 15 | codes[64 + i] << 4;
                block[64 * half + 32 + i] = codes[32 + i] & 15 | codes[96 + i] << 4;
                let twos = [codes[i], codes[32 + i], codes[64 + i], codes[96 + i]].map(|code| code >> 4);
                block[128 + 32 * half + i] = twos[0] | twos[1] << 2 | twos[2] << 4 | twos[3] << 6;
            }
        }
    }
}
