//! A loaded program of ours with what it is called with. Knows nothing about what it computes.

use crate::contender::Call;
use crate::error::Error;
use engraft::runtime::abi::Stage;
use engraft::runtime::{DType, Model, Rows, Session, Tensor};

/// It, and a session of its own.
pub struct Loaded<'a> {
    session: Session,
    inputs: Vec<&'a Tensor>,
    rows: Rows,
    output: [Tensor; 1],
}

impl<'a> Loaded<'a> {
    /// A model with one output, and each of its inputs and live parameters by its name.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn new(model: &Model, find: impl Fn(&str) -> Option<&'a Tensor>) -> Result<Self, Error> {
        let arriving = model.program().spec().arriving(Stage::Call);
        let found = arriving.map(|(_, spec)| {
            let missing = || Error::NoArray { name: spec.name.clone(), place: "the workload".to_owned() };
            find(&spec.name).ok_or_else(missing)
        });
        let inputs = found.collect::<Result<_, _>>()?;
        let (session, rows) = (model.session(), Rows::default());
        Ok(Self { session, inputs, rows, output: [Tensor::empty(DType::F32)] })
    }

    /// The same with these adapters on the rows of its batch.
    pub fn with_rows(self, rows: Rows) -> Self {
        Self { rows, ..self }
    }

    /// What it carries from call to call.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Call for Loaded<'_> {
    fn call(&mut self) -> Result<(), Error> {
        Ok(self.session.run_rows_into(&self.inputs, &self.rows, &mut self.output)?)
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        Ok(self.output[0].as_f32()?.to_vec())
    }
}
