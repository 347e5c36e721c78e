//! The one door into compiled code: builds a frame, runs a stage, and tells what it found. Knows nothing about where its
//! buffers come from.

use crate::abi::{Fault, Frame, Stage};
use crate::arriving::Arriving;
use crate::bank::Runs;
use crate::bind::{BindError, Bindings};
use crate::context::Context;
use crate::memory::Buffer;
use crate::profile::Profile;
use crate::program::{Binder, Program, ProgramSpec};

/// What compiled code found wrong while it ran.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// An id that selects nothing.
    #[error("{step}: id {found} is out of range, expected 0..{limit}")]
    IdOutOfRange {
        /// The step that found it.
        step: String,
        /// The id.
        found: i64,
        /// How many ids there are.
        limit: u64,
    },
}

/// The table of a frame's buffers: the addresses of inputs, params, staged values and outputs. Those of params that no
/// stage reads any more are null; for a param that is only packed it has the tensor's [handle](crate::Tensor::handle).
#[derive(Debug)]
pub(crate) struct Table {
    addresses: Vec<*mut u8>,
    params_at: usize,
    staged_at: usize,
    outputs_at: usize,
    /// The weights of a load stage, none in a call.
    arriving: Arriving,
}

// SAFETY: a table only carries addresses; whoever enters a stage with it vouches for them.
unsafe impl Send for Table {}

impl Table {
    /// A table without addresses.
    pub(crate) fn new(spec: &ProgramSpec) -> Table {
        let params_at = spec.inputs.len();
        let staged_at = params_at + spec.params.len();
        let outputs_at = staged_at + spec.staged.len();
        let addresses = vec![std::ptr::null_mut(); outputs_at + spec.outputs.len()];
        Table { addresses, params_at, staged_at, outputs_at, arriving: Arriving::NONE }
    }

    pub(crate) fn set_arriving(&mut self, tensor: Binder, address: *mut u8) {
        let index = match tensor {
            Binder::Input(index) => index,
            Binder::Param(index) => self.params_at + index,
        };
        self.addresses[index] = address;
    }

    /// Packs these weights where they are stored in another form, and lets go of each once it is packed.
    pub(crate) fn pack_as_they_arrive(&mut self, arriving: Arriving) {
        self.arriving = arriving;
    }

    /// The address of an input or parameter.
    pub(crate) fn arriving(&self, tensor: Binder) -> *mut u8 {
        match tensor {
            Binder::Input(index) => self.addresses[index],
            Binder::Param(index) => self.addresses[self.params_at + index],
        }
    }

    /// The address of an output.
    pub(crate) fn output(&self, index: usize) -> *mut u8 {
        self.addresses[self.outputs_at + index]
    }

    pub(crate) fn set_staged(&mut self, index: usize, address: *mut u8) {
        self.addresses[self.staged_at + index] = address;
    }

    pub(crate) fn set_output(&mut self, index: usize, address: *mut u8) {
        self.addresses[self.outputs_at + index] = address;
    }
}

/// Makes `arena` large enough for a stage, and if there is memory, as large as `roomy` says. Allocates only when it isn't
/// large enough.
pub(crate) fn grow_arena(
    arena: &mut Buffer,
    spec: &ProgramSpec,
    stage: Stage,
    bindings: &Bindings,
    roomy: impl FnOnce() -> usize,
) -> Result<(), BindError> {
    let what = || format!("the {stage} arena");
    let bytes = bindings.bytes(spec, spec.arena_at[stage as usize], what)?;
    if bytes > arena.bytes() {
        // The old one first, so that the two needn't fit together.
        *arena = Buffer::EMPTY;
        *arena = Buffer::zeroed(bytes.max(roomy()))
            .or_else(|| Buffer::zeroed(bytes))
            .ok_or_else(|| BindError::OutOfMemory { what: what(), bytes: bytes as u64 })?;
    }
    Ok(())
}

/// Runs one stage.
///
/// # Safety
/// `bindings` is bound up to `stage`; `table` has the address of every tensor and staged value known and still read at
/// that stage (or the handle, where the tensor is one of its arriving weights and only packed), of this stage's staged values and, for a call, of the outputs, each as large as `bindings` says; what the stage writes
/// is read or written by nobody else meanwhile; `arena` is large enough for it; of `adapters`, each fits the program and is
/// alive, their items are as many as every adaptable layer's, and there is room for each.
pub(crate) unsafe fn run(
    program: &Program,
    stage: Stage,
    bindings: &Bindings,
    table: &Table,
    arena: &mut Buffer,
    (context, adapters): (&Context, Option<&Runs>),
    mut profile: Option<&mut Profile>,
) -> Result<(), StageError> {
    if let Some(profile) = profile.as_deref_mut() {
        profile.start();
    }
    let mut fault = Fault::default();
    let frame = Frame {
        dims: bindings.dims.as_ptr(),
        buffers: table.addresses.as_ptr(),
        arena: arena.address(),
        context: std::ptr::from_ref(context),
        fault: &raw mut fault,
        profile: profile.map_or(std::ptr::null_mut(), std::ptr::from_mut),
        adapters: adapters.map_or(std::ptr::null(), std::ptr::from_ref),
        arriving: &raw const table.arriving,
    };
    // SAFETY: the frame is what `Code::new` says a stage relies on, by this function's own contract.
    let status = unsafe { (program.code().stages[stage as usize])(&raw const frame) };
    if status == 0 {
        return Ok(());
    }
    let step = program.spec().steps.get(fault.step as usize);
    let step = step.map_or_else(|| format!("step {}", fault.step), String::clone);
    Err(StageError::IdOutOfRange { step, found: fault.found, limit: fault.limit })
}
