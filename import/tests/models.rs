//! Models give what transformers and PEFT recorded, in the reference interpreter, however their rows are padded.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::models::{Recorded, data, ids, json};
use common::{numbers, value};
use engraft_import::gguf::Gguf;
use engraft_import::models::{Architecture, GraphOptions, Kind, Logits, ModelDirectory};
use engraft_import::peft::PeftAdapter;
use engraft_import::safetensors::read_weights;
use engraft_ir::eval::Values;
use engraft_ir::ops::Unary;
use engraft_ir::{Graph, Op, text};
use engraft_runtime::{Tensor, Weights};
use ndarray::{ArrayD, Axis, concatenate};
use serde_json::{Value as Json, json};

const ALL: GraphOptions = GraphOptions { logits: Logits::All };
const LAST: GraphOptions = GraphOptions { logits: Logits::Last };

/// A case that PEFT recorded: the base, and the base with its adapter.
fn check_adapted(name: &str) {
    let case = Recorded::open(data("peft").join(name));
    case.check(None, "y_base");
    let adapter = PeftAdapter::open(data("peft").join(name)).unwrap();
    case.check(Some(&adapter), "y");
}

#[test]
fn bert_dora() {
    check_adapted("bert_dora");
}

#[test]
fn llama_dora() {
    check_adapted("llama_dora");
}

#[test]
fn gpt2_dora() {
    check_adapted("gpt2_dora");
}

/// One adapter at a time, on the rows that were recorded with it. Those of every linear layer adapt the pooler, too,
/// which is no part of the graph.
#[test]
fn bert_with_several_adapters() {
    let directory = data("mixed").join("bert");
    let case = Recorded::open(&directory);
    let rows = json(&directory.join("case.json"))["row_adapters"].clone();
    let rows: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    let theirs = &case.io["y"];
    let (mut compared, mut poolers) = (0, 0);
    for name in ["__base__", "a", "b", "c"] {
        let adapter =
            (name != "__base__").then(|| PeftAdapter::open(directory.join("adapters").join(name)).unwrap());
        let ours = case.run(adapter.as_ref(), &case.given, ALL);
        let chosen: Vec<usize> = (0..rows.len()).filter(|&row| rows[row] == name).collect();
        let select = |all: &ArrayD<f64>| all.select(Axis(0), &chosen);
        case.assert_agree(&select(&ours), &select(theirs.as_real().unwrap()));
        compared += chosen.len();
        let left_out = adapter.map(|adapter| case.architecture.fit_adapter(&adapter).unwrap().1);
        poolers += left_out.unwrap_or_default().iter().filter(|name| name.starts_with("pooler.")).count();
    }
    assert_eq!(compared, rows.len());
    assert_eq!(poolers, 2);
}

/// A model that transformers saved, as [`Recorded`].
fn saved(name: &str) -> Recorded {
    let directory = data_of_models().join(name);
    let model = ModelDirectory::open(&directory).unwrap();
    assert_eq!(model.path(), directory);
    let io = read_weights(directory.join("io.safetensors")).unwrap();
    let tolerance = serde_json::json!({"tolerance": {"atol": 1e-5, "rtol": 1e-4}});
    Recorded::new(model.architecture().clone(), model.weights(), &io, &tolerance)
}

fn data_of_models() -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

/// Requires agreement at the tokens that the mask does not hide, of rows padded behind, in front and on both sides.
fn check_saved(name: &str) -> Recorded {
    let case = saved(name);
    let ours = case.run(None, &case.given, ALL);
    case.assert_agree(&case.visible(&ours), &case.visible(case.io["y"].as_real().unwrap()));
    case
}

#[test]
fn roberta() {
    check_saved("roberta");
}

#[test]
fn xlm_roberta() {
    check_saved("xlm_roberta");
}

/// The second layer's window is three keys.
#[test]
fn qwen2_with_a_window_and_tied_embeddings() {
    let case = check_saved("qwen2_window");
    let windows: Vec<_> =
        attentions(&case.architecture.graph(ALL).unwrap()).iter().map(|attention| attention.window).collect();
    assert_eq!(windows, [None, Some(3)]);
    assert!(case.weights.get("lm_head.weight").is_none());
}

