//! Calling: a session owns what one thread needs to run a model again and again. Knows nothing about loading.

use crate::abi::Stage;
use crate::bank::{Adapter, Rows, Runs};
use crate::bind::{BindError, Bindings, no_floats};
use crate::load::Model;
use crate::memory::Buffer;
use crate::profile::Profile;
use crate::program::{Binder, ProgramSpec, TensorSpec};
use crate::slices::Slices;
use crate::stage::{self, StageError, Table};
use crate::state::{State, StateError};
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// Why a call can't be run. Everything but ids is checked before compiled code is entered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// An input or live parameter wasn't passed.
    #[error("`{name}` is missing, which must be {expected}")]
    MissingInput {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
    },
    /// The program takes no such input.
    #[error("there is no input `{name}`; the inputs are {}", .inputs.join(", "))]
    UnknownInput {
        /// The name passed.
        name: String,
        /// The inputs and live parameters there are.
        inputs: Vec<String>,
    },
    /// An input was passed twice.
    #[error("`{name}` is passed twice")]
    DuplicateInput {
        /// The tensor.
        name: String,
    },
    /// Too few tensors or too many in a call by position.
    #[error("the call takes {expected} inputs and live parameters, found {found}")]
    InputCount {
        /// How many the program takes.
        expected: usize,
        /// How many were passed.
        found: usize,
    },
    /// Too few outputs or too many in a call by position.
    #[error("the call gives {expected} outputs, found {found}")]
    OutputCount {
        /// How many the program gives.
        expected: usize,
        /// How many were passed.
        found: usize,
    },
    /// Adapters for another number of items than the batch has.
    #[error("layer `{module}` has {expected} items, but adapters are given for {found}")]
    RowCount {
        /// The adaptable layer.
        module: String,
        /// Items of its batch.
        expected: u64,
        /// How many were given an adapter, or none of it.
        found: usize,
    },
    /// An adapter that was loaded onto another base.
    #[error("the adapter of item {item} was loaded onto another base than the one that is called")]
    ForeignAdapter {
        /// The item of the batch.
        item: usize,
    },
    /// Adapters for a program that has nothing to put them on.
    #[error("adapters are given, but the program has no adaptable layers")]
    NotAdaptable,
    /// A tensor doesn't fit the program, or memory doesn't suffice.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The call failed while it ran.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// What one thread needs to run a model: scratch memory that grows with the largest call and is kept, and what the model
