//! A product whose items have adapters, each its own: `h = x Aᵀ` for the rows of each, then the product, in which W is
//! read once for all rows of a block and each piece of it is finished with its own adapter's B, gain and bias.
//!
//! W's panel passes once for all rows of a block, and what adapters read from memory hides behind its arithmetic: the B of the
//! rows, and, where there are many adapters, the A of the rows that come next. A row's sum is the same in the same order as
//! if it were alone, so its bits do not depend on its neighbours. A piece whose adapter is
//! merged is a product with a weight of its own, and shares nothing.

use std::ops::Range;

use super::rounds::Rounds;
use super::{BLOCK_ROWS, DOT_ROWS, FirstRow, Product, context};
use crate::abi::Frame;
use crate::bank::{Form, Piece, Runs};
use crate::kernels::{Block, DotBlock, Fetch, Finish, Kernels};
use crate::memory::Buffer;
use crate::panels::{PANEL, Panel, row_stride};
use crate::workers::Shared;

/// How many A a task fetches at most while it computes a block.
const AHEAD: usize = 8;

/// The adapters of a layer's rows.
#[derive(Clone, Copy)]
struct Adapters<'a> {
    runs: &'a Runs,
    layer: usize,
    /// Rows of an item.
    item_rows: usize,
    /// The largest rank, and the room for each row's hidden values.
    room: usize,
    /// Whether one of them is merged.
    merged: bool,
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

    /// Rounds for a product. Where an adapter is merged there is one: a product with a weight of its own hides nothing.
    ///
    /// # Safety
    /// The adapters of the call are alive.
    unsafe fn rounds(self, product: &Product<'_>, kernels: &Kernels) -> Rounds {
        // SAFETY: the caller's adapters.
        let forms = unsafe { self.pieces(0, product.rows) }.filter_map(|piece| piece.form);
        let floats = |form: &Form| form.rank * row_stride(product.k) + form.b.rows() * product.out;
        let bytes = if self.merged { 0 } else { forms.map(floats).sum::<usize>() * size_of::<f32>() };
        Rounds::new(product.rows, kernels.tile_rows, bytes / product.out.div_ceil(PANEL).max(1))
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
        let mut adapters = Adapters { runs, layer, item_rows, room: runs.room(layer), merged: false };
        let mut pieces = adapters.pieces(0, product.rows);
        adapters.merged = pieces.any(|piece| piece.form.is_some_and(|form| form.weight.is_some()));
        let finishes = adapters.pieces(0, product.rows).map(|piece| finish(product, &piece));
        // Nobody else has the scratch while this call runs.
        let finishes = runs.finishes(finishes);
        let rounds = adapters.rounds(product, context(frame).kernels);
        hidden(frame, product, adapters, rounds.rows(0));
        for round in 0..rounds.count() {
            outputs(frame, product, adapters, finishes, [round, round + 1].map(|round| rounds.rows(round)));
        }
    }
    true
}

/// `h = x Aᵀ` for those of some rows that have an A, each fetched while the one before is used.
///
/// # Safety
/// As for [`product`]; the rows are the product's.
unsafe fn hidden(frame: *const Frame, product: &Product<'_>, adapters: Adapters<'_>, rows: Range<usize>) {
    if adapters.room == 0 {
        return;
    }
    // SAFETY: the caller's frame.
    let context = unsafe { context(frame) };
    let operations = rows.len().saturating_mul(product.k).saturating_mul(adapters.room);
    let shared = Shared((*product, adapters));
    context.workers.run(rows.len().div_ceil(DOT_ROWS), operations, &|task| {
        let (product, adapters) = *shared.get();
        let first = rows.start + task * DOT_ROWS;
        let end = rows.end.min(first + DOT_ROWS);
        // SAFETY: the rows are the product's, and each task has its own.
        unsafe {
            dots(&product, adapters, first..end, context.kernels, product.rows);
        }
    });
}

/// `h = x Aᵀ` for some rows, on this thread. Meanwhile A of the rows that come next is fetched, of those before `fetch_end`.
///
/// # Safety
/// As for [`hidden`], and nobody else computes or reads the hidden values of these rows.
unsafe fn dots(
    product: &Product<'_>,
    adapters: Adapters<'_>,
    rows: Range<usize>,
    kernels: &Kernels,
    fetch_end: usize,
) {
    // SAFETY: x is `[rows, k]`; a form's A is packed for the layer's k.
    unsafe {
        for piece in adapters.pieces(rows.start, rows.end) {
            let Some(form) = piece.form.filter(|form| form.rank > 0) else { continue };
            (kernels.dot)(&DotBlock {
                rows: piece.end - piece.first,
                k: product.k,
                out: form.rank,
                x: product.linear.x.add(piece.first * product.k),
                a: form.a.floats(),
                h: piece.hidden,
                ahead: adapters.a_of(piece.end, fetch_end),
            });
        }
    }
}

/// The product of a round's rows, block by block. Each task has a share of the next round's rows, too: while its block is
/// computed, their A are fetched, and then used.
///
/// # Safety
/// As for [`product`]; the hidden values of the round have been computed.
unsafe fn outputs(
    frame: *const Frame,
    product: &Product<'_>,
    adapters: Adapters<'_>,
    finishes: &[Finish],
    [round, next]: [Range<usize>; 2],
) {
    // SAFETY: the caller's frame.
    let context = unsafe { context(frame) };
    let panels = product.out.div_ceil(PANEL);
    let tasks = round.len().div_ceil(BLOCK_ROWS) * panels;
    let operations = Product { rows: round.len(), ..*product }.operations();
    let shared = Shared((frame, *product, finishes, adapters));
    context.workers.run(tasks, operations, &|task| {
        let (frame, product, finishes, adapters) = *shared.get();
        let [begin, end] = [task, task + 1].map(|task| next.start + next.len() * task / tasks);
        let mut ahead = [Fetch::NOTHING; AHEAD];
        let first = round.start + task / panels * BLOCK_ROWS;
        let (row, panel) = (FirstRow { item: 0, first }, Panel::of(product.out, task % panels));
        // SAFETY: each block of the output is one task's, and so are the hidden values of each row of the next round; the
        // finishes cover all rows.
        unsafe {
            let ahead = fetches(&product, adapters.pieces(begin, end), &mut ahead);
            let rows = (round.end - first).min(BLOCK_ROWS);
            let block = Block { rows, ahead, ..product.block(row, panel, finishes) };
            if adapters.merged {
                by_weight(&block, adapters.pieces(first, first + rows), context.kernels);
            } else {
                (context.kernels.product)(&block);
            }
            product.epilogue(frame, row, rows, panel);
            // Their A are fetched once more: the block has driven some of them out.
            dots(&product, adapters, begin..end, context.kernels, end);
        }
    });
}

/// What is read for the hidden values of some pieces, as far as there is room to say it.
fn fetches<'a, 'f>(
    product: &Product<'_>,
    pieces: impl Iterator<Item = Piece<'a>>,
    to: &'f mut [Fetch; AHEAD],
) -> &'f [Fetch] {
    let forms = pieces.filter_map(|piece| piece.form);
    let count = to.iter_mut().zip(forms).fold(0, |count, (fetch, form)| {
        *fetch = Fetch { from: form.a.floats(), floats: form.rank * row_stride(product.k) };
        count + 1
    });
    &to[..count]
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
