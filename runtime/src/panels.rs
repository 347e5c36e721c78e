//! The two forms in which kernels read a matrix, and the packing that makes them. It knows nothing about instruction
//! sets: the forms are the same for all.
//!
//! As [`Packing::Panels`], a matrix W `[out, k]` becomes `ceil(out / 48)` panels of up to [`PANEL`] outputs each. A panel
//! stores, for each p in `0..k`, its outputs contiguously, so that a product streams through it in the order of p. The
//! last panel is narrower: the outputs that remain, rounded up to a multiple of [`LANE`] and padded with zeros.
//!
//! ```text
//! panel i starts at float i * 48 * k        element (j, p) of a panel of width w is at p * w + j
//! ```
//!
//! As [`Packing::Rows`], it stays `[out, k]`, but each row is padded with zeros to an odd multiple of [`LANE`]: rows that
//! begin an even number of cache lines apart, a power of two at worst, would crowd into few sets of a cache.
//!
//! The base is aligned to 64 bytes, hence so is every step of every panel, and every row.

use crate::abi::{Pack, Packing};
use crate::workers::{Shared, Workers};
use std::ops::Range;

/// Outputs in a full panel.
pub const PANEL: usize = 48;
/// The narrowest panel, and the unit of widths: the floats of one 64-byte cache line.
pub const LANE: usize = 16;
/// Inputs packed at a time: a cache line of a row-major W.
const STEP: usize = 16;

impl Packing {
    /// How many floats a packed `[out, k]` matrix takes, or `None` when that overflows.
    ///
    /// ```
    /// use engraft_runtime::abi::Packing;
    /// assert_eq!(Packing::Panels.len(70, 3), Some(80 * 3));
    /// assert_eq!(Packing::Rows.len(70, 17), Some(70 * 48));
    /// ```
    pub const fn len(self, out: usize, k: usize) -> Option<usize> {
        match self {
            Packing::Panels => match out.checked_next_multiple_of(LANE) {
                Some(padded) => padded.checked_mul(k),
                None => None,
            },
            Packing::Rows => match k.checked_add(2 * LANE - 1) {
                Some(_) => row_stride(k).checked_mul(out),
                None => None,
            },
        }
    }
}

/// Floats from one row of [`Packing::Rows`] to the next, for `k + 31` floats that don't overflow.
pub(crate) const fn row_stride(k: usize) -> usize {
    if k == 0 { 0 } else { (k.div_ceil(LANE) | 1) * LANE }
}

/// One panel of a matrix with `out` outputs: where its outputs begin, how many there are, and its padded width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panel {
    pub(crate) first: usize,
    pub(crate) columns: usize,
    pub(crate) width: usize,
}

impl Panel {
    /// The panel with number `index < out.div_ceil(PANEL)`.
    pub(crate) fn of(out: usize, index: usize) -> Panel {
        let first = index * PANEL;
        let columns = (out - first).min(PANEL);
        Panel { first, columns, width: columns.next_multiple_of(LANE) }
    }
}

/// Packs as `pack` says, the panels or rows spread over `workers`.
///
/// # Safety
/// The pointers of `pack` are valid for the extents it gives, and `packed` is not read or written by anyone else.
pub(crate) unsafe fn pack(workers: &Workers, pack: &Pack) {
    // SAFETY: the caller's pointers.
    unsafe { pack_parts(workers, pack, 0..parts(pack), 0..pack.k as usize) };
}

/// Packs some outputs and some inputs of matrix `item` where they belong in the whole. The outputs are whole panels, or the
/// last ones.
///
/// # Safety
/// As for [`pack`], but that no more of W need be valid than what is packed.
pub(crate) unsafe fn pack_piece(
    workers: &Workers,
    pack: &Pack,
    item: usize,
    outputs: Range<usize>,
    inputs: Range<usize>,
) {
    let first = item * parts_of_one(pack);
    let unit = outputs_of_part(pack);
    debug_assert!(outputs.start.is_multiple_of(unit));
    let parts = first + outputs.start / unit..first + outputs.end.div_ceil(unit);
    // SAFETY: the caller's pointers.
    unsafe { pack_parts(workers, pack, parts, inputs) };
}

/// As [`pack`], all on the calling thread.
///
/// # Safety
/// As for [`pack`].
pub(crate) unsafe fn pack_here(pack: &Pack) {
    // SAFETY: the caller's pointers.
    (0..parts(pack)).for_each(|part| unsafe { pack_part(pack, part, 0..pack.k as usize) });
}

