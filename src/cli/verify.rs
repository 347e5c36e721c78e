//! `engraft verify`: whether every pass kept a model's meaning, and whether the compiled programs compute it. The
//! reference interpreter says what it is.

use super::agreement::{Agreement, TOLERANCE};
use super::error::{CliError, Sought};
use super::execute::{Execution, call};
use super::merge_args::MergeArgs;
use super::model::ModelArgs;
use super::output::{BAD, FAINT, GOOD, HEADING, Output};
use clap::Args;
use engraft::compiler::check::{PassCheck, RewriteCheck, check_pass};
use engraft::compiler::passes::constant_fold;
use engraft::compiler::trace::Trace;
use engraft::compiler::values::{to_tensor, to_value};
use engraft::compiler::{Compiled, Options, compile};
use engraft::ir::eval::{Values, eval};
use engraft::ir::sample;
use engraft::ir::value::Value;
use engraft::ir::{Bindings, Graph, Symbol};
use engraft::runtime::{Context, Rows, Weights};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Check that compiling a model keeps its meaning
///
/// Runs the graph before and after each pass in the reference interpreter, and the compiled programs, as optimised and
/// as built, against both, on random inputs and at several sizes of each symbolic dim.
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    model: ModelArgs,
    /// The values of the parameters, under their names; random without
    #[arg(long, value_name = "SAFETENSORS")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    merge: MergeArgs,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// The sizes that each symbolic dim takes.
const SIZES: [u64; 4] = [0, 1, 2, 7];

/// The largest relative difference that a pass may make in f64.
const PASS_LIMIT: f64 = 1e-9;

/// The same where a pass rounds the constants that it computes to f32.
const FOLDED_LIMIT: f64 = 1e-6;

/// What was found.
#[derive(Serialize)]
struct Findings {
    graph: String,
    sizes: Vec<BTreeMap<String, u64>>,
    refused: Vec<Refused>,
    passes: Vec<PassFinding>,
    programs: Vec<ProgramFinding>,
    holds: bool,
}

/// A size that the model cannot have.
#[derive(Serialize)]
struct Refused {
    size: String,
    reason: String,
}

#[derive(Serialize)]
struct PassFinding {
    pass: &'static str,
    rewrites: Vec<RewriteFinding>,
    difference: f64,
    limit: f64,
    holds: bool,
}

#[derive(Serialize)]
struct RewriteFinding {
    rule: &'static str,
    node: String,
    /// In the replaced node's value; none where a later rewrite of the pass left no such node.
    difference: Option<f64>,
}

#[derive(Serialize)]
struct ProgramFinding {
    program: &'static str,
    #[serde(flatten)]
    agreement: Agreement,
    holds: bool,
}

impl Verify {
    /// Verifies the model.
    ///
    /// # Errors
    /// Something cannot be read or does not fit, or a difference is too large.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let model = self.model.read_one()?;
        let sought = model.sought(self.weights.as_deref());
        let weights = match &self.weights {
            Some(file) => Some(model.weights(Some(file))?),
            None => None,
        };
        let merge = self.merge.decided(&model.calls(Bindings::new()))?;
        let optimised = compile(&model.graph, &Options { merge, ..Options::default() })?;
        let as_built = compile(&model.graph, &Options { optimize: false, ..Options::default() })?;
        let case = Case {
            graph: &model.graph,
            trace: &optimised.trace,
            programs: &[("optimised", &optimised), ("as built", &as_built)],
            weights: weights.as_ref(),
            sought: &sought,
        };
        let findings = case.check()?;
        if self.json {
            output.json(&findings)?;
        } else {
            print(output, &findings, weights.is_some())?;
        }
        findings.verdict()
    }
}

/// What is verified.
struct Case<'a> {
    graph: &'a Graph,
    trace: &'a Trace,
    programs: &'a [(&'static str, &'a Compiled)],
    /// Without, they are random.
    weights: Option<&'a Weights>,
    sought: &'a Sought,
}

/// The differences at one size.
struct Differences {
    passes: Vec<PassCheck>,
    programs: Vec<Agreement>,
}

