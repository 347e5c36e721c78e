//! The functions that compiled code calls by name. They unfold batches into blocks, spread the blocks over the workers
//! and hand each to a kernel; the arithmetic is the kernels'. Products whose items have adapters are in `adapted.rs`.

mod adapted;
mod rounds;

use crate::abi::{
    AdaptedWeight, Attention, Dot, Frame, LayerNorm, Linear, Merge, NOT_ADAPTABLE, Pack, RowNorm, Unary,
};
use crate::context::Context;
use crate::kernels::{
    AdaptedPanel, AttentionBlock, Block, DotBlock, Finish, Mask, MergeBlock, NormBlock, VECTORS,
};
use crate::panels::{self, LANE, PANEL, Panel};
use crate::profile::engraft_mark;
use crate::workers::Shared;

/// Rows of a block: few enough that its outputs (24 KiB a panel) are still in cache when the epilogue reads them, and its
/// inputs when the next panel does.
pub(crate) const BLOCK_ROWS: usize = 128;
/// Rows of a block of dot products: they have no panel to use up, so they may be shared out finely, and 16 or 32 rows evenly.
pub(crate) const DOT_ROWS: usize = 8;
/// Rows of such a block where each thread has at least four: whole tiles, as high as AVX-512 has them.
const MANY_DOT_ROWS: usize = 24;
/// Rows of a block of norms: several groups of as many as a kernel takes side by side.
const NORM_ROWS: usize = 16;
/// What an element of a norm takes, in the elementary operations of products: it is read in each of three passes.
const NORM_OPERATIONS: usize = 4;

/// The names and addresses of the functions compiled code may call.
///
/// ```
/// let names = engraft_runtime::symbols().map(|(name, _)| name);
/// assert_eq!(names[..3], ["engraft_pack", "engraft_linear", "engraft_dot"]);
/// assert_eq!(names[3..6], ["engraft_row_norm", "engraft_merge", "engraft_attention"]);
/// assert_eq!(names[6..], ["engraft_layer_norm", "engraft_unary", "engraft_mark"]);
/// ```
pub fn symbols() -> [(&'static str, *const u8); 9] {
    [
        ("engraft_pack", engraft_pack as *const u8),
        ("engraft_linear", engraft_linear as *const u8),
        ("engraft_dot", engraft_dot as *const u8),
        ("engraft_row_norm", engraft_row_norm as *const u8),
        ("engraft_merge", engraft_merge as *const u8),
        ("engraft_attention", engraft_attention as *const u8),
        ("engraft_layer_norm", engraft_layer_norm as *const u8),
        ("engraft_unary", engraft_unary as *const u8),
        ("engraft_mark", engraft_mark as *const u8),
    ]
}

/// Packs matrices. Where they are weights that just arrive, their floats are made if they are stored in another form, and
/// pages of a mapped file are let go of.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `pack` are valid for the extents it gives, but that W may be
/// what the frame has for a parameter that is [only packed](crate::ParamSpec::only_packed); and nobody else reads or writes
/// what it packs into meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_pack(frame: *const Frame, pack: *const Pack) {
    // SAFETY: both are the caller's promise.
    unsafe {
        let workers = &context(frame).workers;
        match (*frame).arriving.as_ref() {
            Some(arriving) => arriving.pack(workers, &*pack),
            None => panels::pack(workers, &*pack),
        }
    }
}

/// Computes a product and its epilogue.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `linear` are valid for the extents it gives, its panels
/// are packed for its `out`, `k` and `rank`, and nobody else touches `y` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_linear(frame: *const Frame, linear: *const Linear) {
    // SAFETY: both are the caller's promise.
    let (context, linear) = unsafe { (context(frame), &*linear) };
    let product = Product::new(linear);
    if linear.adaptable != NOT_ADAPTABLE {
        // SAFETY: the adapters of a call are alive while it runs, and fit its layers.
        let done = unsafe { adapted::product(frame, &product) };
        if done {
            return;
        }
    }
    let shared = Shared((frame, product));
    context.workers.run(product.tasks(), product.operations(), &|task| {
        let (frame, product) = *shared.get();
        let (row, panel) = product.place(task);
        // SAFETY: `place` yields each block of the output once; the kernels are ones this CPU can run; an epilogue is
        // called for finished rows and columns of the product.
        unsafe {
            let finishes = [product.finish()];
            let block = product.block(row, panel, &finishes);
            (context.kernels.product)(&block);
            product.epilogue(frame, row, block.rows, panel);
        }
    });
}

