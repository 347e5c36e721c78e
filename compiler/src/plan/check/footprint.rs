//! What a kernel touches: which bytes of each buffer it reads and writes, from the kernel's description alone. Knows
//! nothing about where buffers are.

use crate::plan::kernel::{
    Access, Attention, Dot, Kernel, Linear, Loop, MatrixLayout, Merge, Packing, Row, RowNorm, RowOp, View,
};
use engraft_ir::{Bindings, Dim, DimError};
use std::ops::Range;

/// The bytes of an f32.
const F32: u64 = 4;

/// Floats in a lane, as `panels.rs` of the runtime documents them.
const LANE: u64 = 16;

/// A set of bytes of a buffer: runs of equal length, repeated along axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    first: u64,
    run: u64,
    /// Extent and stride of each axis, the widest stride first; all larger than the run.
    repeats: Vec<(u64, u64)>,
}

impl Footprint {
    /// The first bytes of a buffer.
    pub(super) fn whole(bytes: u64) -> Self {
        Self { first: 0, run: bytes, repeats: Vec::new() }
    }

    /// The elements at `offset + Σ iₐ strideₐ` for every `iₐ < extentₐ`; exact.
    fn strided(element: u64, offset: u64, axes: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let bytes = |elements: u64| elements.saturating_mul(element);
        let mut axes: Vec<_> = axes.into_iter().map(|(extent, stride)| (extent, bytes(stride))).collect();
        if axes.iter().any(|&(extent, _)| extent == 0) {
            return Self::whole(0);
        }
        axes.retain(|&(extent, stride)| extent > 1 && stride > 0);
        axes.sort_by_key(|&(_, stride)| stride);
        let mut footprint = Self { first: bytes(offset), run: element, repeats: Vec::new() };
        for (extent, stride) in axes {
            // Runs that overlap or touch are one run, while it is the innermost that repeats.
            if footprint.repeats.is_empty() && stride <= footprint.run {
                footprint.run = (extent - 1).saturating_mul(stride).saturating_add(footprint.run);
            } else {
                footprint.repeats.insert(0, (extent, stride));
            }
        }
        footprint
    }

    /// The same set, `bytes` further on.
    pub(super) fn moved(&self, bytes: u64) -> Self {
        Self { first: self.first.saturating_add(bytes), ..self.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.run == 0
    }

    /// From the first byte to after the last.
    pub(super) fn span(&self) -> Range<u64> {
        let reach = |sum: u64, &(extent, stride): &(u64, u64)| {
            sum.saturating_add((extent - 1).saturating_mul(stride))
        };
        self.first..self.repeats.iter().fold(self.first.saturating_add(self.run), reach)
    }

    /// Every run.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let count =
            if self.is_empty() { 0 } else { self.repeats.iter().map(|&(extent, _)| extent).product() };
        (0..count).map(move |number: u64| {
            let place = |(at, rest): (u64, u64), &(extent, stride): &(u64, u64)| {
                (at + rest % extent * stride, rest / extent)
            };
            let (start, _) = self.repeats.iter().rev().fold((self.first, number), place);
            start..start + self.run
        })
    }

    /// Whether two sets of the same memory have a byte in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let touch = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        if self.is_empty() || other.is_empty() || !touch(&self.span(), &other.span()) {
            return false;
        }
        let mut theirs: Vec<_> = other.runs().collect();
        theirs.sort_by_key(|run| run.start);
        // Runs of one set are equally long: of those that begin before the end, the last reaches farthest.
        self.runs().any(|run| {
            let before = theirs.partition_point(|their| their.start < run.end);
            before > 0 && theirs[before - 1].end > run.start
        })
    }
}

/// The bytes of `batch` packed matrices `[out, k]`: of each, the outputs of panels are rounded up to whole lanes, and
/// the inputs of rows to an odd number of them.
pub(super) fn packed_bytes(packing: Packing, batch: u64, out: u64, k: u64) -> u64 {
    let (lanes, other) = match packing {
        Packing::Panels => (out.div_ceil(LANE), k),
        Packing::Rows if k == 0 => (0, out),
        Packing::Rows => (k.div_ceil(LANE) | 1, out),
    };
    let padded = lanes.saturating_mul(LANE);
    [batch, other, F32].into_iter().fold(padded, u64::saturating_mul)
}

/// What one step touches.
pub(super) struct Footprints {
    /// Of each buffer read, in the kernel's order.
    pub(super) reads: Vec<Footprint>,
    /// Of the buffer written.
    pub(super) write: Footprint,
}

/// The symbols, and what dims are with them.
#[derive(Clone, Copy)]
pub(super) struct Extents<'a>(pub(super) &'a Bindings);

