//! The public face of every operation: shapes are checked here and nowhere else.
//!
//! A shape that does not fit is a bug in the model, not bad input: these methods panic at the caller with both shapes in
//! the message, and formulas stay free of `?`. Files and requests are validated before they become tensors.

use std::{any::Any, fmt, sync::Arc};

use crate::{Backend, Binary, End, GroupNorm, Mask, Padding, Precision, Qkv, Shape, Term, Unary, Weight};

/// Elements on a backend, opaque to all others.
pub type Buffer = Arc<dyn Any + Send + Sync>;

/// A contiguous, row-major block of f32 numbers on a backend. Cloning shares the elements; they never change.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    buffer: Buffer,
    backend: Arc<dyn Backend>,
}

impl Tensor {
    /// A tensor around a backend's own buffer. For backends.
    pub fn new(shape: impl Into<Shape>, buffer: Buffer, backend: Arc<dyn Backend>) -> Self {
        Self { shape: shape.into(), buffer, backend }
    }

    /// A tensor of another shape and buffer on the same backend. For backends.
    pub fn like(&self, shape: impl Into<Shape>, buffer: Buffer) -> Self {
        Self::new(shape, buffer, self.backend.clone())
    }

    /// Takes `values` to a backend.
    #[track_caller]
    pub fn from_vec(backend: &Arc<dyn Backend>, shape: impl Into<Shape>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert!(values.len() == shape.count(), "{} values do not fill {shape}", values.len());
        backend.clone().upload(shape, values)
    }

    /// Rows `ids` of `table [rows, d]` → `[ids.len(), d]`.
    #[track_caller]
    pub fn embedding(backend: &Arc<dyn Backend>, table: &Weight, ids: &[u32]) -> Self {
        assert!(table.shape().rank() == 2, "an embedding table is a matrix, not {}", table.shape());
        let rows = table.out_features();
        assert!(ids.iter().all(|&id| (id as usize) < rows), "an id is outside of the table's {rows} rows");
        backend.clone().embedding(table, ids)
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, for their backend.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Where it lives.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// A copy of the elements, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        self.backend.download(self)
    }

