//! From graph to program in one call: optimise, plan, verify, emit. Everything on the way is kept, for people to look
//! at.

use crate::jit::{self, JitError};
use crate::merging::Merging;
use crate::passes::MergeError;
use crate::pipeline::{self, Optimized, PipelineError};
use crate::plan::{self, Plan, PlanError, PlanInvariant, PlanOptions, check};
use crate::trace::Trace;
use engraft_ir::Graph;
use engraft_runtime::Program;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// How to compile.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether to rewrite the graph and fuse its kernels. Without, every node runs as it was written, as a kernel of its
    /// own.
    pub optimize: bool,
    /// Which adapters to fold into their layers' weights when they are loaded. Layers must be recognised for that, so the
    /// graph is rewritten even without `optimize`.
    pub merge: Merging,
    /// Whether the code tells when each step ends, so that the runtime keeps a [`Profile`](engraft_runtime::Profile).
    /// Without, nothing of the kind is emitted.
    pub profile: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { optimize: true, merge: Merging::NEVER, profile: false }
    }
}

/// Why a graph could not be compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The optimiser stopped.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A layer that the caller names cannot be merged, or is not there.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The graph cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The planner made a plan that breaks an invariant: a defect of the compiler.
    #[error("the plan of `{graph}` is not valid, which is a defect of the compiler: {}", list(errors))]
    Invariant {
        /// The graph's name.
        graph: String,
        /// What is broken.
        errors: Vec<PlanInvariant>,
    },
    /// The planner made a plan that misuses memory: a defect of the compiler. Looked for in debug builds.
    #[error("the plan of `{graph}` misuses memory, which is a defect of the compiler: {source}")]
    Unsound {
        /// The graph's name.
        graph: String,
        /// What is wrong, and for which values of the symbols.
        source: check::Unsound,
    },
    /// Code could not be made.
    #[error(transparent)]
    Jit(#[from] JitError),
}

fn list(errors: &[PlanInvariant]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A compiled graph, and every level it went through.
pub struct Compiled {
    /// The graph that was planned.
    pub graph: Graph,
    /// What each pass did to it.
    pub trace: Trace,
    /// The plan.
    pub plan: Plan,
    /// The program.
    pub program: Program,
}

static COMPILATIONS: AtomicU64 = AtomicU64::new(0);

/// How many programs this process has compiled. Loading, adapting and calling never add to it.
pub fn compilations() -> u64 {
    COMPILATIONS.load(Ordering::Relaxed)
}

/// The graph that these options plan, and how it came to be.
///
/// # Errors
/// [`CompileError::Pipeline`].
pub fn optimize(graph: &Graph, options: &Options) -> Result<Optimized, CompileError> {
    let Options { optimize, merge, .. } = options;
    if !optimize && merge.is_never() {
        return Ok(pipeline::run(graph, &[])?);
    }
    Ok(pipeline::optimize(graph, &pipeline::Options { merge: merge.clone() })?)
}

/// The plan of a graph as it stands, verified, and in debug builds also [checked](check::check_all).
///
/// # Errors
/// [`CompileError::Plan`], [`CompileError::Invariant`] or [`CompileError::Unsound`].
pub fn plan(graph: &Graph, options: &Options) -> Result<Plan, CompileError> {
    let mut plan = plan::plan(graph, PlanOptions { fuse: options.optimize })?;
    plan.profiled = options.profile;
    plan::verify(&plan)
        .map_err(|errors| CompileError::Invariant { graph: graph.name().to_owned(), errors })?;
    if cfg!(debug_assertions) {
        check::check_all(&plan)
            .map_err(|source| CompileError::Unsound { graph: graph.name().to_owned(), source })?;
    }
    Ok(plan)
}

/// Compiles a graph for this machine.
///
/// # Errors
/// [`CompileError`].
pub fn compile(graph: &Graph, options: &Options) -> Result<Compiled, CompileError> {
    let Optimized { graph, trace } = optimize(graph, options)?;
    let plan = plan(&graph, options)?;
    let program = jit::compile(&plan)?;
    COMPILATIONS.fetch_add(1, Ordering::Relaxed);
    Ok(Compiled { graph, trace, plan, program })
}
