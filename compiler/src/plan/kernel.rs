//! The kernels a plan is made of. Few, each covering many ops: `Pack`, `Linear`, `Dot`, `RowNorm`, `Merge` and
//! `Attention` are the runtime's, and of `Row` the layer and RMS norms; the other `Row`s, `Loop`, `Gather` and `Cast` are
//! emitted as code. A kernel says everything but where its buffers are, so equal kernels share one piece of code.

use engraft_ir::ops::{Binary, Reduction, Unary};
use engraft_ir::{DType, Dim};
pub use engraft_runtime::abi::{Center, Packing};
use std::sync::Arc;

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// See [`Pack`]. Reads: the matrix.
    Pack(Pack),
    /// See [`Linear`]. Reads: x, panels of W, then, as they are present, h and panels of B, gain, bias, and what the
    /// epilogue reads.
    Linear(Linear),
    /// See [`Dot`]. Reads: x, A as rows.
    Dot(Dot),
    /// See [`RowNorm`]. Reads: panels of W, A as rows, panels of B.
    RowNorm(RowNorm),
    /// See [`Merge`]. Reads: panels of W, A as rows, panels of B, then the gain if there is one.
    Merge(Merge),
    /// See [`Attention`]. Reads: q, k, v, then the mask if there is one.
    Attention(Attention),
    /// See [`Loop`]. Reads: one buffer per access.
    Loop(Loop),
    /// See [`Row`]. Reads: x, then, as they are present, weight and bias.
    Row(Row),
    /// See [`Gather`]. Reads: table, ids.
    Gather(Gather),
    /// See [`Cast`]. Reads: the integers.
    Cast(Cast),
}

/// A matrix as it lies in a buffer: element `(j, p)` at `j * out_stride + p * k_stride`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatrixLayout {
    /// Outputs j.
    pub out: Dim,
    /// Inputs p.
    pub k: Dim,
    /// Elements from one output to the next.
    pub out_stride: Dim,
    /// Elements from one input to the next.
    pub k_stride: Dim,
}

/// Packs `batch` matrices, `scale` multiplied in.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// How many matrices, `out * k` elements apart.
    pub batch: Dim,
    /// One of them.
    pub matrix: MatrixLayout,
    /// What every element is multiplied by.
    pub scale: f32,
    /// Into which form.
    pub packing: Packing,
}

impl Pack {
    /// The floats that it takes.
    pub fn floats(&self) -> Dim {
        packed_floats(self.packing, &self.matrix.out, &self.matrix.k) * &self.batch
    }
}

impl Merge {
    /// The floats that it takes.
    pub fn floats(&self) -> Dim {
        packed_floats(Packing::Panels, &self.out, &self.k)
    }
}

/// The floats of a packed matrix `[out, k]`: one extent is padded, see the runtime's `panels`; an upper bound where that is
/// symbolic.
fn packed_floats(packing: Packing, out: &Dim, k: &Dim) -> Dim {
    const LANE: u64 = engraft_runtime::panels::LANE as u64;
    let lanes = |extent: u64| extent.div_ceil(LANE);
    let (padded, other) = match packing {
        Packing::Panels => match out.as_fixed() {
            Some(extent) => (Dim::fixed(lanes(extent).saturating_mul(LANE)), k),
            None => (out.clone() + (LANE - 1), k),
        },
        Packing::Rows => match k.as_fixed() {
            Some(0) => (Dim::fixed(0), out),
            Some(extent) => (Dim::fixed((lanes(extent) | 1).saturating_mul(LANE)), out),
            None => (k.clone() + (2 * LANE - 1), out),
        },
    };
    padded * other
}

/// `y = gain ∘ (x Wᵀ + h Bᵀ) + bias`, then the epilogue: x `[batch, rows, k]`, y `[batch, rows, out]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// How many products.
    pub batch: Dim,
    /// Rows of x and y.
    pub rows: Dim,
    /// Columns of x.
    pub k: Dim,
    /// Columns of y.
    pub out: Dim,
    /// Columns of h, if there is a low-rank part.
    pub rank: Option<Dim>,
    /// Whether W differs by product.
    pub batched_weight: bool,
    /// Whether there is a gain `[out]`.
    pub gain: bool,
    /// Whether there is a bias `[out]`.
    pub bias: bool,
    /// The name by which adapters refer to it, if a bank may put some on it: `batch` then counts items, each of which may
    /// have an adapter of its own, W is staged with the base, and there is neither a low-rank part nor a gain.
    pub adaptable: Option<Arc<str>>,
    /// What is done to each finished tile, over the space `[batch * rows, out]`. Its access 0 is y itself.
    pub epilogue: Option<Loop>,
}

