//! A decoder's next token after some others, again and again: it cannot take less time than reading all the weights that
//! it must touch.

use super::{find, least, one_thread, weights};
use crate::contender::{Call, Entry, Meaning, Who};
use crate::contest::{Contest, Truth};
use crate::error::Error;
use crate::ours::Loaded;
use crate::results::Point;
use crate::session::Session;
use crate::workload::Workload;
use engraft::import::gguf::Gguf;
use engraft::import::models::{GraphOptions, Logits};
use engraft::import::safetensors;
use engraft::pretrained::{CompileOptions, Pretrained};
use engraft::runtime::{Tensor, Weights};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The file, and what to call it.
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL: &str = "SmolLM2-135M";

/// The tokens that come before.
const PAST: usize = 64;

/// One token, forgotten again before the next call.
struct Decode<'a> {
    loaded: Loaded<'a>,
}

impl Call for Decode<'_> {
    fn call(&mut self) -> Result<(), Error> {
        self.loaded.session().truncate(PAST)?;
        self.loaded.call()
    }

    fn output(&self) -> Result<Vec<f32>, Error> {
        self.loaded.output()
    }
}

/// The time of a token, in about as long as `budget`.
///
/// # Errors
/// There is no such model, or the token's logits are not those of transformers on the same weights.
pub fn point(session: &Session, directory: &Path, budget: Duration) -> Result<Point, Error> {
    let file = find(directory, FILE)?;
    let pretrained = Pretrained::open(&file)?;
    let vocab = pretrained.architecture().vocab();
    let ids: Vec<i64> = (0..=PAST).map(|token| (token * 7919 % vocab) as i64).collect();
    let truth = truth(session, &file, &pretrained, &ids)?;

    let logits = Logits::Last;
    let options = CompileOptions { logits, runtime: one_thread(), ..CompileOptions::default() };
    let program = pretrained.compile(options)?;
    let given = |ids: &[i64]| {
        let ids = Tensor::i64(&[1, ids.len()], ids.to_vec())?;
        Ok::<_, Error>(Weights::from_iter([("input_ids", ids)]))
    };
    let token = program.architecture().fill_inputs(&given(&ids[PAST..])?, PAST, GraphOptions { logits })?;
    let find = |wanted: &str| token.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| tensor);
    let mut loaded = Loaded::new(program.model(), find)?;
    loaded.session().reserve(PAST + 1);
    program.run_in(loaded.session(), &given(&ids[..PAST])?)?;

    let bytes = weights(&program);
    let entries = vec![Entry { who: Who::Dense, threads: 1, contender: Box::new(Decode { loaded }) }];
    let workload = Workload::Decode { model: MODEL, past: PAST, bytes };
    let least = least(&program, &[("batch", 1), ("seq", 1), ("past", PAST)])?;
    Contest { workload, rows: 1, entries, truth, read: bytes, least }.hold(&session.contexts, budget)
}

/// The last token's logits by transformers in f64, in one call on all tokens. It is given the weights as we read them, in
/// a directory of its own kind.
fn truth(session: &Session, file: &Path, pretrained: &Pretrained, ids: &[i64]) -> Result<Truth, Error> {
    let directory = session.directory().join("decoder");
    let wrong = |source| Error::File { path: directory.clone(), source };
    fs::create_dir_all(&directory).map_err(wrong)?;
    let config = serde_json::to_string(&Gguf::open(file)?.config()?)?;
    fs::write(directory.join("config.json"), config).map_err(wrong)?;
    let weights = pretrained.assemble(GraphOptions::default())?.base;
    let tensors: Vec<_> = weights.iter().map(|(name, tensor)| (name, Tensor::clone(tensor))).collect();
    safetensors::write(directory.join("model.safetensors"), &tensors)?;
    drop(tensors);
    let request = json!({ "do": "logits", "model": directory, "ids": ids });
    let logits: Vec<f64> = session.pythons[0].borrow_mut().ask(&request)?;
    fs::remove_dir_all(&directory).map_err(wrong)?;
    Ok(Truth {
        said_by: "transformers in f64",
        width: logits.len(),
        rows: vec![0],
        expected: vec![(Meaning::Base, logits)],
    })
}
