//! Which layers are measured: shapes, batches and numbers of threads. Knows nothing about who is measured.

use crate::bounds::Least;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// The sizes of a linear layer with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Features of a row of x.
    pub inputs: usize,
    /// Features of a row of y.
    pub outputs: usize,
    /// The adapter's r.
    pub rank: usize,
}

/// The shapes of the whole grid.
pub const SHAPES: [Shape; 4] = [
    Shape { inputs: 768, outputs: 768, rank: 8 },
    Shape { inputs: 768, outputs: 3072, rank: 8 },
    Shape { inputs: 3072, outputs: 768, rank: 8 },
    Shape { inputs: 4096, outputs: 4096, rank: 16 },
];

/// The batches of the whole grid.
pub const BATCHES: [usize; 7] = [1, 2, 4, 8, 32, 128, 512];

/// The numbers of threads of the whole grid.
pub const THREADS: [usize; 2] = [1, 2];

impl Shape {
    /// What the layer is for: a multiplication and an addition for each weight and each element of A and B, in each row.
    pub fn flops(self, batch: usize) -> f64 {
        let weights = self.inputs * self.outputs + self.rank * (self.inputs + self.outputs);
        2.0 * batch as f64 * weights as f64
    }

    /// What the layer takes at least with its adapter unmerged: its weight, read once, and its arithmetic.
    pub fn least(self, batch: usize) -> Least {
        Least { flops: self.flops(batch), bytes: self.inputs * self.outputs * size_of::<f32>() }
    }

    /// What has to move at least, if all of it moves once: weights, A, B, gain, bias, x and y.
    pub fn bytes(self, batch: usize) -> f64 {
        let weights =
            self.inputs * self.outputs + self.rank * (self.inputs + self.outputs) + 2 * self.outputs;
        size_of::<f32>() as f64 * (weights + batch * (self.inputs + self.outputs)) as f64
    }

    /// As in a file's name: `768x3072`.
    pub fn slug(self) -> String {
        format!("{}x{}", self.inputs, self.outputs)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, r = {}", self.inputs, self.outputs, self.rank)
    }
}

/// What is no shape of the grid.
#[derive(Debug, thiserror::Error)]
#[error("there is no shape {found:?} in the grid: expected one of {}", SHAPES.map(Shape::slug).join(", "))]
pub struct UnknownShape {
    found: String,
}

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        let named = SHAPES.into_iter().find(|shape| shape.slug() == text);
        named.ok_or_else(|| UnknownShape { found: text.to_owned() })
    }
}

/// A part of the grid.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Its shapes.
    pub shapes: Vec<Shape>,
    /// Its batches, ascending.
    pub batches: Vec<usize>,
    /// Its numbers of threads, ascending.
    pub threads: Vec<usize>,
}

impl Grid {
    /// All of it.
    pub fn whole() -> Self {
        Self { shapes: SHAPES.to_vec(), batches: BATCHES.to_vec(), threads: THREADS.to_vec() }
    }

    /// Enough of it to see whether all is well.
    pub fn quick() -> Self {
        Self { shapes: vec![SHAPES[0], SHAPES[3]], batches: vec![1, 8, 128], threads: THREADS.to_vec() }
    }

    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        self.shapes == SHAPES && self.batches == BATCHES && self.threads == THREADS
    }
}
