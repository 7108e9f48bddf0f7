//! Every operation on every backend against the reference, on fresh random inputs and odd shapes.
//!
//! The measure is NMSE, Σ(y − ŷ)² / Σŷ²: one rounding of f32 is about 1e-15 of it, a sum of a thousand products 1e-13. A
//! failure prints its seed; `CONFORMANCE_SEED=… cargo test -p tensor` repeats it.

#[expect(unreachable_pub, reason = "shared with other test files")]
mod support;

use std::sync::Arc;

use support::{DTYPES, EXACT, FUNCTIONS, PRECISIONS, Random, SUMS, check, check_on_scale, levels};
use tensor::{
    Backend, Bytes, DType, End, GroupNorm, Mask, Padding, Precision, Qkv, Rows, Scale, Shape, Tensor, Term, Unary,
    Weight,
    cpu::{Cpu, Level},
};

#[test]
fn linear_in_every_format_and_precision() {
    let mut random = Random::new();
    for (m, k, n) in [
        (0, 5, 3),
        (7, 0, 5),
        (1, 1, 1),
        (1, 17, 33),
        (2, 64, 16),
        (3, 33, 65),
        (4, 129, 31),
        (5, 3, 7),
        (13, 257, 70),
        (17, 300, 35),
        (33, 65, 130),
        (65, 530, 33),
        (38, 2500, 37),
        (41, 3, 7),
        (50, 257, 70),
    ] {
        let x = random.tensor([m, k]);
        let bias = random.tensor([n]);
        for (dtype, precision) in DTYPES.iter().flat_map(|d| PRECISIONS.map(|p| (*d, p))) {
            for pieces in [vec![(n, dtype, 1.0)], vec![(n / 3, dtype, 0.37), (n - n / 3, dtype, 1.0)]] {
                let weight = random.weight([n, k], &pieces, precision);
                let case = format!("linear {m}×{k}→{n} {dtype:?} {precision:?} {} pieces", pieces.len());
                check(&random, &case, SUMS, &[x.clone(), bias.clone()], |_, t| t[0].linear(&weight, Some(&t[1])));
            }
        }
        let mixed = [(n / 4, DType::BF16, 1.0), (n / 2, DType::F8E4M3, 0.05), (n - n / 4 - n / 2, DType::F32, 1.0)];
        for precision in PRECISIONS {
            let weight = random.weight([n, k], &mixed, precision);
            let case = format!("linear {m}×{k}→{n} of three formats, {precision:?}");
            check(&random, &case, SUMS, std::slice::from_ref(&x), |_, t| t[0].linear(&weight, None));
        }
    }
}

#[test]
fn linear_in_formats_with_blocks() {
    let mut random = Random::new();
    for (m, k, n) in [(1, 256, 67), (3, 1280, 35), (5, 512, 33), (33, 1536, 35)] {
        let x = random.tensor([m, k]);
        for (dtype, precision) in DType::BLOCKS.iter().flat_map(|d| PRECISIONS.map(|p| (*d, p))) {
            let mixed = [(n / 3, dtype, 1.0), (1, DType::BF16, 1.0), (n - n / 3 - 1, dtype, 0.3)];
            let weight = random.weight([n, k], &mixed, precision);
            let case = format!("linear {m}×{k}→{n} {dtype:?} {precision:?}");
            check(&random, &case, SUMS, std::slice::from_ref(&x), |_, t| t[0].linear(&weight, None));
        }
    }
}

const FUNCTIONS_OF_ONE: [Unary; 9] = [
    Unary::Silu,
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::QuickGelu,
    Unary::Relu,
    Unary::Relu6,
    Unary::LeakyRelu(0.2),
    Unary::Tanh,
    Unary::Affine(-1.3, 0.7),
];

