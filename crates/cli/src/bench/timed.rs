//! A backend around another that adds up the seconds of its operations by kind: it tells where the time of a run goes. The
//! runs that are timed as a whole use the plain backend.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tensor::{Backend, Binary, End, GroupNorm, Mask, Padding, Precision, Qkv, Shape, Tensor, Term, Unary, Weight};

/// Seconds by kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stages {
    pub(super) linear: f64,
    pub(super) attention: f64,
    pub(super) conv: f64,
    pub(super) other: f64,
}

#[derive(Clone, Copy)]
enum Kind {
    Linear,
    Attention,
    Conv,
    Other,
}

/// The backend that times another.
#[derive(Debug)]
pub(super) struct Timed {
    inner: Arc<dyn Backend>,
    stages: Mutex<Stages>,
}

impl Timed {
    pub(super) fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { inner, stages: Mutex::default() })
    }

    /// What was timed since the start or the last call.
    pub(super) fn take(&self) -> Stages {
        std::mem::take(&mut *self.stages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The inner backend's tensor.
    fn open(x: &Tensor) -> Tensor {
        match x.buffer().downcast_ref::<Tensor>() {
            Some(inner) => inner.reshape(x.shape()),
            None => panic!("a tensor of another backend came to the timed one"),
        }
    }

    fn time(&self, kind: Kind, run: impl FnOnce() -> Tensor) -> Tensor {
        let start = Instant::now();
        let y = run();
        let seconds = start.elapsed().as_secs_f64();
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        *match kind {
            Kind::Linear => &mut stages.linear,
            Kind::Attention => &mut stages.attention,
            Kind::Conv => &mut stages.conv,
            Kind::Other => &mut stages.other,
        } += seconds;
        y
    }

    /// The timed result of the inner backend as one of this backend, which `x` is of.
    fn wrap(&self, x: &Tensor, kind: Kind, run: impl FnOnce() -> Tensor) -> Tensor {
        let y = self.time(kind, run);
        x.like(y.shape(), Arc::new(y))
    }
}

/// Only forwards. Every operation has to be here: one that is left to its default body is timed unfused.
impl Backend for Timed {
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
        Self::open(x).to_vec()
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        let (inner, bias) = (Self::open(x), bias.map(Self::open));
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
        let [inner_q, inner_k, inner_v] = [q, k, v].map(Self::open);
        let shifts = match mask {
            Mask::Relative(shifts) | Mask::Keys(shifts) => Some(Self::open(shifts)),
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
        let shift = shift.map(Self::open);
        let shift = shift.as_ref();
        let inner: Vec<[Tensor; 3]> = streams.iter().map(|s| [s.x, s.query_norm, s.key_norm].map(Self::open)).collect();
        let inner: Vec<Qkv<'_>> =
            inner.iter().map(|[x, query_norm, key_norm]| Qkv { x, query_norm, key_norm }).collect();
        let inner_angles = Self::open(angles);
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
        let [gain, offset, inner] = [norm.weight, norm.bias, x].map(Self::open);
        let norm = GroupNorm { weight: &gain, bias: &offset, ..norm };
        let [bias, residual] = [bias, residual].map(|tensor| tensor.map(Self::open));
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
        let (inner, bias) = (Self::open(x), bias.map(Self::open));
        self.wrap(x, Kind::Conv, || self.inner.conv2d_unary(&inner, weight, bias.as_ref(), stride, padding, f))
    }

    fn upsample_conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, padding: Padding) -> Tensor {
        let (inner, bias) = (Self::open(x), bias.map(Self::open));
        self.wrap(x, Kind::Conv, || self.inner.upsample_conv2d(&inner, weight, bias.as_ref(), padding))
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        let (inner, bias) = (Self::open(x), bias.map(Self::open));
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
        let ([inner, kernel], bias) = ([x, kernel].map(Self::open), bias.map(Self::open));
        self.wrap(x, Kind::Conv, || self.inner.depthwise_conv2d(&inner, &kernel, bias.as_ref(), stride, padding))
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        let inner = Self::open(x);
        self.wrap(x, Kind::Other, || self.inner.layer_norm(&inner, eps))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        let [inner, weight] = [x, weight].map(Self::open);
        self.wrap(x, Kind::Other, || self.inner.rms_norm(&inner, &weight, eps))
    }

    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor {
        let [inner, weight, bias] = [x, norm.weight, norm.bias].map(Self::open);
        let norm = GroupNorm { weight: &weight, bias: &bias, ..norm };
        self.wrap(x, Kind::Other, || self.inner.group_norm(&inner, norm))
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        let inner = Self::open(x);
        self.wrap(x, Kind::Other, || self.inner.unary(&inner, f))
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        let [inner_a, inner_b] = [a, b].map(Self::open);
        self.wrap(a, Kind::Other, || self.inner.binary(&inner_a, &inner_b, f))
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        let [inner, angles] = [x, angles].map(Self::open);
        self.wrap(x, Kind::Other, || self.inner.rope(&inner, &angles))
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let y = self.time(Kind::Other, || self.inner.clone().embedding(table, ids));
        Tensor::new(y.shape(), Arc::new(y), self)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let inner: Vec<Tensor> = parts.iter().map(|x| Self::open(x)).collect();
        self.wrap(parts[0], Kind::Other, || self.inner.concat(&inner.iter().collect::<Vec<_>>(), axis))
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        let inner = Self::open(x);
        self.wrap(x, Kind::Other, || self.inner.slice(&inner, axis, start, len))
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let inner = Self::open(x);
        self.wrap(x, Kind::Other, || self.inner.permute(&inner, axes))
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        let inner = Self::open(x);
        self.wrap(x, Kind::Other, || self.inner.upsample_nearest_2x(&inner))
    }

    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, f: Unary) -> Tensor {
        let (inner, bias) = (Self::open(x), bias.map(Self::open));
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
        let (inner, bias) = (x.iter().map(|part| Self::open(part)).collect::<Vec<_>>(), bias.map(Self::open));
        let inner: Vec<&Tensor> = inner.iter().collect();
        let inputs: Vec<Tensor> = terms.iter().map(|term| Self::open(term.x)).collect();
        let terms: Vec<Term<'_>> = terms.iter().zip(&inputs).map(|(term, x)| Term { x, ..term.clone() }).collect();
        let ends =
            if let End::GatedAdd { residual, gate } = end { Some([residual, gate].map(Self::open)) } else { None };
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
        let [inner, gate] = [residual, gate].map(Self::open);
        let parts: Vec<_> = x.iter().map(|part| Self::open(part)).collect();
        let (parts, bias) = (parts.iter().collect::<Vec<_>>(), bias.map(Self::open));
        self.wrap(residual, Kind::Linear, || self.inner.linear_gated_add(&inner, &gate, &parts, weight, bias.as_ref()))
    }

    fn modulated_norm(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f32) -> Tensor {
        let [inner, shift, scale] = [x, shift, scale].map(Self::open);
        self.wrap(x, Kind::Other, || self.inner.modulated_norm(&inner, &shift, &scale, eps))
    }

    fn add_scaled(&self, y: &Tensor, a: f32, x: &Tensor) -> Tensor {
        let [inner_y, inner_x] = [y, x].map(Self::open);
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
        let [inner, weight, angles] = [x, weight, angles].map(Self::open);
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
        let operations = functions(include_str!("../../../tensor/src/backend.rs"), "pub trait Backend");
        let forwarded = functions(include_str!("timed.rs"), "impl Backend for Timed");
        let missing: Vec<_> = operations.iter().filter(|name| !forwarded.contains(name)).collect();
        assert!(operations.len() > 15 && missing.is_empty(), "bench/timed.rs does not forward {missing:?}");
    }
}
