//! `engraft adapter merge`: adapters into a model's weights, and out of them again, as a directory.

use super::in_adapter;
use super::table::{Table, percent};
use crate::cli::error::CliError;
use crate::cli::output::{FAINT, HEADING, Output, wrapped};
use clap::Args;
use engraft::import::merge::{LEAST_SURVIVAL, MergeOptions, MergeReport, MergedTensor, merge, unmerge};
use engraft::import::peft::PeftAdapter;
use engraft::import::safetensors::FloatType;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Merge adapters into the weights of a model, or take them out again
///
/// The directory that is written holds the whole model: the weights that change, all others to the byte, and the configs and
/// tokenizer beside them.
#[derive(Args)]
pub struct Merge {
    /// The model: a directory as Hugging Face lays it out, with safetensors
    model: PathBuf,
    /// A directory that PEFT saved; several are applied one after the other, in this order
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    /// Where to write; it must not exist, or be an empty directory
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    rounding: Rounding,
    /// Take the adapters out of a model that they were merged into
    #[arg(long, conflicts_with_all = ["survival", "force"])]
    unmerge: bool,
    /// The weights are what the adapters' initialisation (such as PiSSA) left
    #[arg(long)]
    residual_base: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// How weights are rounded.
#[derive(Args)]
struct Rounding {
    /// The type of the weights that change: f32, f16 or bf16 [default: that of each in the model]
    #[arg(long)]
    dtype: Option<FloatType>,
    /// How much of each tensor's change must survive rounding, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = LEAST_SURVIVAL, value_parser = share)]
    survival: f64,
    /// Write also what survives less
    #[arg(long)]
    force: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("expected a number from 0 to 1, found `{text}`"))
}

#[derive(Serialize)]
struct Facts<'r> {
    changed: Vec<TensorFacts<'r>>,
    kept: usize,
    copied: &'r [String],
    left: &'r [String],
}

#[derive(Serialize)]
struct TensorFacts<'r> {
    tensor: &'r str,
    what: &'static str,
    dtype: &'static str,
    relative_change: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    survival: Option<f64>,
}

impl Merge {
    /// Merges.
    ///
    /// # Errors
    /// As [`merge`] and [`unmerge`]; then nothing is written.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let adapters = self.adapter.iter().map(|path| super::open(path, self.residual_base));
        let adapters: Vec<PeftAdapter> = adapters.collect::<Result<_, _>>()?;
        let adapters: Vec<&PeftAdapter> = adapters.iter().collect();
        let Rounding { dtype, survival, force } = self.rounding;
        let options = MergeOptions { dtype, least_survival: survival, force };
        let run = if self.unmerge { unmerge } else { merge };
        let report = run(&self.model, &adapters, &self.output, options).map_err(|error| {
            let paths: Vec<&Path> = self.adapter.iter().map(PathBuf::as_path).collect();
            in_adapter(error.adapter(), error.into(), &paths)
        })?;
        if self.json {
            return output.json(&facts(&report));
        }
        self.print(output, &report)
    }

    fn print(&self, output: &mut Output, report: &MergeReport) -> Result<(), CliError> {
        let MergeReport { changed, kept, copied, left } = report;
        let table = Table::new(&[("", 10), ("type", 6), ("change", 10), ("survives", 10)]);
        table.heading(output, "tensor")?;
        for MergedTensor { tensor, what, dtype, change, survival } in changed {
            let cells = vec![what.name().to_owned(), dtype.to_string(), percent(*change), percent(*survival)];
            table.line(output, tensor, cells)?;
        }
        let (count, path) = (changed.len(), self.output.display());
        output.line(format_args!(
            "\n{HEADING}{count} tensors changed{HEADING:#}, {kept} as they were, in {path}"
        ))?;
        if !copied.is_empty() {
            output.line(wrapped(&format!("copied: {}", copied.join(", "))))?;
        }
        if !left.is_empty() {
            output.line(wrapped(&format!("not copied, since they may hold weights: {}", left.join(", "))))?;
        }
        if self.unmerge {
            return Ok(());
        }
        output.line(format_args!("{FAINT}survives: how much of the change rounding leaves as it is{FAINT:#}"))
    }
}

fn facts(report: &MergeReport) -> Facts<'_> {
    let MergeReport { changed, kept, copied, left } = report;
    let tensor = |merged: &'_ MergedTensor| (merged.what.name(), merged.dtype.name());
    let changed = changed.iter().map(|merged| {
        let (what, dtype) = tensor(merged);
        let MergedTensor { tensor, change, survival, .. } = merged;
        TensorFacts { tensor, what, dtype, relative_change: *change, survival: *survival }
    });
    Facts { changed: changed.collect(), kept: *kept, copied, left }
}
