//! OpenVINO, called within this process through the shared library in its wheel. It is given the merged weights as
//! constants, its settings for latency, and buffers set once.

use crate::contender::Call;
use crate::error::Error;
use engraft::runtime::{DType, Tensor};
use openvino::{Core, DeviceType, ElementType, InferRequest, RwPropertyKey, Shape};
use std::path::Path;

/// The library.
pub struct OpenVino {
    core: Core,
}

/// A model with its buffers.
pub struct OpenVinoModel {
    request: InferRequest,
    output: openvino::Tensor,
}

fn failed<E: std::fmt::Display>(error: E) -> Error {
    Error::OpenVino(error.to_string())
}

fn shape(dims: &[usize]) -> Result<Shape, Error> {
    Shape::new(&dims.iter().map(|&dim| dim as i64).collect::<Vec<_>>()).map_err(failed)
}

impl OpenVino {
    /// Loads the library, `libopenvino_c.so`.
    ///
    /// # Errors
    /// It is none, or too old.
    pub fn open(library: &Path) -> Result<Self, Error> {
        openvino_sys::library::load_from(library).map_err(failed)?;
        Ok(Self { core: Core::new().map_err(failed)? })
    }

    /// Loads a model that takes these inputs, of f32 or i64, and gives one output of the shape `output`.
    ///
    /// # Errors
    /// The library refuses the model.
    pub fn load(
        &mut self,
        model: &Path,
        threads: usize,
        inputs: &[(&str, &Tensor)],
        output: &[usize],
    ) -> Result<OpenVinoModel, Error> {
        let threads = threads.to_string();
        let properties = [
            (RwPropertyKey::HintPerformanceMode, "LATENCY"),
            (RwPropertyKey::NumStreams, "1"),
            (RwPropertyKey::InferenceNumThreads, threads.as_str()),
            // Without it, a CPU that multiplies bf16 faster would do so, and be right to three digits only.
            (RwPropertyKey::HintInferencePrecision, "f32"),
            // Threads bound to cores would stay bound when the others have their turns.
            (RwPropertyKey::HintEnableCpuPinning, "NO"),
        ];
        self.core.set_properties(&DeviceType::CPU, properties).map_err(failed)?;
        let model = self.core.read_model_from_file(&model.to_string_lossy(), "").map_err(failed)?;
        let mut compiled = self.core.compile_model(&model, DeviceType::CPU).map_err(failed)?;
        let mut request = compiled.create_infer_request().map_err(failed)?;

        for (name, input) in inputs {
            let tensor = |kind| openvino::Tensor::new(kind, &shape(input.shape())?).map_err(failed);
            let tensor = if input.dtype() == DType::I64 {
                let mut ids = tensor(ElementType::I64)?;
                ids.get_data_mut::<i64>().map_err(failed)?.copy_from_slice(input.as_i64()?);
                ids
            } else {
                let mut floats = tensor(ElementType::F32)?;
                floats.get_data_mut::<f32>().map_err(failed)?.copy_from_slice(input.as_f32()?);
                floats
            };
            request.set_tensor(name, &tensor).map_err(failed)?;
        }
        let output = openvino::Tensor::new(ElementType::F32, &shape(output)?).map_err(failed)?;
        request.set_output_tensor(&output).map_err(failed)?;
        Ok(OpenVinoModel { request, output })
    }
}

impl Call for OpenVinoModel {
    fn call(&mut self) -> Result<(), Error> {
        self.request.infer().map_err(failed)
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        Ok(self.output.get_data::<f32>().map_err(failed)?.to_vec())
    }
}
