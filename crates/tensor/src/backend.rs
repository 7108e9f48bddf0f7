//! What a backend computes.
//!
//! *Required* operations are the vocabulary of the papers. *Fused* operations have a default body made of required ones:
//! the default is the definition, and a backend that overrides it must agree with it (`tests/conformance.rs`). Arguments
//! have been checked by [`Tensor`]'s methods, which are the only callers; a backend need not check shapes again.
//!
//! All activations are f32. A new backend is complete when it has the required operations.

use std::{any::Any, fmt::Debug, ops::Range, sync::Arc};

use crate::{Precision, Shape, Tensor, Weight};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `x · sigmoid(x)`; also called swish.
    Silu,
    /// `½ x (1 + erf(x/√2))`.
    Gelu,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x` above 0, `a·x` below; `a` from 0 to 1.
    LeakyRelu(f32),
    /// `tanh(x)`.
    Tanh,
    /// `a·x + b`.
    Affine(f32, f32),
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
}

/// Which keys a query may see, and how their scores are shifted.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Every query sees every key.
    None,
    /// Query `i` sees keys `0..=i`.
    Causal,
    /// The scaled score of a query and a key is shifted by what their distance says: element `key − query + queries − 1` of a
    /// head's row in `[heads, queries + keys − 1]`.
    Relative(&'a Tensor),
    /// `[keys]` is added to the scaled scores of every query: ln w makes a key count as w of its kind would.
    Keys(&'a Tensor),
}

/// Rows and columns of zeros around a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Above.
    pub top: usize,
    /// Left.
    pub left: usize,
    /// Below.
    pub bottom: usize,
    /// Right.
    pub right: usize,
}

impl Padding {
    /// The same on all sides.
    pub fn all(size: usize) -> Self {
        Self { top: size, left: size, bottom: size, right: size }
    }

    /// The shape that a convolution of picture `x` with kernel `weight` gives.
    pub(crate) fn output(self, x: Shape, weight: Shape, stride: usize) -> [usize; 3] {
        let [h, w] = self.sides(x, [weight[2], weight[3]], stride);
        [h, w, weight[0]]
    }

    /// The shape that a convolution of picture `x` with a kernel `[kh, kw, C]` for each channel gives.
    pub(crate) fn depthwise(self, x: Shape, kernel: Shape, stride: usize) -> [usize; 3] {
        let [h, w] = self.sides(x, [kernel[0], kernel[1]], stride);
        [h, w, x[2]]
    }

    fn sides(self, x: Shape, [kh, kw]: [usize; 2], stride: usize) -> [usize; 2] {
        let h = (x[0] + self.top + self.bottom - kh) / stride + 1;
        let w = (x[1] + self.left + self.right - kw) / stride + 1;
        [h, w]
    }
}

/// Fused columns of one stream of tokens, which begin with queries, keys and values, and the norms of the first two.
#[derive(Clone, Copy, Debug)]
pub struct Qkv<'a> {
    /// `[tokens, ≥ 3 · heads · d]`.
    pub x: &'a Tensor,
    /// Weight of the queries' RMS norm, `[d]`.
    pub query_norm: &'a Tensor,
    /// Weight of the keys', `[d]`.
    pub key_norm: &'a Tensor,
}

/// A norm of channel groups: `(x − mean) / √(var + eps) · weight + bias`, statistics per group over all pixels.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// How many groups the channels make.
    pub groups: usize,
    /// `[C]`.
    pub weight: &'a Tensor,
    /// `[C]`.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
}

/// A product that is added to a linear layer's: a low-rank adapter's second factor on what the first one gave.
#[derive(Clone, Debug)]
pub struct Term<'a> {
    /// On the layer's tokens, `[.., ≥ start + weight's row length]`.
    pub x: &'a Tensor,
    /// The element of each of x's rows with which the product begins.
    pub start: usize,
    /// `[out, some of x's columns]`.
    pub weight: &'a Weight,
    /// Of the weight's rows, those that need not be zero: nothing is computed for the others.
    pub rows: Range<usize>,
}

/// What a linear layer with [`Term`]s ends with.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// Nothing more.
    Nothing,
    /// A function of each element.
    Unary(Unary),
    /// `residual + gate · y`; `residual [.., out]`, `gate [out]`.
    GatedAdd {
        /// As large as the result.
        residual: &'a Tensor,
        /// One number for each column.
        gate: &'a Tensor,
    },
}

