//! Int8 products against the reference, on rows that are none of the usual kind, and weights that are kept rounded.

#[expect(unreachable_pub, dead_code, reason = "each test file uses a part of the shared helpers")]
mod support;

use std::sync::Arc;

use support::{DTYPES, LEAST, Random, SUMS, check_on_scale, levels, nmse};
use tensor::{
    Backend, DType, End, Precision, Tensor, Term, Weight,
    cpu::{Cpu, Level},
    dry_run::DryRun,
    reference::Reference,
};

#[test]
fn int8_of_unusual_rows() {
    let mut random = Random::new();
    let (m, k, n) = (37, 1500, 35);
    let (shape, mut x) = random.tensor([m, k]);
    let row = |index: usize| index * k..(index + 1) * k;
    x[row(0)].fill(0.0);
    x[row(1)].fill(-3.25);
    // A wide range, a narrow one far from zero, one outlier, only negative numbers.
    x[row(2)].iter_mut().for_each(|v| *v *= 1e20);
    x[row(3)].iter_mut().for_each(|v| *v = 100.0 + 1e-3 * *v);
    x[row(4)][700] = 5e3;
    x[row(5)].iter_mut().for_each(|v| *v = -v.abs());
    x[row(6)].fill(1e-35);
    let weights = [DType::F32, DType::I8].map(|dtype| random.weight([n, k], &[(n, dtype, 0.3)], Precision::Int8));
    for weight in &weights {
        for row in 0..m {
            // A row by itself: one is not to hide in the size of another.
            check_on_scale(
                &random,
                &format!("int8 of row {row}"),
                SUMS,
                &[(shape, x.clone())],
                |_| 0.0,
                |_, t| t[0].linear(weight, None).slice(0, row, 1),
            );
        }
    }
    // What is not a number stays none, for its token alone.
    for (wrong, at) in [(f32::NAN, 0), (f32::INFINITY, 1499), (f32::NEG_INFINITY, 777), (3e38, 3)] {
        let mut x = x.clone();
        x[row(7)][at] = wrong;
        x[row(7)][at + 1 - 2 * (at % 2)] = -wrong;
        for backend in levels() {
            for weight in &weights {
                let y = Tensor::from_vec(&backend, shape, x.clone()).linear(weight, None).to_vec();
                let finite = |row: usize| y[row * n..(row + 1) * n].iter().filter(|v| v.is_finite()).count();
                assert_eq!(finite(7), 0, "{wrong} on {backend:?}");
                assert!((0..m).all(|row| row == 7 || finite(row) == n), "{wrong} on {backend:?}");
            }
        }
    }
    // A weight that is no number spoils its own column alone.
    let mut values = random.normals(n * k);
    values[3 * k + 1200] = f32::NAN;
    let weight = Weight::from_f32([n, k], &values).with_precision(Precision::Int8);
    for backend in levels() {
        let y = Tensor::from_vec(&backend, shape, x.clone()).linear(&weight, None).to_vec();
        assert!(y.iter().enumerate().all(|(i, v)| v.is_finite() == (i % n != 3)), "{backend:?}");
    }
}

