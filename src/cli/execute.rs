//! Loading weights into a compiled program and calling it once. Knows nothing about files.

use super::error::{CliError, Sought};
use engraft::Compiled;
use engraft::ir::{DType, Stage};
use engraft::runtime::{
    self, BindError, CallError, Context, Model, Rows, Session, StateError, Tensor, Weights,
};
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
        let base = compiled.program.load_base(weights, Arc::clone(context));
        let loaded = base.and_then(|base| base.load_adapter(weights));
        loaded.map_err(|source| CliError::LoadFrom { source: Box::new(source), found: sought.clone() })
    }
}

/// Calls a model with what it takes from these tensors, the items of the batch with these adapters; other tensors are ignored.
/// All its outputs, in the program's order: also those that a session would carry to the next call.
///
/// # Errors
/// A tensor is missing or does not fit.
pub fn call(model: &Model, given: &Weights, rows: &Rows) -> Result<Vec<(String, Tensor)>, CliError> {
    let mut session = session(model, given)?;
    let mut returned = session.run_rows(&arriving(model, given), rows)?.into_iter();
    let spec = model.program().spec();
    let mut outputs = Vec::with_capacity(spec.outputs.len());
    for (index, output) in spec.outputs.iter().enumerate() {
        match spec.carried.iter().find(|carried| carried.output == index) {
            Some(carried) => {
                outputs.push((output.name.clone(), session.carried(&spec.inputs[carried.input].name)?));
            }
            None => outputs.extend(returned.next()),
        }
    }
    Ok(outputs)
}

/// What a call that failed was given wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its tensors.
    Inputs,
    /// The adapters of its rows.
    Rows,
    /// Nothing: there is too little memory, for instance.
    Nothing,
}

impl Fault {
    /// What an error of [`call`] is about.
    pub fn of(error: &CliError) -> Self {
        match error {
            CliError::Call(
                CallError::RowCount { .. } | CallError::ForeignAdapter { .. } | CallError::NotAdaptable,
            ) => Self::Rows,
            CliError::Call(CallError::Bind(BindError::OutOfMemory { .. }))
            | CliError::State(StateError::Bind(BindError::OutOfMemory { .. })) => Self::Nothing,
            CliError::Call(_) | CliError::State(_) => Self::Inputs,
            _ => Self::Nothing,
        }
    }
}

/// A session that carries what these tensors say, or nothing if none of them is of a carried input.
///
/// # Errors
/// Some carried inputs have a tensor and others have none, or one does not fit.
pub fn session(model: &Model, given: &Weights) -> Result<Session, CliError> {
    let spec = model.program().spec();
    let named = |name| Some((name, given.get(name)?.as_ref()));
    let carried = spec.carried.iter().map(|carried| spec.inputs[carried.input].name.as_str());
    let carried: Vec<_> = carried.filter_map(named).collect();
    let mut session = model.session();
    if !carried.is_empty() {
        session.set_carried(&carried)?;
    }
    Ok(session)
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

#[cfg(test)]
mod tests {
    use super::{BindError, CallError, CliError, Execution, Fault, Rows, Sought, Tensor, Weights, call};
    use engraft::compiler::{Options, compile};
    use engraft::import::peft::adaptable;
    use engraft::prelude::{F32, GraphBuilder, dims};
    use engraft::runtime::{Bank, Context};
    use std::sync::Arc;

    #[test]
    fn an_error_is_of_what_caused_it() {
        let g = GraphBuilder::new("layer");
        let x = g.input("x", F32, dims!["batch", 2]);
        g.output("y", x.dense(g.param("fc.weight", F32, dims![3, 2]), None).named("fc"));
        let plain = g.finish().unwrap();
        let weights = Weights::from_iter([("fc.weight", Tensor::f32(&[3, 2], vec![1.0; 6]).unwrap())]);
        let context = Arc::new(Context::new(engraft::runtime::Options::default()).unwrap());
        let [model, other] = [adaptable(&plain).unwrap(), plain].map(|graph| {
            let compiled = compile(&graph, &Options::default()).unwrap();
            let execution = Execution { compiled: &compiled, weights: &weights, sought: &Sought::Nowhere };
            execution.load(&context).unwrap()
        });
        let bank = Bank::new(model.base().clone());
        let rows = |count: usize| bank.rows(&vec![None::<&str>; count]).unwrap();
        let given =
            |rows: usize| Weights::from_iter([("x", Tensor::f32(&[rows, 2], vec![1.0; 2 * rows]).unwrap())]);
        let fault = |error: CliError| (Fault::of(&error), error.to_string());

        assert!(call(&model, &given(3), &rows(3)).is_ok());
        let (of, message) = fault(call(&model, &given(3), &rows(2)).unwrap_err());
        assert_eq!(
            (of, message.as_str()),
            (Fault::Rows, "layer `fc` has 3 items, but adapters are given for 2")
        );
        assert_eq!(fault(call(&other, &given(3), &rows(3)).unwrap_err()).0, Fault::Rows);
        let (of, message) = fault(call(&model, &Weights::new(), &rows(3)).unwrap_err());
        assert_eq!((of, message.contains("`x` is missing")), (Fault::Inputs, true), "{message}");
        let wide = Weights::from_iter([("x", Tensor::f32(&[1, 3], vec![1.0; 3]).unwrap())]);
        assert_eq!(fault(call(&model, &wide, &Rows::default()).unwrap_err()).0, Fault::Inputs);
        let short = CallError::Bind(BindError::OutOfMemory { what: "output `y`".to_owned(), bytes: 1 << 62 });
        assert_eq!(fault(short.into()).0, Fault::Nothing);
    }
}
