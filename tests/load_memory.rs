//! Loading from a mapped file takes the memory of what is kept and of one weight. The only test of its process, because
//! it measures the process's memory, which only Linux tells.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use engraft::compiler::{Options, compile};
use engraft::import::safetensors::{parse_weights, read_weights};
use engraft::prelude::{F32, GraphBuilder, dims};
use engraft::runtime::{Base, Context, Tensor, Weights};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

const LAYERS: usize = 8;
const WIDTH: usize = 1448;
const WEIGHT_BYTES: usize = 4 * WIDTH * WIDTH;
const LAYER_BYTES: usize = WEIGHT_BYTES + 4 * WIDTH;

/// Writes the weights piece by piece, so that this takes no memory.
fn write_weights(path: &Path) {
    let mut header = "{".to_owned();
    for layer in 0..LAYERS {
        let begin = layer * LAYER_BYTES;
        let (middle, end) = (begin + WEIGHT_BYTES, begin + LAYER_BYTES);
        let comma = if layer == 0 { "" } else { "," };
        let weight =
            format!(r#"{{"dtype":"F32","shape":[{WIDTH},{WIDTH}],"data_offsets":[{begin},{middle}]}}"#);
        let bias = format!(r#"{{"dtype":"F32","shape":[{WIDTH}],"data_offsets":[{middle},{end}]}}"#);
        write!(header, r#"{comma}"weight{layer}":{weight},"bias{layer}":{bias}"#).unwrap();
    }
    header.push('}');
    let aligned = header.len().next_multiple_of(8);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(aligned as u64).to_le_bytes()).unwrap();
    write!(file, "{header:aligned$}").unwrap();
    for index in 0..LAYERS * LAYER_BYTES / 4 {
        let number = (index as u32).wrapping_mul(2_654_435_761) >> 8;
        let number = (number as f32 / (1 << 23) as f32 - 1.0) / 16.0;
        file.write_all(&number.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
}

/// A line of what the system tells of this process's memory, in bytes.
fn memory(line: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn loading_a_mapped_file_takes_little_more_than_its_weights() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write_weights(&path);
    let g = GraphBuilder::new("layers");
    let mut x = g.input("x", F32, dims!["batch", WIDTH]);
    for layer in 0..LAYERS {
        let bias = g.param(&format!("bias{layer}"), F32, dims![WIDTH]);
        x = x.dense(g.param(&format!("weight{layer}"), F32, dims![WIDTH, WIDTH]), Some(bias));
    }
    g.output("y", x);
    let program = compile(&g.finish().unwrap(), &Options::default()).unwrap().program;
    let load = |weights: Weights| {
        program.load_base(&weights, Context::new(engraft::runtime::Options::default()).unwrap()).unwrap()
    };

    // Forgets the peak of compiling, where that is allowed; else it counts, but is lower than that of loading.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = memory("VmRSS:");
    let base = load(read_weights(&path).unwrap());
    let (peak, kept) = (memory("VmHWM:") - before, memory("VmRSS:") - before);
    let ratio = |bytes: usize| bytes as f64 / (LAYERS * LAYER_BYTES) as f64;
    println!("{:.3} x the weights at most, {:.3} x kept", ratio(peak), ratio(kept));
    assert!(ratio(peak) <= 1.3, "{peak} bytes are {:.3} x the weights", ratio(peak));
    assert!(ratio(kept) <= 1.1, "{kept} bytes kept are {:.3} x the weights", ratio(kept));

    let x = Tensor::f32(&[2, WIDTH], (0..2 * WIDTH).map(|i| (i as f32).sin()).collect()).unwrap();
    let run = |base: Base| base.load_adapter(&Weights::new()).unwrap().run(&[("x", &x)]).unwrap();
    let copied = load(parse_weights(&path, &fs::read(&path).unwrap()).unwrap());
    assert_eq!(run(base), run(copied));
}
