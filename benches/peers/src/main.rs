//! Engraft beside ONNX Runtime, OpenVINO, PyTorch and PEFT: the same layer or model, the same arrays, one session,
//! everybody in turn. `run.sh` makes the environment that this needs; README.md says what is compared, and how it is fair.

mod agreement;
mod bounds;
mod contender;
mod contest;
mod error;
mod layers;
mod machine;
mod mixed;
mod models;
mod onnx_runtime;
mod open_vino;
mod ours;
mod python;
mod report;
mod results;
mod rounds;
mod session;
mod targets;
mod workload;

use clap::Parser;
use error::Error;
use layers::{Grid, Shape};
use machine::Machine;
use results::{Results, Suite};
use session::Session;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Compare Engraft with its peers
#[derive(Parser)]
struct Args {
    /// The Python environment with the peers
    #[arg(long, value_name = "DIR")]
    venv: PathBuf,
    /// Whole models instead of single layers, with one thread
    #[arg(long, conflicts_with_all = ["shape", "batch", "threads"])]
    models: bool,
    /// A batch whose rows have different adapters, on single layers, with one thread
    #[arg(long, conflicts_with_all = ["models", "shape", "batch", "threads"])]
    mixed: bool,
    /// Where `tests/fetch_models.sh` puts the models
    #[arg(long, value_name = "DIR")]
    model_files: PathBuf,
    /// Enough of the grid to see whether all is well
    #[arg(long)]
    quick: bool,
    /// Only these shapes, such as 768x3072
    #[arg(long, value_name = "INxOUT", value_delimiter = ',')]
    shape: Vec<Shape>,
    /// Only these batches
    #[arg(long, value_name = "N", value_delimiter = ',')]
    batch: Vec<usize>,
    /// Only these numbers of threads
    #[arg(long, value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// About how long the rounds at one point take [default: 6, with --models 60]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Where results go; one of the whole grid goes into a directory in it for the kind of machine
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Where results of a part of the grid go
    #[arg(long, value_name = "DIR")]
    partial_results: PathBuf,
}

impl Args {
    fn suite(&self) -> Suite {
        match (self.models, self.mixed) {
            (true, _) => Suite::Models,
            (_, true) => Suite::Mixed,
            _ => Suite::Layers,
        }
    }

    fn grid(&self) -> Grid {
        let mut grid = if self.quick { Grid::quick() } else { Grid::whole() };
        let chosen = |given: &[usize], default: Vec<usize>| {
            let mut chosen = if given.is_empty() { default } else { given.to_vec() };
            chosen.sort_unstable();
            chosen.dedup();
            chosen.retain(|&n| n > 0);
            chosen
        };
        if !self.shape.is_empty() {
            grid.shapes.clone_from(&self.shape);
        }
        grid.batches = chosen(&self.batch, grid.batches);
        grid.threads = chosen(&self.threads, grid.threads);
        grid
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let start = Instant::now();
    let (grid, suite) = (args.grid(), args.suite());
    let (threads, is_whole, seconds) = match suite {
        Suite::Layers => (grid.threads.clone(), grid.is_whole(), 6.0),
        Suite::Models => (vec![1], !args.quick, 60.0),
        Suite::Mixed => (vec![1], !args.quick, 6.0),
    };
    let budget = Duration::from_secs_f64(args.seconds.unwrap_or(seconds).clamp(0.1, 600.0));
    let session = Session::open(&args.venv, &threads)?;
    let machine = Machine::describe(session.context())?;
    let versions = session.versions()?;
    let points = match suite {
        Suite::Layers => layers::points(&session, &grid, budget)?,
        Suite::Models => models::points(&session, &args.model_files, args.quick, budget)?,
        Suite::Mixed => mixed::points(&session, args.quick, budget)?,
    };
    let ratios = targets::ratios(&points, &threads);
    let directory = if is_whole { args.results.join(machine.kind()) } else { args.partial_results.clone() };
    let results = Results { suite, machine, versions, threads, points, ratios };
    report::write(&results, &directory)?;
    eprintln!("{} in {:.0} s", directory.display(), start.elapsed().as_secs_f64());
    Ok(())
}
