//! `engraft run`: a model on tensors from a file, outputs to another.

use super::error::CliError;
use super::execute::{Execution, Fault, call, dtype};
use super::merge_args::MergeArgs;
use super::model::ModelArgs;
use super::output::{FAINT, GOOD, Output, wrapped};
use super::profile::Profile;
use super::roofline::one_thread;
use clap::{Args, value_parser};
use engraft::compiler::{Options, compile};
use engraft::import::safetensors::{read_weights, write};
use engraft::ir::{Bindings, Graph, Stage};
use engraft::runtime::{Context, Tensor, Weights};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Compile a model and run it on tensors from a file
#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    model: ModelArgs,
    /// The values of the parameters, under their names
    #[arg(long, value_name = "SAFETENSORS")]
    weights: Option<PathBuf>,
    /// The inputs and live parameters, under their names; others are ignored and listed. What the model carries from call
    /// to call is empty unless the file has it
    #[arg(long, value_name = "SAFETENSORS")]
    input: PathBuf,
    /// Where to write the outputs, also those that are carried to a next call, under their names; on failure it stays as it was
    #[arg(long, value_name = "SAFETENSORS")]
    output: PathBuf,
    #[command(flatten)]
    merge: MergeArgs,
    /// Tell the time of each kernel beside the least that this machine allows, both with one thread
    #[arg(long)]
    profile: bool,
    /// Calls that a profile takes the medians of [default: what half a second has, 11 to 1001]
    #[arg(long, value_name = "CALLS", requires = "profile", value_parser = value_parser!(u32).range(1..=100_000))]
    repeat: Option<u32>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Serialize)]
struct Facts {
    outputs: Vec<OutputFacts>,
    /// The tensors of the input file that are none of the model's inputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
    milliseconds: Milliseconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

#[derive(Serialize)]
struct OutputFacts {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Milliseconds {
    compile: f64,
    load: f64,
    call: f64,
}

impl Run {
    /// Runs the model.
    ///
    /// # Errors
    /// Something cannot be read, does not fit, or cannot be written; then no output file is touched.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let model = self.model.read()?;
        let in_input = |error: CliError| error.in_file(&self.input);
        let weights = model.weights(self.weights.as_deref())?;
        let given = read_weights(&self.input)?;
        let ignored = ignored(&model.graph, &given);
        let given = model.inputs(given).map_err(in_input)?;
        let merging = self.merge.decided(&model.calls(extents(&model.graph, &given)))?;
        let options =
            Options { merge: model.compiled(&merging), profile: self.profile, ..Options::default() };
        let (compiled, compile) = timed(|| Ok(compile(&model.graph, &options)?))?;
        let threads = if self.profile { one_thread() } else { engraft::runtime::Options::default() };
        let context = Arc::new(Context::new(threads)?);
        let sought = model.sought(self.weights.as_deref());
        let execution = Execution { compiled: &compiled, weights: &weights, sought: &sought };
        let (loaded, load) = timed(|| execution.load(&context))?;
        let rows = model.adapters_on(loaded.base(), &merging)?;
        let in_its_file = |error: CliError| match (Fault::of(&error), model.rows_file()) {
            (Fault::Inputs, _) => in_input(error),
            (Fault::Rows, Some(file)) => error.in_file(file),
            (Fault::Rows | Fault::Nothing, _) => error,
        };
        let (outputs, call) = timed(|| call(&loaded, &given, &rows).map_err(in_its_file))?;
        let named: Vec<_> = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        let profile =
            self.profile.then(|| Profile::measure(&execution, &loaded, (&given, &rows), self.repeat));
        let profile = profile.transpose()?;
        write(&self.output, &named)?;

        let describe = |(name, tensor): &(String, Tensor)| OutputFacts {
            name: name.clone(),
            dtype: dtype(tensor).to_string(),
            shape: tensor.shape().to_vec(),
        };
        let [compile, load, call] = [compile, load, call].map(|time| time.as_secs_f64() * 1e3);
        let milliseconds = Milliseconds { compile, load, call };
        let outputs = outputs.iter().map(describe).collect();
        self.print(output, &Facts { outputs, ignored, milliseconds, profile })
    }

    fn print(&self, output: &mut Output, facts: &Facts) -> Result<(), CliError> {
        if self.json {
            return output.json(facts);
        }
        for OutputFacts { name, dtype, shape } in &facts.outputs {
            output.line(format_args!("{GOOD}{name}{GOOD:#} {dtype}{shape:?}"))?;
        }
        if !facts.ignored.is_empty() {
            // Perhaps one was meant as an input and is misspelt.
            let text = format!("ignored, since the model has no such input: {}", facts.ignored.join(", "));
            output.line(format_args!("{FAINT}{}{FAINT:#}", wrapped(&text)))?;
        }
        let Milliseconds { compile, load, call } = facts.milliseconds;
        output.line(format_args!(
            "{FAINT}compiled in {compile:.1} ms, loaded in {load:.1} ms, first call {call:.3} ms{FAINT:#}"
        ))?;
        facts.profile.iter().try_for_each(|profile| profile.print(output))
    }
}

/// The extents of the dims that these inputs have by themselves.
fn extents(graph: &Graph, given: &Weights) -> Bindings {
    let mut extents = Bindings::new();
    for input in graph.inputs() {
        let shape = given.get(&input.name).map(|tensor| tensor.shape()).unwrap_or_default();
        let known = input.ty.shape.iter().zip(shape);
        extents.extend(known.filter_map(|(dim, &extent)| Some((dim.as_symbol()?.clone(), extent as u64))));
    }
    extents
}

/// The tensors that a call takes nothing from.
fn ignored(graph: &Graph, given: &Weights) -> Vec<String> {
    let live = graph.params().into_iter().filter(|param| param.stage == Stage::Call).map(|param| param.name);
    let taken: BTreeSet<String> = graph.inputs().into_iter().map(|input| input.name).chain(live).collect();
    given.iter().map(|(name, _)| name).filter(|name| !taken.contains(*name)).map(str::to_owned).collect()
}

fn timed<T>(work: impl FnOnce() -> Result<T, CliError>) -> Result<(T, Duration), CliError> {
    let start = Instant::now();
    let result = work()?;
    Ok((result, start.elapsed()))
}
