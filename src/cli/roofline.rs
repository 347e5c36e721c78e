//! The roofline in words: what this machine can do, and what of it binds each step of a plan. Numbers with their units, as
//! the profile prints them too. Knows nothing of measured steps.

use super::error::CliError;
use super::output::{FAINT, HEADING, Output, wrapped};
use engraft::compiler::plan::roofline::bound;
use engraft::compiler::plan::{Plan, STAGES};
use engraft::ir::Bindings;
use engraft::runtime::Options;
use engraft::runtime::measure::Machine;
use std::num::NonZeroUsize;

/// One thread: the rates of a machine are those of one.
pub fn one_thread() -> Options {
    Options { threads: Some(NonZeroUsize::MIN), ..Options::default() }
}

/// Prints under which roof each step is.
///
/// # Errors
/// [`CliError::Output`].
pub fn print(
    output: &mut Output,
    plan: &Plan,
    machine: &Machine,
    extents: &Bindings,
) -> Result<(), CliError> {
    output.line(format_args!("\n{HEADING}roofline{HEADING:#} {FAINT}{}{FAINT:#}", rates(machine)))?;
    for stage in STAGES {
        for (index, step) in plan.steps_at(stage) {
            let bound = bound(&plan.cost(step), machine, extents);
            let what = format!("  {index} {} {} @{stage}: {bound}", step.kernel.name(), step.name);
            output.line(wrapped(&what))?;
        }
    }
    Ok(())
}

/// What one thread can do.
pub fn rates(machine: &Machine) -> String {
    let (flops, bytes) = (rate(machine.flops_per_second, "flop"), rate(machine.bytes_per_second, "B"));
    format!("one thread, measured now: {flops}, {bytes}")
}

/// So many a second.
pub fn rate(per_second: f64, unit: &str) -> String {
    format!("{}{unit}/s", scaled(per_second))
}

/// A number in three digits or four, and the prefix of its unit.
pub fn scaled(number: f64) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scale, prefix) = PREFIXES.into_iter().find(|(scale, _)| number >= *scale).unwrap_or((1.0, ""));
    let number = number / scale;
    match (number, prefix) {
        (_, "") => format!("{number:.0} "),
        (10.0.., _) => format!("{number:.1} {prefix}"),
        _ => format!("{number:.2} {prefix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{rate, scaled};

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 999.0, 1e3, 12_345.0, 9.87e6, 123.4e9, 2e12, 5e15].map(scaled);
        assert_eq!(shown, ["0 ", "999 ", "1.00 k", "12.3 k", "9.87 M", "123.4 G", "2.00 T", "5000.0 T"]);
        assert_eq!(rate(42.5e9, "B"), "42.5 GB/s");
    }
}
