//! The ordered list of passes, and the loop that runs them: the verifier runs after each, and the trace keeps what
//! each did. It knows no pattern of its own.

use crate::merging::Merging;
use crate::passes::{self, canonicalize, constant_fold, cse, dead_code, fuse_dora, fuse_lora, merge, stage};
use crate::passes::{Editor, Pass, PassError};
use crate::trace::{PassTrace, Trace};
use engraft_ir::{Graph, VerifyError, verify};
use std::sync::Arc;
use thiserror::Error;

/// What the pipeline may do beyond its defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Which adapters to merge into their weights at load. One that is asked for and cannot be merged is an error.
    pub merge: Merging,
}

/// A graph after the pipeline, and how it came to be.
#[derive(Clone, Debug)]
pub struct Optimized {
    /// The graph.
    pub graph: Graph,
    /// What each pass did.
    pub trace: Trace,
}

/// Why the pipeline stopped.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PipelineError {
    /// The graph was broken before any pass ran.
    #[error("the graph is broken: {}", list(.errors))]
    Input {
        /// The broken invariants.
        errors: Vec<VerifyError>,
    },
    /// A pass could not do what was asked of it.
    #[error("pass {pass}: {source}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// Why.
        source: Box<PassError>,
    },
    /// A pass made a broken graph.
    #[error("pass {pass} made a broken graph: {}", list(.errors))]
    Verify {
        /// The pass.
        pass: &'static str,
        /// The broken invariants.
        errors: Vec<VerifyError>,
    },
}

fn list(errors: &[VerifyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The passes that always run, in order.
///
/// Constants are folded before canonical forms are sought, since a folded scalar makes a `scale`; equal values are
/// shared before fusion, which asks who else uses a value; LoRA is fused before DoRA, which contains it; staging
/// comes last, when what is left is what will run.
pub fn default_passes() -> Vec<Pass<'static>> {
    vec![
        dead_code::PASS,
        constant_fold::PASS,
        canonicalize::PASS,
        cse::PASS,
        fuse_lora::PASS,
        fuse_dora::PASS,
        stage::PASS,
    ]
}

/// The passes for these options: [`default_passes`], with `merge` before `stage` if it is asked for.
pub fn passes(options: &Options) -> Vec<Pass<'_>> {
    let mut list: Vec<Pass<'_>> = default_passes();
    if !options.merge.is_never() {
        let before_stage = list.iter().position(|pass| pass.name == stage::PASS.name).unwrap_or(list.len());
        list.insert(before_stage, merge::pass(&options.merge));
    }
    list
}

/// Runs the passes for these options.
///
/// ```
/// use engraft_compiler::pipeline::{Options, optimize};
/// use engraft_ir::{DType::F32, GraphBuilder, Tensor, dims};
/// let g = GraphBuilder::new("layer");
/// let x = g.input("x", F32, dims!["batch", 24]);
/// let w = g.param("weight", F32, dims![40, 24]);
/// let a = g.param("lora_A", F32, dims![4, 24]).adapter();
/// let b = g.param("lora_B", F32, dims![40, 4]).adapter();
/// let m = g.param("magnitude", F32, dims![40]).adapter();
/// let direction = (w + Tensor::lora_delta(a, b, 2.0)).normalize(1);
/// g.output("y", x.dense(direction.magnitude(m, 0), None).named("fc"));
/// let optimized = optimize(&g.finish()?, &Options::default())?;
/// assert_eq!(optimized.graph.op_counts()["dora"], 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PipelineError`]: the graph is broken, or what the options ask for cannot be done.
pub fn optimize(graph: &Graph, options: &Options) -> Result<Optimized, PipelineError> {
    run(graph, &passes(options))
}

/// Runs these passes, in this order.
///
/// # Errors
/// As [`optimize`].
pub fn run(graph: &Graph, passes: &[Pass<'_>]) -> Result<Optimized, PipelineError> {
    verify(graph).map_err(|errors| PipelineError::Input { errors })?;
    let mut current = Arc::new(graph.clone());
    let mut trace = Trace::default();
    for pass in passes {
        let passes::Outcome { graph, events } = Editor::apply(pass, &current)
            .map_err(|source| PipelineError::Pass { pass: pass.name, source: Box::new(source) })?;
        verify(&graph).map_err(|errors| PipelineError::Verify { pass: pass.name, errors })?;
        let after = Arc::new(graph);
        let before = std::mem::replace(&mut current, Arc::clone(&after));
        trace.passes.push(PassTrace { pass: pass.name, summary: pass.summary, before, after, events });
    }
    Ok(Optimized { graph: Graph::clone(&current), trace })
}
