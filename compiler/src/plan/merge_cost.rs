//! What an adapted layer costs as it is and merged, from the rates of a machine: `y = gain ∘ (x Wᵀ + (x Aᵀ) Bᵀ)` in each call, or
//! a weight `W' = gain ∘ (W + s B A)` that is made when the adapter is loaded. Knows layers by their numbers alone.
//!
//! The parts of a call are those that the kernels have. A product takes as long as its tiles, or as long as its weight takes to
//! be read if that is longer (the roofline; Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009), and
//! what is read comes from where a call's working set lies. Rows of one adapter share its weight's pass: a merged layer reads
//! a weight for each adapter, an unmerged one reads W once for all.

use engraft_runtime::abi::Packing;
use engraft_runtime::measure::{Level, Rates};
use std::fmt;

/// The share of a call that merging has to save: it takes memory, and what a call costs changes by as much with what else the
/// machine does.
pub const MARGIN: f64 = 0.03;

/// An adapted layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Outputs.
    pub out: u64,
    /// Inputs.
    pub k: u64,
    /// The adapter's rank: of all updates together, if there are several.
    pub rank: u64,
}

/// How layers are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Rows of a call.
    pub rows: u64,
    /// Adapters that a call's rows have, each as many, side by side.
    pub adapters: u64,
    /// Calls that an adapter serves from when it is loaded to when it is swapped; infinite if it stays.
    pub calls_per_swap: f64,
    /// Bytes that merged weights may take together; in a bank, those of the adapters that are in it.
    pub memory: Option<u64>,
    /// Bytes that are read and written between two calls of a layer by what is not that layer.
    pub beside: u64,
}

impl Default for Workload {
    /// A few texts of one adapter that stays, and nothing beside the layer.
    fn default() -> Self {
        Self { rows: 32, adapters: 1, calls_per_swap: f64::INFINITY, memory: None, beside: 0 }
    }
}

/// What a layer costs either way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The layer.
    pub layer: Layer,
    /// How it is used.
    pub workload: Workload,
    /// Seconds of a call as it is.
    pub factored: f64,
    /// Seconds of a call if it is merged.
    pub merged: f64,
    /// Seconds that loading an adapter takes longer if it is merged.
    pub merging: f64,
    /// Bytes of an adapter's merged weight.
    pub bytes: u64,
}

impl Estimate {
    /// What a layer costs on a machine.
    pub fn new(layer: Layer, workload: Workload, rates: &Rates) -> Self {
        let model = Model { layer, rows: workload.rows, rates };
        let adapters = workload.adapters.clamp(1, workload.rows.max(1));
        let workload = Workload { adapters, ..workload };
        Self {
            layer,
            workload,
            factored: model.factored(adapters, workload.beside),
            merged: model.merged(adapters, workload.beside),
            merging: model.merging(),
            bytes: model.weight(),
        }
    }

    /// Seconds of a call that merging saves beyond [`MARGIN`], with what each call bears of the merging; negative if it costs
    /// more, or saves less than that.
    pub fn saved(&self) -> f64 {
        let Workload { adapters, calls_per_swap, .. } = self.workload;
        self.gain() - adapters as f64 * self.merging / calls_per_swap
    }

    /// From how many calls a swap on merging pays, if it ever does.
    pub fn break_even(&self) -> Option<f64> {
        let gain = self.gain();
        (gain > 0.0).then(|| (self.workload.adapters as f64 * self.merging / gain).max(1.0))
    }

    fn gain(&self) -> f64 {
        self.factored * (1.0 - MARGIN) - self.merged
    }
}

/// Which layers to merge, of some with what merging saves: all for which it pays or, where it may take so many bytes only,
/// those that save most for each byte until the next would take too many. More memory merges no fewer.
pub fn choose(layers: &[Estimate], memory: Option<u64>) -> Vec<Choice> {
    let mut choices: Vec<_> = layers
        .iter()
        .map(|layer| if layer.saved() > 0.0 { Choice::Merged } else { Choice::Factored })
        .collect();
    let Some(mut left) = memory else { return choices };
    let mut order: Vec<_> = (0..layers.len()).filter(|&index| choices[index] == Choice::Merged).collect();
    let worth = |index: usize| layers[index].saved() / layers[index].bytes.max(1) as f64;
    order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
    for index in order {
        let rest = left.checked_sub(layers[index].bytes);
        if rest.is_none() {
            choices[index] = Choice::NoMemory;
        }
        // The next would be worth less.
        left = rest.unwrap_or(0);
    }
    choices
}

/// What is chosen for a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Merging pays.
    Merged,
    /// It does not.
    Factored,
    /// It would, but takes more bytes than it may.
    NoMemory,
}

