//! Whole models: an encoder with a DoRA adapter on all its linear layers, beside the peers; and a decoder's next token,
//! beside a plain read of the weights that it must touch.

mod decode;
mod encode;

use crate::bounds::Least;
use crate::error::Error;
use crate::results::Point;
use crate::session::Session;
use encode::Size;
use engraft::compiler::plan::Plan;
use engraft::compiler::plan::kernel::{Attention, Dot, Kernel, Linear};
use engraft::ir::{Dim, Stage, Symbol};
use engraft::pretrained::CompiledModel;
use engraft::runtime::Options;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The sizes of the encoder's batches.
const SIZES: [Size; 3] =
    [Size { batch: 1, tokens: 16 }, Size { batch: 8, tokens: 32 }, Size { batch: 32, tokens: 128 }];

/// Those of them that take no minutes.
const QUICK: usize = 2;

/// Everybody's times at each point, about as long as `budget` each, with the models in `directory`.
///
/// # Errors
/// A model isn't there, or somebody fails or computes something else.
pub fn points(
    session: &Session,
    directory: &Path,
    quick: bool,
    budget: Duration,
) -> Result<Vec<Point>, Error> {
    let sizes = if quick { &SIZES[..QUICK] } else { &SIZES };
    let mut points = encode::points(session, directory, sizes, budget)?;
    points.push(decode::point(session, directory, budget)?);
    Ok(points)
}

/// Where a model is.
fn find(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    let missing = || Error::NoLibrary { directory: directory.to_owned(), pattern: name.to_owned() };
    if path.exists() { Ok(path) } else { Err(missing()) }
}

/// One thread.
fn one_thread() -> Options {
    Options { threads: Some(NonZeroUsize::MIN), ..Options::default() }
}

/// What a call takes at least that has such extents: its products, those of adapters among them, without epilogues, and the
/// scores and values of attention, of which nothing hides a key.
fn least(model: &CompiledModel, extents: &[(&str, usize)]) -> Result<Least, Error> {
    let extents = extents.iter().map(|&(name, extent)| (Symbol::new(name), extent as u64)).collect();
    let plan: &Plan = &model.compiled().plan;
    let mut flops = Dim::fixed(0);
    for (_, step) in plan.steps_at(Stage::Call) {
        flops = match &step.kernel {
            Kernel::Linear(Linear { batch, rows, out, k, rank, .. }) => {
                let steps = rank.iter().fold(k.clone(), |steps, rank| steps + rank);
                flops + batch.clone() * rows * out * steps * 2
            }
            Kernel::Dot(Dot { rows, k, out }) => flops + rows.clone() * k * out * 2,
            Kernel::Attention(Attention { batch, queries, keys, heads, d, e, .. }) => {
                flops + batch.clone() * queries * keys * (2 * heads * (d + e))
            }
            _ => flops,
        };
    }
    Ok(Least { flops: flops.eval(&extents)? as f64, bytes: weights(model) })
}

/// The bytes of all that is loaded and that a call reads whole: all of it but the tables of which it looks up some rows.
fn weights(model: &CompiledModel) -> usize {
    let plan: &Plan = &model.compiled().plan;
    let steps = plan.steps_at(Stage::Call).map(|(_, step)| step);
    let whole = steps.filter(|step| !matches!(step.kernel, Kernel::Gather(_)));
    let read: BTreeSet<_> = whole.flat_map(|step| step.reads.iter().copied()).collect();
    let loaded = read.into_iter().map(|id| plan.buffer(id));
    let loaded = loaded.filter(|buffer| [Stage::Base, Stage::Adapter].contains(&buffer.stage));
    loaded.filter_map(|buffer| buffer.bytes().as_fixed()).sum::<u64>() as usize
}
