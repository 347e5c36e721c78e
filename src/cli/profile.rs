//! `engraft run --profile`: the time of each kernel beside the least that the machine allows. The load stages have run
//! once; of the call's kernels it takes the medians of many calls of one session.

use super::error::CliError;
use super::execute::{Execution, arriving, session};
use super::output::{FAINT, HEADING, Output};
use super::roofline::{rate, rates, scaled};
use engraft::compiler::plan::roofline::{Roof, least};
use engraft::compiler::plan::{Plan, Step};
use engraft::ir::{Bindings, Stage};
use engraft::runtime::measure::Machine;
use engraft::runtime::{Model, Rows, Session, StepProfile, Tensor, Weights};
use serde::{Serialize, Serializer};
use std::time::{Duration, Instant};

/// How long the calls may take together, unless their number is given.
const SPAN: Duration = Duration::from_millis(500);

/// The columns of a step's name.
const NAME: usize = 26;

/// The profile of a model.
#[derive(Serialize)]
pub struct Profile {
    flops_per_second: f64,
    bytes_per_second: f64,
    stages: Vec<StageProfile>,
}

/// The kernels of a stage.
#[derive(Serialize)]
struct StageProfile {
    #[serde(serialize_with = "shown")]
    stage: Stage,
    /// How many runs the times are the medians of.
    runs: usize,
    kernels: Vec<KernelProfile>,
}

/// A kernel's time and what it does in it.
#[derive(Serialize)]
struct KernelProfile {
    step: usize,
    kernel: &'static str,
    name: String,
    microseconds: f64,
    flops: u64,
    bytes_read: u64,
    bytes_written: u64,
    /// The roofline: the least time at the machine's rates.
    bound_microseconds: f64,
    #[serde(serialize_with = "shown")]
    bound_by: Roof,
}

fn shown<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Profile {
    /// Calls a model again and again, with what it takes from the tensors given and with these adapters.
    ///
    /// # Errors
    /// A call fails, a cost is beyond counting, or the machine cannot be measured.
    pub fn measure(
        execution: &Execution,
        model: &Model,
        (given, rows): (&Weights, &Rows),
        repeat: Option<u32>,
    ) -> Result<Self, CliError> {
        let (plan, weights) = (&execution.compiled.plan, execution.weights);
        let machine = Machine::measure(model.base().context())?;
        let of = |profile: Option<&engraft::runtime::Profile>| {
            profile.map_or_else(Vec::new, |profile| profile.steps().iter().map(|step| step.total).collect())
        };
        let (runs, calls) = medians(&mut session(model, given)?, (&arriving(model, given), rows), repeat)?;
        let loads = [(Stage::Base, of(model.base().profile())), (Stage::Adapter, of(model.profile()))];
        let measured = loads.map(|(stage, times)| (stage, 1, times)).into_iter();
        let extents = extents(plan, weights, given);
        let mut stages = Vec::new();
        for (stage, runs, times) in measured.chain([(Stage::Call, runs, calls)]) {
            let timed =
                plan.steps_at(stage).filter_map(|(index, step)| Some((index, step, *times.get(index)?)));
            let kernels = timed
                .map(|(index, step, time)| KernelProfile::of(plan, (index, step), time, &machine, &extents));
            stages.push(StageProfile { stage, runs, kernels: kernels.collect::<Result<_, _>>()? });
        }
        let Machine { flops_per_second, bytes_per_second } = machine;
        Ok(Self { flops_per_second, bytes_per_second, stages })
    }

    /// Prints a table.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn print(&self, output: &mut Output) -> Result<(), CliError> {
        let Self { flops_per_second, bytes_per_second, .. } = *self;
        let machine = Machine { flops_per_second, bytes_per_second };
        output.line(format_args!("\n{HEADING}profile{HEADING:#}  {FAINT}{}{FAINT:#}", rates(&machine)))?;
        for StageProfile { stage, runs, kernels } in self.stages.iter().filter(|s| !s.kernels.is_empty()) {
            let what = match runs {
                1 => format!("{stage}, 1 run"),
                _ => format!("{stage}, medians of {runs}"),
            };
            output.line(format_args!(
                "{HEADING}{what:NAME$}{HEADING:#}{FAINT}{:>9}{:>8}{:>8}{:>13}{:>9}{:>7}{FAINT:#}",
                "µs", "flops", "bytes", "rate", "bound", "ratio"
            ))?;
            for kernel in kernels {
                output.line(kernel.row())?;
            }
            let sum = |of: fn(&KernelProfile) -> f64| kernels.iter().map(of).sum::<f64>();
            let (time, bound) = (sum(|k| k.microseconds), sum(|k| k.bound_microseconds));
            output.line(format_args!("  {:24}{}", "all of them", times(time, bound, ["", "", ""])))?;
        }
        let legend = "rate: at the roof that binds; ratio: the time over that roof's bound,\nwhich holds for what comes from memory: below 1 it came from a cache";
        output.line(format_args!("{FAINT}{legend}{FAINT:#}"))
    }
}

