//! What a command line says of merging: which adapters become part of their layers' weights when they are loaded.

use super::error::CliError;
use super::roofline::one_thread;
use clap::{Args, ValueEnum};
use engraft::compiler::plan::merge_cost::Workload;
use engraft::compiler::{CostModel, MergeRule, Merging};
use engraft::ir::Bindings;
use engraft::runtime::Context;
use engraft::runtime::measure::Rates;

/// Which adapters are merged.
#[derive(Args)]
pub struct MergeArgs {
    /// Merge adapters into their layers' weights when they are loaded: with auto, where that costs less on one thread of this
    /// machine, as it is measured then
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        default_value = "never"
    )]
    merge: Which,
    /// Whether one layer is merged, whatever --merge says of the others; again and again
    #[arg(long, value_name = "NAME=merged|factored", value_parser = layer)]
    merge_layer: Vec<(String, bool)>,
    /// For --merge=auto and show: the calls that an adapter serves until it is swapped [default: all, it stays]
    #[arg(long, value_name = "CALLS", value_parser = calls)]
    calls_per_swap: Option<f64>,
    /// For --merge=auto and show: the bytes that merged weights may take together [default: any]
    #[arg(long, value_name = "BYTES")]
    merge_memory: Option<u64>,
    /// For --merge=auto and show: the rows that a layer computes in a call, where no dims tell
    #[arg(long, value_name = "ROWS")]
    rows_per_call: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// None
    Never,
    /// All
    Always,
    /// Those for which it pays
    Auto,
}

/// What a command knows of its calls.
pub struct Calls {
    /// Rows, where neither dims nor the command line tell.
    pub rows: u64,
    /// Adapters that they have.
    pub adapters: u64,
    /// Extents of dims.
    pub dims: Bindings,
}

impl MergeArgs {
    /// What is asked for by a command that prints no estimates. Measures the machine, if that decides.
    ///
    /// # Errors
    /// The machine cannot be measured, or something is said that only an estimate depends on, and there is none.
    pub fn decided(&self, calls: &Calls) -> Result<Merging, CliError> {
        let estimated = [
            ("--calls-per-swap", self.calls_per_swap.is_some()),
            ("--merge-memory", self.merge_memory.is_some()),
            ("--rows-per-call", self.rows_per_call.is_some()),
        ];
        match estimated.into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) if self.merge != Which::Auto => Err(CliError::WithoutEstimate { option }),
            _ => self.merging(calls),
        }
    }

    /// Whether adapters are to be merged that must be there for it.
    pub fn needs_adapters(&self) -> bool {
        self.merge == Which::Always || !self.merge_layer.is_empty()
    }

    /// What is asked for. Measures the machine, if that decides.
    ///
    /// # Errors
    /// The machine cannot be measured.
    pub fn merging(&self, calls: &Calls) -> Result<Merging, CliError> {
        let rule = match self.merge {
            Which::Never => MergeRule::Never,
            Which::Always => MergeRule::Always,
            Which::Auto => MergeRule::ByCost(self.model(calls)?),
        };
        Ok(Merging { rule, layers: self.merge_layer.iter().cloned().collect() })
    }

    /// What decides, or would. Measures the machine.
    ///
    /// # Errors
    /// There is no place to measure in, or no memory to measure with.
    pub fn model(&self, calls: &Calls) -> Result<CostModel, CliError> {
        let workload = Workload {
            rows: self.rows_per_call.unwrap_or(calls.rows),
            adapters: calls.adapters,
            calls_per_swap: self.calls_per_swap.unwrap_or(f64::INFINITY),
            memory: self.merge_memory,
            beside: 0,
        };
        let rates = Rates::measure(&Context::new(one_thread())?)?;
        Ok(CostModel { rates, workload, dims: calls.dims.clone() })
    }
}

/// Reads `encoder.layer.0.query=merged`.
fn layer(text: &str) -> Result<(String, bool), String> {
    match text.rsplit_once('=') {
        Some((name, "merged")) => Ok((name.to_owned(), true)),
        Some((name, "factored")) => Ok((name.to_owned(), false)),
        _ => Err(format!("expected NAME=merged or NAME=factored, found `{text}`")),
    }
}

/// Reads a number of calls above 0, also one that is no whole number, since it is a mean.
fn calls(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|calls: &f64| *calls > 0.0);
    number.ok_or_else(|| format!("expected a number above 0, found `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::{calls, layer};

    #[test]
    fn layers_and_calls_are_read_or_refused() {
        assert_eq!(layer("a.b=merged"), Ok(("a.b".to_owned(), true)));
        assert_eq!(layer("a=b=factored"), Ok(("a=b".to_owned(), false)));
        for bad in ["a", "a=", "a=yes", "merged"] {
            assert!(layer(bad).unwrap_err().ends_with(&format!("`{bad}`")));
        }
        assert_eq!((calls("0.5"), calls("inf")), (Ok(0.5), Ok(f64::INFINITY)));
        for bad in ["0", "-1", "NaN", "x", ""] {
            assert!(calls(bad).unwrap_err().ends_with(&format!("`{bad}`")));
        }
    }
}
