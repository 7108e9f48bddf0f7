//! f32 elements in the computer's own memory: the buffer of the backends that compute on a CPU.
//!
//! Large blocks go round: an activation of hundreds of megabytes that is mapped, zeroed page by page and unmapped for every
//! operation costs more than many an operation. Blocks of other sizes are cut out of what is idle, and join again. Idle memory
//! never makes the whole larger than what was once in use at the same time, so that it stays within what
//! [`dry_run`](crate::dry_run) counts. Blocks start on a cache line.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{Buffer, Tensor};

/// Elements of a cache line of 64 bytes.
const LINE: usize = 16;

/// Elements that ranges of a region are multiples of: 64 KiB, a multiple of every machine's page.
const GRANULE: usize = 1 << 14;

/// Mapped memory, in which blocks have ranges that do not overlap.
struct Region {
    pages: memmap2::MmapMut,
    start: *mut f32,
}

// SAFETY: the elements are reached through `Pages` only, whose ranges do not overlap: each thread has its own.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Bytes from which on huge pages are asked for.
    const WORTH_HUGE_PAGES: usize = 2 << 20;

    /// `len` elements, if the system gives them.
    fn new(len: usize) -> Option<Self> {
        let mut pages = memmap2::MmapMut::map_anon(4 * len).ok()?;
        Self::use_huge_pages(&pages);
        Some(Self { start: pages.as_mut_ptr().cast(), pages })
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

    /// Elements.
    fn len(&self) -> usize {
        self.pages.len() / 4
    }

    /// Gives the memory of a range back; it stays reserved, its elements may have any value. `false` where that cannot be done.
    ///
    /// # Safety
    /// Nobody has elements of the range, whose ends are multiples of [`GRANULE`].
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, clippy::unused_self, reason = "only Linux is asked"))]
    unsafe fn cool(&self, range: &Range<usize>) -> bool {
        #[cfg(target_os = "linux")]
        {
            let (start, len) = (4 * range.start, 4 * range.len());
            // SAFETY: nobody has these elements; they share no page with others, as a granule is a multiple of a page.
            unsafe { self.pages.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len).is_ok() }
        }
        #[cfg(not(target_os = "linux"))]
        false
    }
}

/// A range of a region that belongs to its holder alone.
pub(crate) struct Pages {
    region: Arc<Region>,
    range: Range<usize>,
}

/// Memory of some elements.
pub(crate) enum Block {
    /// From the allocator.
    Heap(Vec<f32>),
    /// Pages that the system has back when they are let go: an allocator may keep them.
    Pages(Pages),
}

impl Default for Block {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Block {
    /// Smaller blocks are left to the allocator, which has them at hand.
    const SMALLEST: usize = 1 << 14;

    /// Bytes that [`Block::new`] takes.
    pub(crate) fn bytes_for(len: usize) -> u64 {
        4 * if len >= Self::SMALLEST { len.next_multiple_of(GRANULE) } else { len + LINE } as u64
    }

    /// Room for `len` elements from a cache line's start on.
    pub(crate) fn new(len: usize) -> Self {
        let room = len.next_multiple_of(GRANULE);
        let region = (len >= Self::SMALLEST).then(|| Region::new(room)).flatten();
        match region {
            Some(region) => Self::Pages(Pages { region: Arc::new(region), range: 0..room }),
            None => Self::Heap(vec![0.0; len + LINE]),
        }
    }

    pub(crate) fn elements(&self) -> &[f32] {
        match self {
            Self::Heap(elements) => elements,
            // SAFETY: the range is within the region and belongs to this block alone; any bits are an f32.
            Self::Pages(Pages { region, range }) => unsafe {
                std::slice::from_raw_parts(region.start.add(range.start), range.len())
            },
        }
    }

    pub(crate) fn elements_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Heap(elements) => elements,
            // SAFETY: as above.
            Self::Pages(Pages { region, range }) => unsafe {
                std::slice::from_raw_parts_mut(region.start.add(range.start), range.len())
            },
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

    /// Room for `len` elements of any value that go round to nobody else.
    pub(crate) fn alone(len: usize) -> Self {
        Self::over(Block::new(len), len, Weak::new())
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.block.bytes()
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

/// Memory between two uses.
#[derive(Debug, Default)]
pub(crate) struct Recycler(Mutex<Blocks>);

/// Part of a region that nobody uses.
struct Idle {
    pages: Pages,
    /// Whether there is memory behind it; without, it is but a place.
    warm: bool,
}

impl Idle {
    fn len(&self) -> usize {
        self.pages.range.len()
    }

    fn joins(&self, other: &Self) -> bool {
        let [a, b] = [&self.pages, &other.pages];
        let touches = a.range.end == b.range.start || b.range.end == a.range.start;
        self.warm == other.warm && Arc::ptr_eq(&a.region, &b.region) && touches
    }
}

#[derive(Default)]
struct Blocks {
    /// The first has waited longest. No two of the same warmth touch.
    idle: Vec<Idle>,
    memory: MemoryUse,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} idle ranges, {:?}", self.idle.len(), self.memory)
    }
}

impl Blocks {
    /// Cuts `len` elements out of the idle range that is least too large.
    fn cut(&mut self, len: usize, warm: bool) -> Option<Pages> {
        let fits = |idle: &Idle| idle.warm == warm && idle.len() >= len;
        let best = (0..self.idle.len()).filter(|&i| fits(&self.idle[i])).min_by_key(|&i| self.idle[i].len())?;
        let range = &mut self.idle[best].pages.range;
        let cut = range.start..range.start + len;
        range.start += len;
        let region = self.idle[best].pages.region.clone();
        if self.idle[best].len() == 0 {
            self.idle.remove(best);
        }
        Some(Pages { region, range: cut })
    }

