//! How a benchmark looks: a table for each layer, within 80 columns.

use super::facts::{BatchFacts, MachineFacts};
use crate::cli::error::CliError;
use crate::cli::layer::Layer;
use crate::cli::output::{FAINT, HEADING, Output};
use crate::cli::timing::shown;
use std::time::Duration;

/// What it runs on.
pub fn machine(output: &mut Output, machine: &MachineFacts) -> Result<(), CliError> {
    let threads = machine.threads;
    let plural = if threads == 1 { "" } else { "s" };
    output.line(format_args!("{} kernels, {threads} thread{plural}", machine.kernels()))
}

/// A layer's heading.
pub fn layer(output: &mut Output, layer: Layer, compile_time: Duration) -> Result<(), CliError> {
    let Layer { inputs, outputs, rank } = layer;
    output.line(format_args!(
        "\n{HEADING}{inputs} to {outputs}, r {rank}{HEADING:#}  {FAINT}compiled in {}{FAINT:#}",
        shown(compile_time)
    ))?;
    output.line(format_args!(
        "{FAINT}{:>5}{:>10}{:>10}{:>7}{:>10}{:>10}{:>10}{:>10}{:>8}{FAINT:#}",
        "batch", "dense", "unmerged", "/dense", "merged", "live", "/unmerged", "bound", "speedup"
    ))
}

/// A line of a layer's table.
pub fn batch(output: &mut Output, facts: &BatchFacts) -> Result<(), CliError> {
    let percent = |share: f64, of: &str| format!("{:.0}% {of}", 100.0 * share);
    let ceiling = facts.share_of_ceiling.map(|share| percent(share, "tile"));
    let bound = ceiling.or(facts.share_of_stream.map(|share| percent(share, "read"))).unwrap_or_default();
    let times = |ratio: f64| format!("{ratio:.2}x");
    output.line(format_args!(
        "{:>5}{:>10}{:>10}{:>7}{:>10}{:>10}{:>10}{:>10}{:>8}",
        facts.batch,
        shown(facts.dense),
        shown(facts.unmerged),
        times(facts.unmerged_per_dense),
        shown(facts.merged),
        shown(facts.live),
        times(facts.live_per_unmerged),
        bound,
        facts.speedup.map(times).unwrap_or_default()
    ))
}

/// What the columns mean.
pub fn legend(output: &mut Output, threads: u16) -> Result<(), CliError> {
    let mut lines = vec![
        "Medians of interleaved turns. unmerged, merged, live: DoRA as a second product,",
        "folded into the weight, and with A, B and m passed to each call.",
        "bound: DoRA unmerged as a share of what one thread can do at most: of the tile",
        "out of the first-level cache, or of a plain read of as many bytes as W has.",
    ];
    if threads > 1 {
        lines.push("speedup: DoRA unmerged on one thread against all of them.");
    }
    output.line("")?;
    lines.into_iter().try_for_each(|line| output.line(format_args!("{FAINT}{line}{FAINT:#}")))
}
