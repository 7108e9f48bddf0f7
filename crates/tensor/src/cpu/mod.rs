//! The fast backend: this computer's processor, with the best vector extension it has.
//!
//! Each file here is one algorithm, written once for any vector; [`arch`] says what a vector is on each machine. Results do
//! not depend on the number of threads, nor on the pieces a weight is stacked from.

mod arch;
mod attention;
mod blocks;
mod byte_tile;
mod conv2d;
mod depthwise;
mod elementwise;
mod encode;
mod few_rows;
mod footprint;
mod layout;
mod math;
mod matmul;
mod matmul_int8;
mod norm;
mod pack;
mod panels_int8;
mod parallel;
mod peak;
mod rope;
mod terms;
mod tile;

use std::sync::Arc;

pub use arch::Level;
pub use encode::{Encoded, Encoder, Loss};
pub(crate) use few_rows::FEW;
pub(crate) use footprint::Footprint;

use self::{
    arch::Simd,
    attention::{HeadRows, Heads, Seen},
    conv2d::{Before, Input},
    depthwise::Depthwise,
    matmul::{Epilogue, Then},
    norm::{Groups, Modulation},
    parallel::Threads,
};
pub use crate::host::MemoryUse;
use crate::{
    Backend, Binary, End, GroupNorm, Mask, Padding, Precision, Qkv, Shape, Tensor, Term, Unary, Weight,
    backend::linear_sum_in_parts,
    host::{HostBuffer, Recycler, View, values},
};

/// This computer's processor.
#[derive(Debug)]
pub struct Cpu {
    simd: Simd,
    threads: Threads,
    recycler: Arc<Recycler>,
}

impl Cpu {
    /// Starts it with this many threads, or with as many as there are cores.
    pub fn new(threads: Option<usize>) -> Arc<Self> {
        Self::with_level(Level::best(), threads)
    }

    /// Starts it with a certain vector extension.
    ///
    /// # Panics
    /// If the machine lacks it: ask [`Level::is_available`].
    pub fn with_level(level: Level, threads: Option<usize>) -> Arc<Self> {
        Arc::new(Self { simd: Simd::new(level), threads: Threads::new(threads), recycler: Arc::default() })
    }

    /// What results and operands take, from now on or since the last [`Backend::release_idle`].
    pub fn memory(&self) -> MemoryUse {
        self.recycler.memory()
    }

    /// Memory for a result.
    fn buffer(&self, len: usize) -> HostBuffer {
        self.recycler.take(len)
    }

    fn product(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, then: Then<'_>) -> Tensor {
        let epilogue = Epilogue { bias: bias.map(values), then };
        let y = self.matmul(x.shape().rows(), &[values(x)], weight, &[], epilogue);
        x.like(x.shape().with_last(weight.out_features()), y.share())
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn release_idle(&self) {
        self.recycler.clear();
    }

    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor {
        Tensor::new(shape, HostBuffer::from_vec(values).share(), self)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        values(x).to_vec()
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        self.product(x, weight, bias, Then::Nothing)
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
        let [queries, heads, d] = [q.shape()[0], q.shape()[1], q.shape()[2]];
        let seen = match mask {
            Mask::None => Seen::All,
            Mask::Causal => Seen::Causal,
            Mask::Relative(shifts) => Seen::Shifted(values(shifts)),
            Mask::Keys(shifts) => Seen::Keys(values(shifts)),
        };
        let sizes = [queries, k.shape()[0], heads, d];
        let streams = [q, k, v]
            .map(|x| [HeadRows { x: values(x), tokens: x.shape()[0], columns: heads * d, start: 0, norm: &[] }]);
        let [q_heads, k_heads, v_heads] = [0, 1, 2].map(|i| Heads { streams: &streams[i], rope: None });
        q.like(q.shape(), self.attend([q_heads, k_heads, v_heads], sizes, scale, seen, precision).share())
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        let epilogue = Epilogue { bias: bias.map(values), then: Then::Nothing };
        let picture = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let input = Input { x: values(x), picture, before: Before::Nothing };
        let y = self.convolve(input, weight, epilogue, stride, padding);
        x.like(padding.output(x.shape(), weight.shape(), stride), y.share())
    }

    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor {
        let job = Depthwise {
            x: values(x),
            picture: [x.shape()[0], x.shape()[1], x.shape()[2]],
            kernel: values(kernel),
            kernel_size: [kernel.shape()[0], kernel.shape()[1]],
            bias: bias.map(values),
            stride,
            padding,
        };
        let shape = padding.depthwise(x.shape(), kernel.shape(), stride);
        x.like(shape, self.convolve_depthwise(job, [shape[0], shape[1]]).share())
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        x.like(x.shape(), self.norm_rows(values(x), x.shape().last(), eps, None).share())
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        x.like(x.shape(), self.rms_norm_rows(values(x), values(weight), eps).share())
    }

    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor {
        x.like(x.shape(), self.norm_groups(values(x), Groups::of(norm)).share())
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        x.like(x.shape(), self.map(values(x), f).share())
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        a.like(a.shape(), self.combine(values(a), values(b), f).share())
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        x.like(x.shape(), self.rotate(values(x), x.shape()[1], x.shape()[2], values(angles)).share())
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let d = table.row_len();
        let mut y = self.buffer(ids.len() * d);
        for (y, &id) in y.values_mut().chunks_mut(d.max(1)).zip(ids) {
            table.decode_row(id as usize, y);
        }
        Tensor::new([ids.len(), d], y.share(), self)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let shape = parts[0].shape();
        let outer = shape.dims()[..axis].iter().product();
        let elements: Vec<&[f32]> = parts.iter().map(|part| values(part)).collect();
        let extent = parts.iter().map(|part| part.shape()[axis]).sum();
        parts[0].like(shape.with(axis, extent), self.join(outer, &elements).share())
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        let inner: usize = x.shape().dims()[axis + 1..].iter().product();
        if x.shape().dims()[..axis].iter().all(|&outer| outer == 1) {
            return x.like(x.shape().with(axis, len), View::share(x, start * inner..(start + len) * inner));
        }
        let y = self.cut(values(x), x.shape()[axis] * inner, start * inner, len * inner);
        x.like(x.shape().with(axis, len), y.share())
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        let extents: Vec<usize> = axes.iter().map(|&axis| x.shape()[axis]).collect();
        x.like(Shape::new(&extents), self.reorder(values(x), x.shape(), axes).share())
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        let [height, width, channels] = [x.shape()[0], x.shape()[1], x.shape()[2]];
        x.like([2 * height, 2 * width, channels], self.double(values(x), [height, width, channels]).share())
    }

    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, f: Unary) -> Tensor {
        self.product(x, weight, bias, Then::Unary(f))
    }

