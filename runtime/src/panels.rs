//! The panel format in which every kernel reads a matrix, and the packing that makes it. It knows nothing about
//! instruction sets: one format serves all kernels.
//!
//! A matrix W `[out, k]` becomes `ceil(out / 64)` panels of up to [`PANEL`] outputs each. A panel stores, for each p in
//! `0..k`, its outputs contiguously, so that a product streams through it in the order of p. The last panel is narrower:
//! the outputs that remain, rounded up to a multiple of [`LANE`] and padded with zeros.
//!
//! ```text
//! panel i starts at float i * 64 * k        element (j, p) of a panel of width w is at p * w + j
//! ```
//!
//! The base is aligned to 64 bytes, hence so is every step of every panel.

use crate::abi::Pack;
use crate::workers::{Shared, Workers};

/// Outputs in a full panel.
pub const PANEL: usize = 64;
/// The narrowest panel, and the unit of widths: the floats of one 64-byte cache line.
pub const LANE: usize = 16;
/// Inputs packed at a time: a cache line of a row-major W.
const STEP: usize = 16;

/// How many floats the panels of a `[out, k]` matrix take, or `None` when that overflows.
///
/// ```
/// assert_eq!(engraft_runtime::panels::packed_len(70, 3), Some(80 * 3));
/// ```
pub const fn packed_len(out: usize, k: usize) -> Option<usize> {
    match out.checked_next_multiple_of(LANE) {
        Some(padded) => padded.checked_mul(k),
        None => None,
    }
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

/// Packs as `pack` says, the panels spread over `workers`.
///
/// # Safety
/// The pointers of `pack` are valid for the extents it gives, and `panels` is not read or written by anyone else.
pub(crate) unsafe fn pack(workers: &Workers, pack: &Pack) {
    let (batch, out, k) = (pack.batch as usize, pack.out as usize, pack.k as usize);
    // Without inputs there is nothing to pack, however many panels.
    let panels = if k == 0 { 0 } else { out.div_ceil(PANEL) };
    let item_len = out.next_multiple_of(LANE) * k;
    let pack = Shared(*pack);
    workers.run(batch * panels, batch * out * k, &|task| {
        let pack = pack.get();
        let (item, index) = (task / panels, task % panels);
        let panel = Panel::of(out, index);
        // SAFETY: the caller's pointers cover `item < batch` and `index < panels`; each task writes its own panel.
        unsafe {
            let w = pack.w.add(item * pack.w_batch_stride as usize + panel.first * pack.out_stride as usize);
            let to = pack.panels.add(item * item_len + panel.first * k);
            pack_panel(pack, w, to, panel, k);
        }
    });
}

/// Packs one panel whose first element in the source is `w`.
///
/// # Safety
/// As for [`pack`]; `to` has room for `panel.width * k` floats.
unsafe fn pack_panel(pack: &Pack, w: *const f32, to: *mut f32, panel: Panel, k: usize) {
    let (out_stride, k_stride) = (pack.out_stride as usize, pack.k_stride as usize);
    for p0 in (0..k).step_by(STEP) {
        let p1 = (p0 + STEP).min(k);
        // SAFETY: j < columns, p < k, and position p * width + j lies inside the panel.
        unsafe {
            for j in 0..panel.columns {
                for p in p0..p1 {
                    *to.add(p * panel.width + j) = pack.scale * *w.add(j * out_stride + p * k_stride);
                }
            }
            for p in p0..p1 {
                to.add(p * panel.width + panel.columns).write_bytes(0, panel.width - panel.columns);
            }
        }
    }
}