#[test]
fn linear_with_what_follows() {
    let mut random = Random::new();
    for (m, k, n) in [(1, 40, 19), (3, 65, 64), (30, 70, 100), (65, 33, 33), (40, 1100, 9)] {
        let x = random.tensor([m, k]);
        let [bias, gate] = [random.tensor([n]), random.tensor([n])];
        let residual = random.tensor([m, n]);
        let inputs = [x, bias, gate, residual];
        for precision in PRECISIONS {
            let weight = random.weight([n, k], &[(n, DType::BF16, 1.0)], precision);
            for f in FUNCTIONS_OF_ONE {
                check(&random, &format!("linear {m}×{k}→{n} {f:?}"), SUMS, &inputs, |_, t| {
                    t[0].linear_unary(&weight, Some(&t[1]), f)
                });
            }
            for with_bias in [true, false] {
                check(&random, &format!("linear {m}×{k}→{n} gated"), SUMS, &inputs, |_, t| {
                    t[3].linear_gated_add(&t[2], &[&t[0]], &weight, with_bias.then_some(&t[1]))
                });
            }
        }
    }
}

#[test]
fn linear_with_terms() {
    let mut random = Random::new();
    for (m, k, n) in [(1, 40, 19), (4, 33, 70), (7, 65, 64), (30, 70, 100), (65, 33, 200), (1500, 20, 90)] {
        // One term of several blocks, one of odd rank for rows that no task's columns end with, one of no rank.
        let ranks = [if m < 100 { 1100 } else { 3 }, 5, 0, 16];
        let rows = [0..n, n / 3..n / 2, 1..2, n / 2..n];
        let inputs = [
            random.tensor([m, k]),
            random.tensor([n]),
            random.tensor([n]),
            random.tensor([m, n]),
            random.tensor([m, ranks[0]]),
            random.tensor([m, 2 + 5 + 16]),
        ];
        for precision in PRECISIONS {
            let weight = random.weight([n, k], &[(n, DType::BF16, 1.0)], precision);
            let factors: Vec<Weight> = (ranks.iter().zip(&rows))
                .map(|(&rank, rows)| {
                    let precision = precision.without_int8();
                    let factor = random.weight([rows.len(), rank], &[(rows.len(), DType::F32, 0.3)], precision);
                    let zeros = |count| Weight::zeros(count, rank, precision);
                    Weight::stacked([zeros(rows.start), factor, zeros(n - rows.end)])
                })
                .collect();
            for end in 0..3 {
                check(&random, &format!("linear {m}×{k}→{n} with terms, end {end}"), SUMS, &inputs, |_, t| {
                    let end = match end {
                        0 => End::Nothing,
                        1 => End::Unary(Unary::GeluTanh),
                        _ => End::GatedAdd { residual: &t[3], gate: &t[2] },
                    };
                    let at = [(&t[4], 0), (&t[5], 2), (&t[5], 1), (&t[5], 7)];
                    let terms: Vec<Term<'_>> = (at.iter().zip(&factors).zip(&rows))
                        .map(|(((x, start), weight), rows)| Term { x, start: *start, weight, rows: rows.clone() })
                        .collect();
                    let (left, right) = (t[0].slice(1, 0, k / 3), t[0].slice(1, k / 3, k - k / 3));
                    Tensor::linear_sum(&[&left, &right], &weight, Some(&t[1]), &terms, end)
                });
            }
        }
    }
}

#[test]
fn scaled_weights_are_what_they_say() {
    let mut random = Random::new();
    for dtype in DTYPES.into_iter().chain(DType::BLOCKS) {
        let weight = random.weight([3, 256], &[(1, dtype, 1.0), (2, dtype, 0.5)], Precision::F32);
        let by_rows = weight.scaled_rows(&[2.0, 0.25, -1.0]).unwrap();
        let (all, scaled, whole) = (weight.scaled(4.0).unwrap().to_f32(), by_rows.to_f32(), weight.to_f32());
        for (i, value) in whole.iter().enumerate() {
            assert_eq!(scaled[i], value * [2.0, 0.25, -1.0][i / 256], "{dtype:?}");
            assert_eq!(all[i], value * 4.0, "{dtype:?}");
        }
    }
}