impl End<'_> {
    /// Applied to `y`.
    #[track_caller]
    pub fn of(self, y: Tensor) -> Tensor {
        match self {
            Self::Nothing => y,
            Self::Unary(f) => y.unary(f),
            Self::GatedAdd { residual, gate } => residual.add(&y.mul(gate)),
        }
    }
}

/// [`Backend::linear_sum`] in operations of their own.
pub(crate) fn linear_sum_in_parts(
    x: &[&Tensor],
    weight: &Weight,
    bias: Option<&Tensor>,
    terms: &[Term<'_>],
    end: End<'_>,
) -> Tensor {
    let mut y = Tensor::concat(x, x[0].shape().rank() - 1).linear(weight, bias);
    for Term { x, start, weight, .. } in terms {
        y = y.add(&x.slice(x.shape().rank() - 1, *start, weight.row_len()).linear(weight, None));
    }
    end.of(y)
}

/// The operations. See the module's header for the two kinds.
///
/// Backends make their results with [`Tensor::new`].
pub trait Backend: Any + Debug + Send + Sync {
    /// A short name: `cpu`, `reference` …
    fn name(&self) -> &'static str;

    /// Whether the numbers matter. A backend that only counts may be given any, so that files need not be read.
    fn computes(&self) -> bool {
        true
    }

    /// Takes values in.
    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor;

    /// Gives the values back, row-major.
    fn download(&self, x: &Tensor) -> Vec<f32>;

    /// Lets go of memory that is kept for operations to come: the next phase has other shapes.
    fn release_idle(&self) {}

    // ── required ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// `y = x·Wᵀ + bias`: `x [.., in]`, `weight [out, in]`, `bias [out]` → `[.., out]`.
    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor;

    /// `softmax(scale · q·kᵀ + mask) · v` per head: `q [Lq, heads, d]`, `k, v [Lk, heads, d]` → `[Lq, heads, d]`.
    ///
    /// In any precision but f32 the factors of both products are rounded to bf16: `scale · log₂e · q`, k, v, and the weights
    /// `2^(s − ⌈max s⌉)`, `s` being the scores in units of log₂; the weights' sum is that of the rounded ones.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: Mask<'_>, precision: Precision)
    -> Tensor;

    /// Cross-correlation: `x [H, W, in]`, `weight [out, in, kh, kw]`, `bias [out]` → `[H', W', out]`.
    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor;

    /// Cross-correlation of each channel by itself, with zero padding: `x [H, W, C]`, `kernel [kh, kw, C]`, `bias [C]` →
    /// `[H', W', C]`.
    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor;

    /// `(x − mean) / √(var + eps)` over the last axis, biased variance.
    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor;

    /// `x / √(mean(x²) + eps) · weight` over the last axis; `weight [last]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor;

    /// `norm(x)`: `x [H, W, C]`.
    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor;

    /// `f(x)`, element by element.
    fn unary(&self, x: &Tensor, f: Unary) -> Tensor;

    /// `f(a, b)`, element by element; `b` has `a`'s shape or is one row `[last]` used for every row of `a`.
    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor;

    /// Rotates adjacent pairs: `x [L, heads, d]`, `angles [L, d/2, 2]` holding (cos, sin);
    /// `y[2j] = cos·x[2j] − sin·x[2j+1]`, `y[2j+1] = sin·x[2j] + cos·x[2j+1]`.
    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor;

    /// Rows of a table: `table [rows, d]` → `[ids, d]`. The table's compute precision plays no part.
    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor;

    /// The tensors one after the other along `axis`; all other extents are equal.
    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor;

    /// Elements `start..start + len` along `axis`.
    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor;

    /// `y`'s axis `i` is `x`'s axis `axes[i]`.
    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor;

    /// Each pixel twice in both directions: `[H, W, C]` → `[2H, 2W, C]`.
    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor;

    // ── fused ───────────────────────────────────────────────────────────────────────────────────────────────────────

    /// `f(linear(x))`.
    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, f: Unary) -> Tensor {
        self.linear(x, weight, bias).unary(f)
    }

    /// `residual + gate · linear(x)`; `residual [.., out]`, `gate [out]`. The columns of x lie side by side in several tensors, or
    /// in one.
    fn linear_gated_add(
        &self,
        residual: &Tensor,
        gate: &Tensor,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
    ) -> Tensor {
        let x = self.concat(x, residual.shape().rank() - 1);
        self.binary(residual, &self.linear(&x, weight, bias).mul(gate), Binary::Add)
    }

    /// `end(linear(x) + Σ term.x[.., columns] · term.weightᵀ)`; the columns of x may lie in several tensors, side by side.
    fn linear_sum(
        &self,
        x: &[&Tensor],
        weight: &Weight,
        bias: Option<&Tensor>,
        terms: &[Term<'_>],
        end: End<'_>,
    ) -> Tensor {
        linear_sum_in_parts(x, weight, bias, terms, end)
    }

    /// `(1 + scale) · layer_norm(x) + shift`; `shift, scale [last]`.
    fn modulated_norm(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f32) -> Tensor {
        self.layer_norm(x, eps).mul(&scale.affine(1.0, 1.0)).add(shift)
    }

    /// `a·x + y`, shapes equal: an Euler step.
    fn add_scaled(&self, y: &Tensor, a: f32, x: &Tensor) -> Tensor {
        self.binary(y, &x.affine(a, 0.0), Binary::Add)
    }

    /// Heads cut out of fused columns, normed and rotated: columns `start..start + heads·d` of `x [L, columns]` →
    /// RMS norm over each head with `weight [d]` → [`Backend::rope`] with `angles` → `[L, heads, d]`.
    fn qk_norm_rope(
        &self,
        x: &Tensor,
        start: usize,
        heads: usize,
        weight: &Tensor,
        angles: &Tensor,
        eps: f32,
    ) -> Tensor {
        let d = weight.shape()[0];
        let head = self.slice(x, 1, start, heads * d).reshape([x.shape()[0], heads, d]);
        self.rms_norm(&head, weight, eps).rope(angles)
    }

    /// Self-attention of all tokens of some streams, one stream after the other: queries and keys are cut out, normed and
    /// rotated ([`Backend::qk_norm_rope`]), scores scaled by 1/√d and shifted by `shift [tokens of all]` as keys, if there is one
    /// ([`Mask::Keys`]). `angles [tokens of all, d/2, 2]` → `[tokens of all, heads · d]`.
    fn joint_attention(
        &self,
        streams: &[Qkv<'_>],
        heads: usize,
        angles: &Tensor,
        shift: Option<&Tensor>,
        eps: f32,
        precision: Precision,
    ) -> Tensor {
        let d = streams[0].query_norm.shape()[0];
        let mut first = 0;
        let mut parts: [Vec<Tensor>; 3] = [Vec::new(), Vec::new(), Vec::new()];
        for &Qkv { x, query_norm, key_norm } in streams {
            let tokens = x.shape()[0];
            let angles = angles.slice(0, first, tokens);
            first += tokens;
            parts[0].push(x.qk_norm_rope(0, heads, query_norm, &angles, eps));
            parts[1].push(x.qk_norm_rope(heads * d, heads, key_norm, &angles, eps));
            parts[2].push(x.slice(1, 2 * heads * d, heads * d).reshape([tokens, heads, d]));
        }
        let [q, k, v] = parts.map(|parts| Tensor::concat(&parts.iter().collect::<Vec<_>>(), 0));
        q.attention(&k, &v, (d as f32).sqrt().recip(), shift.map_or(Mask::None, Mask::Keys), precision)
            .reshape([first, heads * d])
    }

    /// `residual + conv2d(silu(norm(x)))`, stride 1, for half of a residual block; `residual` has the result's shape.
    fn norm_silu_conv2d(
        &self,
        x: &Tensor,
        norm: GroupNorm<'_>,
        weight: &Weight,
        bias: Option<&Tensor>,
        padding: Padding,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let y = self.conv2d(&self.group_norm(x, norm).silu(), weight, bias, 1, padding);
        residual.map_or(y.clone(), |residual| self.binary(residual, &y, Binary::Add))
    }

    /// `f(conv2d(x))`.
    fn conv2d_unary(
        &self,
        x: &Tensor,
        weight: &Weight,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
        f: Unary,
    ) -> Tensor {
        self.conv2d(x, weight, bias, stride, padding).unary(f)
    }

    /// `conv2d(upsample_nearest_2x(x))`, stride 1.
    fn upsample_conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, padding: Padding) -> Tensor {
        self.conv2d(&self.upsample_nearest_2x(x), weight, bias, 1, padding)
    }
}
