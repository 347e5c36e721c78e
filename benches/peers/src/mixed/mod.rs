//! Linear layers in a batch whose rows have different adapters: ours with LoRA and DoRA adapters, PEFT with LoRA ones, which
//! is all it takes in such a batch.

mod arrays;
mod ours;

use crate::bounds::FAR;
use crate::contender::{Meaning, Who};
use crate::contest::{Contest, Truth};
use crate::error::Error;
use crate::layers::{ALPHA, Shape, checked_rows};
use crate::python;
use crate::results::Point;
use crate::session::Session;
use crate::workload::Workload;
use arrays::Layer;
use ours::Loaded;
use serde_json::json;
use std::time::Duration;

/// Features in and out of the square layers.
const SIZES: [usize; 2] = [768, 4096];
/// The adapters' r, those of a quick run first.
const RANKS: [usize; 3] = [16, 8, 64];
/// Rows of x; a quick run leaves out those in the middle.
const BATCHES: [usize; 3] = [8, 32, 128];

/// Who computes a layer in the Python process.
const PYTHON: [Who; 2] = [Who::PeftMixed, Who::PeftMixedCompiled];

/// What is computed.
const MEANINGS: [Meaning; 4] = [Meaning::Base, Meaning::FewDora, Meaning::FewLora, Meaning::OwnDora];

/// Everybody's times at each point, about as long as `budget` each.
///
/// # Errors
/// Somebody fails, or computes something else.
pub fn points(session: &Session, quick: bool, budget: Duration) -> Result<Vec<Point>, Error> {
    let mut ranks = if quick { RANKS[..1].to_vec() } else { RANKS.to_vec() };
    ranks.sort_unstable();
    let batches: Vec<_> = BATCHES.into_iter().filter(|&batch| !quick || batch != 32).collect();
    let mut points = Vec::new();
    for size in SIZES {
        for &rank in &ranks {
            let shape = Shape { inputs: size, outputs: size, rank };
            points.extend(points_of(session, shape, &batches, budget)?);
        }
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
    let path = session.directory().join("mixed.safetensors");
    layer.write(&path)?;
    let loaded = Loaded::new(&layer, session.context())?;
    let python = &session.pythons[0];
    let mut points = Vec::new();
    for &batch in batches {
        let input = layer.input(batch)?;
        let mut entries = loaded.entries(batch, &input)?;
        python.borrow_mut().ask::<()>(&json!({
            "do": "mixed_layer", "arrays": path, "rank": shape.rank, "alpha": ALPHA, "batch": batch, "threads": 1,
        }))?;
        entries.extend(python::entries(python, session.directory(), &PYTHON));
        let workload = Workload::Mixed { shape, batch };
        let (truth, least) = (truth(&layer, batch)?, shape.least(batch));
        let contest = Contest { workload, rows: batch, entries, truth, read: FAR, least };
        points.push(contest.hold(&session.contexts, budget)?);
    }
    Ok(points)
}

fn truth(layer: &Layer, batch: usize) -> Result<Truth, Error> {
    let expected = MEANINGS.map(|meaning| Ok((meaning, layer.expected(meaning, batch)?)));
    Ok(Truth {
        said_by: "the layer in f64",
        width: layer.shape.outputs,
        rows: checked_rows(batch).collect(),
        expected: expected.into_iter().collect::<Result<_, Error>>()?,
    })
}
