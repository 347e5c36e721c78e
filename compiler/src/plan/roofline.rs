//! The roofline: how soon a step can end on a machine that computes and moves bytes at given rates, and which of the two
//! binds (Williams, Waterman and Patterson: Roofline, Communications of the ACM 52(4), 2009). Knows steps by their cost
//! alone.

use super::Cost;
use engraft_ir::{Bindings, Dim, Symbol};
use engraft_runtime::SYMBOL_LIMIT;
use engraft_runtime::measure::Machine;
use std::collections::BTreeMap;
use std::fmt;

/// What binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roof {
    /// The rate of arithmetic.
    Compute,
    /// The rate of memory.
    Memory,
}

impl Roof {
    /// The one that binds where arithmetic takes so much longer than memory (in any unit).
    fn of(surplus: f64) -> Self {
        if surplus > 0.0 { Self::Compute } else { Self::Memory }
    }
}

impl fmt::Display for Roof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "compute-bound",
            Self::Memory => "memory-bound",
        })
    }
}

/// What the roofline says of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// Every symbol has a value.
    Time {
        /// The least that it can take if its bytes come from memory.
        seconds: f64,
        /// What binds.
        roof: Roof,
    },
    /// The same roof binds for all values of the open symbols.
    Always(Roof),
    /// One roof binds below a value of the only open symbol, the other from there on.
    Crossing {
        /// The symbol.
        symbol: Symbol,
        /// The first value at which the upper one binds.
        at: u64,
        /// What binds below.
        below: Roof,
        /// What binds from there on.
        above: Roof,
    },
    /// It depends on the open symbols in another way.
    Open(Vec<Symbol>),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { seconds, roof } => write!(f, "{roof}, {:.2} µs", seconds * 1e6),
            Self::Always(roof) => write!(f, "{roof}"),
            Self::Crossing { symbol, at, below, above } => {
                write!(f, "{below} below {symbol} = {at}, then {above}")
            }
            Self::Open(symbols) => {
                let symbols: Vec<_> = symbols.iter().map(Symbol::name).collect();
                write!(f, "depends on {}", symbols.join(", "))
            }
        }
    }
}

/// What the roofline of a machine says of a step, with values of some symbols, all or none.
pub fn bound(cost: &Cost, machine: &Machine, symbols: &Bindings) -> Bound {
    let compute = seconds(&cost.flops, machine.flops_per_second, symbols);
    let memory = seconds(&cost.bytes(), machine.bytes_per_second, symbols);
    let mut surplus = compute.clone();
    for (product, seconds) in &memory {
        *surplus.entry(product.clone()).or_default() -= seconds;
    }
    let mut open: Vec<_> = surplus.keys().flatten().cloned().collect();
    open.sort_unstable();
    open.dedup();
    match open.as_slice() {
        [] => {
            let total = |terms: &Polynomial| terms.values().sum::<f64>();
            let (seconds, roof) = later(total(&compute), total(&memory));
            Bound::Time { seconds, roof }
        }
        _ if surplus.values().all(|&seconds| seconds > 0.0) => Bound::Always(Roof::Compute),
        _ if surplus.values().all(|&seconds| seconds <= 0.0) => Bound::Always(Roof::Memory),
        [symbol] => crossing(symbol, &surplus).unwrap_or(Bound::Open(open)),
        _ => Bound::Open(open),
    }
}

/// The least time in seconds that so many operations and bytes take, and what binds.
pub fn least(flops: u64, bytes: u64, machine: &Machine) -> (f64, Roof) {
    later(flops as f64 / machine.flops_per_second, bytes as f64 / machine.bytes_per_second)
}

fn later(compute: f64, memory: f64) -> (f64, Roof) {
    (compute.max(memory), Roof::of(compute - memory))
}

/// Coefficients of products of open symbols.
type Polynomial = BTreeMap<Vec<Symbol>, f64>;

/// The time that so many operations or bytes take at a rate.
fn seconds(amount: &Dim, rate: f64, symbols: &Bindings) -> Polynomial {
    let mut result = Polynomial::new();
    for (coefficient, product) in amount.terms() {
        let (known, open): (Vec<_>, Vec<_>) = product.iter().partition(|symbol| symbols.contains_key(symbol));
        let known = known.into_iter().filter_map(|symbol| symbols.get(symbol));
        let value = known.fold(coefficient as f64, |value, &extent| value * extent as f64);
        *result.entry(open.into_iter().cloned().collect()).or_default() += value / rate;
    }
    result
}

/// Where a polynomial of one symbol changes its sign, if it does so once at most: it has as many positive roots at most as
/// its coefficients, in the order of their degrees, change signs (Descartes).
fn crossing(symbol: &Symbol, surplus: &Polynomial) -> Option<Bound> {
    // Products of one symbol are ordered by degree.
    let roofs: Vec<_> = surplus.values().filter(|&&s| s != 0.0).map(|&s| Roof::of(s)).collect();
    if roofs.windows(2).filter(|pair| pair[0] != pair[1]).count() > 1 {
        return None;
    }
    let at = |extent: u64| {
        let power = |degree: usize| (extent as f64).powi(degree as i32);
        Roof::of(surplus.iter().map(|(product, s)| s * power(product.len())).sum())
    };
    let (below, above) = (at(1), at(SYMBOL_LIMIT));
    if below == above {
        return Some(Bound::Always(below));
    }
    let (mut low, mut high) = (1, SYMBOL_LIMIT);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if at(middle) == below {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(Bound::Crossing { symbol: symbol.clone(), at: high, below, above })
}
