//! Metadata by key, as what a reader asks for. Knows nothing about architectures.

use super::error::MetadataError as Error;
use super::value::{Array, Value};
use std::collections::BTreeMap;

/// A file's metadata.
pub(super) struct Metadata<'a>(pub &'a BTreeMap<String, Value>);

impl<'a> Metadata<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key)
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A count or an id.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        let expected = "a non-negative integer";
        self.read(key, expected, |value| match *value {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => value.try_into().ok(),
            _ => None,
        })
    }

    /// A count that is one at least.
    pub fn positive(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.integer(key)? {
            Some(0) => Err(wrong(key, &Value::Unsigned(0), "1 or more")),
            count => Ok(count),
        }
    }

    /// A number, as the shortest decimal that rounds to it: the one that the model's own configuration has.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.read(key, "a finite number", |value| match *value {
            Value::F32(value) if value.is_finite() => value.to_string().parse().ok(),
            Value::F64(value) if value.is_finite() => Some(value),
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, "true or false", |value| match *value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.read(key, "a text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn strings(&self, key: &str) -> Result<Option<&'a [String]>, Error> {
        self.read(key, "an array of texts", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// Integers, of either kind.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        self.read(key, "an array of 32-bit integers", |value| match value {
            Value::Array(Array::Signed(values)) => Some(values.clone()),
            Value::Array(Array::Unsigned(values)) => values.iter().map(|&v| v.try_into().ok()).collect(),
            _ => None,
        })
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(key, value, expected))
    }
}

/// What to say of a value that is not as expected.
pub(super) fn wrong(key: &str, found: &Value, expected: &str) -> Error {
    Error::Value { key: key.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}

/// What to say where there is none.
pub(super) fn missing(key: &str, expected: &'static str) -> Error {
    Error::Missing { key: key.to_owned(), expected }
}
