//! Rows of a weight in another storage format, and what is lost by it. For converting files.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{
    Level,
    arch::{Kernel, Simd, Vector},
    pack,
    parallel::Threads,
};
use crate::{DType, StoredRow, Weight, formats::encode};

/// Decodes and encodes rows on all cores; results do not depend on how many, nor on the machine.
#[derive(Debug)]
pub struct Encoder {
    simd: Simd,
    threads: Threads,
}

/// Rows in their new format.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// For [`DType::I8`]: each row's scale. Otherwise ones.
    pub scales: Vec<f32>,
    /// What the new format lost.
    pub loss: Loss,
}

/// How far decoded elements are from those that were encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Σ(new − old)².
    pub squares: f64,
    /// Σ old².
    pub total: f64,
    /// Elements that are not finite, before or after.
    pub not_finite: u64,
}

impl Loss {
    /// Relative L2 distance.
    pub fn relative(&self) -> f64 {
        if self.total > 0.0 { (self.squares / self.total).sqrt() } else { 0.0 }
    }

    /// That of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            squares: self.squares + other.squares,
            total: self.total + other.total,
            not_finite: self.not_finite + other.not_finite,
        }
    }
}

impl Encoder {
    /// With this many threads, or as many as there are cores.
    pub fn new(threads: Option<usize>) -> Self {
        Self { simd: Simd::new(Level::best()), threads: Threads::new(threads) }
    }

    /// The rows `rows` of a weight in the format `to`.
    ///
    /// # Panics
    /// If there are no such rows, they are not whole blocks of `to`, or `to` cannot be [written](DType::can_encode).
    pub fn encode(&self, weight: &Weight, rows: Range<usize>, to: DType) -> Encoded {
        let len = weight.row_len();
        assert!(len.is_multiple_of(to.block()), "rows of {len} elements are not whole blocks of {to:?}");
        assert!(rows.end <= weight.out_features(), "{rows:?} are outside of {}", weight.shape());
        let mut encoded = Encoded {
            bytes: vec![0; to.bytes(len) * rows.len()],
            scales: vec![1.0; rows.len()],
            loss: Loss::default(),
        };
        if encoded.bytes.is_empty() {
            return encoded;
        }
        let mut losses = vec![Loss::default(); rows.len()];
        let a_task = (1 << 15) / len.max(1) + 1;
        let tasks: Vec<_> = encoded
            .bytes
            .chunks_mut(to.bytes(len) * a_task)
            .zip(encoded.scales.chunks_mut(a_task).zip(losses.chunks_mut(a_task)))
            .map(|(bytes, (scales, losses))| Mutex::new(Rows { bytes, scales, losses }))
            .collect();
        self.threads.for_each(tasks.len(), usize::MAX, |task| {
            let mut to_rows = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
            let first = rows.start + task * a_task;
            self.simd.run(Encode { weight, first, to, rows: &mut to_rows });
        });
        drop(tasks);
        encoded.loss = losses.into_iter().fold(Loss::default(), Loss::and);
        encoded
    }
}

/// Where the rows of one task go.
struct Rows<'a> {
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
    losses: &'a mut [Loss],
}

struct Encode<'a, 'b> {
    weight: &'a Weight,
    first: usize,
    to: DType,
    rows: &'a mut Rows<'b>,
}

impl Kernel for Encode<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { weight, first, to, rows } = self;
        let len = weight.row_len();
        let (mut old, mut new) = (vec![0.0; len], vec![0.0; len]);
        let stored = weight.stored_rows(first);
        for (i, (stored, bytes)) in stored.zip(rows.bytes.chunks_exact_mut(to.bytes(len))).enumerate() {
            pack::decode::<V>(stored, 0, &mut old);
            let scale = encode::encode_row(to, &old, bytes);
            pack::decode::<V>(StoredRow { dtype: to, scale, bytes, blocks: None }, 0, &mut new);
            rows.scales[i] = scale;
            rows.losses[i] = compare(&old, &new);
        }
    }
}

#[inline(always)]
fn compare(old: &[f32], new: &[f32]) -> Loss {
    const LANES: usize = 8;
    let (mut squares, mut total, mut not_finite) = ([0f64; LANES], [0f64; LANES], [0u64; LANES]);
    for (old, new) in old.chunks(LANES).zip(new.chunks(LANES)) {
        for (i, (old, new)) in old.iter().zip(new).enumerate() {
            let off = f64::from(new - old);
            squares[i] += off * off;
            total[i] += f64::from(*old) * f64::from(*old);
            not_finite[i] += u64::from(!(old.is_finite() && new.is_finite()));
        }
    }
    Loss { squares: squares.iter().sum(), total: total.iter().sum(), not_finite: not_finite.iter().sum() }
}
