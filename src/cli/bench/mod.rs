//! `engraft bench`: how fast a layer with DoRA is beside the bare one and beside what the machine can do at most, all
//! timed in turn in one run.

mod contest;
mod facts;
mod page;
mod plain;

use super::error::CliError;
use super::layer::Layer;
use super::output::Output;
use clap::Args;
use contest::Contest;
use engraft::runtime::{Context, Options as RuntimeOptions};
use facts::{Facts, LayerFacts, MachineFacts};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Time a layer bare, with DoRA unmerged, merged and live, and the machine's bounds
#[derive(Args)]
pub struct Bench {
    /// Rows of the input, from 1 to 4096 each
    #[arg(long, value_name = "ROWS,...", value_delimiter = ',', default_value = "1,2,4,8,32,128,512",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Vec<u16>,
    /// Layers, as INxOUT:RANK
    #[arg(
        long,
        value_name = "INxOUT:RANK,...",
        value_delimiter = ',',
        default_value = "768x768:8,768x3072:8,3072x768:8,4096x4096:16"
    )]
    shape: Vec<Layer>,
    /// Threads that work on a call; more than one are also compared with one
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// The contenders disagree, or this machine cannot run them.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let one = context(1)?;
        let context = if self.threads == 1 { Arc::clone(&one) } else { context(self.threads)? };
        let machine = MachineFacts::of(&context);
        if !self.json {
            page::machine(output, &machine)?;
        }
        let mut layers = Vec::new();
        for &layer in &self.shape {
            layers.push(self.layer(layer, &context, &one, output)?);
        }
        if self.json {
            return output.json(&Facts { machine, layers });
        }
        page::legend(output, self.threads)
    }

    fn layer(
        &self,
        layer: Layer,
        context: &Arc<Context>,
        one: &Arc<Context>,
        output: &mut Output,
    ) -> Result<LayerFacts, CliError> {
        let rows = self.batch.iter().copied().max().unwrap_or(1);
        let values = layer.values(usize::from(rows))?;
        let contest = Contest::new(layer, &values, context, one)?;
        if !self.json {
            page::layer(output, layer, contest.compile_time)?;
        }
        let mut batches = Vec::new();
        for &batch in &self.batch {
            let facts = contest.at(usize::from(batch))?;
            if !self.json {
                page::batch(output, &facts)?;
            }
            batches.push(facts);
        }
        Ok(LayerFacts { shape: layer, layer, compile_time: contest.compile_time, batches })
    }
}

fn context(threads: u16) -> Result<Arc<Context>, CliError> {
    let threads = NonZeroUsize::new(usize::from(threads));
    Ok(Arc::new(Context::new(RuntimeOptions { threads, ..RuntimeOptions::default() })?))
}
