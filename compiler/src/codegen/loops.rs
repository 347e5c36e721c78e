//! Code for `Loop`: nested counted loops with one pointer per access, the innermost axis in several vectors a step, in
//! vectors and then one by one. Epilogues are the same loop over a tile.

use super::emit::{Emit, LANES, Width, memory};
use super::math;
use crate::plan::kernel::{Access, Expr, Loop};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use engraft_ir::{DType, Dim};

/// The vectors of a step where each takes a few instructions, so that the loop's own do not show.
const UNROLLED: i64 = 4;

/// The most values of a body that is unrolled.
const MAX_UNROLLED_BODY: usize = 16;

/// The most values that are kept in vector registers over the innermost loop. What is left of the sixteen is enough for
/// the largest of the functions.
const MAX_HELD: usize = 6;

/// How an access moves along the innermost axis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// Stays: one element for all.
    Fixed,
    /// To the next element.
    Contiguous,
    /// By a stride.
    Strided,
}

/// One access of a loop being emitted: pointer, bytes per step along each axis, and how it moves innermost.
struct Walk {
    pointer: Value,
    steps: Vec<Value>,
    inner: Inner,
}

/// A piece of the innermost axis: so many vectors, or one element, at an offset in bytes.
#[derive(Clone, Copy)]
struct Piece {
    width: Width,
    vectors: i64,
    offset: Value,
}

/// The extents that a loop runs over.
pub(super) enum Extents {
    /// Its whole space.
    Whole,
    /// Rows and columns `(from, to)` of a space `[rows, out]`, at least one of each.
    Tile([(Value, Value); 2]),
}

impl Loop {
    /// Every dim that code for the loop needs.
    pub(super) fn dims(&self) -> impl Iterator<Item = &Dim> {
        let accesses = self.reads.iter().chain(std::iter::once(&self.write));
        self.space.iter().chain(accesses.flat_map(|a| a.strides.iter().chain(std::iter::once(&a.offset))))
    }

    /// Vectors a step of the innermost axis. Out-of-order execution overlaps the steps of a long body by itself.
    fn vectors_per_step(&self, walks: &[Walk]) -> i64 {
        let is_long = |expr: &Expr| matches!(expr, Expr::Unary(function, _) if math::is_long(*function));
        let is_short = self.body.len() <= MAX_UNROLLED_BODY && !self.body.iter().any(is_long);
        let is_strided = walks.iter().any(|walk| walk.inner == Inner::Strided);
        if is_short && !is_strided { UNROLLED } else { 1 }
    }
}

impl Emit<'_, '_> {
    /// Runs a loop: `pointers` are the buffers read, in order, and the buffer written. May leave the function if there
    /// is nothing to do.
    pub(super) fn run_loop(&mut self, body: &Loop, reads: &[Value], write: Value, extents: &Extents) {
        let (mut counts, starts): (Vec<_>, Vec<_>) = match extents {
            Extents::Whole => body.space.iter().map(|dim| (self.dim(dim), None)).unzip(),
            Extents::Tile(ranges) => {
                ranges.iter().map(|&(from, to)| (self.b.ins().isub(to, from), Some(from))).unzip()
            }
        };
        if let (Extents::Whole, Some((_, inside))) = (extents, body.space.split_first()) {
            counts[0] = self.unless_empty(counts[0], inside);
            // Elements that stay are read before the innermost loop, so there must be some.
            let is_empty = self.b.ins().icmp_imm_s(IntCC::Equal, counts[0], 0);
            self.leave_if(is_empty, Emit::return_nothing);
        }
        if let (Extents::Whole, true, &[read]) = (extents, body.is_identity(), reads) {
            // What is carried from call to call lies where it is to be.
            let is_there = self.b.ins().icmp(IntCC::Equal, read, write);
            self.leave_if(is_there, Emit::return_nothing);
        }
        let mut walks: Vec<_> = body
            .reads
            .iter()
            .zip(reads)
            .map(|(access, &buffer)| self.walk(access, buffer, body.dtype, &starts))
            .collect();
        walks.push(self.walk(&body.write, write, body.dtype, &starts));
        let pointers: Vec<_> = walks.iter().map(|walk| walk.pointer).collect();
        self.nest(body, &walks, &counts, 0, &pointers);
    }

