//! What each step costs at least: its arithmetic, and the traffic with memory that no implementation can avoid; the same
//! on every machine. Knows nothing of how fast a machine is.
//!
//! **Flops** are the operations on f32 that a kernel's formula has as it is written: an addition, a multiplication, a
//! comparison, a root or an exponential counts as one, so a fused multiply and add as two. Moving data counts as none.
//!
//! | kernel     | flops                                                                                |
//! |------------|--------------------------------------------------------------------------------------|
//! | `pack`     | batch·out·k if a scale is multiplied in                                              |
//! | `linear`   | batch·rows·out·(2k + 2·rank + 1 for the gain + 1 for the bias + the epilogue's body) |
//! | `dot`      | rows·out·2k                                                                          |
//! | `row_norm` | out·(2k·rank for BA + k to add it + 2k for the squares + 1 for the root)             |
//! | `merge`    | out·k·(2·rank for BA + 1 to add it + 1 for the gain)                                 |
//! | `loop`     | the body's operations at every point of the space                                    |
//! | `row`      | see [`row_flops`]                                                                    |
//! | `gather`   | none                                                                                 |
//! | `cast`     | none                                                                                 |
//! | `attention`| batch·heads·queries·keys·(2d + 2e + 6), see [`attention_flops`]                      |
//!
//! **Bytes** are the compulsory traffic: of each distinct buffer what the step touches of it, once. Panels count with their
//! padding, at its most where the padded extent is symbolic. The rows that a gather looks up count once each time they are
//! named, and no more than the whole table where both are fixed. What is carried from call to call stays where it is, so that
//! copying it costs nothing.

use super::kernel::{
    Access, Attention, Dot, Expr, Kernel, Linear, Loop, Merge, Pack, Row, RowNorm, RowOp, View,
};
use super::{BufferId, Carried, Plan, Step};
use engraft_ir::Dim;
use engraft_ir::ops::Reduction;
use std::collections::BTreeMap;
use std::fmt;

/// What a step costs at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Operations on f32.
    pub flops: Dim,
    /// Bytes read.
    pub read: Dim,
    /// Bytes written.
    pub written: Dim,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> Dim {
        self.read.clone() + &self.written
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flops, reads {} bytes, writes {} bytes", self.flops, self.read, self.written)
    }
}

/// What a step touches of one operand.
#[derive(PartialEq)]
enum Part<'a> {
    Whole,
    /// The elements that an access of a loop reaches.
    Access(&'a Loop, &'a Access),
    Bytes(Dim),
    /// The bytes of the rows that a view reaches.
    Rows(Dim, &'a View),
}

impl Plan {
    /// What one of its steps costs.
    pub fn cost(&self, step: &Step) -> Cost {
        if self.stays(step) {
            let [flops, read, written] = [(); 3].map(|()| Dim::fixed(0));
            return Cost { flops, read, written };
        }
        let mut touched: BTreeMap<BufferId, Vec<Part<'_>>> = BTreeMap::new();
        for (&buffer, part) in step.reads.iter().zip(parts_read(step)) {
            let parts = touched.entry(buffer).or_default();
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        let read = touched.iter().map(|(&buffer, parts)| self.bytes_of(buffer, parts));
        Cost {
            flops: flops(&step.kernel),
            read: read.fold(Dim::fixed(0), |sum, bytes| sum + bytes),
            written: self.bytes_of(step.write, &[part_written(&step.kernel)]),
        }
    }

    /// Whether a step copies what is carried to where it is.
    fn stays(&self, step: &Step) -> bool {
        let is_pair = |carried: &Carried| {
            step.reads == [self.inputs[carried.input]] && step.write == self.outputs[carried.output].1
        };
        matches!(&step.kernel, Kernel::Loop(body) if body.is_identity()) && self.carried.iter().any(is_pair)
    }

    /// The bytes of these parts of a buffer; of a buffer that is small enough to be known to be smaller, its own.
    fn bytes_of(&self, buffer: BufferId, parts: &[Part<'_>]) -> Dim {
        let whole = self.buffer(buffer).bytes();
        let bytes = |part: &Part<'_>| match part {
            Part::Whole => whole.clone(),
            Part::Access(body, access) => elements(body, access) * body.dtype.bytes(),
            Part::Bytes(bytes) | Part::Rows(bytes, _) => bytes.clone(),
        };
        let sum = parts.iter().map(bytes).fold(Dim::fixed(0), |sum, bytes| sum + bytes);
        if sum.checked_sub(&whole).is_some() { whole } else { sum }
    }
}

/// What a step touches of each buffer it reads, in the kernel's order.
fn parts_read(step: &Step) -> Vec<Part<'_>> {
    let accesses = |body| move |access| Part::Access(body, access);
    match &step.kernel {
        Kernel::Loop(body) => body.reads.iter().map(accesses(body)).collect(),
        Kernel::Linear(Linear { epilogue: Some(body), .. }) => {
            // Access 0 is the product itself, which never left the cache.
            let own = body.reads.iter().skip(1).map(accesses(body));
            let operands = (0..step.reads.len() - own.len()).map(|_| Part::Whole);
            operands.chain(own).collect()
        }
        Kernel::Gather(gather) => {
            let rows = gather.count.clone() * &gather.width * gather.dtype.bytes();
            vec![Part::Bytes(rows), Part::Whole]
        }
        Kernel::Attention(attention) => {
            let rows = |(rows, width, view)| rows_read(&attention.batch, rows, width, view);
            let mut parts: Vec<_> = attention.operands().map(rows).into();
            parts.extend(attention.mask.map(|_| Part::Whole));
            parts
        }
        Kernel::Pack(_)
        | Kernel::Linear(_)
        | Kernel::Dot(_)
        | Kernel::RowNorm(_)
        | Kernel::Merge(_)
        | Kernel::Row(_)
        | Kernel::Cast(_) => step.reads.iter().map(|_| Part::Whole).collect(),
    }
}

