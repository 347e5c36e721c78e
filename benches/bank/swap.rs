//! Swapping an adapter while another thread calls with it: how long a swap takes, from files in the page cache until calls
//! are given the new adapter, and what the calls feel of it.
//!
//! Three phases take turns, since a machine may be shared and a core never is alone with its caches: nobody swaps; somebody
//! does the same work for a bank that no call knows; somebody swaps. What only the last has is the exchange itself.

use crate::adapters::{ALL, Kind, Numbers};
use crate::findings::{Section, Times};
use crate::minilm::MiniLm;
use engraft::import::peft::PeftAdapter;
use engraft::runtime::{Bank, Rows};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rows of a call, and the tokens of each.
const SIZE: (usize, usize) = (8, 32);
const KIND: Kind = Kind { rank: 16, dora: true, targets: ALL };
/// The adapter that is swapped, and one that stays.
const NAMES: [&str; 2] = ["swapped", "other"];

/// How often the phases take turns.
const TURNS: usize = 10;

/// What goes on beside the calls.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    SwapsElsewhere,
    Swaps,
}

/// The steps of a swap, and all of them.
#[derive(Default)]
struct Swaps {
    open: Times,
    fit: Times,
    replace: Times,
    whole: Times,
}

impl Swaps {
    /// What `AdapterBank::replace` does, step by step; at the end, calls are given the new adapter.
    fn swap(&mut self, minilm: &MiniLm, bank: &Bank, path: &PathBuf) {
        let begun = Instant::now();
        let adapter = PeftAdapter::open(path).unwrap();
        let opened = Instant::now();
        let weights = minilm.bank().updates(path, &adapter).unwrap();
        let fitted = Instant::now();
        bank.replace(NAMES[0], &weights).unwrap();
        let replaced = Instant::now();
        self.open.push(opened - begun);
        self.fit.push(fitted - opened);
        self.replace.push(replaced - fitted);
        self.whole.push(replaced - begun);
    }

    fn report(&mut self, when: &str, section: &mut Section) {
        let steps = [("opening", &mut self.open), ("fitting", &mut self.fit), ("loading", &mut self.replace)];
        for (step, times) in steps {
            section.add(format!("a swap {when}, of it {step}, median"), times.quantile(0.5), "ms");
        }
    }
}

/// The numbers, of so many swaps.
pub fn measure(minilm: &MiniLm, swaps: usize) -> Section {
    let directory = tempfile::tempdir().unwrap();
    let [first, second, other] = ["first", "second", "other"].map(|name| directory.path().join(name));
    for (seed, path) in [&first, &second, &other].into_iter().enumerate() {
        minilm.layers.write(path, KIND, seed as u64);
    }
    let (bank, elsewhere) = (minilm.bank(), Bank::new(minilm.bank().runtime().base().clone()));
    bank.load(NAMES[0], &second).unwrap();
    bank.load(NAMES[1], &other).unwrap();
    elsewhere.load(NAMES[0], &bank.weights(&first).unwrap()).unwrap();
    let ids = minilm.ids(SIZE.0, SIZE.1, &mut Numbers::new(7));
    let expected = [&first, &second].map(|path| {
        bank.replace(NAMES[0], path).unwrap();
        let mut calls = minilm.calls(&ids);
        calls.run(&rows(minilm));
        calls.output().to_vec()
    });

    let paths = [first, second];
    let (mut alone, mut loaded) = (Swaps::default(), Swaps::default());
    for swap in 0..(swaps / TURNS).max(2) {
        alone.swap(minilm, bank.runtime(), &paths[swap % 2]);
    }
    let mut calls = [Times::default(), Times::default(), Times::default()];
    let each = swaps.div_ceil(TURNS);
    // How long a phase without swaps is: as long as one with them.
    let mut phase = Duration::from_millis(10) * each as u32;
    for _ in 0..TURNS {
        let phases = [Beside::Nothing, Beside::SwapsElsewhere, Beside::Swaps];
        for (beside, calls) in phases.into_iter().zip(&mut calls) {
            let stop = AtomicBool::new(false);
            let begun = Instant::now();
            std::thread::scope(|scope| {
                let caller = scope.spawn(|| call_until(minilm, &ids, &expected, &stop));
                match beside {
                    Beside::Nothing => std::thread::sleep(phase),
                    Beside::SwapsElsewhere => {
                        let mut swaps = Swaps::default();
                        (0..each).for_each(|swap| swaps.swap(minilm, &elsewhere, &paths[swap % 2]));
                    }
                    Beside::Swaps => {
                        (0..each).for_each(|swap| loaded.swap(minilm, bank.runtime(), &paths[swap % 2]));
                    }
                }
                phase = begun.elapsed();
                stop.store(true, Ordering::Relaxed);
                calls.extend(caller.join().unwrap());
            });
        }
    }
    report(alone, loaded, calls)
}

fn rows(minilm: &MiniLm) -> Rows {
    let names: Vec<_> = (0..SIZE.0).map(|row| Some(NAMES[row % 2])).collect();
    minilm.bank().rows(&names).unwrap()
}

/// Calls, each with the adapters of its moment. Its result must be that of one of the two that are swapped, whole.
fn call_until(
    minilm: &MiniLm,
    ids: &engraft::runtime::Tensor,
    expected: &[Vec<f32>; 2],
    stop: &AtomicBool,
) -> Times {
    let (mut calls, mut times) = (minilm.calls(ids), Times::default());
    // The first call makes room.
    calls.run(&rows(minilm));
    while times.len() == 0 || !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        calls.run(&rows(minilm));
        times.push(begun.elapsed());
        assert!(expected.iter().any(|expected| expected == calls.output()), "neither adapter's result");
    }
    times
}

fn report(mut alone: Swaps, mut loaded: Swaps, calls: [Times; 3]) -> Section {
    let (batch, tokens) = SIZE;
    let title = format!(
        "Swapping a DoRA adapter of rank 16 on all linear layers of MiniLM, calls of {batch}x{tokens} tokens"
    );
    let mut section = Section::new(title);
    section.add("swaps under load", loaded.whole.len() as f64, "");
    section.add("a swap with no calls, median", alone.whole.quantile(0.5), "ms");
    alone.report("with no calls", &mut section);
    section.hold("a swap under load, median", loaded.whole.quantile(0.5), "ms", 5.0);
    section.add("a swap under load, p99", loaded.whole.quantile(0.99), "ms");
    section.add("a swap under load, max", loaded.whole.quantile(1.0), "ms");
    loaded.report("under load", &mut section);
    let phases = ["no swaps", "swaps in a bank of no concern", "swaps"];
    for (phase, mut times) in phases.into_iter().zip(calls) {
        section.add(format!("calls beside {phase}"), times.len() as f64, "");
        section.times(&format!("a call beside {phase}"), &mut times);
        section.add(format!("of them beyond 1.5 medians, beside {phase}"), times.beyond(1.5) as f64, "");
        let worst = times.quantile(1.0) / times.quantile(0.5);
        let what = format!("the longest call / the median, beside {phase}");
        section.put(what, worst, "", (phase == "swaps").then_some(1.5));
    }
    section
}
