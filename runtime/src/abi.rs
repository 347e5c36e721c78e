//! The binary interface between compiled code and this runtime: the structures compiled code reads and fills, and the
//! types of the functions either side calls. It knows nothing about how a program is loaded, checked or scheduled.
//!
//! Everything here is `repr(C)` on a 64-bit target. A compiler takes the offsets of fields from
//! [`core::mem::offset_of!`] rather than from numbers of its own, so that a change here is a change there:
//!
//! ```
//! use core::mem::{offset_of, size_of};
//! use engraft_runtime::abi::{Frame, Linear};
//! assert_eq!(offset_of!(Frame, arena), 16);
//! assert_eq!(offset_of!(Linear, epilogue), size_of::<Linear>() - 8);
//! ```
//!
//! Strides and lengths count elements, never bytes. Pointers to inputs, parameters and outputs are aligned to their
//! element; the arena, staged values and every panel in them are aligned to [`ALIGNMENT`].

use crate::arriving::Arriving;
use crate::bank::Runs;
use crate::context::Context;
use crate::profile::Profile;
use core::ffi::c_void;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("extents cross this interface as u64 and become usize: both must have 64 bits");

/// The alignment in bytes of the arena, of every staged value, and of panels.
pub const ALIGNMENT: usize = 64;

/// When a part of a program runs: once for a base model, once for an adapter, or with every call.
///
/// Stages are ordered: what is known at one stage is known at all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Stage {
    /// When the base weights are loaded.
    Base = 0,
    /// When an adapter is loaded.
    Adapter = 1,
    /// With every call.
    Call = 2,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Base => "base",
            Stage::Adapter => "adapter",
            Stage::Call => "call",
        })
    }
}

/// One stage of a compiled program. Returns 0, or a non-zero status after filling [`Frame::fault`].
pub type StageFn = unsafe extern "C" fn(frame: *const Frame) -> u32;

/// Evaluates everything that depends on symbolic dims: reads `dims[symbol]` and writes the flat `sizes` vector
/// (dims of tensors, bytes of buffers and arenas), saturating at `u64::MAX` where a value overflows.
///
/// Symbols of later stages are 0 while an earlier stage runs; the sizes that depend on them are then not read.
pub type SizesFn = unsafe extern "C" fn(dims: *const u64, sizes: *mut u64);

/// Compiled elementwise code applied in place to a finished tile of a product (its epilogue): rows `row0..row1` and columns
/// `col0..col1` of the product's `[batch * rows, out]` output, which is the first of `buffers`; the others it reads. `frame`
/// is that of the running stage.
///
/// Tiles of one product are disjoint and may run on several threads at once, so an epilogue must not write anything
/// outside its tile.
pub type TileFn = unsafe extern "C" fn(
    frame: *const Frame,
    buffers: *const *mut u8,
    row0: u64,
    row1: u64,
    col0: u64,
    col1: u64,
);

/// What a stage function is given.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// One extent per symbol, in the order of the program's symbols.
    pub dims: *const u64,
    /// Inputs, params, staged values, outputs, in the program's order. Those of other stages may be null. What stands here
    /// for a param that is [only packed](crate::ParamSpec::only_packed) is for `engraft_pack` alone.
    pub buffers: *const *mut u8,
    /// This call's scratch, aligned to [`ALIGNMENT`].
    pub arena: *mut u8,
    /// Kernels and workers; compiled code only hands it on.
    pub context: *const Context,
    /// Where a stage says what went wrong, before it returns a non-zero status.
    pub fault: *mut Fault,
    /// Where [`engraft_mark`](crate::engraft_mark) keeps the times of steps, or null where nobody asks.
    pub profile: *mut Profile,
    /// The weights that a load stage is given, so that [`engraft_pack`](crate::engraft_pack) can make the floats of those
    /// that are stored in another form, and let go of those it has read; or null.
    pub arriving: *const Arriving,
    /// The adapters of the call's items, or null where none has one; compiled code only hands it on.
    pub adapters: *const Runs,
}

