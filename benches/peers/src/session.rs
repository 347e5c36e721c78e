//! A session: the libraries loaded, the Python processes started, a context of ours for each number of threads. Knows
//! nothing about what they are to compute.

use crate::error::Error;
use crate::onnx_runtime::OnnxRuntime;
use crate::open_vino::OpenVino;
use crate::python::Python;
use engraft::runtime::{Context, Options};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The script that the Python processes run.
const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/worker.py");

/// Everybody's ground.
pub struct Session {
    /// Ours, one for each number of threads.
    pub contexts: Vec<Arc<Context>>,
    /// PyTorch and PEFT, one for each number of threads.
    pub pythons: Vec<RefCell<Python>>,
    /// ONNX Runtime.
    pub onnx_runtime: OnnxRuntime,
    /// OpenVINO.
    pub open_vino: RefCell<OpenVino>,
    directory: TempDir,
}

impl Session {
    /// Loads the libraries and starts the processes.
    ///
    /// # Errors
    /// One of them isn't there.
    pub fn open(venv: &Path, threads: &[usize]) -> Result<Self, Error> {
        let packages = packages(venv)?;
        let context = |&threads: &usize| {
            let options = Options { threads: NonZeroUsize::new(threads), ..Options::default() };
            Ok(Arc::new(Context::new(options)?))
        };
        let interpreter = venv.join("bin/python");
        let python =
            |&threads: &usize| Python::start(&interpreter, Path::new(WORKER), threads).map(RefCell::new);
        let library = |directory: &str, prefix: &str| find(&packages.join(directory), prefix);
        let open_vino = OpenVino::open(&library("openvino/libs", "libopenvino_c.so")?)?;
        Ok(Self {
            contexts: threads.iter().map(context).collect::<Result<_, Error>>()?,
            pythons: threads.iter().map(python).collect::<Result<_, Error>>()?,
            onnx_runtime: OnnxRuntime::open(&library("onnxruntime/capi", "libonnxruntime.so")?)?,
            open_vino: RefCell::new(open_vino),
            directory: TempDir::new().map_err(|source| Error::File { path: std::env::temp_dir(), source })?,
        })
    }

    /// The context with the fewest threads.
    pub fn context(&self) -> &Arc<Context> {
        &self.contexts[0]
    }

    /// Where files go that only this session needs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The versions of the peers.
    ///
    /// # Errors
    /// A Python process fails.
    pub fn versions(&self) -> Result<BTreeMap<String, String>, Error> {
        self.pythons[0].borrow_mut().versions()
    }
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
