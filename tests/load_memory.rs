//! Loading from a mapped file takes the memory of what is kept and of one weight, whatever form its floats have in the
//! file. Each case runs in a process of its own, because it measures the process's memory, which only Linux tells.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

#[allow(dead_code, reason = "of all that it writes, one model is needed here")]
#[path = "../import/tests/gguf/writer.rs"]
mod writer;

use engraft::compiler::{Options, compile};
use engraft::import::models::GraphOptions;
use engraft::import::safetensors::{parse_weights, read_weights};
use engraft::prelude::{F32, GraphBuilder, dims};
use engraft::pretrained::Pretrained;
use engraft::runtime::{Base, Context, Program, Tensor, Weights};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

const LAYERS: usize = 8;
const WIDTH: usize = 1448;
/// The elements of a layer: a square weight and a bias.
const LAYER: usize = WIDTH * WIDTH + WIDTH;

/// The process in which a case is measured has this variable.
const ALONE: &str = "ENGRAFT_MEASURES_MEMORY";

/// What a measured case prints of its figures.
const FIGURES: &str = "x the weights at most";

/// Runs a test of this name again, in a process where it is the only one, and requires that it has measured something.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let mut process = Command::new(std::env::current_exe().unwrap());
    let output = process.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let figures = said.lines().find(|line| line.contains(FIGURES));
    println!("{}", figures.unwrap_or_default());
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(figures.is_some(), "{name} printed no figures: {said}");
}

/// A process that finds no test of its name succeeds, too.
#[test]
#[should_panic(expected = "no_such_test printed no figures")]
fn a_case_that_measures_nothing_fails() {
    alone("no_such_test", || ());
}