/// carries from call to call, such as a decoder's keys and values. Make one a thread, and one for each sequence of calls
/// that belong together; several may run at once.
///
/// What is carried is neither passed nor handed out: it is empty before the first call, and after each call what the
/// output that appends to it was. A call that fails leaves it as it was. [`carried`](Self::carried) looks at it,
/// [`truncate`](Self::truncate) and [`reset`](Self::reset) roll it back, [`set_carried`](Self::set_carried) begins
/// with something else.
#[derive(Debug)]
pub struct Session {
    model: Model,
    bindings: Bindings,
    /// The addresses of what is loaded; those of inputs and outputs are of the latest call, and set anew by each.
    table: Table,
    arena: Buffer,
    state: State,
    runs: Runs,
    /// The bindings of a slice of the batch.
    slice: Bindings,
    profile: Option<Profile>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        let (bindings, table) = (model.bindings().clone(), model.table());
        let slice = bindings.clone();
        let spec = model.program().spec();
        let (state, profile) = (State::new(spec), Profile::of(spec));
        Session { model, bindings, table, arena: Buffer::EMPTY, state, runs: Runs::new(), slice, profile }
    }

    /// The model it runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What the steps of this session's calls have taken so far, if the program was compiled to tell. A call that fails
    /// adds the steps that ended before it did.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// The rows carried, of the longest tensor if they differ; 0 before the first call, and where nothing is carried.
    pub fn carried_len(&self) -> usize {
        self.state.len()
    }

    /// A copy of what is carried for the input of this name: its shape, rows first, and its elements.
    ///
    /// # Errors
    /// When no such input is carried, or memory doesn't suffice.
    pub fn carried(&self, name: &str) -> Result<Tensor, StateError> {
        self.state.copy(self.model.program().spec(), name)
    }

    /// Makes these tensors what is carried: every carried input by name, in any order. If one doesn't fit, everything
    /// stays as it was.
    ///
    /// # Errors
    /// When a tensor is missing, unknown, given twice or doesn't fit the program or the others, or memory doesn't suffice.
    pub fn set_carried(&mut self, tensors: &[(&str, &Tensor)]) -> Result<(), StateError> {
        self.state.set(self.model.program().spec(), self.model.bindings(), tensors)
    }

    /// Forgets what is carried, but not the memory it takes.
    pub fn reset(&mut self) {
        self.state.reset();
    }

    /// Rolls back: keeps the first rows of everything that is carried.
    ///
    /// # Errors
    /// When a carried tensor has fewer; then everything stays as it was.
    pub fn truncate(&mut self, rows: usize) -> Result<(), StateError> {
        self.state.truncate(self.model.program().spec(), rows)
    }

    /// Has the next call make room for so many rows in all of what is carried, and for the scratch of a call that ends
    /// with as many: until then, calls that take no more otherwise than the one before allocate nothing.
    pub fn reserve(&mut self, rows: usize) {
        self.state.reserve(rows);
    }

    /// Runs one call: inputs and live parameters by name in any order, and the outputs with their names in the program's
    /// order; neither includes what is carried.
    ///
    /// # Errors
    /// When an input is missing, unknown, passed twice or doesn't fit, when memory doesn't suffice, or when an id is out
    /// of range.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, CallError> {
        self.run_rows(inputs, &Rows::default())
    }

    /// As [`run`](Self::run), each item of the batch with its own adapter, or none. A row's result is the same to the last
    /// bit whatever adapters its neighbours have.
    ///
    /// # Errors
    /// As [`run`](Self::run); also when there are adapters for another number of items, or adapters of another base.
    pub fn run_rows(
        &mut self,
        inputs: &[(&str, &Tensor)],
        rows: &Rows,
    ) -> Result<Vec<(String, Tensor)>, CallError> {
        let tensors = self.in_order(inputs)?;
        let spec = self.model.program().spec();
        let names: Vec<String> = spec.returned().map(|(_, output)| output.name.clone()).collect();
        let mut outputs: Vec<Tensor> =
            spec.returned().map(|(_, output)| Tensor::empty(output.dtype)).collect();
        self.run_rows_into(&tensors, rows, &mut outputs)?;
        Ok(names.into_iter().zip(outputs).collect())
    }

    /// Runs one call by position: inputs, then live parameters, and outputs, each in the program's order and without what
    /// is carried (see [`ProgramSpec::arriving`](crate::ProgramSpec::arriving) and
    /// [`ProgramSpec::returned`](crate::ProgramSpec::returned)). The outputs take on whatever type and shape they need. Once a session and its outputs have seen a call as large, this
    /// allocates nothing.
    ///
    /// When it fails, the outputs are unspecified: as they were, or partly written.
    ///
    /// # Errors
    /// When there are too few or too many tensors, when an input doesn't fit, when memory doesn't suffice, or when an id
    /// is out of range.
    pub fn run_into(&mut self, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<(), CallError> {
        self.run_rows_into(inputs, &Rows::default(), outputs)
    }

    /// As [`run_into`](Self::run_into), with adapters as [`run_rows`](Self::run_rows) has them.
    ///
    /// # Errors
    /// As both.
    pub fn run_rows_into(
        &mut self,
        inputs: &[&Tensor],
        rows: &Rows,
        outputs: &mut [Tensor],
    ) -> Result<(), CallError> {
        let program = self.model.program();
        let spec = program.spec();
        let expected = spec.arriving(Stage::Call).count();
        if inputs.len() != expected {
            return Err(CallError::InputCount { expected, found: inputs.len() });
        }
        let expected = spec.returned().count();
        if outputs.len() != expected {
            return Err(CallError::OutputCount { expected, found: outputs.len() });
        }
        self.bindings.bind(program, Stage::Call, inputs, Some(&self.state))?;
        check_adapters(rows, &self.model, &self.bindings)?;
        for ((binder, input), tensor) in spec.arriving(Stage::Call).zip(inputs) {
            let address = tensor.address().ok_or_else(|| no_floats(&input.name, tensor))?;
            self.table.set_arriving(binder, address);
        }
        for ((index, output), tensor) in spec.returned().zip(outputs) {
            // A dim is below u64::MAX here, and `resize` refuses what memory can't hold.
            let shape = self.bindings.shape(output);
            if !tensor.resize(output.dtype, shape.iter().map(|&dim| dim as usize)) {
                return Err(self.no_memory(index).into());
            }
            self.table.set_output(index, tensor.address_mut());
        }
        for (index, carried) in spec.carried.iter().enumerate() {
            let shape = self.bindings.shape(&spec.outputs[carried.output]);
            let address = self.state.room(index, &spec.inputs[carried.input], shape)?;
            self.table.set_arriving(Binder::Input(carried.input), address);
            self.table.set_output(carried.output, address);
        }
        // SAFETY: the bindings are bound by this call's tensors on top of the loaded ones; the table has the addresses of
        // what the model keeps, of the inputs, borrowed here, of the outputs, borrowed mutably and resized, and of what is
        // carried, which is this session's own and has room for what it becomes; `rows` keeps the adapters, which have been
        // checked.
        unsafe { self.run_slices(rows)? };
        let spec = self.model.program().spec();
        for (index, carried) in spec.carried.iter().enumerate() {
            self.state.commit(index, self.bindings.shape(&spec.outputs[carried.output]));
        }
        Ok(())
    }

    /// Runs the call on all items, or, where the batch is large, on slices of it that leave more of it in the caches. What is
    /// reported of several faults is the first slice's.
    ///
    /// # Safety
    /// The bindings are those of a call, the table has the addresses of its tensors, and the adapters of `rows` are alive.
    unsafe fn run_slices(&mut self, rows: &Rows) -> Result<(), CallError> {
        let Self { model, bindings, table, arena, state, runs, slice, profile } = self;
        let (program, on) = (model.program(), &**model.base().context());
        let spec = program.spec();
        let slices = Slices::of(spec, bindings, on.workers.threads());
        let mut at = 0;
        for items in slices.ranges(rows.len()) {
            if let Some(batch) = slices.batch {
                slice.slice_of(bindings, program, batch.symbol, items.len() as u64);
                batch.advance(spec, bindings, table, items.start - at);
                at = items.start;
            }
            let bindings = if slices.batch.is_some() { &*slice } else { &*bindings };
            let roomy = || {
                let (at, rows) =
                    (spec.arena_at[Stage::Call as usize], |index, rows| state.rows_to_come(index, rows));
                bindings.bytes_with_rows(program, at, rows).unwrap_or(0)
            };
            stage::grow_arena(arena, spec, Stage::Call, bindings, roomy)?;
            take_adapters(runs, rows, items, spec, bindings)?;
            let adapters = Some(&*runs).filter(|runs| !runs.are_bare());
            // SAFETY: as the caller's; a slice's tensors are those items of the call's.
            unsafe {
                stage::run(program, Stage::Call, bindings, table, arena, (on, adapters), profile.as_mut())?;
            }
        }
        Ok(())
    }

    /// The tensors passed by name, in the program's order.
    fn in_order<'t>(&self, inputs: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, CallError> {
        let spec = self.model.program().spec();
        for (index, (name, _)) in inputs.iter().enumerate() {
            if !spec.arriving(Stage::Call).any(|(_, known)| known.name == *name) {
                let known = spec.arriving(Stage::Call).map(|(_, known)| known.name.clone());
                return Err(CallError::UnknownInput { name: (*name).to_owned(), inputs: known.collect() });
            }
            if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(CallError::DuplicateInput { name: (*name).to_owned() });
            }
        }
        let find = |expected: &TensorSpec| {
            let passed = inputs.iter().find(|(name, _)| *name == expected.name).map(|(_, tensor)| *tensor);
            passed.ok_or_else(|| CallError::MissingInput {
                name: expected.name.clone(),
                expected: expected.display.clone(),
            })
        };
        spec.arriving(Stage::Call).map(|(_, expected)| find(expected)).collect()
    }

    /// Why there is no memory for an output: because none could be enough, or because this machine hasn't as much.
    fn no_memory(&self, output: usize) -> BindError {
        let spec = self.model.program().spec();
        let output = &spec.outputs[output];
        let what = format!("output `{}`", output.name);
        let element = DType::bytes(output.dtype) as u64;
        match self.bindings.shape(output).iter().try_fold(element, |bytes, &dim| bytes.checked_mul(dim)) {
            Some(bytes) if isize::try_from(bytes).is_ok() => BindError::OutOfMemory { what, bytes },
            _ => self.bindings.too_large(spec, what),
        }
    }
}