/// Each layer's window is three keys.
#[test]
fn mistral_with_a_window() {
    let case = check_saved("mistral");
    assert!(
        attentions(&case.architecture.graph(ALL).unwrap())
            .iter()
            .all(|attention| attention.window == Some(3))
    );
}

fn attentions(graph: &Graph) -> Vec<engraft_ir::ops::Attention> {
    let attention = |id| match graph.node(id).op() {
        Op::Attention(attention) => Some(*attention),
        _ => None,
    };
    graph.order().into_iter().filter_map(attention).collect()
}

#[test]
fn llama3_in_five_shards_of_bf16() {
    check_saved("llama3_sharded_bf16");
}

/// With a config as transformers 4 wrote it.
#[test]
fn llama_with_linear_scaling_and_biases_in_f16() {
    check_saved("llama_linear_f16");
}

#[test]
fn gpt2_scaled_by_layer_with_a_head_of_its_own() {
    check_saved("gpt2_by_layer");
}

/// The frequencies of real models' sizes, within one unit in the last place or so.
#[test]
fn frequencies_are_those_of_transformers() {
    let theirs = read_weights(data_of_models().join("rope.safetensors")).unwrap();
    let scalings = [
        ("default", serde_json::json!({"rope_type": "default", "rope_theta": 10000.0})),
        ("linear", serde_json::json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5})),
        (
            "llama3",
            serde_json::json!({"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        ),
    ];
    for (name, scaling) in scalings {
        let mut config = common::models::config("llama");
        config["head_dim"] = 128.into();
        config["rope_parameters"] = scaling;
        let graph = Architecture::from_config(config.as_object().unwrap()).unwrap().graph(ALL).unwrap();
        let Op::Constant(constant) = graph.node(graph.find("rope.frequencies").unwrap()).op() else {
            panic!()
        };
        let engraft_ir::ops::Elements::F32(ours) = &constant.values else { panic!() };
        let theirs = theirs.get(name).unwrap().as_f32().unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() <= 2.5e-7 * theirs, "{name}: {ours}, expected {theirs}");
        }
    }
}

/// Each name of an activation means in the graph what it means to transformers.
#[test]
fn activations_are_those_of_transformers() {
    let recorded = read_weights(data_of_models().join("activations.safetensors")).unwrap();
    let x = recorded.get("x").unwrap().as_f32().unwrap();
    for (name, theirs) in recorded.iter().filter(|(name, _)| *name != "x") {
        let mut config = common::models::config("bert");
        config["hidden_act"] = name.into();
        let graph = Architecture::from_config(config.as_object().unwrap()).unwrap().graph(ALL).unwrap();
        let dense = graph.find("encoder.layer.0.intermediate.dense").unwrap();
        let Op::Unary(ours) = graph.node(graph.users(dense)[0].0).op() else { panic!() };
        for (&x, &theirs) in x.iter().zip(theirs.as_f32().unwrap()) {
            let (ours, theirs) = (ours.apply(f64::from(x)), f64::from(theirs));
            assert!((ours - theirs).abs() <= 2e-6, "{name}({x}): {ours}, expected {theirs}");
        }
    }
    assert_eq!(recorded.len(), 13);
}

