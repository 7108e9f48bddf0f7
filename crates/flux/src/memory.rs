//! Which weights are in memory at what time, and how much memory there is.
//!
//! Weights lie in mapped files: pages come when they are read, and leave when they are given back. A model that is larger than
//! its share keeps its first blocks and lets each of the others go as soon as it has been used. Blocks come round in the same
//! order at every step: whatever keeps the latest ones instead would always drop those that are needed next. In int8 the first
//! blocks may stay in the form that kernels read ([`tensor::Kept`]), in the place of their mapped pages.

use std::{ops::AddAssign, path::Path};

use tensor::{Bytes, Kept};

/// Weights that come and go together.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    pieces: Vec<Bytes>,
    /// Places for those of them that kernels read in a form of their own.
    kept: Vec<Kept>,
}

impl Extent {
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces, kept: Vec::new() }
    }

    /// One of its weights may be kept.
    pub(crate) fn may_keep(&mut self, kept: Kept) {
        self.kept.push(kept);
    }

    /// How many bytes, weights that are kept by now in the form in which they are.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let taken = self.kept.iter().filter_map(Kept::taken);
        taken.fold(self.bytes(), |bytes, taken| (bytes + taken.bytes).saturating_sub(taken.stored))
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Bytes that cannot be given back: they are in the program or in memory of their own.
    pub fn pinned_bytes(&self) -> u64 {
        let pinned = self.pieces.iter().filter(|piece| matches!(piece, Bytes::Static(_) | Bytes::Owned(..)));
        pinned.map(|piece| piece.len() as u64).sum()
    }

    /// Leaves out those of these bytes that it has.
    pub(crate) fn remove<'a>(&mut self, bytes: impl Iterator<Item = &'a Bytes>) {
        let place = |bytes: &Bytes| (bytes.get().as_ptr(), bytes.len());
        let gone: Vec<_> = bytes.map(place).collect();
        self.pieces.retain(|piece| !gone.contains(&place(piece)));
    }

    /// Has the system read them ahead, unless they are kept by now.
    pub fn prefetch(&self) {
        if self.kept.iter().any(|kept| kept.taken().is_some()) {
            return;
        }
        self.pieces.iter().for_each(Bytes::prefetch);
    }

    /// Gives their memory back; they come again when they are used.
    pub fn release(&self) {
        self.kept.iter().for_each(Kept::close);
        self.pieces.iter().for_each(Bytes::release);
    }
}

impl AddAssign for Extent {
    fn add_assign(&mut self, other: Self) {
        self.pieces.extend(other.pieces);
        self.kept.extend(other.kept);
    }
}

/// The weights of a model in the order in which they are used.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// What is in no block: embeddings, the last layer.
    pub fixed: Extent,
    /// The blocks.
    pub blocks: Vec<Extent>,
}

impl Layout {
    /// From now on weights of the first `blocks` blocks are kept from their next use on in the form that kernels read, if they
    /// have one of their own (in int8); those of the others no more. Weights whose block is released are no longer kept, either.
    pub fn keep(&self, blocks: usize) {
        for (index, block) in self.blocks.iter().enumerate() {
            block.kept.iter().for_each(if index < blocks { Kept::open } else { Kept::close });
        }
    }

    /// Gives all memory back.
    pub fn release(&self) {
        self.fixed.release();
        self.blocks.iter().for_each(Extent::release);
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.fixed.bytes() + self.blocks.iter().map(Extent::bytes).sum::<u64>()
    }

    /// As [`Extent::pinned_bytes`].
    pub fn pinned_bytes(&self) -> u64 {
        self.fixed.pinned_bytes() + self.blocks.iter().map(Extent::pinned_bytes).sum::<u64>()
    }
}

/// How many of a model's first blocks stay in memory between uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Residency {
    /// All that stay.
    pub(crate) resident: usize,
    /// Of these, those whose weights are kept in the form that kernels read.
    pub(crate) kept: usize,
}