/// Writes the weights piece by piece, so that this takes no memory.
fn write_weights(path: &Path, dtype: &str, element: impl Fn(f32) -> Vec<u8>) {
    let bytes = element(0.0).len();
    let mut header = "{".to_owned();
    for layer in 0..LAYERS {
        let [begin, middle, end] =
            [0, WIDTH * WIDTH, LAYER].map(|elements| (layer * LAYER + elements) * bytes);
        let comma = if layer == 0 { "" } else { "," };
        let weight =
            format!(r#"{{"dtype":"{dtype}","shape":[{WIDTH},{WIDTH}],"data_offsets":[{begin},{middle}]}}"#);
        let bias = format!(r#"{{"dtype":"{dtype}","shape":[{WIDTH}],"data_offsets":[{middle},{end}]}}"#);
        write!(header, r#"{comma}"weight{layer}":{weight},"bias{layer}":{bias}"#).unwrap();
    }
    header.push('}');
    let aligned = header.len().next_multiple_of(8);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(aligned as u64).to_le_bytes()).unwrap();
    write!(file, "{header:aligned$}").unwrap();
    for index in 0..LAYERS * LAYER {
        let number = (index as u32).wrapping_mul(2_654_435_761) >> 8;
        file.write_all(&element((number as f32 / (1 << 23) as f32 - 1.0) / 16.0)).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
}

/// A line of what the system tells of this process's memory, in bytes.
fn memory(line: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

fn load(program: &Program, weights: &Weights) -> Base {
    program.load_base(weights, Context::new(engraft::runtime::Options::default()).unwrap()).unwrap()
}

/// Loads, and requires that this takes little more than what stays, and that little more than `panels` stays.
fn measure(program: &Program, panels: usize, read: impl FnOnce() -> Weights) -> Base {
    // Forgets the peak of what came before, where that is allowed; else it counts, but is lower than that of loading.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = memory("VmRSS:");
    let base = load(program, &read());
    let (peak, kept) = (memory("VmHWM:") - before, memory("VmRSS:") - before);
    let ratio = |bytes: usize| bytes as f64 / panels as f64;
    println!("\n{:.3} {FIGURES}, {:.3} x kept", ratio(peak), ratio(kept));
    assert!(peak as f64 <= 1.15 * kept as f64, "{peak} bytes at most, {kept} kept");
    assert!(ratio(kept) <= 1.1, "{kept} bytes kept are {:.3} x the weights", ratio(kept));
    base
}

fn safetensors(dtype: &str, element: impl Fn(f32) -> Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write_weights(&path, dtype, element);
    let g = GraphBuilder::new("layers");
    let mut x = g.input("x", F32, dims!["batch", WIDTH]);
    for layer in 0..LAYERS {
        let bias = g.param(&format!("bias{layer}"), F32, dims![WIDTH]);
        x = x.dense(g.param(&format!("weight{layer}"), F32, dims![WIDTH, WIDTH]), Some(bias));
    }
    g.output("y", x);
    let program = compile(&g.finish().unwrap(), &Options::default()).unwrap().program;
    let base = measure(&program, 4 * LAYERS * LAYER, || read_weights(&path).unwrap());

    let x = Tensor::f32(&[2, WIDTH], (0..2 * WIDTH).map(|i| (i as f32).sin()).collect()).unwrap();
    let run = |base: Base| base.load_adapter(&Weights::new()).unwrap().run(&[("x", &x)]).unwrap();
    let copied = load(&program, &parse_weights(&path, &fs::read(&path).unwrap()).unwrap());
    assert_eq!(run(base), run(copied));
}

#[test]
fn loading_f32_takes_little_more_than_the_weights() {
    alone("loading_f32_takes_little_more_than_the_weights", || {
        safetensors("F32", |x| x.to_le_bytes().to_vec());
    });
}

#[test]
fn loading_bf16_takes_little_more_than_the_weights() {
    alone("loading_bf16_takes_little_more_than_the_weights", || {
        safetensors("BF16", |x| x.to_le_bytes()[2..].to_vec());
    });
}

/// A Llama of 4 blocks in `Q4_0`, whose embeddings are a third of it.
#[test]
fn loading_blocks_takes_little_more_than_the_weights() {
    alone("loading_blocks_takes_little_more_than_the_weights", || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let floats = write_gguf(&path);
        let model = Pretrained::open(&path).unwrap().assemble(GraphOptions::default()).unwrap();
        let program = compile(&model.graph, &Options::default()).unwrap().program;
        drop(model);
        let read = || Pretrained::open(&path).unwrap().assemble(GraphOptions::default()).unwrap().base;
        measure(&program, 4 * floats, read);
    });
}

/// Writes the model and returns how many floats its matrices are.
fn write_gguf(path: &Path) -> usize {
    const Q4_0: u32 = 2;
    let (hidden, inner, kv, vocab, blocks) = (1024, 3072, 512, 16384, 4);
    let mut file = writer::File::llama();
    for (key, value) in [
        ("block_count", blocks as u32),
        ("embedding_length", hidden as u32),
        ("feed_forward_length", inner as u32),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 4),
    ] {
        file.set(&format!("llama.{key}"), writer::u32(value));
    }
    file.tensors.clear();
    let mut floats = 0;
    let mut matrix = |file: &mut writer::File, name: &str, dims: [u64; 2]| {
        file.push(name, &[0]);
        let tensor = file.tensors.last_mut().unwrap();
        let elements = dims[0] * dims[1];
        (tensor.dims, tensor.kind) = (dims.to_vec(), Q4_0);
        // The scale of a block, a half, and what it scales.
        tensor.data = (0..elements / 32 * 18).map(|i| if i % 18 == 1 { 0x20 } else { i as u8 }).collect();
        floats += elements as usize;
    };
    matrix(&mut file, "token_embd.weight", [hidden, vocab]);
    file.push("output_norm.weight", &[hidden]);
    for block in 0..blocks {
        for norm in ["attn_norm", "ffn_norm"] {
            file.push(&format!("blk.{block}.{norm}.weight"), &[hidden]);
        }
        for (name, dims) in [
            ("attn_q", [hidden, hidden]),
            ("attn_k", [hidden, kv]),
            ("attn_v", [hidden, kv]),
            ("attn_output", [hidden, hidden]),
            ("ffn_gate", [hidden, inner]),
            ("ffn_up", [hidden, inner]),
            ("ffn_down", [inner, hidden]),
        ] {
            matrix(&mut file, &format!("blk.{block}.{name}.weight"), dims);
        }
    }
    fs::write(path, file.bytes()).unwrap();
    floats
}
