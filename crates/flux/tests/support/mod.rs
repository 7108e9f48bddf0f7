//! What golden tests share: fixtures by name, and comparisons that name the first wrong place.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use flux::weights::{Checkpoint, Naming, Weights, safetensors::Header};
use tensor::{
    Backend, Precision, Tensor,
    cpu::Cpu,
    observed::{Done, Observed},
    reference::Reference,
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

/// A backend that remembers the result of every operation, so that a test can look at blocks which the engine's interface does
/// not show.
pub struct Trace {
    pub backend: Arc<dyn Backend>,
    results: Arc<Mutex<Vec<Tensor>>>,
}

impl Trace {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        let results: Arc<Mutex<Vec<Tensor>>> = Arc::default();
        let kept = results.clone();
        let remember =
            move |done: Done<'_>| kept.lock().expect("no test thread panicked here").push(done.result.clone());
        Self { backend: Observed::new(inner, remember), results }
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
}