impl Extents<'_> {
    pub(super) fn of(self, dim: &Dim) -> Result<u64, DimError> {
        dim.eval(self.0)
    }

    fn product(self, dims: &[&Dim]) -> Result<u64, DimError> {
        dims.iter().try_fold(1_u64, |product, dim| Ok(product.saturating_mul(self.of(dim)?)))
    }

    /// A contiguous tensor of f32.
    fn tensor(self, dims: &[&Dim]) -> Result<Footprint, DimError> {
        Ok(Footprint::whole(self.product(dims)?.saturating_mul(F32)))
    }

    fn packed(self, packing: Packing, batch: &Dim, out: &Dim, k: &Dim) -> Result<Footprint, DimError> {
        let (batch, out, k) = (self.of(batch)?, self.of(out)?, self.of(k)?);
        Ok(Footprint::whole(packed_bytes(packing, batch, out, k)))
    }

    fn matrix(self, batch: &Dim, matrix: &MatrixLayout) -> Result<Footprint, DimError> {
        let (out, k) = (self.of(&matrix.out)?, self.of(&matrix.k)?);
        let axes = [
            (self.of(batch)?, out.saturating_mul(k)),
            (out, self.of(&matrix.out_stride)?),
            (k, self.of(&matrix.k_stride)?),
        ];
        Ok(Footprint::strided(F32, 0, axes))
    }

    fn access(self, body: &Loop, access: &Access) -> Result<Footprint, DimError> {
        let axes = body.space.iter().zip(&access.strides);
        let axes = axes.map(|(extent, stride)| Ok((self.of(extent)?, self.of(stride)?)));
        let axes = axes.collect::<Result<Vec<_>, DimError>>()?;
        Ok(Footprint::strided(body.dtype.bytes() as u64, self.of(&access.offset)?, axes))
    }

    fn linear(self, linear: &Linear) -> Result<Footprints, DimError> {
        let Linear { batch, rows, k, out, .. } = linear;
        let one = Dim::fixed(1);
        let matrices = if linear.batched_weight { batch } else { &one };
        let mut reads =
            vec![self.tensor(&[batch, rows, k])?, self.packed(Packing::Panels, matrices, out, k)?];
        if let Some(rank) = &linear.rank {
            reads.push(self.tensor(&[batch, rows, rank])?);
            reads.push(self.packed(Packing::Panels, &one, out, rank)?);
        }
        for _ in [linear.gain, linear.bias].iter().filter(|is_there| **is_there) {
            reads.push(self.tensor(&[out])?);
        }
        if let Some(epilogue) = &linear.epilogue {
            for access in epilogue.reads.iter().skip(1) {
                reads.push(self.access(epilogue, access)?);
            }
        }
        Ok(Footprints { reads, write: self.tensor(&[batch, rows, out])? })
    }

    fn row(self, row: &Row) -> Result<Footprints, DimError> {
        let Row { outer, n, inner, .. } = row;
        let mut reads = vec![self.tensor(&[outer, n, inner])?];
        for _ in [row.weight, row.bias].iter().filter(|is_there| **is_there) {
            reads.push(self.tensor(&[n])?);
        }
        let write = match row.op {
            RowOp::Reduce(_) => self.tensor(&[outer, inner])?,
            _ => self.tensor(&[outer, n, inner])?,
        };
        Ok(Footprints { reads, write })
    }

    /// Rows of `width` elements.
    fn view(self, batch: &Dim, rows: &Dim, width: u64, view: &View) -> Result<Footprint, DimError> {
        let axes = [
            (self.of(batch)?, self.of(&view.batch_stride)?),
            (self.of(rows)?, self.of(&view.row_stride)?),
            (width, 1),
        ];
        Ok(Footprint::strided(F32, self.of(&view.offset)?, axes))
    }

    fn attention(self, attention: &Attention) -> Result<Footprints, DimError> {
        let Attention { batch, queries, keys, heads, kv_heads, d, e, .. } = attention;
        let mut reads = vec![
            self.view(batch, queries, heads.saturating_mul(*d), &attention.q)?,
            self.view(batch, keys, kv_heads.saturating_mul(*d), &attention.k)?,
            self.view(batch, keys, kv_heads.saturating_mul(*e), &attention.v)?,
        ];
        if let Some(mask) = attention.mask {
            let elements = self.product(&[batch, keys])?;
            reads.push(Footprint::whole(elements.saturating_mul(mask.bytes() as u64)));
        }
        let width = Dim::fixed(heads.saturating_mul(*e));
        Ok(Footprints { reads, write: self.tensor(&[batch, queries, &width])? })
    }

    /// W, A and B, packed.
    fn adapted(self, out: &Dim, k: &Dim, rank: &Dim) -> Result<Vec<Footprint>, DimError> {
        let one = Dim::fixed(1);
        Ok(vec![
            self.packed(Packing::Panels, &one, out, k)?,
            self.packed(Packing::Rows, &one, rank, k)?,
            self.packed(Packing::Panels, &one, out, rank)?,
        ])
    }

    /// What a kernel touches.
    pub(super) fn footprints(self, kernel: &Kernel) -> Result<Footprints, DimError> {
        match kernel {
            Kernel::Pack(pack) => Ok(Footprints {
                reads: vec![self.matrix(&pack.batch, &pack.matrix)?],
                write: self.packed(pack.packing, &pack.batch, &pack.matrix.out, &pack.matrix.k)?,
            }),
            Kernel::Linear(linear) => self.linear(linear),
            Kernel::Dot(Dot { rows, k, out }) => Ok(Footprints {
                reads: vec![self.tensor(&[rows, k])?, self.packed(Packing::Rows, &Dim::fixed(1), out, k)?],
                write: self.tensor(&[rows, out])?,
            }),
            Kernel::RowNorm(norm) => {
                let RowNorm { out, k, rank } = norm;
                Ok(Footprints { reads: self.adapted(out, k, rank)?, write: self.tensor(&[out])? })
            }
            Kernel::Merge(Merge { out, k, rank, gain }) => {
                let mut reads = self.adapted(out, k, rank)?;
                reads.extend(gain.then(|| self.tensor(&[out])).transpose()?);
                Ok(Footprints { reads, write: self.packed(Packing::Panels, &Dim::fixed(1), out, k)? })
            }
            Kernel::Loop(body) => {
                let reads =
                    body.reads.iter().map(|access| self.access(body, access)).collect::<Result<_, _>>()?;
                Ok(Footprints { reads, write: self.access(body, &body.write)? })
            }
            Kernel::Row(row) => self.row(row),
            Kernel::Cast(cast) => {
                let count = self.of(&cast.count)?;
                let read = count.saturating_mul(cast.from.bytes() as u64);
                let reads = vec![Footprint::whole(read)];
                Ok(Footprints { reads, write: Footprint::whole(count.saturating_mul(F32)) })
            }
            Kernel::Attention(attention) => self.attention(attention),
            Kernel::Gather(gather) => {
                let element = gather.dtype.bytes() as u64;
                let bytes = |dims: &[&Dim], element: u64| {
                    Ok::<_, DimError>(Footprint::whole(self.product(dims)?.saturating_mul(element)))
                };
                // Any row of the table may be asked for.
                let table = if gather.from_panels {
                    self.packed(Packing::Panels, &Dim::fixed(1), &gather.rows, &gather.width)?
                } else {
                    bytes(&[&gather.rows, &gather.width], element)?
                };
                let ids = bytes(&[&gather.count], gather.ids.bytes() as u64)?;
                let write = bytes(&[&gather.count, &gather.width], element)?;
                Ok(Footprints { reads: vec![table, ids], write })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Footprint;
    use std::collections::BTreeSet;

    fn bytes(footprint: &Footprint) -> BTreeSet<u64> {
        footprint.runs().flatten().collect()
    }

    /// Against every index spelled out.
    #[test]
    fn strided_sets_are_exact() {
        let strides = [0_u64, 1, 2, 3, 5, 12];
        let mut all = Vec::new();
        for (a, b) in strides.iter().flat_map(|&a| strides.map(|b| (a, b))) {
            for extents in [(1, 1), (3, 1), (2, 4), (4, 2), (0, 3), (3, 3)] {
                let footprint = Footprint::strided(2, 1, [(extents.0, a), (extents.1, b)]);
                let indices = (0..extents.0).flat_map(|i| (0..extents.1).map(move |j| 1 + i * a + j * b));
                let expected: BTreeSet<_> = indices.flat_map(|at| [2 * at, 2 * at + 1]).collect();
                assert_eq!(bytes(&footprint), expected, "extents {extents:?}, strides {a}, {b}");
                if let (Some(first), Some(last)) = (expected.first(), expected.last()) {
                    assert_eq!(footprint.span(), *first..last + 1);
                }
                all.push(footprint);
            }
        }
        for (i, a) in all.iter().enumerate() {
            let b = all[(i * 31) % all.len()].moved(i as u64 % 9);
            assert_eq!(a.meets(&b), !bytes(a).is_disjoint(&bytes(&b)), "{a:?} and {b:?}");
        }
    }
}
