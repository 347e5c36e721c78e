//! How the demo's sections look: a graph grouped by when its values are computed, what passes did, a table of times. All
//! of it within 80 columns.

use super::{Compared, Times};
use crate::cli::agreement::TOLERANCE;
use crate::cli::error::CliError;
use crate::cli::output::{BAD, FAINT, GOOD, HEADING, Output, wrapped};
use crate::cli::timing::shown;
use engraft::compiler::trace::{Event, Staged, Trace};
use engraft::ir::text::expression;
use engraft::ir::{Graph, Op, Stage, Stages};
use std::time::Duration;

/// What a stage is called where its values are listed.
const STAGE_TITLES: [(Stage, &str); 4] = [
    (Stage::Compile, "when the graph is compiled"),
    (Stage::Base, "when the base is loaded"),
    (Stage::Adapter, "when the adapter is loaded"),
    (Stage::Call, "in every call"),
];

/// A section's heading.
pub fn heading(output: &mut Output, number: usize, title: &str) -> Result<(), CliError> {
    output.line(format_args!("{}{HEADING}{number}  {title}{HEADING:#}", if number > 1 { "\n" } else { "" }))
}

/// The computed nodes of a graph, by stage.
pub fn graph(output: &mut Output, graph: &Graph) -> Result<(), CliError> {
    let stages = Stages::of(graph);
    for (stage, title) in STAGE_TITLES {
        let is_source = |op: &Op| matches!(op, Op::Input(_) | Op::Param(_) | Op::Constant(_));
        let computed = |id: &_| stages.node(*id) == stage && !is_source(graph.node(*id).op());
        let mut nodes = graph.order().into_iter().filter(computed).peekable();
        if nodes.peek().is_some() {
            output.line(format_args!("   {FAINT}{title}{FAINT:#}"))?;
        }
        for id in nodes {
            output.line(wrapped(&format!("     {} = {}", graph.node(id).name(), expression(graph, id))))?;
        }
    }
    Ok(())
}

/// How many nodes a graph computes.
pub fn computed(graph: &Graph) -> usize {
    graph.nodes().filter(|node| !matches!(node.op(), Op::Input(_) | Op::Param(_) | Op::Constant(_))).count()
}

/// The passes that did something, and what.
pub fn trace(output: &mut Output, trace: &Trace) -> Result<(), CliError> {
    for pass in trace.passes.iter().filter(|pass| !pass.events.is_empty()) {
        output.line(format_args!("   {GOOD}{}{GOOD:#}  {FAINT}{}{FAINT:#}", pass.pass, pass.summary))?;
        for event in &pass.events {
            let line = match event {
                Event::Rewrite(rewrite) => {
                    let (before, after) = (nodes(rewrite.before.len()), rewrite.after.len());
                    format!("     {:12} at {}: {before} became {after}", rewrite.rule, rewrite.node)
                }
                Event::Refusal(refusal) => {
                    format!("     {:12} refused at {}: {}", refusal.rule, refusal.node, refusal.reason)
                }
                Event::Staged(Staged { node, ty, stage, consumer }) => {
                    format!("     {node}: {ty} is kept from {stage} load on, for each {consumer}")
                }
                Event::Decided(decision) => format!("     {decision}"),
            };
            output.line(wrapped(&line))?;
        }
    }
    Ok(())
}

fn nodes(count: usize) -> String {
    format!("{count} node{}", if count == 1 { "" } else { "s" })
}

/// How far the programs are from the recording.
pub fn agreement(output: &mut Output, compared: &[Compared]) -> Result<(), CliError> {
    output.line(format_args!("   {FAINT}allowed: {TOLERANCE}{FAINT:#}"))?;
    for Compared { program, agreement } in compared {
        let (style, verdict) = if agreement.holds() { (GOOD, "agrees") } else { (BAD, "DISAGREES") };
        output.line(format_args!(
            "   {program:10}largest difference {:.1e}, {:.4} of what is allowed: {style}{verdict}{style:#}",
            agreement.largest_difference, agreement.tolerances
        ))?;
    }
    Ok(())
}

/// The times of calls.
pub fn times(output: &mut Output, times: &[Times]) -> Result<(), CliError> {
    output.line(format_args!(
        "   {FAINT}{:22}{:>6}{:>12}{:>18}{:>18}{FAINT:#}",
        "", "batch", "base alone", "DoRA, fused", "DoRA, as built"
    ))?;
    for Times { what, batch, base, fused, as_built } in times {
        let beside = |time: &Duration| {
            format!("{} {:>6}", shown(*time), format!("{:.2}x", time.as_secs_f64() / base.as_secs_f64()))
        };
        output.line(format_args!(
            "   {what:22}{batch:>6}{:>12}{:>18}{:>18}",
            shown(*base),
            beside(fused),
            beside(as_built)
        ))?;
    }
    Ok(())
}
