//! A pretrained model compiled and loaded: what can be called, from any number of threads. Knows nothing about texts.

use super::base::Assembled;
use super::{AdapterBank, BankLayers, Embedder, Generator, Pretrained, PretrainedError};
use crate::import::models::{Architecture, GraphOptions, Kind, Logits};
use crate::import::peft::AttachReport;
use crate::runtime::{self, Context, Model, Rows, Session, Tensor, Weights};
use crate::{Compiled, Merging, Options, compile};

/// How a pretrained model is compiled.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Which adapters are merged into their layers' weights when they are loaded: the one that is attached, or those of a bank.
    /// The base's weights stay beside the merged ones.
    pub merge: Merging,
    /// Whether adapters are put on the model while it runs, another on each row: [`CompiledModel::bank`].
    pub bank: bool,
    /// Whether the program tells the time of each step.
    pub profile: bool,
    /// Of which tokens a decoder gives logits. For [`CompiledModel::generator`] those of the last ones are enough.
    pub logits: Logits,
    /// Threads and kernels.
    pub runtime: runtime::Options,
}

/// A pretrained model that can be run. Its weights are shared by all sessions.
pub struct CompiledModel {
    pretrained: Pretrained,
    options: GraphOptions,
    report: AttachReport,
    compiled: Compiled,
    model: Model,
    bank: Option<AdapterBank>,
}

impl CompiledModel {
    pub(super) fn new(mut pretrained: Pretrained, options: CompileOptions) -> Result<Self, PretrainedError> {
        let CompileOptions { merge, bank, profile, logits, runtime } = options;
        let options = GraphOptions { logits };
        let assembled =
            if bank { pretrained.assemble_bank(options)? } else { pretrained.assemble(options)? };
        let Assembled { graph, base, adapter, report } = assembled;
        let (merge, of_bank) = if bank { (Merging::NEVER, merge) } else { (merge, Merging::NEVER) };
        let compiled = compile(&graph, &Options { merge, profile, ..Options::default() })?;
        let loaded = compiled.program.load_base(&base, Context::new(runtime)?)?;
        // What no stage reads again is not kept.
        drop(base);
        pretrained.forget_weights();
        let model = loaded.load_adapter(&adapter)?;
        let on_base = || {
            let layers = BankLayers::new(&graph, Some(pretrained.architecture().clone()), of_bank)?;
            AdapterBank::new(layers, model.base().clone())
        };
        let bank = bank.then(on_base).transpose()?;
        Ok(Self { pretrained, options, report, compiled, model, bank })
    }

    /// What the model is.
    pub fn architecture(&self) -> &Architecture {
        self.pretrained.architecture()
    }

    /// What it was made from.
    pub fn pretrained(&self) -> &Pretrained {
        &self.pretrained
    }

    /// What attaching the adapter did.
    pub fn report(&self) -> &AttachReport {
        &self.report
    }

    /// The adapters on it, by name.
    ///
    /// # Errors
    /// [`PretrainedError::NoBank`]: it was compiled without.
    pub fn bank(&self) -> Result<&AdapterBank, PretrainedError> {
        self.bank.as_ref().ok_or(PretrainedError::NoBank)
    }

    /// The program, and every level it went through.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The loaded program.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// A session of one's own: memory for a thread, and a decoder's keys and values.
    pub fn session(&self) -> Session {
        self.model.session()
    }

    /// Runs the model once on inputs by name: `input_ids` i64 `[batch, seq]`, and others where the defaults of
    /// [`Architecture::fill_inputs`] are not what is wanted. Outputs by name: `last_hidden_state` or `logits`.
    ///
    /// # Errors
    /// The inputs do not fit the model, or memory does not suffice.
    pub fn run(&self, inputs: &Weights) -> Result<Vec<(String, Tensor)>, PretrainedError> {
        self.run_in(&mut self.session(), inputs)
    }

    /// As [`run`](Self::run), each row of the batch with its own adapter: [`AdapterBank::rows`] says which.
    ///
    /// # Errors
    /// As [`run`](Self::run); also when there are adapters for another number of rows than the batch has.
    pub fn run_rows(&self, inputs: &Weights, rows: &Rows) -> Result<Vec<(String, Tensor)>, PretrainedError> {
        self.run_rows_in(&mut self.session(), inputs, rows)
    }

    /// As [`run`](Self::run), in a session, which keeps its memory and, of a decoder, what came before.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_in(
        &self,
        session: &mut Session,
        inputs: &Weights,
    ) -> Result<Vec<(String, Tensor)>, PretrainedError> {
        self.run_rows_in(session, inputs, &Rows::default())
    }

    /// As [`run_rows`](Self::run_rows), in a session.
    ///
    /// # Errors
    /// As [`run_rows`](Self::run_rows).
    pub fn run_rows_in(
        &self,
        session: &mut Session,
        inputs: &Weights,
        rows: &Rows,
    ) -> Result<Vec<(String, Tensor)>, PretrainedError> {
        let filled = self.architecture().fill_inputs(inputs, session.carried_len(), self.options)?;
        let named: Vec<_> = filled.iter().map(|(name, tensor)| (*name, tensor)).collect();
        Ok(session.run_rows(&named, rows)?)
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// The model is no encoder, or its tokenizer or pooling cannot be read or does not fit.
    pub fn embedder(&self) -> Result<Embedder<'_>, PretrainedError> {
        self.require(Kind::Encoder)?;
        Embedder::new(self)
    }

    /// Goes on with texts.
    ///
    /// # Errors
    /// The model is no decoder, or its tokenizer cannot be read or does not fit.
    pub fn generator(&self) -> Result<Generator<'_>, PretrainedError> {
        self.require(Kind::Decoder)?;
        Generator::new(self)
    }

    fn require(&self, expected: Kind) -> Result<(), PretrainedError> {
        let (path, architecture) = (self.pretrained.path().to_owned(), self.architecture());
        match architecture.kind() {
            found if found == expected => Ok(()),
            found => Err(PretrainedError::Kind { path, architecture: architecture.name(), found, expected }),
        }
    }
}
