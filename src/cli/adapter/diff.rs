//! `engraft adapter diff`: two adapters, module by module.

use super::inspect::find;
use super::table::{Table, short_or_dash};
use super::{BaseArgs, in_adapter, kind};
use crate::cli::error::CliError;
use crate::cli::output::{FAINT, HEADING, Output, wrapped};
use clap::Args;
use engraft::import::merge::{self, Effect};
use engraft::import::peft::{Contents, Factors, PeftAdapter, relation};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Compare two adapters: the modules, ranks and scales, and how far apart their updates are
///
/// The updates s B A are compared without making them. DoRA's magnitudes are compared beside them; with a base, what both
/// make of the weights is compared, gains included.
#[derive(Args)]
pub struct Diff {
    /// A directory that PEFT saved
    first: PathBuf,
    /// Another
    second: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Print the facts as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Facts {
    first: PathBuf,
    second: PathBuf,
    same: usize,
    different: usize,
    only_in_first: Vec<String>,
    only_in_second: Vec<String>,
    /// The tensors in place of the base's own, in one only or with other numbers.
    replaced_differently: Vec<String>,
    modules: Vec<ModuleFacts>,
}

#[derive(Serialize)]
struct ModuleFacts {
    module: String,
    is_same: bool,
    kinds: [&'static str; 2],
    ranks: [usize; 2],
    scales: [f64; 2],
    /// The shapes `[out, in]`, if they differ; then nothing else is compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    shapes: Option<[[usize; 2]; 2]>,
    /// Of the updates s B A.
    norms: Option<[f64; 2]>,
    cosine: Option<f64>,
    relative_difference: Option<f64>,
    /// ‖m₁ - m₂‖ / ‖m₁‖ of DoRA's magnitudes.
    #[serde(skip_serializing_if = "Option::is_none")]
    magnitude_difference: Option<f64>,
    /// The same of W' - W, on a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<Merged>,
}

#[derive(Serialize)]
struct Merged {
    relative_changes: [Option<f64>; 2],
    cosine: Option<f64>,
    relative_difference: Option<f64>,
}

impl Diff {
    /// Compares.
    ///
    /// # Errors
    /// An adapter cannot be read, or does not fit the base.
    pub fn run(&self, output: &mut Output) -> Result<(), CliError> {
        let open = |path| super::open(path, self.base.residual_base);
        let (first, second) = (open(&self.first)?, open(&self.second)?);
        let paths = [self.first.as_path(), self.second.as_path()];
        let contents = |adapter: &PeftAdapter, number| {
            adapter.contents().map_err(|error| in_adapter(Some(number), error.into(), &paths))
        };
        let contents = [contents(&first, 1)?, contents(&second, 2)?];
        let effects = self.base.base.as_ref().map(|base| merge::effects(base, &[&first, &second]));
        let effects =
            effects.transpose().map_err(|error| in_adapter(error.adapter(), error.into(), &paths))?;
        let effects = effects.unwrap_or_default().into_iter().map(|effect| (effect.module.clone(), effect));
        let mut facts = self.facts(&contents, &effects.collect());
        let replaced: BTreeSet<_> = contents.iter().flat_map(|contents| &contents.replaced).collect();
        let differs = |name: &&&String| first.tensors().get(name) != second.tensors().get(name);
        facts.replaced_differently = replaced.iter().filter(differs).map(|name| (*name).clone()).collect();
        if self.json { output.json(&facts) } else { facts.print(output) }
    }

