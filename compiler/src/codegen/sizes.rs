//! What depends on the symbols, as code: the extents of every tensor and the bytes of every staged value and arena, in
//! one flat vector whose layout is decided here. The runtime needs no symbolic arithmetic.

use super::emit::{Emit, memory};
use crate::plan::{BufferId, Plan};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::Dim;
use engraft_runtime::abi::ALIGNMENT;

/// Where things stand in the vector of sizes.
pub(super) struct SizesLayout {
    /// The entries, in order.
    entries: Vec<Entry>,
}

enum Entry {
    Extent(Dim),
    /// The sum of these, each rounded up to whole cache lines.
    Bytes(Vec<Dim>),
}

impl SizesLayout {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Adds the extents of a buffer; returns where they begin.
    pub(super) fn extents(&mut self, plan: &Plan, buffer: BufferId) -> usize {
        let at = self.entries.len();
        self.entries.extend(plan.buffer(buffer).ty.shape.iter().cloned().map(Entry::Extent));
        at
    }

    /// Adds extents; returns where they begin.
    pub(super) fn each(&mut self, extents: [&Dim; 4]) -> usize {
        let at = self.entries.len();
        self.entries.extend(extents.map(Clone::clone).map(Entry::Extent));
        at
    }

    /// Adds the bytes of blocks that follow each other; returns where they are.
    pub(super) fn bytes(&mut self, blocks: Vec<Dim>) -> usize {
        self.entries.push(Entry::Bytes(blocks));
        self.entries.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn dims(&self) -> impl Iterator<Item = &Dim> {
        self.entries.iter().flat_map(|entry| match entry {
            Entry::Extent(dim) => std::slice::from_ref(dim),
            Entry::Bytes(blocks) => blocks.as_slice(),
        })
    }
}

impl Emit<'_, '_> {
    /// Writes every entry.
    pub(super) fn write_sizes(&mut self, layout: &SizesLayout, sizes: Value) {
        for (index, entry) in layout.entries.iter().enumerate() {
            let value = match entry {
                Entry::Extent(dim) => self.saturating_dim(dim),
                Entry::Bytes(blocks) => {
                    let mut sum: Option<Value> = None;
                    for block in blocks {
                        let bytes = self.saturating_dim(block);
                        let bytes = self.saturating_round_up(bytes);
                        sum = Some(sum.map_or(bytes, |sum| self.saturating_add(sum, bytes)));
                    }
                    sum.unwrap_or_else(|| self.int(0))
                }
            };
            self.b.ins().store(memory(), value, sizes, 8 * index as i32);
        }
    }

    /// The value of a dim, or `u64::MAX` if it overflows.
    fn saturating_dim(&mut self, dim: &Dim) -> Value {
        let mut sum: Option<Value> = None;
        for (coefficient, product) in dim.terms() {
            let mut term = (coefficient != 1 || product.is_empty()).then(|| self.int(coefficient as i64));
            for symbol in product {
                let value = self.symbol(symbol);
                term = Some(term.map_or(value, |term| self.saturating_mul(term, value)));
            }
            sum = match (sum, term) {
                (Some(sum), Some(term)) => Some(self.saturating_add(sum, term)),
                (sum, term) => sum.or(term),
            };
        }
        sum.unwrap_or_else(|| self.int(0))
    }

    fn saturating_mul(&mut self, a: Value, b: Value) -> Value {
        let high = self.b.ins().umulhi(a, b);
        let low = self.b.ins().imul(a, b);
        let max = self.int(-1);
        self.b.ins().select(high, max, low)
    }

    fn saturating_add(&mut self, a: Value, b: Value) -> Value {
        let sum = self.b.ins().iadd(a, b);
        let overflows = self.below(sum, a);
        let max = self.int(-1);
        self.b.ins().select(overflows, max, sum)
    }

    /// Bytes rounded up to whole cache lines, or `u64::MAX`.
    fn saturating_round_up(&mut self, bytes: Value) -> Value {
        let last = self.int(ALIGNMENT as i64 - 1);
        let up = self.saturating_add(bytes, last);
        let rounded = self.b.ins().band_imm_s(up, -(ALIGNMENT as i64));
        let is_max = self.b.ins().icmp_imm_s(IntCC::Equal, up, -1);
        self.b.ins().select(is_max, up, rounded)
    }

    /// Bytes rounded up to whole cache lines; the runtime has checked that they do not overflow.
    fn round_up(&mut self, bytes: Value) -> Value {
        let up = self.b.ins().iadd_imm_s(bytes, ALIGNMENT as i64 - 1);
        self.b.ins().band_imm_s(up, -(ALIGNMENT as i64))
    }

    /// Where each slot of a stage's arena begins, in bytes.
    pub(super) fn slot_offsets(&mut self, slots: &[Dim]) -> Vec<Value> {
        let mut end = self.int(0);
        let mut offsets = Vec::with_capacity(slots.len());
        for slot in slots {
            offsets.push(end);
            let bytes = self.dim(slot);
            let bytes = self.round_up(bytes);
            end = self.b.ins().iadd(end, bytes);
        }
        offsets
    }
}
