//! What a benchmark found, as its JSON says it: times in microseconds, rates per second, and the ratios that matter.

use crate::cli::agreement::Agreement;
use crate::cli::layer::Layer;
use crate::cli::timing::microseconds;
use engraft::runtime::Context;
use serde::Serialize;
use std::time::Duration;

/// Rows from which a product is judged by the speed of its tile; one row is judged by the read of its weight.
pub const MANY_ROWS: usize = 32;

/// Everything.
#[derive(Serialize)]
pub struct Facts {
    /// What it ran on.
    pub machine: MachineFacts,
    /// Each layer.
    pub layers: Vec<LayerFacts>,
}

/// What the benchmark ran on.
#[derive(Serialize)]
pub struct MachineFacts {
    architecture: &'static str,
    operating_system: &'static str,
    kernels: &'static str,
    cpu_features: Vec<&'static str>,
    /// Threads that the machine offers.
    available_threads: usize,
    /// Threads that worked on a call.
    pub threads: usize,
}

impl MachineFacts {
    /// This machine, and how a context uses it.
    pub fn of(context: &Context) -> Self {
        Self {
            architecture: std::env::consts::ARCH,
            operating_system: std::env::consts::OS,
            kernels: context.kernels.set().name(),
            cpu_features: cpu_features(),
            available_threads: std::thread::available_parallelism().map_or(1, usize::from),
            threads: context.workers.threads(),
        }
    }

    /// The kernels' name.
    pub fn kernels(&self) -> &'static str {
        self.kernels
    }
}

/// The features of this CPU that matter to the kernels.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    macro_rules! found {
        ($($feature:tt)*) => {
            [$(($feature, is_x86_feature_detected!($feature))),*]
        };
    }
    let features =
        found!("sse4.2" "avx" "avx2" "fma" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni");
    features.into_iter().filter_map(|(feature, found)| found.then_some(feature)).collect()
}

/// The features of this CPU that matter to the kernels.
#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

/// One layer.
#[derive(Serialize)]
pub struct LayerFacts {
    /// Its sizes as people write them.
    pub shape: Layer,
    /// Its sizes.
    #[serde(flatten, serialize_with = "sizes")]
    pub layer: Layer,
    /// What compiling the layer with DoRA took.
    #[serde(rename = "compile_microseconds", serialize_with = "microseconds")]
    pub compile_time: Duration,
    /// Each batch.
    pub batches: Vec<BatchFacts>,
}

fn sizes<S: serde::Serializer>(layer: &Layer, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Sizes {
        inputs: usize,
        outputs: usize,
        rank: usize,
    }
    let Layer { inputs, outputs, rank } = *layer;
    Sizes { inputs, outputs, rank }.serialize(serializer)
}

/// How far the contenders are from plain loops, and DoRA's from each other.
#[derive(Serialize)]
pub struct AgreementFacts {
    /// The bare layer.
    pub dense: Agreement,
    /// DoRA unmerged.
    pub unmerged: Agreement,
    /// DoRA merged.
    pub merged: Agreement,
    /// DoRA with live factors.
    pub live: Agreement,
}

/// One layer at one batch: medians.
#[derive(Serialize)]
pub struct BatchFacts {
    /// Rows of the input.
    pub batch: usize,
    /// Turns of each contender.
    pub rounds: usize,
    /// How far the results were from what they should be.
    pub agreement: AgreementFacts,
    /// The bare layer.
    #[serde(rename = "dense_microseconds", serialize_with = "microseconds")]
    pub dense: Duration,
    /// DoRA unmerged.
    #[serde(rename = "unmerged_microseconds", serialize_with = "microseconds")]
    pub unmerged: Duration,
    /// DoRA merged.
    #[serde(rename = "merged_microseconds", serialize_with = "microseconds")]
    pub merged: Duration,
    /// DoRA with A, B and m passed to each call.
    #[serde(rename = "live_microseconds", serialize_with = "microseconds")]
    pub live: Duration,
    /// Operations per second of the tile out of the first-level cache, on one thread.
    pub ceiling_flops_per_second: f64,
    /// Bytes per second of a plain read of as many bytes as the weight has, on one thread.
    pub stream_bytes_per_second: f64,
    /// DoRA unmerged against the bare layer.
    pub unmerged_per_dense: f64,
    /// DoRA merged against the bare layer.
    pub merged_per_dense: f64,
    /// Live factors against loaded ones.
    pub live_per_unmerged: f64,
    /// The rate of DoRA unmerged as a share of the tile's on as many threads, from [`MANY_ROWS`] on.
    pub share_of_ceiling: Option<f64>,
    /// The time of a plain read of as many bytes as the weight has, on one thread, as a share of that of DoRA unmerged;
    /// for one row.
    pub share_of_stream: Option<f64>,
    /// One thread's time against that of all, DoRA unmerged; for several threads.
    pub speedup: Option<f64>,
}

/// What the machine can do at most, beside one batch.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Operations per second of the tile on one thread.
    pub flops_per_second: f64,
    /// The time of reading as many bytes as the weight has.
    pub read: Duration,
    /// How many bytes those are.
    pub bytes: usize,
}

/// The median times of the layers.
#[derive(Clone, Copy)]
pub struct Times {
    /// The bare layer.
    pub dense: Duration,
    /// DoRA unmerged.
    pub unmerged: Duration,
    /// DoRA merged.
    pub merged: Duration,
    /// DoRA with live factors.
    pub live: Duration,
    /// DoRA unmerged on one thread, if the others run on several.
    pub one_thread: Option<Duration>,
}

impl BatchFacts {
    /// What follows from these times of a layer at a batch, on so many threads.
    pub fn new(
        (layer, batch, threads): (Layer, usize, usize),
        (times, rounds): (Times, usize),
        bounds: Bounds,
        agreement: AgreementFacts,
    ) -> Self {
        let Times { dense, unmerged, merged, live, one_thread } = times;
        let ratio = |time: Duration, to: Duration| time.as_secs_f64() / to.as_secs_f64();
        let Layer { inputs, outputs, rank } = layer;
        let flops = 2.0 * batch as f64 * (inputs * outputs + rank * (inputs + outputs)) as f64;
        let rate = flops / unmerged.as_secs_f64() / threads as f64;
        Self {
            batch,
            rounds,
            agreement,
            dense,
            unmerged,
            merged,
            live,
            ceiling_flops_per_second: bounds.flops_per_second,
            stream_bytes_per_second: bounds.bytes as f64 / bounds.read.as_secs_f64(),
            unmerged_per_dense: ratio(unmerged, dense),
            merged_per_dense: ratio(merged, dense),
            live_per_unmerged: ratio(live, unmerged),
            share_of_ceiling: (batch >= MANY_ROWS).then(|| rate / bounds.flops_per_second),
            share_of_stream: (batch == 1).then(|| ratio(bounds.read, unmerged)),
            speedup: one_thread.map(|one| ratio(one, unmerged)),
        }
    }
}
