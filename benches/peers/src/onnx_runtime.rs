//! ONNX Runtime, called within this process through the shared library in its wheel. It is given the merged weights as
//! constants, every optimisation it has, and buffers bound once.

use crate::contender::Call;
use crate::error::Error;
use engraft::runtime::{DType, Tensor};
use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, Session};
use ort::value;
use std::path::Path;

/// The library.
pub struct OnnxRuntime {
    environment: Environment,
}

/// A model with its buffers.
pub struct OnnxModel {
    session: Session,
    binding: IoBinding,
    /// What `binding` writes to; both share the memory.
    output: value::Tensor<f32>,
}

fn failed<E: std::fmt::Display>(error: E) -> Error {
    Error::OnnxRuntime(error.to_string())
}

impl OnnxRuntime {
    /// Loads the library.
    ///
    /// # Errors
    /// It is none, or of a version that has not the interface this is written for.
    pub fn open(library: &Path) -> Result<Self, Error> {
        let environment = ort::init_from(library).map_err(failed)?.build().map_err(failed)?;
        Ok(Self { environment })
    }

    /// Loads a model that takes these inputs, of f32 or i64, and gives `y` of the shape `output`.
    ///
    /// # Errors
    /// The library refuses the model.
    pub fn load(
        &self,
        model: &Path,
        threads: usize,
        inputs: &[(&str, &Tensor)],
        output: &[usize],
    ) -> Result<OnnxModel, Error> {
        let session = Session::builder(&self.environment)
            .map_err(failed)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(failed)?
            .with_intra_threads(threads)
            .map_err(failed)?
            .commit_from_file(model)
            .map_err(failed)?;
        let mut binding = session.create_binding().map_err(failed)?;
        for &(name, input) in inputs {
            let shape = input.shape().to_vec();
            if input.dtype() == DType::I64 {
                let ids = value::Tensor::from_array((shape, input.as_i64()?.to_vec())).map_err(failed)?;
                binding.bind_input(name, &ids).map_err(failed)?;
            } else {
                let floats = value::Tensor::from_array((shape, input.as_f32()?.to_vec())).map_err(failed)?;
                binding.bind_input(name, &floats).map_err(failed)?;
            }
        }
        let mut output = value::Tensor::<f32>::new(&Allocator::default(), output.to_vec()).map_err(failed)?;
        binding.bind_output("y", &mut output).map_err(failed)?;
        Ok(OnnxModel { session, binding, output })
    }
}

impl Call for OnnxModel {
    fn call(&mut self) -> Result<(), Error> {
        self.session.run_binding(&self.binding).map_err(failed)?;
        Ok(())
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        let (_, elements) = self.output.try_extract_tensor::<f32>().map_err(failed)?;
        Ok(elements.to_vec())
    }
}