#[test]
fn attention_with_every_mask() {
    let mut random = Random::new();
    for (lq, lk, heads, d) in [
        (1, 1, 1, 1),
        (3, 5, 2, 8),
        (33, 65, 3, 17),
        (77, 77, 2, 64),
        (130, 300, 1, 128),
        (5, 129, 2, 40),
        (20, 33, 1, 512),
        (0, 3, 2, 8),
    ] {
        let [q, k, v] = [random.tensor([lq, heads, d]), random.tensor([lk, heads, d]), random.tensor([lk, heads, d])];
        let mut shifts = random.tensor([heads, lq + lk - 1]);
        // Some keys are out of sight, and scores are large enough for some weights to vanish.
        shifts.1.iter_mut().skip(1).step_by(7).for_each(|b| *b = -1e9);
        let mut by_key = random.tensor([lk]);
        by_key.1.iter_mut().skip(1).step_by(5).for_each(|s| *s = -1e9);
        let inputs = [q, k, v, shifts, by_key];
        for scale in [1.0 / (d as f32).sqrt(), 3.0] {
            for precision in PRECISIONS {
                let case = format!("attention {lq}×{lk}, {heads}×{d}, scale {scale}, {precision}");
                // Scores are rounded at their own size before they are exponents. In bf16 a few weights are then rounded to
                // the other neighbour, 2⁻⁸ away: one in 10³, or four where there are not many.
                let size = f64::from(1.0 + scale * scale * d as f32);
                let rows = (lq * heads).max(1) as f64;
                let bound = if precision == Precision::F32 { SUMS * size } else { 1e-7 * size + 6e-5 / rows };
                let run = |mask: Mask<'_>, t: &[Tensor]| t[0].attention(&t[1], &t[2], scale, mask, precision);
                check(&random, &case, bound, &inputs, |_, t| run(Mask::None, t));
                check(&random, &case, bound, &inputs, |_, t| run(Mask::Relative(&t[3]), t));
                check(&random, &case, bound, &inputs, |_, t| run(Mask::Keys(&t[4]), t));
                if lq == lk {
                    check(&random, &case, bound, &inputs, |_, t| run(Mask::Causal, t));
                }
            }
        }
    }
}

#[test]
fn convolutions() {
    let mut random = Random::new();
    for (h, w, from, to, kh, kw, stride, padding) in [
        (1, 1, 1, 1, 1, 1, 1, Padding::default()),
        (5, 7, 3, 5, 3, 3, 1, Padding::all(1)),
        (9, 6, 16, 33, 3, 3, 1, Padding::all(1)),
        (17, 13, 33, 3, 3, 3, 1, Padding::all(1)),
        (12, 11, 65, 34, 3, 3, 2, Padding { bottom: 1, right: 1, ..Padding::default() }),
        (6, 9, 20, 65, 1, 1, 1, Padding::default()),
        (8, 8, 4, 7, 4, 2, 2, Padding { top: 2, left: 0, bottom: 1, right: 3 }),
        (14, 14, 3, 20, 14, 14, 14, Padding::default()),
    ] {
        let x = random.tensor([h, w, from]);
        let bias = random.tensor([to]);
        for (dtype, precision) in DTYPES.iter().flat_map(|d| PRECISIONS.map(|p| (*d, p))) {
            let weight =
                random.weight([to, from, kh, kw], &[(to / 2, dtype, 1.0), (to - to / 2, dtype, 0.3)], precision);
            let case = format!("conv {h}×{w}×{from}→{to}, {kh}×{kw}/{stride} {padding:?} {dtype:?} {precision:?}");
            let inputs = [x.clone(), bias.clone()];
            check(&random, &case, SUMS, &inputs, |_, t| t[0].conv2d(&weight, Some(&t[1]), stride, padding));
            check(&random, &format!("doubled {case}"), SUMS, &inputs, |_, t| {
                t[0].upsample_conv2d(&weight, Some(&t[1]), padding)
            });
            check(&random, &format!("{case}, then silu"), SUMS, &inputs, |_, t| {
                t[0].conv2d_unary(&weight, Some(&t[1]), stride, padding, Unary::Silu)
            });
        }
        let weight = random.weight([to, from, kh, kw], &[(to, DType::F32, 1.0)], Precision::F32);
        check(&random, "conv without bias", SUMS, &[x], |_, t| t[0].conv2d(&weight, None, stride, padding));
    }
}

