//! A product whose items have adapters, each its own: `h = x Aᵀ` for the rows of each, then the product, in which W is
//! read once for all rows of a block and each piece of it is finished with its own adapter's B, gain and bias.
//!
//! A block with one adapter is finished while its sums are in registers. Otherwise the rows share tiles for `x Wᵀ`, and then
//! each piece's sums are taken up again where they rest in y: W's panel passes once, and what is read from memory meanwhile
//! hides behind its arithmetic. It is the same sum in the same order, so a row's bits do not depend on its neighbours. A piece
//! whose adapter is merged is a product with a weight of its own, and shares nothing.

use super::{BLOCK_ROWS, DOT_ROWS, Product, context};
use crate::abi::Frame;
use crate::bank::{Piece, Runs};
use crate::kernels::{Block, DotBlock, Fetch, Kernels};
use crate::memory::Buffer;
use crate::panels::Panel;
use crate::workers::Shared;

/// The adapters of a layer's rows.
#[derive(Clone, Copy)]
struct Adapters<'a> {
    runs: &'a Runs,
    layer: usize,
    /// Rows of an item.
    item_rows: usize,
    /// The largest rank, and the room for each row's hidden values.
    room: usize,
}

impl<'a> Adapters<'a> {
    /// A of a row's adapter, or null.
    ///
    /// # Safety
    /// The adapters of the call are alive.
    unsafe fn a_of(self, row: usize, rows: usize) -> *const f32 {
        if row >= rows {
            return std::ptr::null();
        }
        // SAFETY: the caller's adapters.
        let form = unsafe { self.pieces(row, row + 1) }.next().and_then(|piece| piece.form);
        form.map_or(std::ptr::null(), |form| form.a.floats().cast_const())
    }

    /// # Safety
    /// The adapters of the call are alive.
    unsafe fn pieces(self, first: usize, end: usize) -> impl Iterator<Item = Piece<'a>> {
        // SAFETY: the caller's adapters; the session has made room for every layer.
        unsafe { self.runs.pieces(self.layer, self.item_rows, (first, end), self.room) }
    }
}

/// Computes the product, if an adapter changes it; otherwise returns false.
///
/// # Safety
/// `frame` is the frame of the running stage, whose adapters are alive and fit the program; the pointers of `product` are
/// valid for the extents it gives, and nobody else touches its y meanwhile.
pub(super) unsafe fn product(frame: *const Frame, product: &Product<'_>) -> bool {
    // SAFETY: the caller's frame.
    let Some(runs) = (unsafe { (*frame).adapters.as_ref() }) else { return false };
    let (layer, item_rows) = (product.linear.adaptable as usize, product.linear.rows as usize);
    // SAFETY: the caller's adapters are alive.
    unsafe {
        if !runs.change(layer) {
            return false;
        }
        let adapters = Adapters { runs, layer, item_rows, room: runs.room(layer) };
        hidden(frame, product, adapters);
        outputs(frame, product, adapters);
    }
    true
}

/// `h = x Aᵀ` for the rows that have an A.
///
/// # Safety
/// As for [`product`].
unsafe fn hidden(frame: *const Frame, product: &Product<'_>, adapters: Adapters<'_>) {
    if adapters.room == 0 {
        return;
    }
    // SAFETY: the caller's frame.
    let context = unsafe { context(frame) };
    let operations = product.rows.saturating_mul(product.k).saturating_mul(adapters.room);
    let shared = Shared((*product, adapters));
    context.workers.run(product.rows.div_ceil(DOT_ROWS), operations, &|task| {
        let (product, adapters) = *shared.get();
        let (first, end) = (task * DOT_ROWS, product.rows.min((task + 1) * DOT_ROWS));
        // SAFETY: rows `first..end` are the product's, and each task has its own; x is `[rows, k]`; a form's A is packed for
        // the layer's k.
        unsafe {
            for piece in adapters.pieces(first, end) {
                let Some(form) = piece.form.filter(|form| form.rank > 0) else { continue };
                (context.kernels.dot)(&DotBlock {
                    rows: piece.end - piece.first,
                    k: product.k,
                    out: form.rank,
                    x: product.linear.x.add(piece.first * product.k),
                    a: form.a.floats(),
                    h: piece.hidden,
                    ahead: adapters.a_of(piece.end, product.rows),
                });
            }
        }
    });
}