    fn facts(&self, contents: &[Contents; 2], effects: &BTreeMap<String, Effect>) -> Facts {
        let [first, second] = contents.each_ref().map(|contents| {
            contents.factors.iter().map(|factors| (factors.module(), factors)).collect::<BTreeMap<_, _>>()
        });
        let only = |in_this: &BTreeMap<&str, &Factors>, not: &BTreeMap<&str, &Factors>| {
            in_this.keys().filter(|name| !not.contains_key(*name)).map(|name| (*name).to_owned()).collect()
        };
        let both = first.iter().filter_map(|(name, x)| Some((*x, *second.get(name)?)));
        let mut modules: Vec<_> = both.map(|(x, y)| facts(x, y, find(effects, x.module()))).collect();
        modules.sort_by(|a, b| b.distance().total_cmp(&a.distance()).then_with(|| a.module.cmp(&b.module)));
        let same = modules.iter().filter(|module| module.is_same).count();
        Facts {
            first: self.first.clone(),
            second: self.second.clone(),
            same,
            different: modules.len() - same,
            only_in_first: only(&first, &second),
            only_in_second: only(&second, &first),
            replaced_differently: Vec::new(),
            modules,
        }
    }
}

fn facts(x: &Factors, y: &Factors, effect: Option<&Effect>) -> ModuleFacts {
    let relation = relation(x, y);
    let shape = |factors: &Factors| [factors.outputs(), factors.inputs()];
    let magnitude_difference = x.magnitude().zip(y.magnitude()).and_then(|(x, y)| difference(x, y));
    let is_same = relation.is_some_and(|relation| relation.relative_difference == Some(0.0))
        && x.magnitude() == y.magnitude()
        && x.bias_of_b() == y.bias_of_b();
    ModuleFacts {
        module: x.module().to_owned(),
        is_same,
        kinds: [x, y].map(|factors| kind(factors.is_dora())),
        ranks: [x, y].map(Factors::rank),
        scales: [x, y].map(Factors::scale),
        shapes: relation.is_none().then(|| [x, y].map(shape)),
        norms: relation.map(|relation| [relation.first, relation.second]),
        cosine: relation.and_then(|relation| relation.cosine),
        relative_difference: relation.and_then(|relation| relation.relative_difference),
        magnitude_difference,
        merged: effect.map(merged),
    }
}

/// ‖x - y‖ / ‖x‖, if they are as long and x is not zero.
fn difference(x: &[f32], y: &[f32]) -> Option<f64> {
    let square = |x: f64| x * x;
    let size: f64 = x.iter().map(|&x| square(x.into())).sum();
    let difference: f64 = x.iter().zip(y).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    (x.len() == y.len() && size > 0.0).then(|| (difference / size).sqrt())
}

fn merged(effect: &Effect) -> Merged {
    let (first, second, product) = (effect.change(0), effect.change(1), effect.products[0][1]);
    let relative = |norm: f64| (effect.weight > 0.0).then(|| norm / effect.weight);
    let (sizes, difference) = (first * second, first * first + second * second - 2.0 * product);
    Merged {
        relative_changes: [relative(first), relative(second)],
        cosine: (sizes > 0.0).then(|| (product / sizes).clamp(-1.0, 1.0)),
        relative_difference: (first > 0.0).then(|| difference.max(0.0).sqrt() / first),
    }
}

impl ModuleFacts {
    /// What the modules are sorted by.
    fn distance(&self) -> f64 {
        let merged = self.merged.as_ref().map(|merged| merged.relative_difference);
        let distance = merged.unwrap_or(self.relative_difference).unwrap_or(f64::INFINITY);
        if self.is_same { 0.0 } else { distance.max(self.magnitude_difference.unwrap_or(0.0)) }
    }
}

impl Facts {
    fn print(&self, output: &mut Output) -> Result<(), CliError> {
        let Self { same, different, .. } = self;
        let total = self.modules.len();
        output.line(format_args!(
            "{HEADING}{different} of {total} modules that both adapt differ{HEADING:#}, {same} are the same"
        ))?;
        let named = [
            ("only the first adapts", &self.only_in_first),
            ("only the second adapts", &self.only_in_second),
            ("replaced differently", &self.replaced_differently),
        ];
        for (what, names) in named.into_iter().filter(|(_, names)| !names.is_empty()) {
            output.line(wrapped(&format!("{what}: {}", names.join(", "))))?;
        }
        output.line("")?;
        let with_base = self.modules.iter().any(|module| module.merged.is_some());
        let table = Table::new(&[("kind", 12), ("r", 8), ("‖sBA‖", 16), ("cos", 8), ("apart", 8)]);
        table.heading(output, "module")?;
        for module in &self.modules {
            table.line(output, &module.module, module.cells())?;
        }
        let what = if with_base { "the changes W' - W" } else { "the updates s B A" };
        output.line(format_args!("{FAINT}cos, apart: the angle of {what}, and ‖1 - 2‖ / ‖1‖{FAINT:#}"))
    }
}

impl ModuleFacts {
    fn cells(&self) -> Vec<String> {
        let pair = |[x, y]: [String; 2]| if x == y { x } else { format!("{x}, {y}") };
        let norms = self.norms.map_or_else(
            || "other shapes".to_owned(),
            |norms| pair(norms.map(|norm| short_or_dash(Some(norm)))),
        );
        let merged = self.merged.as_ref();
        let cosine = merged.map_or(self.cosine, |merged| merged.cosine);
        let apart = merged.map_or(self.relative_difference, |merged| merged.relative_difference);
        let kinds = pair(self.kinds.map(str::to_owned));
        vec![
            kinds,
            pair(self.ranks.map(|r| r.to_string())),
            norms,
            short_or_dash(cosine),
            short_or_dash(apart),
        ]
    }
}
