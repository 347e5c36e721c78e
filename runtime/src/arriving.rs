//! The weights that a load stage is given: how they are packed, and let go of once they are. So beside what is kept no
//! more than one weight is in memory, and of one that is stored in another form than `f32` no more than a piece.
//! Knows nothing about programs.

use std::sync::Arc;

use crate::abi::Pack;
use crate::memory::Buffer;
use crate::panels::{self, PANEL};
use crate::stored::Stored;
use crate::tensor::Tensor;
use crate::workers::Workers;

/// Floats of a stored weight that are made at a time, if so many rows make a panel.
const PIECE: usize = 1 << 18;

/// The weights that a load stage is given.
#[derive(Debug)]
pub struct Arriving {
    tensors: Vec<Arc<Tensor>>,
    /// Room for the largest piece.
    scratch: Buffer,
}

impl Arriving {
    /// No weights.
    pub(crate) const NONE: Arriving = Arriving { tensors: Vec::new(), scratch: Buffer::EMPTY };

    /// These weights; the error is how many bytes of memory there weren't.
    pub(crate) fn new(tensors: Vec<Arc<Tensor>>) -> Result<Arriving, usize> {
        let pieces = tensors.iter().filter_map(|tensor| tensor.as_stored()).map(piece);
        let bytes = pieces.max().unwrap_or(0).saturating_mul(size_of::<f32>());
        let scratch = Buffer::zeroed(bytes).ok_or(bytes)?;
        Ok(Arriving { tensors, scratch })
    }

    /// Packs matrices. Where they are one of these weights, its pages are let go of, if it lies in a mapped file.
    ///
    /// # Safety
    /// As for [`panels::pack`], but that W may be the [handle](Tensor::handle) of one of the weights instead of the
    /// address of floats; its rows are then those of the matrices, or their columns. Nobody else packs these weights
    /// meanwhile.
    pub(crate) unsafe fn pack(&self, workers: &Workers, pack: &Pack) {
        let weight = self.tensors.iter().find(|tensor| tensor.handle().cast_const() == pack.w.cast());
        match weight.and_then(|tensor| tensor.as_stored()) {
            // SAFETY: as the caller's; the scratch has room for a piece, and nobody else uses it meanwhile.
            Some(stored) => unsafe { self.pack_stored(workers, pack, stored) },
            // SAFETY: as the caller's.
            None => unsafe { panels::pack(workers, pack) },
        }
        if let Some(tensor) = weight {
            tensor.release();
        }
    }

    /// Packs matrices whose floats are made a piece at a time: some rows of a matrix, or some of its columns, whichever
    /// are rows of the tensor.
    ///
    /// # Safety
    /// As for [`pack`](Self::pack).
    unsafe fn pack_stored(&self, workers: &Workers, pack: &Pack, stored: &Stored) {
        let (out, k, row) = (pack.out as usize, pack.k as usize, stored.row());
        if out == 0 || k == 0 {
            return;
        }
        let by_output = pack.k_stride == 1 && row == k;
        debug_assert!(by_output || (pack.out_stride == 1 && row == out));
        // Pieces are found by their elements' numbers, so the matrices lie one right after the other.
        debug_assert!(pack.batch <= 1 || pack.w_batch_stride as usize == out * k);
        let lines = if by_output { out } else { k };
        let at_once = match piece(stored) / row {
            some if some < lines => some / PANEL * PANEL,
            _ => lines,
        };
        for item in 0..pack.batch as usize {
            for begin in (0..lines).step_by(at_once) {
                let end = lines.min(begin + at_once);
                let first = (item * lines + begin) * row;
                // SAFETY: the scratch has room for a piece of each of the weights, and is nobody else's meanwhile.
                let floats =
                    unsafe { std::slice::from_raw_parts_mut(self.scratch.floats(), (end - begin) * row) };
                stored.read(workers, first, floats);
                // What is read of W lies in the piece: element `first` of the weight is its first.
                let w = self.scratch.floats().wrapping_sub(first);
                let (outputs, inputs) = if by_output { (begin..end, 0..k) } else { (0..out, begin..end) };
                // SAFETY: the piece has these outputs and inputs, and the caller vouches for the rest.
                unsafe { panels::pack_piece(workers, &Pack { w, ..*pack }, item, outputs, inputs) };
            }
        }
    }
}

