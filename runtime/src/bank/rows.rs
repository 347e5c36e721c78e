//! Which adapter each item of a call's batch has: as the caller says it, and as runs of neighbours, which is how kernels
//! see it. Knows nothing about names.

use std::ops::Range;
use std::sync::Arc;

use super::adapter::Adapter;
use super::form::Form;
use crate::bind::BindError;
use crate::kernels::Finish;
use crate::memory::Buffer;

/// The adapter of each item of a batch, in the order of the batch. Empty, it means the base alone for whatever batch.
///
/// Cheap to clone; it keeps its adapters alive, so keep it no longer than calls need it.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    items: Vec<Option<Arc<Adapter>>>,
}

impl Rows {
    /// These, item by item; `None` for the base alone.
    pub fn new(items: Vec<Option<Arc<Adapter>>>) -> Rows {
        Rows { items }
    }

    /// One adapter for a batch of so many items.
    pub fn all(adapter: &Arc<Adapter>, items: usize) -> Rows {
        Rows { items: vec![Some(Arc::clone(adapter)); items] }
    }

    /// Those of these items, in this order; empty if it says nothing.
    ///
    /// # Panics
    /// If there is no such item.
    #[must_use]
    pub fn select(&self, items: &[usize]) -> Rows {
        if self.is_empty() {
            return Rows::default();
        }
        Rows { items: items.iter().map(|&item| self.items[item].clone()).collect() }
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it says nothing, so that there is the base alone.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Item by item.
    pub fn iter(&self) -> impl Iterator<Item = Option<&Arc<Adapter>>> {
        self.items.iter().map(Option::as_ref)
    }
}

/// Neighbouring items with one adapter.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: usize,
    /// Lives as long as the call's [`Rows`].
    adapter: Option<*const Adapter>,
}

/// A call's items as runs, and scratch for what their adapters make of them. Compiled code hands it to the kernels.
#[derive(Debug)]
pub struct Runs {
    spans: Vec<Run>,
    hidden: Buffer,
    /// Room for a layer's [`Finish`]es, one for each run.
    finishes: Buffer,
}

// SAFETY: the pointers are read during a call only, whose adapters the caller keeps alive and nobody changes.
unsafe impl Send for Runs {}
// SAFETY: as above.
unsafe impl Sync for Runs {}

/// Neighbouring rows of a layer with one adapter, or with none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    /// The first row, and one past the last.
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) form: Option<&'a Form>,
    /// The hidden values of the first row; those of the others follow, `form.rank` each.
    pub(crate) hidden: *mut f32,
}

impl Runs {
    pub(crate) const fn new() -> Runs {
        Runs { spans: Vec::new(), hidden: Buffer::EMPTY, finishes: Buffer::EMPTY }
    }

    /// Takes some items of a call. Allocates only while there are more runs than ever before.
    pub(crate) fn take(&mut self, rows: &Rows, items: Range<usize>) {
        self.spans.clear();
        let items = rows.items.get(items).unwrap_or_default();
        for (item, adapter) in items.iter().map(Option::as_ref).enumerate() {
            let adapter = adapter.map(Arc::as_ptr);
            if self.spans.last().is_none_or(|run| run.adapter != adapter) {
                self.spans.push(Run { first: item, adapter });
            }
        }
    }

    /// Whether no item has an adapter.
    pub(crate) fn are_bare(&self) -> bool {
        self.spans.iter().all(|run| run.adapter.is_none())
    }

    /// Makes room for the hidden values of a layer of so many rows, and for what follows its sums.
    ///
    /// # Safety
    /// The adapters that were [taken](Self::take) are alive.
    pub(crate) unsafe fn reserve(&mut self, layer: usize, rows: usize) -> Result<(), BindError> {
        // SAFETY: the caller's adapters.
        let room = unsafe { self.room(layer) };
        let hidden = rows.saturating_mul(room).saturating_mul(size_of::<f32>());
        let finishes = self.spans.len() * size_of::<Finish>();
        for (buffer, bytes) in [(&mut self.hidden, hidden), (&mut self.finishes, finishes)] {
            if bytes > buffer.bytes() {
                *buffer = Buffer::EMPTY;
                let what = || "what the adapters compute".to_owned();
                *buffer = Buffer::zeroed(bytes)
                    .ok_or_else(|| BindError::OutOfMemory { what: what(), bytes: bytes as u64 })?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// The adapters of the call are alive.
    unsafe fn form(&self, run: usize, layer: usize) -> Option<&Form> {
        // SAFETY: the caller's adapters.
        self.spans[run].adapter.and_then(|adapter| unsafe { (*adapter).form(layer) })
    }

    /// The largest rank of a layer over the adapters of the call: the room for the hidden values of each of its rows.
    ///
    /// # Safety
    /// The adapters of the call are alive.
    pub(crate) unsafe fn room(&self, layer: usize) -> usize {
        // SAFETY: the caller's adapters.
        let ranks = (0..self.spans.len()).filter_map(|run| unsafe { self.form(run, layer) });
        ranks.map(|form| form.rank).max().unwrap_or(0)
    }

    /// Whether an item's adapter changes a layer.
    ///
    /// # Safety
    /// The adapters of the call are alive.
    pub(crate) unsafe fn change(&self, layer: usize) -> bool {
        // SAFETY: the caller's adapters.
        (0..self.spans.len()).any(|run| unsafe { self.form(run, layer) }.is_some())
    }

    /// The rows `first..end` of a layer with so many rows an item, piece by piece.
    ///
    /// # Safety
    /// The adapters of the call are alive, [`reserve`](Self::reserve) has made room for the layer, and `room` is its
    /// [`room`](Self::room).
    pub(crate) unsafe fn pieces(
        &self,
        layer: usize,
        item_rows: usize,
        (first, end): (usize, usize),
        room: usize,
    ) -> impl Iterator<Item = Piece<'_>> {
        let item = first.checked_div(item_rows).unwrap_or(0);
        let start = self.spans.partition_point(|run| run.first <= item).saturating_sub(1);
        let mut row = first;
        (start..self.spans.len()).map_while(move |run| {
            if row >= end {
                return None;
            }
            let ends = self.spans.get(run + 1).map_or(end, |next| end.min(next.first * item_rows));
            // SAFETY: the caller's adapters.
            let form = unsafe { self.form(run, layer) };
            let begin = self.spans[run].first * item_rows;
            let rank = form.map_or(0, |form| form.rank);
            // The rows of a run lie side by side in the room that all of them have.
            let hidden = self.hidden.floats().wrapping_add(begin * room + (row - begin) * rank);
            let piece = Piece { first: row, end: ends, form, hidden };
            row = ends;
            Some(piece)
        })
    }

    /// Puts a layer's finishes into their place, where they are until the next layer's.
    ///
    /// # Safety
    /// There are no more of them than runs, [`reserve`](Self::reserve) has made room, and nobody uses the last layer's any
    /// longer.
    #[allow(clippy::cast_ptr_alignment, reason = "a buffer is aligned beyond what it needs")]
    pub(crate) unsafe fn finishes(&self, of_layer: impl Iterator<Item = Finish>) -> &[Finish] {
        let place: *mut Finish = self.finishes.address().cast();
        let mut count = 0;
        for finish in of_layer {
            // SAFETY: the caller's room.
            unsafe { place.add(count).write(finish) };
            count += 1;
        }
        // SAFETY: as many have been written.
        unsafe { std::slice::from_raw_parts(place, count) }
    }
}
