//! Where the models are that some tests run. They are too large to be kept with the code: `tests/fetch_models.sh` brings
//! them. Knows nothing about what is in them.

use std::env;
use std::path::{Path, PathBuf};

/// The directory of the model all-MiniLM-L6-v2.
pub const MINILM: &str = "all-MiniLM-L6-v2";

/// The file of the model SmolLM2-135M-Instruct, quantised to `Q4_1`.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where a model is: under the directory that the environment variable `ENGRAFT_MODELS` names, or else under
/// `target/models` of this workspace. If it isn't there, says on standard error that the test is skipped, and why.
///
/// ```
/// # fn test() {
/// let Some(path) = engraft_testing::model(engraft_testing::MINILM) else { return };
/// assert!(path.join("tokenizer.json").exists());
/// # }
/// ```
pub fn model(name: &str) -> Option<PathBuf> {
    let directory = env::var_os("ENGRAFT_MODELS").filter(|value| !value.is_empty()).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("target").join("models"),
        PathBuf::from,
    );
    let path = directory.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: there is no {}; `tests/fetch_models.sh` fetches it", path.display());
    None
}