impl KernelProfile {
    fn of(
        plan: &Plan,
        (index, step): (usize, &Step),
        time: Duration,
        machine: &Machine,
        extents: &Bindings,
    ) -> Result<Self, CliError> {
        let cost = plan.cost(step);
        let (flops, bytes_read, bytes_written) =
            (cost.flops.eval(extents)?, cost.read.eval(extents)?, cost.written.eval(extents)?);
        let (seconds, bound_by) = least(flops, bytes_read.saturating_add(bytes_written), machine);
        Ok(Self {
            step: index,
            kernel: step.kernel.name(),
            name: step.name.clone(),
            microseconds: time.as_secs_f64() * 1e6,
            flops,
            bytes_read,
            bytes_written,
            bound_microseconds: seconds * 1e6,
            bound_by,
        })
    }

    /// The kernel as a line of the table.
    fn row(&self) -> String {
        let label = format!("{} {} {}", self.step, self.kernel, self.name);
        let label = match label.char_indices().nth(NAME - 3) {
            Some((end, _)) => format!("{}…", &label[..end]),
            None => label,
        };
        let bytes = (self.bytes_read.saturating_add(self.bytes_written)) as f64;
        let seconds = self.microseconds / 1e6;
        let achieved = match self.bound_by {
            Roof::Compute => rate(self.flops as f64 / seconds, "flop"),
            Roof::Memory => rate(bytes / seconds, "B"),
        };
        let columns = [scaled(self.flops as f64), scaled(bytes), achieved];
        let columns = columns.each_ref().map(String::as_str);
        format!("  {label:24}{}", times(self.microseconds, self.bound_microseconds, columns))
    }
}

/// The columns of numbers: times in microseconds around three others.
fn times(time: f64, bound: f64, [flops, bytes, rate]: [&str; 3]) -> String {
    let ratio = if bound > 0.0 { format!("{:.2}", time / bound) } else { "-".to_owned() };
    format!("{time:>9.2}{flops:>8}{bytes:>8}{rate:>13}{bound:>9.2}{ratio:>7}")
}

/// The values of the symbols, from the tensors that bind them.
fn extents(plan: &Plan, weights: &Weights, given: &Weights) -> Bindings {
    let extent = |bound: &engraft::compiler::plan::BoundSymbol| {
        let tensors = if bound.stage == Stage::Call { given } else { weights };
        let carried = || plan.carried.iter().any(|carried| plan.inputs[carried.input] == bound.buffer);
        let extent = match tensors.get(&plan.buffer(bound.buffer).name) {
            Some(tensor) => *tensor.shape().get(bound.axis)? as u64,
            // What nobody gave is empty.
            None if carried() => 0,
            None => return None,
        };
        Some((bound.symbol.clone(), extent))
    };
    plan.symbols.iter().filter_map(extent).collect()
}

/// How many calls were measured, and the median time of each step of the program, by its index.
fn medians(
    session: &mut Session,
    (inputs, adapters): (&[(&str, &Tensor)], &Rows),
    repeat: Option<u32>,
) -> Result<(usize, Vec<Duration>), CliError> {
    let inputs: Vec<_> = inputs.iter().map(|(_, tensor)| *tensor).collect();
    let spec = session.model().program().spec();
    let mut outputs: Vec<_> = spec.returned().map(|(_, output)| Tensor::empty(output.dtype)).collect();
    let rows = session.carried_len();
    // Every call appends to the same.
    let mut call = |session: &mut Session| -> Result<(), CliError> {
        session.truncate(rows)?;
        Ok(session.run_rows_into(&inputs, adapters, &mut outputs)?)
    };
    // The first call sees cold caches and makes its memory.
    call(session)?;
    let start = Instant::now();
    call(session)?;
    let once = start.elapsed().max(Duration::from_nanos(1));
    let enough = (SPAN.as_nanos() / once.as_nanos()).clamp(11, 1001) as usize;
    let calls = repeat.map_or(enough, |calls| calls as usize);

    let totals = |session: &Session| -> Vec<StepProfile> {
        session.profile().map_or_else(Vec::new, |profile| profile.steps().to_vec())
    };
    let mut before = totals(session);
    let mut times = vec![Vec::with_capacity(calls); before.len()];
    for _ in 0..calls {
        call(session)?;
        let after = totals(session);
        for ((times, before), after) in times.iter_mut().zip(&before).zip(&after) {
            times.push(after.total.saturating_sub(before.total));
        }
        before = after;
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    Ok((calls, times.into_iter().map(median).collect()))
}
