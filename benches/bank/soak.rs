//! Two threads that call and one that swaps, loads and removes at random, for a while: every row is compared with what its
//! adapter gives alone, adapters that nobody has any more must be gone, and memory must not grow.
//!
//! The adapters differ in their ranks, so that a caller can tell which one it was given.

use crate::adapters::{ALL, Kind, Numbers, QUERY_AND_VALUE};
use crate::findings::{Section, megabytes, resident};
use crate::minilm::MiniLm;
use engraft::runtime::{Adapter, BankError, Rows, Tensor};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Adapters that there are; the one of number i has rank i + 1, and is a `DoRA` if i is even.
const KINDS: usize = 6;
/// Names that always have an adapter, and one that comes and goes.
const NAMES: [&str; 4] = ["a", "b", "c", "fleeting"];
const FLEETING: &str = NAMES[3];
/// Texts, rows of a call at most, and tokens of each row.
const TEXTS: usize = 4;
const BATCH: usize = 8;
const TOKENS: usize = 16;
const CALLERS: usize = 2;
/// Parts of the time, and how often in each memory is looked at.
const PARTS: usize = 5;
const LOOKS: usize = 40;

/// What everybody needs.
struct Ground<'a> {
    minilm: &'a MiniLm,
    /// `[TEXTS, TOKENS]`
    texts: Tensor,
    /// For each adapter, and last for none, what it gives on each text alone.
    expected: Vec<Vec<Vec<f32>>>,
    paths: Vec<PathBuf>,
    stop: AtomicBool,
    /// Calls that were given all they asked for, and rows of them.
    calls: AtomicUsize,
    rows: AtomicUsize,
    changes: AtomicUsize,
}

/// The numbers, over such a time.
pub fn measure(minilm: &MiniLm, time: Duration) -> Section {
    let directory = tempfile::tempdir().unwrap();
    let ground = &Ground::new(minilm, directory.path());
    let mut memory = Vec::new();
    let begun = Instant::now();
    let kept = std::thread::scope(|scope| {
        for seed in 0..CALLERS {
            scope.spawn(move || ground.call(seed as u64));
        }
        let swapper = scope.spawn(move || ground.swap());
        // What is there at a moment depends on which adapters are: medians over many moments do not.
        while begun.elapsed() < time {
            std::thread::sleep(time / (PARTS * LOOKS) as u32);
            memory.push(resident());
        }
        ground.stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap()
    });
    let bank = minilm.bank();
    let there: Vec<_> = bank.list().into_iter().map(|(_, adapter)| adapter).collect();
    let is_there =
        |adapter: &Weak<Adapter>| there.iter().any(|a| std::ptr::eq(Arc::as_ptr(a), adapter.as_ptr()));
    let left = kept.iter().filter(|adapter| adapter.strong_count() > 0 && !is_there(adapter)).count();

    let mut section = Section::new(format!("{CALLERS} threads calling MiniLM, one swapping at random"));
    section.add("time", begun.elapsed().as_secs_f64(), "s");
    section.add("calls, all right", ground.calls.load(Ordering::Relaxed) as f64, "");
    section.add("rows, all right", ground.rows.load(Ordering::Relaxed) as f64, "");
    section.add("changes of the bank", ground.changes.load(Ordering::Relaxed) as f64, "");
    section.hold("adapters that nobody has but that are there", left as f64, "", 0.0);
    // In the first part, memory grows as much as it ever will.
    let medians = memory.chunks(memory.len().div_ceil(PARTS)).map(|part| {
        let mut part = part.to_vec();
        part.sort_unstable_by(f64::total_cmp);
        part[part.len() / 2]
    });
    let medians: Vec<_> = medians.collect();
    for (part, median) in medians.iter().enumerate() {
        section.add(format!("memory, median of part {} of {PARTS}", part + 1), megabytes(*median), "MB");
    }
    section.hold("the same of the last part / the second", medians[medians.len() - 1] / medians[1], "", 1.01);
    section
}

