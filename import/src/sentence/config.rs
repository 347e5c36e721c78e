//! The files that sentence-transformers puts beside a model, read strictly: every field is used, or known not to change
//! an embedding, or refused by name. Knows nothing about tensors.

use super::Pooling;
use crate::json::read_limited;
use crate::peft::fields::{Field, Fields};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// The largest of these files, in bytes; real ones have a few hundred.
const MAX_BYTES: u64 = 1 << 20;

/// Why a directory's sentence-transformers files were refused. Each message names the file.
#[derive(Debug, Error)]
pub enum SentenceError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any real one.
    #[error("{}: the file has more than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON of the right form.
    #[error("{}: the file is malformed: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A field is absent.
    #[error("{}: `{field}` is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("{}: `{field}` is {found}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A field asks for something that is not supported.
    #[error("{}: `{field}` is {found}, which is not supported: {meaning}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it would mean.
        meaning: &'static str,
    },
    /// A field is not known, and its value may matter.
    #[error("{}: `{field}` is {found}, but no such field is known; expected null, false or nothing in it", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
    },
    /// The modules are not those that are supported.
    #[error(
        "{}: module {index} is {found}, expected a Transformer, then a Pooling, then perhaps a Normalize of \
         sentence-transformers",
        path.display()
    )]
    Module {
        /// The file.
        path: PathBuf,
        /// Which module, from 0.
        index: usize,
        /// Its type, or that there is none.
        found: String,
    },
    /// The pooling's ways are none or several.
    #[error("{}: the pooling is {found:?}, expected one of mean and cls", path.display())]
    Pooling {
        /// The file.
        path: PathBuf,
        /// The ways that it names.
        found: Vec<String>,
    },
}

/// What becomes of a sentence before and after the network.
///
/// A directory without `modules.json` is one of transformers, not of sentence-transformers. Such a model gets what
/// sentence-transformers gives it: mean pooling and no normalisation, at the network's own length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentenceConfig {
    /// The directory of the network and its tokenizer.
    pub transformer: PathBuf,
    /// How many tokens a sentence is cut off to, special ones included; if it isn't said, as many as the network has
    /// positions.
    pub max_length: Option<usize>,
    /// The file that says it, if there is one.
    pub length_file: Option<PathBuf>,
    /// How one vector is made of the tokens' vectors.
    pub pooling: Pooling,
    /// That vector's length, if it is said.
    pub dim: Option<usize>,
    /// The file that says both, if there is one.
    pub pooling_file: Option<PathBuf>,
    /// The vector is brought to length 1.
    pub normalize: bool,
}

/// The names under which the first module is written.
const TRANSFORMER: &[&str] = &[
    "sentence_transformers.models.Transformer",
    "sentence_transformers.base.modules.transformer.Transformer",
];
/// The names of the second.
const POOLING: &[&str] = &[
    "sentence_transformers.models.Pooling",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
];
/// The names of the third.
const NORMALIZE: &[&str] = &[
    "sentence_transformers.models.Normalize",
    "sentence_transformers.base.modules.normalize.Normalize",
    "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
];

/// The names of the first module's file; the first that is there counts.
const TRANSFORMER_FILES: &[&str] = &[
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The fields of the pooling's file that choose a way, and what newer files call it.
const WAYS: &[(&str, &str)] = &[
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

impl SentenceConfig {
    /// Reads `modules.json` and what it names, `sentence_bert_config.json` and `config_sentence_transformers.json`.
    ///
    /// # Errors
    /// A file cannot be read, or says anything that is not supported: other modules (such as Dense), other poolings or
    /// several of them, lower-casing, a prompt that goes before every sentence.
    pub fn read(directory: impl AsRef<Path>) -> Result<Self, SentenceError> {
        let directory = directory.as_ref();
        let path = directory.join("modules.json");
        let plain = Self {
            transformer: directory.to_owned(),
            max_length: None,
            length_file: None,
            pooling: Pooling::Mean,
            dim: None,
            pooling_file: None,
            normalize: false,
        };
        let Some(modules) = read_json::<Vec<Fields>>(&path)? else { return Ok(plain) };
        let modules = read_modules(&path, &modules)?;
        if let Some(file) = Object::read(directory.join("config_sentence_transformers.json"))? {
            check_general(&file)?;
        }
        let transformer = directory.join(&modules.transformer);
        let (max_length, length_file) = read_transformer(&transformer)?;
        let pooling_file = directory.join(&modules.pooling).join("config.json");
        let (pooling, dim) = read_pooling(pooling_file.clone())?;
        if let Some(normalize) = &modules.normalize
            && let Some(file) = Object::read(directory.join(normalize).join("config.json"))?
        {
            file.fields.iter().try_for_each(|(name, value)| file.unknown(name, value))?;
        }
        Ok(Self {
            transformer,
            max_length,
            length_file,
            pooling,
            dim,
            pooling_file: Some(pooling_file),
            normalize: modules.normalize.is_some(),
        })
    }
}

/// A JSON file, read; `None` if there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SentenceError> {
    let text = match read_limited(path, MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SentenceError::Io { path: path.to_owned(), source }),
        Ok(text) => text.ok_or_else(|| SentenceError::TooLarge { path: path.to_owned() })?,
    };
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|source| SentenceError::Json { path: path.to_owned(), source })
}

