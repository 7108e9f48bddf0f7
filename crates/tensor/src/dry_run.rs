//! Computes nothing: counts the arithmetic and the memory that a model would take.
//!
//! Runs the real configuration without its weights ([`Bytes::Absent`](crate::Bytes)), in milliseconds. Bytes are those of
//! activations and of operands in the kernels' own order, as the [`cpu`](crate::cpu) backend keeps them with the best vector
//! extension of this machine: views and slices of a tensor's whole axis cost nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Backend, Binary, Buffer, End, GroupNorm, Mask, Padding, Precision, Qkv, Shape, Tensor, Term, Unary, Weight,
    backend::linear_sum_in_parts,
    cpu::{FEW, Footprint, Level},
    int8,
};

/// What was counted. A multiplication and the addition that follows it are two FLOP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Of linear layers.
    pub linear_flop: u64,
    /// Of the two products in attention; keys behind a causal mask do not count.
    pub attention_flop: u64,
    /// Of convolutions, the padding's zeros included.
    pub conv_flop: u64,
    /// Of all else: one per element written by an operation that computes.
    pub other_flop: u64,
    /// The most bytes of activations that lived at one time.
    pub peak_bytes: u64,
    /// Bytes of activations that live now.
    pub live_bytes: u64,
}

impl Work {
    /// All arithmetic.
    pub fn flop(&self) -> u64 {
        self.linear_flop + self.attention_flop + self.conv_flop + self.other_flop
    }
}

/// The backend that counts.
#[derive(Debug)]
pub struct DryRun {
    ledger: Arc<Ledger>,
    kernels: Footprint,
}

#[derive(Debug, Default)]
struct Ledger(Mutex<Work>);

impl Ledger {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer without elements, which counts as long as it lives.
struct Counted {
    bytes: u64,
    ledger: Arc<Ledger>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ledger.work().live_bytes -= self.bytes;
    }
}

impl DryRun {
    /// A backend that has counted nothing yet.
    pub fn new() -> Arc<Self> {
        Self::with_level(Level::best())
    }

    /// One that counts what the kernels of a certain vector extension take.
    ///
    /// # Panics
    /// If the machine lacks it: ask [`Level::is_available`].
    pub fn with_level(level: Level) -> Arc<Self> {
        Arc::new(Self { ledger: Arc::default(), kernels: Footprint::new(level) })
    }

    /// What was counted since the start or the last [`DryRun::reset`].
    pub fn report(&self) -> Work {
        *self.ledger.work()
    }

    /// Starts a new phase: arithmetic counts from zero, the peak from what lives now.
    pub fn reset(&self) {
        let mut work = self.ledger.work();
        let live_bytes = work.live_bytes;
        *work = Work { live_bytes, peak_bytes: live_bytes, ..Work::default() };
    }

    fn buffer(&self, shape: Shape) -> Buffer {
        let bytes = 4 * shape.count() as u64;
        let mut work = self.ledger.work();
        work.live_bytes += bytes;
        work.peak_bytes = work.peak_bytes.max(work.live_bytes);
        drop(work);
        Arc::new(Counted { bytes, ledger: self.ledger.clone() })
    }

    /// Elements that an operation takes beside its result, which is there already, and gives back.
    fn beside(&self, elements: usize) {
        let mut work = self.ledger.work();
        work.peak_bytes = work.peak_bytes.max(work.live_bytes + 4 * elements as u64);
    }

    /// A weight that products of so many rows read in a form of their own is in that form from now on, if it may be kept.
    fn keep(&self, rows: usize, weight: &Weight) {
        /// Nothing but its size is known.
        struct Absent;
        if rows >= int8::LEAST_ROWS
            && weight.row_len() > 0
            && let Some(kept) = weight.kept()
        {
            kept.get_or_make(|| (Absent, self.kernels.kept(weight)));
        }
    }

    fn moved(&self, x: &Tensor, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        x.like(shape, self.buffer(shape))
    }

    fn computed(&self, x: &Tensor, shape: impl Into<Shape>) -> Tensor {
        let y = self.moved(x, shape);
        self.ledger.work().other_flop += y.shape().count() as u64;
        y
    }
}

