//! How results are kept: as JSON for programs, as Markdown and plots for people.

mod markdown;
mod plots;
mod style;

use crate::error::Error;
use crate::results::Results;
use std::fs;
use std::path::Path;

/// Writes the results as `.json` and `.md`, and the plots that this shows, into a directory.
///
/// # Errors
/// A file can't be written.
pub fn write(results: &Results, directory: &Path) -> Result<(), Error> {
    let write = |name: &str, content: String| {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|source| Error::File { path, source })
    };
    fs::create_dir_all(directory).map_err(|source| Error::File { path: directory.to_owned(), source })?;
    let stem = results.suite.stem();
    write(&format!("{stem}.json"), serde_json::to_string_pretty(results)? + "\n")?;
    let plots = plots::draw(results, directory)?;
    write(&format!("{stem}.md"), markdown::page(results, &plots))
}
