//! `engraft adapter inspect`: what an adapter is, what it computes, which modules it changes most, and what it would be
//! refused for.

use super::table::{Table, percent, short, short_or_dash};
use super::{BaseArgs, kind};
use crate::cli::error::CliError;
use crate::cli::output::{BAD, FAINT, HEADING, Output, wrapped};
use clap::Args;
use engraft::import::merge::{self, Effect, MergeError};
use engraft::import::peft::{
    AdapterError, BiasMode, Contents, Factors, Init, Layer, PeftAdapter, combine, norm, update_norm,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tell what is in an adapter: kind, ranks, targets, norms, and which modules change most
///
/// What would be refused is part of the answer. Without a base the modules are sorted by the norm of their update s B A,
/// with one by how much their weight changes.
#[derive(Args)]
pub struct Inspect {
    /// A directory that PEFT saved
    adapter: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
}

/// What is known of an adapter.
#[derive(Serialize)]
struct Facts {
    adapter: PathBuf,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    /// It cannot be read at all.
    Refused {
        refused: String,
    },
    Read(Box<Read>),
}

#[derive(Serialize)]
struct Read {
    kind: &'static str,
    /// How many numbers it has, replaced tensors included.
    parameters: usize,
    arithmetic: Vec<&'static str>,
    /// How it was initialised, if that changed the base's weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    residual_init: Option<String>,
    bias: &'static str,
    modules_to_save: Vec<String>,
    /// The tensors in place of the base's own.
    replaced: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<PathBuf>,
    modules: Vec<ModuleFacts>,
    would_refuse: Vec<Refusal>,
}

#[derive(Serialize)]
struct ModuleFacts {
    module: String,
    is_embedding: bool,
    inputs: usize,
    outputs: usize,
    rank: usize,
    alpha: f64,
    scale: f64,
    norm_a: f64,
    norm_b: f64,
    /// ‖s B A‖
    norm_update: f64,
    #[serde(flatten)]
    on_base: Option<OnBase>,
}

/// What is known with a base only.
#[derive(Serialize)]
struct OnBase {
    norm_weight: f64,
    /// ‖s B A‖ / ‖W‖
    relative_update: Option<f64>,
    /// ‖W' - W‖ / ‖W‖
    relative_change: Option<f64>,
    /// The least and the largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    gain: Option<[f64; 2]>,
}

/// Something that the adapter cannot be used for.
#[derive(Serialize)]
struct Refusal {
    r#use: &'static str,
    reason: String,
}

impl Inspect {
    /// Prints the facts. That an adapter is not supported is a fact; that there is none is an error.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let refused = |refused: String| Content::Refused { refused };
        let content = match super::open(&self.adapter, self.base.residual_base) {
            Err(CliError::Adapter(error @ (AdapterError::Io { .. } | AdapterError::Tensors(_)))) => {
                return Err(error.into());
            }
            Err(error) => refused(error.to_string()),
            Ok(adapter) => match adapter.contents() {
                Err(error) => refused(error.to_string()),
                Ok(contents) => Content::Read(Box::new(self.read(&adapter, &contents)?)),
            },
        };
        let facts = Facts { adapter: self.adapter.clone(), content };
        if self.json {
            return output.json(&facts);
        }
        match &facts.content {
            Content::Refused { refused } => output.line(wrapped(&format!("refused: {refused}"))),
            Content::Read(read) => read.print(output),
        }
    }

    fn read(&self, adapter: &PeftAdapter, contents: &Contents) -> Result<Read, CliError> {
        let config = adapter.config();
        let mut would_refuse = refusals(adapter);
        let base = self.base.base.as_deref();
        let effects = base.map(|base| effects(base, adapter, &mut would_refuse)).transpose()?;
        let effects = effects.unwrap_or_default();
        let facts = |factors: &Factors| facts(factors, find(&effects, factors.module()));
        let mut modules: Vec<_> = contents.factors.iter().map(facts).collect();
        modules.sort_by(|a, b| b.size().total_cmp(&a.size()).then_with(|| a.module.cmp(&b.module)));
        Ok(Read {
            kind: kind(config.use_dora),
            parameters: adapter.tensors().iter().map(|(_, tensor)| tensor.len()).sum(),
            arithmetic: arithmetic(&contents.factors),
            residual_init: match &config.init {
                Init::Residual(init) => Some(init.clone()),
                Init::Untouched => None,
            },
            bias: match config.bias {
                BiasMode::None => "none",
                BiasMode::All => "all",
                BiasMode::LoraOnly => "lora_only",
            },
            modules_to_save: config.modules_to_save.clone(),
            replaced: contents.replaced.clone(),
            base: self.base.base.clone(),
            modules,
            would_refuse,
        })
    }
}

