//! A progress bar, for work that takes long enough to wonder.

use indicatif::{ProgressBar, ProgressStyle};

/// Fewer texts than this are done before a bar is read.
const MANY: usize = 64;

/// A bar over so many texts on standard error; it shows nothing if that is no terminal, or there are few.
pub fn bar(texts: usize) -> ProgressBar {
    if texts < MANY {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} texts, {per_sec}, {eta} left");
    ProgressBar::new(texts as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