/// Computes a product with few outputs.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `dot` are valid for the extents it gives, A is packed as
/// rows, and nobody else touches `h` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_dot(frame: *const Frame, dot: *const Dot) {
    // SAFETY: both are the caller's promise.
    let (context, dot) = unsafe { (context(frame), *dot) };
    let (rows, k, out) = (dot.rows as usize, dot.k as usize, dot.out as usize);
    let shared = Shared(dot);
    let operations = rows.saturating_mul(k).saturating_mul(out);
    let are_many = rows >= 4 * MANY_DOT_ROWS * context.workers.threads();
    let task_rows = if are_many { MANY_DOT_ROWS } else { DOT_ROWS };
    // Without outputs there is nothing to do, however many rows.
    let tasks = if out == 0 { 0 } else { rows.div_ceil(task_rows) };
    context.workers.run(tasks, operations, &|task| {
        let dot = shared.get();
        let first = task * task_rows;
        // SAFETY: the rows from `first` are rows of the caller's matrices, and each task has its own.
        unsafe {
            let (x, h) = (dot.x.add(first * k), dot.h.add(first * out));
            let rows = (rows - first).min(task_rows);
            (context.kernels.dot)(&DotBlock { rows, k, out, x, a: dot.a, h, ahead: std::ptr::null() });
        }
    });
}

/// Computes the row norms of an adapted weight.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `norm` are valid for the extents it gives, A is packed as
/// rows, W and B into panels, and nobody else touches `n` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_row_norm(frame: *const Frame, norm: *const RowNorm) {
    // SAFETY: both are the caller's promise.
    let (context, norm) = unsafe { (context(frame), *norm) };
    let shared = Shared(norm);
    let (panels, operations) = panels_of(&norm.weight);
    context.workers.run(panels, operations, &|task| {
        let norm = shared.get();
        let panel = Panel::of(norm.weight.out as usize, task);
        // SAFETY: the panel is one of the caller's matrices, and each task has its own.
        unsafe {
            let n = norm.n.add(panel.first);
            let panel = adapted_panel(panel, &norm.weight);
            (context.kernels.row_norm)(&NormBlock { panel, n });
        }
    });
}

/// Computes a merged weight.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `merge` are valid for the extents it gives, A is packed as
/// rows, W and B into panels, and nobody else touches `merged` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_merge(frame: *const Frame, merge: *const Merge) {
    // SAFETY: both are the caller's promise.
    let (context, merge) = unsafe { (context(frame), *merge) };
    let shared = Shared(merge);
    let (panels, operations) = panels_of(&merge.weight);
    context.workers.run(panels, operations, &|task| {
        let merge = shared.get();
        let panel = Panel::of(merge.weight.out as usize, task);
        let gain = if merge.gain.is_null() { merge.gain } else { merge.gain.wrapping_add(panel.first) };
        // SAFETY: the panel is one of the caller's matrices, and each task has its own.
        unsafe {
            let merged = merge.merged.add(panel.first * merge.weight.k as usize);
            let panel = adapted_panel(panel, &merge.weight);
            (context.kernels.merge)(&MergeBlock { panel, gain, merged });
        }
    });
}

/// How many panels an adapted weight has, and about how many operations all of them take.
fn panels_of(weight: &AdaptedWeight) -> (usize, usize) {
    let [out, k, rank] = [weight.out, weight.k, weight.rank].map(|extent| extent as usize);
    (out.div_ceil(PANEL), out.saturating_mul(k).saturating_mul(1 + rank))
}

/// A panel of an adapted weight.
///
/// # Safety
/// It is one of W's panels.
unsafe fn adapted_panel(panel: Panel, weight: &AdaptedWeight) -> AdaptedPanel {
    let (k, rank) = (weight.k as usize, weight.rank as usize);
    AdaptedPanel {
        k,
        rank,
        width: panel.width,
        columns: panel.columns,
        // SAFETY: the caller's panels.
        w: unsafe { weight.w.add(panel.first * k) },
        a: weight.a,
        a_stride: panels::row_stride(k),
        b: weight.b.wrapping_add(panel.first * rank),
    }
}

/// Computes attention.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `attention` are valid for the extents and strides it gives,
/// and nobody else touches `y` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_attention(frame: *const Frame, attention: *const Attention) {
    // SAFETY: both are the caller's promise.
    let (context, attention) = unsafe { (context(frame), &*attention) };
    let shared = Shared(Heads::new(attention));
    let heads = shared.get();
    context.workers.run(heads.tasks(), heads.operations(), &|task| {
        // SAFETY: `block` yields each query vector once; the kernels are ones this CPU can run.
        unsafe { (context.kernels.attention)(&shared.get().block(task)) }
    });
}