impl Backend for DryRun {
    fn name(&self) -> &'static str {
        "dry-run"
    }

    fn computes(&self) -> bool {
        false
    }

    fn upload(self: Arc<Self>, shape: Shape, _: Vec<f32>) -> Tensor {
        Tensor::new(shape, self.buffer(shape), self)
    }

    /// Zeros: there is nothing to give back.
    fn download(&self, x: &Tensor) -> Vec<f32> {
        vec![0.0; x.shape().count()]
    }

    fn linear(&self, x: &Tensor, weight: &Weight, _: Option<&Tensor>) -> Tensor {
        let y = self.moved(x, x.shape().with_last(weight.out_features()));
        self.beside(self.kernels.linear(x.shape().rows(), weight));
        self.keep(x.shape().rows(), weight);
        self.ledger.work().linear_flop += 2 * (y.shape().count() * weight.row_len()) as u64;
        y
    }

    fn attention(&self, q: &Tensor, k: &Tensor, _: &Tensor, _: f32, mask: Mask<'_>, precision: Precision) -> Tensor {
        let [lq, heads, d] = [q.shape()[0], q.shape()[1], q.shape()[2]];
        let pairs = if matches!(mask, Mask::Causal) { lq * (lq + 1) / 2 } else { lq * k.shape()[0] };
        self.ledger.work().attention_flop += 4 * (pairs * heads * d) as u64;
        let y = self.moved(q, q.shape());
        self.beside(self.kernels.attention([k.shape()[0], heads, d], precision));
        y
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, _: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        let y = self.moved(x, padding.output(x.shape(), weight.shape(), stride));
        self.beside(self.kernels.conv2d(weight));
        self.ledger.work().conv_flop += 2 * (y.shape().count() * weight.row_len()) as u64;
        y
    }

    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        _: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor {
        let y = self.moved(x, padding.depthwise(x.shape(), kernel.shape(), stride));
        self.ledger.work().conv_flop += 2 * (y.shape().count() * kernel.shape()[0] * kernel.shape()[1]) as u64;
        y
    }

    fn layer_norm(&self, x: &Tensor, _: f32) -> Tensor {
        self.computed(x, x.shape())
    }

    fn rms_norm(&self, x: &Tensor, _: &Tensor, _: f32) -> Tensor {
        self.computed(x, x.shape())
    }

    fn group_norm(&self, x: &Tensor, _: GroupNorm<'_>) -> Tensor {
        self.computed(x, x.shape())
    }

    fn unary(&self, x: &Tensor, _: Unary) -> Tensor {
        self.computed(x, x.shape())
    }

    fn binary(&self, a: &Tensor, _: &Tensor, _: Binary) -> Tensor {
        self.computed(a, a.shape())
    }

    fn rope(&self, x: &Tensor, _: &Tensor) -> Tensor {
        self.computed(x, x.shape())
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        self.upload([ids.len(), table.row_len()].into(), Vec::new())
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        self.moved(parts[0], parts[0].shape().with(axis, parts.iter().map(|p| p.shape()[axis]).sum()))
    }

    fn slice(&self, x: &Tensor, axis: usize, _: usize, len: usize) -> Tensor {
        if x.shape().dims()[..axis].iter().all(|&outer| outer == 1) {
            // A view, which keeps the whole alive.
            return x.like(x.shape().with(axis, len), x.buffer().clone());
        }
        self.moved(x, x.shape().with(axis, len))
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let extents: Vec<usize> = axes.iter().map(|&axis| x.shape()[axis]).collect();
        self.moved(x, Shape::new(&extents))
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        self.moved(x, [2 * x.shape()[0], 2 * x.shape()[1], x.shape()[2]])
    }

    // Fused: one result each, as the cpu backend has it.

    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, _: Unary) -> Tensor {
        let y = self.linear(x, weight, bias);
        self.ledger.work().other_flop += y.shape().count() as u64;
        y
    }

    fn linear_gated_add(
        &self,
        residual: &Tensor,
        _: &Tensor,
        _: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
    ) -> Tensor {
        let y = self.linear(residual, weight, bias);
        self.ledger.work().other_flop += 2 * y.shape().count() as u64;
        y
    }

    fn linear_sum(
        &self,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
        terms: &[Term<'_>],
        end: End<'_>,
    ) -> Tensor {
        let m = x[0].shape().rows();
        if m <= FEW {
            return linear_sum_in_parts(x, weight, bias, terms, end);
        }
        let y = self.moved(x[0], x[0].shape().with_last(weight.out_features()));
        let packed: usize = terms.iter().map(|term| self.kernels.term(m, term.weight)).sum();
        self.beside(self.kernels.linear(m, weight) + packed);
        self.keep(m, weight);
        let mut work = self.ledger.work();
        let products =
            weight.shape().count() + terms.iter().map(|term| term.rows.len() * term.weight.row_len()).sum::<usize>();
        work.linear_flop += 2 * (m * products) as u64;
        work.other_flop += match end {
            End::Nothing => 0,
            End::Unary(_) => y.shape().count() as u64,
            End::GatedAdd { .. } => 2 * y.shape().count() as u64,
        };
        drop(work);
        y
    }

    fn modulated_norm(&self, x: &Tensor, _: &Tensor, _: &Tensor, _: f32) -> Tensor {
        self.computed(x, x.shape())
    }

    fn add_scaled(&self, y: &Tensor, _: f32, _: &Tensor) -> Tensor {
        self.computed(y, y.shape())
    }

    fn qk_norm_rope(&self, x: &Tensor, _: usize, heads: usize, weight: &Tensor, _: &Tensor, _: f32) -> Tensor {
        self.computed(x, [x.shape()[0], heads, weight.shape()[0]])
    }

    fn joint_attention(
        &self,
        streams: &[Qkv<'_>],
        heads: usize,
        angles: &Tensor,
        _: Option<&Tensor>,
        _: f32,
        precision: Precision,
    ) -> Tensor {
        let [tokens, d] = [angles.shape()[0], streams[0].query_norm.shape()[0]];
        let y = self.moved(streams[0].x, [tokens, heads * d]);
        self.beside(self.kernels.attention([tokens, heads, d], precision));
        let mut work = self.ledger.work();
        work.attention_flop += 4 * (tokens * tokens * heads * d) as u64;
        work.other_flop += 2 * (tokens * heads * d) as u64;
        drop(work);
        y
    }

    fn norm_silu_conv2d(
        &self,
        x: &Tensor,
        _: GroupNorm<'_>,
        weight: &Weight,
        bias: Option<&Tensor>,
        padding: Padding,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let y = self.conv2d(x, weight, bias, 1, padding);
        let added = residual.map_or(0, |residual| residual.shape().count());
        self.ledger.work().other_flop += (x.shape().count() + added) as u64;
        y
    }

    fn conv2d_unary(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
        _: Unary,
    ) -> Tensor {
        let y = self.conv2d(x, weight, bias, stride, padding);
        self.ledger.work().other_flop += y.shape().count() as u64;
        y
    }

    fn upsample_conv2d(&self, x: &Tensor, weight: &Weight, _: Option<&Tensor>, padding: Padding) -> Tensor {
        let [height, width, channels] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let y = self.moved(x, padding.output([2 * height, 2 * width, channels].into(), weight.shape(), 1));
        self.beside(self.kernels.conv2d(weight));
        self.ledger.work().conv_flop += 2 * (y.shape().count() * weight.row_len()) as u64;
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, DType, Rows, Scale};

    #[test]
    fn a_layer_of_twelve_thousand_features_costs_nothing_to_count() {
        let dry = DryRun::new();
        let backend: Arc<dyn Backend> = dry.clone();
        let rows =
            Rows { count: 12288, dtype: DType::BF16, scale: Scale::NONE, bytes: Bytes::Absent(12288 * 3072 * 2) };
        let weight = Weight::new([12288, 3072], vec![rows], Precision::BF16);
        let x = Tensor::from_vec(&backend, [0, 3072], Vec::new());
        assert_eq!(x.linear(&weight, None).shape(), [0, 12288].into());
        let x = dry.clone().upload([4608, 3072].into(), Vec::new());
        dry.reset();
        let packed = 4 * 4608 * 3072 / if Level::best() == Level::Avx512Bf16 { 2 } else { 1 };
        let y = x.linear_unary(&weight, None, Unary::GeluTanh).slice(1, 0, 64).slice(1, 0, 64);
        let work = dry.report();
        assert_eq!(work.linear_flop, 2 * 4608 * 3072 * 12288);
        assert_eq!(work.peak_bytes, 4 * 4608 * (3072 + 12288) + packed);
        assert_eq!(work.live_bytes, 4 * 4608 * (3072 + 64));
        drop((x, y));
        assert_eq!(dry.report().live_bytes, 0);
    }

    #[test]
    fn keys_behind_a_causal_mask_are_free() {
        let dry = DryRun::new();
        let q = dry.clone().upload([5, 2, 8].into(), Vec::new());
        q.attention(&q, &q, 1.0, Mask::Causal, Precision::F32);
        assert_eq!(dry.report().attention_flop, 4 * 15 * 2 * 8);
        q.attention(&q, &q, 1.0, Mask::None, Precision::BF16);
        assert_eq!(dry.report().attention_flop, 4 * (15 + 25) * 2 * 8);
    }
}