/// What the adapter does, as formulas.
fn arithmetic(factors: &[Factors]) -> Vec<&'static str> {
    let any = |is: fn(&Factors) -> bool| factors.iter().any(is);
    let mut lines = Vec::new();
    if any(Factors::is_dora) {
        lines.push("y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias with g = m / ‖W + s B A‖ per output");
    } else if any(|factors| factors.bias_of_b().is_some()) {
        lines.push("y = x Wᵀ + bias + s ((x Aᵀ) Bᵀ + b)");
    } else {
        lines.push("y = x Wᵀ + bias + s (x Aᵀ) Bᵀ");
    }
    if any(|factors| factors.layer() == Some(Layer::Embedding)) {
        lines.push("of an embedding x Wᵀ is W[ids], x Aᵀ is Aᵀ[ids], and in is the vocabulary");
    }
    lines
}

/// What the adapter is refused for on any base.
fn refusals(adapter: &PeftAdapter) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if let Init::Residual(init) = &adapter.config().init {
        let reason =
            format!("`{init}` changed the base's weights, and this is an update of what it left of them");
        refusals.push(Refusal { r#use: "the original base", reason });
    }
    if let Err(error) = combine(&[(1.0, adapter)]) {
        refusals.push(Refusal { r#use: "a weighted combination", reason: error.to_string() });
    }
    refusals
}

/// What the adapter does to a base. That it does not fit is a fact; that there is no base is an error.
fn effects(
    base: &Path,
    adapter: &PeftAdapter,
    refusals: &mut Vec<Refusal>,
) -> Result<BTreeMap<String, Effect>, CliError> {
    let mut refuse = |r#use, error: MergeError| {
        if is_about_files(&error) {
            return Err(CliError::from(error));
        }
        refusals.push(Refusal { r#use, reason: error.to_string() });
        Ok(())
    };
    let effects = match merge::effects(base, &[adapter]) {
        Ok(effects) => effects,
        Err(error) => {
            refuse("this base", error)?;
            return Ok(BTreeMap::new());
        }
    };
    if let Err(error) = merge::check(base, &[adapter]) {
        refuse("merging into this base", error)?;
    }
    Ok(effects.into_iter().map(|effect| (effect.module.clone(), effect)).collect())
}

/// Whether an error says something of the base's files and nothing of the adapter.
fn is_about_files(error: &MergeError) -> bool {
    matches!(
        error,
        MergeError::Io { .. }
            | MergeError::NotADirectory { .. }
            | MergeError::Directory(_)
            | MergeError::Sentence(_)
            | MergeError::Safetensors(_)
            | MergeError::Build(_)
    )
}

/// The effect on a module, which the graph may call by the end of the name that PEFT saw, or the other way round.
pub(super) fn find<'e>(effects: &'e BTreeMap<String, Effect>, module: &str) -> Option<&'e Effect> {
    effects.get(module).or_else(|| {
        let is_end =
            |long: &str, short: &str| long.strip_suffix(short).is_some_and(|front| front.ends_with('.'));
        let mut found = effects.values().filter(|e| is_end(module, &e.module) || is_end(&e.module, module));
        found.next().filter(|_| found.next().is_none())
    })
}

fn facts(factors: &Factors, effect: Option<&Effect>) -> ModuleFacts {
    let norm_update = update_norm(factors);
    let on_base = effect.map(|effect| {
        let relative = |norm: f64| (effect.weight > 0.0).then(|| norm / effect.weight);
        OnBase {
            norm_weight: effect.weight,
            relative_update: relative(norm_update),
            relative_change: relative(effect.change(0)),
            gain: effect.gains[0].map(|(least, largest)| [least, largest]),
        }
    });
    ModuleFacts {
        module: factors.module().to_owned(),
        is_embedding: factors.layer() == Some(Layer::Embedding),
        inputs: factors.inputs(),
        outputs: factors.outputs(),
        rank: factors.rank(),
        alpha: factors.alpha(),
        scale: factors.scale(),
        norm_a: norm(factors.a()),
        norm_b: norm(factors.b()),
        norm_update,
        on_base,
    }
}

impl ModuleFacts {
    /// What the modules are sorted by.
    fn size(&self) -> f64 {
        let on_base = self.on_base.as_ref();
        on_base.map_or(self.norm_update, |on_base| on_base.relative_change.unwrap_or(f64::INFINITY))
    }
}

/// The values there are: one, or the least and the largest.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if least < largest { format!("{} to {}", short(least), short(largest)) } else { short(least) }
}

impl Read {
    fn print(&self, output: &mut Output) -> Result<(), CliError> {
        let modules = &self.modules;
        let plural = if modules.len() == 1 { "" } else { "s" };
        let spread = |value: fn(&ModuleFacts) -> f64| spread(&modules.iter().map(value).collect::<Vec<_>>());
        let (ranks, alphas) = (spread(|module| module.rank as f64), spread(|module| module.alpha));
        let scales = spread(|module| module.scale);
        let (kind, count) = (self.kind, modules.len());
        output.line(format_args!("{HEADING}{kind} on {count} module{plural}{HEADING:#}"))?;
        output.line(format_args!("r {ranks}, alpha {alphas}, s {scales}, {} parameters", self.parameters))?;
        for line in &self.arithmetic {
            output.line(line)?;
        }
        if let Some(init) = &self.residual_init {
            output.line(format_args!("initialised by `{init}`, so an update of a changed base"))?;
        }
        for tensor in &self.replaced {
            output.line(format_args!("replaces {tensor}"))?;
        }
        output.line("")?;
        self.table(output)?;
        if !self.would_refuse.is_empty() {
            output.line("")?;
        }
        for Refusal { r#use, reason } in &self.would_refuse {
            let text = wrapped(&format!("refused for {use}: {reason}"));
            output.line(text.replacen("refused", &format!("{BAD}refused{BAD:#}"), 1))?;
        }
        Ok(())
    }

    fn table(&self, output: &mut Output) -> Result<(), CliError> {
        if self.modules.iter().all(|module| module.on_base.is_none()) {
            let table = Table::new(&[("r", 5), ("s", 8), ("‖A‖", 9), ("‖B‖", 9), ("‖sBA‖", 9)]);
            table.heading(output, "module")?;
            return self.modules.iter().try_for_each(|module| {
                let ModuleFacts { rank, scale, norm_a, norm_b, norm_update, .. } = module;
                let norms = [*scale, *norm_a, *norm_b, *norm_update].map(short);
                let cells = [vec![rank.to_string()], norms.to_vec()].concat();
                table.line(output, &module.module, cells)
            });
        }
        let columns = [("r", 4), ("s", 6), ("‖sBA‖", 8), ("/ ‖W‖", 7), ("change", 8), ("gain", 13)];
        let table = Table::new(&columns);
        table.heading(output, "module")?;
        for module in &self.modules {
            let ModuleFacts { rank, scale, norm_update, on_base, .. } = module;
            let on_base = on_base.as_ref();
            let relative = on_base.and_then(|on_base| on_base.relative_update);
            let change = on_base.and_then(|on_base| on_base.relative_change);
            let gain = on_base.and_then(|on_base| on_base.gain);
            let gain = gain.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.3}..{high:.3}"));
            let cells = vec![
                rank.to_string(),
                short(*scale),
                short(*norm_update),
                short_or_dash(relative),
                percent(change),
                gain,
            ];
            table.line(output, &module.module, cells)?;
        }
        output.line(format_args!("{FAINT}change: ‖W' - W‖ / ‖W‖ of the merged weight{FAINT:#}"))
    }
}
