//! What the numbers depend on beside the code: the processor, its caches, the kernels in use. It says nothing that names
//! the machine itself.

use crate::error::Error;
use engraft::runtime::Context;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux tells of processors.
const CPUINFO: &str = "/proc/cpuinfo";
const CACHES: &str = "/sys/devices/system/cpu/cpu0/cache";

/// The machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// As the processor calls itself, with family, model and stepping, since virtual ones keep their name to themselves.
    pub processor: String,
    /// The cores that this process may use.
    pub cores: usize,
    /// The flags that matter to matrix products.
    pub flags: Vec<String>,
    /// Caches of the first core, such as `L1 data 48K`.
    pub caches: Vec<String>,
    /// Our kernels.
    pub kernels: &'static str,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// Linux doesn't tell.
    pub fn describe(context: &Context) -> Result<Self, Error> {
        let info = read(Path::new(CPUINFO))?;
        let field = |name: &str| {
            let line = info.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
            line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_owned()
        };
        let matters = |flag: &&str| ["avx", "fma", "amx"].iter().any(|prefix| flag.starts_with(prefix));
        let (name, family, model) = (field("model name"), field("cpu family"), field("model"));
        Ok(Self {
            processor: format!("{name}, family {family}, model {model}, stepping {}", field("stepping")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            flags: field("flags").split_whitespace().filter(matters).map(str::to_owned).collect(),
            caches: caches()?,
            kernels: context.kernels.set().name(),
        })
    }

    /// A name for its kind, such as `x86_64-avx512-2-cores`.
    pub fn kind(&self) -> String {
        let has = |flag: &str| self.flags.iter().any(|f| f == flag);
        let matrix = if has("amx_tile") { "-amx" } else { "" };
        let vectors = ["avx512f", "avx2", "avx"].into_iter().find(|flag| has(flag)).unwrap_or("baseline");
        format!("{}-{vectors}{matrix}-{}-cores", std::env::consts::ARCH, self.cores)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn caches() -> Result<Vec<String>, Error> {
    let file = |source| Error::File { path: PathBuf::from(CACHES), source };
    let mut caches = Vec::new();
    for entry in fs::read_dir(CACHES).map_err(file)? {
        let directory = entry.map_err(file)?.path();
        // Beside the caches there are files about them all.
        if directory.join("level").exists() {
            let [level, kind, size] = ["level", "type", "size"].map(|name| read(&directory.join(name)));
            let (level, kind, size) = (level?, kind?.to_lowercase(), size?);
            caches.push(format!("L{} {} {}", level.trim(), kind.trim(), size.trim()));
        }
    }
    caches.sort();
    Ok(caches)
}
