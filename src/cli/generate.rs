//! `engraft generate`: a text goes on, token by token, as it is read.

use super::error::CliError;
use super::output::{FAINT, Output};
use super::pretrained::PretrainedArgs;
use clap::{Args, value_parser};
use engraft::import::models::Logits;
use engraft::pretrained::sampling::Sampler;
use engraft::pretrained::{CompileOptions, End, Generation, Generator};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Go on with a text
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    model: PretrainedArgs,
    /// The text to go on with, as it is: no chat template is put around it. With --rows, again and again, each with its
    /// own adapter
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// The most tokens to generate
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = value_parser!(u32).range(1..))]
    tokens: u32,
    /// Draw tokens at random: below 1 prefers the likely ones more [default: always the likeliest]
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw from the likeliest tokens only whose probabilities together reach this
    #[arg(long, requires = "temperature", default_value_t = 1.0)]
    top_p: f64,
    /// What the drawing begins with; the same seed draws the same text on every machine
    #[arg(long, requires = "temperature", default_value_t = 0)]
    seed: u64,
    /// Print what was generated as JSON, at the end; a line for each of several prompts
    #[arg(long)]
    json: bool,
}

/// What was generated.
#[derive(Serialize)]
struct Facts {
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    end: &'static str,
    milliseconds: Milliseconds,
}

#[derive(Serialize)]
struct Milliseconds {
    load: f64,
    generate: f64,
}

impl Generate {
    /// Generates text and prints it as it comes.
    ///
    /// # Errors
    /// The model cannot be read or compiled, the prompt does not fit it, or the options make no sense.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        // What makes no sense is refused before anything is loaded.
        self.sampler()?;
        let start = Instant::now();
        let ready = self.model.ready(&CompileOptions { logits: Logits::Last, ..Default::default() }, 1)?;
        let rows = ready.rows("prompts", self.prompt.len())?;
        let mut generator = ready.model.generator()?;
        let mut load = start.elapsed();
        for (index, prompt) in self.prompt.iter().enumerate() {
            generator.set_rows(rows.select(&[index]));
            let mut sampler = self.sampler()?;
            self.generate(&mut generator, prompt, &mut sampler, load, output)?;
            load = Duration::ZERO;
        }
        Ok(())
    }

    /// What chooses the tokens: the same for each prompt.
    fn sampler(&self) -> Result<Sampler, CliError> {
        Ok(match self.temperature {
            None => Sampler::greedy(),
            Some(temperature) => Sampler::seeded(temperature, self.top_p, self.seed)?,
        })
    }

    fn generate(
        &self,
        generator: &mut Generator<'_>,
        prompt: &str,
        sampler: &mut Sampler,
        load: Duration,
        output: &mut Output,
    ) -> Result<(), CliError> {
        let start = Instant::now();
        // Whoever reads may go away: that ends the printing, not the text.
        let mut printed = Ok(());
        let generation = generator.generate(prompt, self.tokens as usize, sampler, |piece| {
            if !self.json && printed.is_ok() {
                printed = output.text(piece);
            }
        })?;
        printed?;
        let generate = start.elapsed();
        let milliseconds =
            Milliseconds { load: load.as_secs_f64() * 1e3, generate: generate.as_secs_f64() * 1e3 };
        self.print(output, generation, milliseconds)
    }

    fn print(
        &self,
        output: &mut Output,
        generation: Generation,
        milliseconds: Milliseconds,
    ) -> Result<(), CliError> {
        let Generation { prompt_tokens, tokens, text, end } = generation;
        let end = match end {
            End::Token => "end token",
            End::Enough => "token limit",
            End::Context => "full context",
        };
        if self.json {
            let facts = Facts { prompt_tokens, tokens, text, end, milliseconds };
            return if self.prompt.len() > 1 { output.json_line(&facts) } else { output.json(&facts) };
        }
        let Milliseconds { load, generate } = milliseconds;
        let rate = tokens.len() as f64 / generate * 1e3;
        output.line("")?;
        output.line(format_args!(
            "{FAINT}{prompt_tokens} + {} tokens ({end}), loaded in {load:.0} ms, {rate:.1} tokens/s{FAINT:#}",
            tokens.len()
        ))
    }
}