    /// Takes a range in and joins it with its neighbours; a region that is nothing but a place is let go.
    fn put(&mut self, pages: Pages, warm: bool) {
        let mut new = Idle { pages, warm };
        while let Some(i) = self.idle.iter().position(|idle| idle.joins(&new)) {
            let other = self.idle.remove(i).pages.range;
            let range = &mut new.pages.range;
            *range = range.start.min(other.start)..range.end.max(other.end);
        }
        if warm || new.len() < new.pages.region.len() {
            self.idle.push(new);
        }
    }

    /// Gives back the memory of idle ranges, the oldest first, `len` elements or all that can be.
    fn cool(&mut self, mut len: usize) {
        let mut i = 0;
        while len > 0 && i < self.idle.len() {
            let idle = &mut self.idle[i];
            if !idle.warm {
                i += 1;
                continue;
            }
            let some = len.min(idle.len());
            let range = idle.pages.range.end - some..idle.pages.range.end;
            let whole = some == idle.pages.region.len();
            // SAFETY: the range is idle, and granules are given back only.
            if !whole && !unsafe { idle.pages.region.cool(&range) } {
                i += 1;
                continue;
            }
            let region = idle.pages.region.clone();
            idle.pages.range.end -= some;
            if idle.len() == 0 {
                self.idle.remove(i);
            }
            self.put(Pages { region, range }, false);
            self.memory.held -= 4 * some as u64;
            len -= some;
            i = 0; // the list has changed
        }
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
        blocks.memory.live += 4 * len as u64;
        blocks.memory.peak = blocks.memory.peak.max(blocks.memory.live);
        let room = len.next_multiple_of(GRANULE);
        if len < Block::SMALLEST {
            let block = Block::new(len);
            blocks.memory.held += block.bytes();
            return HostBuffer::over(block, len, Arc::downgrade(self));
        }
        if let Some(pages) = blocks.cut(room, true) {
            return HostBuffer::over(Block::Pages(pages), len, Arc::downgrade(self));
        }
        let MemoryUse { held, peak, .. } = blocks.memory;
        let excess = (held + 4 * room as u64).saturating_sub(peak) / 4;
        blocks.cool((excess as usize).next_multiple_of(GRANULE));
        let block = blocks.cut(room, false).map(Block::Pages);
        let block = block.unwrap_or_else(|| Block::new(len));
        blocks.memory.held += block.bytes();
        HostBuffer::over(block, len, Arc::downgrade(self))
    }

    fn give_back(&self, block: Block, len: usize) {
        let mut blocks = self.blocks();
        blocks.memory.live -= 4 * len as u64;
        match block {
            Block::Heap(_) => blocks.memory.held -= block.bytes(),
            Block::Pages(pages) => blocks.put(pages, true),
        }
    }

    /// Lets go of idle memory and forgets the peak.
    pub(crate) fn clear(&self) {
        let mut blocks = self.blocks();
        blocks.cool(usize::MAX);
        blocks.memory.peak = blocks.memory.live;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(buffer: &HostBuffer) -> usize {
        buffer.values().as_ptr() as usize
    }

    #[test]
    fn memory_is_used_again_and_idle_ranges_stay_within_the_peak() {
        const G: usize = GRANULE;
        let bytes = |granules: usize| 4 * (granules * G) as u64;
        let recycler = Arc::new(Recycler::default());
        let first = recycler.take(10 * G);
        let at = address(&first);
        assert_eq!(at % 64, 0);
        drop(first);
        // Two out of one, and one of two.
        let [second, third] = [recycler.take(4 * G), recycler.take(6 * G)];
        assert_eq!([address(&second), address(&third)], [at, at + 16 * G]);
        assert_eq!(recycler.memory(), MemoryUse { live: bytes(10), peak: bytes(10), held: bytes(10) });
        drop(second);
        drop(third);
        let whole = recycler.take(10 * G - 100);
        assert_eq!(address(&whole), at);
        drop(whole);
        // What is too small makes way, as far as there is no room beside it.
        let fourth = recycler.take(5 * G);
        let larger = recycler.take(6 * G);
        assert_eq!(recycler.memory(), MemoryUse { live: bytes(11), peak: bytes(11), held: bytes(11) });
        drop(fourth);
        drop(larger);
        recycler.clear();
        assert_eq!(recycler.memory(), MemoryUse::default());
        assert!(recycler.blocks().idle.is_empty());
    }

    #[test]
    fn nobody_has_the_same_memory_at_the_same_time() {
        let recycler = Arc::new(Recycler::default());
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let mut held: Vec<(HostBuffer, f32)> = Vec::new();
        for turn in 0..2000 {
            if held.len() < 12 && random(3) > 0 {
                let mut buffer = recycler.take(1 + random(20 * GRANULE));
                buffer.values_mut().fill(turn as f32);
                held.push((buffer, turn as f32));
            } else if !held.is_empty() {
                let (buffer, value) = held.swap_remove(random(held.len()));
                assert!(buffer.values().iter().all(|v| *v == value));
            }
            if random(100) == 0 {
                recycler.clear();
            }
            let MemoryUse { live, peak, held } = recycler.memory();
            // Rounding up is all that is beyond the peak.
            assert!(live <= held && held <= peak + 13 * 4 * GRANULE as u64, "{live} {held} {peak}");
        }
        drop(held);
        recycler.clear();
        assert!(recycler.memory().held == 0 && recycler.blocks().idle.is_empty());
    }
}
