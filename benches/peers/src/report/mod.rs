//! How results are kept: as JSON for programs, as Markdown and plots for people.

mod markdown;
mod plots;
mod style;

use crate::error::Error;
use crate::results::Results;
use std::fs;
use std::path::Path;

/// Writes `results.json`, `results.md` and the plots that it shows into a directory.
///
/// # Errors
/// A file can't be written.
pub fn write(results: &Results, directory: &Path) -> Result<(), Error> {
    let write = |name: &str, content: String| {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|source| Error::File { path, source })
    };
    fs::create_dir_all(directory).map_err(|source| Error::File { path: directory.to_owned(), source })?;
    write("results.json", serde_json::to_string_pretty(results)? + "\n")?;
    let plots = plots::draw(results, directory)?;
    write("results.md", markdown::page(results, &plots))
}
