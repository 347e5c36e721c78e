//! Code for `Loop`: nested counted loops with one pointer per access, the innermost axis in several vectors a step, in
//! vectors and then one by one. Epilogues are the same loop over a tile.
//!
//! Functions of the runtime's are called for many elements at once: the innermost axis is run along in chunks, of which
//! each part of the body that gives a function's argument writes one, the function is called on it, and what follows
//! reads it. A body that is nothing but a function of what lies side by side is one call for all rows.

use super::emit::{Emit, LANES, Width, memory};
use super::staged::{Call, Staged};
use crate::plan::kernel::{Access, Expr, Loop};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use engraft_ir::{DType, Dim};
use engraft_runtime::abi::Function;

/// The vectors of a step where each takes a few instructions, so that the loop's own do not show.
const UNROLLED: i64 = 4;

/// The most values of a body that is unrolled.
const MAX_UNROLLED_BODY: usize = 16;

/// The most values that are kept in vector registers over the innermost loop. What is left of the sixteen is enough for
/// the others of a body.
const MAX_HELD: usize = 6;

/// The most elements of a chunk: enough that a call's own time does not show, and few enough that they stay in cache.
const CHUNK: usize = 256;

/// The floats on the stack that the chunks of a body's functions share.
const SCRATCH: usize = 1024;

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

/// One access of a loop being emitted: bytes per step along each axis, and how it moves innermost.
#[derive(Clone)]
struct Walk {
    steps: Vec<Value>,
    inner: Inner,
}

/// A loop being emitted.
#[derive(Clone, Copy)]
struct Nest<'a> {
    dtype: DType,
    staged: &'a Staged,
    /// The reads and the write.
    walks: &'a [Walk],
}

/// What is computed at each point: values, each from earlier ones, of which the last is written by the last of the walks.
#[derive(Clone, Copy)]
struct Body<'a> {
    dtype: DType,
    values: &'a [Expr],
    walks: &'a [Walk],
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
}

impl Nest<'_> {
    /// The function that the body is, of a read whose elements lie side by side as the results do: one call for all rows.
    fn as_call(&self) -> Option<(Function, usize)> {
        let [Call { function, argument }] = self.staged.calls.as_slice() else { return None };
        let read = Body { dtype: self.dtype, values: argument, walks: self.walks }.as_load()?;
        let (write, result) = (self.walks.len() - 1, Expr::Load(self.walks.len() - 1));
        let is_whole = self.walks[write].inner == Inner::Contiguous && self.staged.rest == [result];
        is_whole.then_some((*function, read))
    }
}

