//! Elements: what the formats mean, against `gguf.quants`, bit for bit, and how q and k are stored.

use crate::data;
use crate::writer::{Entry, File};
use crate::{assert_names, open};
use engraft_import::gguf::Gguf;
use engraft_import::safetensors::read_weights;
use engraft_runtime::{Tensor, Weights};

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.as_f32().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// The formats' tensors, each renamed to one that a model has: whatever their shapes, they are read.
#[test]
fn every_format_is_read_bit_for_bit() {
    let expected = read_weights(data("blocks.safetensors")).unwrap();
    let stored = std::fs::read(data("blocks.gguf")).unwrap();
    assert_eq!(expected.len(), 11);
    for (name, expected) in expected.iter() {
        let (kind, elements, bytes) = match name.strip_suffix(".weight").unwrap() {
            "F32" => (0, 1, 4),
            "F16" => (1, 1, 2),
            "Q4_0" => (2, 32, 18),
            "Q4_1" => (3, 32, 20),
            "Q5_0" => (6, 32, 22),
            "Q5_1" => (7, 32, 24),
            "Q8_0" => (8, 32, 34),
            "Q4_K" => (12, 256, 144),
            "Q5_K" => (13, 256, 176),
            "Q6_K" => (14, 256, 210),
            "BF16" => (30, 1, 2),
            other => panic!("there is no format {other}"),
        };
        let length = expected.len() / elements * bytes;
        let dims: Vec<u64> = expected.shape().iter().rev().map(|&dim| dim as u64).collect();
        let mut file = File::llama();
        let data = tensor_bytes(&stored, name)[..length].to_vec();
        file.tensors = vec![Entry { name: "output.weight".to_owned(), dims, kind, offset: 0, data }];
        let weights = open(&file.bytes()).unwrap().weights().unwrap();
        let found = weights.get("lm_head.weight").unwrap();
        assert_eq!(found.shape(), expected.shape(), "{name}");
        assert_eq!(bits(found), bits(expected), "{name}");
    }
}

/// What follows from where a tensor of the recorded file begins: read here apart from the reader.
fn tensor_bytes<'a>(file: &'a [u8], name: &str) -> &'a [u8] {
    let after = |needle: &[u8]| {
        file.windows(needle.len()).position(|window| window == needle).unwrap() + needle.len()
    };
    // The name, then the rank, two dims, the type, the offset.
    let entry = after(name.as_bytes());
    let offset = u64::from_le_bytes(file[entry + 24..entry + 32].try_into().unwrap());
    let last = after(b"Q6_K.weight") + 32;
    &file[last.next_multiple_of(32) + offset as usize..]
}

fn assert_same(found: &Weights, expected: &Weights) {
    assert_eq!(
        found.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        expected.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for (name, tensor) in expected.iter() {
        assert_eq!(found.get(name).unwrap(), tensor, "{name}");
    }
}

/// A `llama` whose rows llama.cpp's formula has permuted is read as it was before.
#[test]
fn the_permutation_of_q_and_k_is_undone() {
    let file = Gguf::open(data("llama.gguf")).unwrap();
    assert_same(&file.weights().unwrap(), &read_weights(data("llama.safetensors")).unwrap());
}

/// Rope on neighbours with the file's rows and rope on halves with the rows that are read give the same products of q
/// and k, for all pairs of positions: that is all that the order of rows is for.
#[test]
fn both_ropes_agree() {
    let (heads, size, hidden) = (4, 8, 32);
    let stored = std::fs::read(data("llama.gguf")).unwrap();
    let file = Gguf::open(data("llama.gguf")).unwrap();
    let weights = file.weights().unwrap();
    // Read as `qwen2`, whose rows are left alone, the same bytes are the rows as the file stores them.
    let permuted: Vec<u8> = {
        let mut bytes = stored.clone();
        for at in 0..bytes.len() - 5 {
            if &bytes[at..at + 5] == b"llama" {
                bytes[at..at + 5].copy_from_slice(b"qwen2");
            }
        }
        bytes
    };
    let permuted = open(&permuted).unwrap().weights().unwrap();
    let x: Vec<f64> = (0..hidden).map(|i| f64::from(i * 7 % 13) / 6.0 - 1.0).collect();
    let project = |weights: &Weights, name: &str, head: usize| -> Vec<f64> {
        let weight = weights.get(&format!("model.layers.0.self_attn.{name}_proj.weight")).unwrap();
        let rows = weight.as_f32().unwrap().chunks_exact(hidden as usize).skip(head * size).take(size);
        rows.map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    let rope = |y: &[f64], position: f64, pair: &dyn Fn(usize) -> (usize, usize)| {
        let mut turned = y.to_vec();
        for i in 0..size / 2 {
            let (sin, cos) = (position * 10_000_f64.powf(-2.0 * i as f64 / size as f64)).sin_cos();
            let (a, b) = pair(i);
            (turned[a], turned[b]) = (y[a] * cos - y[b] * sin, y[b] * cos + y[a] * sin);
        }
        turned
    };
    let (neighbours, halves) = (|i| (2 * i, 2 * i + 1), |i| (i, i + size / 2));
    for (head, (m, n)) in (0..heads).flat_map(|head| [(head, (3.0, 1.0)), (head, (11.0, 10.0))]) {
        let score = |weights: &Weights, pair: &dyn Fn(usize) -> (usize, usize)| -> f64 {
            let q = rope(&project(weights, "q", head), m, pair);
            let k = rope(&project(weights, "k", head / 2), n, pair);
            q.iter().zip(k).map(|(q, k)| q * k).sum()
        };
        let (theirs, ours) = (score(&permuted, &neighbours), score(&weights, &halves));
        assert!((theirs - ours).abs() <= 1e-9 * theirs.abs().max(1.0), "{theirs} {ours}");
        let wrong = score(&permuted, &halves);
        assert!((theirs - wrong).abs() > 1e-3, "the order would not matter: {theirs} {wrong}");
    }
}

#[test]
fn tensors_of_no_model_are_refused() {
    let names = [
        "blk.1.attn_q.weight",
        "blk.00.attn_q.weight",
        "blk.0.attn_norm.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_q",
        "rope_freq.weight",
        "model.norm.weight",
    ];
    for name in names {
        let mut file = File::llama();
        file.push(name, &[4]);
        let message = open(&file.bytes()).unwrap().weights().unwrap_err().to_string();
        assert_names(
            &message,
            &[&format!("tensor `{name}` is none of the architecture `llama` with 1 blocks")],
        );
    }
    for rows in [3, 8] {
        let mut file = File::llama();
        file.tensors.retain(|tensor| tensor.name == "token_embd.weight");
        file.push("blk.0.attn_q.weight", &[4, rows]);
        let message = open(&file.bytes()).unwrap().weights().unwrap_err().to_string();
        assert_names(
            &message,
            &["`blk.0.attn_q.weight`", &format!("[{rows}, 4], expected 2 heads of 2 rows")],
        );
    }
}