    /// The same elements under another shape of the same count.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert!(shape.count() == self.shape.count(), "{} cannot be seen as {shape}", self.shape);
        Self { shape, ..self.clone() }
    }

    /// `x·Wᵀ + bias`: `[.., in]` → `[.., out]`.
    #[track_caller]
    pub fn linear(&self, weight: &Weight, bias: Option<&Self>) -> Self {
        self.check_linear(weight, bias);
        self.backend.linear(self, weight, bias)
    }

    /// `f(x·Wᵀ + bias)`.
    #[track_caller]
    pub fn linear_unary(&self, weight: &Weight, bias: Option<&Self>, f: Unary) -> Self {
        self.check_linear(weight, bias);
        self.backend.linear_unary(self, weight, bias, f)
    }

    /// `self + gate · (x·Wᵀ + bias)`: the end of a residual branch; `gate [out]`. The columns of x lie in several tensors,
    /// side by side, or in one.
    #[track_caller]
    pub fn linear_gated_add(&self, gate: &Self, x: &[&Self], weight: &Weight, bias: Option<&Self>) -> Self {
        let columns: usize = x.iter().map(|part| part.shape.last()).sum();
        assert!(
            columns == weight.row_len() && self.shape.last() == weight.out_features(),
            "{columns} columns, a residual of {} and a weight of {}",
            self.shape,
            weight.shape()
        );
        for part in x {
            assert!(part.shape == self.shape.with_last(part.shape.last()), "{} beside {}", part.shape, self.shape);
        }
        Self::check_bias(weight, bias);
        self.check_row(gate);
        self.backend.linear_gated_add(self, gate, x, weight, bias)
    }

    /// `end(x·Wᵀ + bias + Σ terms)`: a layer with what adapters add to it. The columns of x lie in several tensors, side by
    /// side, or in one.
    #[track_caller]
    pub fn linear_sum(x: &[&Self], weight: &Weight, bias: Option<&Self>, terms: &[Term<'_>], end: End<'_>) -> Self {
        let [first, ..] = x else { panic!("nothing to multiply") };
        let columns: usize = x.iter().map(|part| part.shape.last()).sum();
        assert!(columns == weight.row_len(), "{columns} columns and a weight of {}", weight.shape());
        for x in x.iter().chain(terms.iter().map(|term| &term.x)) {
            let fits = x.shape.rank() > 0 && x.shape.with_last(1) == first.shape.with_last(1);
            assert!(fits, "{} beside {}", x.shape, first.shape);
        }
        let out = weight.out_features();
        for Term { x, start, weight: factor, rows } in terms {
            assert!(start + factor.row_len() <= x.shape.last(), "columns of {} in {}", factor.shape(), x.shape);
            assert!(factor.out_features() == out && rows.end <= out, "rows {rows:?} of {} in {out}", factor.shape());
        }
        Self::check_bias(weight, bias);
        if let End::GatedAdd { residual, gate } = end {
            assert!(residual.shape == first.shape.with_last(out), "a residual of {} for {out}", residual.shape);
            residual.check_row(gate);
        }
        first.backend.linear_sum(x, weight, bias, terms, end)
    }

    #[track_caller]
    fn check_linear(&self, weight: &Weight, bias: Option<&Self>) {
        assert!(weight.shape().rank() == 2, "a linear layer's weight is a matrix, not {}", weight.shape());
        assert!(
            self.shape.rank() > 0 && self.shape.last() == weight.row_len(),
            "{} does not fit weight {}",
            self.shape,
            weight.shape()
        );
        Self::check_bias(weight, bias);
    }

    #[track_caller]
    fn check_bias(weight: &Weight, bias: Option<&Self>) {
        if let Some(bias) = bias {
            assert!(
                bias.shape == Shape::new(&[weight.out_features()]),
                "bias {} does not fit weight {}",
                bias.shape,
                weight.shape()
            );
        }
    }

    /// `softmax(scale · q·kᵀ + mask) · v`, each head by itself: `self` is `q [Lq, heads, d]`; `k, v [Lk, heads, d]`. What is
    /// rounded in which precision: see [`Backend::attention`].
    #[track_caller]
    pub fn attention(&self, k: &Self, v: &Self, scale: f32, mask: Mask<'_>, precision: Precision) -> Self {
        assert!(self.shape.rank() == 3, "q must be [tokens, heads, d], not {}", self.shape);
        let [lq, heads, d] = [self.shape[0], self.shape[1], self.shape[2]];
        assert!(k.shape.rank() == 3 && k.shape == v.shape, "k is {} and v {}", k.shape, v.shape);
        let lk = k.shape[0];
        assert!(k.shape[1] == heads && k.shape[2] == d && lk > 0, "q is {} and k {}", self.shape, k.shape);
        match mask {
            Mask::None => {}
            Mask::Causal => assert!(lq == lk, "a causal mask needs as many queries ({lq}) as keys ({lk})"),
            Mask::Relative(shifts) => {
                let distances = (lq + lk).saturating_sub(1);
                assert!(shifts.shape == [heads, distances].into(), "shifts {} for {lq}×{lk} scores", shifts.shape);
            }
            Mask::Keys(shift) => assert!(shift.shape == [lk].into(), "a shift {} for {lk} keys", shift.shape),
        }
        self.backend.attention(self, k, v, scale, mask, precision)
    }

    /// Self-attention of all tokens of `streams`: see [`Backend::joint_attention`].
    #[track_caller]
    pub fn joint_attention(
        streams: &[Qkv<'_>],
        heads: usize,
        angles: &Self,
        shift: Option<&Self>,
        eps: f32,
        precision: Precision,
    ) -> Self {
        let [first, ..] = streams else { panic!("nothing to attend to") };
        assert!(first.query_norm.shape.rank() == 1, "a norm of {}", first.query_norm.shape);
        let d = first.query_norm.shape[0];
        for Qkv { x, query_norm, key_norm } in streams {
            assert!(x.shape.rank() == 2 && x.shape[1] >= 3 * heads * d, "q, k, v of {heads} × {d} in {}", x.shape);
            let norms = [query_norm.shape, key_norm.shape];
            assert!(norms == [first.query_norm.shape; 2], "norms {norms:?} of heads of {d}");
        }
        let tokens = streams.iter().map(|stream| stream.x.shape[0]).sum();
        assert!(tokens > 0, "nothing to attend to");
        Self::check_angles(tokens, d, angles);
        if let Some(shift) = shift {
            assert!(shift.shape == [tokens].into(), "a shift {} for {tokens} tokens", shift.shape);
        }
        first.x.backend.joint_attention(streams, heads, angles, shift, eps, precision)
    }

    /// Cross-correlation with zero padding: `[H, W, in]` with `[out, in, kh, kw]` → `[H', W', out]`.
    #[track_caller]
    pub fn conv2d(&self, weight: &Weight, bias: Option<&Self>, stride: usize, padding: Padding) -> Self {
        self.check_conv2d(1, weight, bias, stride, padding);
        self.backend.conv2d(self, weight, bias, stride, padding)
    }

    /// Cross-correlation of each channel by itself, with zero padding: `[H, W, C]` with `kernel [kh, kw, C]` → `[H', W', C]`.
    #[track_caller]
    pub fn depthwise_conv2d(&self, kernel: &Self, bias: Option<&Self>, stride: usize, padding: Padding) -> Self {
        let (x, k) = (self.shape, kernel.shape);
        assert!(k.rank() == 3, "a kernel for each channel is [kh, kw, C], not {k}");
        assert!(x.rank() == 3 && x[2] == k[2], "picture {x} does not fit kernel {k}");
        let [h, w] = [x[0] + padding.top + padding.bottom, x[1] + padding.left + padding.right];
        assert!(h >= k[0] && w >= k[1] && stride > 0, "picture {x} with {padding:?} is smaller than the kernel {k}");
        if let Some(bias) = bias {
            assert!(bias.shape == [k[2]].into(), "bias {} does not fit kernel {k}", bias.shape);
        }
        self.backend.depthwise_conv2d(self, kernel, bias, stride, padding)
    }

    /// `conv2d(silu(norm(self)))`, stride 1; `residual`, if there is one, is added.
    #[track_caller]
    pub fn norm_silu_conv2d(
        &self,
        norm: GroupNorm<'_>,
        weight: &Weight,
        bias: Option<&Self>,
        padding: Padding,
        residual: Option<&Self>,
    ) -> Self {
        self.check_group_norm(norm);
        self.check_conv2d(1, weight, bias, 1, padding);
        if let Some(residual) = residual {
            let out = Shape::from(padding.output(self.shape, weight.shape(), 1));
            assert!(residual.shape == out, "the residual is {}, the branch {out}", residual.shape);
        }
        self.backend.norm_silu_conv2d(self, norm, weight, bias, padding, residual)
    }

    /// `f(conv2d(self))`.
    #[track_caller]
    pub fn conv2d_unary(
        &self,
        weight: &Weight,
        bias: Option<&Self>,
        stride: usize,
        padding: Padding,
        f: Unary,
    ) -> Self {
        self.check_conv2d(1, weight, bias, stride, padding);
        self.backend.conv2d_unary(self, weight, bias, stride, padding, f)
    }

    /// `conv2d(upsample_nearest_2x(self))`, stride 1.
    #[track_caller]
    pub fn upsample_conv2d(&self, weight: &Weight, bias: Option<&Self>, padding: Padding) -> Self {
        self.check_conv2d(2, weight, bias, 1, padding);
        self.backend.upsample_conv2d(self, weight, bias, padding)
    }

    /// Whether a picture, `times` as high and wide as this one, can go through a convolution.
    #[track_caller]
    fn check_conv2d(&self, times: usize, weight: &Weight, bias: Option<&Self>, stride: usize, padding: Padding) {
        let w = weight.shape();
        assert!(w.rank() == 4, "a convolution's weight is [out, in, kh, kw], not {w}");
        assert!(self.shape.rank() == 3 && self.shape[2] == w[1], "picture {} does not fit weight {w}", self.shape);
        let [h, w_in] = [
            times * self.shape[0] + padding.top + padding.bottom,
            times * self.shape[1] + padding.left + padding.right,
        ];
        assert!(
            h >= w[2] && w_in >= w[3] && stride > 0,
            "picture {} with {padding:?} is smaller than the kernel {w}",
            self.shape
        );
        Self::check_bias(weight, bias);
    }

    /// `(x − mean) / √(var + eps)` over the last axis.
    pub fn layer_norm(&self, eps: f32) -> Self {
        self.backend.layer_norm(self, eps)
    }

    /// `(1 + scale) · layer_norm(x) + shift`.
    #[track_caller]
    pub fn modulated_norm(&self, shift: &Self, scale: &Self, eps: f32) -> Self {
        self.check_row(shift);
        self.check_row(scale);
        self.backend.modulated_norm(self, shift, scale, eps)
    }

    /// `x / √(mean(x²) + eps) · weight` over the last axis.
    #[track_caller]
    pub fn rms_norm(&self, weight: &Self, eps: f32) -> Self {
        self.check_row(weight);
        self.backend.rms_norm(self, weight, eps)
    }

    /// Group norm over a picture `[H, W, C]`.
    #[track_caller]
    pub fn group_norm(&self, norm: GroupNorm<'_>) -> Self {
        self.check_group_norm(norm);
        self.backend.group_norm(self, norm)
    }

    #[track_caller]
    fn check_group_norm(&self, GroupNorm { groups, weight, bias, .. }: GroupNorm<'_>) {
        assert!(self.shape.rank() == 3, "group norm takes [H, W, C], not {}", self.shape);
        assert!(
            groups > 0 && self.shape[2].is_multiple_of(groups),
            "{} channels do not make {groups} groups",
            self.shape[2]
        );
        self.check_row(weight);
        self.check_row(bias);
    }

    #[track_caller]
    fn check_row(&self, row: &Self) {
        assert!(row.shape == Shape::new(&[self.shape.last()]), "row {} does not fit {}", row.shape, self.shape);
    }

    /// `f(x)`, element by element.
    pub fn unary(&self, f: Unary) -> Self {
        self.backend.unary(self, f)
    }

    /// `x · sigmoid(x)`.
    pub fn silu(&self) -> Self {
        self.unary(Unary::Silu)
    }

    /// `a·x + b`.
    pub fn affine(&self, a: f32, b: f32) -> Self {
        self.unary(Unary::Affine(a, b))
    }

    /// `self + b`; `b` has the same shape or is one row.
    #[track_caller]
    pub fn add(&self, b: &Self) -> Self {
        self.binary(b, Binary::Add)
    }

    /// `self − b`; `b` has the same shape or is one row.
    #[track_caller]
    pub fn sub(&self, b: &Self) -> Self {
        self.binary(b, Binary::Sub)
    }

    /// `self · b`, element by element; `b` has the same shape or is one row.
    #[track_caller]
    pub fn mul(&self, b: &Self) -> Self {
        self.binary(b, Binary::Mul)
    }

    #[track_caller]
    fn binary(&self, b: &Self, f: Binary) -> Self {
        assert!(
            b.shape == self.shape || b.shape == Shape::new(&[self.shape.last()]),
            "{f:?} of {} and {}",
            self.shape,
            b.shape
        );
        self.backend.binary(self, b, f)
    }

    /// `self + a·x`: an Euler step.
    #[track_caller]
    pub fn add_scaled(&self, a: f32, x: &Self) -> Self {
        assert!(self.shape == x.shape, "{} + a·{}", self.shape, x.shape);
        self.backend.add_scaled(self, a, x)
    }

    /// Rotates adjacent pairs of each head: `[L, heads, d]` by `angles [L, d/2, 2]` of (cos, sin).
    #[track_caller]
    pub fn rope(&self, angles: &Self) -> Self {
        assert!(self.shape.rank() == 3, "rope takes [tokens, heads, d], not {}", self.shape);
        Self::check_angles(self.shape[0], self.shape[2], angles);
        self.backend.rope(self, angles)
    }

    /// Heads cut out of fused columns, normed and rotated: see [`Backend::qk_norm_rope`].
    #[track_caller]
    pub fn qk_norm_rope(&self, start: usize, heads: usize, weight: &Self, angles: &Self, eps: f32) -> Self {
        assert!(self.shape.rank() == 2 && weight.shape.rank() == 1, "{} and {}", self.shape, weight.shape);
        let d = weight.shape[0];
        assert!(start + heads * d <= self.shape[1], "{heads} heads of {d} from column {start} of {}", self.shape);
        Self::check_angles(self.shape[0], d, angles);
        self.backend.qk_norm_rope(self, start, heads, weight, angles, eps)
    }

    #[track_caller]
    fn check_angles(tokens: usize, d: usize, angles: &Self) {
        assert!(
            d.is_multiple_of(2) && angles.shape == [tokens, d / 2, 2].into(),
            "angles {} for {tokens} heads of {d}",
            angles.shape
        );
    }

    /// The tensors one after the other along `axis`.
    #[track_caller]
    pub fn concat(parts: &[&Self], axis: usize) -> Self {
        let [first, rest @ ..] = parts else { panic!("nothing to concatenate") };
        assert!(axis < first.shape.rank(), "no axis {axis} in {}", first.shape);
        for part in rest {
            assert!(
                part.shape.with(axis, 1) == first.shape.with(axis, 1),
                "{} and {} along axis {axis}",
                first.shape,
                part.shape
            );
        }
        if rest.is_empty() { (*first).clone() } else { first.backend.concat(parts, axis) }
    }

    /// Elements `start..start + len` along `axis`.
    #[track_caller]
    pub fn slice(&self, axis: usize, start: usize, len: usize) -> Self {
        assert!(
            axis < self.shape.rank() && start + len <= self.shape[axis],
            "{start} + {len} along axis {axis} of {}",
            self.shape
        );
        if len == self.shape[axis] { self.clone() } else { self.backend.slice(self, axis, start, len) }
    }

    /// `count` equal pieces along the last axis.
    #[track_caller]
    pub fn chunk<const N: usize>(&self) -> [Self; N] {
        let last = self.shape.last();
        assert!(last.is_multiple_of(N), "{} does not split into {N}", self.shape);
        std::array::from_fn(|i| self.slice(self.shape.rank() - 1, i * (last / N), last / N))
    }

    /// The axes in another order: axis `i` of the result is axis `axes[i]`.
    #[track_caller]
    pub fn permute(&self, axes: &[usize]) -> Self {
        let mut seen = [false; Shape::MAX_RANK];
        assert!(axes.len() == self.shape.rank(), "{axes:?} does not order the axes of {}", self.shape);
        for &axis in axes {
            assert!(axis < axes.len() && !seen[axis], "{axes:?} does not order the axes of {}", self.shape);
            seen[axis] = true;
        }
        self.backend.permute(self, axes)
    }

    /// Each pixel twice in both directions: `[H, W, C]` → `[2H, 2W, C]`.
    #[track_caller]
    pub fn upsample_nearest_2x(&self) -> Self {
        assert!(self.shape.rank() == 3, "upsampling takes [H, W, C], not {}", self.shape);
        self.backend.upsample_nearest_2x(self)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{} on {}", self.shape, self.backend.name())
    }
}
