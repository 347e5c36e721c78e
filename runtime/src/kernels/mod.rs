//! The kernels: one table of functions for each instruction set, chosen at run time. What they compute and in which order is
//! written once, in `tile` (products, told what to do by a `block`), `dot` (products with few outputs), `norm` (row norms) and
//! `merge` (merged weights), which take their tiles from `adapted`, `attention`, `layer_norm`, `unary` (elementwise functions,
//! whose formulas are in `exp`, `gate` and `sine`), `stream` (a plain read) and `peak` (arithmetic alone), over [`Lanes`]; an
//! instruction set is an implementation of that trait. Kernels know nothing about batches, threads or frames.
//!
//! Every element is summed in an order that only its k decides, whichever tile or thread computes it. So a row's result
//! depends on nothing but that row, and the kernels that fuse multiply and add agree to the last bit.

#![allow(
    clippy::inline_always,
    reason = "instructions are only used where everything is inlined into a function that has them"
)]

mod adapted;
mod attention;
mod block;
mod dot;
mod exp;
mod gate;
mod layer_norm;
mod merge;
mod norm;
mod peak;
mod portable;
mod sine;
mod stream;
mod tile;
mod unary;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::str::FromStr;

use crate::abi::{LayerNorm, Unary};
use crate::panels::LANE;

pub(crate) use adapted::AdaptedPanel;
pub(crate) use attention::{AttentionBlock, Mask, VECTORS};
pub(crate) use block::{Block, Fetch, Finish};
pub(crate) use dot::DotBlock;
pub(crate) use merge::MergeBlock;
pub(crate) use norm::NormBlock;
pub(crate) use peak::PEAK_STEP;
pub(crate) use stream::STREAM_STEP;
pub(crate) use tile::K_BLOCK;

/// Sixteen floats side by side, in whatever registers an instruction set has for them.
///
/// All methods are `unsafe` for one reason beside their pointers: the CPU must have the instruction set.
pub(crate) trait Lanes: Copy {
    /// Sixteen 64-bit floats.
    type Wide: Copy;
    /// How many sums stay in registers beside what is added to them.
    const ACCUMULATORS: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Loads the first `count <= LANE` floats and zeros; reads nothing beyond them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Stores the first `count <= LANE` floats; writes nothing beyond them.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// `self * by + to`
    unsafe fn mul_add(self, by: Self, to: Self) -> Self;
    unsafe fn mul(self, by: Self) -> Self;
    unsafe fn add(self, to: Self) -> Self;
    /// The smaller of each two floats; `other`'s where one is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger of each two floats; `other`'s where one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn sub(self, what: Self) -> Self;
    /// `self² + to`, of the exact square.
    unsafe fn square_add(self, to: Self) -> Self;
    unsafe fn div(self, by: Self) -> Self;
    /// Each float's bits so many places further left: by 23, and its low bits become an exponent.
    unsafe fn shift_left(self, places: u32) -> Self;
    /// The sum of each two floats' bits as whole numbers: of a float and an exponent, the float times a power of two.
    unsafe fn add_bits(self, other: Self) -> Self;
    /// The same, negated where `by` has the sign of negative numbers.
    unsafe fn flip_sign(self, by: Self) -> Self;
    /// Of each two floats the first where this one has the sign of negative numbers.
    unsafe fn by_sign(self, negative: Self, other: Self) -> Self;
    /// The floats of both in turn, 32 in two lanes: this one's first, `other`'s first, this one's second, and so on.
    unsafe fn interleave(self, other: Self) -> [Self; 2];
    /// The sum of the lane, by halves: eight and eight, then four and four, and so on.
    unsafe fn sum(self) -> f32;
    /// The [sums](Lanes::sum) of four lanes, each added in the same order.
    #[inline(always)]
    unsafe fn sums(lanes: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's instructions.
        lanes.map(|lane| unsafe { lane.sum() })
    }
    /// The same numbers in 64 bits.
    unsafe fn widen(self) -> Self::Wide;
    /// Rounded to 32 bits.
    unsafe fn narrow(wide: Self::Wide) -> Self;
    unsafe fn wide(value: f64) -> Self::Wide;
    /// `wide * by + to`
    unsafe fn wide_mul_add(wide: Self::Wide, by: Self::Wide, to: Self::Wide) -> Self::Wide;
    unsafe fn load_wide(from: &[f64; LANE]) -> Self::Wide;
    unsafe fn store_wide(wide: Self::Wide, to: &mut [f64; LANE]);
    /// Hints that the cache line at `from` is read or written soon; any address will do.
    unsafe fn prefetch(from: *const f32);
    /// Hints that the cache line at `from` is read later: it is fetched into the second-level cache.
    unsafe fn prefetch_far(from: *const f32);
}