impl Case<'_> {
    fn check(&self) -> Result<Findings, CliError> {
        let context = Arc::new(Context::new(engraft::runtime::Options::default())?);
        if let Some(weights) = self.weights {
            // What does not fit at any size is refused once.
            for (_, compiled) in self.programs {
                Execution { compiled, weights, sought: self.sought }.load(&context)?;
            }
        }
        let (mut sizes, mut refused, mut found) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for (seed, bindings) in self.bindings().into_iter().enumerate() {
            match self.at(&bindings, seed as u64, &context) {
                Ok(differences) => {
                    sizes.push(bindings.iter().map(|(s, &size)| (s.name().to_owned(), size)).collect());
                    found.push(differences);
                }
                // A size may be one that the model's shapes exclude: an empty axis to take the maximum of.
                Err(error @ (CliError::Sample(_) | CliError::Eval(_))) => {
                    refused.push(Refused { size: described(&bindings), reason: error.to_string() });
                    last = Some((described(&bindings), error));
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some((size, source))) = (found.is_empty(), last) {
            return Err(CliError::NoSize { size, source: Box::new(source) });
        }
        let passes: Vec<_> = (0..self.trace.passes.len()).filter_map(|i| pass_finding(&found, i)).collect();
        let program = |(i, (program, _)): (usize, &(&'static str, &Compiled))| {
            let agreements = found.iter().map(|differences| differences.programs[i]);
            let agreement = agreements.fold(Agreement::default(), Agreement::worse);
            ProgramFinding { program, agreement, holds: agreement.holds() }
        };
        let programs: Vec<_> = self.programs.iter().enumerate().map(program).collect();
        let holds = passes.iter().all(|pass| pass.holds) && programs.iter().all(|program| program.holds);
        Ok(Findings { graph: self.graph.name().to_owned(), sizes, refused, passes, programs, holds })
    }

    /// The sizes to try. Each symbol takes each of [`SIZES`], and two symbols never the same at once, so that an axis
    /// taken for another shows. Symbols that the weights bind stay as they are.
    fn bindings(&self) -> Vec<Bindings> {
        let mut bound = Bindings::new();
        for param in self.graph.params() {
            let Some(tensor) = self.weights.and_then(|weights| weights.get(&param.name)) else { continue };
            for (dim, &size) in param.ty.shape.iter().zip(tensor.shape()) {
                if let Some(symbol) = dim.as_symbol() {
                    bound.insert(symbol.clone(), size as u64);
                }
            }
        }
        let symbols: BTreeSet<Symbol> = self.graph.nodes().flat_map(|node| node.shape().symbols()).collect();
        let free: Vec<_> = symbols.into_iter().filter(|symbol| !bound.contains_key(symbol)).collect();
        let trials = if free.is_empty() { 1 } else { SIZES.len() };
        let at = |trial: usize| {
            let size = |(i, symbol): (usize, &Symbol)| (symbol.clone(), SIZES[(trial + i) % SIZES.len()]);
            bound.clone().into_iter().chain(free.iter().enumerate().map(size)).collect()
        };
        (0..trials).map(at).collect()
    }

    fn at(&self, bindings: &Bindings, seed: u64, context: &Arc<Context>) -> Result<Differences, CliError> {
        let mut values = sample::values(self.graph, bindings, seed)?;
        let mut tensors = Weights::new();
        for node in self.graph.nodes() {
            // Inputs and parameters have values.
            let Some(value) = values.get_mut(node.name()) else { continue };
            let given = self.weights.and_then(|weights| weights.get(node.name()));
            let tensor = match given {
                Some(tensor) => Arc::clone(tensor),
                None => Arc::new(to_tensor(value, node.ty())?),
            };
            *value = to_value(&tensor)?;
            tensors.insert(node.name(), tensor);
        }
        let mut references = vec![eval(self.graph, &values)?];
        let mut passes = Vec::with_capacity(self.trace.passes.len());
        for pass in &self.trace.passes {
            let check = check_pass(pass, &values)
                .map_err(|source| CliError::Pass { pass: pass.pass, source: Box::new(source) })?;
            passes.push(check);
        }
        if let Some(last) = self.trace.passes.last() {
            references.push(eval(&last.after, &values)?);
        }
        let program = |(_, compiled): &(&str, &Compiled)| {
            let execution = Execution { compiled, weights: &tensors, sought: self.sought };
            let outputs = call(&execution.load(context)?, &tensors, &Rows::default())?;
            let ours = outputs.iter().map(|(name, tensor)| Ok((name.clone(), to_value(tensor)?)));
            let ours = ours.collect::<Result<Values, CliError>>()?;
            references.iter().try_fold(Agreement::default(), |worst, theirs| {
                Ok::<_, CliError>(worst.worse(agreement(&ours, theirs)?))
            })
        };
        let programs = self.programs.iter().map(program).collect::<Result<_, _>>()?;
        Ok(Differences { passes, programs })
    }
}

/// The worst of what was found at each size about the pass of this number.
fn pass_finding(found: &[Differences], index: usize) -> Option<PassFinding> {
    let checks: Vec<_> = found.iter().map(|differences| &differences.passes[index]).collect();
    let first = checks.first()?;
    let difference = checks.iter().map(|check| check.difference).fold(0.0, f64::max);
    let limit = if first.pass == constant_fold::PASS.name { FOLDED_LIMIT } else { PASS_LIMIT };
    let rewrite = |(i, rewrite): (usize, &RewriteCheck)| RewriteFinding {
        rule: rewrite.rule,
        node: rewrite.node.clone(),
        difference: checks.iter().filter_map(|check| check.rewrites[i].difference).reduce(f64::max),
    };
    let rewrites: Vec<_> = first.rewrites.iter().enumerate().map(rewrite).collect();
    let mut finding = PassFinding { pass: first.pass, rewrites, difference, limit, holds: false };
    finding.holds = finding.worst() <= limit;
    Some(finding)
}

/// How far two sets of outputs are apart.
fn agreement(ours: &Values, theirs: &Values) -> Result<Agreement, CliError> {
    let describe = |value: Option<&Value>| match value {
        None => "missing".to_owned(),
        Some(value) => format!("{:?}", value.shape()),
    };
    let mut worst = Agreement::default();
    for name in ours.keys().chain(theirs.keys()) {
        let (our, their) = (ours.get(name), theirs.get(name));
        let agreement = our.zip(their).and_then(|(our, their)| Agreement::of(our, their));
        let mismatch =
            || CliError::OutputShape { output: name.clone(), ours: describe(our), theirs: describe(their) };
        worst = worst.worse(agreement.ok_or_else(mismatch)?);
    }
    Ok(worst)
}

impl PassFinding {
    /// The largest difference, of the outputs or of a rewritten node.
    fn worst(&self) -> f64 {
        self.rewrites.iter().filter_map(|rewrite| rewrite.difference).fold(self.difference, f64::max)
    }
}

impl Findings {
    /// The first thing that does not hold, as an error.
    fn verdict(&self) -> Result<(), CliError> {
        if let Some(pass) = self.passes.iter().find(|pass| !pass.holds) {
            let what = format!("the graphs before and after the pass {}", pass.pass);
            return Err(CliError::Disagree { what, worst: pass.worst() / pass.limit });
        }
        if let Some(program) = self.programs.iter().find(|program| !program.holds) {
            let what = format!("the program {} and the reference", program.program);
            return Err(CliError::Disagree { what, worst: program.agreement.tolerances });
        }
        Ok(())
    }
}

/// `batch = 1, seq = 2`.
fn described(bindings: &Bindings) -> String {
    let sizes: Vec<_> = bindings.iter().map(|(symbol, size)| format!("{} = {size}", symbol.name())).collect();
    if sizes.is_empty() { "its only size".to_owned() } else { sizes.join(", ") }
}

fn print(output: &mut Output, findings: &Findings, has_weights: bool) -> Result<(), CliError> {
    let weights = if has_weights { "the given weights" } else { "random weights" };
    output.line(format_args!("{HEADING}{}{HEADING:#} with {weights}, at", findings.graph))?;
    for sizes in &findings.sizes {
        let sizes: Vec<_> = sizes.iter().map(|(symbol, size)| format!("{symbol} = {size}")).collect();
        let sizes = if sizes.is_empty() { "its only size".to_owned() } else { sizes.join(", ") };
        output.line(format_args!("  {sizes}"))?;
    }
    for Refused { size, reason } in &findings.refused {
        output.line(format_args!("{FAINT}  not at {size}: {reason}{FAINT:#}"))?;
    }
    output.line(format_args!("\n{HEADING}{:16}{:14}allowed{HEADING:#}", "pass", "difference"))?;
    for PassFinding { pass, rewrites, difference, limit, holds } in &findings.passes {
        let verdict = verdict(*holds);
        output.line(format_args!("{pass:16}{:14}{limit:<12.0e}{verdict}", shown(*difference)))?;
        for RewriteFinding { rule, node, difference } in rewrites {
            let difference = difference.map_or_else(|| "-".to_owned(), shown);
            output.line(format_args!("{FAINT}  {difference:14}{rule} at {node}{FAINT:#}"))?;
        }
    }
    output.line(format_args!("\n{HEADING}{:16}{:14}of allowed{HEADING:#}", "program", "difference"))?;
    for ProgramFinding { program, agreement, holds } in &findings.programs {
        let Agreement { largest_difference, tolerances } = agreement;
        let verdict = verdict(*holds);
        output
            .line(format_args!("{program:16}{:14}{tolerances:<12.3}{verdict}", shown(*largest_difference)))?;
    }
    output.line(format_args!("{FAINT}allowed: {TOLERANCE}{FAINT:#}"))
}

fn shown(difference: f64) -> String {
    if difference == 0.0 { "0".to_owned() } else { format!("{difference:.1e}") }
}

fn verdict(holds: bool) -> String {
    if holds { format!("{GOOD}ok{GOOD:#}") } else { format!("{BAD}differs{BAD:#}") }
}

#[cfg(test)]
mod tests {
    use super::{Case, Findings};
    use crate::cli::error::Sought;
    use engraft::compiler::passes::{Editor, Pass, PassError};
    use engraft::compiler::{Options, compile, pipeline};
    use engraft::ir::Op;
    use engraft::ir::ops::Scale;
    use engraft::prelude::*;

    fn graph() -> Graph {
        let g = GraphBuilder::new("scaled");
        let (w, x) = (g.param("w", F32, dims![3, 2]), g.input("x", F32, dims!["batch", 2]));
        g.output("y", x.dense(w, None).scale(3.0));
        g.finish().unwrap()
    }

    /// A pass that scales by another factor.
    fn wrong(editor: &mut Editor) -> Result<(), PassError> {
        for id in editor.order() {
            if let Op::Scale(Scale { factor }) = *editor.graph().node(id).op() {
                let operand = editor.graph().operand(id, 0);
                let new = editor.add("wrong", Scale { factor: factor * 1.001 }, &[operand])?;
                editor.replace("wrong", id, new, Vec::new())?;
            }
        }
        Ok(())
    }

    fn findings(passes: &[Pass], program: &Graph) -> Findings {
        let graph = graph();
        let trace = pipeline::run(&graph, passes).unwrap().trace;
        let compiled = compile(program, &Options::default()).unwrap();
        let programs = [("optimised", &compiled)];
        Case { graph: &graph, trace: &trace, programs: &programs, weights: None, sought: &Sought::Nowhere }
            .check()
            .unwrap()
    }

    #[test]
    fn a_right_pass_holds() {
        let findings = findings(&pipeline::default_passes(), &graph());
        assert!(findings.holds && findings.verdict().is_ok());
        assert_eq!(findings.sizes.len(), 4);
    }

    #[test]
    fn a_wrong_pass_is_named() {
        let findings = findings(&[Pass { name: "wrong", summary: "break the graph", run: &wrong }], &graph());
        let error = findings.verdict().unwrap_err().to_string();
        assert!(error.starts_with("the graphs before and after the pass wrong differ by"), "{error}");
    }

    #[test]
    fn a_wrong_program_is_named() {
        let wrong = graph().map(|node| match node.op() {
            Op::Scale(_) => Scale { factor: 3.01 }.into(),
            op => op.clone(),
        });
        let findings = findings(&pipeline::default_passes(), &wrong.unwrap());
        let error = findings.verdict().unwrap_err().to_string();
        assert!(error.starts_with("the program optimised and the reference differ by"), "{error}");
    }
}
