//! What golden tests share: fixtures by name, and comparisons that name the first wrong place.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use flux::weights::{Checkpoint, Naming, Weights, safetensors::Header};
use tensor::{
    Backend, Binary, GroupNorm, Mask, Padding, Precision, Shape, Tensor, Unary, Weight, cpu::Cpu, reference::Reference,
};

/// Both backends that compute.
pub fn backends() -> [Arc<dyn Backend>; 2] {
    [Reference::new(), Cpu::new(Some(2))]
}

/// The folder of fixtures.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A fixture file: weights under `w.`, everything else by its own name.
pub struct Golden {
    name: String,
    header: Header,
    bytes: Vec<u8>,
    checkpoint: Arc<Checkpoint>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = folder().join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let header = Header::parse(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let checkpoint = Arc::new(Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}")));
        Self { name: name.to_owned(), header, bytes, checkpoint }
    }

    /// The model's weights.
    pub fn weights(&self, naming: Naming, backend: &Arc<dyn Backend>) -> Weights {
        Weights::new(self.checkpoint.clone(), "w.", naming, backend.clone(), Precision::F32)
    }

    /// A string of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    pub fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// All tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        self.raw(name).1
    }

    fn raw(&self, name: &str) -> (&str, &[usize], &[u8]) {
        let entry = self.header.tensors.get(name).unwrap_or_else(|| panic!("{} has no '{name}'", self.name));
        (&entry.dtype, &entry.shape, &self.bytes[entry.bytes.clone()])
    }

    /// Extents and values.
    pub fn values(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (dtype, shape, bytes) = self.raw(name);
        assert_eq!(dtype, "F32", "{name}");
        let (chunks, _) = bytes.as_chunks::<4>();
        (shape.to_vec(), chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        self.raw(name).2
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let (dtype, _, bytes) = self.raw(name);
        assert_eq!(dtype, "I64", "{name}");
        let (chunks, _) = bytes.as_chunks::<8>();
        chunks.iter().map(|c| i64::from_le_bytes(*c) as u32).collect()
    }

    /// Batch item `item` of a tensor `[batch, …]`, without the batch axis.
    pub fn item(&self, name: &str, item: usize, backend: &Arc<dyn Backend>) -> Tensor {
        let (shape, values) = self.values(name);
        let size: usize = shape[1..].iter().product();
        Tensor::from_vec(backend, tensor::Shape::new(&shape[1..]), values[item * size..(item + 1) * size].to_vec())
    }
}

/// Relative L2 distance; not-a-number counts as infinitely far.
pub fn distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len(), "different sizes");
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (error / size.max(1e-30)).sqrt();
    if relative.is_nan() { f64::INFINITY } else { relative }
}

/// Fails with the place's name if `got` is further than `bound` from `expected`.
pub fn close(place: &str, got: &[f32], expected: &[f32], bound: f64) {
    let distance = distance(got, expected);
    assert!(
        distance <= bound,
        "{place} is the first wrong place: relative L2 distance {distance:.3e}, allowed {bound:.0e}"
    );
}

/// `[C, H, W]` → `[H, W, C]`.
pub fn channels_last(backend: &Arc<dyn Backend>, shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::from_vec(backend, tensor::Shape::new(shape), values).permute(&[1, 2, 0])
}

/// A backend around another that remembers the result of every operation, so that a test can look at blocks which the
/// engine's interface does not show.
#[derive(Debug)]
pub struct Trace {
    inner: Arc<dyn Backend>,
    results: Mutex<Vec<Tensor>>,
}

impl Trace {
    pub fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { inner, results: Mutex::default() })
    }

    /// Fails with the name of the first of `places` (in the order in which they are computed) whose values are no
    /// operation's result; then forgets all results.
    pub fn check(&self, run: &str, places: &[(String, Vec<f32>)], bound: f64) {
        let results: Vec<Vec<f32>> =
            self.results.lock().expect("no test thread panicked here").drain(..).map(|x| x.to_vec()).collect();
        let mut from = 0;
        for (place, expected) in places {
            let distances = results[from..]
                .iter()
                .map(|x| if x.len() == expected.len() { distance(x, expected) } else { f64::NAN });
            let (index, nearest) = distances
                .enumerate()
                .filter(|(_, d)| !d.is_nan())
                .fold((0, f64::INFINITY), |best, (i, d)| if best.1 <= bound || best.1 <= d { best } else { (i, d) });
            assert!(
                nearest <= bound,
                "{run}: {place} is the first wrong block: the nearest result is {nearest:.3e} away, allowed {bound:.0e}"
            );
            from += index;
        }
    }

    /// The inner backend's tensor.
    fn open(x: &Tensor) -> Tensor {
        x.buffer().downcast_ref::<Tensor>().expect("a tensor of this backend").reshape(x.shape())
    }

    fn remember(&self, y: &Tensor) {
        self.results.lock().expect("no test thread panicked here").push(y.clone());
    }

    /// The inner result `y` as one of this backend, which `x` is of.
    fn wrap(&self, x: &Tensor, y: Tensor) -> Tensor {
        self.remember(&y);
        x.like(y.shape(), Arc::new(y))
    }
}

