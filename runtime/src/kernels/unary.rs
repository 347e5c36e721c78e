//! A function of each of many floats, in rows, written over them or elsewhere. What comes out depends on the float alone and not on
//! where it stands.

use super::Lanes;
use super::exp::Exp;
use super::gate::{Gelu, GeluTanh, Sigmoid, Silu, Tanh};
use super::sine::{Cos, Sin};
use crate::abi::{Function, Unary};
use crate::panels::LANE;

/// A function of each float of a lane. A type, so that it is sure to be inlined into the loop over the lanes.
pub(super) trait Elementwise {
    /// # Safety
    /// The CPU has the instructions of `L`.
    unsafe fn of<L: Lanes>(x: L) -> L;
}

/// Computes a function.
///
/// # Safety
/// The CPU has the instructions of `L`; the rows' floats can be read from x and written to y, which are the same or apart.
#[inline(always)]
pub(super) unsafe fn unary<L: Lanes>(unary: &Unary) {
    // SAFETY: the caller's floats and instructions.
    unsafe {
        match unary.function {
            Function::Exp => map::<L, Exp>(unary),
            Function::Tanh => map::<L, Tanh>(unary),
            Function::Sigmoid => map::<L, Sigmoid>(unary),
            Function::Silu => map::<L, Silu>(unary),
            Function::Gelu => map::<L, Gelu>(unary),
            Function::GeluTanh => map::<L, GeluTanh>(unary),
            Function::Sin => map::<L, Sin>(unary),
            Function::Cos => map::<L, Cos>(unary),
        }
    }
}

/// Each row as a call of its own.
pub(super) fn rows(unary: &Unary) -> impl Iterator<Item = Unary> {
    (0..unary.rows as i64).map(|row| Unary {
        rows: 1,
        x: unary.x.wrapping_offset((row * unary.x_stride) as isize),
        y: unary.y.wrapping_offset((row * unary.y_stride) as isize),
        ..*unary
    })
}

#[inline(always)]
unsafe fn map<L: Lanes, F: Elementwise>(unary: &Unary) {
    let count = unary.count as usize;
    for row in 0..unary.rows as isize {
        let mut done = 0;
        // SAFETY: these are the rows, and each lane lies below `count`.
        unsafe {
            let x = unary.x.offset(row * unary.x_stride as isize);
            let y = unary.y.offset(row * unary.y_stride as isize);
            while done + LANE <= count {
                F::of(L::load(x.add(done))).store(y.add(done));
                done += LANE;
            }
            if done < count {
                F::of(L::load_first(x.add(done), count - done)).store_first(y.add(done), count - done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::KernelSet;
    use crate::abi::{Function, Unary};
    use crate::panels::LANE;

    /// Of every magnitude and sign, of the ends of what floats are, and of what is no number.
    fn arguments() -> Vec<f32> {
        let edges = [0_u32, 1, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000];
        let edges = edges.into_iter().flat_map(|bits| [bits, bits | 0x8000_0000]);
        edges.chain((0..=u32::MAX).step_by(70_001)).map(f32::from_bits).collect()
    }

    fn one_row(function: Function, count: usize, x: *const f32, y: *mut f32) -> Unary {
        Unary { function, rows: 1, count: count as u64, x, x_stride: 0, y, y_stride: 0 }
    }

    /// The bits of a function of each, or none for what is no number.
    fn of(set: KernelSet, function: Function, x: &[f32]) -> Option<Vec<Option<u32>>> {
        let kernels = set.kernels()?;
        let mut y = x.to_vec();
        // SAFETY: the CPU can run this set, and both have as many floats.
        unsafe { (kernels.unary)(&one_row(function, x.len(), x.as_ptr(), y.as_mut_ptr())) };
        Some(y.into_iter().map(|y| (!y.is_nan()).then_some(y.to_bits())).collect())
    }

    #[test]
    fn sets_that_fuse_agree_to_the_last_bit() {
        let x = arguments();
        for function in Function::ALL {
            let sets = [KernelSet::Avx2, KernelSet::Avx512].map(|set| of(set, function, &x));
            if let [Some(avx2), Some(avx512)] = sets {
                let differs = x.iter().zip(avx2.iter().zip(&avx512)).find(|(_, (a, b))| a != b);
                assert_eq!(differs, None, "{function:?}");
            }
        }
    }

    /// Whatever stands beside a number, before and after it, what comes of it is the same.
    #[test]
    fn a_number_by_itself_gives_the_same_bits() {
        let x: Vec<_> = arguments().into_iter().step_by(37).collect();
        for (set, function) in KernelSet::ALL.into_iter().flat_map(|s| Function::ALL.map(|f| (s, f))) {
            let Some(together) = of(set, function, &x) else { continue };
            for (&x, y) in x.iter().zip(&together) {
                assert_eq!(of(set, function, &[x]).unwrap(), [*y], "{set} {function:?}({x:e})");
            }
        }
    }

    #[test]
    fn it_works_in_place_and_writes_nothing_beyond() {
        let x: Vec<_> = (0..3 * LANE).map(|i| i as f32 - 20.5).collect();
        for (set, function) in KernelSet::ALL.into_iter().flat_map(|s| Function::ALL.map(|f| (s, f))) {
            let (Some(kernels), Some(expected)) = (set.kernels(), of(set, function, &x)) else { continue };
            for count in 0..=x.len() {
                let mut floats = x.clone();
                let at = floats.as_mut_ptr();
                // SAFETY: the CPU can run this set, and there are `count` floats.
                unsafe { (kernels.unary)(&one_row(function, count, at, at)) };
                let (ours, rest) = floats.split_at(count);
                let ours: Vec<_> = ours.iter().map(|y| Some(y.to_bits())).collect();
                assert_eq!(ours, expected[..count], "{set} {function:?}");
                assert_eq!(rest, &x[count..], "{set} {function:?}");
            }
        }
    }

    /// Rows that are read and written at strides of their own, and what lies between them stays.
    #[test]
    fn rows_lie_apart() {
        const ROWS: usize = 4;
        let x: Vec<_> = (0..ROWS * 50).map(|i| i as f32 / 16.0 - 5.5).collect();
        for (set, count) in
            KernelSet::ALL.into_iter().flat_map(|set| [0, 1, 16, 41].map(|count| (set, count)))
        {
            let (Some(kernels), Some(expected)) = (set.kernels(), of(set, Function::Gelu, &x)) else {
                continue;
            };
            let mut y = vec![9.0_f32; ROWS * 60];
            let (rows, x_stride, y_stride) = (ROWS as u64, 50, 60);
            let (from, to) = (x.as_ptr(), y.as_mut_ptr());
            let call = Unary {
                function: Function::Gelu,
                rows,
                count: count as u64,
                x: from,
                x_stride,
                y: to,
                y_stride,
            };
            // SAFETY: the CPU can run this set, and the rows lie in both.
            unsafe { (kernels.unary)(&call) };
            for (y, expected) in y.chunks(60).zip(expected.chunks(50)) {
                let (ours, rest) = y.split_at(count);
                let ours: Vec<_> = ours.iter().map(|y| Some(y.to_bits())).collect();
                assert_eq!(ours, expected[..count], "{set}");
                assert!(rest.iter().all(|&y| y == 9.0), "{set}");
            }
        }
    }
}
