//! What can be wrong with a plan's use of memory.

use crate::plan::kernel::Packing;
use crate::plan::{BufferId, Plan};
use engraft_ir::{Bindings, DimError, Stage};
use std::fmt;
use thiserror::Error;

/// A step, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRef {
    /// Its number in the plan.
    pub index: usize,
    /// The graph node that it computes.
    pub name: String,
}

/// A buffer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferRef {
    /// Its number in the plan.
    pub index: usize,
    /// The value it holds.
    pub name: String,
}

impl StepRef {
    pub(super) fn of(plan: &Plan, index: usize) -> Self {
        Self { index, name: plan.steps[index].name.clone() }
    }
}

impl BufferRef {
    pub(super) fn of(plan: &Plan, id: BufferId) -> Self {
        Self { index: id.0, name: plan.buffer(id).name.clone() }
    }
}

impl fmt::Display for StepRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} (`{}`)", self.index, self.name)
    }
}

impl fmt::Display for BufferRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{} (`{}`)", self.index, self.name)
    }
}

/// The matrices that a packed buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The form.
    pub packing: Packing,
    /// How many.
    pub batch: u64,
    /// Outputs of each.
    pub out: u64,
    /// Inputs of each.
    pub k: u64,
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} matrices [{}, {}]", self.packing, self.batch, self.out, self.k)
    }
}

/// One way in which a plan misuses memory.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CheckError {
    /// A step's extent has no value when the step runs.
    #[error("{step} needs an extent that is not known at its stage: {source}")]
    StepExtent {
        /// The step.
        step: StepRef,
        /// The extent.
        source: DimError,
    },
    /// A buffer's size has no value when the buffer is needed.
    #[error("{buffer} has no size at stage {stage}: {source}")]
    BufferExtent {
        /// The buffer.
        buffer: BufferRef,
        /// The stage.
        stage: Stage,
        /// The extent.
        source: DimError,
    },
    /// A slot's size has no value when its stage begins.
    #[error("slot {slot} has no size at stage {stage}: {source}")]
    SlotExtent {
        /// The slot.
        slot: usize,
        /// The stage.
        stage: Stage,
        /// The extent.
        source: DimError,
    },
    /// A buffer does not fit where it lies.
    #[error("{buffer} takes {bytes} bytes, but its place has {place}")]
    TooLarge {
        /// The buffer.
        buffer: BufferRef,
        /// The bytes it takes.
        bytes: u64,
        /// The bytes there are.
        place: u64,
    },
    /// A step has the wrong number of buffers.
    #[error("{step} reads {found} buffers, its kernel {expected}")]
    Operands {
        /// The step.
        step: StepRef,
        /// What the kernel reads.
        expected: usize,
        /// What the step names.
        found: usize,
    },
    /// A loop's access has a stride too few or too many.
    #[error("{step} walks {expected} axes, but access {access} has {found} strides")]
    Axes {
        /// The step.
        step: StepRef,
        /// The access; the written one comes last.
        access: usize,
        /// The axes of the loop.
        expected: usize,
        /// The strides.
        found: usize,
    },
    /// A buffer is used where it has no place: in a stage before its own, as a value of another stage's arena, or
    /// under a number that is another buffer's.
    #[error("{step} uses {buffer}, which has no place at stage {stage}")]
    Absent {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
        /// The stage of the step.
        stage: Stage,
    },
    /// A step writes what is not its own to write.
    #[error("{step} writes {buffer}, which is given or of another stage")]
    NotItsOwn {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
    },
    /// A read or write reaches beyond its buffer.
    #[error("{step} reaches byte {end} of {buffer}, which has {bytes}")]
    Beyond {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
        /// The end of what it touches.
        end: u64,
        /// The bytes of the buffer.
        bytes: u64,
    },
    /// A read of what nothing wrote.
    #[error("{step} reads byte {at} of {buffer}, which nothing has written")]
    Unwritten {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
        /// The first such byte.
        at: u64,
    },
    /// A read of what was written over.
    #[error("{step} reads byte {at} of {buffer}, where {by} lies by then")]
    Clobbered {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
        /// What was written over it.
        by: BufferRef,
        /// The first such byte.
        at: u64,
    },
    /// A step writes over what is carried from call to call.
    #[error("{step} writes byte {at} of what {buffer} carries from call to call")]
    OverwritesCarried {
        /// The step.
        step: StepRef,
        /// The input.
        buffer: BufferRef,
        /// The first byte that it writes.
        at: u64,
    },
    /// A step writes where it reads.
    #[error("{step} writes {write} where it reads {read}")]
    Overlap {
        /// The step.
        step: StepRef,
        /// The buffer read.
        read: BufferRef,
        /// The buffer written.
        write: BufferRef,
    },
    /// A kernel reads as packed what is something else.
    #[error("{step} reads {buffer} as {expected}, found {}", .found.map_or("nothing packed".to_owned(), |p| p.to_string()))]
    NotPacked {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
        /// What the product needs.
        expected: Packed,
        /// What was packed there, if anything.
        found: Option<Packed>,
    },
    /// A packed matrix lies in memory that need not be aligned to lanes.
    #[error("{step} packs {buffer}, which is not aligned to lanes: only arenas and staged values are")]
    Unaligned {
        /// The step.
        step: StepRef,
        /// The buffer.
        buffer: BufferRef,
    },
    /// An epilogue's access 0 or write is not its product's output, element by element.
    #[error("{step} has an epilogue that does not walk the product's output [{rows}, {out}]")]
    Epilogue {
        /// The step.
        step: StepRef,
        /// Rows of the output.
        rows: u64,
        /// Columns of the output.
        out: u64,
    },
    /// A staged value or an output is not whole when its stage ends.
    #[error("byte {at} of {buffer} is not written when stage {stage} ends")]
    Incomplete {
        /// The buffer.
        buffer: BufferRef,
        /// The stage.
        stage: Stage,
        /// The first such byte.
        at: u64,
    },
}

/// What is wrong with a plan, and for which values of its symbols.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("with {}: {}", shown(symbols), errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Unsound {
    /// The values.
    pub symbols: Bindings,
    /// All that is wrong.
    pub errors: Vec<CheckError>,
}

fn shown(symbols: &Bindings) -> String {
    if symbols.is_empty() {
        return "no symbols".to_owned();
    }
    symbols.iter().map(|(symbol, value)| format!("{symbol} = {value}")).collect::<Vec<_>>().join(", ")
}
