//! `engraft demo`: an adapter that PEFT trained, from its files to numbers, with everything on the way.

mod example;
mod page;

use super::agreement::Agreement;
use super::error::{CliError, Sought};
use super::execute::{Execution, call};
use super::layer::Layer;
use super::output::{FAINT, Output};
use super::timing::{Caller, medians, microseconds};
use clap::Args;
use engraft::compiler::trace::Trace;
use engraft::compiler::values::to_value;
use engraft::ir::Graph;
use engraft::runtime::{Context, Model, Options as RuntimeOptions, Rows, Tensor};
use engraft::{Compiled, Merging, Options, compile};
use example::{Example, LAYER, Recorded};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Compile a DoRA adapter that PEFT saved, run it, and compare it with PEFT
#[derive(Args)]
pub struct Demo {
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
}

/// The batches that the realistic layer is timed at.
const BATCHES: [usize; 2] = [1, 32];

/// How to run the graph as it was built: nothing rewritten, no kernels fused.
const AS_BUILT: Options = Options { optimize: false, merge: Merging::NEVER, profile: false };

/// How far a program is from the recording.
#[derive(Serialize)]
struct Compared {
    program: &'static str,
    #[serde(flatten)]
    agreement: Agreement,
}

/// The median times of a call.
#[derive(Serialize)]
struct Times {
    what: String,
    batch: usize,
    #[serde(rename = "base_microseconds", serialize_with = "microseconds")]
    base: Duration,
    #[serde(rename = "fused_microseconds", serialize_with = "microseconds")]
    fused: Duration,
    #[serde(rename = "as_built_microseconds", serialize_with = "microseconds")]
    as_built: Duration,
}

/// The demo in numbers.
#[derive(Serialize)]
struct Facts<'a> {
    adapter: Vec<String>,
    computed_nodes: [usize; 2],
    rewrites: Vec<String>,
    staged: Vec<String>,
    agreement: &'a [Compared],
    #[serde(rename = "compile_microseconds", serialize_with = "microseconds")]
    compile_time: Duration,
    times: &'a [Times],
}

/// A base and its adapter, compiled in each way.
struct Programs {
    base: Compiled,
    fused: Compiled,
    as_built: Compiled,
    /// What compiling `fused` took.
    compile_time: Duration,
}

impl Demo {
    /// Runs the demo.
    ///
    /// # Errors
    /// The numbers disagree with PEFT's, or this machine cannot run it.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        // One thread: a layer as small as these is no work for more.
        let options = RuntimeOptions { threads: Some(NonZeroUsize::MIN), ..RuntimeOptions::default() };
        let context = Arc::new(Context::new(options)?);
        let Recorded { example, report, output: theirs } = example::recorded()?;
        let programs = Programs::of(&example)?;
        let compare = |program, compiled: &Compiled| compare(program, compiled, &example, &theirs, &context);
        let compared = [compare("fused", &programs.fused)?, compare("as built", &programs.as_built)?];
        if !self.json {
            tell(output, (&example, &report), &programs, &compared)?;
        }
        if let Some(Compared { program, agreement }) = compared.iter().find(|c| !c.agreement.holds()) {
            let what = format!("the program {program} and PEFT's recording");
            return Err(CliError::Disagree { what, worst: agreement.tolerances });
        }
        let times = all_times(&example, &programs, &context)?;
        if self.json {
            return output.json(&facts((&example, &report), &programs, &compared, &times));
        }
        page::heading(output, 6, "Time of one call: one thread, medians of interleaved turns")?;
        page::times(output, &times)?;
        let milliseconds = programs.compile_time.as_secs_f64() * 1e3;
        output.line(format_args!(
            "   {FAINT}the example was compiled in {milliseconds:.1} ms; another adapter is only loaded{FAINT:#}"
        ))
    }
}

impl Programs {
    fn of(example: &Example) -> Result<Self, CliError> {
        let base = compile(&example.base, &Options::default())?;
        let start = Instant::now();
        let fused = compile(&example.adapted, &Options::default())?;
        let compile_time = start.elapsed();
        let as_built = compile(&example.adapted, &AS_BUILT)?;
        Ok(Self { base, fused, as_built, compile_time })
    }
}