#[test]
fn convolutions_of_each_channel() {
    let mut random = Random::new();
    for (h, w, c, kh, kw, stride, padding) in [
        (1, 1, 1, 1, 1, 1, Padding::default()),
        (5, 7, 3, 3, 3, 1, Padding::all(1)),
        (9, 6, 16, 3, 3, 1, Padding::all(1)),
        (13, 11, 33, 3, 3, 2, Padding { bottom: 1, right: 1, ..Padding::default() }),
        (8, 9, 70, 4, 2, 2, Padding { top: 2, left: 0, bottom: 1, right: 3 }),
        (3, 2, 17, 5, 5, 1, Padding::all(2)),
        (40, 50, 96, 3, 3, 2, Padding::all(1)),
    ] {
        let inputs = [random.tensor([h, w, c]), random.tensor([kh, kw, c]), random.tensor([c])];
        let case = format!("depthwise {h}×{w}×{c}, {kh}×{kw}/{stride} {padding:?}");
        check(&random, &case, SUMS, &inputs, |_, t| t[0].depthwise_conv2d(&t[1], Some(&t[2]), stride, padding));
        check(&random, &case, SUMS, &inputs, |_, t| t[0].depthwise_conv2d(&t[1], None, stride, padding));
    }
}

#[test]
fn attention_of_streams() {
    let mut random = Random::new();
    for (tokens, heads, d, columns) in
        [(vec![1], 1, 2, 6), (vec![5, 40], 3, 16, 150), (vec![70], 2, 64, 400), (vec![33, 0, 100], 2, 128, 768)]
    {
        let all: usize = tokens.iter().sum();
        let angle: Vec<f32> = random.normals(all * d / 2);
        let angles = ([all, d / 2, 2].into(), angle.iter().flat_map(|a| [a.cos(), a.sin()]).collect());
        let mut inputs = vec![angles, random.tensor([all])];
        for &tokens in &tokens {
            inputs.extend([random.tensor([tokens, columns]), random.tensor([d]), random.tensor([d])]);
        }
        for precision in PRECISIONS {
            // In bf16 the norm's last bit may change which way a query or a key is rounded: 2⁻⁸ of a few of them.
            let bound = if precision == Precision::F32 { 1e-10 } else { 2e-6 + 6e-5 / (all * heads) as f64 };
            for shifted in [false, true] {
                let case = format!("streams of {tokens:?}, {heads}×{d}, {precision}, shifted {shifted}");
                check(&random, &case, bound, &inputs, |_, t| {
                    let streams: Vec<_> =
                        t[2..].chunks(3).map(|s| Qkv { x: &s[0], query_norm: &s[1], key_norm: &s[2] }).collect();
                    Tensor::joint_attention(&streams, heads, &t[0], shifted.then_some(&t[1]), 1e-6, precision)
                });
            }
        }
    }
}

#[test]
fn norms() {
    let mut random = Random::new();
    for (rows, width) in [(1, 1), (3, 17), (5, 64), (33, 65), (2, 3072), (300, 100), (0, 8)] {
        let [x, shift, scale] = [random.tensor([rows, width]), random.tensor([width]), random.tensor([width])];
        // Far from zero, where a difference of squares would lose its digits.
        let far = (x.0, x.1.iter().map(|v| v + 100.0).collect());
        let inputs = [x, shift, scale, far];
        let case = format!("norm of {rows}×{width}");
        check(&random, &case, FUNCTIONS, &inputs, |_, t| t[0].layer_norm(1e-6));
        check(&random, &case, FUNCTIONS, &inputs, |_, t| t[0].modulated_norm(&t[1], &t[2], 1e-6));
        check(&random, &case, FUNCTIONS, &inputs, |_, t| t[0].rms_norm(&t[1], 1e-6));
        // A mean of 100 is known to half a unit of its last place, 4e-6, and so is the distance from it.
        check(&random, &case, 1e-9, &inputs, |_, t| t[3].layer_norm(1e-5));
    }
    // Groups of a few numbers may happen to be nearly equal, and then nobody knows their deviation: six are enough.
    for (h, w, channels, groups) in [(1, 3, 4, 2), (3, 5, 6, 3), (16, 17, 32, 32), (33, 20, 128, 32), (7, 9, 33, 1)] {
        let [x, weight, bias] = [random.tensor([h, w, channels]), random.tensor([channels]), random.tensor([channels])];
        let far = (x.0, x.1.iter().map(|v| v + 30.0).collect());
        let inputs = [x, weight, bias, far];
        let case = format!("group norm of {h}×{w}×{channels} by {groups}");
        let norm = |x: &Tensor, t: &[Tensor], eps| x.group_norm(GroupNorm { groups, weight: &t[1], bias: &t[2], eps });
        check(&random, &case, FUNCTIONS, &inputs, |_, t| norm(&t[0], t, 1e-6));
        check(&random, &case, 1e-9, &inputs, |_, t| norm(&t[3], t, 1e-5));
    }
}

