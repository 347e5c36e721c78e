//! `engraft generate`: a text goes on, token by token, as it is read; or several do, together.

use super::error::CliError;
use super::output::{FAINT, Output};
use super::pretrained::PretrainedArgs;
use clap::{Args, value_parser};
use engraft::import::models::Logits;
use engraft::pretrained::sampling::Sampler;
use engraft::pretrained::{CompileOptions, End, Generation, Prompt};
use serde::Serialize;
use std::time::Instant;

/// Go on with a text
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    model: PretrainedArgs,
    /// The text to go on with, as it is: no chat template is put around it. Several go on together, with --rows each with its
    /// own adapter, and are printed at the end
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
    /// What the drawing begins with; the same seed draws the same text, up to how the machine's kernels round
    #[arg(long, requires = "temperature", default_value_t = 0)]
    seed: u64,
    /// Print what was generated as JSON, at the end; a line for each of several prompts
    #[arg(long)]
    json: bool,
}

/// What was generated.
#[derive(Serialize)]
struct Facts<'g> {
    prompt_tokens: usize,
    tokens: &'g [u32],
    text: &'g str,
    end: &'static str,
    milliseconds: Milliseconds,
}

/// How long it took, all texts together.
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
        let options = CompileOptions { logits: Logits::Last, ..Default::default() };
        let ready = self.model.ready(&options, self.prompt.len() as u64)?;
        let mut generator = ready.model.generator()?;
        generator.set_rows(ready.rows("prompts", self.prompt.len())?);
        let load = start.elapsed();
        let mut samplers = self.prompt.iter().map(|_| self.sampler()).collect::<Result<Vec<_>, _>>()?;
        let prompts = self.prompt.iter().zip(&mut samplers);
        let mut prompts: Vec<_> = prompts.map(|(text, sampler)| Prompt { text, sampler }).collect();
        let is_streamed = !self.json && prompts.len() == 1;
        let start = Instant::now();
        // Whoever reads may go away: that ends the printing, not the text.
        let mut printed = Ok(());
        let generations = generator.generate_all(&mut prompts, self.tokens as usize, |_, piece| {
            if is_streamed && printed.is_ok() {
                printed = output.text(piece);
            }
        })?;
        printed?;
        let [load, generate] = [load, start.elapsed()].map(|time| time.as_secs_f64() * 1e3);
        for generation in &generations {
            if !self.json && !is_streamed {
                output.text(&generation.text)?;
            }
            self.print(output, generation, Milliseconds { load, generate })?;
        }
        if self.json {
            return Ok(());
        }
        let tokens: usize = generations.iter().map(|generation| generation.tokens.len()).sum();
        let rate = tokens as f64 / generate * 1e3;
        output.line(format_args!("{FAINT}loaded in {load:.0} ms, {rate:.1} tokens/s{FAINT:#}"))
    }

    /// What chooses the tokens: the same for each prompt.
    fn sampler(&self) -> Result<Sampler, CliError> {
        Ok(match self.temperature {
            None => Sampler::greedy(),
            Some(temperature) => Sampler::seeded(temperature, self.top_p, self.seed)?,
        })
    }

    /// What is said after a text. Times are those of all texts together.
    fn print(
        &self,
        output: &mut Output,
        generation: &Generation,
        milliseconds: Milliseconds,
    ) -> Result<(), CliError> {
        let Generation { prompt_tokens, tokens, text, end } = generation;
        let end = match end {
            End::Token => "end token",
            End::Enough => "token limit",
            End::Context => "full context",
        };
        if self.json {
            let facts = Facts { prompt_tokens: *prompt_tokens, tokens, text, end, milliseconds };
            return if self.prompt.len() > 1 { output.json_line(&facts) } else { output.json(&facts) };
        }
        output.line("")?;
        output.line(format_args!("{FAINT}{prompt_tokens} + {} tokens ({end}){FAINT:#}", tokens.len()))
    }
}