impl Body<'_> {
    /// Vectors a step of the innermost axis. Out-of-order execution overlaps the steps of a long body by itself.
    fn vectors_per_step(&self) -> i64 {
        let is_short = self.values.len() <= MAX_UNROLLED_BODY;
        if is_short && self.strided().next().is_none() { UNROLLED } else { 1 }
    }

    /// The accesses that move by a stride, of those that the body has.
    fn strided(&self) -> impl Iterator<Item = usize> {
        let write = self.walks.len() - 1;
        let is_there = move |access| access == write || self.values.contains(&Expr::Load(access));
        (0..self.walks.len())
            .filter(move |&access| self.walks[access].inner == Inner::Strided && is_there(access))
    }

    fn writes_side_by_side(&self) -> bool {
        self.walks.last().is_some_and(|walk| walk.inner == Inner::Contiguous)
    }

    /// The access that the body is, without computing anything of it, if its elements lie side by side.
    fn as_load(&self) -> Option<usize> {
        match *self.values {
            [Expr::Load(access)] if self.walks[access].inner == Inner::Contiguous => Some(access),
            _ => None,
        }
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
        let accesses = body.reads.iter().zip(reads).chain([(&body.write, &write)]);
        let (pointers, walks): (Vec<_>, Vec<_>) =
            accesses.map(|(access, &buffer)| self.walk(access, buffer, body.dtype, &starts)).unzip();
        self.nest(Nest { dtype: body.dtype, staged: &Staged::of(body), walks: &walks }, &counts, &pointers);
    }

    /// The pointer to an access's first element, and how it moves.
    fn walk(
        &mut self,
        access: &Access,
        buffer: Value,
        dtype: DType,
        starts: &[Option<Value>],
    ) -> (Value, Walk) {
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
        (pointer, Walk { steps, inner })
    }

    /// The loops over the axes whose extents these are, the innermost of all among them.
    fn nest(&mut self, nest: Nest<'_>, counts: &[Value], pointers: &[Value]) {
        if let (&[rows, count], Some((function, read))) = (counts, nest.as_call()) {
            let accesses = [read, nest.walks.len() - 1];
            let strides = accesses.map(|access| {
                let steps = &nest.walks[access].steps;
                self.b.ins().sshr_imm_s(steps[steps.len() - 2], 2)
            });
            let places = accesses.map(|access| pointers[access]);
            self.call_unary_rows(function, [rows, count], places, strides);
            return;
        }
        let &[count, ref inner @ ..] = counts else { return };
        if inner.is_empty() {
            self.innermost(nest, count, pointers);
            return;
        }
        self.repeat(count, pointers, |e, pointers| {
            e.nest(nest, inner, pointers);
            let step = |walk: &Walk| walk.steps[walk.steps.len() - counts.len()];
            pointers.iter().zip(nest.walks).map(|(&p, walk)| e.advance(p, step(walk))).collect()
        });
    }

    /// The innermost axis, in chunks if functions are called.
    fn innermost(&mut self, nest: Nest<'_>, count: Value, pointers: &[Value]) {
        let Nest { dtype, staged, walks } = nest;
        if staged.calls.is_empty() {
            self.points(&Body { dtype, values: &staged.rest, walks }, count, pointers);
            return;
        }
        // Registers do not outlive a call: pointers are kept in memory, and each part loads those that it uses.
        let table = self.table(pointers);
        let chunk = 1 << CHUNK.min(SCRATCH / staged.calls.len()).max(1).ilog2();
        let bytes = Width::Scalar.bytes() * chunk;
        let (scratch, most) = (self.scratch(bytes * staged.calls.len() as i64), self.int(chunk));
        self.pieces(count, most, &[], |e, count, _| {
            e.chunk(nest, count, table, |e, call| e.advance_by(scratch, bytes * call as i64));
            for (index, walk) in walks.iter().enumerate().filter(|(_, walk)| walk.inner != Inner::Fixed) {
                let moved = e.b.ins().imul(count, walk.steps[walk.steps.len() - 1]);
                let pointer = e.table_entry(table, index);
                let pointer = e.advance(pointer, moved);
                e.b.ins().store(memory(), pointer, table, 8 * index as i32);
            }
            Vec::new()
        });
    }

    /// One chunk: the functions in their order, and what is made of their results, which are at `place`. The last is
    /// written where it belongs at once, if nothing is made of it.
    fn chunk(
        &mut self,
        Nest { dtype, staged, walks }: Nest<'_>,
        count: Value,
        table: Value,
        place: impl Fn(&mut Self, usize) -> Value,
    ) {
        let (reads, last) = (walks.len() - 1, staged.calls.len() - 1);
        let write = &walks[reads];
        let is_end = write.inner == Inner::Contiguous && staged.rest == [Expr::Load(reads + last)];
        let mut walks = walks[..reads].to_vec();
        let pointer = |e: &mut Self, access: usize| match access.checked_sub(reads) {
            None => e.table_entry(table, access),
            Some(call) if is_end && call == last => e.table_entry(table, reads),
            Some(call) => place(e, call),
        };
        for (index, call) in staged.calls.iter().enumerate() {
            walks.push(Walk { steps: Vec::new(), inner: Inner::Contiguous });
            let argument = Body { dtype, values: &call.argument, walks: &walks };
            let from = argument.as_load().unwrap_or_else(|| {
                let pointers: Vec<_> = (0..walks.len()).map(|access| pointer(self, access)).collect();
                self.points(&argument, count, &pointers);
                walks.len() - 1
            });
            let places = [from, reads + index].map(|access| pointer(self, access));
            self.call_unary(call.function, count, places);
        }
        if !is_end {
            walks.push(write.clone());
            let mut pointers: Vec<_> = (0..walks.len() - 1).map(|access| pointer(self, access)).collect();
            pointers.push(self.table_entry(table, reads));
            self.points(&Body { dtype, values: &staged.rest, walks: &walks }, count, &pointers);
        }
    }

    /// Every point along the innermost axis.
    fn points(&mut self, body: &Body<'_>, count: Value, pointers: &[Value]) {
        let start = self.int(0);
        if body.dtype != DType::F32 || !body.writes_side_by_side() {
            let end = self.bytes(count, body.dtype.bytes());
            let scalar = Piece { width: Width::Scalar, vectors: 1, offset: start };
            self.run(body, scalar, end, pointers.to_vec());
            return;
        }
        let unrolled = body.vectors_per_step();
        let [blocks, vectors, end] = self.cover(count, unrolled);
        let mut pointers = pointers.to_vec();
        if unrolled > 1 {
            let piece = Piece { width: Width::Vector, vectors: unrolled, offset: start };
            pointers = self.run(body, piece, blocks, pointers);
        }
        let from = if unrolled > 1 { blocks } else { start };
        let piece = Piece { width: Width::Vector, vectors: 1, offset: from };
        let pointers = self.run(body, piece, vectors, pointers);
        let piece = Piece { width: Width::Scalar, vectors: 1, offset: vectors };
        self.run(body, piece, end, pointers);
    }

    /// Runs along the innermost axis, from the first piece's offset to `end`, in pieces like it; returns the pointers,
    /// those of strided accesses moved on.
    fn run(&mut self, body: &Body<'_>, first: Piece, end: Value, mut pointers: Vec<Value>) -> Vec<Value> {
        let walks = body.walks;
        let held = self.held(body, first.width, &pointers);
        let strided: Vec<_> = body.strided().collect();
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
                e.point(body, (piece, vector * Width::Vector.bytes()), &pointers, &held);
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
    fn held(&mut self, body: &Body<'_>, width: Width, pointers: &[Value]) -> Vec<Option<Value>> {
        let walks = body.walks;
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
        body.values.iter().map(value).collect()
    }

    /// One vector or element.
    fn point(
        &mut self,
        body: &Body<'_>,
        (piece, displacement): (Piece, i64),
        pointers: &[Value],
        held: &[Option<Value>],
    ) {
        let Piece { width, offset, .. } = piece;
        let walks = body.walks;
        let ty = match width {
            Width::Scalar => element_type(body.dtype),
            Width::Vector => width.float(),
        };
        let mut values: Vec<Value> = Vec::with_capacity(body.values.len());
        for (expr, held) in body.values.iter().zip(held) {
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
