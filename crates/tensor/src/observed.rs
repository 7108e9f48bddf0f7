//! A backend around another that tells somebody of every operation: what kind it is, how long it took, what it gave. For
//! programs that want to know where the time of a run goes, and for tests that look at blocks which a model does not show.
//!
//! Operations are those of the inner backend, fused where that fuses them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{Backend, Binary, End, GroupNorm, Mask, Padding, Precision, Qkv, Shape, Tensor, Term, Unary, Weight};

/// What an operation spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A product with a weight.
    Linear,
    /// Scores, their softmax and the product with values.
    Attention,
    /// A convolution.
    Conv,
    /// Norms, functions of elements, copies.
    Other,
}

/// An operation that was done.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// What it spent its time on.
    pub kind: Kind,
    /// How long it took.
    pub time: Duration,
    /// What it gave: a tensor of the inner backend.
    pub result: &'a Tensor,
}

/// The backend around another. Its tensors hold the inner backend's.
pub struct Observed {
    inner: Arc<dyn Backend>,
    observer: Box<dyn Fn(Done<'_>) + Send + Sync>,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Observed {
    /// Around `inner`; `observer` is called after each operation, on the thread that asked for it.
    pub fn new(inner: Arc<dyn Backend>, observer: impl Fn(Done<'_>) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { inner, observer: Box::new(observer) })
    }

    fn observe(&self, kind: Kind, run: impl FnOnce() -> Tensor) -> Tensor {
        let start = Instant::now();
        let result = run();
        (self.observer)(Done { kind, time: start.elapsed(), result: &result });
        result
    }

    /// The observed result of the inner backend as one of this backend, which `x` is of.
    fn wrap(&self, x: &Tensor, kind: Kind, run: impl FnOnce() -> Tensor) -> Tensor {
        let y = self.observe(kind, run);
        x.like(y.shape(), Arc::new(y))
    }
}

/// The inner backend's tensor.
#[track_caller]
fn open(x: &Tensor) -> Tensor {
    match x.buffer().downcast_ref::<Tensor>() {
        Some(inner) => inner.reshape(x.shape()),
        None => panic!("a tensor of another backend came to the observed one"),
    }
}

/// Only forwards. Every operation has to be here: one that is left to its default body is observed in parts, and is not what
/// the inner backend computes.
impl Backend for Observed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn release_idle(&self) {
        self.inner.release_idle();
    }

    fn computes(&self) -> bool {
        self.inner.computes()
    }

    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor {
        let y = self.inner.clone().upload(shape, values);
        Tensor::new(shape, Arc::new(y), self)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        open(x).to_vec()
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        let (inner, bias) = (open(x), bias.map(open));
        self.wrap(x, Kind::Linear, || self.inner.linear(&inner, weight, bias.as_ref()))
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
        let [inner_q, inner_k, inner_v] = [q, k, v].map(open);
        let shifts = match mask {
            Mask::Relative(shifts) | Mask::Keys(shifts) => Some(open(shifts)),
            Mask::None | Mask::Causal => None,
        };
        let mask = match (mask, &shifts) {
            (Mask::Relative(_), Some(shifts)) => Mask::Relative(shifts),
            (Mask::Keys(_), Some(shifts)) => Mask::Keys(shifts),
            (mask, _) => mask,
        };
        self.wrap(q, Kind::Attention, || self.inner.attention(&inner_q, &inner_k, &inner_v, scale, mask, precision))
    }

    fn joint_attention(
        &self,
        streams: &[Qkv<'_>],
        heads: usize,
        angles: &Tensor,
        shift: Option<&Tensor>,
        eps: f32,
        precision: Precision,
    ) -> Tensor {
        let shift = shift.map(open);
        let shift = shift.as_ref();
        let inner: Vec<[Tensor; 3]> = streams.iter().map(|s| [s.x, s.query_norm, s.key_norm].map(open)).collect();
        let inner: Vec<Qkv<'_>> =
            inner.iter().map(|[x, query_norm, key_norm]| Qkv { x, query_norm, key_norm }).collect();
        let inner_angles = open(angles);
        let run = || self.inner.joint_attention(&inner, heads, &inner_angles, shift, eps, precision);
        self.wrap(angles, Kind::Attention, run)
    }

    fn norm_silu_conv2d(
        &self,
        x: &Tensor,
        norm: GroupNorm<'_>,
        weight: &Weight,
        bias: Option<&Tensor>,
        padding: Padding,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let [gain, offset, inner] = [norm.weight, norm.bias, x].map(open);
        let norm = GroupNorm { weight: &gain, bias: &offset, ..norm };
        let [bias, residual] = [bias, residual].map(|tensor| tensor.map(open));
        self.wrap(x, Kind::Conv, || {
            self.inner.norm_silu_conv2d(&inner, norm, weight, bias.as_ref(), padding, residual.as_ref())
        })
    }

    fn conv2d_unary(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
        f: Unary,
    ) -> Tensor {
        let (inner, bias) = (open(x), bias.map(open));
        self.wrap(x, Kind::Conv, || self.inner.conv2d_unary(&inner, weight, bias.as_ref(), stride, padding, f))
    }

    fn upsample_conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, padding: Padding) -> Tensor {
        let (inner, bias) = (open(x), bias.map(open));
        self.wrap(x, Kind::Conv, || self.inner.upsample_conv2d(&inner, weight, bias.as_ref(), padding))
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        let (inner, bias) = (open(x), bias.map(open));
        self.wrap(x, Kind::Conv, || self.inner.conv2d(&inner, weight, bias.as_ref(), stride, padding))
    }

    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor {
        let ([inner, kernel], bias) = ([x, kernel].map(open), bias.map(open));
        self.wrap(x, Kind::Conv, || self.inner.depthwise_conv2d(&inner, &kernel, bias.as_ref(), stride, padding))
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        let inner = open(x);
        self.wrap(x, Kind::Other, || self.inner.layer_norm(&inner, eps))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        let [inner, weight] = [x, weight].map(open);
        self.wrap(x, Kind::Other, || self.inner.rms_norm(&inner, &weight, eps))
    }

    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor {
        let [inner, weight, bias] = [x, norm.weight, norm.bias].map(open);
        let norm = GroupNorm { weight: &weight, bias: &bias, ..norm };
        self.wrap(x, Kind::Other, || self.inner.group_norm(&inner, norm))
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        let inner = open(x);
        self.wrap(x, Kind::Other, || self.inner.unary(&inner, f))
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        let [inner_a, inner_b] = [a, b].map(open);
        self.wrap(a, Kind::Other, || self.inner.binary(&inner_a, &inner_b, f))
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        let [inner, angles] = [x, angles].map(open);
        self.wrap(x, Kind::Other, || self.inner.rope(&inner, &angles))
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let y = self.observe(Kind::Other, || self.inner.clone().embedding(table, ids));
        Tensor::new(y.shape(), Arc::new(y), self)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let inner: Vec<Tensor> = parts.iter().map(|x| open(x)).collect();
        self.wrap(parts[0], Kind::Other, || self.inner.concat(&inner.iter().collect::<Vec<_>>(), axis))
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        let inner = open(x);
        self.wrap(x, Kind::Other, || self.inner.slice(&inner, axis, start, len))
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let inner = open(x);
        self.wrap(x, Kind::Other, || self.inner.permute(&inner, axes))
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        let inner = open(x);
        self.wrap(x, Kind::Other, || self.inner.upsample_nearest_2x(&inner))
    }

    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, f: Unary) -> Tensor {
        let (inner, bias) = (open(x), bias.map(open));
        self.wrap(x, Kind::Linear, || self.inner.linear_unary(&inner, weight, bias.as_ref(), f))
    }

