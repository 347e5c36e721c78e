//! `engraft show`: one level of a model's lowering, for people and tools.

use super::error::CliError;
use super::model::ModelArgs;
use super::output::Output;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use engraft::compiler::{Options, optimize};
use engraft::ir::{Graph, dot, json, text};
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
    /// Merge the adapter into the weights when it is loaded
    #[arg(long)]
    merge: bool,
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
    /// The model cannot be read or lowered that far, or the format is not one of the stage's.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let Self { stage, format, merge, .. } = *self;
        if !format.shows(stage) {
            let expected = Format::ALL.into_iter().filter(|f| f.shows(stage)).map(Format::name).collect();
            return Err(CliError::Format { format: format.name(), stage: stage.name(), expected });
        }
        let graph = self.model.read()?.graph;
        let options = Options { merge, ..Options::default() };
        let text = match stage {
            Level::Built => format.printer()(&graph),
            Level::Optimized => format.printer()(&optimize(&graph, &options)?.graph),
            Level::Trace | Level::Plan | Level::Clif | Level::Asm => snapshot::at(stage, &graph, &options)?,
        };
        output.text(&text)
    }
}