/// Columns that lie in several tensors are those of one, bit for bit.
#[test]
fn linear_of_columns_side_by_side() {
    let mut random = Random::new();
    let n = 37;
    for (m, widths) in [(2, vec![40, 7]), (9, vec![3, 1, 60]), (30, vec![1024, 1024]), (50, vec![1500, 33, 700])] {
        let k = widths.iter().sum();
        for (precision, backend) in PRECISIONS.iter().flat_map(|p| levels().into_iter().map(|b| (*p, b))) {
            let weight = random.weight([n, k], &[(n, DType::F16, 1.0)], precision);
            let mut tensor = |shape: Shape| {
                let (shape, values) = random.tensor(shape);
                Tensor::from_vec(&backend, shape, values)
            };
            let [residual, gate, x] = [[m, n].into(), [n].into(), [m, k].into()].map(&mut tensor);
            let starts = widths.iter().scan(0, |at, width| Some((std::mem::replace(at, *at + width), *width)));
            let parts: Vec<Tensor> = starts.map(|(start, width)| x.slice(1, start, width)).collect();
            let joined = residual.linear_gated_add(&gate, &[&x], &weight, None);
            let apart = residual.linear_gated_add(&gate, &parts.iter().collect::<Vec<_>>(), &weight, None);
            assert!(joined.to_vec() == apart.to_vec(), "{m}×{widths:?} {precision} {backend:?}; seed {}", random.seed);
        }
    }
}

/// What is normed while it is read is what is normed before; a norm's last bit may round to another bf16 number, so that
/// in other arithmetic than f32 one backend is compared with itself.
#[test]
fn convolutions_of_normed_pictures() {
    let mut random = Random::new();
    for (h, w, from, to, k, groups) in
        [(1, 1, 2, 3, 1, 1), (5, 70, 33, 5, 3, 3), (19, 13, 64, 40, 3, 32), (9, 65, 8, 3, 5, 1)]
    {
        let padding = Padding::all(k / 2);
        let [x, gain, offset] = [random.tensor([h, w, from]), random.tensor([from]), random.tensor([from])];
        let inputs = [x, gain, offset, random.tensor([to]), random.tensor([h, w, to])];
        for precision in PRECISIONS {
            let weight = random.weight([to, from, k, k], &[(to, DType::BF16, 1.0)], precision);
            let case = format!("norm, SiLU, conv {h}×{w}×{from}→{to}, {k}×{k}, {groups} groups, {precision:?}");
            for residual in [false, true] {
                let fused = |t: &[Tensor]| {
                    let norm = GroupNorm { groups, weight: &t[1], bias: &t[2], eps: 1e-6 };
                    t[0].norm_silu_conv2d(norm, &weight, Some(&t[3]), padding, residual.then_some(&t[4]))
                };
                if precision == Precision::F32 {
                    check(&random, &case, SUMS, &inputs, |_, t| fused(t));
                }
                for backend in levels() {
                    let t: Vec<_> = inputs.iter().map(|(s, v)| Tensor::from_vec(&backend, *s, v.clone())).collect();
                    let norm = GroupNorm { groups, weight: &t[1], bias: &t[2], eps: 1e-6 };
                    let plain = t[0].group_norm(norm).silu().conv2d(&weight, Some(&t[3]), 1, padding);
                    let plain = if residual { t[4].add(&plain) } else { plain };
                    assert!(fused(&t).to_vec() == plain.to_vec(), "{case} on {backend:?}; seed {}", random.seed);
                }
            }
        }
    }
}

