//! Every operation in the plainest loops: the specification that runs.
//!
//! Sums are f64, results are rounded to f32 once. Fused operations are left at their default bodies.

use std::{f64::consts, sync::Arc};

use half::bf16;

use crate::{
    Backend, Binary, DType, GroupNorm, Mask, Padding, Precision, Shape, Tensor, Unary, Weight,
    host::{HostBuffer, values},
    int8::{self, Activation, WeightScale},
};

/// The backend that other backends are compared with.
#[derive(Debug, Default)]
pub struct Reference;

impl Reference {
    /// Starts it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self)
    }
}

fn result(x: &Tensor, shape: impl Into<Shape>, values: Vec<f32>) -> Tensor {
    x.like(shape, HostBuffer::from_vec(values).share())
}

/// A factor of a product, as the weight's precision wants it.
fn factor(value: f32, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => value.into(),
        Precision::BF16 | Precision::Int8 => bf16::from_f32(value).into(),
    }
}

fn factors(values: &[f32], precision: Precision) -> Vec<f64> {
    values.iter().map(|&v| factor(v, precision)).collect()
}

/// A linear layer by the rule of [`int8`].
fn linear_int8(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
    let (m, k, n) = (x.shape().rows(), weight.row_len(), weight.out_features());
    let mut y: Vec<f64> = (0..m * n).map(|i| bias.map_or(0.0, |b| values(b)[i % n].into())).collect();
    let not_finite = |numbers: &[f32]| if numbers.iter().all(|v| v.is_finite()) { 0.0 } else { f32::NAN };
    for start in (0..k).step_by(int8::BLOCK) {
        let block = start..k.min(start + int8::BLOCK);
        let activations: Vec<(Activation, Vec<i64>)> = (0..m)
            .map(|row| {
                let numbers = &values(x)[row * k..][block.clone()];
                let low = numbers.iter().copied().fold(f32::INFINITY, f32::min);
                let high = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let rule = Activation::new(low, high, not_finite(numbers));
                let q = |&v: &f32| ((v - rule.low) * rule.inverse).round_ties_even() as i64 - 128;
                (rule, numbers.iter().map(q).collect())
            })
            .collect();
        for (out, stored) in weight.stored_rows(0).enumerate() {
            let mut numbers = vec![0.0; k];
            let (scale, p): (f32, Vec<i64>) = if stored.dtype == DType::I8 {
                (stored.scale, stored.bytes[block.clone()].iter().map(|&byte| i64::from(byte as i8)).collect())
            } else {
                stored.decode(0, &mut numbers);
                let numbers = &numbers[block.clone()];
                let largest = numbers.iter().map(|v| v.abs()).fold(0.0, f32::max);
                let rule = WeightScale::new(largest + not_finite(numbers));
                (rule.scale, numbers.iter().map(|v| (v * rule.inverse).round_ties_even() as i64).collect())
            };
            let sum: i64 = p.iter().sum();
            for (row, (rule, q)) in activations.iter().enumerate() {
                let product: i64 = q.iter().zip(&p).map(|(q, p)| q * p).sum();
                let [step, offset, scale] = [rule.step, rule.offset, scale].map(f64::from);
                y[row * n + out] += scale * (step * product as f64 + offset * sum as f64);
            }
        }
    }
    result(x, x.shape().with_last(n), y.into_iter().map(|v| v as f32).collect())
}

/// Applies `f` to each row of the last axis.
fn by_row(x: &Tensor, f: impl Fn(&[f32]) -> Vec<f32>) -> Tensor {
    result(x, x.shape(), values(x).chunks(x.shape().last().max(1)).flat_map(f).collect())
}

