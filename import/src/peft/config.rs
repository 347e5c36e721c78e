//! `adapter_config.json` of a LoRA or DoRA adapter, read strictly: every field is used, or known not to change what the
//! adapter computes, or refused by name. Knows nothing about tensors or graphs.

use super::fields::{Field, Fields, value_error};
use super::select::{ByPattern, Layers, Names, Pattern, PatternError, Selection, Selector, Targets};
use serde_json::Value as Json;
use std::sync::Arc;
use thiserror::Error;

/// Why a config was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It is not a JSON object; PEFT writes NaN and infinities in a way that is not JSON.
    #[error("the config is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// The adapter is of a kind that is not supported.
    #[error("`peft_type` is {found}, which is not supported yet; expected LORA (which DoRA is, too)")]
    Kind {
        /// The kind.
        found: String,
    },
    /// A field that PEFT always writes is absent.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("`{field}` is {found}, expected {expected}")]
    Value {
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A field asks for something that is not supported.
    #[error("`{field}` is {found}, which is not supported: {meaning}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value, as JSON.
        found: String,
        /// What it would mean.
        meaning: &'static str,
    },
    /// A field is none of PEFT's, and its value may matter.
    #[error("`{field}` is {found}, but no such field is known; expected null, false or nothing in it")]
    Unknown {
        /// The field.
        field: String,
        /// Its value, as JSON.
        found: String,
    },
    /// A field holds a regular expression that cannot be used.
    #[error("`{field}`: {source}")]
    Pattern {
        /// The field.
        field: &'static str,
        /// Why.
        source: PatternError,
    },
    /// Two fields contradict each other; PEFT refuses them, too.
    #[error("`{field}` cannot be combined with {with}")]
    Combination {
        /// The field.
        field: &'static str,
        /// The other one, with its value.
        with: &'static str,
    },
}

/// Which of the base's biases the adapter replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasMode {
    /// None.
    None,
    /// Every bias of the model.
    All,
    /// Those of the adapted modules.
    LoraOnly,
}

/// How training began, as far as it matters afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// From the base's own weights: the adapter is an update of them.
    Untouched,
    /// From weights changed by this method (such as `pissa`): the adapter is an update of what the method left over.
    Residual(String),
}

/// What a LoRA or DoRA adapter says of itself.
#[derive(Clone, Debug)]
pub struct LoraConfig {
    /// What it was read from.
    json: Arc<str>,
    rank: u64,
    alpha: f64,
    rank_pattern: ByPattern<u64>,
    alpha_pattern: ByPattern<f64>,
    selector: Selector,
    /// s is alpha / sqrt(r) instead of alpha / r (rsLoRA).
    pub use_rslora: bool,
    /// The adapter is DoRA.
    pub use_dora: bool,
    /// Which biases of the base it replaces.
    pub bias: BiasMode,
    /// B has a bias of its own.
    pub lora_bias: bool,
    /// How training began.
    pub init: Init,
    /// The modules that it replaces as a whole: those whose name ends in one of these.
    pub modules_to_save: Vec<String>,
}

/// The fields that decide what is computed; each is read in [`LoraConfig::from_fields`].
const USED: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "use_rslora",
    "use_dora",
    "bias",
    "lora_bias",
    "init_lora_weights",
];

/// The fields that do not, and why.
const IGNORED: &[(&str, &str)] = &[
    ("auto_mapping", "names Python classes"),
    ("base_model_name_or_path", "says where the base came from"),
    ("revision", "says where the base came from"),
    ("peft_version", "says who wrote the config"),
    ("task_type", "chooses a Python class"),
    ("inference_mode", "freezes parameters"),
    ("lora_dropout", "is the identity outside training"),
    ("fan_in_fan_out", "follows from how the base uses its weight; PEFT corrects it likewise"),
    ("loftq_config", "belongs to `init_lora_weights`, which is used"),
    ("eva_config", "belongs to `init_lora_weights`, which is used"),
    ("corda_config", "belongs to `init_lora_weights`, which is used"),
    ("lora_ga_config", "belongs to `init_lora_weights`, which is used"),
    ("megatron_core", "belongs to `megatron_config`, which is refused"),
    ("qalora_group_size", "belongs to `use_qalora`, which is refused"),
];

