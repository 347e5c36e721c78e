//! Where the elements of a tensor are: in memory of its own, or in a mapped file. Knows nothing about shapes.

use std::fmt;
use std::ops::Deref;

use crate::mapped::{MappedElements, Plain};

/// The elements of a tensor. They are equal when their values are, wherever they are.
#[derive(Clone)]
pub(crate) enum Elements<T> {
    /// In memory of its own.
    Owned(Vec<T>),
    /// In a file.
    Mapped(MappedElements<T>),
}

impl<T: Plain + Default> Elements<T> {
    /// The elements to be changed; those in a file are copied first.
    pub(crate) fn owned(&mut self) -> &mut Vec<T> {
        if let Elements::Mapped(mapped) = self {
            *self = Elements::Owned(mapped.to_vec());
        }
        match self {
            Elements::Owned(data) => data,
            Elements::Mapped(_) => unreachable!("copied above"),
        }
    }

    /// Makes them `count`: those of its own that were there before, and zeros. Says whether there was memory for it.
    pub(crate) fn resize(&mut self, count: usize) -> bool {
        if let Elements::Mapped(_) = self {
            *self = Elements::Owned(Vec::new());
        }
        let data = self.owned();
        let enough = data.try_reserve_exact(count.saturating_sub(data.len())).is_ok();
        if enough {
            data.resize(count, T::default());
        }
        enough
    }

    /// Lets go of the pages of a file that hold the elements, if they are in one: they come back when they are read.
    pub(crate) fn release(&self) {
        if let Elements::Mapped(mapped) = self {
            mapped.release();
        }
    }
}

impl<T: Plain> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Elements::Owned(data) => data,
            Elements::Mapped(mapped) => mapped,
        }
    }
}

impl<T> From<Vec<T>> for Elements<T> {
    fn from(data: Vec<T>) -> Elements<T> {
        Elements::Owned(data)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Elements<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain + PartialEq> PartialEq for Elements<T> {
    fn eq(&self, other: &Elements<T>) -> bool {
        **self == **other
    }
}