/// The parts of a layer's time.
struct Model<'a> {
    layer: Layer,
    rows: u64,
    rates: &'a Rates,
}

impl Model<'_> {
    /// The product with W for all rows, `h = x Aᵀ`, and B as `rank` more inputs of the product for each adapter's rows.
    fn factored(&self, adapters: u64, beside: u64) -> f64 {
        let Layer { out, k, rank, .. } = self.layer;
        let (rows, count) = (self.rows as f64, adapters as f64);
        let (a, b) = (4.0 * rank as f64 * k as f64, 4.0 * rank as f64 * out as f64);
        let working_set = self.weight() as f64 + count * (a + b) + self.passing(beside);
        let read = self.read(working_set);
        let hidden = (rows * k as f64 * rank as f64 * self.rates.dot).max(count * a / read);
        // Rows that fill tiles of their own are finished in registers, and the first tile reads their B. Those that share tiles
        // leave their sums in y and take them up again, and their B is fetched while W is multiplied.
        let fills = self.rows / adapters >= self.highest();
        let (sharing, found, fetched) = match adapters {
            1 => (0.0, 0.0, 0.0),
            _ if fills => ((adapters - 1) as f64 * self.highest() as f64, count * b, 0.0),
            _ => (rows, 0.0, count * b),
        };
        let resumed = 8.0 * sharing * out as f64 / self.nearest() + found / read;
        let weight = self.rows.div_ceil(self.rates.block.max(1)) as f64 * self.weight() as f64;
        let read_w = read * weight / (weight + fetched).max(1.0);
        let product_b = |rows: u64| match (adapters, rows) {
            // A single tile comes to each panel of B as nothing has fetched it.
            (1, 1..) if rows <= self.highest() => self.panels() * rank as f64 * self.apart(rows, working_set),
            (1, _) => self.product(rows, rank, read),
            _ => self.product(rows, rank, f64::INFINITY),
        };
        self.product(self.rows, k, read_w) + hidden + resumed + self.pieces(adapters, product_b)
    }

    /// A product for each adapter's rows, with a weight of its own. They are taken panel by panel, so that where there are
    /// several, the first tile of a panel's block finds what nothing has fetched.
    fn merged(&self, adapters: u64, beside: u64) -> f64 {
        let k = self.layer.k;
        let working_set = adapters as f64 * self.weight() as f64 + self.passing(beside);
        let read = self.read(working_set);
        self.pieces(adapters, |rows| {
            let together = self.product(rows, k, read);
            if adapters == 1 || rows == 0 {
                return together;
            }
            let block = self.rates.block.max(1);
            let tiles = rows.min(block).div_ceil(self.highest());
            let height = rows.min(block).div_ceil(tiles);
            // One tile takes the panel by itself; of several, the others read what it has read, and fetch what is next.
            let (inputs, seconds) = if tiles == 1 {
                (k, self.apart(height, working_set))
            } else {
                let blocks = k.div_ceil(self.rates.block_inputs.max(1)).max(1);
                (k.div_ceil(blocks), self.rate(working_set, |level| level.first.recip()).recip())
            };
            let usual = self.tile(height).max(self.panel_row() / read);
            let later = (seconds - usual).max(0.0);
            let visits = self.panels() * rows.div_ceil(block) as f64;
            together + visits * inputs as f64 * later
        })
    }

    /// Seconds of a single tile for each input of a panel that nothing has fetched.
    fn apart(&self, height: u64, working_set: f64) -> f64 {
        let part = height.saturating_sub(1) as f64 / (self.highest() - 1).max(1) as f64;
        let seconds = |tile: usize| self.rate(working_set, |level| level.apart[tile].recip()).recip();
        let (lowest, highest) = (seconds(0), seconds(1));
        lowest + part * (highest - lowest)
    }

    /// Rows of the highest tile.
    fn highest(&self) -> u64 {
        self.rates.tile.len().max(1) as u64
    }

    /// Seconds of a tile for each input of a panel that lies in the second-level cache at best.
    fn tile(&self, height: u64) -> f64 {
        let arithmetic = self.rates.tile.get((height as usize).saturating_sub(1)).copied().unwrap_or(0.0);
        arithmetic.max(self.panel_row() / self.nearest())
    }

    /// `W + s B A` for each element, in memory that is taken for it: W is read, and W' written, where neither is near.
    fn merging(&self) -> f64 {
        let Layer { out, k, rank } = self.layer;
        let bytes = self.weight() as f64;
        let moved = 2.0 * bytes / self.read(2.0 * bytes) + bytes / self.rate(bytes, |level| level.fresh);
        out as f64 * k as f64 * rank as f64 * self.rates.merge + moved
    }

    /// A sum over the adapters' rows, which are as many for each or one more.
    fn pieces(&self, adapters: u64, seconds: impl Fn(u64) -> f64) -> f64 {
        let (rows, more) = (self.rows / adapters, self.rows % adapters);
        let longer = if more > 0 { more as f64 * seconds(rows + 1) } else { 0.0 };
        longer + (adapters - more) as f64 * seconds(rows)
    }

    /// A product of so many rows and inputs with a weight for all outputs, read once for a block of rows.
    fn product(&self, rows: u64, k: u64, read: f64) -> f64 {
        let reading = self.panel_row() / read;
        let block = self.rates.block.max(1);
        let blocks = (rows / block) as f64 * self.tiles(block).max(reading);
        let rest = match rows % block {
            0 => 0.0,
            rows => self.tiles(rows).max(reading),
        };
        self.panels() * k as f64 * (blocks + rest)
    }

    /// Seconds of a block of rows for each input of a panel: in as few tiles as can hold them, all about as high, which
    /// read the panel from the second-level cache at best.
    fn tiles(&self, rows: u64) -> f64 {
        let tiles = rows.div_ceil(self.highest()).max(1);
        let (height, more) = (rows / tiles, rows % tiles);
        let higher = if more > 0 { more as f64 * self.tile(height + 1) } else { 0.0 };
        higher + (tiles - more) as f64 * self.tile(height)
    }

    /// Panels of outputs, the last one counted in part.
    fn panels(&self) -> f64 {
        self.layer.out as f64 / self.rates.panel as f64
    }

    /// Bytes of a panel for each input.
    fn panel_row(&self) -> f64 {
        (4 * self.rates.panel) as f64
    }

    /// Bytes of a weight's panels.
    fn weight(&self) -> u64 {
        let Layer { out, k, .. } = self.layer;
        Packing::Panels
            .len(out as usize, k as usize)
            .map_or(u64::MAX, |floats| (floats as u64).saturating_mul(4))
    }

    /// Bytes of x and y, and of what is not the layer.
    fn passing(&self, beside: u64) -> f64 {
        let Layer { out, k, .. } = self.layer;
        4.0 * self.rows as f64 * (out as f64 + k as f64) + beside as f64
    }

    /// Bytes per second from the smallest working set.
    fn nearest(&self) -> f64 {
        self.rates.memory.first().map_or(f64::INFINITY, |level| level.read)
    }

    fn read(&self, working_set: f64) -> f64 {
        self.rate(working_set, |level| level.read)
    }

    /// The rate at a size: time for each byte goes linearly with the logarithm of the size between those that were measured.
    fn rate(&self, bytes: f64, of: impl Fn(&Level) -> f64) -> f64 {
        let levels = &self.rates.memory;
        let at = levels.partition_point(|level| (level.bytes as f64) < bytes);
        match (at.checked_sub(1).map(|before| &levels[before]), levels.get(at)) {
            (None, None) => f64::INFINITY,
            (None, Some(level)) | (Some(level), None) => of(level),
            (Some(below), Some(above)) => {
                let size = |level: &Level| (level.bytes as f64).ln();
                let part = (bytes.ln() - size(below)) / (size(above) - size(below));
                ((1.0 - part) / of(below) + part / of(above)).recip()
            }
        }
    }
}