impl<'a> Ground<'a> {
    fn new(minilm: &'a MiniLm, directory: &Path) -> Self {
        let (bank, texts) = (minilm.bank(), minilm.ids(TEXTS, TOKENS, &mut Numbers::new(7)));
        let mut paths = Vec::new();
        for index in 0..KINDS {
            let targets = if index < KINDS / 2 { ALL } else { QUERY_AND_VALUE };
            let path = directory.join(index.to_string());
            minilm.layers.write(&path, Kind { rank: index + 1, dora: index % 2 == 0, targets }, index as u64);
            paths.push(path);
        }
        let alone = |rows: &Rows| {
            let text = |text| {
                let mut calls = minilm.calls(&some(&texts, &[text]));
                calls.run(rows);
                calls.output().to_vec()
            };
            (0..TEXTS).map(text).collect::<Vec<_>>()
        };
        let mut expected = Vec::new();
        for path in &paths {
            bank.load("alone", path).unwrap();
            expected.push(alone(&bank.rows(&[Some("alone")]).unwrap()));
            bank.remove("alone").unwrap();
        }
        expected.push(alone(&Rows::default()));
        for (name, path) in NAMES.iter().zip(&paths) {
            bank.load(name, path).unwrap();
        }
        let [calls, rows, changes] = std::array::from_fn(|_| AtomicUsize::new(0));
        Self { minilm, texts, expected, paths, stop: AtomicBool::new(false), calls, rows, changes }
    }

    /// Calls with rows, texts and adapters at random.
    fn call(&self, seed: u64) {
        let (mut numbers, mut calls) = (Numbers::new(seed), self.minilm.calls(&self.texts));
        while !self.stop.load(Ordering::Relaxed) {
            let batch = 1 + numbers.below(BATCH);
            let names: Vec<_> =
                (0..batch).map(|_| NAMES.get(numbers.below(NAMES.len() + 1)).copied()).collect();
            let texts: Vec<_> = (0..batch).map(|_| numbers.below(TEXTS)).collect();
            let rows = match self.minilm.bank().runtime().rows(&names) {
                Ok(rows) => rows,
                Err(BankError::Unknown { name, .. }) if name == FLEETING => continue,
                Err(error) => panic!("{error}"),
            };
            calls.inputs = self.minilm.inputs(&some(&self.texts, &texts));
            calls.run(&rows);
            let width = calls.output().len() / batch;
            for ((adapter, text), found) in rows.iter().zip(texts).zip(calls.output().chunks_exact(width)) {
                let kind = adapter.map_or(KINDS, |adapter| adapter.layers().next().unwrap().1 - 1);
                assert!(self.expected[kind][text] == found, "a row of adapter {kind} has another result");
            }
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.rows.fetch_add(batch, Ordering::Relaxed);
        }
    }

    /// Changes the bank at random. Returns the adapters that were in it meanwhile, but for those that are gone.
    fn swap(&self) -> Vec<Weak<Adapter>> {
        let (bank, mut numbers, mut seen) = (self.minilm.bank(), Numbers::new(7), Vec::new());
        while !self.stop.load(Ordering::Relaxed) {
            let (name, path) = (NAMES[numbers.below(NAMES.len())], &self.paths[numbers.below(KINDS)]);
            if name == FLEETING && numbers.below(2) == 0 {
                if bank.runtime().get(FLEETING).is_ok() {
                    bank.remove(name).unwrap();
                } else {
                    bank.load(name, path).unwrap();
                }
            } else if bank.runtime().get(name).is_ok() {
                bank.replace(name, path).unwrap();
            }
            // What doesn't fit leaves what is there.
            assert!(bank.replace(name, path.join("nothing")).is_err());
            seen.extend(bank.runtime().get(name).map(|adapter| Arc::downgrade(&adapter)));
            seen.retain(|adapter: &Weak<Adapter>| adapter.strong_count() > 0);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        seen
    }
}

/// Some of the texts.
fn some(texts: &Tensor, wanted: &[usize]) -> Tensor {
    let ids = texts.as_i64().unwrap();
    let ids = wanted.iter().flat_map(|text| &ids[text * TOKENS..][..TOKENS]).copied().collect();
    Tensor::i64(&[wanted.len(), TOKENS], ids).unwrap()
}
