//! A thin layer over Cranelift's function builder: values as scalars or 128-bit vectors of f32, counted loops, and
//! dims as machine integers. Knows no kernels.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I32, I32X4, I64};
use cranelift_codegen::ir::{
    BlockArg, ConstantData, FuncRef, InstBuilder, MemFlagsData, StackSlot, Type, Value,
};
use cranelift_frontend::FunctionBuilder;
use engraft_ir::{Dim, Symbol};
use engraft_runtime::abi::Frame;
use std::collections::BTreeMap;
use std::mem::offset_of;

/// The type of a pointer; the runtime refuses targets where it is another.
pub(super) const POINTER: Type = I64;

/// f32 lanes in a vector.
pub(super) const LANES: i64 = 4;

/// How many elements a value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// One f32.
    Scalar,
    /// Four f32.
    Vector,
}

impl Width {
    pub(super) fn float(self) -> Type {
        match self {
            Self::Scalar => F32,
            Self::Vector => F32X4,
        }
    }

    pub(super) fn int(self) -> Type {
        match self {
            Self::Scalar => I32,
            Self::Vector => I32X4,
        }
    }

    /// Bytes of f32 lanes.
    pub(super) const fn bytes(self) -> i64 {
        match self {
            Self::Scalar => 4,
            Self::Vector => 4 * LANES,
        }
    }
}

/// Memory that is known to be there; tensors need not be aligned to vectors.
pub(super) fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// What memory on the stack is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StackUse {
    /// A structure of the binary interface.
    Structure,
    /// A table of addresses.
    Table,
    /// What the runtime's functions are given and give.
    Scratch,
}

/// Emits one function.
pub(super) struct Emit<'a, 'f> {
    pub(super) b: &'a mut FunctionBuilder<'f>,
    /// What the runtime's functions are called with, and the entry point of the elementwise ones, where there are any.
    pub(super) unary: Option<(FuncRef, Value)>,
    /// Where the values of the symbols are, and their order.
    dims: Value,
    symbols: &'a [Symbol],
    loaded: BTreeMap<Symbol, Value>,
    /// Memory on the stack, by its use and size.
    pub(super) stack: Vec<((StackUse, u32), StackSlot)>,
}

impl<'a, 'f> Emit<'a, 'f> {
    /// An emitter in the entry block. Symbols are loaded there, so that they are known everywhere.
    pub(super) fn new(b: &'a mut FunctionBuilder<'f>, dims: Value, symbols: &'a [Symbol]) -> Self {
        Self { b, unary: None, dims, symbols, loaded: BTreeMap::new(), stack: Vec::new() }
    }

    /// An emitter in the entry block of a function that is given the frame of the running stage.
    pub(super) fn in_frame(b: &'a mut FunctionBuilder<'f>, frame: Value, symbols: &'a [Symbol]) -> Self {
        let dims = b.ins().load(I64, memory(), frame, offset_of!(Frame, dims) as i32);
        Self::new(b, dims, symbols)
    }

    pub(super) fn int(&mut self, value: i64) -> Value {
        self.b.ins().iconst(I64, value)
    }