    fn walk(&mut self, access: &Access, buffer: Value, dtype: DType, starts: &[Option<Value>]) -> Walk {
        let element_bytes = Dim::from(dtype.bytes());
        let mut pointer = buffer;
        if access.offset != Dim::fixed(0) {
            let offset = self.dim(&(access.offset.clone() * &element_bytes));
            pointer = self.advance(pointer, offset);
        }
        let mut steps = Vec::new();
        for (stride, start) in access.strides.iter().zip(starts) {
            let step = self.dim(&(stride.clone() * &element_bytes));
            if let Some(start) = start.filter(|_| *stride != Dim::fixed(0)) {
                let skipped = self.b.ins().imul(start, step);
                pointer = self.advance(pointer, skipped);
            }
            steps.push(step);
        }
        let inner = match access.strides.last().and_then(Dim::as_fixed) {
            Some(0) => Inner::Fixed,
            Some(1) => Inner::Contiguous,
            _ => Inner::Strided,
        };
        Walk { pointer, steps, inner }
    }

    fn nest(&mut self, body: &Loop, walks: &[Walk], counts: &[Value], axis: usize, pointers: &[Value]) {
        if axis + 1 == counts.len() {
            self.innermost(body, walks, counts[axis], pointers);
            return;
        }
        self.repeat(counts[axis], pointers, |e, pointers| {
            e.nest(body, walks, counts, axis + 1, pointers);
            let moved = pointers.iter().zip(walks).map(|(&p, walk)| e.advance(p, walk.steps[axis]));
            moved.collect()
        });
    }

    fn innermost(&mut self, body: &Loop, walks: &[Walk], count: Value, pointers: &[Value]) {
        let writes_vectors = walks.last().is_some_and(|walk| walk.inner == Inner::Contiguous);
        let start = self.int(0);
        if body.dtype != DType::F32 || !writes_vectors {
            let end = self.bytes(count, body.dtype.bytes());
            let scalar = Piece { width: Width::Scalar, vectors: 1, offset: start };
            self.run(body, walks, scalar, end, pointers.to_vec());
            return;
        }
        let unrolled = body.vectors_per_step(walks);
        let [blocks, vectors, end] = self.cover(count, unrolled);
        let mut pointers = pointers.to_vec();
        if unrolled > 1 {
            let piece = Piece { width: Width::Vector, vectors: unrolled, offset: start };
            pointers = self.run(body, walks, piece, blocks, pointers);
        }
        let from = if unrolled > 1 { blocks } else { start };
        let piece = Piece { width: Width::Vector, vectors: 1, offset: from };
        let pointers = self.run(body, walks, piece, vectors, pointers);
        let piece = Piece { width: Width::Scalar, vectors: 1, offset: vectors };
        self.run(body, walks, piece, end, pointers);
    }

    /// Runs along the innermost axis, from the first piece's offset to `end`, in pieces like it; returns the pointers,
    /// those of strided accesses moved on.
    fn run(
        &mut self,
        body: &Loop,
        walks: &[Walk],
        first: Piece,
        end: Value,
        mut pointers: Vec<Value>,
    ) -> Vec<Value> {
        let held = self.held(body, walks, first.width, &pointers);
        let is_strided: Vec<_> = walks.iter().map(|walk| walk.inner == Inner::Strided).collect();
        let strided: Vec<_> = (0..walks.len()).filter(|&index| is_strided[index]).collect();
        let carried: Vec<_> = strided.iter().map(|&index| pointers[index]).collect();
        let element_bytes = body.dtype.bytes() as i64;
        let lanes = if first.width == Width::Vector { LANES } else { 1 };
        let step = lanes * first.vectors * element_bytes;
        let ends = self.steps([first.offset, end], step, &carried, |e, offset, carried| {
            let mut pointers = pointers.clone();
            for (&index, &pointer) in strided.iter().zip(carried) {
                pointers[index] = pointer;
            }
            for vector in 0..first.vectors {
                let piece = Piece { offset, ..first };
                e.point(body, walks, (piece, vector * Width::Vector.bytes()), &pointers, &held);
            }
            let moved = strided.iter().map(|&index| {
                let bytes = walks[index].steps[walks[index].steps.len() - 1];
                let bytes = if lanes == 1 { bytes } else { e.b.ins().imul_imm_s(bytes, lanes) };
                e.advance(pointers[index], bytes)
            });
            moved.collect()
        });
        for (index, end) in strided.into_iter().zip(ends) {
            pointers[index] = end;
        }
        pointers
    }