/// The fields that must be null or false, and what they would mean. An empty object is neither: PEFT reads it as the
/// method's defaults.
const REFUSED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "aLoRA adapts only the tokens after an invocation"),
    ("arrow_config", "Arrow routes each token among several adapters"),
    ("ensure_weight_tying", "tied modules share one adapter"),
    ("kasa_config", "KaSA has a diagonal between A and B and cuts the base's weights down"),
    ("layer_replication", "the base's layers are repeated"),
    ("megatron_config", "the layers are Megatron's parallel ones"),
    ("monteclora_config", "MonteCLoRA samples its weights"),
    ("target_parameters", "parameters are adapted that are no module's weight"),
    ("trainable_token_indices", "single rows of an embedding are replaced"),
    ("use_bdlora", "BD-LoRA's factors are block-diagonal"),
    ("use_qalora", "QALoRA pools its input"),
    ("velora_config", "VeLoRA compresses what its layers keep"),
];

/// The values of `init_lora_weights` that leave the base's weights as they are.
const UNTOUCHED_INITS: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];
/// The values that do not, and so do `pissa_niter_` and a number.
const RESIDUAL_INITS: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

impl LoraConfig {
    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// The first thing found wrong, by the field's name.
    ///
    /// ```
    /// use engraft_import::peft::LoraConfig;
    /// let json = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["fc"], "use_dora": true}"#;
    /// let config = LoraConfig::parse(json)?;
    /// assert_eq!((config.rank("h.0.fc")?, config.scale("h.0.fc")?), (8, 2.0));
    /// let error = LoraConfig::parse(r#"{"peft_type": "IA3"}"#).unwrap_err();
    /// assert!(error.to_string().contains("IA3, which is not supported yet"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        let fields: Fields = serde_json::from_str(json)?;
        match fields.get("peft_type") {
            None => return Err(ConfigError::Missing { field: "peft_type" }),
            Some(Field::Plain(Json::String(kind))) if kind == "LORA" => {}
            Some(Field::Plain(Json::String(kind))) => return Err(ConfigError::Kind { found: kind.clone() }),
            Some(other) => return Err(ConfigError::Kind { found: other.to_string() }),
        }
        for (name, value) in fields.iter() {
            check_field(name, value)?;
        }
        Self::from_fields(&fields, json)
    }

    fn from_fields(fields: &Fields, json: &str) -> Result<Self, ConfigError> {
        let use_dora = fields.flag("use_dora")?;
        let lora_bias = fields.flag("lora_bias")?;
        if use_dora && lora_bias {
            return Err(ConfigError::Combination { field: "lora_bias", with: "`use_dora` true" });
        }
        let modules_to_save = fields.names("modules_to_save")?.unwrap_or_default();
        Ok(Self {
            json: json.into(),
            rank: fields.required("r", "a positive integer", positive)?,
            alpha: fields.required("lora_alpha", "a number", Json::as_f64)?,
            rank_pattern: fields.by_pattern("rank_pattern", "a positive integer", positive)?,
            alpha_pattern: fields.by_pattern("alpha_pattern", "a number", Json::as_f64)?,
            selector: selector(fields, &modules_to_save)?,
            use_rslora: fields.flag("use_rslora")?,
            use_dora,
            bias: bias(fields)?,
            lora_bias,
            init: init(fields)?,
            modules_to_save,
        })
    }

    /// The text that it was read from.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Whether the fields that can be changed are the same.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.use_rslora == other.use_rslora
            && self.use_dora == other.use_dora
            && self.bias == other.bias
            && self.lora_bias == other.lora_bias
            && self.init == other.init
            && self.modules_to_save == other.modules_to_save
    }

    /// r of a module.
    ///
    /// # Errors
    /// A pattern takes too long to match.
    pub fn rank(&self, module: &str) -> Result<u64, PatternError> {
        Ok(self.rank_pattern.get(module)?.unwrap_or(self.rank))
    }

    /// alpha of a module.
    ///
    /// # Errors
    /// A pattern takes too long to match.
    pub fn alpha(&self, module: &str) -> Result<f64, PatternError> {
        Ok(self.alpha_pattern.get(module)?.unwrap_or(self.alpha))
    }

    /// s of a module: alpha / r, or alpha / sqrt(r) for rsLoRA.
    ///
    /// # Errors
    /// A pattern takes too long to match.
    pub fn scale(&self, module: &str) -> Result<f64, PatternError> {
        let rank = self.rank(module)? as f64;
        Ok(self.alpha(module)? / if self.use_rslora { rank.sqrt() } else { rank })
    }

    /// What `target_modules` says.
    pub(super) fn targets(&self) -> &Targets {
        &self.selector.targets
    }

    /// What the adapter does with a module.
    ///
    /// # Errors
    /// A pattern takes too long to match.
    pub fn select(&self, module: &str) -> Result<Selection, PatternError> {
        self.selector.select(module)
    }
}

