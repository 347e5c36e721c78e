//! One linear layer whose rows have adapters of their own, beside the layer that knows nothing of adapters, on one thread.
//! All take turns; before, each row of each must have the very bits that it has alone.

use crate::adapters::{Numbers, norms};
use crate::findings::Section;
use crate::one_thread;
use crate::turns::medians;
use engraft::prelude::*;
use engraft::runtime::measure::Stream;
use engraft::runtime::{
    self, Adapter, AdapterWeights, Bank, Context, LayerWeights, Model, Rows, Session, Update, Weights,
};
use std::sync::Arc;
use std::time::Duration;

const SIZES: [usize; 2] = [768, 4096];
const RANKS: [usize; 3] = [8, 16, 64];
const BATCHES: [usize; 3] = [8, 32, 128];

/// What each row has, of so many adapters; `None` for nothing.
type Choice = fn(row: usize) -> Option<usize>;

/// The ways to call the bank, and what they are compared as.
const WAYS: [(&str, Choice); 6] = [
    ("all rows bare", |_| None),
    ("each row its own", Some),
    ("8 in turn", |row| Some(row % 8)),
    ("8, equal ones side by side", |row| Some(row / 16)),
    ("one row adapted", |row| (row == 0).then_some(0)),
    ("every other row its own", |row| row.is_multiple_of(2).then_some(row)),
];
/// Places in [`WAYS`].
const BARE: usize = 0;
const EACH: usize = 1;
const ONE: usize = 4;
const HALF: usize = 5;

/// Rounds at least and at most.
const ROUNDS: [usize; 2] = [7, 101];

/// Who is timed.
pub struct Contender {
    session: Session,
    rows: Rows,
    output: [runtime::Tensor; 1],
}

impl Contender {
    pub fn new(model: &Model, rows: Rows) -> Self {
        Self { session: model.session(), rows, output: [runtime::Tensor::empty(runtime::DType::F32)] }
    }

    /// A call to be timed.
    pub fn turn<'a>(&'a mut self, x: &'a runtime::Tensor) -> Box<dyn FnMut() + 'a> {
        Box::new(|| {
            self.call(x);
        })
    }

    pub fn call(&mut self, x: &runtime::Tensor) -> &[f32] {
        self.session.run_rows_into(&[x], &self.rows, &mut self.output).unwrap();
        self.output[0].as_f32().unwrap()
    }
}

/// A size, loaded: the layer that knows no adapters, and the one with a bank.
pub struct Layer {
    pub inputs: usize,
    pub outputs: usize,
    plain: Model,
    pub adaptable: Model,
    norms: Vec<f32>,
}

/// The numbers of the whole grid, or of its smallest point; each size and rank is handed over when it is done.
pub fn measure(whole: bool, budget: Duration, done: &mut impl FnMut(Section)) {
    let some = |all: &[usize]| if whole { all.to_vec() } else { all[..1].to_vec() };
    for size in some(&SIZES) {
        let layer = Layer::new(size, size);
        for rank in some(&RANKS) {
            let batches = some(&BATCHES);
            let adapters = layer.adapters(rank, batches[batches.len() - 1], false);
            let mut section = Section::new(format!("A layer {size}x{size}, DoRA of rank {rank}"));
            for batch in batches {
                layer.point(rank, &adapters, batch, budget, &mut section);
            }
            done(section);
        }
    }
}

impl Layer {
    pub fn new(inputs: usize, outputs: usize) -> Self {
        let graph = |adaptable: bool| {
            let g = GraphBuilder::new("layer");
            let x = g.input("x", F32, dims!["batch", inputs]);
            let w = g.param("weight", F32, dims![outputs, inputs]);
            let bias = Some(g.param("bias", F32, dims![outputs]));
            g.output("y", if adaptable { x.adaptable("fc", w, bias) } else { x.dense(w, bias) });
            g.finish().unwrap()
        };
        let mut numbers = Numbers::new(7);
        let weight = numbers.tensor(&[outputs, inputs], (3.0 / inputs as f32).sqrt());
        let norms = norms(&weight);
        let weights = Weights::from_iter([("weight", weight), ("bias", numbers.tensor(&[outputs], 0.1))]);
        let context = Arc::new(Context::new(one_thread()).unwrap());
        let [plain, adaptable] = [false, true].map(|adaptable| {
            let program = compile(&graph(adaptable), &Options::default()).unwrap().program;
            let base = program.load_base(&weights, Arc::clone(&context)).unwrap();
            base.load_adapter(&Weights::new()).unwrap()
        });
        Self { inputs, outputs, plain, adaptable, norms }
    }

