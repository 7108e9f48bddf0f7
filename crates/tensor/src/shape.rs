//! The extents of a tensor: at most four, outermost first.

use std::fmt;

/// Extents of a tensor, outermost first; the last one is contiguous in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; Shape::MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The largest number of extents.
    pub const MAX_RANK: usize = 4;

    /// A shape with these extents.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= Self::MAX_RANK, "a tensor has at most {} extents, got {dims:?}", Self::MAX_RANK);
        let mut all = [1; Self::MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() }
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// How many extents there are.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many elements there are.
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// The innermost extent (1 for a scalar).
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The product of all extents but the innermost.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The same shape with another innermost extent.
    pub fn with_last(mut self, last: usize) -> Self {
        assert!(self.rank > 0, "a scalar has no innermost extent");
        self.dims[self.rank - 1] = last;
        self
    }

    /// The same shape with another extent along `axis`.
    pub fn with(mut self, axis: usize, extent: usize) -> Self {
        assert!(axis < self.rank, "no axis {axis} in {self}");
        self.dims[axis] = extent;
        self
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = usize;
    fn index(&self, axis: usize) -> &usize {
        &self.dims()[axis]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}