/// The floats of a weight that are made at a time: as many rows as fit, those of a panel at least, and no more than there are.
fn piece(stored: &Stored) -> usize {
    PIECE.max(stored.row().saturating_mul(PANEL)).min(stored.len())
}

#[cfg(test)]
mod tests {
    use super::{Arc, Arriving, PIECE, Tensor, Workers, panels};
    use crate::abi::{Pack, Packing};
    use crate::memory::Buffer;
    use crate::stored::Source;
    use std::num::NonZeroUsize;

    struct Numbers {
        row: usize,
    }

    fn number(i: usize) -> f32 {
        (i as f32).sin()
    }

    impl Source for Numbers {
        fn read(&self, first: usize, to: &mut [f32]) {
            assert!(first.is_multiple_of(self.row) && to.len().is_multiple_of(self.row), "no whole rows");
            assert!(to.len() <= PIECE, "more than a piece");
            to.iter_mut().enumerate().for_each(|(i, to)| *to = number(first + i));
        }
    }

    fn packed(pack: &Pack, run: impl FnOnce(&Pack)) -> Vec<f32> {
        let floats = pack.packing.len(pack.out as usize, pack.k as usize).unwrap() * pack.batch as usize;
        let memory = Buffer::zeroed(4 * floats).unwrap();
        // SAFETY: the buffer has these floats, and nobody else.
        let packed = unsafe { std::slice::from_raw_parts_mut(memory.floats(), floats) };
        packed.fill(f32::NAN);
        run(&Pack { packed: packed.as_mut_ptr(), ..*pack });
        assert!(packed.iter().all(|x| !x.is_nan()), "every float is packed, or padding");
        packed.to_vec()
    }

    /// Piece by piece as all at once: matrices of one piece and of several, as their rows and as their columns.
    #[test]
    fn stored_weights_are_packed_like_others() {
        let workers = Workers::new(NonZeroUsize::new(2).unwrap()).unwrap();
        let (large, sizes) = (PIECE / 100 * 2 + 31, [(1, 1), (1, 7), (7, 1), (50, 3), (0, 4), (4, 0)]);
        for (out, k) in sizes.into_iter().chain([(large, 100), (100, large)]) {
            for (batch, by_output, packing) in [
                (1, true, Packing::Panels),
                (2, false, Packing::Panels),
                (1, true, Packing::Rows),
                (2, false, Packing::Rows),
            ] {
                let row = if by_output { k } else { out };
                let floats: Vec<f32> = (0..batch * out * k).map(number).collect();
                let tensor =
                    Arc::new(Tensor::stored(&[batch * out * k / row.max(1), row], Numbers { row }).unwrap());
                let handle = tensor.handle();
                let pack = Pack {
                    batch: batch as u64,
                    out: out as u64,
                    k: k as u64,
                    w: floats.as_ptr(),
                    w_batch_stride: (out * k) as u64,
                    out_stride: if by_output { k as u64 } else { 1 },
                    k_stride: if by_output { 1 } else { out as u64 },
                    scale: 0.5,
                    packing,
                    packed: std::ptr::null_mut(),
                };
                let arriving = Arriving::new(vec![tensor]).unwrap();
                // SAFETY: the floats and what is packed into have these extents.
                let expected = packed(&pack, |pack| unsafe { panels::pack(&workers, pack) });
                // SAFETY: as above; the handle is the tensor's.
                let found = packed(&Pack { w: handle.cast(), ..pack }, |pack| unsafe {
                    arriving.pack(&workers, pack);
                });
                assert!(
                    found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())),
                    "{batch} x {out} x {k}, by output: {by_output}, {packing}"
                );
            }
        }
    }
}