/// Checks a call's adapters.
fn check_adapters(rows: &Rows, model: &Model, bindings: &Bindings) -> Result<(), CallError> {
    let adaptable = &model.program().spec().adaptable;
    if rows.is_empty() {
        return Ok(());
    }
    if adaptable.is_empty() {
        return Err(CallError::NotAdaptable);
    }
    let is_foreign = |adapter: &Adapter| !adapter.base().is(model.base());
    if let Some(item) = rows.iter().position(|adapter| adapter.is_some_and(|adapter| is_foreign(adapter))) {
        return Err(CallError::ForeignAdapter { item });
    }
    for layer in adaptable {
        let items = bindings.sizes[layer.extents_at];
        if items != rows.len() as u64 {
            let (module, expected, found) = (layer.module.clone(), items, rows.len());
            return Err(CallError::RowCount { module, expected, found });
        }
    }
    Ok(())
}

/// Takes the adapters of these items and makes room for what they compute.
fn take_adapters(
    runs: &mut Runs,
    rows: &Rows,
    items: Range<usize>,
    spec: &ProgramSpec,
    bindings: &Bindings,
) -> Result<(), BindError> {
    runs.take(rows, items);
    if runs.are_bare() {
        return Ok(());
    }
    for (index, layer) in spec.adaptable.iter().enumerate() {
        let [items, item_rows] = [0, 1].map(|at| bindings.sizes[layer.extents_at + at] as usize);
        // SAFETY: `rows` has just been taken, and keeps its adapters.
        unsafe { runs.reserve(index, items.saturating_mul(item_rows))? };
    }
    Ok(())
}
