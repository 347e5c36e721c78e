//! The formats in which GGUF stores elements, and what they mean as `f32`. Knows nothing about files.
//!
//! A row is a sequence of blocks. In each, small integers `q` share scales: the names below are those of ggml's
//! `ggml-common.h` (`d`, `m`, `dmin`, `scales`, `qs`, `qh`), and each formula is that of the function
//! `dequantize_row_*` in ggml's `ggml-quants.c`, rounded to `f32` after each operation as there.

use half::{bf16, f16};

/// A format: how many elements a block has, in how many bytes.
pub(super) struct Format {
    /// As ggml calls it.
    pub name: &'static str,
    /// Its number in files (`ggml_type`).
    pub id: u32,
    /// Elements of a block.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// The elements of one block.
    pub decode: fn(&[u8], &mut [f32]),
}

const fn format(
    name: &'static str,
    id: u32,
    (elements, bytes): (usize, usize),
    decode: fn(&[u8], &mut [f32]),
) -> Format {
    Format { name, id, elements, bytes, decode }
}

/// The formats that are read.
pub(super) static FORMATS: [Format; 11] = [
    format("F32", F32, (1, 4), f32_block),
    format("F16", 1, (1, 2), f16_block),
    format("Q4_0", 2, (32, 18), q4_0),
    format("Q4_1", 3, (32, 20), q4_1),
    format("Q5_0", 6, (32, 22), q5_0),
    format("Q5_1", 7, (32, 24), q5_1),
    format("Q8_0", 8, (32, 34), q8_0),
    format("Q4_K", 12, (256, 144), q4_k),
    format("Q5_K", 13, (256, 176), q5_k),
    format("Q6_K", 14, (256, 210), q6_k),
    format("BF16", 30, (1, 2), bf16_block),
];

/// The number of the format whose elements are read where they lie.
pub(super) const F32: u32 = 0;

/// The formats that have a name and are not read.
const OTHERS: [(u32, &str); 24] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The format of this number, or what to call it.
pub(super) fn by_id(id: u32) -> Result<&'static Format, String> {
    FORMATS.iter().find(|format| format.id == id).ok_or_else(|| {
        let named = OTHERS.iter().find(|(other, _)| *other == id);
        named.map_or_else(|| format!("of the unknown type {id}"), |(_, name)| (*name).to_owned())
    })
}

/// The names of the formats that are read.
pub(super) fn names() -> String {
    FORMATS.each_ref().map(|format| format.name).join(", ")
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn f32_block(block: &[u8], y: &mut [f32]) {
    y[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_block(block: &[u8], y: &mut [f32]) {
    y[0] = half_at(block, 0);
}

fn bf16_block(block: &[u8], y: &mut [f32]) {
    y[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// The two halves of each byte: the low ones are the first half of the block, the high ones the second.
fn nibble(qs: &[u8], i: usize) -> u8 {
    let half = qs.len();
    if i < half { qs[i] & 15 } else { qs[i - half] >> 4 }
}

/// `d: f16, qs: [u8; 16]`; y = d (q - 8).
fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (f32::from(nibble(&block[2..18], i)) - 8.0);
    }
}

/// `d, m: f16, qs: [u8; 16]`; y = d q + m.
fn q4_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * f32::from(nibble(&block[4..20], i)) + m;
    }
}

/// Four bits and, from `qh: u32`, the fifth.
fn five_bits(qh: &[u8], qs: &[u8], i: usize) -> f32 {
    f32::from(nibble(qs, i) | (qh[i / 8] >> (i % 8) & 1) << 4)
}

/// `d: f16, qh: u32, qs: [u8; 16]`; y = d (q - 16).
fn q5_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (five_bits(&block[2..6], &block[6..22], i) - 16.0);
    }
}

/// `d, m: f16, qh: u32, qs: [u8; 16]`; y = d q + m.
fn q5_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * five_bits(&block[4..8], &block[8..24], i) + m;
    }
}

/// `d: f16, qs: [i8; 32]`; y = d q.
fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (y, &q) in y.iter_mut().zip(&block[2..34]) {
        *y = d * f32::from(q.cast_signed());
    }
}

/// The scale and the minimum of a K block's group of 32, six bits each, as `get_scale_min_k4` finds them: those of the
/// first four groups lie in a byte's low bits, those of the others in four bits of one byte and the high bits of another.
fn scale_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        (
            (scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4,
            (scales[group + 4] >> 4) | (scales[group] >> 6) << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

/// `d, dmin: f16, scales: [u8; 12], qs: [u8; 128]`; y = (d scale) q - (dmin min), a scale and a minimum for 32 elements.
fn q4_k(block: &[u8], y: &mut [f32]) {
    let (d, dmin, qs) = (half_at(block, 0), half_at(block, 2), &block[16..144]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        for (i, y) in y.iter_mut().enumerate() {
            let q = qs[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            *y = scale * f32::from(q) - min;
        }
    }
}

/// `d, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128]`; as `Q4_K` with a fifth bit, that of group g in bit g.
fn q5_k(block: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (qh, qs) = (&block[16..48], &block[48..176]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        for (i, y) in y.iter_mut().enumerate() {
            let low = qs[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            let q = low | (qh[i] >> group & 1) << 4;
            *y = scale * f32::from(q) - min;
        }
    }
}

/// `ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16`; y = (d scale) (q - 32), a scale for 16 elements. In each
/// half of the block, group g of 32 has its low bits in half a byte of `ql` and two high bits in a quarter of `qh`.
fn q6_k(block: &[u8], y: &mut [f32]) {
    let (ql, qh, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, group, within) = (i / 128, i / 32 % 4, i % 32);
        let low = ql[half * 64 + group % 2 * 32 + within] >> (group / 2 * 4) & 15;
        let high = qh[half * 32 + within] >> (group * 2) & 3;
        let scale = f32::from(scales[i / 16].cast_signed());
        *y = d * scale * (f32::from(low | high << 4) - 32.0);
    }
}
