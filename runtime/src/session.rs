//! Calling: a session owns what one thread needs to run a model again and again. Knows nothing about loading.

use crate::abi::Stage;
use crate::bind::{BindError, Bindings};
use crate::load::Model;
use crate::memory::Buffer;
use crate::profile::Profile;
use crate::program::TensorSpec;
use crate::stage::{self, StageError, Table};
use crate::tensor::{DType, Tensor};

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
    /// A tensor doesn't fit the program, or memory doesn't suffice.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The call failed while it ran.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// What one thread needs to run a model: scratch memory that grows with the largest call and is kept. Make one a thread;
/// several may run at once.
#[derive(Debug)]
pub struct Session {
    model: Model,
    bindings: Bindings,
    /// The addresses of what is loaded; those of inputs and outputs are of the latest call, and set anew by each.
    table: Table,
    arena: Buffer,
    profile: Option<Profile>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        let (bindings, table) = (model.bindings().clone(), model.table());
        let profile = Profile::of(model.program().spec());
        Session { model, bindings, table, arena: Buffer::EMPTY, profile }
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

    /// Runs one call: inputs and live parameters by name in any order, and the outputs with their names in the program's
    /// order.
    ///
    /// # Errors
    /// When an input is missing, unknown, passed twice or doesn't fit, when memory doesn't suffice, or when an id is out
    /// of range.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, CallError> {
        let tensors = self.in_order(inputs)?;
        let spec = self.model.program().spec();
        let names: Vec<String> = spec.outputs.iter().map(|output| output.name.clone()).collect();
        let mut outputs: Vec<Tensor> =
            spec.outputs.iter().map(|output| Tensor::empty(output.dtype)).collect();
        self.run_into(&tensors, &mut outputs)?;
        Ok(names.into_iter().zip(outputs).collect())
    }

    /// Runs one call by position: inputs, then live parameters, and outputs, each in the program's order. The outputs
    /// take on whatever type and shape they need. Once a session and its outputs have seen a call as large, this
    /// allocates nothing.
    ///
    /// When it fails, the outputs are unspecified: as they were, or partly written.
    ///
    /// # Errors
    /// When there are too few or too many tensors, when an input doesn't fit, when memory doesn't suffice, or when an id
    /// is out of range.
    pub fn run_into(&mut self, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<(), CallError> {
        let program = self.model.program();
        let spec = program.spec();
        let expected = spec.arriving(Stage::Call).count();
        if inputs.len() != expected {
            return Err(CallError::InputCount { expected, found: inputs.len() });
        }
        if outputs.len() != spec.outputs.len() {
            return Err(CallError::OutputCount { expected: spec.outputs.len(), found: outputs.len() });
        }
        self.bindings.bind(program, Stage::Call, inputs)?;
        stage::grow_arena(&mut self.arena, spec, Stage::Call, &self.bindings)?;
        for ((binder, _), tensor) in spec.arriving(Stage::Call).zip(inputs) {
            self.table.set_arriving(binder, tensor.address());
        }
        for (index, (output, tensor)) in spec.outputs.iter().zip(outputs).enumerate() {
            // A dim is below u64::MAX here, and `resize` refuses what memory can't hold.
            let shape = self.bindings.shape(output);
            if !tensor.resize(output.dtype, shape.iter().map(|&dim| dim as usize)) {
                return Err(self.no_memory(index).into());
            }
            self.table.set_output(index, tensor.address_mut());
        }
        // SAFETY: the bindings are bound by this call's tensors on top of the loaded ones; the table has the addresses of
        // what the model keeps, of the inputs, borrowed here, and of the outputs, borrowed mutably and resized.
        unsafe {
            let context = self.model.base().context();
            let (arena, profile) = (&mut self.arena, self.profile.as_mut());
            stage::run(program, Stage::Call, &self.bindings, &self.table, arena, context, profile)?;
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