/// The kernels of one instruction set.
#[derive(Debug)]
pub struct Kernels {
    set: KernelSet,
    /// Rows of the highest tile of a product.
    pub(crate) tile_rows: usize,
    pub(crate) product: unsafe fn(&Block<'_>),
    pub(crate) dot: unsafe fn(&DotBlock),
    pub(crate) row_norm: unsafe fn(&NormBlock),
    pub(crate) merge: unsafe fn(&MergeBlock),
    pub(crate) attention: unsafe fn(&AttentionBlock),
    pub(crate) layer_norm: unsafe fn(&LayerNorm),
    pub(crate) unary: unsafe fn(&Unary),
    pub(crate) stream: unsafe fn(*const f32, usize) -> f32,
    pub(crate) peak: unsafe fn(usize) -> f32,
}

impl Kernels {
    /// Which set they are.
    pub fn set(&self) -> KernelSet {
        self.set
    }
}

/// The sets of kernels there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// Plain Rust, for any CPU.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
}

impl KernelSet {
    /// Every set, the fastest first.
    pub const ALL: [KernelSet; 3] = [KernelSet::Avx512, KernelSet::Avx2, KernelSet::Portable];

    /// The name by which `ENGRAFT_KERNELS` asks for it.
    pub fn name(self) -> &'static str {
        match self {
            KernelSet::Portable => "portable",
            KernelSet::Avx2 => "avx2",
            KernelSet::Avx512 => "avx512",
        }
    }

    /// Its kernels, if this CPU can run them.
    pub fn kernels(self) -> Option<&'static Kernels> {
        match self {
            KernelSet::Portable => Some(&portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx2 => (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(&avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx512 => is_x86_feature_detected!("avx512f").then_some(&avx512::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Avx2 | KernelSet::Avx512 => None,
        }
    }

    /// The fastest set this CPU can run.
    pub fn best() -> &'static Kernels {
        KernelSet::ALL.into_iter().find_map(KernelSet::kernels).unwrap_or(&portable::KERNELS)
    }
}

impl std::fmt::Display for KernelSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no set of kernels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no kernels called {name:?}: expected portable, avx2 or avx512")]
pub struct UnknownKernels {
    /// What was asked for.
    pub name: String,
}

impl FromStr for KernelSet {
    type Err = UnknownKernels;

    fn from_str(name: &str) -> Result<KernelSet, UnknownKernels> {
        let known = KernelSet::ALL.into_iter().find(|set| set.name() == name);
        known.ok_or_else(|| UnknownKernels { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::KernelSet;

    #[test]
    fn every_set_is_called_by_its_name_and_no_other() {
        for set in KernelSet::ALL {
            assert_eq!(set.name().parse(), Ok(set));
        }
        let message = "sse9".parse::<KernelSet>().unwrap_err().to_string();
        assert_eq!(message, "there are no kernels called \"sse9\": expected portable, avx2 or avx512");
    }

    #[test]
    fn portable_kernels_are_always_there() {
        assert_eq!(KernelSet::Portable.kernels().unwrap().set(), KernelSet::Portable);
    }
}
