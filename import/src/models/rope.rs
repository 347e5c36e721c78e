//! Rotary position embeddings (Su et al., 2021): the kinds that configs ask for, and the rotation in the graph. Knows
//! nothing about attention.

use super::config::{Config, ConfigError};
use engraft_ir::DType::F32;
use engraft_ir::ops::{Constant, Elements};
use engraft_ir::{Shape, Tensor, dims};
use std::f32::consts::PI;

/// θ of configs that do not say it.
const THETA: f64 = 10_000.0;

/// The widest head: its frequencies are a constant in the graph.
const MAX_HEAD: usize = 8192;

/// Rotates heads of this many channels by each token's position.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    width: usize,
    /// The angle between neighbouring positions, of each pair of channels.
    frequencies: Vec<f32>,
}

/// How long contexts are reached by changing the frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scaling {
    None,
    /// All are divided by a factor (Chen et al., 2023).
    Linear {
        factor: f64,
    },
    /// Low ones are divided, high ones are kept, those between are mixed (Llama 3.1).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
}

impl Rope {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` as configs had them before transformers 5.
    pub(super) fn read(config: &Config<'_>, width: usize, context: usize) -> Result<Self, ConfigError> {
        if !width.is_multiple_of(2) || width > MAX_HEAD {
            return Err(
                config.value("head_dim", format!("an even number up to {MAX_HEAD}, to be rotated in pairs"))
            );
        }
        whole(config)?;
        config
            .refuse("rope_interleaved", "neighbouring channels are rotated, not those of the two halves")?;
        let outer_theta = config.optional_number("rope_theta")?;
        let new = config.object("rope_parameters", "rope_parameters.")?;
        let old = config.object("rope_scaling", "rope_scaling.")?;
        // Only one of them says it; transformers takes `rope_scaling` first, but nobody writes both.
        if new.is_some() && old.is_some() {
            return Err(config.unsupported("rope_scaling", "`rope_parameters` is there, too"));
        }
        let Some(rope) = new.or(old) else {
            return Ok(Self::new(width, outer_theta.unwrap_or(THETA), Scaling::None));
        };
        let theta = match (rope.optional_number("rope_theta")?, outer_theta) {
            (Some(inner), Some(outer)) if inner != outer => {
                return Err(config.value("rope_theta", format!("{inner}, as inside the other field")));
            }
            (inner, outer) => inner.or(outer).unwrap_or(THETA),
        };
        let scaling = scaling(&rope, context)?;
        whole(&rope)?;
        rope.finish(&[])?;
        Ok(Self::new(width, theta, scaling))
    }

    /// As transformers computes them, in f32: `θ^(-2i / width)`, scaled.
    fn new(width: usize, theta: f64, scaling: Scaling) -> Self {
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / width as f32;
            scaling.apply(1.0 / theta.powf(f64::from(exponent)) as f32)
        };
        Self { width, frequencies: (0..width / 2).map(frequency).collect() }
    }

    /// Cosine and sine of each token's angles, `[batch, seq, 1, width / 2]`, from its position `[batch, seq]`.
    pub(super) fn angles<'g>(&self, positions: Tensor<'g>) -> [Tensor<'g>; 2] {
        let shape: Shape = dims![self.width / 2];
        let values = Elements::F32(self.frequencies.clone());
        let frequencies = positions.builder().constant(Constant { shape, values }).named("rope.frequencies");
        let positions = positions.cast(F32).reshape(dims!["batch", "seq", 1, 1]);
        let angles = (positions * frequencies).named("rope.angles");
        [angles.cos().named("rope.cos"), angles.sin().named("rope.sin")]
    }

    /// Turns channels i and `width / 2 + i` of each head as a pair: x `[batch, seq, heads * width]`.
    pub(super) fn rotate<'g>(&self, x: Tensor<'g>, [cos, sin]: [Tensor<'g>; 2], heads: usize) -> Tensor<'g> {
        let half = self.width / 2;
        let by_head = x.reshape(dims!["batch", "seq", heads, self.width]);
        let (a, b) = (by_head.slice(-1, 0, half), by_head.slice(-1, half, half));
        let turned = (a * cos - b * sin).concat(&[b * cos + a * sin], -1);
        turned.reshape(dims!["batch", "seq", heads * self.width])
    }
}

/// Refuses to rotate a part of each head only.
fn whole(config: &Config<'_>) -> Result<(), ConfigError> {
    match config.optional_number("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => {
            Err(config.unsupported("partial_rotary_factor", "a part of each head is rotated; supported is 1"))
        }
    }
}

fn scaling(rope: &Config<'_>, context: usize) -> Result<Scaling, ConfigError> {
    let required =
        |field| rope.optional_number(field).and_then(|found| found.ok_or_else(|| rope.missing(field)));
    // Old configs call it `type`.
    let (new, old) = (rope.text("rope_type")?, rope.text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(rope.value("type", format!("{new:?}, as `rope_type`")));
    }
    let field = if new.is_some() { "rope_type" } else { "type" };
    match new.or(old) {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: required("factor")? }),
        Some("llama3") => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if high <= low {
                return Err(rope.value("high_freq_factor", format!("more than `low_freq_factor`, {low}")));
            }
            let original = rope.optional_size("original_max_position_embeddings")?.unwrap_or(context);
            Ok(Scaling::Llama3 { factor: required("factor")?, low, high, original_context: original as f64 })
        }
        Some(_) => Err(rope.unsupported(field, "supported are default, linear and llama3")),
    }
}

impl Scaling {
    /// The frequency that takes another's place. In f32, step by step as transformers does
    /// (`_compute_llama3_parameters`), so that equal checkpoints see equal angles.
    fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low, high, original_context } => {
                let (longest, shortest) = ((original_context / low) as f32, (original_context / high) as f32);
                let wave = 2.0 * PI / frequency;
                let divided = frequency / factor as f32;
                if wave > longest {
                    divided
                } else if wave < shortest {
                    frequency
                } else {
                    let smooth = (original_context as f32 / wave - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            }
        }
    }
}