/// The product, block by block.
///
/// # Safety
/// As for [`product`]; the hidden values have been computed.
unsafe fn outputs(frame: *const Frame, product: &Product<'_>, adapters: Adapters<'_>) {
    // SAFETY: the caller's frame.
    let context = unsafe { context(frame) };
    let shared = Shared((frame, *product, adapters));
    context.workers.run(product.tasks(), product.operations(), &|task| {
        let (frame, product, adapters) = *shared.get();
        let (row, panel) = product.place(task);
        // SAFETY: `place` yields each block of the output once, and the pieces of a block cover its rows once.
        unsafe {
            let block = product.block(row, panel);
            let pieces = || adapters.pieces(row.first, row.first + block.rows);
            if let Some(piece) = pieces().next().filter(|piece| piece.end == row.first + block.rows) {
                (context.kernels.product)(&adapted(&block, row.first, &piece, panel));
            } else {
                weight_alone(&block, row.first, pieces(), panel, context.kernels);
                for piece in pieces() {
                    let resume = piece.form.is_none_or(|form| form.weight.is_none());
                    let piece = adapted(&block, row.first, &piece, panel);
                    (context.kernels.product)(&Block { resume, ..piece });
                }
            }
            product.epilogue(frame, row, block.rows, panel);
        }
    });
}

/// `x Wᵀ` for the rows of a block that read W, at once but for those whose adapters are merged, while what their adapters read
/// next is fetched.
///
/// # Safety
/// As for [`outputs`]; the pieces are those of the block.
unsafe fn weight_alone<'a>(
    block: &Block,
    first: usize,
    pieces: impl Iterator<Item = Piece<'a>>,
    panel: Panel,
    kernels: &Kernels,
) {
    let mut ahead = [Fetch { from: std::ptr::null(), floats: 0 }; BLOCK_ROWS];
    let none = std::ptr::null();
    let product = |begin: usize, end: usize, ahead: &[Fetch]| {
        if begin < end {
            // SAFETY: the rows are the caller's, and there is something to fetch for each of them, or nothing.
            unsafe {
                let (rows, ahead) = (part(block, begin, end), ahead[begin..].as_ptr());
                (kernels.product)(&Block {
                    rank: 0,
                    h: none,
                    b: none,
                    gain: none,
                    bias: none,
                    ahead,
                    ..rows
                });
            }
        }
    };
    let mut begin = 0;
    for piece in pieces {
        let Some(form) = piece.form else { continue };
        if form.weight.is_some() {
            product(begin, piece.first - first, &ahead);
            begin = piece.end - first;
        } else {
            let b = form.b.floats().cast_const().wrapping_add(panel.first * form.rank);
            ahead[piece.first - first] = Fetch { from: b, floats: form.rank * block.width };
        }
    }
    product(begin, block.rows, &ahead);
}

/// Rows `first..end` of a block.
///
/// # Safety
/// They are the block's.
unsafe fn part(block: &Block, first: usize, end: usize) -> Block {
    // SAFETY: the caller's rows.
    let (x, y) = unsafe { (block.x.add(first * block.k), block.y.add(first * block.y_stride)) };
    Block { rows: end - first, x, y, ..*block }
}

/// A piece's rows of a block, whose first row is `first`, with what its adapter does to them.
///
/// # Safety
/// They are rows of the block, and `panel` is the block's.
unsafe fn adapted(block: &Block, first: usize, piece: &Piece<'_>, panel: Panel) -> Block {
    // SAFETY: the caller's rows.
    let rows = unsafe { part(block, piece.first - first, piece.end - first) };
    let Some(form) = piece.form else { return rows };
    let vector = |buffer: &Option<Buffer>| {
        let column = |buffer: &Buffer| buffer.floats().cast_const().wrapping_add(panel.first);
        buffer.as_ref().map_or(std::ptr::null(), column)
    };
    let merged = form.weight.as_ref().map(|weight| weight.floats().cast_const());
    Block {
        rank: form.rank,
        w: merged.map_or(rows.w, |weight| weight.wrapping_add(panel.first * block.k)),
        h: piece.hidden,
        b: form.b.floats().cast_const().wrapping_add(panel.first * form.rank),
        gain: vector(&form.gain),
        bias: if form.bias.is_some() { vector(&form.bias) } else { rows.bias },
        shift: vector(&form.shift),
        ..rows
    }
}
