//! Loading weights into a compiled program and calling it once. Knows nothing about files.

use super::error::{CliError, Sought};
use engraft::Compiled;
use engraft::ir::{DType, Stage};
use engraft::runtime::{self, Context, Model, Tensor, Weights};
use std::sync::Arc;

/// A program with weights from here.
pub struct Execution<'a> {
    /// The program.
    pub compiled: &'a Compiled,
    /// Values of all parameters that are loaded; others are ignored.
    pub weights: &'a Weights,
    /// Where they were looked for.
    pub sought: &'a Sought,
}

impl Execution<'_> {
    /// Loads base and adapter.
    ///
    /// # Errors
    /// A parameter has no tensor, or a tensor does not fit; the error names both.
    pub fn load(&self, context: &Arc<Context>) -> Result<Model, CliError> {
        let Self { compiled, weights, sought } = *self;
        for param in compiled.graph.params().into_iter().filter(|param| param.stage != Stage::Call) {
            if weights.get(&param.name).is_none() {
                return Err(CliError::NoWeights { param: param.name, ty: param.ty, found: sought.clone() });
            }
        }
        Ok(compiled.program.load_base(weights, Arc::clone(context))?.load_adapter(weights)?)
    }
}

/// Calls a model with what it takes from these tensors; others are ignored.
///
/// # Errors
/// A tensor is missing or does not fit.
pub fn call(model: &Model, given: &Weights) -> Result<Vec<(String, Tensor)>, CliError> {
    Ok(model.run(&arriving(model, given))?)
}

/// Those of these tensors that a call takes, with their names, in the program's order.
pub fn arriving<'a>(model: &'a Model, given: &'a Weights) -> Vec<(&'a str, &'a Tensor)> {
    let arriving = model.program().spec().arriving(runtime::abi::Stage::Call);
    let named = |name: &'a str| Some((name, given.get(name)?.as_ref()));
    arriving.filter_map(|(_, spec)| named(&spec.name)).collect()
}

/// The runtime's element type as the IR's.
pub fn dtype(tensor: &Tensor) -> DType {
    match tensor.dtype() {
        runtime::DType::F32 => DType::F32,
        runtime::DType::I32 => DType::I32,
        runtime::DType::I64 => DType::I64,
    }
}