/// `rows` padded with `front` and `behind` hidden tokens.
fn padded(rows: &[Vec<i64>], front: usize, behind: usize, pad: i64) -> Weights {
    let around = |row: &[i64], edge: i64| [vec![edge; front], row.to_vec(), vec![edge; behind]].concat();
    let all: Vec<_> = rows.iter().map(|row| around(row, pad)).collect();
    let mask: Vec<_> = rows.iter().map(|row| around(&vec![1; row.len()], 0)).collect();
    let tensor = |rows: &[Vec<i64>]| ids(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
    Weights::from_iter([("input_ids", tensor(&all)), ("attention_mask", tensor(&mask))])
}

/// Padding in front, behind or on both sides changes no visible result, and neither does a mask of all ones.
#[test]
fn padding_changes_nothing() {
    let rows: [Vec<i64>; 2] = [vec![5, 9, 17, 3, 8], vec![4, 4, 21, 7, 11]];
    let cases =
        ["roberta", "mistral", "qwen2_window", "llama3_sharded_bf16", "llama_linear_f16", "gpt2_by_layer"];
    let bert = Recorded::open(data("peft").join("bert_dora"));
    for (case, pad) in cases.iter().map(|name| (saved(name), 1)).chain([(bert, 0)]) {
        let mut bare = Weights::new();
        bare.insert("input_ids", padded(&rows, 0, 0, pad).get("input_ids").unwrap().clone());
        let expected = case.run(None, &bare, ALL);
        for (front, behind) in [(0, 0), (3, 0), (0, 3), (2, 4), (7, 0), (0, 7)] {
            let ours = case.run(None, &padded(&rows, front, behind, pad), ALL);
            let ours = ours.slice_axis(Axis(1), (front..front + 5).into());
            let difference = (&ours - &expected).iter().fold(0.0_f64, |most, d| most.max(d.abs()));
            assert!(difference <= 1e-5, "{:?}, {front} and {behind}: {difference}", case.architecture.name());
        }
    }
}

/// A decoder that is called twice, with keys and values carried over, gives what one call gives; with padding in front.
#[test]
fn two_calls_are_one() {
    for name in ["qwen2_window", "llama3_sharded_bf16", "gpt2_by_layer"] {
        let case = saved(name);
        let (graph, params) = case.prepare(None, ALL);
        let (all, mask) = (case.ids("input_ids"), case.ids("attention_mask"));
        // Rows that end in a token that can be seen: 0 and 2.
        let rows = [0, 2];
        let part = |from: usize, to: usize| {
            let cut = |array: &ArrayD<i64>, range: std::ops::Range<usize>| {
                let cut = array.select(Axis(0), &rows).slice_axis(Axis(1), range.into()).to_owned();
                Tensor::i64(cut.shape(), cut.iter().copied().collect()).unwrap()
            };
            Weights::from_iter([("input_ids", cut(&all, from..to)), ("attention_mask", cut(&mask, 0..to))])
        };
        let whole = case.call(&graph, &params, &part(0, 9), ALL, &Values::new());
        let first = case.call(&graph, &params, &part(0, 6), ALL, &Values::new());
        let second = case.call(&graph, &params, &part(6, 9), ALL, &first);
        let logits = |values: &Values| values["logits"].as_real().unwrap().clone();
        let both = concatenate(Axis(1), &[logits(&first).view(), logits(&second).view()]).unwrap();
        case.assert_agree(&both, &logits(&whole));
        for (output, value) in &whole {
            case.assert_agree(
                if output == "logits" { &both } else { second[output].as_real().unwrap() },
                value.as_real().unwrap(),
            );
        }
    }
}

/// The logits of each row's last visible token alone are those among all.
#[test]
fn last_logits_are_among_all() {
    for name in ["qwen2_window", "gpt2_by_layer"] {
        let case = saved(name);
        let all = case.run(None, &case.given, ALL);
        let last = case.run(None, &case.given, LAST);
        assert_eq!(last.shape(), [4, 1, 31]);
        for (row, token) in [(0, 8), (1, 5), (2, 8), (3, 6)] {
            let expected = all.index_axis(Axis(0), row).index_axis(Axis(0), token).to_owned().into_dyn();
            let ours = last.index_axis(Axis(0), row).index_axis(Axis(0), 0).to_owned().into_dyn();
            assert_eq!(ours, expected);
        }
    }
}

#[test]
fn graphs() {
    for name in ["bert", "llama"] {
        let config = common::models::config(name);
        let architecture = Architecture::from_config(config.as_object().unwrap()).unwrap();
        insta::assert_snapshot!(name, text::print(&architecture.graph(ALL).unwrap()));
    }
}

/// The graph of a small model with these fields in its config.
fn graph_with(model_type: &str, fields: &[(&str, Json)]) -> Graph {
    let mut config = common::models::config(model_type);
    for (field, value) in fields {
        config[field] = value.clone();
    }
    Architecture::from_config(config.as_object().unwrap()).unwrap().graph(ALL).unwrap()
}

/// The recorded models have the default, or one that the numbers hardly show; so the graphs are looked at.
#[test]
fn every_norm_has_the_epsilon_of_the_config() {
    for (model_type, field, default, norms) in [
        ("bert", "layer_norm_eps", 1e-12, 3),
        ("roberta", "layer_norm_eps", 1e-12, 3),
        ("gpt2", "layer_norm_epsilon", 1e-5, 3),
        ("llama", "rms_norm_eps", 1e-6, 3),
        ("qwen2", "rms_norm_eps", 1e-6, 3),
    ] {
        let epsilons = |graph: &Graph| -> Vec<f64> {
            let epsilon = |id| match graph.node(id).op() {
                Op::LayerNorm(norm) => Some(norm.epsilon),
                Op::RmsNorm(norm) => Some(norm.epsilon),
                _ => None,
            };
            graph.order().into_iter().filter_map(epsilon).collect()
        };
        assert_eq!(epsilons(&graph_with(model_type, &[])), vec![default; norms], "{model_type}");
        let other = graph_with(model_type, &[(field, json!(0.25))]);
        assert_eq!(epsilons(&other), vec![0.25; norms], "{model_type}");
    }
}

/// Without `layer_types`, layers from `max_window_layers` on have a window, as configs before transformers 5 say it.
#[test]
fn windows_of_qwen2_begin_at_their_first_layer() {
    let windows = |fields: &[(&str, Json)]| {
        let layers = [("num_hidden_layers", json!(4)), ("sliding_window", json!(3))];
        attentions(&graph_with("qwen2", &[&layers, fields].concat())).into_iter().map(|op| op.window)
    };
    let used = ("use_sliding_window", json!(true));
    let from = |layer: u64| [used.clone(), ("max_window_layers", json!(layer))];
    assert!(windows(&from(2)).eq([None, None, Some(3), Some(3)]));
    assert!(windows(&from(0)).eq([Some(3); 4]));
    assert!(windows(&from(4)).eq([None; 4]));
    assert!(windows(std::slice::from_ref(&used)).eq([None; 4]), "28 layers come first by default");
    assert!(windows(&from(2)[1..]).eq([None; 4]), "no window is used");
}

#[test]
fn gpt2_scales_its_scores_as_the_config_says() {
    let scales = |fields: &[(&str, Json)]| -> Vec<f64> {
        let fields = [&[("n_layer", json!(2))], fields].concat();
        attentions(&graph_with("gpt2", &fields)).iter().map(|attention| attention.scale).collect()
    };
    let by_layer = ("scale_attn_by_inverse_layer_idx", json!(true));
    let by_width = |is_on: bool| ("scale_attn_weights", json!(is_on));
    assert_eq!(scales(&[]), [0.5, 0.5], "heads are 4 wide");
    assert_eq!(scales(&[by_width(true), by_layer.clone()]), [0.5, 0.25]);
    assert_eq!(scales(&[by_width(false)]), [1.0, 1.0]);
    assert_eq!(scales(&[by_width(false), by_layer]), [1.0, 0.5]);
}

#[test]
fn every_architecture_has_the_activation_of_the_config() {
    for (model_type, field) in [
        ("bert", "hidden_act"),
        ("roberta", "hidden_act"),
        ("gpt2", "activation_function"),
        ("llama", "hidden_act"),
        ("qwen2", "hidden_act"),
    ] {
        let graph = graph_with(model_type, &[(field, json!("relu"))]);
        let functions = graph.order().into_iter().filter_map(|id| match graph.node(id).op() {
            // Rotary positions have functions of their own.
            Op::Unary(Unary::Cos | Unary::Sin) => None,
            Op::Unary(function) => Some(*function),
            _ => None,
        });
        assert_eq!(functions.collect::<Vec<_>>(), [Unary::Relu], "{model_type}");
    }
}

#[test]
fn what_an_architecture_says_of_itself() {
    let told = |name: &str| {
        let config = common::models::config(name);
        let it = Architecture::from_config(config.as_object().unwrap()).unwrap();
        assert_eq!(it.name(), name);
        (it.kind(), it.vocab(), it.hidden(), it.context())
    };
    assert_eq!(told("bert"), (Kind::Encoder, 31, 16, 12));
    assert_eq!(told("roberta"), (Kind::Encoder, 31, 16, 10), "two positions are the padding's and before it");
    assert_eq!(told("gpt2"), (Kind::Decoder, 31, 16, 12));
    assert_eq!(told("llama"), (Kind::Decoder, 31, 16, 12));
    assert_eq!(told("qwen2"), (Kind::Decoder, 31, 16, 12));
    assert_eq!(Architecture::supported().count(), 7);
}

/// Old names, wrappers, buffers and heads: the tensors of files as they are on the hub come out under the graph's names.
#[test]
fn tensors_are_found_by_their_usual_names() {
    let bert = Recorded::open(data("peft").join("bert_dora"));
    let renamed = |name: &str| {
        let name =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let mut file: Weights = bert.weights.iter().map(|(name, data)| (renamed(name), data.clone())).collect();
    file.insert("bert.embeddings.position_ids", Tensor::i64(&[1, 2], vec![0, 1]).unwrap());
    file.insert("bert.pooler.dense.weight", numbers("w", &[48, 48]));
    file.insert("cls.predictions.bias", numbers("b", &[97]));
    let found = bert.architecture.normalise(&file).unwrap();
    assert!(found.weights.iter().eq(bert.weights.iter()));
    assert_eq!(
        found.left_out,
        ["bert.embeddings.position_ids", "bert.pooler.dense.weight", "cls.predictions.bias"]
    );

    let gpt2 = Recorded::open(data("peft").join("gpt2_dora"));
    let bare = |name: &str| name.strip_prefix("transformer.").unwrap().to_owned();
    let mut file: Weights = gpt2.weights.iter().map(|(name, data)| (bare(name), data.clone())).collect();
    file.insert("h.0.attn.bias", numbers("mask", &[1, 1, 64, 64]));
    file.insert("lm_head.weight", file.get("wte.weight").unwrap().clone());
    let found = gpt2.architecture.normalise(&file).unwrap();
    assert!(found.weights.iter().eq(gpt2.weights.iter()));
    assert_eq!(found.left_out, ["h.0.attn.bias", "lm_head.weight"]);

    let llama = Recorded::open(data("peft").join("llama_dora"));
    let mut file = llama.weights.clone();
    file.insert("model.layers.1.self_attn.rotary_emb.inv_freq", numbers("f", &[6]));
    let found = llama.architecture.normalise(&file).unwrap();
    assert!(found.weights.iter().eq(llama.weights.iter()));
}

/// An adapter of a model inside another attaches to the model.
#[test]
fn an_adapter_of_a_classifier_fits() {
    let case = Recorded::open(data("peft").join("bert_dora"));
    let adapter = PeftAdapter::open(data("peft").join("bert_dora")).unwrap();
    let names = adapter.tensors().iter();
    let tensors = names.map(|(name, data)| (format!("base_model.model.bert.{name}"), data.clone())).collect();
    let wrapped = PeftAdapter::new(adapter.config().clone(), &tensors).unwrap();
    case.check(Some(&wrapped), "y");
}

/// Positions are what transformers would number them, and what they are given.
#[test]
fn inputs_are_filled() {
    let given = Weights::from_iter([
        ("input_ids", ids(&[&[1, 1, 7, 8, 9], &[5, 6, 7, 1, 1]])),
        ("attention_mask", ids(&[&[0, 0, 1, 1, 1], &[1, 1, 1, 0, 0]])),
    ]);
    let filled = |name: &str, given: &Weights, past: usize, options: GraphOptions| {
        let config = common::models::config(name);
        let it = Architecture::from_config(config.as_object().unwrap()).unwrap();
        let filled = it.fill_inputs(given, past, options).unwrap();
        filled.into_iter().map(|(name, tensor)| (name.to_owned(), value(&tensor))).collect::<Values>()
    };
    let is =
        |values: &Values, name: &str, rows: &[&[i64]]| assert_eq!(values[name], value(&ids(rows)), "{name}");

    let bert = filled("bert", &given, 0, LAST);
    assert_eq!(bert.len(), 4);
    is(&bert, "position_ids", &[&[0, 0, 0, 1, 2], &[0, 1, 2, 3, 4]]);
    is(&bert, "token_type_ids", &[&[0; 5], &[0; 5]]);
    is(&bert, "attention_mask", &[&[0, 0, 1, 1, 1], &[1, 1, 1, 0, 0]]);
    // padding_idx is 1; padding has its position.
    is(&filled("roberta", &given, 0, ALL), "position_ids", &[&[1, 1, 2, 3, 4], &[2, 3, 4, 1, 1]]);

    let llama = filled("llama", &given, 0, LAST);
    assert_eq!(llama.len(), 4);
    is(&llama, "last_tokens", &[&[4], &[7]]);
    let mut next = Weights::from_iter([("input_ids", ids(&[&[3], &[4]]))]);
    let llama = filled("llama", &next, 5, ALL);
    assert_eq!(llama.len(), 3);
    is(&llama, "position_ids", &[&[5], &[5]]);
    is(&llama, "attention_mask", &[&[1; 6], &[1; 6]]);
    next.insert("attention_mask", ids(&[&[0, 0, 1, 1, 1, 1], &[1; 6]]));
    is(&filled("llama", &next, 5, ALL), "position_ids", &[&[3], &[5]]);
    next.insert("position_ids", Tensor::i32(&[2, 1], vec![7, 2]).unwrap());
    is(&filled("llama", &next, 5, ALL), "position_ids", &[&[7], &[2]]);
}

/// A GGUF file's config and tensors are a model's.
#[test]
fn a_gguf_file_is_a_model() {
    let file = Gguf::open(data_of_models().join("../gguf/llama.gguf")).unwrap();
    let architecture = Architecture::from_config(&file.config().unwrap()).unwrap();
    let tensors = architecture.normalise(&file.weights().unwrap()).unwrap();
    assert_eq!(tensors.weights.len(), architecture.graph(ALL).unwrap().params().len());
    assert_eq!(tensors.left_out, [""; 0]);
}

/// A real decoder from a GGUF file, where there is one, gives transformers' logits. The interpreter takes a minute.
#[test]
fn smollm2() {
    let Some(directory) = std::env::var_os("ENGRAFT_MODELS") else {
        eprintln!("skipped: ENGRAFT_MODELS names no directory of models");
        return;
    };
    let file = Gguf::open(std::path::Path::new(&directory).join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let architecture = Architecture::from_config(&file.config().unwrap()).unwrap();
    let recorded = json(&data("smollm2").join("greedy.json"));
    let prompt: Vec<i64> = serde_json::from_value(recorded["logits"]["ids"].clone()).unwrap();
    let io = Weights::from_iter([("input_ids", ids(&[&prompt]))]);
    let tolerance = serde_json::json!({"tolerance": {"atol": 1e-5, "rtol": 1e-4}});
    let case = Recorded::new(architecture, &file.weights().unwrap(), &io, &tolerance);
    let ours = case.run(None, &case.given, LAST);
    let theirs = read_weights(data("smollm2").join("logits.safetensors")).unwrap();
    let theirs = value(theirs.get("logits").unwrap()).as_real().unwrap().clone();
    case.assert_agree(&ours.to_shape(theirs.len()).unwrap().to_owned().into_dyn(), &theirs);
}

/// The page that says how a model is added shows one as it is, and the line of the table.
#[test]
fn the_page_is_true() {
    let page = include_str!("../../docs/add-a-model.md");
    let blocks: Vec<&str> =
        page.split("```rust,ignore\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks[0], include_str!("../src/models/mistral.rs"));
    assert!(include_str!("../src/models/mod.rs").contains(blocks[1]));
}
