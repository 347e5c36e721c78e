//! Banks: adapters of several kinds and ranks on one base, each row of a batch with its own, beside what PEFT recorded and
//! beside the same adapters attached one at a time.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, data, file, given, model_directory, reals};
use engraft::Merging;
use engraft::compiler::compilations;
use engraft::import::peft::{AttachError, LoraConfig, PeftAdapter, adaptable, combine, updates};
use engraft::import::safetensors::read_weights;
use engraft::ir::layers::linear;
use engraft::prelude::*;
use engraft::pretrained::{AdapterBank, BankLayers, CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::{self, Bank, Context, Model, Weights, in_order};
use engraft_testing::assert_close;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As the recordings ask: `|ours - theirs| <= 1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-4;

/// Held by all who compile, and by one alone who must not: compilations are counted in the whole process.
static COMPILING: RwLock<()> = RwLock::new(());

fn compiling<T>(compile: impl FnOnce() -> T) -> T {
    let _shared = COMPILING.read();
    compile()
}

/// Runs what must compile nothing.
fn without_compiling(run: impl FnOnce()) {
    let _alone = COMPILING.write();
    let before = compilations();
    run();
    assert_eq!(compilations(), before);
}

/// The adapter of each row of a recording; `None` for the base alone.
fn recorded_rows(recorded: &Path) -> Vec<Option<String>> {
    let json = std::fs::read_to_string(recorded.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let name = |row: &serde_json::Value| {
        let name = row.as_str().unwrap();
        (name != "__base__").then(|| name.to_owned())
    };
    json["row_adapters"].as_array().unwrap().iter().map(name).collect()
}

fn with_bank(base: &Path) -> CompiledModel {
    let options = CompileOptions { bank: true, ..CompileOptions::default() };
    compiling(|| Pretrained::open(base).unwrap().compile(options).unwrap())
}

/// A user's own graph with a recording's base: the bank of the runtime and the model without adapters.
fn on_graph(graph: &Graph, recorded: &Path) -> (Bank, Model) {
    let program = compiling(|| compile(graph, &Options::default()).unwrap().program);
    let weights = read_weights(recorded.join("base.safetensors")).unwrap();
    let context = Context::new(runtime::Options::default()).unwrap();
    let base = program.load_base(&weights, context).unwrap();
    let model = base.load_adapter(&Weights::new()).unwrap();
    (Bank::new(base), model)
}

/// A user's own graph, with the bank of the runtime.
#[test]
fn each_row_of_an_mlp_has_its_own_adapter() {
    let recorded = data("mixed/mlp");
    let g = GraphBuilder::new("mlp");
    let x = g.input("x", F32, dims!["batch", 24]);
    g.output("y", linear(linear(x, "fc1", 40, true).relu(), "fc2", 16, true));
    let graph = adaptable(&g.finish().unwrap()).unwrap();
    let (bank, model) = on_graph(&graph, &recorded);
    without_compiling(|| {
        for name in ["a", "b", "c"] {
            let adapter = PeftAdapter::open(recorded.join("adapters").join(name)).unwrap();
            bank.load(name, &updates(&graph, &adapter).unwrap()).unwrap();
        }
    });
    let io = read_weights(recorded.join("io.safetensors")).unwrap();
    let rows = bank.rows(&recorded_rows(&recorded)).unwrap();
    let outputs = model.session().run_rows(&[("x", io.get("x").unwrap())], &rows).unwrap();
    assert_close(&reals(&outputs[0].1), &reals(io.get("y").unwrap()), ATOL, RTOL);
}

#[test]
fn each_row_of_a_bert_has_its_own_adapter() {
    let recorded = data("mixed/bert");
    let (base, io) = (model_directory(&recorded), read_weights(recorded.join("io.safetensors")).unwrap());
    let model = with_bank(base.path());
    let bank = model.bank().unwrap();
    for name in ["a", "b", "c"] {
        bank.load(name, recorded.join("adapters").join(name)).unwrap();
    }
    let rows = bank.rows(&recorded_rows(&recorded)).unwrap();
    let outputs = model.run_rows(&given(&io), &rows).unwrap();
    assert_close(&reals(&outputs[0].1), &reals(io.get("y").unwrap()), ATOL, RTOL);
}

/// The architectures: rows with the adapter beside rows of the base, in one call.
#[test]
fn rows_of_the_base_stand_beside_adapted_ones() {
    for name in ["bert_dora", "gpt2_dora", "llama_dora"] {
        let (base, io) = (model_directory(&case(name)), file(name, "io.safetensors"));
        let model = with_bank(base.path());
        let bank = model.bank().unwrap();
        bank.load("dora", case(name)).unwrap();
        let rows = io.get("input_ids").unwrap().shape()[0];
        let is_adapted = |row: usize| row.is_multiple_of(2);
        let names: Vec<_> = (0..rows).map(|row| is_adapted(row).then_some("dora")).collect();
        let outputs = model.run_rows(&given(&io), &bank.rows(&names).unwrap()).unwrap();
        let ours = reals(&outputs[0].1);
        let [adapted, bare] = ["y", "y_base"].map(|y| reals(io.get(y).unwrap()));
        let width = ours.len() / rows;
        for row in 0..rows {
            let theirs = if is_adapted(row) { &adapted } else { &bare };
            let of = |all: &[f64]| all[row * width..(row + 1) * width].to_vec();
            assert_close(&of(&ours), &of(theirs), ATOL, RTOL);
        }
    }
}

/// A decoder's rows keep their adapters from call to call: the prompt at once and token by token.
#[test]
fn decoding_goes_on_with_each_rows_adapter() {
    let (base, io) = (model_directory(&case("llama_dora")), file("llama_dora", "io.safetensors"));
    let model = with_bank(base.path());
    let bank = model.bank().unwrap();
    bank.load("dora", case("llama_dora")).unwrap();
    let ids = io.get("input_ids").unwrap();
    let tokens = ids.shape()[1];
    let first = ids.as_i64().unwrap()[..tokens].to_vec();
    // The same text twice, once with the adapter.
    let rows = bank.rows(&[Some("dora"), None]).unwrap();
    let input = |from: usize, to: usize| {
        let ids = [&first[from..to], &first[from..to]].concat();
        Weights::from_iter([("input_ids", runtime::Tensor::i64(&[2, to - from], ids).unwrap())])
    };
    let whole = model.run_rows(&input(0, tokens), &rows).unwrap().remove(0).1;
    let vocab = whole.shape()[2];
    let mut session = model.session();
    for token in 0..tokens {
        let step = model.run_rows_in(&mut session, &input(token, token + 1), &rows).unwrap().remove(0).1;
        for row in 0..2 {
            let at = (row * tokens + token) * vocab;
            let step = reals(&step)[row * vocab..(row + 1) * vocab].to_vec();
            assert_close(&step, &reals(&whole)[at..at + vocab], ATOL, RTOL);
        }
    }
}

/// Calls on two threads while a third replaces their adapter: every result is that of one adapter or of the other, whole.
#[test]
fn calls_under_way_keep_what_they_began_with() {
    let recorded = data("mixed/bert");
    let (base, io) = (model_directory(&recorded), read_weights(recorded.join("io.safetensors")).unwrap());
    let options = runtime::Options { threads: NonZeroUsize::new(1), ..runtime::Options::default() };
    let options = CompileOptions { bank: true, runtime: options, ..CompileOptions::default() };
    let model = compiling(|| Pretrained::open(base.path()).unwrap().compile(options).unwrap());
    let (bank, inputs) = (model.bank().unwrap(), given(&io));
    let adapters = ["a", "b"].map(|name| bank.weights(recorded.join("adapters").join(name)).unwrap());
    let names = [Some("it"), None, Some("it")].into_iter().cycle().take(13).collect::<Vec<_>>();
    bank.runtime().load("it", &adapters[0]).unwrap();
    let expected = adapters.each_ref().map(|adapter| {
        bank.runtime().replace("it", adapter).unwrap();
        model.run_rows(&inputs, &bank.rows(&names).unwrap()).unwrap().remove(0).1
    });
    let swaps = 200;
    let calling = AtomicUsize::new(2);
    without_compiling(|| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut session = model.session();
                    for _ in 0..40 {
                        let rows = bank.rows(&names).unwrap();
                        let y = model.run_rows_in(&mut session, &inputs, &rows).unwrap().remove(0).1;
                        assert!(expected.contains(&y), "neither adapter's result");
                    }
                    calling.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let mut swap = 0;
            while swap < swaps || calling.load(Ordering::Relaxed) > 0 {
                bank.runtime().replace("it", &adapters[swap % 2]).unwrap();
                swap += 1;
            }
        });
    });
}

#[test]
fn what_rows_cannot_differ_in_is_refused_by_name() {
    let base = model_directory(&case("bert_dora"));
    let model = with_bank(base.path());
    let graph = |name: &str| adaptable(&common::base(name)).unwrap();
    for (name, message) in [
        ("dora_embedding", "the adapter changes `emb`, which is no adaptable layer"),
        (
            "lora_modules_to_save",
            "which is no adaptable layer: in a bank, an adapter changes linear layers and their biases",
        ),
    ] {
        let error = updates(&graph(name), &PeftAdapter::open(case(name)).unwrap()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let error = model.bank().unwrap().load("x", case("llama_dora")).unwrap_err().to_string();
    assert!(
        error.contains("llama_dora: the adapter's config targets none of the graph's modules"),
        "{error}"
    );
    let plain =
        compiling(|| Pretrained::open(base.path()).unwrap().compile(CompileOptions::default()).unwrap());
    let error = plain.bank().err().unwrap().to_string();
    assert!(error.contains("compiled without a bank"), "{error}");
    let attached = Pretrained::open(base.path()).unwrap().adapter(case("bert_dora")).unwrap();
    let options = CompileOptions { bank: true, ..CompileOptions::default() };
    let error = compiling(|| attached.compile(options).err().unwrap().to_string());
    assert!(error.contains("a bank is on the base alone"), "{error}");
}

/// Every recorded adapter of a linear layer's kind means the same in a bank as attached.
#[test]
fn every_recorded_adapter_fits_a_bank() {
    let mut checked = Vec::new();
    for entry in std::fs::read_dir(data("peft")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let kind = std::fs::read_to_string(case(&name).join("case.json")).unwrap();
        let kind: serde_json::Value = serde_json::from_str(&kind).unwrap();
        if !["mlp", "mlp_nobias", "mlp_square", "conv1d"].contains(&kind["base"].as_str().unwrap()) {
            continue;
        }
        let graph = adaptable(&common::base(&name)).unwrap();
        let adapter = PeftAdapter::open(case(&name)).unwrap();
        let weights = match updates(&graph, &adapter) {
            Err(AttachError::NotAdaptable { .. } | AttachError::ResidualBase { .. }) => continue,
            weights => weights.unwrap(),
        };
        let (bank, model) = on_graph(&graph, &case(&name));
        let io = file(&name, "io.safetensors");
        let x = io.get("x").unwrap();
        for merge in [Merging::NEVER, Merging::ALWAYS] {
            let mut weights = weights.clone();
            merge.mark(&mut weights, None, 0, 0);
            bank.load("it", &weights).unwrap();
            let rows = bank.rows(&vec![Some("it"); x.shape()[0]]).unwrap();
            let y = model.session().run_rows(&[("x", x)], &rows).unwrap().remove(0).1;
            assert_close(&reals(&y), &reals(io.get("y").unwrap()), ATOL, RTOL);
            bank.remove("it").unwrap();
        }
        checked.push(name);
    }
    assert!(checked.len() >= 10, "{checked:?}");
}

/// Adapters that follow each other, and a weighted sum, as PEFT computes them: all of them in one batch.
#[test]
fn several_adapters_follow_each_other_on_a_row() {
    let recorded = data("composed");
    let g = GraphBuilder::new("mlp");
    let x = g.input("x", F32, dims!["batch", 6]);
    g.output("y", linear(linear(x, "fc1", 8, true).relu(), "fc2", 5, true));
    let graph = adaptable(&g.finish().unwrap()).unwrap();
    let (bank, model) = on_graph(&graph, &recorded);
    let io = read_weights(recorded.join("io.safetensors")).unwrap();
    let adapter = |name: &str| PeftAdapter::open(recorded.join(name)).unwrap();
    let cat = combine(&[(0.5, &adapter("l1")), (-1.5, &adapter("l2"))]).unwrap();
    bank.load("y.cat", &updates(&graph, &cat).unwrap()).unwrap();
    let mut names = vec![None, Some("y.cat")];
    for (name, _) in io.iter().filter(|(name, _)| !["x", "y_base", "y.cat"].contains(name)) {
        let parts: Vec<_> =
            name.split('.').skip(1).map(|part| updates(&graph, &adapter(part)).unwrap()).collect();
        let mut joint = in_order(&parts).unwrap();
        // Every other one merged.
        Merging::all(names.len() % 2 == 0).mark(&mut joint, None, 0, 0);
        bank.load(name, &joint).unwrap();
        names.push(Some(name));
    }
    assert_eq!(names.len(), 9);
    let x = io.get("x").unwrap();
    let (x_rows, x) = (x.shape()[0], x.as_f32().unwrap());
    let rows: Vec<_> = names.iter().flat_map(|name| vec![*name; x_rows]).collect();
    let all = runtime::Tensor::f32(&[rows.len(), 6], x.repeat(names.len())).unwrap();
    let y = model.session().run_rows(&[("x", &all)], &bank.rows(&rows).unwrap()).unwrap().remove(0).1;
    for (name, ours) in names.iter().zip(reals(&y).chunks_exact(x_rows * 5)) {
        assert_close(ours, &reals(io.get(name.unwrap_or("y_base")).unwrap()), ATOL, RTOL);
    }
}

/// A module that is used where no row has an item, or whose bias something else reads, is refused: part of it would stay
/// the base's.
#[test]
fn a_module_that_is_adaptable_in_part_is_refused() {
    let json =
        r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["fc"], "bias": "lora_only"}"#;
    let tensor = |shape: &[usize]| runtime::Tensor::f32(shape, vec![1.0; shape.iter().product()]).unwrap();
    let tensors =
        [("lora_A.weight", vec![1, 3]), ("lora_B.weight", vec![3, 1]), ("base_layer.bias", vec![3])];
    let tensors = tensors.map(|(name, shape)| (format!("base_model.model.fc.{name}"), tensor(&shape)));
    let adapter = PeftAdapter::new(LoraConfig::parse(json).unwrap(), &Weights::from_iter(tensors)).unwrap();
    let refused = |write: for<'g> fn(&'g GraphBuilder, Tensor<'g>, Tensor<'g>, Tensor<'g>)| {
        let g = GraphBuilder::new("parts");
        let x = g.input("x", F32, dims!["batch", 3]);
        let (w, b) = (g.param("fc.weight", F32, dims![3, 3]), g.param("fc.bias", F32, dims![3]));
        g.output("y", x.dense(w, Some(b)).named("fc"));
        write(&g, x, w, b);
        let result = updates(&adaptable(&g.finish().unwrap()).unwrap(), &adapter);
        result.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(refused(|_, _, _, _| ()), Ok(()));
    let error =
        refused(|g, _, w, b| g.output("z", g.input("v", F32, dims![3]).dense(w, Some(b)))).unwrap_err();
    assert!(error.starts_with("the adapter changes `fc`, which is no adaptable layer"), "{error}");
    let error = refused(|g, x, _, b| g.output("z", x + b)).unwrap_err();
    assert!(error.starts_with("the adapter changes `fc.bias`, which is no adaptable layer"), "{error}");
}

/// Decisions are of the layers' graph and the weights are loaded onto the base: they have to be of one graph.
#[test]
fn a_bank_of_another_graph_than_its_base_is_refused() {
    let graph = |modules: &[&str]| {
        let g = GraphBuilder::new("mlp");
        let mut x = g.input("x", F32, dims!["batch", 2]);
        for module in modules {
            x = x.adaptable(module, g.param(&format!("{module}.weight"), F32, dims![2, 2]), None);
        }
        g.output("y", x);
        g.finish().unwrap()
    };
    let refused = |of_layers: &[&str], of_base: &[&str]| {
        let weight = |module: &&str| {
            (format!("{module}.weight"), runtime::Tensor::f32(&[2, 2], vec![1.0; 4]).unwrap())
        };
        let program = compiling(|| compile(&graph(of_base), &Options::default()).unwrap().program);
        let context = Context::new(runtime::Options::default()).unwrap();
        let base = program.load_base(&of_base.iter().map(weight).collect(), context).unwrap();
        let layers = BankLayers::new(&graph(of_layers), None, Merging::NEVER).unwrap();
        AdapterBank::new(layers, base).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&["fc1", "fc2"], &["fc2", "fc1"]), None);
    let error = refused(&["fc1", "fc2", "fc3"], &["fc1"]).unwrap();
    assert!(
        error.starts_with("module `fc2` is adaptable in the graph of the layers, but not on the base:"),
        "{error}"
    );
    let error = refused(&["fc2"], &["fc1", "fc2"]).unwrap();
    assert!(
        error.starts_with("module `fc1` is adaptable on the base, but not in the graph of the layers:"),
        "{error}"
    );
}