impl Linear {
    /// Whether all the epilogue does is to add another value of y's shape, element by element: then there is no code for it,
    /// and the kernel itself adds it while the sums are in registers.
    pub fn adds_residual(&self) -> bool {
        let Some(Loop { dtype: DType::F32, reads, body, .. }) = &self.epilogue else { return false };
        let [y, residual] = reads.as_slice() else { return false };
        let &[Expr::Load(a), Expr::Load(b), Expr::Binary(Binary::Add, c, d)] = body.as_slice() else {
            return false;
        };
        y == residual && a != b && c != d
    }
}

/// `h = x Aᵀ` for outputs as few as a rank: x `[rows, k]`, h `[rows, out]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dot {
    /// Rows of x and h.
    pub rows: Dim,
    /// Columns of x.
    pub k: Dim,
    /// Columns of h.
    pub out: Dim,
}

/// `n_j = ‖W_j + (B A)_j‖₂`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowNorm {
    /// Rows of W and B.
    pub out: Dim,
    /// Columns of W and A.
    pub k: Dim,
    /// Rows of A, columns of B.
    pub rank: Dim,
}

/// Panels of `W' = gain ∘ (W + B A)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// Rows of W and B.
    pub out: Dim,
    /// Columns of W and A.
    pub k: Dim,
    /// Rows of A, columns of B.
    pub rank: Dim,
    /// Whether there is a gain `[out]`.
    pub gain: bool,
}

/// `y = softmax(scale q kᵀ) v` by heads, over the keys that a query sees, see [`engraft_ir::ops::Attention`]: y
/// `[batch, queries, heads·e]`, contiguous. The other operands are read where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// How many items.
    pub batch: Dim,
    /// Rows of q and y.
    pub queries: Dim,
    /// Rows of k and v.
    pub keys: Dim,
    /// Heads of q and y.
    pub heads: u64,
    /// Heads of k and v.
    pub kv_heads: u64,
    /// The width of a head of q and k.
    pub d: u64,
    /// The width of a head of v and y.
    pub e: u64,
    /// What the scores are multiplied by.
    pub scale: f32,
    /// Whether a query sees no key after its own.
    pub causal: bool,
    /// How many keys up to its own a query sees.
    pub window: Option<u64>,
    /// The element type of the mask `[batch, keys]`, if there is one.
    pub mask: Option<DType>,
    /// `[batch, queries, heads·d]`.
    pub q: View,
    /// `[batch, keys, kv_heads·d]`.
    pub k: View,
    /// `[batch, keys, kv_heads·e]`.
    pub v: View,
}

/// Rows of a batch as they lie in a buffer: element `(b, i, c)` at `offset + b * batch_stride + i * row_stride + c`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The first element.
    pub offset: Dim,
    /// Elements from one item to the next.
    pub batch_stride: Dim,
    /// Elements from one row to the next.
    pub row_stride: Dim,
}

impl Attention {
    /// Extents, width of a row and view of q, k and v.
    pub fn operands(&self) -> [(&Dim, u64, &View); 3] {
        let Self { queries, keys, heads, kv_heads, d, e, .. } = self;
        let width = |heads: &u64, width: &u64| heads.saturating_mul(*width);
        [
            (queries, width(heads, d), &self.q),
            (keys, width(kv_heads, d), &self.k),
            (keys, width(kv_heads, e), &self.v),
        ]
    }
}

/// How a loop walks a buffer: element `(i₀, i₁, ..)` of the space at `offset + Σ iₐ strides[a]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Elements per step along each axis of the space; 0 where the value repeats.
    pub strides: Vec<Dim>,
    /// The first element.
    pub offset: Dim,
}

