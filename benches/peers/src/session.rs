//! A session with everybody in it: at each shape and batch, all are given the layer, have to agree, and are timed.

use crate::agreement::Agreement;
use crate::contender::{Entry, Turn, Who};
use crate::error::Error;
use crate::grid::{Grid, Shape};
use crate::layer::{ALPHA, Layer};
use crate::onnx_runtime::OnnxRuntime;
use crate::open_vino::OpenVino;
use crate::ours::Programs;
use crate::python::{self, Python};
use crate::results::{Bounds, Point};
use crate::rounds;
use engraft::runtime::measure::Machine;
use engraft::runtime::{Context, Options, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The script that the Python processes run.
const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/worker.py");

/// Everybody.
pub struct Session {
    batches: Vec<usize>,
    /// One for each number of threads.
    contexts: Vec<Arc<Context>>,
    /// One for each number of threads.
    pythons: Vec<RefCell<Python>>,
    onnx_runtime: OnnxRuntime,
    open_vino: OpenVino,
    directory: TempDir,
}

impl Session {
    /// Loads the libraries and starts the processes.
    ///
    /// # Errors
    /// One of them isn't there.
    pub fn open(venv: &Path, grid: &Grid) -> Result<Self, Error> {
        let packages = packages(venv)?;
        let context = |&threads: &usize| {
            let options = Options { threads: NonZeroUsize::new(threads), ..Options::default() };
            Ok(Arc::new(Context::new(options)?))
        };
        let interpreter = venv.join("bin/python");
        let python =
            |&threads: &usize| Python::start(&interpreter, Path::new(WORKER), threads).map(RefCell::new);
        let library = |directory: &str, prefix: &str| find(&packages.join(directory), prefix);
        Ok(Self {
            batches: grid.batches.clone(),
            contexts: grid.threads.iter().map(context).collect::<Result<_, Error>>()?,
            pythons: grid.threads.iter().map(python).collect::<Result<_, Error>>()?,
            onnx_runtime: OnnxRuntime::open(&library("onnxruntime/capi", "libonnxruntime.so")?)?,
            open_vino: OpenVino::open(&library("openvino/libs", "libopenvino_c.so")?)?,
            directory: TempDir::new().map_err(|source| Error::File { path: std::env::temp_dir(), source })?,
        })
    }

    /// What we run on.
    pub fn context(&self) -> &Context {
        &self.contexts[0]
    }

    /// The versions of the peers.
    ///
    /// # Errors
    /// A Python process fails.
    pub fn versions(&mut self) -> Result<BTreeMap<String, String>, Error> {
        self.pythons[0].get_mut().versions()
    }

    /// Everybody's times with a layer of this shape, at each batch.
    ///
    /// # Errors
    /// Somebody fails, or computes something else.
    pub fn points(&mut self, shape: Shape, budget: Duration) -> Result<Vec<Point>, Error> {
        let largest = self.batches.iter().copied().max().unwrap_or(1);
        let layer = Layer::new(shape, largest)?;
        let arrays = self.directory.path().join("layer.safetensors");
        layer.write(&arrays)?;
        let models = self.pythons[0].get_mut().write_models(&arrays, &self.batches)?;
        let programs = Programs::new(shape)?;
        let mut points = Vec::new();
        for (batch, model) in self.batches.clone().into_iter().zip(models) {
            let input = layer.input(batch)?;
            let mut entries = self.entries(&programs, &layer, &input, &model)?;
            self.load_pythons(&arrays, shape, batch)?;
            for python in &self.pythons {
                entries.extend(python::entries(python, self.directory.path()));
            }
            check(&mut entries, &layer, batch)?;
            let times = rounds::times(&mut entries, budget)?;
            let dora = times.iter().find(|times| times.who == Who::Dora).map_or(0.0, |times| times.median);
            eprintln!("{shape}, batch {batch}: all agree; DoRA takes {dora:.1} us");
            points.push(Point { shape, batch, times, bounds: bounds(self.context()) });
        }
        Ok(points)
    }

    fn load_pythons(&self, arrays: &Path, shape: Shape, batch: usize) -> Result<(), Error> {
        self.pythons.iter().try_for_each(|python| python.borrow_mut().load(arrays, shape.rank, ALPHA, batch))
    }

    /// Everybody within this process.
    fn entries<'a>(
        &mut self,
        programs: &Programs,
        layer: &'a Layer,
        input: &'a Tensor,
        model: &Path,
    ) -> Result<Vec<Entry<'a>>, Error> {
        let outputs = layer.shape.outputs;
        let mut entries = Vec::new();
        for context in &self.contexts {
            let threads = context.workers.threads();
            entries.extend(programs.entries(layer, input, context)?);
            let contender = Box::new(self.onnx_runtime.load(model, threads, input, outputs)?);
            entries.push(Entry { who: Who::OnnxRuntime, threads, contender });
            let contender = Box::new(self.open_vino.load(model, threads, input, outputs)?);
            entries.push(Entry { who: Who::OpenVino, threads, contender });
        }
        Ok(entries)
    }
}

/// What the machine can do now: it is shared with others, and not equally fast all the time.
fn bounds(context: &Context) -> Bounds {
    let Machine { flops_per_second, bytes_per_second } = Machine::measure(context);
    Bounds { flops_per_second, bytes_per_second }
}

/// Everybody has to compute the same: some rows as f64 has them, and all rows as the first who computes it.
fn check(entries: &mut [Entry], layer: &Layer, batch: usize) -> Result<(), Error> {
    let outputs = layer.shape.outputs;
    let mut firsts: Vec<(_, Vec<f64>)> = Vec::new();
    for entry in entries {
        entry.contender.turn(Turn { untimed: 0, timed: 1 })?;
        let output = entry.contender.output()?;
        let who = || format!("{} with {} threads, batch {batch}", entry.who.title(), entry.threads);
        if output.len() != batch * outputs {
            return Err(Error::OutputSize { who: who(), found: output.len(), expected: batch * outputs });
        }
        let agree = |found: &[f32], expected: &[f64], with| {
            let agreement = Agreement::of(found, expected);
            if agreement.holds() { Ok(()) } else { Err(Error::Disagree { who: who(), with, agreement }) }
        };
        let meaning = entry.who.meaning();
        let rows: Vec<f32> =
            Layer::checked_rows(batch).flat_map(|row| &output[row * outputs..][..outputs]).copied().collect();
        agree(&rows, &layer.expected(meaning, batch)?, "the layer in f64")?;
        match firsts.iter().find(|(known, _)| *known == meaning) {
            Some((_, first)) => agree(&output, first, "Engraft")?,
            None => firsts.push((meaning, output.into_iter().map(f64::from).collect())),
        }
    }
    Ok(())
}

/// Where the environment keeps its packages: in a directory named after the version of Python.
fn packages(venv: &Path) -> Result<PathBuf, Error> {
    Ok(find(&venv.join("lib"), "python3.")?.join("site-packages"))
}

/// The file whose name begins like this; versions stand at the end of names.
fn find(directory: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let missing = || Error::NoLibrary { directory: directory.to_owned(), pattern: format!("{prefix}*") };
    let entries = std::fs::read_dir(directory).map_err(|_| missing())?;
    let named = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(named).ok_or_else(missing)
}