/// Only forwards.
impl Backend for Trace {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn upload(self: Arc<Self>, shape: Shape, values: Vec<f32>) -> Tensor {
        let y = self.inner.clone().upload(shape, values);
        Tensor::new(shape, Arc::new(y), self)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        Self::open(x).to_vec()
    }

    fn linear(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
        self.wrap(x, self.inner.linear(&Self::open(x), weight, bias.map(Self::open).as_ref()))
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
        let shifts = if let Mask::Relative(shifts) = mask { Some(Self::open(shifts)) } else { None };
        let mask = shifts.as_ref().map_or(mask, Mask::Relative);
        self.wrap(q, self.inner.attention(&inner_q, &inner_k, &inner_v, scale, mask, precision))
    }

    fn conv2d(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Tensor {
        self.wrap(x, self.inner.conv2d(&Self::open(x), weight, bias.map(Self::open).as_ref(), stride, padding))
    }

    fn depthwise_conv2d(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Tensor {
        let [inner, kernel] = [x, kernel].map(Self::open);
        self.wrap(x, self.inner.depthwise_conv2d(&inner, &kernel, bias.map(Self::open).as_ref(), stride, padding))
    }

    fn layer_norm(&self, x: &Tensor, eps: f32) -> Tensor {
        self.wrap(x, self.inner.layer_norm(&Self::open(x), eps))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
        self.wrap(x, self.inner.rms_norm(&Self::open(x), &Self::open(weight), eps))
    }

    fn group_norm(&self, x: &Tensor, norm: GroupNorm<'_>) -> Tensor {
        let [weight, bias] = [norm.weight, norm.bias].map(Self::open);
        self.wrap(x, self.inner.group_norm(&Self::open(x), GroupNorm { weight: &weight, bias: &bias, ..norm }))
    }

    fn unary(&self, x: &Tensor, f: Unary) -> Tensor {
        self.wrap(x, self.inner.unary(&Self::open(x), f))
    }

    fn binary(&self, a: &Tensor, b: &Tensor, f: Binary) -> Tensor {
        self.wrap(a, self.inner.binary(&Self::open(a), &Self::open(b), f))
    }

    fn rope(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        self.wrap(x, self.inner.rope(&Self::open(x), &Self::open(angles)))
    }

    fn embedding(self: Arc<Self>, table: &Weight, ids: &[u32]) -> Tensor {
        let y = self.inner.clone().embedding(table, ids);
        self.remember(&y);
        Tensor::new(y.shape(), Arc::new(y), self)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Tensor {
        let inner: Vec<Tensor> = parts.iter().map(|x| Self::open(x)).collect();
        self.wrap(parts[0], self.inner.concat(&inner.iter().collect::<Vec<_>>(), axis))
    }

    fn slice(&self, x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
        self.wrap(x, self.inner.slice(&Self::open(x), axis, start, len))
    }

    fn permute(&self, x: &Tensor, axes: &[usize]) -> Tensor {
        self.wrap(x, self.inner.permute(&Self::open(x), axes))
    }

    fn upsample_nearest_2x(&self, x: &Tensor) -> Tensor {
        self.wrap(x, self.inner.upsample_nearest_2x(&Self::open(x)))
    }

    fn linear_unary(&self, x: &Tensor, weight: &Weight, bias: Option<&Tensor>, f: Unary) -> Tensor {
        self.wrap(x, self.inner.linear_unary(&Self::open(x), weight, bias.map(Self::open).as_ref(), f))
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
        self.wrap(residual, self.inner.linear_gated_add(&inner, &gate, &parts, weight, bias.as_ref()))
    }

    fn modulated_norm(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f32) -> Tensor {
        self.wrap(x, self.inner.modulated_norm(&Self::open(x), &Self::open(shift), &Self::open(scale), eps))
    }

    fn add_scaled(&self, y: &Tensor, a: f32, x: &Tensor) -> Tensor {
        self.wrap(y, self.inner.add_scaled(&Self::open(y), a, &Self::open(x)))
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
        let [inner_x, weight, angles] = [x, weight, angles].map(Self::open);
        self.wrap(x, self.inner.qk_norm_rope(&inner_x, start, heads, &weight, &angles, eps))
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
        self.wrap(x, self.inner.norm_silu_conv2d(&inner, norm, weight, bias.as_ref(), padding, residual.as_ref()))
    }
}
