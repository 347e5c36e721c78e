//! The normal form of what an adapter does to one layer, `y = gain ∘ (x Wᵀ + (x Aᵀ) Bᵀ) + bias + shift`, each part
//! optional. Knows nothing about names and calls, nor how several updates become one (`joint.rs`). A form may be merged: a
//! weight of its own then stands for W, A, B and the gain.

use std::sync::Arc;

use super::joint::Joint;
use crate::abi::{Pack, Packing};
use crate::kernels::{AdaptedPanel, Kernels, MergeBlock, NormBlock};
use crate::memory::Buffer;
use crate::panels::{self, PANEL, Panel};
use crate::tensor::{DType, Tensor};

/// One update of a layer with weight `[out, in]`: `LoRA`, or `DoRA` if it has a magnitude.
#[derive(Clone, Debug)]
pub struct Update {
    /// `[r, in]`, f32.
    pub a: Arc<Tensor>,
    /// `[out, r]`, f32.
    pub b: Arc<Tensor>,
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA; times a weight, where updates are combined.
    pub scale: f64,
    /// `DoRA`'s m, `[out]`: the gain is `m / ‖W + s B A‖₂`, a norm for each output (Liu et al., 2024, eq. 5).
    pub magnitude: Option<Arc<Tensor>>,
    /// A bias of B, `[out]`, which s multiplies too.
    pub bias_of_b: Option<Arc<Tensor>>,
}

/// What an adapter does to one layer.
#[derive(Clone, Debug, Default)]
pub struct LayerWeights {
    /// Its updates, in the order in which they apply.
    pub updates: Vec<Update>,
    /// `[out]`, in the place of the layer's own bias.
    pub bias: Option<Arc<Tensor>>,
    /// Whether a weight of the adapter's own is made of W and the updates, so that a call computes nothing beside it and reads
    /// it in the place of W. It takes as many bytes as W.
    pub merge: bool,
}

impl LayerWeights {
    /// The rank of all updates together.
    pub fn rank(&self) -> usize {
        self.updates.iter().map(Update::rank).sum()
    }
}

/// Why an adapter doesn't fit a layer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FormError {
    /// A tensor of another shape.
    #[error("its {part} is {found:?}, expected {expected:?}")]
    Shape {
        /// Which tensor.
        part: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A tensor of other elements.
    #[error("its {part} is of {found}, expected f32")]
    DType {
        /// Which tensor.
        part: &'static str,
        /// Its elements.
        found: DType,
    },
    /// A scale that f32 cannot hold: infinite, or 0 where it is not.
    #[error("its scale is {found:e}, expected a number that f32 holds")]
    Scale {
        /// The scale.
        found: f64,
    },
    /// An update after a gain that cannot be undone.
    #[error(
        "an update follows a gain of {gain} at output {output}, which leaves nothing of the layer that the update could be \
         added to as a product of low rank"
    )]
    Gain {
        /// The output.
        output: usize,
        /// The gain.
        gain: String,
    },
    /// A magnitude or a norm that is not finite, or that makes a gain that is not.
    #[error(
        "DoRA's magnitude is {magnitude:?} and the norm of W + s B A is {norm:?} at output {output}, expected finite numbers \
         whose quotient, times the gains of updates before, is finite too; it is {gain:?}"
    )]
    NotFinite {
        /// The output.
        output: usize,
        /// The last update's magnitude.
        magnitude: f32,
        /// The norm of its W + s B A.
        norm: f32,
        /// The gain of all updates so far.
        gain: f32,
    },
    /// The layer has no bias that could be replaced.
    #[error("it replaces the bias, but the layer has none")]
    NoBias,
    /// Memory does not suffice.
    #[error("there is no memory for {bytes} bytes")]
    OutOfMemory {
        /// How many.
        bytes: u64,
    },
}

/// A layer that adapters are put on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) out: usize,
    pub(crate) k: usize,
    /// Panels of W, `[out, k]`.
    pub(crate) weight: *const f32,
    pub(crate) has_bias: bool,
}

