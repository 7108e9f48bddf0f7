//! The two layers with weights: fully connected and convolution.

use tensor::{Padding, Tensor, Unary, Weight};

/// `y = x·Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[.., in]` → `[.., out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// `f(forward(x))`.
    #[track_caller]
    pub fn then(&self, x: &Tensor, f: Unary) -> Tensor {
        x.linear_unary(&self.weight, self.bias.as_ref(), f)
    }

    /// `residual + gate · forward(x)`.
    #[track_caller]
    pub fn gated_add(&self, residual: &Tensor, gate: &Tensor, x: &Tensor) -> Tensor {
        residual.linear_gated_add(gate, x, &self.weight, self.bias.as_ref())
    }
}

/// A square convolution.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in, k, k]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Conv2d {
    /// `[H, W, in]` → `[H, W, out]`.
    #[track_caller]
    pub fn same(&self, x: &Tensor) -> Tensor {
        self.strided(x, 1, Padding::all(self.weight.shape()[2] / 2))
    }

    /// `[H, W, in]` → `[H', W', out]`.
    #[track_caller]
    pub fn strided(&self, x: &Tensor, stride: usize, padding: Padding) -> Tensor {
        x.conv2d(&self.weight, self.bias.as_ref(), stride, padding)
    }
}
