//! As many adapters as a server may hold: what memory they take, and whether a call is slower for the others that are there.

use crate::adapters::{Kind, Numbers, QUERY_AND_VALUE};
use crate::findings::{Section, Times, megabytes, resident};
use crate::minilm::MiniLm;
use engraft::runtime::{Bank, Rows};
use std::time::{Duration, Instant};

/// Rows of a call, and the tokens of each.
const SIZE: (usize, usize) = (8, 32);
const KIND: Kind = Kind { rank: 8, dora: true, targets: QUERY_AND_VALUE };
/// How many the others are compared with.
const FEW: usize = 3;
/// Rounds at least.
const ROUNDS: usize = 21;

/// The numbers, of so many adapters.
pub fn measure(minilm: &MiniLm, count: usize, budget: Duration) -> Section {
    let (bank, few) = (minilm.bank(), Bank::new(minilm.bank().runtime().base().clone()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter");
    let (mut tensors, mut loading) = (0, Times::default());
    // The first ones bring whatever else grows once.
    for index in 0..FEW {
        minilm.layers.write(&path, KIND, index as u64);
        few.load(&index.to_string(), &bank.weights(&path).unwrap()).unwrap();
    }
    let before = resident();
    for index in 0..count {
        tensors += minilm.layers.write(&path, KIND, index as u64);
        let begun = Instant::now();
        bank.load(&index.to_string(), &path).unwrap();
        loading.push(begun.elapsed());
    }
    let grown = resident() - before;
    let own: usize = bank.list().iter().map(|(_, adapter)| adapter.bytes()).sum();

    let mut section = Section::new(format!("{count} DoRA adapters of rank 8 on MiniLM's query and value"));
    section.add("their tensors in files", megabytes(tensors as f64), "MB");
    section.hold("their own account of memory / their tensors", own as f64 / tensors as f64, "", 1.1);
    section.hold("growth of the process / their tensors", grown / tensors as f64, "", 1.1);
    section.times("loading one", &mut loading);
    let mut times = compared(minilm, &few, count, budget);
    let medians = times.each_mut().map(|times| times.quantile(0.5));
    section.add(format!("a call with a bank of {FEW}, median"), medians[0], "ms");
    for (what, median) in [("the same adapters", medians[1]), ("others each call", medians[2])] {
        section.hold(format!("a call with a bank of {count}, {what} / that"), median / medians[0], "", 1.05);
    }
    section
}

/// The times of calls whose rows have three adapters in turn: of a bank of three, the same of the large bank, and each time
/// others of it. They take turns.
fn compared(minilm: &MiniLm, few: &Bank, count: usize, budget: Duration) -> [Times; 3] {
    let many = minilm.bank().runtime();
    let mut numbers = Numbers::new(7);
    let ids = minilm.ids(SIZE.0, SIZE.1, &mut numbers);
    let mut calls = minilm.calls(&ids);
    let mut times = [Times::default(), Times::default(), Times::default()];
    let (mut expected, begun) = (Vec::new(), Instant::now());
    let mut round = 0;
    while round < ROUNDS || begun.elapsed() < budget {
        let others: [usize; FEW] = std::array::from_fn(|_| numbers.below(count));
        let ways = [(few, [0, 1, 2]), (many, [0, 1, 2]), (many, others)];
        for place in 0..ways.len() {
            let way = (round + place) % ways.len();
            let (bank, adapters) = ways[way];
            let begun = Instant::now();
            calls.run(&rows(bank, adapters));
            times[way].push(begun.elapsed());
            match way {
                0 if expected.is_empty() => expected = calls.output().to_vec(),
                0 | 1 => assert!(expected.is_empty() || expected == calls.output(), "the banks differ"),
                _ => {}
            }
        }
        round += 1;
    }
    times
}

fn rows(bank: &Bank, adapters: [usize; FEW]) -> Rows {
    let names: Vec<_> = (0..SIZE.0).map(|row| Some(adapters[row % FEW].to_string())).collect();
    bank.rows(&names).unwrap()
}