/// The normal form. Buffers that are empty stand for what is absent.
#[derive(Debug)]
pub(crate) struct Form {
    /// Of all updates together; 0 if they are merged.
    pub(crate) rank: usize,
    /// Panels of the merged weight `[out, k]`, in the place of the layer's.
    pub(crate) weight: Option<Buffer>,
    /// A `[rank, k]`, packed as rows.
    pub(crate) a: Buffer,
    /// B `[out, rank]` with its scale, and the gain.
    pub(crate) b: FactorPanels,
    /// `[out]`, in the place of the layer's.
    pub(crate) bias: Option<Buffer>,
    /// `[out]`, added to the bias.
    pub(crate) shift: Option<Buffer>,
}

impl Form {
    /// # Safety
    /// `layer.weight` points to panels of its weight; `kernels` are ones that this CPU can run.
    pub(crate) unsafe fn new(
        layer: Layer,
        weights: &LayerWeights,
        kernels: &Kernels,
    ) -> Result<Form, FormError> {
        let LayerWeights { updates, bias, merge } = weights;
        for update in updates {
            check(layer, update)?;
        }
        let has_gain = updates.iter().any(|update| update.magnitude.is_some());
        let mut joint = Joint::new(layer, updates.iter().map(Update::rank).sum(), has_gain)?;
        for update in updates {
            // SAFETY: the caller's panels and kernels.
            unsafe { joint.then(update, kernels)? };
        }
        let bias = bias.as_ref().map(|bias| {
            check_tensor("bias", bias, &[layer.out])?;
            if layer.has_bias { copy(values(bias)) } else { Err(FormError::NoBias) }
        });
        let (Joint { rank, a, b, panels, gain, shift, .. }, bias) = (joint, bias.transpose()?);
        let mut b = match panels {
            Some(panels) => panels,
            None => FactorPanels::new(layer.out, (&b, rank), 1.0, has_gain)?,
        };
        let changes_weight = rank > 0 || gain.is_some();
        if let Some(gain) = &gain {
            b.set_gain(gain);
        }
        let shift = shift.map(|shift| copy(&shift)).transpose()?;
        let form = Form { rank, weight: None, a, b, bias, shift };
        // A bias alone leaves the weight as it is.
        // SAFETY: the caller's panels and kernels.
        if *merge && changes_weight { unsafe { form.merged(layer, kernels) } } else { Ok(form) }
    }

    /// The same with a weight of its own, which takes in A, B and the gain.
    ///
    /// # Safety
    /// As for [`Form::new`].
    unsafe fn merged(self, layer: Layer, kernels: &Kernels) -> Result<Form, FormError> {
        let weight = floats(Packing::Panels.len(layer.out, layer.k))?;
        for panel in all_panels(layer.out) {
            // SAFETY: the panel is one of the layer's, of B's and of the new weight's.
            unsafe {
                (kernels.merge)(&MergeBlock {
                    panel: adapted(layer, (self.a.floats(), self.rank), &self.b, panel),
                    gain: if self.b.has_gain { self.b.panel(panel) } else { std::ptr::null() },
                    merged: weight.floats().add(panel.first * layer.k),
                });
            }
        }
        let Form { bias, shift, .. } = self;
        let (a, b) = (Buffer::EMPTY, FactorPanels::new(layer.out, (&[], 0), 1.0, false)?);
        Ok(Form { rank: 0, weight: Some(weight), a, b, bias, shift })
    }

    /// The bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        let vectors = [&self.weight, &self.bias, &self.shift].into_iter().flatten();
        self.a.bytes() + self.b.panels.bytes() + vectors.map(Buffer::bytes).sum::<usize>()
    }
}

/// B `[out, rank]` in panels, each of which begins with the gain of its outputs, if there is one: what finishes a row lies
/// in one piece for each panel of outputs, and is fetched at once.
#[derive(Debug)]
pub(crate) struct FactorPanels {
    out: usize,
    rank: usize,
    has_gain: bool,
    panels: Buffer,
}

