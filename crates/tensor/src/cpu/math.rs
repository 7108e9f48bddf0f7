//! Functions of one number, lane by lane. Errors are the largest found against f64 (`tests` below).
//!
//! Limits are taken with the machine's minimum and maximum, which prefer the limit to a NaN: `exp` and `tanh` of a NaN are
//! numbers. `exp2` hands a NaN on.

use super::arch::{Vector, VectorSlice};
use crate::Unary;

/// `exp(x)`: 2ⁿ · p(r) with r = x − n·ln 2; relative error 1.2e-7. Below −87.3 it stays at the smallest normal number.
#[inline(always)]
pub(super) fn exp<V: Vector>(x: V) -> V {
    let x = x.max(V::splat(-87.336_54)).min(V::splat(88.376_26));
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, so that n·ln 2 is exact enough (Cephes, expf).
    let r = n.neg_mul_add(V::splat(0.693_359_4), x);
    let r = n.neg_mul_add(V::splat(-2.121_944_4e-4), r);
    let p = V::splat(1.987_569_1e-4)
        .mul_add(r, V::splat(1.398_2e-3))
        .mul_add(r, V::splat(8.333_452e-3))
        .mul_add(r, V::splat(4.166_579_6e-2))
        .mul_add(r, V::splat(1.666_666_5e-1))
        .mul_add(r, V::splat(0.5));
    p.mul_add(r.mul(r), r).add(V::splat(1.0)).scale(n)
}

/// `2ˣ` for x < 128: 2^⌊x⌋ · p(x − ⌊x⌋), p the minimax polynomial of its degree on [0, 1) (Remez); relative error 1.5e-7, or
/// 2.8e-6 if `SHORT`: a thousandth of what rounding to bf16 adds. As good as zero below −126.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "the minimax polynomial's coefficient is not ln 2")]
pub(super) fn exp2<V: Vector, const SHORT: bool>(x: V) -> V {
    let r = x.fraction();
    let p = if SHORT {
        polynomial(r, &[1.353_416_8e-2, 5.201_146e-2, 2.414_427_5e-1, 6.930_038_3e-1, 1.000_002_6])
    } else {
        polynomial(r, &[2.170_225_5e-4, 1.243_968_7e-3, 9.678_841e-3, 5.548_334e-2, 2.402_298_3e-1, 6.931_47e-1, 1.0])
    };
    p.scale_floor(x)
}

/// `1 / (1 + exp(−x))`; relative error 3e-7 where the result is not subnormal.
#[inline(always)]
fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(exp(V::splat(0.0).sub(x)).add(one))
}

/// A polynomial, highest power first.
#[inline(always)]
fn polynomial<V: Vector>(x: V, coefficients: &[f32]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = sum.mul_add(x, V::splat(c));
    }
    sum
}

/// `tanh(x)` by a rational function on ±7.9 (Eigen, `generic_fast_tanh_float`); absolute error 4e-7.
#[inline(always)]
fn tanh<V: Vector>(x: V) -> V {
    let x = x.max(V::splat(-7.905_311)).min(V::splat(7.905_311));
    let x2 = x.mul(x);
    let p = polynomial(
        x2,
        &[
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297_1e-8,
            1.485_722_4e-5,
            6.372_619_3e-4,
            4.893_524_6e-3,
        ],
    );
    let q = polynomial(x2, &[1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3]);
    x.mul(p).div(q)
}

/// `erf(x)` by a rational function on ±4 (Eigen, `generic_fast_erf_float`); absolute error 5e-7.
#[inline(always)]
fn erf<V: Vector>(x: V) -> V {
    let x = x.max(V::splat(-4.0)).min(V::splat(4.0));
    let x2 = x.mul(x);
    let p = polynomial(
        x2,
        &[
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q = polynomial(x2, &[-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2]);
    x.mul(p).div(q)
}

/// Replaces the numbers of a slice, a vector at a time. A macro, because a closure of this size would not be inlined and
/// thereby lose the target features.
macro_rules! map {
    ($values:expr, |$x:ident| $y:expr) => {
        for lanes in $values.chunks_mut(V::LANES) {
            let $x = V::from_slice(lanes);
            $y.to_slice(lanes);
        }
    };
}

/// Applies `f` where the numbers are.
#[inline(always)]
pub(super) fn apply<V: Vector>(f: Unary, values: &mut [f32]) {
    match f {
        Unary::Silu => map!(values, |x| x.mul(sigmoid(x))),
        Unary::Gelu => map!(values, |x| {
            let half = V::splat(0.5).mul(x);
            half.mul_add(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
        }),
        // ½(1 + tanh u) is sigmoid(2u), which keeps its digits for negative u.
        Unary::GeluTanh => map!(values, |x| {
            let twice_u = x.mul(x).mul_add(V::splat(0.071_354_82), V::splat(1.595_769)).mul(x);
            x.mul(sigmoid(twice_u))
        }),
        Unary::QuickGelu => map!(values, |x| x.mul(sigmoid(x.mul(V::splat(1.702))))),
        Unary::Relu => map!(values, |x| x.max(V::splat(0.0))),
        Unary::Relu6 => map!(values, |x| x.max(V::splat(0.0)).min(V::splat(6.0))),
        Unary::LeakyRelu(a) => map!(values, |x| x.max(x.mul(V::splat(a)))),
        Unary::Tanh => map!(values, |x| tanh(x)),
        Unary::Affine(a, b) => map!(values, |x| x.mul_add(V::splat(a), V::splat(b))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::arch::{Kernel, Level, Simd};

    struct Each<F>(F, Vec<f32>);

    impl Kernel for Each<Function> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<V: Vector>(mut self) -> Vec<f32> {
            match self.0 {
                Function::Exp => map!(self.1, |x| exp(x)),
                Function::Exp2 => map!(self.1, |x| exp2::<V, false>(x)),
                Function::ShortExp2 => map!(self.1, |x| exp2::<V, true>(x)),
                Function::Sigmoid => map!(self.1, |x| sigmoid(x)),
                Function::Tanh => map!(self.1, |x| tanh(x)),
                Function::Erf => map!(self.1, |x| erf(x)),
            }
            self.1
        }
    }

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Exp2,
        ShortExp2,
        Sigmoid,
        Tanh,
        Erf,
    }

    /// The largest error of `f` at many points of ±`range`, divided by `scale(exact)`.
    fn worst(f: Function, range: f32, exact: impl Fn(f64) -> f64, scale: impl Fn(f64) -> f64) -> f64 {
        let x: Vec<f32> = (0..=400_000).map(|i| range * (i as f32 / 200_000.0 - 1.0)).collect();
        let errors = Level::ALL.into_iter().filter(|level| level.is_available()).map(|level| {
            let y = Simd::new(level).run(Each(f, x.clone()));
            let error = |(&x, y): (&f32, f32)| ((f64::from(y) - exact(x.into())) / scale(exact(x.into()))).abs();
            x.iter().zip(y).map(error).fold(0.0, f64::max)
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn errors_are_as_stated() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst(Function::Exp, 87.0, f64::exp, |y| y) < 1.2e-7);
        assert!(worst(Function::Exp2, 126.0, f64::exp2, |y| y) < 1.5e-7);
        assert!(worst(Function::ShortExp2, 126.0, f64::exp2, |y| y) < 2.8e-6);
        assert!(worst(Function::Sigmoid, 80.0, sigmoid, |y| y) < 3e-7);
        assert!(worst(Function::Tanh, 20.0, f64::tanh, |_| 1.0) < 4e-7);
        assert!(worst(Function::Erf, 6.0, crate::reference::erf, |_| 1.0) < 5e-7);
    }
}