/// An id out of range: step `step` found `found` where ids are `0..limit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fault {
    /// Index into the program's list of steps.
    pub step: u64,
    /// The id.
    pub found: i64,
    /// How many ids there are.
    pub limit: u64,
}

/// A form in which kernels read a matrix (see [`panels`](crate::panels)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Packing {
    /// Outputs side by side, for products.
    Panels = 0,
    /// Outputs one after the other, padded, for dot products.
    Rows = 1,
}

impl std::fmt::Display for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Packing::Panels => "panels",
            Packing::Rows => "rows",
        })
    }
}

/// Packs `scale * w`, one matrix per batch item.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pack {
    /// How many matrices.
    pub batch: u64,
    /// Outputs j of one matrix.
    pub out: u64,
    /// Inputs p of one matrix.
    pub k: u64,
    /// Element `(j, p)` of item `i` is at `w[i * w_batch_stride + j * out_stride + p * k_stride]`, so both `[out, in]`
    /// and `[in, out]` are packed from where they lie.
    pub w: *const f32,
    /// Elements from one matrix to the next.
    pub w_batch_stride: u64,
    /// Elements from one output to the next.
    pub out_stride: u64,
    /// Elements from one input to the next.
    pub k_stride: u64,
    /// Multiplied in while packing (`LoRA`'s s into B).
    pub scale: f32,
    /// Into which form.
    pub packing: Packing,
    /// `[batch, packing.len(out, k)]`.
    pub packed: *mut f32,
}

/// The product `y = gain * (x W^T + h B^T) + bias + residual`, then the epilogue. Where it is adaptable, items of the batch may have
/// adapters, each with its own h, B, gain and bias; see [`Frame::adapters`].
///
/// No buffer that is read may overlap `y`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Linear {
    /// How many products.
    pub batch: u64,
    /// Rows of x and y in one product.
    pub rows: u64,
    /// Columns of y.
    pub out: u64,
    /// Columns of x.
    pub k: u64,
    /// Columns of h; 0 when there is no low-rank part.
    pub rank: u64,
    /// `[rows, k]` per batch item, rows contiguous.
    pub x: *const f32,
    /// Elements from one item's x to the next; 0 when shared over the batch.
    pub x_batch_stride: u64,
    /// Panels of W `[out, k]`.
    pub w: *const f32,
    /// Elements from one item's panels to the next; 0 when shared over the batch.
    pub w_batch_stride: u64,
    /// `[batch * rows, rank]`, or null when the rank is 0.
    pub h: *const f32,
    /// Panels of B `[out, rank]`, or null when the rank is 0.
    pub b: *const f32,
    /// `[out]`, or null for 1.
    pub gain: *const f32,
    /// `[out]`, or null for 0.
    pub bias: *const f32,
    /// `[batch, rows, out]`, contiguous, or null for 0: added to the rest, before the epilogue.
    pub residual: *const f32,
    /// `[batch, rows, out]`, contiguous.
    pub y: *mut f32,
    /// Which of the program's adaptable layers it is, or [`NOT_ADAPTABLE`].
    pub adaptable: u64,
    /// What the epilogue is called with, or null when there is none: y, then the buffers that it reads.
    pub epilogue_buffers: *const *mut u8,
    /// Applied to each finished tile while it is in cache.
    pub epilogue: Option<TileFn>,
}

/// The number of a product that is no adaptable layer.
pub const NOT_ADAPTABLE: u64 = u64::MAX;

/// The product `h = x A^T` for few outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Dot {
    /// Rows of x and h.
    pub rows: u64,
    /// Columns of x.
    pub k: u64,
    /// Columns of h.
    pub out: u64,
    /// `[rows, k]`, contiguous.
    pub x: *const f32,
    /// A `[out, k]`, packed as rows.
    pub a: *const f32,
    /// `[rows, out]`, contiguous.
    pub h: *mut f32,
}

