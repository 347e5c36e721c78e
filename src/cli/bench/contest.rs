//! The contenders over one layer: each way of computing it, compiled and loaded once, and the machine's bounds. Results
//! are compared before anything is timed.

use super::facts::{AgreementFacts, BatchFacts, Bounds, Times};
use super::plain::Plain;
use crate::cli::agreement::Agreement;
use crate::cli::error::{CliError, Sought};
use crate::cli::execute::Execution;
use crate::cli::layer::{FACTORS, Factors, Layer, first_rows, tensor};
use crate::cli::timing::{Caller, Contender, Medians, medians};
use engraft::compiler::values::to_value;
use engraft::ir::Graph;
use engraft::runtime::measure::{Stream, Tile};
use engraft::runtime::{Context, Model, Tensor, Weights};
use engraft::{Compiled, Merging, Options, compile};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The layer in each way, loaded with the same values.
pub struct Contest<'a> {
    layer: Layer,
    values: &'a Weights,
    plain: Plain<'a>,
    /// What the bounds are measured with.
    one: &'a Context,
    threads: usize,
    dense: Model,
    unmerged: Model,
    merged: Model,
    live: Model,
    /// Unmerged on one thread, if the others run on several.
    one_thread: Option<Model>,
    /// What compiling the layer with DoRA took.
    pub compile_time: Duration,
}

/// The way from one program to several models with the same values.
struct Loader<'a> {
    values: &'a Weights,
}

impl Loader<'_> {
    fn load(&self, compiled: &Compiled, context: &Arc<Context>) -> Result<Model, CliError> {
        Execution { compiled, weights: self.values, sought: &Sought::Nowhere }.load(context)
    }

    fn model(&self, graph: &Graph, merge: bool, context: &Arc<Context>) -> Result<Model, CliError> {
        self.load(&compile(graph, &Options { merge: Merging::all(merge), ..Options::default() })?, context)
    }
}

impl<'a> Contest<'a> {
    /// Compiles and loads the layer in each way, for the threads of `context`; `one` has one.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(
        layer: Layer,
        values: &'a Weights,
        context: &Arc<Context>,
        one: &'a Arc<Context>,
    ) -> Result<Self, CliError> {
        let (loader, dora) = (Loader { values }, layer.dora(Factors::Loaded)?);
        let start = Instant::now();
        let unmerged = compile(&dora, &Options::default())?;
        let compile_time = start.elapsed();
        let threads = context.workers.threads();
        Ok(Self {
            layer,
            values,
            plain: Plain::new(layer, values)?,
            one,
            threads,
            dense: loader.model(&layer.dense()?, false, context)?,
            merged: loader.model(&dora, true, context)?,
            live: loader.model(&layer.dora(Factors::Live)?, false, context)?,
            one_thread: (threads > 1).then(|| loader.load(&unmerged, one)).transpose()?,
            unmerged: loader.load(&unmerged, context)?,
            compile_time,
        })
    }

    /// The contest at one batch.
    ///
    /// # Errors
    /// The contenders disagree, a call fails, or there is no memory to measure the machine's bounds with.
    pub fn at(&self, batch: usize) -> Result<BatchFacts, CliError> {
        let x = first_rows(tensor(self.values, "x")?, batch)?;
        let mut with_factors = vec![&*x];
        for name in FACTORS {
            with_factors.push(tensor(self.values, name)?);
        }
        let caller = |model| Caller::new(model, vec![&*x]);
        let (mut dense, mut unmerged) = (caller(&self.dense), caller(&self.unmerged));
        let (mut merged, mut live) = (caller(&self.merged), Caller::new(&self.live, with_factors));
        let mut one_thread = self.one_thread.as_ref().map(caller);
        for caller in [&mut dense, &mut unmerged, &mut merged, &mut live] {
            caller.call()?;
        }
        let agreement = self.compare(&x, [&dense, &unmerged, &merged, &live].map(Caller::output))?;

        let mut tile = OnOneThread { bound: Tile::new(self.one)?, run: Tile::run, context: self.one };
        let bytes = self.layer.inputs * self.layer.outputs * size_of::<f32>();
        let mut read = OnOneThread { bound: Stream::new(bytes)?, run: Stream::read, context: self.one };
        let mut contenders: Vec<&mut dyn Contender> =
            vec![&mut dense, &mut unmerged, &mut merged, &mut live, &mut tile, &mut read];
        contenders.extend(one_thread.as_mut().map(|caller| caller as &mut dyn Contender));
        let Medians { times, rounds } = medians(&mut contenders)?;
        let bounds = Bounds {
            flops_per_second: tile.bound.flops() / times[4].as_secs_f64(),
            read: times[5],
            bytes: read.bound.bytes(),
        };
        let [dense, unmerged, merged, live] = [times[0], times[1], times[2], times[3]];
        let times = Times { dense, unmerged, merged, live, one_thread: times.get(6).copied() };
        Ok(BatchFacts::new((self.layer, batch, self.threads), (times, rounds), bounds, agreement))
    }

    /// Compares the first and the last row of each output with plain loops, and all rows of the three of DoRA with each
    /// other.
    fn compare(&self, x: &Tensor, outputs: [&Tensor; 4]) -> Result<AgreementFacts, CliError> {
        let (layer, rows) = (self.layer, x.as_f32()?.chunks_exact(self.layer.inputs));
        let mut agreements = [Agreement::default(); 4];
        let last = rows.len().saturating_sub(1);
        for (at, row) in rows.enumerate().filter(|(at, _)| [0, last].contains(at)) {
            let plain = self.plain.row(row)?;
            for (i, (agreement, output)) in agreements.iter_mut().zip(outputs).enumerate() {
                let ours = output.as_f32()?.iter().skip(at * layer.outputs).take(layer.outputs);
                let ours = Tensor::f32(&[1, layer.outputs], ours.copied().collect())?;
                let plain = if i == 0 { &plain.dense } else { &plain.dora };
                *agreement = agreement.worse(compared(&ours, plain)?);
            }
        }
        for i in [2, 3] {
            agreements[i] = agreements[i].worse(compared(outputs[i], outputs[1])?);
        }
        for (name, agreement) in ["dense", "unmerged", "merged", "live"].into_iter().zip(agreements) {
            if !agreement.holds() {
                let what = format!("the layer {layer} {name} and plain loops or DoRA unmerged");
                return Err(CliError::Disagree { what, worst: agreement.tolerances });
            }
        }
        let [dense, unmerged, merged, live] = agreements;
        Ok(AgreementFacts { dense, unmerged, merged, live })
    }
}

fn compared(ours: &Tensor, theirs: &Tensor) -> Result<Agreement, CliError> {
    let shape = |tensor: &Tensor| format!("{:?}", tensor.shape());
    Agreement::of(&to_value(ours)?, &to_value(theirs)?).ok_or_else(|| CliError::OutputShape {
        output: "y".to_owned(),
        ours: shape(ours),
        theirs: shape(theirs),
    })
}

/// One of the machine's bounds.
struct OnOneThread<'a, B> {
    bound: B,
    run: fn(&mut B, &Context),
    context: &'a Context,
}

impl<B> Contender for OnOneThread<'_, B> {
    fn call(&mut self) -> Result<(), CliError> {
        (self.run)(&mut self.bound, self.context);
        Ok(())
    }
}