/// Computes the norms of rows.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `norm` are valid for the extents it gives, and nobody else
/// touches `y` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_layer_norm(frame: *const Frame, norm: *const LayerNorm) {
    // SAFETY: both are the caller's promise.
    let (context, norm) = unsafe { (context(frame), *norm) };
    let (rows, n) = (norm.rows as usize, norm.n as usize);
    let shared = Shared(norm);
    // Without elements there is nothing to do, however many rows.
    let tasks = if n == 0 { 0 } else { rows.div_ceil(NORM_ROWS) };
    let operations = rows.saturating_mul(n).saturating_mul(NORM_OPERATIONS);
    context.workers.run(tasks, operations, &|task| {
        let norm = shared.get();
        let first = task * NORM_ROWS;
        // SAFETY: the rows from `first` are rows of the caller's, and each task has its own.
        unsafe {
            let (x, y) = (norm.x.add(first * n), norm.y.add(first * n));
            let rows = (rows - first).min(NORM_ROWS) as u64;
            (context.kernels.layer_norm)(&LayerNorm { rows, x, y, ..*norm });
        }
    });
}

/// Computes a function of some floats, on the thread that asks for it: it may be in the midst of an epilogue.
///
/// # Safety
/// `frame` is the frame of the running stage; the pointers of `unary` are valid for the rows it gives, and nobody else
/// touches what is written meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_unary(frame: *const Frame, unary: *const Unary) {
    // SAFETY: both are the caller's promise; the kernels are ones this CPU can run.
    unsafe { (context(frame).kernels.unary)(&*unary) }
}

/// # Safety
/// `frame` points to the frame of the running stage.
unsafe fn context<'a>(frame: *const Frame) -> &'a Context {
    // SAFETY: a frame's context outlives the stage it was made for.
    unsafe { &*(*frame).context }
}

/// A [`Linear`] with its extents at hand, and folded into one item where the batch is only more rows.
#[derive(Clone, Copy)]
struct Product<'a> {
    linear: &'a Linear,
    batch: usize,
    rows: usize,
    out: usize,
    k: usize,
    rank: usize,
}

/// Where a block's rows begin: in which batch item, and at which of its rows.
#[derive(Clone, Copy)]
struct FirstRow {
    item: usize,
    first: usize,
}

impl<'a> Product<'a> {
    fn new(linear: &'a Linear) -> Product<'a> {
        let one_matrix = linear.w_batch_stride == 0 && linear.x_batch_stride == linear.rows * linear.k;
        let (batch, rows) =
            if one_matrix { (1, linear.batch * linear.rows) } else { (linear.batch, linear.rows) };
        Product {
            linear,
            batch: batch as usize,
            rows: rows as usize,
            out: linear.out as usize,
            k: linear.k as usize,
            rank: linear.rank as usize,
        }
    }

    fn tasks(&self) -> usize {
        self.batch * self.rows.div_ceil(BLOCK_ROWS) * self.out.div_ceil(PANEL)
    }

    fn operations(&self) -> usize {
        [self.batch, self.rows, self.out, self.k + self.rank].into_iter().fold(1, usize::saturating_mul)
    }

    /// The block of a task. Panels vary fastest: a block of rows stays in cache while the panels stream past it, each
    /// fetched while the one before is used.
    fn place(&self, task: usize) -> (FirstRow, Panel) {
        let (row_blocks, panels) = (self.rows.div_ceil(BLOCK_ROWS), self.out.div_ceil(PANEL));
        let (rest, panel) = (task / panels, task % panels);
        let (item, row_block) = (rest / row_blocks, rest % row_blocks);
        (FirstRow { item, first: row_block * BLOCK_ROWS }, Panel::of(self.out, panel))
    }

    /// Applies the epilogue, if there is one, to a finished block.
    ///
    /// # Safety
    /// The block is the product's, and nobody else touches it meanwhile.
    unsafe fn epilogue(&self, frame: *const Frame, row: FirstRow, rows: usize, panel: Panel) {
        let Some(epilogue) = self.linear.epilogue else { return };
        let first = row.item * self.rows + row.first;
        // SAFETY: these are finished rows and columns of the product.
        unsafe {
            epilogue(
                frame,
                self.linear.epilogue_buffers,
                first as u64,
                (first + rows) as u64,
                panel.first as u64,
                (panel.first + panel.columns) as u64,
            );
        }
    }

    /// What follows the sums of all rows alike.
    fn finish(&self) -> Finish {
        let linear = self.linear;
        debug_assert!(self.rank == 0 || !(linear.h.is_null() || linear.b.is_null()));
        Finish {
            first: 0,
            end: self.batch * self.rows,
            rank: self.rank,
            h: linear.h,
            b: linear.b,
            b_rows: self.rank,
            gain: linear.gain,
            gain_stride: 1,
            bias: linear.bias,
            shift: std::ptr::null(),
        }
    }

    /// # Safety
    /// `row` and `panel` come from [`Product::place`], the pointers of the product are valid, and `finishes` cover its rows.
    unsafe fn block<'f>(&self, row: FirstRow, panel: Panel, finishes: &'f [Finish]) -> Block<'f> {
        let linear = self.linear;
        let panels = row.item * linear.w_batch_stride as usize;
        let first_row = row.item * self.rows + row.first;
        debug_assert_eq!(panel.width % LANE, 0);
        // SAFETY: the block lies inside the product.
        unsafe {
            Block {
                rows: (self.rows - row.first).min(BLOCK_ROWS),
                k: self.k,
                first_column: panel.first,
                width: panel.width,
                columns: panel.columns,
                x: linear.x.add(row.item * linear.x_batch_stride as usize + row.first * self.k),
                w: linear.w.add(panels + panel.first * self.k),
                y: linear.y.add(first_row * self.out + panel.first),
                y_stride: self.out,
                residual: linear.residual,
                first_row,
                finishes,
                ahead: &[],
            }
        }
    }
}

