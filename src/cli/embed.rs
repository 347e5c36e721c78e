//! `engraft embed`: texts to vectors, with a model directory's tokenizer and pooling.

use super::error::CliError;
use super::output::Output;
use super::pretrained::PretrainedArgs;
use super::progress;
use clap::Args;
use engraft::pretrained::CompileOptions;
use ndarray::Array2;
use ndarray_npy::write_npy;
use serde::Serialize;
use std::io::{self, Read};
use std::path::PathBuf;

/// Turn texts into vectors, as sentence-transformers does
#[derive(Args)]
pub struct Embed {
    #[command(flatten)]
    model: PretrainedArgs,
    /// The texts, one a line [default: standard input]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write the vectors as one array `[texts, width]`, f32, in `NumPy`'s format, instead of printing them
    #[arg(long, value_name = "NPY")]
    output: Option<PathBuf>,
}

/// The tokens of a batch of texts, about: the rows of a call by which merging is decided.
const ROWS: u64 = 512;

/// One text's line.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    embedding: &'a [f32],
}

impl Embed {
    /// Embeds the texts: a line of JSON for each, or one file.
    ///
    /// # Errors
    /// The model cannot be read or compiled, or a text cannot be read; then nothing is printed or written.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let texts = self.texts()?;
        let texts: Vec<&str> = texts.lines().collect();
        let ready = self.model.ready(&CompileOptions::default(), ROWS)?;
        let rows = ready.rows("texts", texts.len())?;
        let progress = progress::bar(texts.len());
        let mut embedder = ready.model.embedder()?;
        let vectors = embedder.embed_with(&texts, &rows, |done| progress.inc(done as u64))?;
        progress.finish_and_clear();
        match &self.output {
            Some(path) => write_npy(path, &vectors)
                .map_err(|source| CliError::WriteNpy { path: path.clone(), source: Box::new(source) }),
            None => print(output, &texts, &vectors),
        }
    }

    fn texts(&self) -> Result<String, CliError> {
        if let Some(path) = &self.text {
            return std::fs::read_to_string(path)
                .map_err(|source| CliError::Read { path: path.clone(), source });
        }
        let (mut text, path) = (String::new(), PathBuf::from("standard input"));
        io::stdin().read_to_string(&mut text).map_err(|source| CliError::Read { path, source })?;
        Ok(text)
    }
}

fn print(output: &mut Output, texts: &[&str], vectors: &Array2<f32>) -> Result<(), CliError> {
    for (text, row) in texts.iter().zip(vectors.outer_iter()) {
        let embedding = row.to_vec();
        output.json_line(&Line { text, embedding: &embedding })?;
    }
    Ok(())
}