/// `12.3 µs a call; merged 11.2 µs + 410 µs a swap (32 rows, 1 adapter, rank 8), 2.25 MiB more; merging pays from 561 calls a
/// swap`
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, workload: Workload { rows, adapters, .. }, factored, merged, merging, bytes } =
            self;
        let (factored, merged, merging) = (Micros(*factored), Micros(*merged), Micros(*merging));
        let plural = if *adapters == 1 { "" } else { "s" };
        write!(
            f,
            "{factored} a call; merged {merged} + {merging} a swap ({rows} rows, {adapters} adapter{plural}, rank {}), {} more; ",
            layer.rank,
            Bytes(*bytes)
        )?;
        match self.break_even() {
            Some(calls) if calls <= 1.0 => f.write_str("merging pays from 1 call a swap"),
            Some(calls) => write!(f, "merging pays from {:.0} calls a swap", calls.ceil()),
            None => f.write_str("merging never pays"),
        }
    }
}

/// Seconds, in microseconds of three digits.
struct Micros(f64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0 * 1e6;
        let digits = [10.0, 100.0].into_iter().filter(|limit| micros < *limit).count();
        write!(f, "{micros:.digits$} µs")
    }
}

/// Bytes, in KiB or MiB.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kibibytes = self.0 as f64 / 1024.0;
        if kibibytes < 1024.0 {
            return write!(f, "{kibibytes:.2} KiB");
        }
        write!(f, "{:.2} MiB", kibibytes / 1024.0)
    }
}