    fn linear_sum(
        &self,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
        terms: &[Term<'_>],
        end: End<'_>,
    ) -> Tensor {
        let (inner, bias) = (x.iter().map(|part| open(part)).collect::<Vec<_>>(), bias.map(open));
        let inner: Vec<&Tensor> = inner.iter().collect();
        let inputs: Vec<Tensor> = terms.iter().map(|term| open(term.x)).collect();
        let terms: Vec<Term<'_>> = terms.iter().zip(&inputs).map(|(term, x)| Term { x, ..term.clone() }).collect();
        let ends = if let End::GatedAdd { residual, gate } = end { Some([residual, gate].map(open)) } else { None };
        let end = ends.as_ref().map_or(end, |[residual, gate]| End::GatedAdd { residual, gate });
        self.wrap(x[0], Kind::Linear, || self.inner.linear_sum(&inner, weight, bias.as_ref(), &terms, end))
    }

    fn linear_gated_add(
        &self,
        residual: &Tensor,
        gate: &Tensor,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
    ) -> Tensor {
        let [inner, gate] = [residual, gate].map(open);
        let parts: Vec<_> = x.iter().map(|part| open(part)).collect();
        let (parts, bias) = (parts.iter().collect::<Vec<_>>(), bias.map(open));
        self.wrap(residual, Kind::Linear, || self.inner.linear_gated_add(&inner, &gate, &parts, weight, bias.as_ref()))
    }

    fn modulated_norm(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f32) -> Tensor {
        let [inner, shift, scale] = [x, shift, scale].map(open);
        self.wrap(x, Kind::Other, || self.inner.modulated_norm(&inner, &shift, &scale, eps))
    }

    fn add_scaled(&self, y: &Tensor, a: f32, x: &Tensor) -> Tensor {
        let [inner_y, inner_x] = [y, x].map(open);
        self.wrap(y, Kind::Other, || self.inner.add_scaled(&inner_y, a, &inner_x))
    }

    fn qk_norm_rope(
        &self,
        x: &Tensor,
        start: usize,
        heads: usize,
        weight: &Tensor,
        angles: &Tensor,
        eps: f32,
    ) -> Tensor {
        let [inner, weight, angles] = [x, weight, angles].map(open);
        self.wrap(x, Kind::Other, || self.inner.qk_norm_rope(&inner, start, heads, &weight, &angles, eps))
    }
}

#[cfg(test)]
mod tests {
    /// Names of the functions in the block that begins with `open` and ends with a brace at the line's start.
    fn functions<'a>(source: &'a str, open: &str) -> Vec<&'a str> {
        let (_, block) = source.split_once(open).expect("the block is there");
        let (block, _) = block.split_once("\n}").expect("the block ends");
        let names = block.lines().filter_map(|line| line.strip_prefix("    fn ")?.split_once('('));
        names.map(|(name, _)| name).collect()
    }

    #[test]
    fn every_operation_is_forwarded() {
        let operations = functions(include_str!("backend.rs"), "pub trait Backend");
        let forwarded = functions(include_str!("observed.rs"), "impl Backend for Observed");
        let missing: Vec<_> = operations.iter().filter(|name| !forwarded.contains(name)).collect();
        assert!(operations.len() > 15 && missing.is_empty(), "observed.rs does not forward {missing:?}");
    }
}
