//! all-MiniLM-L6-v2 with a bank, on one thread, and calls of it. Knows nothing about what is measured.

use crate::adapters::{Layers, Numbers};
use crate::one_thread;
use engraft::import::models::GraphOptions;
use engraft::import::safetensors::read_weights;
use engraft::pretrained::{AdapterBank, CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::abi::Stage;
use engraft::runtime::{DType, Rows, Session, Tensor, Weights};

/// The model.
pub struct MiniLm {
    pub model: CompiledModel,
    pub layers: Layers,
}

impl MiniLm {
    /// Opens it; if it isn't there, says so on standard error.
    pub fn open() -> Option<Self> {
        let directory = engraft_testing::model(engraft_testing::MINILM)?;
        let options = CompileOptions { bank: true, runtime: one_thread(), ..CompileOptions::default() };
        let model = Pretrained::open(&directory).unwrap().compile(options).unwrap();
        let layers = Layers::new(&read_weights(directory.join("model.safetensors")).unwrap());
        Some(Self { model, layers })
    }

    pub fn bank(&self) -> &AdapterBank {
        self.model.bank().unwrap()
    }

    /// So many rows of random ids.
    pub fn ids(&self, batch: usize, tokens: usize, numbers: &mut Numbers) -> Tensor {
        let vocab = self.model.architecture().vocab();
        let ids = (0..batch * tokens).map(|_| numbers.below(vocab) as i64).collect();
        Tensor::i64(&[batch, tokens], ids).unwrap()
    }

    /// Calls with these ids.
    pub fn calls(&self, ids: &Tensor) -> Calls {
        let (session, inputs) = (self.model.session(), self.inputs(ids));
        Calls { session, inputs, output: [Tensor::empty(DType::F32)] }
    }

    /// What a call takes, in the program's order.
    pub fn inputs(&self, ids: &Tensor) -> Vec<Tensor> {
        let given = Weights::from_iter([("input_ids", ids.clone())]);
        let filled = self.model.architecture().fill_inputs(&given, 0, GraphOptions::default()).unwrap();
        let find = |wanted: &str| filled.iter().find(|(name, _)| *name == wanted).unwrap().1.clone();
        let arriving = self.model.model().program().spec().arriving(Stage::Call);
        arriving.map(|(_, spec)| find(&spec.name)).collect()
    }
}

/// What one thread needs for calls that allocate nothing.
pub struct Calls {
    session: Session,
    pub inputs: Vec<Tensor>,
    output: [Tensor; 1],
}

impl Calls {
    /// Runs the model once.
    pub fn run(&mut self, rows: &Rows) {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        self.session.run_rows_into(&inputs, rows, &mut self.output).unwrap();
    }

    /// What it gave.
    pub fn output(&self) -> &[f32] {
        self.output[0].as_f32().unwrap()
    }
}
