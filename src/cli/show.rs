//! `engraft show`: one level of a model's lowering, for people and tools.

use super::error::CliError;
use super::merge_args::MergeArgs;
use super::model::{Model, ModelArgs};
use super::output::{HEADING, Output};
use super::roofline::{self, one_thread};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use engraft::compiler::{Options, optimize, plan};
use engraft::ir::{Bindings, Graph, Symbol, dot, json, text};
use engraft::runtime::Context;
use engraft::runtime::measure::Machine;
use engraft::snapshot::{self, Level};

/// Print a model, as built or at a later stage of its compilation
#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    model: ModelArgs,
    /// How far to compile before printing
    #[arg(
        long,
        default_value = Level::Built.name(),
        value_parser = PossibleValuesParser::new(Level::ALL.map(Level::name))
            .map(|name| Level::from_name(&name).unwrap_or(Level::Built)),
    )]
    stage: Level,
    /// How to print; json and dot are for the graph, so for built and optimized
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    merge: MergeArgs,
    /// The extent of a dim, for the bounds of the stage plan; with all of them, the bounds are times
    #[arg(long = "dim", value_name = "NAME=EXTENT", value_parser = extent)]
    dims: Vec<(Symbol, u64)>,
}

/// Reads `batch=32`.
fn extent(text: &str) -> Result<(Symbol, u64), String> {
    let read = |(name, extent): (&str, &str)| Some((Symbol::new(name), extent.parse().ok()?));
    text.split_once('=')
        .and_then(read)
        .ok_or_else(|| "expected a name and an extent, as in batch=32".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line a node, which reads back
    Text,
    /// See docs/json-format.md
    Json,
    /// For Graphviz
    Dot,
}

impl Format {
    const ALL: [Self; 3] = [Self::Text, Self::Json, Self::Dot];

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Dot => "dot",
        }
    }

    /// How a graph is printed in this format.
    fn printer(self) -> fn(&Graph) -> String {
        match self {
            Self::Text => text::print,
            Self::Json => json::to_string,
            Self::Dot => dot::print,
        }
    }

    /// Whether this format shows this level.
    fn shows(self, level: Level) -> bool {
        self == Self::Text || matches!(level, Level::Built | Level::Optimized)
    }
}

impl Show {
    /// Prints.
    ///
    /// # Errors
    /// The model cannot be read or lowered that far, the format is not one of the stage's, or
    /// the machine cannot be measured.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let Self { stage, format, .. } = *self;
        if !format.shows(stage) {
            let expected = Format::ALL.into_iter().filter(|f| f.shows(stage)).map(Format::name).collect();
            return Err(CliError::Format { format: format.name(), stage: stage.name(), expected });
        }
        if stage != Level::Plan && !self.dims.is_empty() {
            return Err(CliError::DimStage { stage: stage.name() });
        }
        let model = self.model.read()?;
        if stage == Level::Plan {
            return self.plan(output, &model);
        }
        let merging = self.merge.merging(&model.calls(Bindings::new()))?;
        let (graph, merge) = (&model.graph, model.compiled(&merging));
        let options = Options { merge, ..Options::default() };
        let text = match stage {
            Level::Built => format.printer()(graph),
            Level::Optimized => format.printer()(&optimize(graph, &options)?.graph),
            Level::Trace | Level::Plan | Level::Clif | Level::Asm => snapshot::at(stage, graph, &options)?,
        };
        output.text(&text)
    }

    /// The plan, under which roof each of its steps is on this machine, and for each adapted layer whether it is merged.
    fn plan(&self, output: &mut Output, model: &Model) -> Result<(), CliError> {
        let calls = model.calls(self.dims.iter().cloned().collect());
        let merging = self.merge.merging(&calls)?;
        let options = Options { merge: model.compiled(&merging), ..Options::default() };
        let optimized = optimize(&model.graph, &options)?;
        let plan = plan(&optimized.graph, &options)?;
        let known = || plan.symbols.iter().map(|bound| &bound.symbol);
        if let Some((dim, _)) = self.dims.iter().find(|(dim, _)| known().all(|symbol| symbol != dim)) {
            let known = known().map(ToString::to_string).collect();
            return Err(CliError::UnknownDim { dim: dim.to_string(), known });
        }
        let machine = Machine::measure(&Context::new(one_thread())?)?;
        output.text(&plan.to_string())?;
        roofline::print(output, &plan, &machine, &calls.dims)?;
        let unmerged = optimized.trace.unmerged().unwrap_or(&optimized.graph);
        let decisions = model.decisions(unmerged, &merging, || self.merge.model(&calls))?;
        if decisions.is_empty() {
            return Ok(());
        }
        output.line(format_args!("\n{HEADING}merged or factored{HEADING:#}"))?;
        decisions.iter().try_for_each(|decision| output.line(format_args!("  {decision}")))
    }
}