/// What a view reaches; an item or a row that is shared is read once.
fn rows_read<'a>(batch: &Dim, rows: &Dim, width: u64, view: &'a View) -> Part<'a> {
    let (zero, one) = (Dim::fixed(0), Dim::fixed(1));
    let once = |extent, stride: &Dim| if *stride == zero { &one } else { extent };
    let rows = product([once(batch, &view.batch_stride), once(rows, &view.row_stride)]);
    Part::Rows(rows * width * 4, view)
}

fn part_written(kernel: &Kernel) -> Part<'_> {
    match kernel {
        Kernel::Loop(body) => Part::Access(body, &body.write),
        _ => Part::Whole,
    }
}

/// How many elements an access reaches: the planner's strides lead nowhere twice, unless they are 0.
fn elements(body: &Loop, access: &Access) -> Dim {
    let moves = body.space.iter().zip(&access.strides).filter(|(_, stride)| **stride != Dim::fixed(0));
    product(moves.map(|(extent, _)| extent))
}

fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::fixed(1), |product, dim| product * dim)
}

fn flops(kernel: &Kernel) -> Dim {
    match kernel {
        Kernel::Pack(Pack { scale: 1.0, .. }) | Kernel::Gather(_) | Kernel::Cast(_) => Dim::fixed(0),
        Kernel::Pack(Pack { batch, matrix, .. }) => product([batch, &matrix.out, &matrix.k]),
        Kernel::Linear(linear) => linear_flops(linear),
        Kernel::Dot(Dot { rows, k, out }) => product([rows, k, out]) * 2,
        Kernel::RowNorm(RowNorm { out, k, rank }) => {
            let per_input = rank.clone() * 2 + 3;
            out.clone() * (k.clone() * per_input + 1)
        }
        Kernel::Merge(Merge { out, k, rank, gain }) => {
            product([out, k]) * (rank.clone() * 2 + (1 + u64::from(*gain)))
        }
        Kernel::Loop(body) => product(&body.space) * operations(body),
        Kernel::Row(row) => row_flops(row),
        Kernel::Attention(attention) => attention_flops(attention),
    }
}

/// Of each query head and key: d multiplications and additions and the scale for the score, 5 operations for the softmax
/// as [`row_flops`] counts them, e multiplications and additions for the values; keys that a query doesn't see included.
fn attention_flops(attention: &Attention) -> Dim {
    let Attention { batch, queries, keys, heads, d, e, .. } = attention;
    let per_key = Dim::fixed(*d) * 2 + Dim::fixed(*e) * 2 + 6;
    product([batch, queries, keys]) * *heads * per_key
}

fn linear_flops(linear: &Linear) -> Dim {
    let Linear { batch, rows, k, out, rank, gain, bias, epilogue, .. } = linear;
    let steps = rank.iter().fold(k.clone(), |steps, rank| steps + rank);
    let once = usize::from(*gain) + usize::from(*bias) + epilogue.as_ref().map_or(0, operations);
    product([batch, rows, out]) * (steps * 2 + Dim::from(once))
}

/// The operations of a loop's body.
fn operations(body: &Loop) -> usize {
    body.body.iter().filter(|expr| matches!(expr, Expr::Unary(..) | Expr::Binary(..))).count()
}

/// Of each of the `outer·inner` rows of n elements, as operations per element and per row:
///
/// | op          | per element                                             | per row                         |
/// |-------------|---------------------------------------------------------|---------------------------------|
/// | sum, max    | 1                                                       | 0                               |
/// | mean        | 1                                                       | 1: the division                 |
/// | softmax     | 5: maximum, difference, exponential, sum, division      | 0                               |
/// | normalize   | 3: square, sum, division                                | 1: the root, 1 if there is an ε |
/// | `rms_norm`  | 3: square, sum, division                                | 3: mean, ε, root                |
/// | `layer_norm`| 5: sum, difference, square, sum, division               | 4: two means, ε, root           |
///
/// A weight and a bias are one operation more per element each.
fn row_flops(row: &Row) -> Dim {
    let (per_element, per_row) = match row.op {
        RowOp::Reduce(Reduction::Sum | Reduction::Max) => (1, 0),
        RowOp::Reduce(Reduction::Mean) => (1, 1),
        RowOp::Softmax => (5, 0),
        RowOp::Normalize { epsilon, .. } => (3, 1 + u64::from(epsilon != 0.0)),
        RowOp::RmsNorm { .. } => (3, 3),
        RowOp::LayerNorm { .. } => (5, 4),
    };
    let per_element = per_element + u64::from(row.weight) + u64::from(row.bias);
    product([&row.outer, &row.inner]) * (row.n.clone() * per_element + per_row)
}
