//! The fields of a JSON object, read strictly: each at most once, in order, and of the type that is asked for. Knows
//! nothing about what they mean.

use super::config::ConfigError;
use super::select::{ByPattern, Names, Pattern};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::fmt;

pub(super) fn value_error(field: &str, found: &impl fmt::Display, expected: &'static str) -> ConfigError {
    ConfigError::Value { field: field.to_owned(), found: found.to_string(), expected }
}

/// The value of a field. An object keeps its order, which matters in `rank_pattern` and `alpha_pattern`.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    Plain(Json),
    Object(Vec<(String, Json)>),
}

impl Field {
    /// Whether it is null or false.
    pub(super) fn is_off(&self) -> bool {
        matches!(self, Self::Plain(Json::Null | Json::Bool(false)))
    }

    /// Whether it is null, false or empty.
    pub(crate) fn is_nothing(&self) -> bool {
        match self {
            Self::Plain(Json::String(text)) => text.is_empty(),
            Self::Plain(Json::Array(list)) => list.is_empty(),
            Self::Plain(_) => self.is_off(),
            Self::Object(entries) => entries.is_empty(),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(value) => value.fmt(f),
            Self::Object(entries) => entries.iter().cloned().collect::<Json>().fmt(f),
        }
    }
}

/// The fields of the object, in order, each at most once.
#[derive(Debug)]
pub(crate) struct Fields(Vec<(String, Field)>);

impl Fields {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The field's value, which may be anything but an object.
    pub(super) fn plain(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<&Json>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Field::Plain(value)) => Ok(Some(value)),
            Some(object) => Err(value_error(name, object, expected)),
        }
    }

    pub(super) fn required<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Json) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let value = self.plain(name, expected)?.ok_or(ConfigError::Missing { field: name })?;
        read(value).ok_or_else(|| value_error(name, value, expected))
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<bool, ConfigError> {
        const EXPECTED: &str = "true or false";
        match self.plain(name, EXPECTED)? {
            None | Some(Json::Null) => Ok(false),
            Some(Json::Bool(flag)) => Ok(*flag),
            Some(other) => Err(value_error(name, other, EXPECTED)),
        }
    }

    /// A list of names; `None` if there is none.
    pub(super) fn names(&self, name: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        const EXPECTED: &str = "a list of strings, none of them empty";
        let error = |found: &Json| value_error(name, found, EXPECTED);
        match self.plain(name, EXPECTED)? {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Array(list)) => {
                let text = |item: &Json| item.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                let names = list.iter().map(|item| text(item).ok_or_else(|| error(item)));
                names.collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(error(other)),
        }
    }

    /// A list of names or a regular expression; `None` if there is neither.
    pub(super) fn names_or_pattern(&self, name: &'static str) -> Result<Option<Names>, ConfigError> {
        match self.plain(name, "a list of strings or a string")? {
            Some(Json::String(text)) if text.is_empty() => Ok(None),
            Some(Json::String(text)) => {
                let names =
                    Names::pattern(text).map_err(|source| ConfigError::Pattern { field: name, source });
                names.map(Some)
            }
            _ => Ok(self.names(name)?.map(Names::List)),
        }
    }

    pub(super) fn by_pattern<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        read: impl Fn(&Json) -> Option<T>,
    ) -> Result<ByPattern<T>, ConfigError> {
        let entries = match self.get(name) {
            None | Some(Field::Plain(Json::Null)) => return Ok(ByPattern(Vec::new())),
            Some(Field::Object(entries)) => entries,
            Some(Field::Plain(other)) => {
                return Err(value_error(name, other, "an object of values by pattern"));
            }
        };
        let entry = |(key, value): &(String, Json)| {
            let pattern = Pattern::new(key, ByPattern::<u64>::FRAME);
            let pattern = pattern.map_err(|source| ConfigError::Pattern { field: name, source })?;
            let value = read(value).ok_or_else(|| value_error(&format!("{name}.{key}"), value, expected))?;
            Ok((pattern, value))
        };
        entries.iter().map(entry).collect::<Result<_, _>>().map(ByPattern)
    }
}

/// The entries of an object in the order of the text, each name at most once.
fn entries<'de, M: MapAccess<'de>, V: Deserialize<'de>>(mut map: M) -> Result<Vec<(String, V)>, M::Error> {
    let (mut entries, mut names) = (Vec::new(), BTreeSet::new());
    while let Some(name) = map.next_key::<String>()? {
        if !names.insert(name.clone()) {
            return Err(M::Error::custom(format!("there are two fields `{name}`")));
        }
        let value = map.next_value().map_err(|e| M::Error::custom(format!("`{name}`: {e}")))?;
        entries.push((name, value));
    }
    Ok(entries)
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Fields, M::Error> {
                entries(map).map(Fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;

        impl<'de> Visitor<'de> for Value {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Field, E> {
                Ok(Field::Plain(Json::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
                Ok(Field::Plain(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
                Ok(Field::Plain(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
                Ok(Field::Plain(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
                Ok(Field::Plain(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Field, E> {
                Ok(Field::Plain(value.into()))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Field, S::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element::<Json>()? {
                    list.push(item);
                }
                Ok(Field::Plain(list.into()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Field, M::Error> {
                entries(map).map(Field::Object)
            }
        }

        deserializer.deserialize_any(Value)
    }
}
