//! The directory that is written: beside its place until it is whole. And the files that come along: configs, tokenizers and
//! texts, of which it is known that they hold no weights.

use super::error::MergeError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// How files end that hold no weights.
const COPIED: [&str; 8] = ["json", "jsonl", "txt", "model", "md", "jinja", "tiktoken", "py"];
/// Names without an ending of such files.
const COPIED_NAMES: [&str; 4] = ["LICENSE", "NOTICE", "LICENCE", "COPYING"];
/// The index of shards, which is written anew.
const INDEX_END: &str = ".index.json";
/// Where [`super::record`] is.
pub(super) const RECORD_DIRECTORY: &str = "engraft";

/// How deep files are looked for; sentence-transformers' lie one directory deep.
const DEPTH: usize = 3;
/// The most files and directories; real models have a few dozen.
const LIMIT: usize = 10_000;

/// The files beside the weights, by their paths in the directory.
pub(super) struct Beside {
    pub(super) copied: Vec<String>,
    pub(super) left: Vec<String>,
}

/// The files of a directory but those of `network`'s tensors, and but hidden ones.
pub(super) fn list(directory: &Path, network: &Path) -> Result<Beside, MergeError> {
    let mut beside = Beside { copied: Vec::new(), left: Vec::new() };
    let mut places = vec![(directory.to_owned(), String::new(), 0)];
    let mut seen = 0;
    while let Some((place, prefix, depth)) = places.pop() {
        let entries = fs::read_dir(&place).map_err(io_error(&place))?;
        for entry in entries {
            let entry = entry.map_err(io_error(&place))?;
            seen += 1;
            if seen > LIMIT {
                return Err(MergeError::TooManyFiles { path: directory.to_owned(), limit: LIMIT });
            }
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                beside.left.push(path.display().to_string());
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let inner = format!("{prefix}{name}");
            if path.is_dir() {
                if name == RECORD_DIRECTORY {
                    continue;
                }
                if depth == DEPTH {
                    beside.left.push(format!("{inner}/"));
                } else {
                    places.push((path, format!("{inner}/"), depth + 1));
                }
            } else if is_copied(&path, &name) {
                beside.copied.push(inner);
            } else {
                let is_read = place == network && name.ends_with(".safetensors");
                if !is_read && !name.ends_with(INDEX_END) {
                    beside.left.push(inner);
                }
            }
        }
    }
    beside.copied.sort_unstable();
    beside.left.sort_unstable();
    Ok(beside)
}

fn is_copied(path: &Path, name: &str) -> bool {
    let ending = path.extension().and_then(|extension| extension.to_str());
    let known = ending.is_some_and(|ending| COPIED.contains(&ending)) || COPIED_NAMES.contains(&name);
    known && path.is_file() && !name.ends_with(INDEX_END)
}

/// Copies files into a directory, by their paths in both.
pub(super) fn copy(from: &Path, files: &[String], to: &Path) -> Result<(), MergeError> {
    for file in files {
        let target = to.join(file);
        if let Some(parent) = target.parent() {
            make(parent)?;
        }
        fs::copy(from.join(file), &target).map_err(io_error(&target))?;
    }
    Ok(())
}

/// Makes a directory, if there is none.
pub(super) fn make(directory: &Path) -> Result<(), MergeError> {
    fs::create_dir_all(directory).map_err(io_error(directory))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> MergeError {
    let path = path.to_owned();
    move |source| MergeError::Io { path, source }
}

/// A directory that is being written, under another name than it will have. Unless it is finished, it is removed.
pub(super) struct Output {
    target: PathBuf,
    partial: Option<PathBuf>,
}

impl Output {
    pub(super) fn begin(target: &Path) -> Result<Self, MergeError> {
        let is_free = match fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let exists = || MergeError::OutputExists { path: target.to_owned() };
        let name = target.file_name().filter(|_| is_free).ok_or_else(exists)?;
        let mut partial = name.to_owned();
        partial.push(format!(".{}.partial", process::id()));
        let partial = target.with_file_name(partial);
        if let Some(parent) = partial.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            make(parent)?;
        }
        fs::create_dir(&partial).map_err(io_error(&partial))?;
        Ok(Self { target: target.to_owned(), partial: Some(partial) })
    }

    /// Where to write.
    pub(super) fn path(&self) -> PathBuf {
        self.partial.clone().unwrap_or_else(|| self.target.clone())
    }

    /// Puts it in its place.
    pub(super) fn finish(mut self) -> Result<(), MergeError> {
        if let Some(partial) = &self.partial {
            // An empty directory is in the way on some systems.
            let _ = fs::remove_dir(&self.target);
            fs::rename(partial, &self.target).map_err(io_error(&self.target))?;
        }
        self.partial = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // Whatever went wrong before is what is reported.
            let _ = fs::remove_dir_all(partial);
        }
    }
}