/// Refuses the fields that are not supported, and unknown ones that say anything.
fn check_field(name: &str, value: &Field) -> Result<(), ConfigError> {
    if USED.contains(&name) || IGNORED.iter().any(|(ignored, _)| *ignored == name) {
        return Ok(());
    }
    let found = value.to_string();
    match REFUSED.iter().find(|(refused, _)| *refused == name) {
        Some((field, meaning)) if !value.is_off() => Err(ConfigError::Unsupported { field, found, meaning }),
        None if !value.is_nothing() => Err(ConfigError::Unknown { field: name.to_owned(), found }),
        _ => Ok(()),
    }
}

fn selector(fields: &Fields, modules_to_save: &[String]) -> Result<Selector, ConfigError> {
    const TARGETS: &str = "a list of strings or a string";
    let targets = match fields.plain("target_modules", TARGETS)? {
        None => return Err(ConfigError::Missing { field: "target_modules" }),
        Some(Json::String(text)) if text.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
        Some(value) => match fields.names_or_pattern("target_modules")? {
            Some(names) => Targets::Named(names),
            None => return Err(value_error("target_modules", value, TARGETS)),
        },
    };
    let layers = layers(fields)?;
    let is_list = matches!(&targets, Targets::Named(Names::List(_)));
    if layers.is_some() && !is_list {
        return Err(ConfigError::Combination {
            field: "layers_to_transform",
            with: "`target_modules` as a string",
        });
    }
    let pattern = |name: &String| Pattern::new(name, Selector::SAVED);
    let saved = modules_to_save.iter().map(pattern).collect::<Result<_, _>>();
    Ok(Selector {
        targets,
        exclude: fields.names_or_pattern("exclude_modules")?,
        layers,
        saved: saved.map_err(|source| ConfigError::Pattern { field: "modules_to_save", source })?,
    })
}

fn layers(fields: &Fields) -> Result<Option<Layers>, ConfigError> {
    const INDICES: &str = "an integer or a list of integers";
    let error = |found: &Json| value_error("layers_to_transform", found, INDICES);
    let indices = match fields.plain("layers_to_transform", INDICES)? {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(list)) => {
            list.iter().map(|item| item.as_u64().ok_or_else(|| error(item))).collect::<Result<_, _>>()?
        }
        Some(one) => vec![one.as_u64().ok_or_else(|| error(one))?],
    };
    let named = match fields.plain("layers_pattern", "a list of strings or a string")? {
        Some(Json::String(one)) if !one.is_empty() => vec![one.clone()],
        Some(Json::String(_)) => Vec::new(),
        _ => fields.names("layers_pattern")?.unwrap_or_default(),
    };
    if indices.is_empty() {
        // An empty list of layers stands for all of them, but then a pattern for layers has no meaning.
        let orphan = ConfigError::Combination { field: "layers_pattern", with: "no `layers_to_transform`" };
        return if named.is_empty() { Ok(None) } else { Err(orphan) };
    }
    let patterns = if named.is_empty() {
        Pattern::new("", Layers::ANY).map(|any| vec![any])
    } else {
        named.iter().map(|name| Pattern::new(name, Layers::NAMED)).collect()
    };
    let patterns = patterns.map_err(|source| ConfigError::Pattern { field: "layers_pattern", source })?;
    Ok(Some(Layers { indices, patterns }))
}

fn positive(value: &Json) -> Option<u64> {
    value.as_u64().filter(|&rank| rank > 0)
}

fn bias(fields: &Fields) -> Result<BiasMode, ConfigError> {
    const EXPECTED: &str = "\"none\", \"all\" or \"lora_only\"";
    match fields.plain("bias", EXPECTED)? {
        None => Ok(BiasMode::None),
        Some(Json::String(text)) if text == "none" => Ok(BiasMode::None),
        Some(Json::String(text)) if text == "all" => Ok(BiasMode::All),
        Some(Json::String(text)) if text == "lora_only" => Ok(BiasMode::LoraOnly),
        Some(other) => Err(value_error("bias", other, EXPECTED)),
    }
}

fn init(fields: &Fields) -> Result<Init, ConfigError> {
    const EXPECTED: &str = "true, false or the name of one of PEFT's methods";
    let value = match fields.plain("init_lora_weights", EXPECTED)? {
        None | Some(Json::Bool(_)) => return Ok(Init::Untouched),
        Some(value) => value,
    };
    // PEFT compares without regard to case.
    let text = value.as_str().unwrap_or_default().to_ascii_lowercase();
    let pissa_rounds = text.strip_prefix("pissa_niter_").map(str::parse::<u64>);
    if UNTOUCHED_INITS.contains(&text.as_str()) {
        Ok(Init::Untouched)
    } else if RESIDUAL_INITS.contains(&text.as_str()) || matches!(pissa_rounds, Some(Ok(_))) {
        Ok(Init::Residual(text))
    } else {
        Err(value_error("init_lora_weights", value, EXPECTED))
    }
}
