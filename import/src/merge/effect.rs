//! What adapters would do to the weights of a model's directory, without writing anything: how much each module changes, and
//! how the changes of several adapters are to each other. A row of a weight at a time.

use super::base::BaseFiles;
use super::change::element_type;
use super::error::MergeError;
use crate::peft::{BaseWeight, ComposedModule, Composition, Merger, PeftAdapter};
use crate::safetensors::Floats;
use std::collections::BTreeMap;
use std::path::Path;

/// What adapters, each alone, do to one module's weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The module, as the graph calls it.
    pub module: String,
    /// ‖W‖.
    pub weight: f64,
    /// The inner products `<W₁' - W, W₂' - W>` of each adapter's change with each one's; zero with an adapter that leaves
    /// the module as it is.
    pub products: Vec<Vec<f64>>,
    /// The least and the largest of DoRA's gains; `None` where an adapter is not DoRA.
    pub gains: Vec<Option<(f64, f64)>>,
}

impl Effect {
    /// ‖W' - W‖ of an adapter.
    pub fn change(&self, adapter: usize) -> f64 {
        self.products
            .get(adapter)
            .and_then(|row| row.get(adapter))
            .map_or(0.0, |square| square.max(0.0).sqrt())
    }
}

/// What each of these adapters alone would do to the modules that any of them adapts. Parameters that they replace as a
/// whole are not looked at.
///
/// # Errors
/// One does not fit the model, or has no merged weight, or a file cannot be read.
pub fn effects(base: impl AsRef<Path>, adapters: &[&PeftAdapter]) -> Result<Vec<Effect>, MergeError> {
    let base = BaseFiles::open(base.as_ref())?;
    let compositions = adapters.iter().enumerate().map(|(index, adapter)| {
        // Each is composed alone, so its error calls it the first.
        base.compose(&[adapter]).map_err(|error| error.of_adapter(index + 1))
    });
    let compositions: Vec<Composition> = compositions.collect::<Result<_, _>>()?;
    let mut modules: BTreeMap<&str, Vec<Option<&ComposedModule>>> = BTreeMap::new();
    for (index, composition) in compositions.iter().enumerate() {
        for module in &composition.modules {
            let name = module.module.name.as_str();
            modules.entry(name).or_insert_with(|| vec![None; adapters.len()])[index] = Some(module);
        }
    }
    let effects = modules.iter().map(|(name, composed)| effect(&base, &compositions, name, composed));
    effects.collect()
}

fn effect(
    base: &BaseFiles,
    compositions: &[Composition],
    name: &str,
    composed: &[Option<&ComposedModule>],
) -> Result<Effect, MergeError> {
    let param = format!("{name}.weight");
    let tensor = base.find(&param)?.ok_or_else(|| MergeError::Missing { param: param.clone() })?;
    let stored = Floats::Bytes(element_type(&tensor)?, tensor.bytes);
    let (mut changes, mut gains) = (Vec::new(), Vec::new());
    let mut shape = (0, 0);
    for (module, composition) in composed.iter().zip(compositions) {
        let Some(module) = module else {
            changes.push(None);
            gains.push(None);
            continue;
        };
        let replaced = composition.replaced.get(&param).map(|tensor| Floats::of(tensor)).transpose()?;
        let floats = replaced.unwrap_or(stored);
        let weight = BaseWeight::new(&module.module, floats)?;
        let form = module.form(&module.gains(&weight)?)?;
        shape = weight.stored();
        gains.push(form.gain().map(range));
        changes.push(Some((form.merger(&weight)?, floats)));
    }
    let (weight, products) = products(stored, shape, &changes);
    Ok(Effect { module: name.to_owned(), weight, products, gains })
}

fn range(numbers: &[f64]) -> (f64, f64) {
    let extreme = (f64::INFINITY, f64::NEG_INFINITY);
    numbers.iter().fold(extreme, |(least, largest), &x| (least.min(x), largest.max(x)))
}

/// ‖W‖, and the inner products of the changes.
fn products(
    stored: Floats<'_>,
    (rows, columns): (usize, usize),
    changes: &[Option<(Merger, Floats<'_>)>],
) -> (f64, Vec<Vec<f64>>) {
    let mut square = 0.0;
    let mut products = vec![vec![0.0; changes.len()]; changes.len()];
    let mut before = vec![0.0; columns];
    let mut deltas = vec![vec![0.0; columns]; changes.len()];
    for row in 0..rows {
        stored.read(row * columns, &mut before);
        square += before.iter().map(|x| x * x).sum::<f64>();
        for (delta, change) in deltas.iter_mut().zip(changes) {
            let Some((merger, floats)) = change else { continue };
            floats.read(row * columns, delta);
            merger.merge(row, delta);
            delta.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
        }
        for (sums, x) in products.iter_mut().zip(&deltas) {
            for (sum, y) in sums.iter_mut().zip(&deltas) {
                *sum += x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            }
        }
    }
    (square.sqrt(), products)
}