/// Sections 1 to 5.
fn tell(
    output: &mut Output,
    (example, report): (&Example, &str),
    programs: &Programs,
    compared: &[Compared],
) -> Result<(), CliError> {
    page::heading(output, 1, "Loaded: a DoRA adapter as PEFT saved it, and its base")?;
    output.line("   base: x [batch, 24] -> fc1 [40, 24] -> relu -> fc2 [16, 40], frozen")?;
    for line in report.lines() {
        output.line(format_args!("   {line}"))?;
    }
    let section = |output: &mut Output, number, title: &str, graph: &Graph| {
        page::heading(output, number, &format!("{title}: {} nodes to compute", page::computed(graph)))?;
        page::graph(output, graph)
    };
    section(output, 2, "The graph with the adapter attached, as built", &example.adapted)?;
    page::heading(output, 3, "What the optimiser did")?;
    page::trace(output, &programs.fused.trace)?;
    section(output, 4, "The graph that runs", &programs.fused.graph)?;
    page::heading(output, 5, "Beside what PEFT computed from the same input")?;
    page::agreement(output, compared)
}

fn facts<'a>(
    (example, report): (&Example, &str),
    programs: &Programs,
    compared: &'a [Compared],
    times: &'a [Times],
) -> Facts<'a> {
    let trace: &Trace = &programs.fused.trace;
    let graphs = [&example.adapted, &programs.fused.graph];
    Facts {
        adapter: report.lines().map(str::to_owned).collect(),
        computed_nodes: graphs.map(page::computed),
        rewrites: trace.rewrites().map(|(pass, r)| format!("{pass}: {} at {}", r.rule, r.node)).collect(),
        staged: trace.staged().map(|staged| staged.to_string().trim().to_owned()).collect(),
        agreement: compared,
        compile_time: programs.compile_time,
        times,
    }
}

fn compare(
    program: &'static str,
    compiled: &Compiled,
    example: &Example,
    theirs: &Tensor,
    context: &Arc<Context>,
) -> Result<Compared, CliError> {
    let mut given = engraft::runtime::Weights::new();
    given.insert("x", Arc::clone(&example.input));
    let outputs = call(&load(compiled, example, context)?, &given, &Rows::default())?;
    let ours = outputs.iter().find(|(name, _)| name == "y").map(|(_, tensor)| tensor);
    let describe =
        |tensor: Option<&Tensor>| tensor.map_or("missing".to_owned(), |t| format!("{:?}", t.shape()));
    let mismatch = || CliError::OutputShape {
        output: "y".to_owned(),
        ours: describe(ours),
        theirs: describe(Some(theirs)),
    };
    let agreement = match ours {
        Some(ours) => Agreement::of(&to_value(ours)?, &to_value(theirs)?),
        None => None,
    };
    Ok(Compared { program, agreement: agreement.ok_or_else(mismatch)? })
}

fn load(compiled: &Compiled, example: &Example, context: &Arc<Context>) -> Result<Model, CliError> {
    Execution { compiled, weights: &example.weights, sought: &Sought::Nowhere }.load(context)
}

fn all_times(example: &Example, programs: &Programs, context: &Arc<Context>) -> Result<Vec<Times>, CliError> {
    let mut all = vec![times("the example", example, programs, context)?];
    let Layer { inputs, outputs, rank } = LAYER;
    let what = format!("{inputs} to {outputs}, r {rank}");
    // One program serves every batch.
    let mut programs = None;
    for batch in BATCHES {
        let example = example::realistic(batch)?;
        let programs = match &mut programs {
            Some(programs) => programs,
            none => none.insert(Programs::of(&example)?),
        };
        all.push(times(&what, &example, programs, context)?);
    }
    Ok(all)
}

fn times(
    what: &str,
    example: &Example,
    programs: &Programs,
    context: &Arc<Context>,
) -> Result<Times, CliError> {
    let Programs { base, fused, as_built, .. } = programs;
    let caller =
        |compiled| Ok::<_, CliError>(Caller::new(&load(compiled, example, context)?, vec![&*example.input]));
    let (mut base, mut fused, mut as_built) = (caller(base)?, caller(fused)?, caller(as_built)?);
    let times = medians(&mut [&mut base, &mut fused, &mut as_built])?.times;
    let [base, fused, as_built] = [times[0], times[1], times[2]];
    let batch = example.input.shape()[0];
    Ok(Times { what: what.to_owned(), batch, base, fused, as_built })
}
