//! What banks of adapters cost, each number beside its target: `cargo bench --bench bank`. One layer whose rows have
//! adapters of their own, merged or not; and `MiniLM` while adapters are swapped, with a thousand of them, and for a minute of everything at
//! once. What is timed is compared first, and what is computed while adapters change is compared always.
#![allow(clippy::unwrap_used, reason = "benchmarks may panic")]

mod adapters;
mod findings;
mod layers;
mod many;
mod merge;
mod minilm;
mod soak;
mod swap;
mod turns;

use clap::{Parser, ValueEnum};
use engraft::runtime::Options;
use findings::Section;
use minilm::MiniLm;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Measure banks of adapters
#[derive(Parser)]
struct Args {
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Of the part merge, only layers of this shape, such as 768x3072
    #[arg(long, value_name = "INxOUT")]
    shape: Option<String>,
    /// About how long the rounds at one point take
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// How often an adapter is swapped
    #[arg(long, value_name = "N", default_value_t = 1000)]
    swaps: usize,
    /// How many adapters are loaded at once
    #[arg(long, value_name = "N", default_value_t = 1000)]
    adapters: usize,
    /// How long to call and swap at random
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    soak: f64,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// What `cargo bench` passes; without it, this is a test, which is short
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the measurements.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A layer whose rows have adapters of their own.
    Layers,
    /// Swapping under load.
    Swap,
    /// What is merged by its cost, beside the better way.
    Merge,
    /// Many adapters.
    Many,
    /// Everything at once.
    Soak,
}

/// One thread, which is the caller's.
fn one_thread() -> Options {
    Options { threads: Some(NonZeroUsize::MIN), ..Options::default() }
}

fn main() {
    let mut args = Args::parse();
    if !args.bench {
        (args.seconds, args.swaps, args.adapters, args.soak) = (0.01, 20, 20, 1.0);
    }
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    let mut sections = Vec::new();
    let mut done = |section: Section| {
        if !args.json {
            print!("{section}");
        }
        sections.push(section);
    };
    let budget = Duration::from_secs_f64(args.seconds);
    // The one that measures how a process grows comes first: it would grow into what others have freed.
    for part in [Part::Many, Part::Layers, Part::Merge, Part::Swap, Part::Soak]
        .into_iter()
        .filter(|part| wanted(*part))
    {
        if part == Part::Layers {
            layers::measure(args.bench, budget, &mut done);
            continue;
        }
        if part == Part::Merge {
            merge::measure(args.bench, args.shape.as_deref(), budget, &mut done);
            continue;
        }
        // Whoever opens it says why it can't be.
        let Some(minilm) = MiniLm::open() else { continue };
        done(match part {
            Part::Many => many::measure(&minilm, args.adapters, budget),
            Part::Soak => soak::measure(&minilm, Duration::from_secs_f64(args.soak)),
            _ => swap::measure(&minilm, args.swaps),
        });
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&sections).unwrap());
    }
}
