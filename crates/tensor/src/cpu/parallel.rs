//! Threads, the tasks they share, and each thread's scratch memory.
//!
//! Tasks divide outputs, never sums, and their results do not depend on who runs them: any number of threads gives the same
//! bits. Small work stays on the calling thread, because waking another takes longer than computing 10⁵ products.

use std::{
    cell::RefCell,
    marker::PhantomData,
    num::NonZero,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::host::Block;

/// The calling thread and its helpers.
#[derive(Debug)]
pub(super) struct Threads {
    helpers: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// Work (in multiplications, or elements moved) under which one thread is faster than two.
    const WORTH_SHARING: usize = 1 << 17;

    /// As many as asked for, or as many as there are cores.
    pub(super) fn new(count: Option<usize>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let count = count.unwrap_or_else(cores).max(1);
        let helpers = (count > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(count - 1);
            builder.thread_name(|i| format!("tensor-{i}")).build()
        });
        match helpers {
            Some(Ok(helpers)) => Self { helpers: Some(helpers), count },
            // A system that gives no more threads can still compute on this one.
            Some(Err(_)) | None => Self { helpers: None, count: 1 },
        }
    }

    /// How many compute.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Runs `task(0..tasks)`, each index once, on whichever thread is free; `work` is that of all tasks together.
    pub(super) fn for_each(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        match &self.helpers {
            Some(helpers) if tasks > 1 && work >= Self::WORTH_SHARING => {
                let next = AtomicUsize::new(0);
                let take_turns = || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= tasks {
                            break;
                        }
                        task(index);
                    }
                };
                helpers.in_place_scope(|scope| {
                    for _ in 1..self.count.min(tasks) {
                        scope.spawn(|_| take_turns());
                    }
                    take_turns();
                });
            }
            _ => (0..tasks).for_each(task),
        }
    }

    /// Runs `task` on pieces of `elements` of at most `len` elements, with each piece's index.
    pub(super) fn for_each_chunk(
        &self,
        elements: &mut [f32],
        len: usize,
        work: usize,
        task: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let len = len.max(1);
        let total = elements.len();
        let shared = Shared::new(elements);
        self.for_each(total.div_ceil(len), work, |index| {
            // SAFETY: the pieces of different indices do not overlap.
            task(index, unsafe { shared.slice(index * len..((index + 1) * len).min(total)) });
        });
    }

    /// How many rows a task takes so that every thread gets a few tasks of some size.
    pub(super) fn rows_per_task(&self, rows: usize, row: usize) -> usize {
        let fair = rows.div_ceil(4 * self.count);
        let sizable = (1 << 14) / row.max(1);
        fair.min(sizable.max(1) * 16).max(sizable).max(1)
    }
}

/// Elements that several threads write, each its own.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it only hands out elements through `unsafe` methods whose callers promise that no two threads have the same ones.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(elements: &'a mut [f32]) -> Self {
        Self { start: elements.as_mut_ptr(), len: elements.len(), lifetime: PhantomData }
    }

    /// Where the element `index` is.
    pub(super) fn at(&self, index: usize) -> *mut f32 {
        assert!(index < self.len, "{index} is outside of {} elements", self.len);
        self.start.wrapping_add(index)
    }

    /// # Safety
    /// Nobody else has any of these elements as long as the slice lives.
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} is outside of {} elements", self.len);
        // SAFETY: within the elements, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Block> = RefCell::default();
}

/// Elements that scratch memory has at least: one huge page, of which only what is used is there if the system has none.
const LEAST_SCRATCH: usize = 1 << 19;

/// Lends `f` this thread's scratch memory: `len` elements of any value, from a cache line's start.
///
/// # Panics
/// If `f` asks for scratch memory itself.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.elements().len() < len + 16 {
            *scratch = Block::new((len + 16).next_multiple_of(LEAST_SCRATCH));
        }
        let start = scratch.elements().as_ptr().align_offset(64).min(16);
        f(&mut scratch.elements_mut()[start..start + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for count in [1, 2, 5] {
            let mut seen = vec![0.0; 1000];
            Threads::new(Some(count)).for_each_chunk(&mut seen, 7, usize::MAX, |index, piece| {
                for v in piece {
                    *v += 1.0 + index as f32;
                }
            });
            assert!(seen.iter().enumerate().all(|(i, &v)| v == 1.0 + (i / 7) as f32));
        }
    }
}