    fn linear_gated_add(
        &self,
        residual: &Tensor,
        gate: &Tensor,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
    ) -> Tensor {
        let parts: Vec<&[f32]> = x.iter().map(|part| values(part)).collect();
        let then = Then::GatedAdd { gate: values(gate), residual: values(residual) };
        let epilogue = Epilogue { bias: bias.map(values), then };
        residual.like(residual.shape(), self.matmul(residual.shape().rows(), &parts, weight, &[], epilogue).share())
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
        let then = match end {
            End::Nothing => Then::Nothing,
            End::Unary(f) => Then::Unary(f),
            End::GatedAdd { residual, gate } => Then::GatedAdd { gate: values(gate), residual: values(residual) },
        };
        let parts: Vec<&[f32]> = x.iter().map(|part| values(part)).collect();
        let y = self.matmul(m, &parts, weight, terms, Epilogue { bias: bias.map(values), then });
        x[0].like(x[0].shape().with_last(weight.out_features()), y.share())
    }

    fn modulated_norm(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f32) -> Tensor {
        let modulation = Modulation { shift: values(shift), scale: values(scale) };
        x.like(x.shape(), self.norm_rows(values(x), x.shape().last(), eps, Some(modulation)).share())
    }

    fn add_scaled(&self, y: &Tensor, a: f32, x: &Tensor) -> Tensor {
        y.like(y.shape(), self.scaled_sum(values(y), a, values(x)).share())
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
        let y = self.norm_rotate([values(x), values(weight), values(angles)], x.shape()[1], start, heads, eps);
        x.like([x.shape()[0], heads, weight.shape()[0]], y.share())
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
        let x = streams[0].x;
        let [tokens, d] = [angles.shape()[0], streams[0].query_norm.shape()[0]];
        let part = |index: usize| {
            let rows = streams.iter().map(|stream| HeadRows {
                x: values(stream.x),
                tokens: stream.x.shape()[0],
                columns: stream.x.shape()[1],
                start: index * heads * d,
                norm: match index {
                    0 => values(stream.query_norm),
                    1 => values(stream.key_norm),
                    _ => &[],
                },
            });
            rows.collect::<Vec<_>>()
        };
        let [q, k, v] = [part(0), part(1), part(2)];
        let rope = Some((values(angles), eps));
        let [q, k, v] = [(&q, rope), (&k, rope), (&v, None)].map(|(streams, rope)| Heads { streams, rope });
        let scale = (d as f32).sqrt().recip();
        let seen = shift.map_or(Seen::All, |shift| Seen::Keys(values(shift)));
        let y = self.attend([q, k, v], [tokens, tokens, heads, d], scale, seen, precision);
        x.like([tokens, heads * d], y.share())
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
        let then = residual.map_or(Then::Nothing, |residual| Then::Add { residual: values(residual) });
        let epilogue = Epilogue { bias: bias.map(values), then };
        let picture = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let line = self.measure_groups(values(x), Groups::of(norm));
        let input = Input { x: values(x), picture, before: Before::NormSilu(&line) };
        let y = self.convolve(input, weight, epilogue, 1, padding);
        x.like(padding.output(x.shape(), weight.shape(), 1), y.share())
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
        let epilogue = Epilogue { bias: bias.map(values), then: Then::Unary(f) };
        let picture = [x.shape()[0], x.shape()[1], x.shape()[2]];
        let input = Input { x: values(x), picture, before: Before::Nothing };
        let y = self.convolve(input, weight, epilogue, stride, padding);
        x.like(padding.output(x.shape(), weight.shape(), stride), y.share())
    }

    fn upsample_conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, padding: Padding) -> Tensor {
        let epilogue = Epilogue { bias: bias.map(values), then: Then::Nothing };
        let picture = [2 * x.shape()[0], 2 * x.shape()[1], x.shape()[2]];
        let input = Input { x: values(x), picture, before: Before::Double };
        let y = self.convolve(input, weight, epilogue, 1, padding);
        x.like(padding.output(picture.into(), weight.shape(), 1), y.share())
    }
}