impl FactorPanels {
    /// `scale` times B, which has as many elements as its extents say. The gain is zero until it is set.
    pub(super) fn new(
        out: usize,
        (b, rank): (&[f32], usize),
        scale: f32,
        has_gain: bool,
    ) -> Result<Self, FormError> {
        let panels = floats(Packing::Panels.len(out, rank + usize::from(has_gain)))?;
        let panels = FactorPanels { out, rank, has_gain, panels };
        for panel in all_panels(out) {
            let b = &b[panel.first * rank..(panel.first + panel.columns) * rank];
            // SAFETY: the panel has room for the gain's row and for these outputs of B.
            unsafe {
                let to = panels.panel(panel).add(usize::from(has_gain) * panel.width);
                pack(Packing::Panels, (panel.columns, rank), b, scale, to);
            }
        }
        Ok(panels)
    }

    fn set_gain(&mut self, gain: &[f32]) {
        for panel in all_panels(self.out) {
            let gain = &gain[panel.first..panel.first + panel.columns];
            // SAFETY: the panel begins with a row for the gain.
            unsafe { std::ptr::copy_nonoverlapping(gain.as_ptr(), self.panel(panel), gain.len()) };
        }
    }

    /// Rows of each panel, of which the last are those of B.
    pub(crate) fn rows(&self) -> usize {
        self.rank + usize::from(self.has_gain)
    }

    pub(crate) fn panels(&self) -> *const f32 {
        self.panels.floats()
    }

    /// The gain of the first panel, or null.
    pub(crate) fn gain(&self) -> *const f32 {
        if self.has_gain { self.panels() } else { std::ptr::null() }
    }

    fn panel(&self, panel: Panel) -> *mut f32 {
        self.panels.floats().wrapping_add(panel.first * self.rows())
    }

    /// Where a panel's B begins.
    fn b(&self, panel: Panel) -> *const f32 {
        self.panel(panel).wrapping_add(usize::from(self.has_gain) * panel.width)
    }
}

fn all_panels(out: usize) -> impl Iterator<Item = Panel> {
    (0..out.div_ceil(PANEL)).map(move |index| Panel::of(out, index))
}

impl Update {
    pub(super) fn rank(&self) -> usize {
        self.a.shape().first().copied().unwrap_or(0)
    }
}

fn check(layer: Layer, update: &Update) -> Result<(), FormError> {
    let rank = update.rank();
    check_tensor("A", &update.a, &[rank, layer.k])?;
    check_tensor("B", &update.b, &[layer.out, rank])?;
    let vectors = [("magnitude", &update.magnitude), ("bias of B", &update.bias_of_b)];
    for (part, vector) in vectors.into_iter().filter_map(|(part, vector)| Some((part, vector.as_ref()?))) {
        check_tensor(part, vector, &[layer.out])?;
    }
    let single = update.scale as f32;
    if single.is_finite() && (single != 0.0 || update.scale == 0.0) {
        return Ok(());
    }
    Err(FormError::Scale { found: update.scale })
}

