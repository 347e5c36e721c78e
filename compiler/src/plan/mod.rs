//! The plan: a program between graph and code. Kernels in order, the buffers they read and write, where each buffer
//! lives, and what is staged. A plan prints, is verified, and is checked by running it on symbols of its own values.
//!
//! It knows no Cranelift. Everything in it is exact for every value of the symbolic dims: sizes and strides are
//! [`Dim`]s, evaluated by compiled code.

mod build;
pub mod check;
mod cost;
mod error;
mod fuse;
mod items;
pub mod kernel;
pub mod merge_cost;
mod merges;
mod print;
pub mod roofline;
mod storage;
mod verify;

pub use build::{PlanOptions, plan};
pub use cost::Cost;
pub use error::PlanError;
pub use verify::{PlanInvariant, verify};

use engraft_ir::{Dim, Stage, Symbol, TensorType};
use kernel::{Kernel, Linear};

/// A buffer's number in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub usize);

/// A slot's number in the arena of its stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub usize);

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The caller's memory: the input of this number.
    Input(usize),
    /// The weights' memory: the parameter of this number.
    Param(usize),
    /// Held by the runtime from the stage that computes it on: the staged value of this number.
    Staged(usize),
    /// The caller's memory: the output of this number.
    Output(usize),
    /// The code's own read-only data: the constant of this number.
    Constant(usize),
    /// Scratch of the stage that computes it.
    Arena(SlotId),
}

/// A contiguous, row-major block of memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// The graph node whose value it holds, or what was made of it.
    pub name: String,
    /// What it holds. Panels are `f32[floats]`.
    pub ty: TensorType,
    /// When it is written, or given.
    pub stage: Stage,
    /// Where it lives.
    pub storage: Storage,
}

/// One kernel on its buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// When it runs.
    pub stage: Stage,
    /// The graph node that it computes, for people.
    pub name: String,
    /// What it does.
    pub kernel: Kernel,
    /// What it reads, in the kernel's order.
    pub reads: Vec<BufferId>,
    /// What it writes, whole or (the parts of a concatenation) in part.
    pub write: BufferId,
}

/// A symbol, and what binds it.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundSymbol {
    /// The symbol.
    pub symbol: Symbol,
    /// When it is known.
    pub stage: Stage,
    /// The input or parameter that binds it.
    pub buffer: BufferId,
    /// The axis that it is.
    pub axis: usize,
}

/// An input that a session keeps from call to call, and the output that it becomes: one piece of memory, in which the
/// input is the beginning of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The input's number.
    pub input: usize,
    /// The output's number.
    pub output: usize,
}

/// The constants' elements.
pub type ConstantData = engraft_ir::ops::Elements;

/// A planned program.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The graph's name.
    pub name: String,
    /// The symbols, in the order in which compiled code receives them.
    pub symbols: Vec<BoundSymbol>,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// All steps: base, then adapter, then call, each stage in the order it runs in.
    pub steps: Vec<Step>,
    /// The inputs, in order.
    pub inputs: Vec<BufferId>,
    /// The parameters, in order.
    pub params: Vec<BufferId>,
    /// The staged values, in order.
    pub staged: Vec<BufferId>,
    /// The outputs: name and buffer, in order.
    pub outputs: Vec<(String, BufferId)>,
    /// What is carried from call to call.
    pub carried: Vec<Carried>,
    /// The symbol, by its number, of a batch that may be run in slices: it leads the inputs and outputs that have it, and
    /// each item of the outputs is computed from that item of the inputs alone.
    pub items: Option<usize>,
    /// The constants, in order.
    pub constants: Vec<ConstantData>,
    /// The arena of each of [`STAGES`]: the bytes of each slot.
    pub arenas: [Vec<Dim>; 3],
    /// Whether the code tells the runtime when each step ends. Without, nothing of the kind is emitted.
    pub profiled: bool,
}

/// The stages that run code, in order.
pub const STAGES: [Stage; 3] = [Stage::Base, Stage::Adapter, Stage::Call];

/// The index of a stage in [`STAGES`]; what is known at compile time runs with the base.
pub fn stage_index(stage: Stage) -> usize {
    match stage {
        Stage::Compile | Stage::Base => 0,
        Stage::Adapter => 1,
        Stage::Call => 2,
    }
}

impl Plan {
    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }

    /// The layers that a bank may put adapters on, in the order in which code numbers them: the step and its kernel.
    pub fn adaptable(&self) -> impl Iterator<Item = (usize, &Step, &Linear)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match &step.kernel {
            Kernel::Linear(linear) if linear.adaptable.is_some() => Some((index, step, linear)),
            _ => None,
        })
    }

    /// The bytes of a stage's arena, in which values whose lifetimes do not meet share slots; beside them those of all values
    /// in it, which would be needed if none did. Without the padding of slots to whole cache lines.
    pub fn scratch(&self, stage: Stage) -> (Dim, Dim) {
        let sum = |bytes: &mut dyn Iterator<Item = Dim>| bytes.fold(Dim::fixed(0), |sum, bytes| sum + bytes);
        let in_arena = self.buffers.iter().filter(|buffer| {
            matches!(buffer.storage, Storage::Arena(_)) && stage_index(buffer.stage) == stage_index(stage)
        });
        let slots = &self.arenas[stage_index(stage)];
        (sum(&mut slots.iter().cloned()), sum(&mut in_arena.map(Buffer::bytes)))
    }

    /// The steps of one stage.
    pub fn steps_at(&self, stage: Stage) -> impl Iterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().filter(move |(_, step)| step.stage == stage)
    }
}

impl Buffer {
    /// The bytes it takes.
    pub fn bytes(&self) -> Dim {
        self.ty.shape.elements() * self.ty.dtype.bytes()
    }
}
