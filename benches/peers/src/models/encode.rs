//! An encoder with a random DoRA adapter on all its linear layers, which PEFT writes. Who wants it merged is given what
//! PEFT merged; ours merge for themselves.

use super::{find, least, one_thread};
use crate::contender::{Entry, Meaning, Who};
use crate::contest::{Contest, Truth};
use crate::error::Error;
use crate::ours::Loaded;
use crate::python;
use crate::results::Point;
use crate::session::Session;
use crate::workload::Workload;
use engraft::Merging;
use engraft::import::models::GraphOptions;
use engraft::import::safetensors;
use engraft::pretrained::{CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::{Tensor, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The model.
const MODEL: &str = "all-MiniLM-L6-v2";

/// Who computes it in the Python process.
const PYTHON: [Who; 2] = [Who::Torch, Who::Peft];

/// A batch of so many rows of so many tokens.
#[derive(Clone, Copy)]
pub struct Size {
    /// The rows.
    pub batch: usize,
    /// The tokens of each row.
    pub tokens: usize,
}

/// A batch as inputs by name: random ids, all of them visible and of one kind.
struct Batch {
    size: Size,
    inputs: [(&'static str, Tensor); 3],
}

impl Batch {
    fn new(size: Size, vocab: usize) -> Result<Self, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let count = size.batch * size.tokens;
        let ids = (0..count).map(|_| random.random_range(0..vocab as i64)).collect();
        let tensor = |elements| Tensor::i64(&[size.batch, size.tokens], elements);
        let inputs = [
            ("input_ids", tensor(ids)?),
            ("attention_mask", tensor(vec![1; count])?),
            ("token_type_ids", tensor(vec![0; count])?),
        ];
        Ok(Self { size, inputs })
    }

    fn named(&self) -> [(&'static str, &Tensor); 3] {
        self.inputs.each_ref().map(|(name, tensor)| (*name, tensor))
    }
}

/// The merged model as ONNX, in the forms that suit those who read it.
#[derive(Deserialize)]
struct Forms {
    /// In standard operators.
    plain: PathBuf,
    /// The same with q, k and v from one product.
    joint: PathBuf,
    /// In ONNX Runtime's own operators.
    fused: PathBuf,
}

/// Our three programs. Each serves every size.
fn programs(model: &Path, adapter: &Path) -> Result<[(Who, CompiledModel); 3], Error> {
    let options = |merge| CompileOptions {
        merge: Merging::all(merge),
        runtime: one_thread(),
        ..CompileOptions::default()
    };
    let adapted = |merge| Ok::<_, Error>(Pretrained::open(model)?.adapter(adapter)?.compile(options(merge))?);
    Ok([
        (Who::Dense, Pretrained::open(model)?.compile(options(false))?),
        (Who::Dora, adapted(false)?),
        (Who::Merged, adapted(true)?),
    ])
}

/// Everybody's times at each size, about as long as `budget` each.
///
/// # Errors
/// There is no such model, or somebody fails or computes something else.
pub fn points(
    session: &Session,
    directory: &Path,
    sizes: &[Size],
    budget: Duration,
) -> Result<Vec<Point>, Error> {
    let (model, adapter) = (find(directory, MODEL)?, session.directory().join("adapter"));
    let python = &session.pythons[0];
    python.borrow_mut().ask::<()>(&json!({ "do": "adapter", "model": model, "adapter": adapter }))?;
    python.borrow_mut().ask::<()>(&json!({ "do": "open_encoder", "model": model, "adapter": adapter }))?;
    let pairs: Vec<_> = sizes.iter().map(|size| [size.batch, size.tokens]).collect();
    let request = json!({ "do": "onnx_encoders", "sizes": pairs, "directory": session.directory() });
    let forms: Vec<Forms> = python.borrow_mut().ask(&request)?;
    let programs = programs(&model, &adapter)?;
    let mut points = Vec::new();
    for (&size, forms) in sizes.iter().zip(forms) {
        points.push(point(session, &programs, &forms, size, budget)?);
    }
    Ok(points)
}

fn point(
    session: &Session,
    programs: &[(Who, CompiledModel)],
    forms: &Forms,
    size: Size,
    budget: Duration,
) -> Result<Point, Error> {
    let architecture = programs[0].1.architecture();
    let (batch, width) = (Batch::new(size, architecture.vocab())?, architecture.hidden());
    let given: Weights = batch.inputs.iter().map(|(name, tensor)| (*name, tensor.clone())).collect();
    let filled = architecture.fill_inputs(&given, 0, GraphOptions::default())?;
    let mut entries = Vec::new();
    for (who, program) in programs {
        let find = |wanted: &str| filled.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor);
        let contender = Box::new(Loaded::new(program.model(), find)?);
        entries.push(Entry { who: *who, threads: 1, contender });
    }
    let (inputs, output) = (batch.named(), [size.batch, size.tokens, width]);
    for (who, onnx) in [(Who::OnnxRuntime, &forms.plain), (Who::OnnxRuntimeFused, &forms.fused)] {
        let contender = Box::new(session.onnx_runtime.load(onnx, 1, &inputs, &output)?);
        entries.push(Entry { who, threads: 1, contender });
    }
    let contender = Box::new(session.open_vino.borrow_mut().load(&forms.joint, 1, &inputs, &output)?);
    entries.push(Entry { who: Who::OpenVino, threads: 1, contender });
    let truth = truth(session, &batch, width)?;
    entries.extend(python::entries(&session.pythons[0], session.directory(), &PYTHON));
    let workload = Workload::Encode { model: MODEL, batch: size.batch, tokens: size.tokens };
    let least = least(&programs[0].1, &[("batch", size.batch), ("seq", size.tokens)])?;
    let (rows, read) = (size.batch * size.tokens, least.bytes);
    Contest { workload, rows, entries, truth, read, least }.hold(&session.contexts, budget)
}

/// Loads the batch into the Python process, and reads what PEFT makes of it in f64.
fn truth(session: &Session, batch: &Batch, width: usize) -> Result<Truth, Error> {
    let [ids, truth] = ["ids", "truth"].map(|name| session.directory().join(format!("{name}.safetensors")));
    let (name, tensor) = batch.inputs[0].clone();
    safetensors::write(&ids, &[(name, tensor)])?;
    let request = json!({ "do": "encode", "ids": ids, "truth": truth, "threads": 1 });
    session.pythons[0].borrow_mut().ask::<()>(&request)?;
    let arrays = safetensors::read_weights(&truth)?;
    let array = |name: &str| {
        let missing = || Error::NoArray { name: name.to_owned(), place: truth.display().to_string() };
        let array = arrays.get(name).ok_or_else(missing)?;
        Ok::<_, Error>(array.as_f32()?.iter().copied().map(f64::from).collect())
    };
    Ok(Truth {
        said_by: "PEFT in f64",
        width,
        rows: (0..batch.size.batch * batch.size.tokens).collect(),
        expected: vec![(Meaning::Base, array("base")?), (Meaning::Adapted, array("adapted")?)],
    })
}
