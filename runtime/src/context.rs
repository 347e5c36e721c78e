//! What a program runs on: one set of kernels and one pool of workers, shared by everything loaded into it.

use std::num::NonZeroUsize;

use crate::kernels::{KernelSet, Kernels, UnknownKernels};
use crate::workers::Workers;

/// The variable of the environment that forces a set of kernels.
pub const KERNELS_VARIABLE: &str = "ENGRAFT_KERNELS";

/// How to make a [`Context`]. The default is the machine's threads and its fastest kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Threads that work on one call, the caller's included; `None` for as many as the machine offers.
    pub threads: Option<NonZeroUsize>,
    /// Which kernels; `None` for what [`KERNELS_VARIABLE`] says, or else the fastest this CPU can run.
    pub kernels: Option<KernelSet>,
}

/// Kernels and workers.
#[derive(Debug)]
pub struct Context {
    /// The kernels that products and norms use.
    pub kernels: &'static Kernels,
    /// The threads they are spread over.
    pub workers: Workers,
}

/// Why there is no context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The environment asks for kernels that don't exist.
    #[error("{KERNELS_VARIABLE}: {0}")]
    Unknown(#[from] UnknownKernels),
    /// The kernels asked for need what this CPU doesn't have.
    #[error("this CPU can't run the {set} kernels; it can run {}", listed(.runnable))]
    Unsupported {
        /// What was asked for.
        set: KernelSet,
        /// What could be.
        runnable: Vec<KernelSet>,
    },
    /// The system refused a thread.
    #[error("can't start {threads} worker threads: {source}")]
    Threads {
        /// How many were wanted, the caller's included.
        threads: NonZeroUsize,
        /// What the system said.
        source: std::io::Error,
    },
}

fn listed(sets: &[KernelSet]) -> String {
    sets.iter().map(|set| set.name()).collect::<Vec<_>>().join(", ")
}

impl Context {
    /// Chooses the kernels and starts the threads.
    ///
    /// # Errors
    /// When the environment names unknown kernels, when the CPU can't run those asked for, or when the system refuses a
    /// thread.
    pub fn new(options: Options) -> Result<Context, ContextError> {
        let kernels = match options.kernels.map_or_else(from_environment, |set| Ok(Some(set)))? {
            Some(set) => runnable(set, KernelSet::kernels)?,
            None => KernelSet::best(),
        };
        let threads = options
            .threads
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        let workers = Workers::new(threads).map_err(|source| ContextError::Threads { threads, source })?;
        Ok(Context { kernels, workers })
    }
}

fn from_environment() -> Result<Option<KernelSet>, UnknownKernels> {
    std::env::var_os(KERNELS_VARIABLE).map(|name| name.to_string_lossy().parse()).transpose()
}

/// The kernels of `set` if `find`, which asks the CPU, has them.
fn runnable(
    set: KernelSet,
    find: impl Fn(KernelSet) -> Option<&'static Kernels>,
) -> Result<&'static Kernels, ContextError> {
    find(set).ok_or_else(|| ContextError::Unsupported {
        set,
        runnable: KernelSet::ALL.into_iter().filter(|&set| find(set).is_some()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Context, KernelSet, Options, runnable};
    use std::num::NonZeroUsize;

    #[test]
    fn options_are_followed() {
        let options = Options { threads: NonZeroUsize::new(3), kernels: Some(KernelSet::Portable) };
        let context = Context::new(options).unwrap();
        assert_eq!((context.workers.threads(), context.kernels.set()), (3, KernelSet::Portable));
    }

    #[test]
    fn a_cpu_without_the_instructions_is_told() {
        let plain = |set: KernelSet| if set == KernelSet::Portable { set.kernels() } else { None };
        let message = runnable(KernelSet::Avx512, plain).unwrap_err().to_string();
        assert_eq!(message, "this CPU can't run the avx512 kernels; it can run portable");
    }
}
