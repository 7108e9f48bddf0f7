//! f32 elements in the computer's own memory: the buffer of the backends that compute on a CPU.
//!
//! Large blocks go round: an activation of hundreds of megabytes that is mapped, zeroed page by page and unmapped for every
//! operation costs more than many an operation. Blocks start on a cache line.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{Buffer, Tensor};

/// Elements of a cache line of 64 bytes.
const LINE: usize = 16;

/// Elements and where their memory goes when they are no longer needed.
pub(crate) struct HostBuffer {
    memory: Vec<f32>,
    start: usize,
    len: usize,
    recycler: Weak<Recycler>,
}

impl HostBuffer {
    /// A buffer around values that came from outside.
    pub(crate) fn from_vec(memory: Vec<f32>) -> Self {
        Self { start: 0, len: memory.len(), memory, recycler: Weak::new() }
    }

    fn over(memory: Vec<f32>, len: usize, recycler: Weak<Recycler>) -> Self {
        let start = memory.as_ptr().align_offset(64).min(memory.len() - len);
        Self { memory, start, len, recycler }
    }

    /// The elements.
    pub(crate) fn values(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The elements, to be written.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// As the buffer of a tensor.
    pub(crate) fn share(self) -> Buffer {
        Arc::new(self)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Some(recycler) = self.recycler.upgrade() {
            recycler.give_back(std::mem::take(&mut self.memory));
        }
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBuffer({} elements)", self.len)
    }
}

/// The elements of a tensor that lives in the computer's own memory.
///
/// # Panics
/// If the tensor lives elsewhere: operations never mix backends.
pub(crate) fn values(x: &Tensor) -> &[f32] {
    match x.buffer().downcast_ref::<HostBuffer>() {
        Some(buffer) => buffer.values(),
        None => panic!("{x:?} is not in the computer's own memory"),
    }
}

/// Idle blocks, waiting for an operation that needs about as much.
#[derive(Debug, Default)]
pub(crate) struct Recycler(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    /// Blocks and when they came back.
    blocks: Vec<(Vec<f32>, u64)>,
    /// Requests so far.
    clock: u64,
}

impl Recycler {
    /// Smaller blocks are left to the allocator, which has them at hand.
    const SMALLEST: usize = 1 << 14;
    /// A block that this many requests had no use for goes back to the system: the next phase has other shapes.
    const PATIENCE: u64 = 64;

    /// A buffer of `len` elements of any value.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> HostBuffer {
        if len < Self::SMALLEST {
            return HostBuffer::over(vec![0.0; len + LINE], len, Weak::new());
        }
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clock += 1;
        let now = idle.clock;
        idle.blocks.retain(|(_, since)| now - since <= Self::PATIENCE);
        let fits = |memory: &Vec<f32>| (len + LINE..=len + len / 4 + LINE).contains(&memory.len());
        let best = (0..idle.blocks.len())
            .filter(|&i| fits(&idle.blocks[i].0))
            .min_by_key(|&i| idle.blocks[i].0.len())
            .map(|i| idle.blocks.swap_remove(i).0);
        drop(idle);
        HostBuffer::over(best.unwrap_or_else(|| vec![0.0; len + LINE]), len, Arc::downgrade(self))
    }

    fn give_back(&self, memory: Vec<f32>) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = idle.clock;
        idle.blocks.push((memory, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_and_let_go_when_it_no_longer_fits() {
        let recycler = Arc::new(Recycler::default());
        let address = |b: &HostBuffer| b.values().as_ptr() as usize;
        let first = recycler.take(100_000);
        let at = address(&first);
        assert_eq!(at % 64, 0);
        drop(first);
        let second = recycler.take(90_000);
        assert_eq!(address(&second), at);
        drop(second);
        for _ in 0..=Recycler::PATIENCE {
            drop(recycler.take(1_000_000));
        }
        assert!(recycler.0.lock().unwrap().blocks.iter().all(|(memory, _)| memory.len() > 900_000));
    }
}
