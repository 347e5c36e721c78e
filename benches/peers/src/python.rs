//! PyTorch and PEFT, in a Python process each for a number of threads. It times its calls itself and says how long they
//! took, so that no pipe and no process switch is counted. Requests and answers are lines of JSON.

use crate::contender::{Contender, Entry, Turn, Who};
use crate::error::Error;
use engraft::import::safetensors::read_weights;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A Python process.
pub struct Python {
    threads: usize,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What the process answers.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<T> {
    Done(T),
    Failed(String),
}

impl Python {
    /// Starts the process.
    ///
    /// # Errors
    /// There is no such interpreter or script.
    pub fn start(interpreter: &Path, script: &Path, threads: usize) -> Result<Self, Error> {
        let mut child = Command::new(interpreter)
            .arg(script)
            .env("OMP_NUM_THREADS", threads.to_string())
            .env("MKL_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::Pipe)?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| Error::Pipe(io::ErrorKind::BrokenPipe.into()))?);
        Ok(Self { threads, child, requests, answers })
    }

    /// Which versions of what it uses.
    ///
    /// # Errors
    /// The process fails.
    pub fn versions(&mut self) -> Result<BTreeMap<String, String>, Error> {
        self.ask(&json!({ "do": "versions" }))
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Has it do something: the method of its worker that `request` names as `do`, with the rest as arguments.
    ///
    /// # Errors
    /// It fails, or the process does.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &serde_json::Value) -> Result<T, Error> {
        let requests = self.requests.as_mut().ok_or_else(|| Error::Pipe(io::ErrorKind::BrokenPipe.into()))?;
        writeln!(requests, "{request}").and_then(|()| requests.flush()).map_err(Error::Pipe)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(Error::Pipe)?;
        if line.is_empty() {
            return Err(Error::Worker("it ended; its last words are above".to_owned()));
        }
        match serde_json::from_str(&line)? {
            Answer::Done(answer) => Ok(answer),
            Answer::Failed(message) => Err(Error::Worker(message)),
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends when there is nothing more to read.
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// These contenders in this process, whose workload must be loaded. Outputs pass through `directory`.
pub fn entries<'a>(
    python: &'a RefCell<Python>,
    directory: &'a Path,
    contenders: &[Who],
) -> impl Iterator<Item = Entry<'a>> {
    let threads = python.borrow().threads;
    contenders.iter().map(move |&who| {
        let contender = Box::new(Remote { who, python, directory });
        Entry { who, threads, contender }
    })
}

/// A contender in a Python process.
struct Remote<'a> {
    who: Who,
    python: &'a RefCell<Python>,
    /// Where outputs are written.
    directory: &'a Path,
}

impl Contender for Remote<'_> {
    fn turn(&mut self, turn: Turn) -> Result<Vec<u64>, Error> {
        let Turn { untimed, timed } = turn;
        let request = json!({ "do": "turn", "who": self.who, "untimed": untimed, "timed": timed });
        self.python.borrow_mut().ask(&request)
    }

    fn output(&mut self) -> Result<Vec<f32>, Error> {
        let path = self.directory.join("output.safetensors");
        let request = json!({ "do": "output", "who": self.who, "path": path });
        self.python.borrow_mut().ask::<()>(&request)?;
        let outputs = read_weights(&path)?;
        let missing = || Error::NoArray { name: "y".to_owned(), place: path.display().to_string() };
        Ok(outputs.get("y").ok_or_else(missing)?.as_f32()?.to_vec())
    }
}
