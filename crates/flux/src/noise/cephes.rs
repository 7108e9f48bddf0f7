//! Logarithm, sine and cosine in f32 exactly as `PyTorch`'s AVX2 kernels compute them, on any machine.
//!
//! These are the Cephes polynomials with the fused multiply-adds that the reference's compiler made. Only exact IEEE
//! operations are used, so results do not depend on the platform's library.
//! Source: `pytorch/aten/src/ATen/native/cpu/avx_mathfun.h`.

/// Natural logarithm of a normal number in (0, ∞).
pub(super) fn ln(x: f32) -> f32 {
    // x = m · 2^e with m in [1/2, 1), moved to [√½, √2) around 1.
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 126) as f32;
    let m = f32::from_bits((bits & 0x007F_FFFF) | 0x3F00_0000);
    let x = if m < 0.707_106_77 {
        e -= 1.0;
        (m - 1.0) + m
    } else {
        m - 1.0
    };
    let z = x * x;
    let y = horner(
        x,
        &[
            7.037_683_6E-2,
            -1.151_461E-1,
            1.167_699_84E-1,
            -1.242_014_1E-1,
            1.424_932_3E-1,
            -1.666_805_7E-1,
            2.000_071_4E-1,
            -2.499_999_4E-1,
            3.333_333E-1,
        ],
    ) * x;
    let y = y.mul_add(z, e * -2.121_944_4e-4);
    let y = (-z).mul_add(0.5, y);
    e.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of an angle in radians, |x| < 8192.
pub(super) fn sin_cos(x: f32) -> (f32, f32) {
    // The octant, made even; then the angle within it, by π/4 in three parts.
    let octant = ((x.abs() * 1.273_239_5) as i32 + 1) & !1;
    let y = octant as f32;
    let r = y.mul_add(-0.785_156_25, x.abs());
    let r = y.mul_add(-2.418_756_5e-4, r);
    let r = y.mul_add(-3.774_895e-8, r);
    let z = r * r;

    let cos = horner(z, &[2.443_315_7E-5, -1.388_731_6E-3, 4.166_664_6E-2]) * z;
    let cos = cos.mul_add(z, -(z * 0.5)) + 1.0;
    let sin = horner(z, &[-1.951_529_6E-4, 8.332_161E-3, -1.666_665_5E-1]) * z;
    let sin = sin.mul_add(r, r);

    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if (octant & 4 != 0) == x.is_sign_negative() { sin } else { -sin };
    let cos = if !(octant - 2) & 4 != 0 { -cos } else { cos };
    (sin, cos)
}

/// The polynomial with these coefficients, highest power first, each step fused.
fn horner(x: f32, coefficients: &[f32]) -> f32 {
    coefficients.iter().copied().reduce(|sum, c| sum.mul_add(x, c)).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_true_functions() {
        for i in 1..=4096 {
            let x = i as f32 / 4096.0;
            assert!((ln(x) as f64 - (x as f64).ln()).abs() < 1e-6, "ln {x}");
            for angle in [x * std::f32::consts::TAU, -x] {
                let (sin, cos) = sin_cos(angle);
                assert!((sin as f64 - (angle as f64).sin()).abs() < 2e-7, "sin {angle}");
                assert!((cos as f64 - (angle as f64).cos()).abs() < 2e-7, "cos {angle}");
            }
        }
    }
}
