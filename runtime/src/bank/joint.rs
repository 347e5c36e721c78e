//! How several updates of a layer, one after the other, become one form. Knows nothing about how a form is kept or run.
//!
//! After a state `g ∘ (W + D)`, an update E makes `g ∘ (W + D) + E = g ∘ (W + (D + E / g))`, and one with a gain γ of its own
//! (`DoRA`, whose norm is of W + E alone) makes `γ ∘ (g ∘ (W + D) + E) = γ g ∘ (W + (D + E / g))`, as PEFT computes them one
//! after the other. So A and B of all updates stand side by side, with each B divided by the gain before it. Where an update
//! adds something, the gain before it must have an inverse that f32 can hold; one of 0, for example, is refused there.

use super::form::{FactorPanels, FormError, Layer, Update, floats, norms, pack, values};
use crate::abi::Packing;
use crate::kernels::Kernels;
use crate::memory::Buffer;
use crate::panels;

/// The form of the updates so far.
pub(super) struct Joint {
    layer: Layer,
    /// Of all updates together, and of those so far.
    pub(super) rank: usize,
    so_far: usize,
    /// `[rank, k]`, packed as rows.
    pub(super) a: Buffer,
    /// `[out, rank]`, with its scale, once there are several to be put side by side.
    pub(super) b: Vec<f32>,
    /// The panels of B, where one update's is all of it.
    pub(super) panels: Option<FactorPanels>,
    has_gain: bool,
    pub(super) gain: Option<Vec<f32>>,
    pub(super) shift: Option<Vec<f32>>,
}

impl Joint {
    pub(super) fn new(layer: Layer, rank: usize, has_gain: bool) -> Result<Joint, FormError> {
        let a = floats(Packing::Rows.len(rank, layer.k))?;
        let (b, panels, gain, shift) = (Vec::new(), None, None, None);
        Ok(Joint { layer, rank, so_far: 0, a, b, panels, has_gain, gain, shift })
    }

    /// Goes on with an update that fits the layer.
    ///
    /// # Safety
    /// As for [`Form::new`](super::form::Form::new).
    pub(super) unsafe fn then(&mut self, update: &Update, kernels: &Kernels) -> Result<(), FormError> {
        let (layer, rank, scale) = (self.layer, update.rank(), update.scale as f32);
        // SAFETY: `a` has room for the rows of all updates, and these are `[r, k]`.
        let a = unsafe {
            let rows = self.a.floats().add(self.so_far * panels::row_stride(layer.k));
            pack(Packing::Rows, (rank, layer.k), values(&update.a), 1.0, rows);
            rows
        };
        let is_all = rank == self.rank && self.gain.is_none();
        let is_packed = is_all || update.magnitude.is_some();
        let pack_b = || FactorPanels::new(layer.out, (values(&update.b), rank), scale, self.has_gain);
        let packed = is_packed.then(pack_b).transpose()?;
        if !is_all {
            self.append_b(values(&update.b), rank, scale)?;
        }
        self.so_far += rank;
        if let Some(added) = &update.bias_of_b {
            let shift = self.shift.get_or_insert_with(|| vec![0.0; layer.out]);
            shift.iter_mut().zip(values(added)).for_each(|(shift, &b)| *shift += scale * b);
        }
        if let Some((magnitude, b)) = update.magnitude.as_ref().zip(packed.as_ref()) {
            // SAFETY: the layer's panels, and A and B as they were just packed.
            let norms = unsafe { norms(layer, (a, rank), b, kernels) };
            self.times(values(magnitude), &norms)?;
        }
        if is_all {
            self.panels = packed;
        }
        Ok(())
    }

    /// Multiplies everything so far by a gain, a magnitude over a norm.
    fn times(&mut self, magnitude: &[f32], norms: &[f32]) -> Result<(), FormError> {
        let gain = self.gain.get_or_insert_with(|| vec![1.0; magnitude.len()]);
        for (output, (&magnitude, &norm)) in magnitude.iter().zip(norms).enumerate() {
            gain[output] *= magnitude / norm;
            // An infinite norm would make it 0.
            if !gain[output].is_finite() || !norm.is_finite() {
                return Err(FormError::NotFinite { output, magnitude, norm, gain: gain[output] });
            }
            if let Some(shift) = &mut self.shift {
                shift[output] *= magnitude / norm;
            }
        }
        Ok(())
    }

    /// Puts `s B / g` beside what is there, with the gain g so far.
    fn append_b(&mut self, b: &[f32], rank: usize, scale: f32) -> Result<(), FormError> {
        self.b.resize(self.layer.out * self.rank, 0.0);
        let rows = b.chunks_exact(rank.max(1)).zip(self.b.chunks_exact_mut(self.rank.max(1)));
        for (output, (from, to)) in rows.enumerate() {
            let gain = self.gain.as_ref().map_or(1.0, |gain| gain[output]);
            // Where nothing is added, nothing has to be undone.
            if from.iter().all(|&from| scale * from == 0.0) {
                continue;
            }
            let undo = inverse(output, gain)?;
            for (to, &from) in to[self.so_far..].iter_mut().zip(from) {
                *to = scale * from * undo;
                if (scale * from).is_finite() && !to.is_finite() {
                    return Err(FormError::Gain { output, gain: gain.to_string() });
                }
            }
        }
        Ok(())
    }
}

fn inverse(output: usize, gain: f32) -> Result<f32, FormError> {
    let inverse = gain.recip();
    if inverse.is_finite() && inverse != 0.0 {
        return Ok(inverse);
    }
    Err(FormError::Gain { output, gain: gain.to_string() })
}