/// A weight that is kept gives the bits that it gives when it is rounded at every product, and takes what the dry run says.
#[test]
fn kept_weights_change_no_bit() {
    let mut random = Random::new();
    for (m, k, n) in [(32, 1, 1), (33, 256, 67), (50, 3, 130), (40, 2560, 35), (1600, 1280, 70)] {
        let inputs = [random.tensor([m, k]), random.tensor([n]), random.tensor([m, n]), random.tensor([m, 7])];
        let factor = random.weight([n, 7], &[(n, DType::F32, 0.3)], Precision::BF16);
        let dtypes = DTYPES.into_iter().chain(DType::BLOCKS.into_iter().filter(|dtype| k % dtype.block() == 0));
        for dtype in dtypes {
            if m > 1000 && dtype != DType::BF16 {
                continue;
            }
            let weight = random.weight([n, k], &[(n / 2, dtype, 1.0), (n - n / 2, dtype, 0.3)], Precision::Int8);
            let case = format!("int8 {m}×{k}→{n} {dtype:?}");
            let results = |weight: &Weight, t: &[Tensor]| {
                let end = End::GatedAdd { residual: &t[2], gate: &t[1] };
                let terms = [Term { x: &t[3], start: 0, weight: &factor, rows: 0..n }];
                let few = t[0].slice(0, 0, 7).linear(weight, None);
                let all =
                    [t[0].linear(weight, Some(&t[1])), Tensor::linear_sum(&[&t[0]], weight, None, &terms, end), few];
                all.map(|y| y.to_vec())
            };
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let backend: Arc<dyn Backend> = Cpu::with_level(level, Some(2));
                let t: Vec<_> = inputs.iter().map(|(s, v)| Tensor::from_vec(&backend, *s, v.clone())).collect();
                let anew = results(&weight, &t);
                let mut keepable = weight.clone();
                let kept = keepable.keep().unwrap();
                assert!(results(&keepable, &t) == anew && kept.taken().is_none(), "{case} on {level:?}: closed");
                kept.open();
                for _ in 0..2 {
                    assert!(results(&keepable, &t) == anew, "{case} on {level:?}: kept; seed {}", random.seed);
                }
                // What is made of it has numbers of its own.
                let half = |weight: &Weight| weight.slice_rows(0..n.div_ceil(2)).scaled(2.0).unwrap();
                assert!(t[0].linear(&half(&keepable), None).to_vec() == t[0].linear(&half(&weight), None).to_vec());

                let dry: Arc<dyn Backend> = DryRun::with_level(level);
                let mut planned = weight.clone();
                let place = planned.keep().unwrap();
                place.open();
                let plan =
                    |rows: usize| drop(Tensor::from_vec(&dry, [rows, k], vec![0.0; rows * k]).linear(&planned, None));
                plan(31);
                assert!(place.taken().is_none(), "{case}: too few rows for int8");
                plan(m);
                assert!(place.taken().is_some() && place.taken() == kept.taken(), "{case} on {level:?}");
                assert_eq!(place.taken().unwrap().stored, weight.byte_len() as u64);
                kept.close();
                assert!(results(&keepable, &t) == anew && kept.taken().is_none(), "{case} on {level:?}: closed again");
            }
        }
    }
    assert!(random.weight([3, 4], &[(3, DType::F32, 1.0)], Precision::BF16).keep().is_none());
}

/// A backend with other vectors, or another one, does not read what is kept for the first.
#[test]
fn what_one_backend_keeps_another_leaves_alone() {
    let mut random = Random::new();
    let mut weight = random.weight([100, 1500], &[(100, DType::BF16, 1.0)], Precision::Int8);
    let x = random.tensor([40, 1500]);
    let kept = weight.keep().unwrap();
    let levels = levels();
    for first in &levels {
        kept.close();
        kept.open();
        let run = |backend: &Arc<dyn Backend>, weight: &Weight| {
            Tensor::from_vec(backend, x.0, x.1.clone()).linear(weight, None).to_vec()
        };
        run(first, &weight);
        for second in &levels {
            assert!(run(second, &weight) == run(second, &weight.clone().with_precision(Precision::Int8)), "{second:?}");
        }
        let reference: Arc<dyn Backend> = Reference::new();
        assert!(nmse(&run(first, &weight), &run(&reference, &weight), |_| LEAST) < SUMS);
    }
}

/// How far int8 is from f32, and that blocks help: one outlier spoils the digits of its own block alone.
#[test]
fn int8_is_near_f32() {
    let mut random = Random::new();
    let (m, k, n) = (64, 2048, 48);
    let mut x = random.normals(m * k);
    let mut distance = |x: &[f32]| {
        let weight = Weight::from_f32([n, k], &random.normals(n * k));
        let backend: Arc<dyn Backend> = Cpu::new(Some(1));
        let x = Tensor::from_vec(&backend, [m, k], x.to_vec());
        let exact = x.linear(&weight, None).to_vec();
        nmse(&x.linear(&weight.with_precision(Precision::Int8), None).to_vec(), &exact, |_| 0.0).sqrt()
    };
    // Numbers within ±3.5 deviations in 255 steps: 0.0079 for each factor.
    let normal = distance(&x);
    x.iter_mut().step_by(k).for_each(|v| *v = 50.0);
    let outlier = distance(&x);
    println!("relative L2 distance of int8: {normal:.4}, with outliers {outlier:.4}");
    assert!(normal < 0.012 && outlier < 0.05, "{normal} {outlier}; seed {}", random.seed);
}
