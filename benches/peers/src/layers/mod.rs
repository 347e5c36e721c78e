//! Linear layers: everybody computes one layer with a DoRA adapter, at each shape and batch.

mod arrays;
mod grid;
mod ours;

pub use arrays::{ALPHA, checked_rows, first_rows};
pub use grid::{Grid, Shape};

use crate::bounds::FAR;
use crate::contender::{Entry, Meaning, Who};
use crate::contest::{Contest, Truth};
use crate::error::Error;
use crate::python;
use crate::results::Point;
use crate::session::Session;
use crate::workload::Workload;
use arrays::Layer;
use engraft::runtime::Tensor;
use ours::Programs;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who computes a layer in the Python processes.
const PYTHON: [Who; 5] = [Who::Torch, Who::TorchCompiled, Who::Peft, Who::PeftCompiled, Who::PeftCached];

/// Everybody's times at each point of the grid, about as long as `budget` each.
///
/// # Errors
/// Somebody fails, or computes something else.
pub fn points(session: &Session, grid: &Grid, budget: Duration) -> Result<Vec<Point>, Error> {
    let mut points = Vec::new();
    for &shape in &grid.shapes {
        points.extend(points_of(session, shape, &grid.batches, budget)?);
    }
    Ok(points)
}

fn points_of(
    session: &Session,
    shape: Shape,
    batches: &[usize],
    budget: Duration,
) -> Result<Vec<Point>, Error> {
    let layer = Layer::new(shape, batches.iter().copied().max().unwrap_or(1))?;
    let arrays = session.directory().join("layer.safetensors");
    layer.write(&arrays)?;
    // One model for each batch, in the arrays' directory.
    let request = json!({ "do": "onnx_layers", "arrays": arrays, "batches": batches });
    let models: Vec<PathBuf> = session.pythons[0].borrow_mut().ask(&request)?;
    let programs = Programs::new(shape)?;
    let mut points = Vec::new();
    for (&batch, model) in batches.iter().zip(models) {
        let input = layer.input(batch)?;
        let mut entries = entries(session, &programs, &layer, &input, &model)?;
        for python in &session.pythons {
            let threads = python.borrow().threads();
            python.borrow_mut().ask::<()>(&json!({
                "do": "layer", "arrays": arrays, "rank": shape.rank, "alpha": ALPHA, "batch": batch,
                "threads": threads,
            }))?;
            entries.extend(python::entries(python, session.directory(), &PYTHON));
        }
        let workload = Workload::Layer { shape, batch };
        let (truth, least) = (truth(&layer, batch)?, shape.least(batch));
        let contest = Contest { workload, rows: batch, entries, truth, read: FAR, least };
        points.push(contest.hold(&session.contexts, budget)?);
    }
    Ok(points)
}

fn truth(layer: &Layer, batch: usize) -> Result<Truth, Error> {
    Ok(Truth {
        said_by: "the layer in f64",
        width: layer.shape.outputs,
        rows: checked_rows(batch).collect(),
        expected: vec![
            (Meaning::Base, layer.expected(false, batch)?),
            (Meaning::Adapted, layer.expected(true, batch)?),
        ],
    })
}

/// Everybody within this process.
fn entries<'a>(
    session: &Session,
    programs: &Programs,
    layer: &'a Layer,
    input: &'a Tensor,
    model: &Path,
) -> Result<Vec<Entry<'a>>, Error> {
    let (inputs, output) = ([("x", input)], [input.shape()[0], layer.shape.outputs]);
    let mut entries = Vec::new();
    for context in &session.contexts {
        let threads = context.workers.threads();
        entries.extend(programs.entries(layer, input, context)?);
        let contender = Box::new(session.onnx_runtime.load(model, threads, &inputs, &output)?);
        entries.push(Entry { who: Who::OnnxRuntime, threads, contender });
        let contender = Box::new(session.open_vino.borrow_mut().load(model, threads, &inputs, &output)?);
        entries.push(Entry { who: Who::OpenVino, threads, contender });
    }
    Ok(entries)
}