/// An adapted weight `W_j + sum_k B_jk A_k`, as what makes it up.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AdaptedWeight {
    /// Outputs j.
    pub out: u64,
    /// Inputs p.
    pub k: u64,
    /// Rows of A and columns of B; 0 when there is no low-rank part.
    pub rank: u64,
    /// Panels of W `[out, k]`.
    pub w: *const f32,
    /// A `[rank, k]`, packed as rows; not read when the rank is 0.
    pub a: *const f32,
    /// Panels of B `[out, rank]`; not read when the rank is 0.
    pub b: *const f32,
}

/// The row norms `n_j = || W_j + sum_k B_jk A_k ||_2`, without materialising BA.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RowNorm {
    /// The adapted weight.
    pub weight: AdaptedWeight,
    /// `[out]`.
    pub n: *mut f32,
}

/// A merged weight `W'_j = gain_j (W_j + sum_k B_jk A_k)` in panels, from the panels of W.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Merge {
    /// The adapted weight.
    pub weight: AdaptedWeight,
    /// `[out]` or null.
    pub gain: *const f32,
    /// Panels of W' `[out, k]`.
    pub merged: *mut f32,
}

/// Attention by heads, `y = softmax(scale * q k^T) v` over the keys that a query sees.
///
/// Query i stands at key `keys - queries + i`. It sees a key if the mask has no 0 there, if it is causal no key after its
/// own, and of the keys up to its own the last `window`. A query that sees no key gives 0. Query head h shares the key
/// head `h / (heads / kv_heads)`.
///
/// Element c of row i of batch item b of q is at `q[b * q_batch_stride + i * q_row_stride + c]`, so that parts of a wider
/// row and a transposed cache are read where they lie; k and v are alike. Nothing that is read may overlap `y`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Attention {
    /// How many items.
    pub batch: u64,
    /// Rows of q and y.
    pub queries: u64,
    /// Rows of k and v.
    pub keys: u64,
    /// Heads of q and y.
    pub heads: u64,
    /// Heads of k and v, a divisor of `heads`.
    pub kv_heads: u64,
    /// The width of a head of q and k.
    pub d: u64,
    /// The width of a head of v and y.
    pub e: u64,
    /// Multiplied into the scores.
    pub scale: f32,
    /// 1 if a query sees no key after its own, else 0.
    pub causal: u32,
    /// How many keys up to its own a query sees; `u64::MAX` for all.
    pub window: u64,
    /// `[batch, queries, heads * d]`.
    pub q: *const f32,
    /// Elements from one item's q to the next.
    pub q_batch_stride: u64,
    /// Elements from one row of q to the next.
    pub q_row_stride: u64,
    /// `[batch, keys, kv_heads * d]`.
    pub k: *const f32,
    /// Elements from one item's k to the next.
    pub k_batch_stride: u64,
    /// Elements from one row of k to the next.
    pub k_row_stride: u64,
    /// `[batch, keys, kv_heads * e]`.
    pub v: *const f32,
    /// Elements from one item's v to the next.
    pub v_batch_stride: u64,
    /// Elements from one row of v to the next.
    pub v_row_stride: u64,
    /// Integers `[batch, keys]`, contiguous, or null for none.
    pub mask: *const c_void,
    /// The bytes of one of the mask's integers, 4 or 8.
    pub mask_bytes: u64,
    /// `[batch, queries, heads * e]`, contiguous.
    pub y: *mut f32,
}

/// What is subtracted of a row's elements before the norm is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Center {
    /// The row's mean: a layer norm.
    Mean = 0,
    /// Nothing: an RMS norm.
    Zero = 1,
}

