//! A product whose items have adapters, each its own: `h = x Aᵀ` for the rows of each, then the product, in which W is
//! read once for all rows of a block and each piece of it is finished with its own adapter's B, gain and bias.
//!
//! W's panel passes once for all of them, and what is read from memory meanwhile hides behind its arithmetic. A row's sum is
//! the same in the same order as if it were alone, so its bits do not depend on its neighbours. A piece whose adapter is
//! merged is a product with a weight of its own, and shares nothing.

use super::{DOT_ROWS, Product, context};
use crate::abi::Frame;
use crate::bank::{Piece, Runs};
use crate::kernels::{Block, DotBlock, Finish, Kernels};
use crate::memory::Buffer;
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
    // SAFETY: the caller's frame and adapters; nobody else has the scratch while this call runs.
    let (context, finishes) = unsafe {
        let pieces = adapters.pieces(0, product.rows).map(|piece| finish(product, &piece));
        (context(frame), adapters.runs.finishes(pieces))
    };
    // SAFETY: the caller's adapters.
    let mut pieces = unsafe { adapters.pieces(0, product.rows) };
    let merged = pieces.any(|piece| piece.form.is_some_and(|form| form.weight.is_some()));
    let shared = Shared((frame, *product, finishes, adapters));
    context.workers.run(product.tasks(), product.operations(), &|task| {
        let (frame, product, finishes, adapters) = *shared.get();
        let (row, panel) = product.place(task);
        // SAFETY: `place` yields each block of the output once, and the finishes cover all rows.
        unsafe {
            let block = product.block(row, panel, finishes);
            if merged {
                let pieces = adapters.pieces(row.first, row.first + block.rows);
                by_weight(&block, pieces, context.kernels);
            } else {
                (context.kernels.product)(&block);
            }
            product.epilogue(frame, row, block.rows, panel);
        }
    });
}

/// A block some of whose rows have weights of their own: these each for itself, those between them together.
///
/// # Safety
/// As for [`outputs`]; the pieces are those of the block.
unsafe fn by_weight<'a>(block: &Block<'_>, pieces: impl Iterator<Item = Piece<'a>>, kernels: &Kernels) {
    let product = |first: usize, end: usize, w: *const f32| {
        if first < end {
            let skipped = first - block.first_row;
            // SAFETY: rows `first..end` are the block's, and `w` is its panel of the weight that they have.
            unsafe {
                let (x, y) = (block.x.add(skipped * block.k), block.y.add(skipped * block.y_stride));
                (kernels.product)(&Block { rows: end - first, x, y, w, first_row: first, ..*block });
            }
        }
    };
    let mut first = block.first_row;
    for piece in pieces {
        if let Some(weight) = piece.form.and_then(|form| form.weight.as_ref()) {
            product(first, piece.first, block.w);
            let own = weight.floats().cast_const().wrapping_add(block.first_column * block.k);
            product(piece.first, piece.end, own);
            first = piece.end;
        }
    }
    product(first, block.first_row + block.rows, block.w);
}

/// What follows the sums of a piece's rows.
fn finish(product: &Product<'_>, piece: &Piece<'_>) -> Finish {
    let rows = Finish { first: piece.first, end: piece.end, ..product.finish() };
    let Some(form) = piece.form else { return rows };
    let vector = |buffer: &Option<Buffer>| {
        buffer.as_ref().map_or(std::ptr::null(), |buffer| buffer.floats().cast_const())
    };
    Finish {
        rank: form.rank,
        h: piece.hidden,
        b: form.b.panels(),
        b_rows: form.b.rows(),
        gain: form.b.gain(),
        gain_stride: form.b.rows(),
        bias: if form.bias.is_some() { vector(&form.bias) } else { rows.bias },
        shift: vector(&form.shift),
        ..rows
    }
}
