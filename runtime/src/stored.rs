//! Floats that lie in another form than `f32`, half precision or blocks of small integers, and are made when they are
//! needed. Knows nothing about what the forms are.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::workers::{Shared, Workers};

/// Floats read by one task: enough to be worth a task.
const TASK: usize = 1 << 14;

/// What a tensor's floats are made from, see [`Tensor::stored`](crate::Tensor::stored).
pub trait Source: Send + Sync {
    /// Writes the elements from number `first` on into all of `to`. Both are whole rows of the tensor (along its last
    /// axis), within it. Several threads may ask at once. It must not panic.
    fn read(&self, first: usize, to: &mut [f32]);

    /// Lets go of memory that comes back when it is read again, such as pages of a mapped file.
    fn release(&self) {}
}

/// The elements of a tensor that are made from a [`Source`]. Clones share them.
#[derive(Clone)]
pub(crate) struct Stored {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn Source>,
    len: usize,
    row: usize,
    /// All elements, once somebody has asked for them.
    floats: OnceLock<Vec<f32>>,
}

impl Stored {
    /// `len` elements in rows of `row`.
    pub(crate) fn new(source: Box<dyn Source>, len: usize, row: usize) -> Stored {
        Stored { inner: Arc::new(Inner { source, len, row, floats: OnceLock::new() }) }
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.len
    }

    /// The elements of a row.
    pub(crate) fn row(&self) -> usize {
        self.inner.row
    }

    /// What tells these elements from all others that live: not where they are.
    pub(crate) fn handle(&self) -> *mut u8 {
        Arc::as_ptr(&self.inner).cast_mut().cast()
    }

    /// Makes rows from element `first` on, on all threads.
    pub(crate) fn read(&self, workers: &Workers, first: usize, to: &mut [f32]) {
        let Inner { source, row, .. } = &*self.inner;
        if to.is_empty() {
            return;
        }
        let piece = TASK.div_ceil(*row) * row;
        let (count, to) = (to.len(), Shared(to.as_mut_ptr()));
        workers.run(count.div_ceil(piece), count.saturating_mul(4), &|task| {
            let (begin, end) = (task * piece, count.min((task + 1) * piece));
            // SAFETY: these elements of `to` are this task's alone.
            let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(begin), end - begin) };
            source.read(first + begin, to);
        });
    }

    /// A copy of all elements; `None` when there is no memory for it.
    pub(crate) fn to_vec(&self) -> Option<Vec<f32>> {
        let mut floats = Vec::new();
        floats.try_reserve_exact(self.len()).ok()?;
        floats.resize(self.len(), 0.0);
        if !floats.is_empty() {
            self.inner.source.read(0, &mut floats);
        }
        self.inner.source.release();
        Some(floats)
    }

    /// All elements, which are kept from then on; `None` when there is no memory for them.
    pub(crate) fn floats(&self) -> Option<&[f32]> {
        if self.inner.floats.get().is_none() {
            let floats = self.to_vec()?;
            // Where another thread was quicker, these are the same.
            let _ = self.inner.floats.set(floats);
        }
        self.inner.floats.get().map(Vec::as_slice)
    }

    pub(crate) fn release(&self) {
        self.inner.source.release();
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("len", &self.len()).finish_non_exhaustive()
    }
}