/// The norms `y = (x - c) / sqrt(mean((x - c)^2) + epsilon) * weight + bias` of rows, c a row's center.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LayerNorm {
    /// What c is.
    pub center: Center,
    /// How many rows.
    pub rows: u64,
    /// Elements of a row.
    pub n: u64,
    /// Added to the mean square.
    pub epsilon: f32,
    /// `[rows, n]`, contiguous.
    pub x: *const f32,
    /// `[n]`, or null for 1.
    pub weight: *const f32,
    /// `[n]`, or null for 0.
    pub bias: *const f32,
    /// `[rows, n]`, contiguous, either x itself or apart from all that is read.
    pub y: *mut f32,
}

/// An elementwise function that is a kernel, because its formula is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Function {
    /// `exp(x)`
    Exp = 0,
    /// `tanh(x)`
    Tanh = 1,
    /// `1 / (1 + exp(-x))`
    Sigmoid = 2,
    /// `x / (1 + exp(-x))`
    Silu = 3,
    /// `x (1 + erf(x / √2)) / 2`
    Gelu = 4,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`
    GeluTanh = 5,
    /// `sin(x)`, NaN where |x| exceeds 2²⁰.
    Sin = 6,
    /// `cos(x)`, NaN where |x| exceeds 2²⁰.
    Cos = 7,
}

impl Function {
    /// Every function.
    pub const ALL: [Function; 8] = [
        Function::Exp,
        Function::Tanh,
        Function::Sigmoid,
        Function::Silu,
        Function::Gelu,
        Function::GeluTanh,
        Function::Sin,
        Function::Cos,
    ];
}

/// A function of each of some floats, in rows side by side. What comes of one depends neither on the others nor on its place.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Unary {
    /// Which.
    pub function: Function,
    /// How many rows.
    pub rows: u64,
    /// How many in each.
    pub count: u64,
    /// `[rows, count]`, rows `x_stride` floats apart.
    pub x: *const f32,
    /// See `x`.
    pub x_stride: i64,
    /// `[rows, count]`, either x itself or apart from it; rows `y_stride` floats apart.
    pub y: *mut f32,
    /// See `y`.
    pub y_stride: i64,
}

#[cfg(test)]
mod tests {
    use super::{
        Attention, Center, Dot, Fault, Frame, Function, LayerNorm, Linear, Merge, Pack, RowNorm, Unary,
    };
    use core::mem::{offset_of, size_of};

    /// Code compiled ahead of time carries these numbers: changing one breaks every object file.
    #[test]
    fn the_layout_is_the_documented_one() {
        assert_eq!(
            [
                offset_of!(Frame, dims),
                offset_of!(Frame, buffers),
                offset_of!(Frame, arena),
                offset_of!(Frame, context),
                offset_of!(Frame, fault),
                offset_of!(Frame, profile),
                offset_of!(Frame, arriving),
                offset_of!(Frame, adapters),
                size_of::<Frame>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56, 64]
        );
        assert_eq!(
            [offset_of!(Fault, step), offset_of!(Fault, found), offset_of!(Fault, limit), size_of::<Fault>()],
            [0, 8, 16, 24]
        );
        assert_eq!(
            [
                offset_of!(Pack, batch),
                offset_of!(Pack, out),
                offset_of!(Pack, k),
                offset_of!(Pack, w),
                offset_of!(Pack, w_batch_stride),
                offset_of!(Pack, out_stride),
                offset_of!(Pack, k_stride),
                offset_of!(Pack, scale),
                offset_of!(Pack, packing),
                offset_of!(Pack, packed),
                size_of::<Pack>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80]
        );
        assert_eq!(
            [
                offset_of!(Linear, batch),
                offset_of!(Linear, rows),
                offset_of!(Linear, out),
                offset_of!(Linear, k),
                offset_of!(Linear, rank),
                offset_of!(Linear, x),
                offset_of!(Linear, x_batch_stride),
                offset_of!(Linear, w),
                offset_of!(Linear, w_batch_stride),
                offset_of!(Linear, h),
                offset_of!(Linear, b),
                offset_of!(Linear, gain),
                offset_of!(Linear, bias),
                offset_of!(Linear, residual),
                offset_of!(Linear, y),
                offset_of!(Linear, adaptable),
                offset_of!(Linear, epilogue_buffers),
                offset_of!(Linear, epilogue),
                size_of::<Linear>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144]
        );
        assert_eq!(
            [
                offset_of!(RowNorm, weight.out),
                offset_of!(RowNorm, weight.k),
                offset_of!(RowNorm, weight.rank),
                offset_of!(RowNorm, weight.w),
                offset_of!(RowNorm, weight.a),
                offset_of!(RowNorm, weight.b),
                offset_of!(RowNorm, n),
                size_of::<RowNorm>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56]
        );
        assert_eq!(
            [
                offset_of!(Merge, weight.out),
                offset_of!(Merge, weight.k),
                offset_of!(Merge, weight.rank),
                offset_of!(Merge, weight.w),
                offset_of!(Merge, weight.a),
                offset_of!(Merge, weight.b),
                offset_of!(Merge, gain),
                offset_of!(Merge, merged),
                size_of::<Merge>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56, 64]
        );
        assert_eq!(
            [
                offset_of!(Dot, rows),
                offset_of!(Dot, k),
                offset_of!(Dot, out),
                offset_of!(Dot, x),
                offset_of!(Dot, a),
                offset_of!(Dot, h),
                size_of::<Dot>(),
            ],
            [0, 8, 16, 24, 32, 40, 48]
        );
    }

    #[test]
    fn the_layout_of_unary_is_the_documented_one() {
        assert_eq!(
            [
                offset_of!(Unary, function),
                offset_of!(Unary, rows),
                offset_of!(Unary, count),
                offset_of!(Unary, x),
                offset_of!(Unary, x_stride),
                offset_of!(Unary, y),
                offset_of!(Unary, y_stride),
                size_of::<Unary>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56]
        );
        assert_eq!(Function::ALL.map(|function| function as u64), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn the_layout_of_layer_norm_is_the_documented_one() {
        assert_eq!(
            [
                offset_of!(LayerNorm, center),
                offset_of!(LayerNorm, rows),
                offset_of!(LayerNorm, n),
                offset_of!(LayerNorm, epsilon),
                offset_of!(LayerNorm, x),
                offset_of!(LayerNorm, weight),
                offset_of!(LayerNorm, bias),
                offset_of!(LayerNorm, y),
                size_of::<LayerNorm>(),
            ],
            [0, 8, 16, 24, 32, 40, 48, 56, 64]
        );
        assert_eq!([Center::Mean, Center::Zero].map(|center| center as u64), [0, 1]);
    }

    #[test]
    fn the_layout_of_attention_is_the_documented_one() {
        assert_eq!(
            [
                offset_of!(Attention, batch),
                offset_of!(Attention, queries),
                offset_of!(Attention, keys),
                offset_of!(Attention, heads),
                offset_of!(Attention, kv_heads),
                offset_of!(Attention, d),
                offset_of!(Attention, e),
                offset_of!(Attention, scale),
                offset_of!(Attention, causal),
                offset_of!(Attention, window),
                offset_of!(Attention, q),
                offset_of!(Attention, q_batch_stride),
                offset_of!(Attention, q_row_stride),
                offset_of!(Attention, k),
                offset_of!(Attention, k_batch_stride),
                offset_of!(Attention, k_row_stride),
                offset_of!(Attention, v),
                offset_of!(Attention, v_batch_stride),
                offset_of!(Attention, v_row_stride),
                offset_of!(Attention, mask),
                offset_of!(Attention, mask_bytes),
                offset_of!(Attention, y),
                size_of::<Attention>(),
            ],
            [
                0, 8, 16, 24, 32, 40, 48, 56, 60, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 152, 160,
                168
            ]
        );
    }
}