#[test]
fn rotations() {
    let mut random = Random::new();
    for (tokens, heads, d, start, columns) in
        [(1, 1, 2, 0, 2), (3, 2, 6, 5, 40), (17, 3, 64, 192, 600), (65, 5, 34, 1, 200), (0, 1, 8, 0, 8)]
    {
        let x = random.tensor([tokens, heads, d]);
        let fused = random.tensor([tokens, columns]);
        let angle: Vec<f32> = random.normals(tokens * d / 2);
        let angles = ([tokens, d / 2, 2].into(), angle.iter().flat_map(|a| [a.cos(), a.sin()]).collect());
        let weight = random.tensor([d]);
        let inputs = [x, fused, angles, weight];
        let case = format!("rope of {tokens}×{heads}×{d}");
        check(&random, &case, FUNCTIONS, &inputs, |_, t| t[0].rope(&t[2]));
        check(&random, &case, FUNCTIONS, &inputs, |_, t| t[1].qk_norm_rope(start, heads, &t[3], &t[2], 1e-6));
    }
}

#[test]
fn elementwise() {
    let mut random = Random::new();
    for (rows, width) in [(1, 1), (3, 17), (33, 65), (20, 1000), (0, 4), (300, 129)] {
        let inputs = [random.tensor([rows, width]), random.tensor([rows, width]), random.tensor([width])];
        for f in FUNCTIONS_OF_ONE {
            // Each of them is about its argument or a part of it.
            let argument = |i: usize| 6.0 * inputs[0].1[i];
            check_on_scale(&random, &format!("{f:?} of {rows}×{width}"), FUNCTIONS, &inputs, argument, |_, t| {
                t[0].affine(6.0, 0.0).unary(f)
            });
        }
        for b in [1, 2] {
            let case = format!("a function of two, {rows}×{width}, {b}");
            check(&random, &case, EXACT, &inputs, |_, t| t[0].add(&t[b]));
            check(&random, &case, EXACT, &inputs, |_, t| t[0].sub(&t[b]));
            check(&random, &case, EXACT, &inputs, |_, t| t[0].mul(&t[b]));
        }
        check(&random, "add scaled", FUNCTIONS, &inputs, |_, t| t[0].add_scaled(-0.3, &t[1]));
    }
}

#[test]
fn movements() {
    let mut random = Random::new();
    for shape in [[2, 3, 4, 5], [1, 17, 1, 33], [3, 1, 65, 2], [7, 40, 30, 16]] {
        let inputs = [random.tensor(shape), random.tensor(shape)];
        for axis in 0..4 {
            let case = format!("axis {axis} of {shape:?}");
            let extent = shape[axis];
            check(&random, &case, EXACT, &inputs, |_, t| t[0].slice(axis, extent / 3, extent - extent / 2));
            check(&random, &case, EXACT, &inputs, |_, t| t[0].slice(axis, extent / 2, 0));
            check(&random, &case, EXACT, &inputs, |_, t| {
                Tensor::concat(&[&t[0], &t[1].slice(axis, 0, extent.div_ceil(2)), &t[1]], axis)
            });
        }
        for axes in [[3, 2, 1, 0], [0, 2, 1, 3], [1, 0, 3, 2], [2, 3, 0, 1]] {
            check(&random, &format!("{axes:?} of {shape:?}"), EXACT, &inputs, |_, t| t[0].permute(&axes));
        }
    }
    for shape in [[1, 1, 1], [3, 5, 7], [16, 9, 64]] {
        let inputs = [random.tensor(shape)];
        check(&random, &format!("doubling {shape:?}"), EXACT, &inputs, |_, t| t[0].upsample_nearest_2x());
        check(&random, &format!("turning {shape:?}"), EXACT, &inputs, |_, t| t[0].permute(&[2, 0, 1]));
    }
}

#[test]
fn embeddings() {
    let mut random = Random::new();
    for dtype in DTYPES {
        let table = random.weight([50, 33], &[(20, dtype, 0.5), (30, dtype, 1.0)], Precision::BF16);
        check(&random, &format!("embedding {dtype:?}"), EXACT, &[], |backend, _| {
            Tensor::embedding(backend, &table, &[49, 0, 20, 19, 19])
        });
    }
}