    /// So many different ones, merged or not.
    pub fn adapters(&self, rank: usize, count: usize, merge: bool) -> Vec<Arc<Adapter>> {
        let bank = Bank::new(self.adaptable.base().clone());
        let adapter = |(index, weights): (usize, AdapterWeights)| {
            let name = index.to_string();
            bank.load(&name, &weights).unwrap();
            bank.get(&name).unwrap()
        };
        self.weights(rank, count, merge).enumerate().map(adapter).collect()
    }

    /// What so many different adapters do to the layer.
    pub fn weights(&self, rank: usize, count: usize, merge: bool) -> impl Iterator<Item = AdapterWeights> {
        let mut numbers = Numbers::new(rank as u64);
        let fan_in = (3.0 / self.inputs as f32).sqrt();
        (0..count).map(move |_| {
            let magnitude = self.norms.iter().map(|norm| norm * (1.0 + numbers.float(0.1))).collect();
            let update = Update {
                a: Arc::new(numbers.tensor(&[rank, self.inputs], fan_in)),
                b: Arc::new(numbers.tensor(&[self.outputs, rank], 0.1)),
                scale: 16.0 / rank as f64,
                magnitude: Some(Arc::new(runtime::Tensor::f32(&[self.outputs], magnitude).unwrap())),
                bias_of_b: None,
            };
            let layer = LayerWeights { updates: vec![update], bias: None, merge };
            AdapterWeights::from([("fc".to_owned(), layer)])
        })
    }

    fn point(
        &self,
        rank: usize,
        adapters: &[Arc<Adapter>],
        batch: usize,
        budget: Duration,
        section: &mut Section,
    ) {
        let x = Numbers::new(batch as u64).tensor(&[batch, self.inputs], 1.0);
        let rows = |choice: Choice| {
            Rows::new((0..batch).map(|row| choice(row).map(|index| Arc::clone(&adapters[index]))).collect())
        };
        let mut contenders: Vec<_> =
            WAYS.iter().map(|(_, choice)| Contender::new(&self.adaptable, rows(*choice))).collect();
        for contender in &mut contenders {
            self.check(contender, &x);
        }
        contenders.push(Contender::new(&self.plain, Rows::default()));
        // What as many bytes as all rows' A and B have take to be read, side by side.
        let mut read = Stream::new(batch * rank * (self.inputs + self.outputs) * size_of::<f32>()).unwrap();
        let mut calls: Vec<_> = contenders.iter_mut().map(|contender| contender.turn(&x)).collect();
        calls.push(Box::new(|| read.read(self.plain.base().context())));
        let mut times = medians(&mut calls, budget, ROUNDS);
        let (read, plain) = (times.pop().unwrap(), times.pop().unwrap());
        // Both run the same product, each on weights of its own; which lie better in memory is luck.
        let bare = plain.min(times[BARE]);
        section.add(format!("batch {batch}: bare, median"), bare, "ms");
        section.add(format!("batch {batch}: the layer that knows no adapters / that"), plain / bare, "");
        for (way, (name, _)) in WAYS.iter().enumerate() {
            let bound = match way {
                EACH if rank == 16 => Some(if self.inputs == 768 { 1.25 } else { 1.15 }),
                BARE => Some(1.03),
                _ => None,
            };
            section.put(format!("batch {batch}: {name} / that"), times[way] / bare, "", bound);
        }
        let what = format!("batch {batch}: a plain read of as many bytes as all their adapters have / that");
        section.add(what, read / bare, "");
        // What a row with no adapter costs beside others, if it is what it costs in the base.
        let due = f64::midpoint(bare, times[EACH]);
        let what = format!("batch {batch}: every other row its own / half of bare and all its own");
        section.hold(what, times[HALF] / due, "", 1.03);
        let share = (times[EACH] - bare) / batch as f64;
        let what = format!("batch {batch}: one row adapted, less its share of what all add / that");
        section.hold(what, (times[ONE] - share) / bare, "", 1.03);
    }

    /// Each row has the bits that it has alone, and a bare one those of the layer that knows no adapters.
    fn check(&self, contender: &mut Contender, x: &runtime::Tensor) {
        let rows = contender.rows.clone();
        let found = contender.call(x);
        let elements = x.as_f32().unwrap().chunks_exact(self.inputs);
        for ((adapter, x), found) in rows.iter().zip(elements).zip(found.chunks_exact(self.outputs)) {
            let model = if adapter.is_some() { &self.adaptable } else { &self.plain };
            let mut alone = Contender::new(model, adapter.map_or_else(Rows::default, |a| Rows::all(a, 1)));
            let x = runtime::Tensor::f32(&[1, self.inputs], x.to_vec()).unwrap();
            assert!(alone.call(&x) == found, "a row differs from what it is alone");
        }
    }
}
