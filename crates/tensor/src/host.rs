//! f32 elements in the computer's own memory: the buffer of the backends that compute on a CPU.
//!
//! Large blocks go round: an activation of hundreds of megabytes that is mapped, zeroed page by page and unmapped for every
//! operation costs more than many an operation. Idle blocks never make the whole larger than what was once in use at the same
//! time, so that memory stays within what [`dry_run`](crate::dry_run) counts. Blocks start on a cache line.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{Buffer, Tensor};

/// Elements of a cache line of 64 bytes.
const LINE: usize = 16;

/// Memory of some elements.
pub(crate) enum Block {
    /// From the allocator.
    Heap(Vec<f32>),
    /// Pages of its own, which the system has back at once when they are let go: an allocator may keep them.
    Pages(memmap2::MmapMut),
}

impl Default for Block {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Block {
    /// Smaller blocks are left to the allocator, which has them at hand.
    const SMALLEST: usize = 1 << 14;

    /// Bytes from which on huge pages are asked for.
    const WORTH_HUGE_PAGES: usize = 2 << 20;

    /// Room for `len` elements from a cache line's start on.
    pub(crate) fn new(len: usize) -> Self {
        let pages = (len >= Self::SMALLEST).then(|| memmap2::MmapMut::map_anon(4 * len));
        match pages {
            Some(Ok(pages)) => {
                Self::use_huge_pages(&pages);
                Self::Pages(pages)
            }
            Some(Err(_)) | None => Self::Heap(vec![0.0; len + LINE]),
        }
    }

    /// Asks for pages of 2 MiB where the system has them. A matrix product walks through rows that are pages apart; with pages
    /// of 4 KiB it waits for their addresses, a tenth of its time on a virtual machine. Nothing is lost if it is refused.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux is asked"))]
    fn use_huge_pages(pages: &memmap2::MmapMut) {
        #[cfg(target_os = "linux")]
        if pages.len() >= Self::WORTH_HUGE_PAGES {
            let _refused = pages.advise(memmap2::Advice::HugePage).is_err();
        }
    }

    pub(crate) fn elements(&self) -> &[f32] {
        match self {
            Self::Heap(elements) => elements,
            // SAFETY: any bits are an f32, and pages are aligned for it.
            Self::Pages(pages) => unsafe { pages.align_to().1 },
        }
    }

    pub(crate) fn elements_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Heap(elements) => elements,
            // SAFETY: any bits are an f32 and the other way round, and pages are aligned for it.
            Self::Pages(pages) => unsafe { pages.align_to_mut().1 },
        }
    }

    fn bytes(&self) -> u64 {
        4 * self.elements().len() as u64
    }
}

/// Elements and where their memory goes when they are no longer needed.
pub(crate) struct HostBuffer {
    block: Block,
    start: usize,
    len: usize,
    recycler: Weak<Recycler>,
}

impl HostBuffer {
    /// A buffer around values that came from outside.
    pub(crate) fn from_vec(elements: Vec<f32>) -> Self {
        Self { start: 0, len: elements.len(), block: Block::Heap(elements), recycler: Weak::new() }
    }

    fn over(block: Block, len: usize, recycler: Weak<Recycler>) -> Self {
        let elements = block.elements();
        let start = elements.as_ptr().align_offset(64).min(elements.len() - len);
        Self { block, start, len, recycler }
    }

    /// The elements.
    pub(crate) fn values(&self) -> &[f32] {
        &self.block.elements()[self.start..self.start + self.len]
    }

    /// The elements, to be written.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.block.elements_mut()[self.start..self.start + self.len]
    }

    /// As the buffer of a tensor.
    pub(crate) fn share(self) -> Buffer {
        Arc::new(self)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Some(recycler) = self.recycler.upgrade() {
            recycler.give_back(std::mem::take(&mut self.block), self.len);
        }
    }
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBuffer({} elements)", self.len)
    }
}

/// Some consecutive elements of another buffer, which lives as long.
pub(crate) struct View {
    parent: Buffer,
    range: Range<usize>,
}