/// A file that is one JSON object.
struct Object {
    path: PathBuf,
    fields: Fields,
}

impl Object {
    fn read(path: PathBuf) -> Result<Option<Self>, SentenceError> {
        Ok(read_json(&path)?.map(|fields| Self { path, fields }))
    }

    fn value_error(&self, field: &str, found: &Field, expected: &'static str) -> SentenceError {
        let (path, field, found) = (self.path.clone(), field.to_owned(), found.to_string());
        SentenceError::Value { path, field, found, expected }
    }

    fn unsupported(&self, field: &str, found: &Field, meaning: &'static str) -> SentenceError {
        let (path, field, found) = (self.path.clone(), field.to_owned(), found.to_string());
        SentenceError::Unsupported { path, field, found, meaning }
    }

    /// Refuses a field that is not known, unless it says nothing.
    fn unknown(&self, field: &str, value: &Field) -> Result<(), SentenceError> {
        let (path, field, found) = (self.path.clone(), field.to_owned(), value.to_string());
        if value.is_nothing() { Ok(()) } else { Err(SentenceError::Unknown { path, field, found }) }
    }

    /// A field that may only have this value, written as JSON, or say nothing.
    fn only(
        &self,
        field: &str,
        value: &Field,
        allowed: &str,
        meaning: &'static str,
    ) -> Result<(), SentenceError> {
        let is_allowed = value.is_nothing() || value.to_string() == allowed;
        if is_allowed { Ok(()) } else { Err(self.unsupported(field, value, meaning)) }
    }

    fn flag(&self, field: &str, value: &Field) -> Result<bool, SentenceError> {
        match value {
            Field::Plain(Json::Bool(flag)) => Ok(*flag),
            Field::Plain(Json::Null) => Ok(false),
            other => Err(self.value_error(field, other, "true or false")),
        }
    }

    /// A positive integer, or null.
    fn size(&self, field: &str, value: &Field) -> Result<Option<usize>, SentenceError> {
        let size = match value {
            Field::Plain(Json::Null) => return Ok(None),
            Field::Plain(plain) => plain.as_u64().and_then(|size| usize::try_from(size).ok()),
            Field::Object(_) => None,
        };
        let error = || self.value_error(field, value, "a positive integer or null");
        size.filter(|&size| size > 0).map(Some).ok_or_else(error)
    }
}

/// Where the modules have their files, relative to the directory.
struct Modules {
    transformer: PathBuf,
    pooling: PathBuf,
    normalize: Option<PathBuf>,
}

fn read_modules(path: &Path, modules: &[Fields]) -> Result<Modules, SentenceError> {
    let mut names = BTreeSet::new();
    let mut places = Vec::new();
    let expected = [TRANSFORMER, POOLING, NORMALIZE];
    for (index, module) in modules.iter().enumerate() {
        let text = |field: &'static str| text_of(path, module, field);
        let kind = text("type")?;
        if !expected.get(index).is_some_and(|kinds| kinds.contains(&kind)) {
            return Err(SentenceError::Module { path: path.to_owned(), index, found: kind.to_owned() });
        }
        let wrong = |field: &str, found: &str, expected| SentenceError::Value {
            path: path.to_owned(),
            field: field.to_owned(),
            found: Json::from(found).to_string(),
            expected,
        };
        let place = text("path")?;
        let is_inside = Path::new(place).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            return Err(wrong("path", place, "the name of a directory in this one"));
        }
        // Of two modules with the same name, sentence-transformers keeps one.
        let name = text("name")?;
        if !names.insert(name) {
            return Err(wrong("name", name, "a name of its own"));
        }
        for (field, value) in module.iter() {
            // The order is that of the list; `idx` repeats it.
            let is_known = ["idx", "name", "path", "type"].contains(&field);
            if !is_known && !value.is_nothing() {
                let (field, found) = (field.to_owned(), value.to_string());
                return Err(SentenceError::Unknown { path: path.to_owned(), field, found });
            }
        }
        places.push(PathBuf::from(place));
    }
    let mut places = places.into_iter();
    match (places.next(), places.next(), places.next()) {
        (Some(transformer), Some(pooling), normalize) => Ok(Modules { transformer, pooling, normalize }),
        _ => Err(SentenceError::Module {
            path: path.to_owned(),
            index: modules.len(),
            found: "missing".to_owned(),
        }),
    }
}