fn check_tensor(part: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<(), FormError> {
    if tensor.dtype() != DType::F32 {
        return Err(FormError::DType { part, found: tensor.dtype() });
    }
    if tensor.shape() != expected {
        let (found, expected) = (tensor.shape().to_vec(), expected.to_vec());
        return Err(FormError::Shape { part, found, expected });
    }
    // Where floats are still to be made, they are made here: later nothing can be refused any more.
    let out_of_memory = |_| FormError::OutOfMemory { bytes: tensor.len() as u64 * size_of::<f32>() as u64 };
    tensor.as_f32().map(|_| ()).map_err(out_of_memory)
}

/// The elements of a tensor that has been checked.
pub(super) fn values(tensor: &Tensor) -> &[f32] {
    tensor.as_f32().expect("a tensor that has been checked has its floats")
}

/// Memory for so many floats.
pub(super) fn floats(count: Option<usize>) -> Result<Buffer, FormError> {
    let bytes = count.and_then(|count| count.checked_mul(size_of::<f32>())).unwrap_or(usize::MAX);
    Buffer::zeroed(bytes).ok_or(FormError::OutOfMemory { bytes: bytes as u64 })
}

fn copy(vector: &[f32]) -> Result<Buffer, FormError> {
    let buffer = floats(Some(vector.len()))?;
    // SAFETY: the buffer has as many floats.
    unsafe { std::ptr::copy_nonoverlapping(vector.as_ptr(), buffer.floats(), vector.len()) };
    Ok(buffer)
}

/// Packs `scale` times a row-major matrix.
///
/// # Safety
/// `packed` has room for the packed matrix, and `matrix` as many elements as its extents say.
pub(super) unsafe fn pack(
    packing: Packing,
    (out, k): (usize, usize),
    matrix: &[f32],
    scale: f32,
    packed: *mut f32,
) {
    let pack = Pack {
        batch: 1,
        out: out as u64,
        k: k as u64,
        w: matrix.as_ptr(),
        w_batch_stride: 0,
        out_stride: k as u64,
        k_stride: 1,
        scale,
        packing,
        packed,
    };
    // SAFETY: the caller's memory.
    unsafe { panels::pack_here(&pack) };
}

/// `‖W + s B A‖₂` of each output.
///
/// # Safety
/// The layer's panels; `a` points to `[rank, k]` packed as rows, and `b` has `s B`; `kernels` are ones that this CPU can
/// run.
pub(super) unsafe fn norms(
    layer: Layer,
    (a, rank): (*const f32, usize),
    b: &FactorPanels,
    kernels: &Kernels,
) -> Vec<f32> {
    let mut norms = vec![0.0; layer.out];
    for panel in all_panels(layer.out) {
        // SAFETY: the panel is one of the layer's and of B's, and `norms` has room for its outputs.
        unsafe {
            let n = norms.as_mut_ptr().add(panel.first);
            (kernels.row_norm)(&NormBlock { panel: adapted(layer, (a, rank), b, panel), n });
        }
    }
    norms
}

/// A panel of `W + s B A`.
///
/// # Safety
/// The layer's panels, of which it is one, and A and B as for [`norms`].
unsafe fn adapted(
    layer: Layer,
    (a, rank): (*const f32, usize),
    b: &FactorPanels,
    panel: Panel,
) -> AdaptedPanel {
    AdaptedPanel {
        k: layer.k,
        rank,
        width: panel.width,
        columns: panel.columns,
        // SAFETY: the panel is one of the layer's.
        w: unsafe { layer.weight.add(panel.first * layer.k) },
        a,
        a_stride: panels::row_stride(layer.k),
        b: b.b(panel),
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, FormError, Layer, Tensor, Update, check, check_tensor, values};
    use crate::stored::Source;

    struct Ones;

    impl Source for Ones {
        fn read(&self, _: usize, to: &mut [f32]) {
            to.fill(1.0);
        }
    }

    fn ones(shape: &[usize]) -> Arc<Tensor> {
        Arc::new(Tensor::stored(shape, Ones).unwrap())
    }

    /// Floats that are still to be made, more than any machine has memory for.
    #[test]
    fn floats_that_cannot_be_made_are_an_error() {
        const MANY: usize = 1 << 60;
        let layer = |out, k| Layer { out, k, weight: std::ptr::null(), has_bias: true };
        let update = |out, k| Update {
            a: ones(&[1, k]),
            b: ones(&[out, 1]),
            scale: 1.0,
            magnitude: Some(ones(&[out])),
            bias_of_b: None,
        };
        let refused = Err(FormError::OutOfMemory { bytes: 4 * MANY as u64 });
        assert_eq!(check(layer(1, MANY), &update(1, MANY)), refused, "A");
        assert_eq!(check(layer(MANY, 1), &update(MANY, 1)), refused, "B");
        assert_eq!(check_tensor("bias", &ones(&[MANY]), &[MANY]), refused);

        let update = update(2, 3);
        assert_eq!(check(layer(2, 3), &update), Ok(()));
        assert_eq!((values(&update.a), values(&update.b)), ([1.0; 3].as_slice(), [1.0; 2].as_slice()));
    }
}