/// Mean and biased variance.
fn moments(x: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = x.clone().count() as f64;
    let mean = x.clone().sum::<f64>() / n;
    (mean, x.map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

/// `2/√π ∫₀ˣ exp(−t²) dt`, by `2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!`, whose terms all have one sign.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
    while sum + term != sum {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn apply(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Silu => x * sigmoid(x),
        Unary::Gelu => 0.5 * x * (1.0 + erf(x * consts::FRAC_1_SQRT_2)),
        Unary::GeluTanh => 0.5 * x * (1.0 + ((2.0 / consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Unary::QuickGelu => x * sigmoid(1.702 * x),
        Unary::Relu => x.max(0.0),
        Unary::Relu6 => x.clamp(0.0, 6.0),
        Unary::LeakyRelu(a) => x.max(f64::from(a) * x),
        Unary::Tanh => x.tanh(),
        Unary::Affine(a, b) => f64::from(a) * x + f64::from(b),
    }
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor {
        Tensor::new(shape, HostBuffer::from_vec(values).share(), self)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        values(x).to_vec()
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        let (m, k, n) = (x.shape().rows(), weight.row_len(), weight.out_features());
        if weight.precision() == Precision::Int8 && m >= int8::LEAST_ROWS {
            return linear_int8(x, weight, bias);
        }
        let w = factors(&weight.to_f32(), weight.precision());
        let x_factors = factors(values(x), weight.precision());
        let mut y = Vec::with_capacity(m * n);
        for row in 0..m {
            for out in 0..n {
                let product: f64 = (0..k).map(|i| x_factors[row * k + i] * w[out * k + i]).sum();
                y.push((product + bias.map_or(0.0, |b| values(b)[out].into())) as f32);
            }
        }
        result(x, x.shape().with_last(n), y)
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: f32,
        mask: Mask<'_>,
        precision: Precision,
    ) -> Tensor {
        let [lq, heads, d] = [q.shape()[0], q.shape()[1], q.shape()[2]];
        let lk = k.shape()[0];
        // Scores in units of log₂.
        let q_scaled = values(q).iter().map(|&q| match precision {
            Precision::F32 => f64::from(q) * f64::from(scale) * consts::LOG2_E,
            _ => factor(q * (scale * consts::LOG2_E as f32), precision),
        });
        let [q_scaled, k, v] = [q_scaled.collect(), factors(values(k), precision), factors(values(v), precision)];
        let element = |x: &[f64], token: usize, head: usize, i: usize| x[(token * heads + head) * d + i];
        let mut y = Vec::with_capacity(lq * heads * d);
        for query in 0..lq {
            for head in 0..heads {
                let seen = if matches!(mask, Mask::Causal) { query + 1 } else { lk };
                let score = |key: usize| {
                    let product: f64 =
                        (0..d).map(|i| element(&q_scaled, query, head, i) * element(&k, key, head, i)).sum();
                    let shift = match mask {
                        Mask::Relative(shifts) => values(shifts)[head * (lq + lk - 1) + key + lq - 1 - query],
                        Mask::Keys(shift) => values(shift)[key],
                        Mask::None | Mask::Causal => 0.0,
                    };
                    product + f64::from(shift) * consts::LOG2_E
                };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weight = |score: &f64| match precision {
                    Precision::F32 => (score - max).exp2(),
                    _ => factor((score - max.ceil()).exp2() as f32, precision),
                };
                let weights: Vec<f64> = scores.iter().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..d {
                    let mixed: f64 = (0..seen).map(|key| weights[key] * element(&v, key, head, i)).sum();
                    y.push((mixed / sum) as f32);
                }
            }
        }
        result(q, q.shape(), y)
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let [kh, kw] = [weight.shape()[2], weight.shape()[3]];
        let [h_out, w_out, out] = padding.output(x.shape(), weight.shape(), stride);
        let kernel = factors(&weight.to_f32(), weight.precision());
        let pixels = factors(values(x), weight.precision());
        let mut y = Vec::with_capacity(h_out * w_out * out);
        for (row, column, o) in triples(h_out, w_out, out) {
            let mut sum = bias.map_or(0.0, |b| f64::from(values(b)[o]));
            for (i, j, channel) in triples(kh, kw, c) {
                // Outside of the picture is zero.
                let (r, s) =
                    ((row * stride + i).wrapping_sub(padding.top), (column * stride + j).wrapping_sub(padding.left));
                if r < h && s < w {
                    sum += pixels[(r * w + s) * c + channel] * kernel[((o * c + channel) * kh + i) * kw + j];
                }
            }
            y.push(sum as f32);
        }
        result(x, [h_out, w_out, out], y)
    }

    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor {
        let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let [kh, kw] = [kernel.shape()[0], kernel.shape()[1]];
        let [h_out, w_out, _] = padding.depthwise(x.shape(), kernel.shape(), stride);
        let mut y = Vec::with_capacity(h_out * w_out * c);
        for (row, column, channel) in triples(h_out, w_out, c) {
            let mut sum = bias.map_or(0.0, |b| f64::from(values(b)[channel]));
            for (i, j, _) in triples(kh, kw, 1) {
                // Outside of the picture is zero.
                let (r, s) =
                    ((row * stride + i).wrapping_sub(padding.top), (column * stride + j).wrapping_sub(padding.left));
                if r < h && s < w {
                    let [number, factor] =
                        [values(x)[(r * w + s) * c + channel], values(kernel)[(i * kw + j) * c + channel]];
                    sum += f64::from(number) * f64::from(factor);
                }
            }
            y.push(sum as f32);
        }
        result(x, [h_out, w_out, c], y)
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        by_row(x, |row| {
            let (mean, variance) = moments(row.iter().map(|&v| v.into()));
            row.iter().map(|&v| ((f64::from(v) - mean) / (variance + f64::from(eps)).sqrt()) as f32).collect()
        })
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        by_row(x, |row| {
            let mean_square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / row.len() as f64;
            let rms = (mean_square + f64::from(eps)).sqrt();
            row.iter().zip(values(weight)).map(|(&v, &w)| (f64::from(v) / rms * f64::from(w)) as f32).collect()
        })
    }

    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor {
        let GroupNorm { groups, weight, bias, eps } = norm;
        let channels = x.shape()[2];
        let per_group = channels / groups;
        let (w, b) = (values(weight), values(bias));
        let mut y = values(x).to_vec();
        for group in 0..groups {
            let members = || (0..values(x).len()).filter(|i| i % channels / per_group == group);
            let (mean, variance) = moments(members().map(|i| values(x)[i].into()));
            let deviation = (variance + f64::from(eps)).sqrt();
            for i in members() {
                let normed = (f64::from(y[i]) - mean) / deviation;
                y[i] = (normed * f64::from(w[i % channels]) + f64::from(b[i % channels])) as f32;
            }
        }
        result(x, x.shape(), y)
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        result(x, x.shape(), values(x).iter().map(|&v| apply(f, v.into()) as f32).collect())
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        let f = |(a, b): (&f32, &f32)| match f {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
        };
        result(a, a.shape(), values(a).iter().zip(values(b).iter().cycle()).map(f).collect())
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        let [heads, d] = [x.shape()[1], x.shape()[2]];
        let mut y = values(x).to_vec();
        for (pair, y) in y.chunks_exact_mut(2).enumerate() {
            let (token, j) = (pair / (heads * d / 2), pair % (d / 2));
            let angle = (token * (d / 2) + j) * 2;
            let [cos, sin] = [values(angles)[angle], values(angles)[angle + 1]].map(f64::from);
            let [even, odd] = [y[0], y[1]].map(f64::from);
            y[0] = (cos * even - sin * odd) as f32;
            y[1] = (sin * even + cos * odd) as f32;
        }
        result(x, x.shape(), y)
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let d = table.row_len();
        let mut y = vec![0.0; ids.len() * d];
        for (position, &id) in ids.iter().enumerate() {
            table.decode_row(id as usize, &mut y[position * d..(position + 1) * d]);
        }
        self.upload([ids.len(), d].into(), y)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let shape = parts[0].shape();
        let outer: usize = shape.dims()[..axis].iter().product();
        let mut y = Vec::new();
        for i in 0..outer {
            for part in parts {
                let run = part.shape().count() / outer;
                y.extend_from_slice(&values(part)[i * run..(i + 1) * run]);
            }
        }
        result(parts[0], shape.with(axis, parts.iter().map(|p| p.shape()[axis]).sum()), y)
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        let inner: usize = x.shape().dims()[axis + 1..].iter().product();
        let outer: usize = x.shape().dims()[..axis].iter().product();
        let part = |i| (i * x.shape()[axis] + start) * inner..(i * x.shape()[axis] + start + len) * inner;
        let y = (0..outer).flat_map(|i| &values(x)[part(i)]).copied().collect();
        result(x, x.shape().with(axis, len), y)
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let extents: Vec<usize> = axes.iter().map(|&axis| x.shape()[axis]).collect();
        let strides: Vec<usize> = axes.iter().map(|&axis| x.shape().dims()[axis + 1..].iter().product()).collect();
        let from = |mut index: usize| {
            let mut offset = 0;
            for (extent, stride) in extents.iter().zip(&strides).rev() {
                offset += index % extent * stride;
                index /= extent;
            }
            offset
        };
        result(x, Shape::new(&extents), (0..x.shape().count()).map(|i| values(x)[from(i)]).collect())
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        let [h, w, c] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let y = triples(2 * h, 2 * w, c).map(|(row, column, i)| values(x)[(row / 2 * w + column / 2) * c + i]);
        result(x, [2 * h, 2 * w, c], y.collect())
    }
}

/// The indices of three nested loops.
fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}