/// The bits of one result of every kind of operation, each large enough to be shared among threads.
fn everything(backend: &Arc<dyn Backend>, random: &mut Random) -> Vec<(&'static str, Vec<f32>)> {
    let mut upload = |shape: &[usize]| {
        let (shape, values) = random.tensor(Shape::new(shape));
        Tensor::from_vec(backend, shape, values)
    };
    let [x, few] = [upload(&[150, 300]), upload(&[3, 300])];
    let [row, wide] = [upload(&[300]), upload(&[333])];
    let picture = upload(&[40, 41, 96]);
    let [gain, offset] = [upload(&[96]), upload(&[96])];
    let norm = GroupNorm { groups: 32, weight: &gain, bias: &offset, eps: 1e-6 };
    let [q, k, v] = [upload(&[140, 3, 40]), upload(&[200, 3, 40]), upload(&[200, 3, 40])];
    let angles = upload(&[150, 25, 2]);
    let mut results = Vec::new();
    for precision in PRECISIONS {
        let weight = random.weight([333, 300], &[(100, DType::F16, 1.0), (233, DType::BF16, 1.0)], precision);
        results.push(("linear", x.linear_unary(&weight, Some(&wide), Unary::GeluTanh)));
        results.push(("linear of few rows", few.linear(&weight, None)));
        let kernel = random.weight([70, 96, 3, 3], &[(70, DType::BF16, 1.0)], precision);
        results.push(("conv", picture.conv2d(&kernel, None, 1, Padding::all(1))));
        results.push(("normed conv", picture.norm_silu_conv2d(norm, &kernel, None, Padding::all(1), None)));
    }
    for precision in PRECISIONS {
        results.push(("attention", q.attention(&k, &v, 0.2, Mask::None, precision)));
    }
    results.push(("layer norm", x.modulated_norm(&row, &row, 1e-6)));
    results.push(("rms norm", x.rms_norm(&row, 1e-6)));
    results.push(("group norm", picture.group_norm(norm)));
    results.push(("rope", x.reshape([150, 6, 50]).rope(&angles)));
    results.push(("silu", picture.silu()));
    results.push(("row", x.mul(&row)));
    results.push(("permute", picture.permute(&[2, 0, 1])));
    results.push(("double", picture.upsample_nearest_2x()));
    results.into_iter().map(|(name, y)| (name, y.to_vec())).collect()
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let random = Random::new();
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        let [one, two, five] = [1, 2, 5].map(|threads| {
            let backend: Arc<dyn Backend> = Cpu::with_level(level, Some(threads));
            everything(&backend, &mut Random { ..random })
        });
        for (((name, one), (_, two)), (_, five)) in one.iter().zip(&two).zip(&five) {
            assert!(one == two && one == five, "{name} at {level:?} depends on threads; seed {}", random.seed);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_pieces_of_a_weight() {
    let mut random = Random::new();
    let (n, k) = (101, 77);
    for (dtype, precision) in DTYPES.iter().flat_map(|d| PRECISIONS.map(|p| (*d, p))) {
        let bytes = Bytes::from(random.bytes(dtype, n * k));
        let piece = |from: usize, to: usize| Rows {
            count: to - from,
            dtype,
            scale: Scale::All(0.4),
            bytes: bytes.slice(dtype.bytes(from * k)..dtype.bytes(to * k)),
        };
        let stacked = |cuts: &[usize]| {
            let pieces = cuts.windows(2).map(|cut| piece(cut[0], cut[1])).collect();
            Weight::new([cuts[cuts.len() - 1] - cuts[0], k], pieces, precision)
        };
        for (backend, m) in levels().iter().flat_map(|b| [2, 20].map(|m| (b, m))) {
            let (shape, values) = random.tensor([m, k]);
            let x = Tensor::from_vec(backend, shape, values);
            let whole = x.linear(&stacked(&[0, n]), None);
            let three = x.linear(&stacked(&[0, 33, 34, n]), None);
            assert!(whole.to_vec() == three.to_vec(), "{backend:?} {dtype:?} {precision:?}; seed {}", random.seed);
            // A piece by itself gives the same columns as within a stack.
            let part = x.linear(&stacked(&[34, n]), None);
            assert!(
                whole.slice(1, 34, n - 34).to_vec() == part.to_vec(),
                "{backend:?} {dtype:?}; seed {}",
                random.seed
            );
        }
    }
}