impl View {
    /// The elements `range` of `x`, as the buffer of a tensor.
    pub(crate) fn share(x: &Tensor, range: Range<usize>) -> Buffer {
        match x.buffer().downcast_ref::<Self>() {
            Some(view) => {
                let range = view.range.start + range.start..view.range.start + range.end;
                Arc::new(Self { parent: view.parent.clone(), range })
            }
            None => Arc::new(Self { parent: x.buffer().clone(), range }),
        }
    }
}

/// The elements of a tensor that lives in the computer's own memory.
///
/// # Panics
/// If the tensor lives elsewhere: operations never mix backends.
pub(crate) fn values(x: &Tensor) -> &[f32] {
    let (buffer, range) = match x.buffer().downcast_ref::<View>() {
        Some(view) => (&view.parent, Some(view.range.clone())),
        None => (x.buffer(), None),
    };
    match (buffer.downcast_ref::<HostBuffer>(), range) {
        (Some(buffer), Some(range)) => &buffer.values()[range],
        (Some(buffer), None) => buffer.values(),
        (None, _) => panic!("{x:?} is not in the computer's own memory"),
    }
}

/// Bytes of results and of operands in the kernels' own order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Asked for and in use.
    pub live: u64,
    /// The most that was in use at one time.
    pub peak: u64,
    /// Held, idle blocks included.
    pub held: u64,
}

/// Idle blocks, waiting for an operation that needs about as much.
#[derive(Debug, Default)]
pub(crate) struct Recycler(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    /// The first has waited longest.
    idle: Vec<Block>,
    memory: MemoryUse,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} idle blocks, {:?}", self.idle.len(), self.memory)
    }
}

impl Recycler {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        self.blocks().memory
    }

    /// A buffer of `len` elements of any value.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> HostBuffer {
        let mut blocks = self.blocks();
        let Blocks { idle, memory } = &mut *blocks;
        memory.live += 4 * len as u64;
        memory.peak = memory.peak.max(memory.live);
        // A larger block is as good if little of it is left over.
        let fits = |block: &Block| (len..=len + len / 16).contains(&block.elements().len());
        let best = (0..idle.len()).filter(|&i| fits(&idle[i])).min_by_key(|&i| idle[i].elements().len());
        if let Some(i) = best {
            let block = idle.remove(i);
            return HostBuffer::over(block, len, Arc::downgrade(self));
        }
        while !idle.is_empty() && memory.held + 4 * len as u64 > memory.peak {
            memory.held -= idle.remove(0).bytes();
        }
        drop(blocks);
        let block = Block::new(len);
        self.blocks().memory.held += block.bytes();
        HostBuffer::over(block, len, Arc::downgrade(self))
    }

    fn give_back(&self, block: Block, len: usize) {
        let mut blocks = self.blocks();
        blocks.memory.live -= 4 * len as u64;
        match block {
            Block::Heap(_) => blocks.memory.held -= block.bytes(),
            Block::Pages(_) => blocks.idle.push(block),
        }
    }

    /// Lets go of idle blocks and forgets the peak.
    pub(crate) fn clear(&self) {
        let mut blocks = self.blocks();
        let Blocks { idle, memory } = &mut *blocks;
        memory.held -= idle.drain(..).map(|block| block.bytes()).sum::<u64>();
        memory.peak = memory.live;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_and_idle_ones_stay_within_the_peak() {
        let recycler = Arc::new(Recycler::default());
        let address = |b: &HostBuffer| b.values().as_ptr() as usize;
        let first = recycler.take(100_000);
        let at = address(&first);
        assert_eq!(at % 64, 0);
        drop(first);
        let second = recycler.take(96_000);
        assert_eq!(address(&second), at);
        drop(second);
        let larger = recycler.take(1_000_000);
        assert_eq!(recycler.memory(), MemoryUse { live: 4_000_000, peak: 4_000_000, held: 4_000_000 });
        let both = [recycler.take(500_000), larger];
        assert_eq!(recycler.memory().peak, 6_000_000);
        drop(both);
        // Room for what is asked for next to the idle half; the older idle block makes way.
        let third = recycler.take(400_000);
        assert_eq!(recycler.memory(), MemoryUse { live: 1_600_000, peak: 6_000_000, held: 5_600_000 });
        drop(third);
        recycler.clear();
        assert_eq!(recycler.memory(), MemoryUse::default());
    }
}