fn text_of<'a>(path: &Path, module: &'a Fields, field: &'static str) -> Result<&'a str, SentenceError> {
    let path = path.to_owned();
    match module.get(field) {
        None => Err(SentenceError::Missing { path, field }),
        Some(Field::Plain(Json::String(text))) => Ok(text),
        Some(other) => {
            let (field, found) = (field.to_owned(), other.to_string());
            Err(SentenceError::Value { path, field, found, expected: "a string" })
        }
    }
}

/// `config_sentence_transformers.json`: only a prompt would change an embedding.
fn check_general(file: &Object) -> Result<(), SentenceError> {
    const KINDS: &str = "only a SentenceTransformer makes one vector of a sentence";
    for (name, value) in file.fields.iter() {
        match name {
            // Who wrote it; how embeddings are to be compared; what callers may name, but nobody does by default.
            "__version__" | "similarity_fn_name" | "prompts" => {}
            "default_prompt_name" => check_prompt(file, value)?,
            "model_type" => file.only(name, value, "\"SentenceTransformer\"", KINDS)?,
            _ => file.unknown(name, value)?,
        }
    }
    Ok(())
}

/// The prompt that goes before every sentence may only be empty.
fn check_prompt(file: &Object, name: &Field) -> Result<(), SentenceError> {
    if matches!(name, Field::Plain(Json::Null)) {
        return Ok(());
    }
    let prompt = match (name, file.fields.get("prompts")) {
        (Field::Plain(Json::String(name)), Some(Field::Object(prompts))) => {
            prompts.iter().find(|(key, _)| key == name).map(|(_, prompt)| prompt)
        }
        _ => None,
    };
    match prompt.and_then(Json::as_str) {
        Some("") => Ok(()),
        Some(_) => {
            Err(file.unsupported("default_prompt_name", name, "a prompt is put before every sentence"))
        }
        None => Err(file.value_error("default_prompt_name", name, "null or one of `prompts`")),
    }
}

/// The first module's file: the longest sentence, and the file.
fn read_transformer(directory: &Path) -> Result<(Option<usize>, Option<PathBuf>), SentenceError> {
    const TEXT: &str = r#"{"text":{"method":"forward","method_output_name":"last_hidden_state"}}"#;
    const OUTPUT: &str = "something else than the last hidden states is pooled";
    let mut found = None;
    for name in TRANSFORMER_FILES {
        found = Object::read(directory.join(name))?;
        if found.is_some() {
            break;
        }
    }
    let Some(file) = found else { return Ok((None, None)) };
    let mut max_length = None;
    for (name, value) in file.fields.iter() {
        match name {
            "max_seq_length" => max_length = file.size(name, value)?,
            "do_lower_case" if file.flag(name, value)? => {
                return Err(file.unsupported(name, value, "sentences are put in lower case, as Python does"));
            }
            "do_lower_case" => {}
            "transformer_task" => file.only(name, value, "\"feature-extraction\"", OUTPUT)?,
            "modality_config" => file.only(name, value, TEXT, OUTPUT)?,
            "module_output_name" => file.only(name, value, "\"token_embeddings\"", OUTPUT)?,
            _ => file.unknown(name, value)?,
        }
    }
    Ok((max_length, Some(file.path)))
}

/// The second module's file: how to pool, and the vector's length.
fn read_pooling(path: PathBuf) -> Result<(Pooling, Option<usize>), SentenceError> {
    let Some(file) = Object::read(path.clone())? else {
        return Err(SentenceError::Io { path, source: io::ErrorKind::NotFound.into() });
    };
    let (mut ways, mut dim) = (BTreeSet::new(), None);
    for (name, value) in file.fields.iter() {
        match name {
            "word_embedding_dimension" | "embedding_dimension" => dim = file.size(name, value)?,
            // Says what becomes of a prompt, and there is none.
            "include_prompt" => drop(file.flag(name, value)?),
            "pooling_mode" => match value {
                Field::Plain(Json::String(way)) => drop(ways.insert(way.as_str())),
                other => return Err(file.value_error(name, other, "a string")),
            },
            _ => match WAYS.iter().find(|(field, _)| *field == name) {
                Some((_, way)) if file.flag(name, value)? => drop(ways.insert(way)),
                Some(_) => {}
                None => file.unknown(name, value)?,
            },
        }
    }
    // Where neither is said, sentence-transformers adds the mean to whatever else is named.
    let mean = "pooling_mode_mean_tokens";
    if file.fields.get("pooling_mode").is_none() && file.fields.get(mean).is_none() {
        return Err(SentenceError::Missing { path, field: mean });
    }
    let found: Vec<_> = ways.into_iter().collect();
    match found[..] {
        ["mean"] => Ok((Pooling::Mean, dim)),
        ["cls"] => Ok((Pooling::Cls, dim)),
        _ => Err(SentenceError::Pooling { path, found: found.into_iter().map(str::to_owned).collect() }),
    }
}
