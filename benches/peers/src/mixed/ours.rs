//! Ours: the layer that knows no adapters, and the same with a bank, whose adapters are loaded once for all batches.

use super::arrays::{Adapter, Layer};
use crate::contender::{Entry, Meaning, Who};
use crate::error::Error;
use crate::layers::Shape;
use crate::ours;
use engraft::prelude::*;
use engraft::runtime::{self, AdapterWeights, Bank, Context, LayerWeights, Model, Rows, Update, Weights};
use std::sync::Arc;

/// What adapters are put on.
const MODULE: &str = "layer";

/// Both, loaded.
pub struct Loaded {
    plain: Model,
    adaptable: Model,
    bank: Bank,
}

impl Loaded {
    /// Compiles, and loads the layer and its adapters.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(layer: &Layer, context: &Arc<Context>) -> Result<Self, Error> {
        let load = |is_adaptable| {
            let program = compile(&graph(layer.shape, is_adaptable)?, &Options::default())?.program;
            let base = program.load_base(&layer.weights, Arc::clone(context))?;
            Ok::<_, Error>(base.load_adapter(&Weights::new())?)
        };
        let (plain, adaptable) = (load(false)?, load(true)?);
        let bank = Bank::new(adaptable.base().clone());
        for (index, adapter) in layer.adapters.iter().enumerate() {
            for meaning in [Meaning::OwnDora, Meaning::FewLora] {
                let update = update(adapter, layer.scale(), meaning);
                let layer = LayerWeights { updates: vec![update], ..LayerWeights::default() };
                bank.load(&name(meaning, index), &AdapterWeights::from([(MODULE.to_owned(), layer)]))?;
            }
        }
        Ok(Self { plain, adaptable, bank })
    }

    /// Ours on a batch.
    ///
    /// # Errors
    /// None that a sound build gives rise to.
    pub fn entries<'a>(&self, batch: usize, input: &'a runtime::Tensor) -> Result<Vec<Entry<'a>>, Error> {
        let find = |name: &str| (name == "x").then_some(input);
        let plain = Box::new(ours::Loaded::new(&self.plain, find)?);
        let mut entries = vec![Entry { who: Who::Dense, threads: 1, contender: plain }];
        for (who, meaning) in [
            (Who::BankBare, Meaning::Base),
            (Who::BankDora, Meaning::FewDora),
            (Who::BankLora, Meaning::FewLora),
            (Who::BankOwn, Meaning::OwnDora),
        ] {
            let contender = ours::Loaded::new(&self.adaptable, find)?.with_rows(self.rows(meaning, batch)?);
            entries.push(Entry { who, threads: 1, contender: Box::new(contender) });
        }
        Ok(entries)
    }

    fn rows(&self, meaning: Meaning, batch: usize) -> Result<Rows, Error> {
        let name = |row| Layer::choice(meaning, row).map(|index| name(meaning, index));
        Ok(self.bank.rows(&(0..batch).map(name).collect::<Vec<_>>())?)
    }
}

/// What the bank calls an adapter.
fn name(meaning: Meaning, index: usize) -> String {
    let kind = if meaning == Meaning::FewLora { "lora" } else { "dora" };
    format!("{kind} {index}")
}

fn update(adapter: &Adapter, scale: f64, meaning: Meaning) -> Update {
    let (a, b) = (Arc::clone(&adapter.a), Arc::clone(&adapter.b));
    let magnitude = (meaning != Meaning::FewLora).then(|| Arc::clone(&adapter.magnitude));
    Update { a, b, scale, magnitude, bias_of_b: None }
}

fn graph(shape: Shape, is_adaptable: bool) -> Result<Graph, BuildErrors> {
    let Shape { inputs, outputs, .. } = shape;
    let g = GraphBuilder::new(MODULE);
    let x = g.input("x", F32, dims!["batch", inputs]);
    let weight = g.param("weight", F32, dims![outputs, inputs]);
    let bias = Some(g.param("bias", F32, dims![outputs]));
    g.output("y", if is_adaptable { x.adaptable(MODULE, weight, bias) } else { x.dense(weight, bias) });
    g.finish()
}