/// An [`Attention`] as the query vectors that share a head of k and v: row i of query head r of the `group` that shares it
/// is vector `i * group + r`.
#[derive(Clone, Copy)]
struct Heads<'a> {
    attention: &'a Attention,
    group: usize,
    vectors: usize,
    blocks: usize,
}

impl<'a> Heads<'a> {
    fn new(attention: &'a Attention) -> Heads<'a> {
        let group = (attention.heads / attention.kv_heads) as usize;
        // Without an output there is nothing to do, however many queries.
        let queries = if attention.e == 0 { 0 } else { attention.queries as usize };
        let vectors = queries * group;
        Heads { attention, group, vectors, blocks: vectors.div_ceil(VECTORS) }
    }

    fn tasks(&self) -> usize {
        self.attention.batch as usize * self.attention.kv_heads as usize * self.blocks
    }

    fn operations(&self) -> usize {
        let Attention { batch, kv_heads, keys, d, e, .. } = *self.attention;
        [batch, kv_heads, keys, d + e].iter().fold(self.vectors, |all, &n| all.saturating_mul(n as usize))
    }

    /// The vectors of a task. They vary fastest, so that keys and values stay in cache; then heads, then items.
    ///
    /// # Safety
    /// `task < self.tasks()` and the pointers of the attention are valid.
    unsafe fn block(&self, task: usize) -> AttentionBlock {
        let &Attention { queries, keys, heads, kv_heads, d, e, scale, causal, window, .. } = self.attention;
        let [queries, keys, heads, kv_heads, d, e] =
            [queries, keys, heads, kv_heads, d, e].map(|n| n as usize);
        let (rest, block) = (task / self.blocks, task % self.blocks);
        let (item, head) = (rest / kv_heads, rest % kv_heads);
        let place = |batch_stride: u64, width: usize| item * batch_stride as usize + head * width;
        let a = self.attention;
        // How far it is to the next head: of this item, or the first of the next item; the last one has itself.
        let next = |batch_stride: u64, width: usize| match head + 1 {
            after if after < kv_heads => width,
            _ if item + 1 == a.batch as usize => 0,
            _ => (batch_stride as usize).wrapping_sub(head * width),
        };
        // Operands of no elements may be anywhere: wrapping arithmetic.
        AttentionBlock {
            first: block * VECTORS,
            count: (self.vectors - block * VECTORS).min(VECTORS),
            group: self.group,
            queries,
            keys,
            d,
            e,
            scale,
            causal: causal != 0,
            window,
            q: a.q.wrapping_add(place(a.q_batch_stride, self.group * d)),
            q_row_stride: a.q_row_stride as usize,
            k: a.k.wrapping_add(place(a.k_batch_stride, d)),
            k_row_stride: a.k_row_stride as usize,
            v: a.v.wrapping_add(place(a.v_batch_stride, e)),
            v_row_stride: a.v_row_stride as usize,
            mask: match a.mask_bytes {
                _ if a.mask.is_null() => Mask::None,
                4 => Mask::I32(a.mask.cast::<i32>().wrapping_add(item * keys)),
                _ => Mask::I64(a.mask.cast::<i64>().wrapping_add(item * keys)),
            },
            next: [
                next(a.q_batch_stride, self.group * d),
                next(a.k_batch_stride, d),
                next(a.v_batch_stride, e),
            ],
            y: a.y.wrapping_add(item * queries * heads * e + head * self.group * e),
            y_row_stride: heads * e,
        }
    }
}