/// A pass over a model's blocks, of which only some stay in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    layout: &'a Layout,
    residency: Residency,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(layout: &'a Layout, residency: Residency) -> Self {
        Self { layout, residency }
    }

    /// Before the first block.
    pub(crate) fn begin(&self) {
        self.layout.keep(self.residency.kept);
        self.layout.blocks.iter().take(2).for_each(Extent::prefetch);
    }

    /// After block `index`: the next one is being read by now, the one behind it is asked for.
    pub(crate) fn done(&self, index: usize) {
        if index >= self.residency.resident
            && let Some(block) = self.layout.blocks.get(index)
        {
            block.release();
        }
        if let Some(block) = self.layout.blocks.get(index + 2) {
            block.prefetch();
        }
    }
}

/// Memory that this process may fill, bytes, where the system tells: what is available beside what it has, but no more than its
/// control group allows, less a sixteenth as a reserve.
pub fn available() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let free = field(&read(Path::new("/proc/meminfo"))?, "MemAvailable:")?;
    // What is mapped from files counts as available already.
    let own = read(Path::new("/proc/self/status")).and_then(|text| field(&text, "RssAnon:")).unwrap_or(0);
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limit = group_limits(&groups, &read).into_iter().min().unwrap_or(u64::MAX);
    Some((free + own).min(limit) / 16 * 15)
}

/// The most memory that this process has had so far, bytes, pages of mapped files included; where the system tells.
pub fn peak() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// A field of a file in /proc, whose unit is KiB.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The limits of the control groups (of both versions) that `groups`, a `/proc/self/cgroup`, names, and of all above them.
fn group_limits(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path may be the host's: then only the root is there.
        for group in Path::new(group.trim_start_matches('/')).ancestors() {
            let limit = read(&Path::new(root).join(group).join(file));
            limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use tensor::{Precision, Tensor, Weight};

    use super::*;

    #[test]
    fn limits_of_both_kinds_of_groups() {
        let read = |path: &Path| match path.to_str() {
            Some("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes") => Some("9223372036854771712\n".to_owned()),
            Some("/sys/fs/cgroup/memory/a/memory.limit_in_bytes") => Some("3000\n".to_owned()),
            Some("/sys/fs/cgroup/x/memory.max") => Some("max\n".to_owned()),
            Some("/sys/fs/cgroup/memory.max") => Some("5000\n".to_owned()),
            _ => None,
        };
        assert_eq!(group_limits("4:cpu,memory:/a/b\n2:cpu:/a\n", &read), [9_223_372_036_854_771_712, 3000]);
        assert_eq!(group_limits("0::/x\n", &read), [5000]);
        assert_eq!(group_limits("garbage\n0::/\n", &read), [5000]);
    }

    #[test]
    fn the_first_blocks_are_kept_until_they_are_released() {
        let backend = tensor::Device::Cpu { threads: Some(1) }.open();
        let x = Tensor::from_vec(&backend, [32, 64], vec![1.0; 32 * 64]);
        let mut weights = [(); 3].map(|()| Weight::from_f32([64, 64], &[0.5; 64 * 64]).with_precision(Precision::Int8));
        let mut layout = Layout::default();
        for weight in &mut weights {
            let mut block = Extent::new(weight.rows().iter().map(|rows| rows.bytes.clone()).collect());
            block.may_keep(weight.keep().unwrap());
            layout.blocks.push(block);
        }
        let bytes = layout.blocks[0].bytes();
        let pass = |kept| {
            let stream = Stream::new(&layout, Residency { resident: 3, kept });
            stream.begin();
            for (index, weight) in weights.iter().enumerate() {
                x.linear(weight, None);
                stream.done(index);
            }
            layout.blocks.iter().map(|block| block.kept_bytes() != bytes).collect::<Vec<_>>()
        };
        assert_eq!(pass(2), [true, true, false]);
        assert_eq!(pass(3), [true, true, true]);
        assert_eq!(pass(1), [true, false, false]);
        layout.release();
        assert!(layout.blocks.iter().all(|block| block.kept_bytes() == bytes));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