/// One value of a loop's body, from earlier ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expr {
    /// The element that this access reaches.
    Load(usize),
    /// A number.
    Number(f32),
    /// A function of an earlier value.
    Unary(Unary, usize),
    /// A function of two earlier values.
    Binary(Binary, usize, usize),
}

/// `out[..] = body(..)` at every point of a space: elementwise arithmetic with broadcasting, and every movement of
/// data (transpose, slice, concat, broadcast, copy).
#[derive(Clone, Debug, PartialEq)]
pub struct Loop {
    /// The extents of the space, outermost first; at least one.
    pub space: Vec<Dim>,
    /// The element type; anything but f32 is only moved.
    pub dtype: DType,
    /// How each read buffer is walked.
    pub reads: Vec<Access>,
    /// How the written buffer is walked.
    pub write: Access,
    /// The values; the last is stored.
    pub body: Vec<Expr>,
}

/// What is done along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowOp {
    /// One value per row.
    Reduce(Reduction),
    /// `exp(x - max) / Σ exp(x - max)`.
    Softmax,
    /// `x / ‖x‖₂ · weight`.
    Normalize {
        /// ε.
        epsilon: f32,
        /// Where it sits.
        epsilon_at: engraft_ir::ops::EpsilonAt,
    },
    /// `(x - mean) / sqrt(var + ε) · weight + bias`.
    LayerNorm {
        /// ε.
        epsilon: f32,
    },
    /// `x / sqrt(mean(x²) + ε) · weight`.
    RmsNorm {
        /// ε.
        epsilon: f32,
    },
}

impl RowOp {
    /// What is subtracted of each element, and ε, if it is a norm that the runtime computes: along a contiguous axis alone.
    pub fn center(self) -> Option<(Center, f32)> {
        match self {
            Self::LayerNorm { epsilon } => Some((Center::Mean, epsilon)),
            Self::RmsNorm { epsilon } => Some((Center::Zero, epsilon)),
            Self::Reduce(_) | Self::Softmax | Self::Normalize { .. } => None,
        }
    }
}

/// An op along the axis `n` of `[outer, n, inner]`, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What is done.
    pub op: RowOp,
    /// Extents before the axis.
    pub outer: Dim,
    /// The axis.
    pub n: Dim,
    /// Extents after the axis.
    pub inner: Dim,
    /// Whether there is a weight `[n]`.
    pub weight: bool,
    /// Whether there is a bias `[n]`; only a norm of the runtime's has one.
    pub bias: bool,
}

/// `y[i, :] = table[ids[i], :]`. Checks every id before it writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// Whether the table is read from the panels that a product has of it.
    pub from_panels: bool,
    /// The element type of table and y.
    pub dtype: DType,
    /// The type of the ids.
    pub ids: DType,
    /// How many ids.
    pub count: Dim,
    /// Rows of the table.
    pub rows: Dim,
    /// Elements of a row.
    pub width: Dim,
}

/// `y = x`, contiguous integers as f32, rounded to the nearest, ties to even.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The type of x.
    pub from: DType,
    /// How many.
    pub count: Dim,
}

impl Loop {
    /// Whether every element is written as it is read, at one and the same place of the two buffers. Where these are one
    /// piece of memory, there is nothing to do.
    pub fn is_identity(&self) -> bool {
        self.body == [Expr::Load(0)] && self.reads == [self.write.clone()]
    }
}

impl Kernel {
    /// The name in plans and code.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pack(_) => "pack",
            Self::Linear(_) => "linear",
            Self::Dot(_) => "dot",
            Self::RowNorm(_) => "row_norm",
            Self::Merge(_) => "merge",
            Self::Loop(_) => "loop",
            Self::Row(row) => match row.op {
                RowOp::Reduce(Reduction::Sum) => "sum",
                RowOp::Reduce(Reduction::Mean) => "mean",
                RowOp::Reduce(Reduction::Max) => "max",
                RowOp::Softmax => "softmax",
                RowOp::Normalize { .. } => "normalize",
                RowOp::LayerNorm { .. } => "layer_norm",
                RowOp::RmsNorm { .. } => "rms_norm",
            },
            Self::Gather(_) => "gather",
            Self::Cast(_) => "cast",
            Self::Attention(_) => "attention",
        }
    }
}