    /// The values of the body that are the same all along the innermost axis, as many as registers are kept for.
    fn held(&mut self, body: &Loop, walks: &[Walk], width: Width, pointers: &[Value]) -> Vec<Option<Value>> {
        let mut left = if body.dtype == DType::F32 { MAX_HELD } else { 0 };
        let value = |expr: &Expr| {
            let value = match *expr {
                Expr::Load(access) if walks[access].inner == Inner::Fixed && left > 0 => {
                    self.load_access(DType::F32, &walks[access], width, pointers[access])
                }
                Expr::Number(number) if width == Width::Vector && left > 0 => self.number(width, number),
                _ => return None,
            };
            left -= 1;
            Some(value)
        };
        body.body.iter().map(value).collect()
    }

    /// One vector or element.
    fn point(
        &mut self,
        body: &Loop,
        walks: &[Walk],
        (piece, displacement): (Piece, i64),
        pointers: &[Value],
        held: &[Option<Value>],
    ) {
        let Piece { width, offset, .. } = piece;
        let ty = match width {
            Width::Scalar => element_type(body.dtype),
            Width::Vector => width.float(),
        };
        let mut values: Vec<Value> = Vec::with_capacity(body.body.len());
        for (expr, held) in body.body.iter().zip(held) {
            let value = match *expr {
                _ if let Some(held) = held => *held,
                Expr::Load(access) if walks[access].inner == Inner::Contiguous => {
                    let pointer = self.advance(pointers[access], offset);
                    self.b.ins().load(ty, memory(), pointer, displacement as i32)
                }
                Expr::Load(access) => self.load_access(body.dtype, &walks[access], width, pointers[access]),
                Expr::Number(number) => self.number(width, number),
                Expr::Unary(function, x) => self.unary(function, width, values[x]),
                Expr::Binary(function, a, b) => self.binary(function, values[a], values[b]),
            };
            values.push(value);
        }
        let (write, result) = (pointers.len() - 1, values[values.len() - 1]);
        if walks[write].inner == Inner::Contiguous {
            self.store_at(result, pointers[write], offset, displacement);
        } else {
            self.store(result, pointers[write]);
        }
    }

    /// Loads what does not lie side by side: the same element for all lanes, or elements at a stride.
    fn load_access(&mut self, dtype: DType, walk: &Walk, width: Width, pointer: Value) -> Value {
        if width == Width::Scalar {
            return self.b.ins().load(element_type(dtype), memory(), pointer, 0);
        }
        let first = self.load(Width::Scalar, pointer);
        if walk.inner == Inner::Fixed {
            return self.fit(first, width);
        }
        let mut vector = self.number(width, 0.0);
        let (mut pointer, mut element) = (pointer, first);
        for lane in 0..LANES as u8 {
            vector = self.b.ins().insertlane(vector, element, lane);
            if i64::from(lane) + 1 < LANES {
                pointer = self.advance(pointer, walk.steps[walk.steps.len() - 1]);
                element = self.load(Width::Scalar, pointer);
            }
        }
        vector
    }
}

fn element_type(dtype: DType) -> Type {
    match dtype {
        DType::F32 => F32,
        DType::I32 => I32,
        // f64 does not get past the planner; eight bytes are eight bytes.
        DType::I64 | DType::F64 => I64,
    }
}