    /// Loads, in the entry block, the symbols that these dims use.
    pub(super) fn load_symbols<'d>(&mut self, dims: impl IntoIterator<Item = &'d Dim>) {
        for symbol in dims.into_iter().flat_map(Dim::symbols) {
            if let (None, Some(index)) =
                (self.loaded.get(&symbol), self.symbols.iter().position(|known| *known == symbol))
            {
                let value = self.b.ins().load(I64, memory(), self.dims, 8 * index as i32);
                self.loaded.insert(symbol, value);
            }
        }
    }

    /// The value of a symbol that was loaded in the entry block.
    pub(super) fn symbol(&mut self, symbol: &Symbol) -> Value {
        match self.loaded.get(symbol) {
            Some(&value) => value,
            None => unreachable!("every symbol of a kernel is loaded in its entry block"),
        }
    }

    /// The value of a dim. The runtime has checked that it does not overflow.
    pub(super) fn dim(&mut self, dim: &Dim) -> Value {
        let mut sum: Option<Value> = None;
        for (coefficient, product) in dim.terms() {
            let mut term: Option<Value> = None;
            for symbol in product {
                let value = self.symbol(symbol);
                term = Some(term.map_or(value, |term| self.b.ins().imul(term, value)));
            }
            let term = match term {
                None => self.int(coefficient as i64),
                Some(term) if coefficient == 1 => term,
                Some(term) => self.b.ins().imul_imm_s(term, coefficient as i64),
            };
            sum = Some(sum.map_or(term, |sum| self.b.ins().iadd(sum, term)));
        }
        sum.unwrap_or_else(|| self.int(0))
    }

    // --- loops -------------------------------------------------------------------------------------------------------

    /// Runs `body` `count` times on values that it carries along, and returns what they are in the end.
    pub(super) fn repeat(
        &mut self,
        count: Value,
        carried: &[Value],
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        self.cycle(count, count, carried, |e, left, carried| {
            let next = body(e, carried);
            let left = e.b.ins().iadd_imm_s(left, -1);
            (left, left, next)
        })
    }

    /// Runs `body` at the offsets `from`, `from + step`, .. below `to`, which must be one of them, on values that it
    /// carries along, and returns what they are in the end.
    pub(super) fn steps(
        &mut self,
        [from, to]: [Value; 2],
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let enter = self.below(from, to);
        self.cycle(enter, from, carried, |e, offset, carried| {
            let next = body(e, offset, carried);
            let offset = e.b.ins().iadd_imm_s(offset, step);
            (e.below(offset, to), offset, next)
        })
    }

    /// Runs `body` on `count` elements in pieces of `most` at most, and on values that it carries along.
    pub(super) fn pieces(
        &mut self,
        count: Value,
        most: Value,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) {
        self.cycle(count, count, carried, |e, left, carried| {
            let count = e.b.ins().umin(left, most);
            let next = body(e, count, carried);
            let left = e.b.ins().isub(left, count);
            (left, left, next)
        });
    }

    /// A loop that is tested at its end, so that it costs one branch a round: `body` gets the counter and what is
    /// carried, and says whether there is another round, and with which.
    fn cycle(
        &mut self,
        enter: Value,
        counter: Value,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> (Value, Value, Vec<Value>),
    ) -> Vec<Value> {
        fn arguments(values: &[Value]) -> Vec<BlockArg> {
            values.iter().copied().map(Into::into).collect()
        }
        let (inside, after) = (self.b.create_block(), self.b.create_block());
        let inner_counter = self.b.append_block_param(inside, I64);
        let types: Vec<_> = carried.iter().map(|&v| self.b.func.dfg.value_type(v)).collect();
        let params: Vec<_> = types.iter().map(|&ty| self.b.append_block_param(inside, ty)).collect();
        let results: Vec<_> = types.iter().map(|&ty| self.b.append_block_param(after, ty)).collect();
        let first = [&[counter], carried].concat();
        self.b.ins().brif(enter, inside, &arguments(&first), after, &arguments(carried));
        self.b.switch_to_block(inside);
        let (again, counter, next) = body(self, inner_counter, &params);
        let following = [&[counter], next.as_slice()].concat();
        self.b.ins().brif(again, inside, &arguments(&following), after, &arguments(&next));
        self.b.seal_block(inside);
        self.b.seal_block(after);
        self.b.switch_to_block(after);
        results
    }

    /// `count`, or 0 if one of the extents inside is 0: counting many times nothing takes long, and a tensor without
    /// elements may have any other extents.
    pub(super) fn unless_empty<'d>(
        &mut self,
        count: Value,
        inside: impl IntoIterator<Item = &'d Dim>,
    ) -> Value {
        let may_be_empty = |dim: &&Dim| dim.as_fixed().is_none_or(|extent| extent == 0);
        inside.into_iter().filter(may_be_empty).fold(count, |count, dim| {
            let (extent, zero) = (self.dim(dim), self.int(0));
            self.b.ins().select(extent, count, zero)
        })
    }

    /// Runs `body`, which must leave the function, if `condition` holds.
    pub(super) fn leave_if(&mut self, condition: Value, body: impl FnOnce(&mut Self)) {
        let (leave, go_on) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, leave, &[], go_on, &[]);
        self.b.switch_to_block(leave);
        self.b.seal_block(leave);
        body(self);
        self.b.switch_to_block(go_on);
        self.b.seal_block(go_on);
    }

    /// `count / LANES` and `count % LANES`.
    pub(super) fn split_lanes(&mut self, count: Value) -> (Value, Value) {
        self.split(count, LANES)
    }

    /// `count / by` and `count % by`, where `by` is a power of two.
    pub(super) fn split(&mut self, count: Value, by: i64) -> (Value, Value) {
        let whole = self.b.ins().ushr_imm_s(count, i64::from(by.ilog2()));
        let rest = self.b.ins().band_imm_s(count, by - 1);
        (whole, rest)
    }

    /// How `count` contiguous f32 are covered: where, in bytes, `vectors` vectors at a time end, single vectors, and
    /// single elements. `vectors` is a power of two.
    pub(super) fn cover(&mut self, count: Value, vectors: i64) -> [Value; 3] {
        let end = self.bytes(count, 4);
        let blocks = self.b.ins().band_imm_s(end, -(Width::Vector.bytes() * vectors));
        let singles = self.b.ins().band_imm_s(end, -Width::Vector.bytes());
        [blocks, singles, end]
    }

    // --- addresses ---------------------------------------------------------------------------------------------------

    /// `pointer + bytes`.
    pub(super) fn advance(&mut self, pointer: Value, bytes: Value) -> Value {
        self.b.ins().iadd(pointer, bytes)
    }

    pub(super) fn advance_by(&mut self, pointer: Value, bytes: i64) -> Value {
        self.b.ins().iadd_imm_s(pointer, bytes)
    }

    /// A number of elements, in bytes.
    pub(super) fn bytes(&mut self, elements: Value, element_bytes: usize) -> Value {
        self.b.ins().imul_imm_s(elements, element_bytes as i64)
    }

    pub(super) fn load(&mut self, width: Width, pointer: Value) -> Value {
        self.b.ins().load(width.float(), memory(), pointer, 0)
    }

    /// Loads from `base + offset + displacement`, which is one operand of one instruction.
    pub(super) fn load_at(&mut self, width: Width, base: Value, offset: Value, displacement: i64) -> Value {
        let pointer = self.advance(base, offset);
        self.b.ins().load(width.float(), memory(), pointer, displacement as i32)
    }

    pub(super) fn store(&mut self, value: Value, pointer: Value) {
        self.b.ins().store(memory(), value, pointer, 0);
    }

    /// Stores at `base + offset + displacement`.
    pub(super) fn store_at(&mut self, value: Value, base: Value, offset: Value, displacement: i64) {
        let pointer = self.advance(base, offset);
        self.b.ins().store(memory(), value, pointer, displacement as i32);
    }

    // --- floats ------------------------------------------------------------------------------------------------------

    /// A number, in every lane. Vectors are read from the function's pool of constants, where they are used.
    pub(super) fn number(&mut self, width: Width, value: f32) -> Value {
        match width {
            Width::Scalar => self.b.ins().f32const(value),
            Width::Vector => self.pooled(F32X4, value.to_bits()),
        }
    }

    pub(super) fn bits(&mut self, width: Width, value: i32) -> Value {
        match width {
            Width::Scalar => self.b.ins().iconst(I32, i64::from(value)),
            Width::Vector => self.pooled(I32X4, value as u32),
        }
    }

    fn pooled(&mut self, ty: Type, lane: u32) -> Value {
        let lanes = lane.to_le_bytes().repeat(LANES as usize);
        let constant = self.b.func.dfg.constants.insert(ConstantData::from(lanes.as_slice()));
        self.b.ins().vconst(ty, constant)
    }

    /// The value in every lane, if it is one and several are asked for.
    pub(super) fn fit(&mut self, value: Value, width: Width) -> Value {
        if width == Width::Vector && self.b.func.dfg.value_type(value) == F32 {
            self.b.ins().splat(F32X4, value)
        } else {
            value
        }
    }

    pub(super) fn add(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().fadd(a, b)
    }

    pub(super) fn sub(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().fsub(a, b)
    }

    pub(super) fn mul(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().fmul(a, b)
    }

    pub(super) fn div(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().fdiv(a, b)
    }

    /// `if a <condition> b { yes } else { no }`, lane by lane.
    pub(super) fn choose(&mut self, condition: FloatCC, a: Value, b: Value, yes: Value, no: Value) -> Value {
        let mask = self.b.ins().fcmp(condition, a, b);
        if self.b.func.dfg.value_type(yes) == F32 {
            self.b.ins().select(mask, yes, no)
        } else {
            let mask = self.b.ins().bitcast(F32X4, MemFlagsData::new(), mask);
            self.b.ins().bitselect(mask, yes, no)
        }
    }

    pub(super) fn as_int(&mut self, width: Width, value: Value) -> Value {
        self.b.ins().bitcast(width.int(), MemFlagsData::new(), value)
    }

    pub(super) fn as_float(&mut self, width: Width, value: Value) -> Value {
        self.b.ins().bitcast(width.float(), MemFlagsData::new(), value)
    }

    /// The four lanes of a vector, combined in pairs; a scalar is itself.
    pub(super) fn across(
        &mut self,
        value: Value,
        combine: &dyn Fn(&mut Self, Value, Value) -> Value,
    ) -> Value {
        if self.b.func.dfg.value_type(value) == F32 {
            return value;
        }
        let lanes: Vec<_> = (0..LANES as u8).map(|lane| self.b.ins().extractlane(value, lane)).collect();
        let (low, high) = (combine(self, lanes[0], lanes[2]), combine(self, lanes[1], lanes[3]));
        combine(self, low, high)
    }

    /// An unsigned count as f32.
    pub(super) fn count_as_float(&mut self, count: Value) -> Value {
        self.b.ins().fcvt_from_sint(F32, count)
    }

    /// Whether `a < b`, as unsigned numbers.
    pub(super) fn below(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::UnsignedLessThan, a, b)
    }
}