/// # Safety
/// As for [`pack_piece`]; the parts are below [`parts`].
unsafe fn pack_parts(workers: &Workers, pack: &Pack, parts: Range<usize>, inputs: Range<usize>) {
    let outputs = parts.len().saturating_mul(outputs_of_part(pack));
    let shared = Shared((*pack, inputs));
    workers.run(parts.len(), outputs.saturating_mul(shared.get().1.len()), &|task| {
        let (pack, inputs) = shared.get();
        // SAFETY: the caller's pointers; each task writes its own part.
        unsafe { pack_part(pack, parts.start + task, inputs.clone()) }
    });
}

/// How many panels or rows there are to pack, in all matrices.
fn parts(pack: &Pack) -> usize {
    // Without inputs there is nothing to pack, however many outputs.
    if pack.k == 0 { 0 } else { pack.batch as usize * parts_of_one(pack) }
}

fn parts_of_one(pack: &Pack) -> usize {
    (pack.out as usize).div_ceil(outputs_of_part(pack))
}

fn outputs_of_part(pack: &Pack) -> usize {
    match pack.packing {
        Packing::Panels => PANEL,
        Packing::Rows => 1,
    }
}

/// # Safety
/// As for [`pack_piece`], and `index` is below [`parts`].
unsafe fn pack_part(pack: &Pack, index: usize, inputs: Range<usize>) {
    let (out, k, parts) = (pack.out as usize, pack.k as usize, parts_of_one(pack));
    let (item, part) = (index / parts, index % parts);
    // What is packed of W is valid, but not all before it need be: wrapping arithmetic.
    let w = pack.w.wrapping_add(item * pack.w_batch_stride as usize);
    // SAFETY: the caller's pointers cover `item < batch` and `part < parts`.
    unsafe {
        match pack.packing {
            Packing::Panels => {
                let panel = Panel::of(out, part);
                let to = pack.packed.add(item * out.next_multiple_of(LANE) * k + panel.first * k);
                pack_panel(pack, w, to, panel, inputs);
            }
            Packing::Rows => {
                let padded = row_stride(k);
                pack_row(pack, w, pack.packed.add((item * out + part) * padded), part, inputs);
            }
        }
    }
}

/// Packs some inputs of one panel of the matrix at `w` into the panel at `to`.
///
/// # Safety
/// As for [`pack_piece`].
unsafe fn pack_panel(pack: &Pack, w: *const f32, to: *mut f32, panel: Panel, inputs: Range<usize>) {
    let (out_stride, k_stride) = (pack.out_stride as usize, pack.k_stride as usize);
    // A line of each output.
    let mut lines = [[0.0; STEP]; PANEL];
    for p0 in inputs.clone().step_by(STEP) {
        let count = STEP.min(inputs.end - p0);
        let from = w.wrapping_add(panel.first * out_stride + p0 * k_stride);
        // SAFETY: outputs and inputs are the matrix's, and step p of the panel has `width` floats.
        unsafe {
            // All lines are on their way before one is used.
            for (j, line) in lines[..panel.columns].iter_mut().enumerate() {
                let from = from.wrapping_add(j * out_stride);
                match k_stride {
                    1 if count == STEP => std::ptr::copy_nonoverlapping(from, line.as_mut_ptr(), STEP),
                    _ => (0..count).for_each(|p| line[p] = *from.wrapping_add(p * k_stride)),
                }
            }
            for p in 0..count {
                let to = to.add((p0 + p) * panel.width);
                for (j, line) in lines[..panel.columns].iter().enumerate() {
                    *to.add(j) = pack.scale * line[p];
                }
                to.add(panel.columns).write_bytes(0, panel.width - panel.columns);
            }
        }
    }
}

/// Packs some inputs of row `row` of the matrix at `w` into `to`, and zeros after the last.
///
/// # Safety
/// As for [`pack_piece`]; `to` has room for [`row_stride`] floats.
unsafe fn pack_row(pack: &Pack, w: *const f32, to: *mut f32, row: usize, inputs: Range<usize>) {
    let (out_stride, k_stride) = (pack.out_stride as usize, pack.k_stride as usize);
    let k = pack.k as usize;
    // SAFETY: row < out and p < k.
    unsafe {
        for p in inputs {
            *to.add(p) = pack.scale * *w.wrapping_add(row * out_stride + p * k_stride);
        }
        to.add(k).write_bytes(0, row_stride(k) - k);
    }
}
