//! The command's arguments, and the way from a subcommand's result to an exit code: 0 it did what it was asked, 1 a check
//! failed or an input was bad, 2 it was called wrongly.

mod adapter;
mod adapter_args;
mod agreement;
mod bench;
mod demo;
mod embed;
mod error;
mod execute;
mod generate;
mod layer;
mod merge_args;
mod model;
mod output;
mod pretrained;
mod profile;
mod progress;
mod roofline;
mod run;
mod show;
mod timing;
mod verify;

use clap::{Parser, Subcommand};
use error::CliError;
use output::{BAD, Output};
use std::error::Error;
use std::io;
use std::process::ExitCode;

/// Compile adapter models (LoRA, DoRA and their relatives), and look at what becomes of them.
#[derive(Parser)]
#[command(name = "engraft", version, max_term_width = 80)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Bench(bench::Bench),
    Show(show::Show),
    Run(run::Run),
    Embed(embed::Embed),
    Generate(generate::Generate),
    Verify(verify::Verify),
    Adapter(adapter::Adapter),
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let mut output = Output::stdout();
    let result = match command {
        Command::Demo(demo) => demo.run(&mut output),
        Command::Bench(bench) => bench.run(&mut output),
        Command::Show(show) => show.run(&mut output),
        Command::Run(run) => run.run(&mut output),
        Command::Embed(embed) => embed.run(&mut output),
        Command::Generate(generate) => generate.run(&mut output),
        Command::Verify(verify) => verify.run(&mut output),
        Command::Adapter(adapter) => adapter.run(&mut output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(CliError::Output { source }) if source.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("{BAD}error{BAD:#}: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it on one line. Most errors tell their cause themselves; then it is not told again.
fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let between = match line.chars().last() {
            None => "",
            Some(':') => " ",
            Some(_) => "; ",
        };
        line.push_str(between);
        line.push_str(part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{Arguments, one_line};
    use clap::CommandFactory;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("the {name} is broken:\n  first\n  second")]
    struct Inner {
        name: &'static str,
    }

    #[derive(Debug, Error)]
    enum Outer {
        #[error("cannot go on")]
        Silent { source: Inner },
        #[error("cannot go on: {source}")]
        Told { source: Inner },
    }

    #[test]
    fn errors_are_one_line_with_each_cause_once() {
        let expected = "cannot go on: the graph is broken: first; second";
        assert_eq!(one_line(&Outer::Silent { source: Inner { name: "graph" } }), expected);
        assert_eq!(one_line(&Outer::Told { source: Inner { name: "graph" } }), expected);
    }

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
