//! Whole models, from their files through compiled code, beside what PEFT, transformers and sentence-transformers
//! recorded.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, data, given, model_directory, reals};
use engraft::Merging;
use engraft::import::models::Logits;
use engraft::import::peft::PeftAdapter;
use engraft::import::safetensors::read_weights;
use engraft::pretrained::sampling::Sampler;
use engraft::pretrained::{CompileOptions, CompiledModel, End, GenerateError, Pretrained, PretrainedError};
use engraft::runtime::{self, KernelSet, Tensor, Weights};
use engraft_testing::{MINILM, SMOLLM2, assert_close, model};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

/// As the recordings ask: `|ours - theirs| <= 1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-4;

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn compiled(base: &Path, adapter: Option<&Path>, merge: bool) -> CompiledModel {
    let mut model = Pretrained::open(base).unwrap();
    if let Some(adapter) = adapter {
        model = model.adapter(adapter).unwrap();
    }
    model.compile(CompileOptions { merge: Merging::all(merge), ..CompileOptions::default() }).unwrap()
}

fn check_case(name: &str) {
    let (base, io) = (model_directory(&case(name)), common::file(name, "io.safetensors"));
    for (adapter, merge, theirs) in
        [(None, false, "y_base"), (Some(case(name)), false, "y"), (Some(case(name)), true, "y")]
    {
        let model = compiled(base.path(), adapter.as_deref(), merge);
        let outputs = model.run(&given(&io)).unwrap();
        assert_eq!(outputs.len(), 1);
        assert_close(&reals(&outputs[0].1), &reals(io.get(theirs).unwrap()), ATOL, RTOL);
    }
}

#[test]
fn bert_dora() {
    check_case("bert_dora");
}

#[test]
fn gpt2_dora() {
    check_case("gpt2_dora");
}

#[test]
fn llama_dora() {
    check_case("llama_dora");
}

/// Three adapters over one base, each on the rows that were recorded with it.
#[test]
fn bert_with_several_adapters() {
    let recorded = data("mixed/bert");
    let (base, io) = (model_directory(&recorded), read_weights(recorded.join("io.safetensors")).unwrap());
    let rows = json(&recorded.join("case.json"))["row_adapters"].clone();
    let theirs = io.get("y").unwrap();
    let width = theirs.len() / theirs.shape()[0];
    let mut compared = 0;
    for name in ["__base__", "a", "b", "c"] {
        let adapter = (name != "__base__").then(|| recorded.join("adapters").join(name));
        let outputs = compiled(base.path(), adapter.as_deref(), false).run(&given(&io)).unwrap();
        for (row, _) in rows.as_array().unwrap().iter().enumerate().filter(|(_, row)| *row == name) {
            let of = |tensor: &Tensor| reals(tensor)[row * width..(row + 1) * width].to_vec();
            assert_close(&of(&outputs[0].1), &of(theirs), ATOL, RTOL);
            compared += 1;
        }
    }
    assert_eq!(compared, theirs.shape()[0]);
}

/// Each model that transformers saved: other architectures, shards, element types, rotary scalings, windows, with rows
/// padded in front, behind and on both sides, compared at the tokens that are there.
#[test]
fn what_transformers_recorded() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("import/tests/data/models");
    let mut checked = Vec::new();
    for entry in fs::read_dir(models).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let io = read_weights(path.join("io.safetensors")).unwrap();
        let outputs = compiled(&path, None, false).run(&given(&io)).unwrap();
        let (ours, theirs) = (&outputs[0].1, io.get("y").unwrap());
        assert_eq!(ours.shape(), theirs.shape());
        let mask = io.get("attention_mask").unwrap().as_i64().unwrap();
        let width = ours.shape()[2];
        let visible = |tensor: &Tensor| -> Vec<f64> {
            let all = reals(tensor);
            let tokens = mask.iter().enumerate().filter(|(_, is_there)| **is_there != 0);
            tokens.flat_map(|(token, _)| all[token * width..(token + 1) * width].to_vec()).collect()
        };
        assert_close(&visible(ours), &visible(theirs), ATOL, RTOL);
        checked.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    checked.sort_unstable();
    let recorded = [
        "gpt2_by_layer",
        "llama3_sharded_bf16",
        "llama_linear_f16",
        "mistral",
        "qwen2_window",
        "roberta",
        "xlm_roberta",
    ];
    assert_eq!(checked, recorded);
}

/// The prompt in one call and token by token are the same, and so are rows padded to a common length.
#[test]
fn a_decoder_carries_keys_and_values() {
    let base = model_directory(&case("llama_dora"));
    let model = compiled(base.path(), Some(&case("llama_dora")), false);
    let io = common::file("llama_dora", "io.safetensors");
    let ids = io.get("input_ids").unwrap();
    let row = ids.as_i64().unwrap()[..ids.shape()[1]].to_vec();
    let input = |ids: &[i64]| {
        Weights::from_iter([("input_ids", Tensor::i64(&[1, ids.len()], ids.to_vec()).unwrap())])
    };
    let whole = reals(&model.run(&input(&row)).unwrap()[0].1);
    let mut session = model.session();
    let mut steps = Vec::new();
    for part in [&row[..3], &row[3..4], &row[4..5], &row[5..]] {
        steps.extend(reals(&model.run_in(&mut session, &input(part)).unwrap()[0].1));
    }
    assert_eq!(session.carried_len(), row.len());
    assert_close(&steps, &whole, 1e-6, 1e-5);
    // Beyond the context.
    let error = model.run_in(&mut session, &input(&[1; 60])).unwrap_err().to_string();
    assert!(error.contains("64"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let base = model_directory(&case("bert_dora"));
    // An adapter made for another model.
    let other = Pretrained::open(base.path()).unwrap().adapter(case("llama_dora")).unwrap();
    let error = other.compile(CompileOptions::default()).err().unwrap().to_string();
    assert!(error.contains("llama_dora") && error.contains("targets none"), "{error}");
    // An encoder does not generate, a decoder does not embed.
    let error = compiled(base.path(), None, false).generator().err().unwrap();
    assert!(matches!(error, PretrainedError::Kind { architecture: "bert", .. }), "{error}");
    let llama = model_directory(&case("llama_dora"));
    let error = compiled(llama.path(), None, false).embedder().err().unwrap();
    assert!(matches!(error, PretrainedError::Kind { architecture: "llama", .. }), "{error}");
    // There is no tokenizer.
    let error = compiled(base.path(), None, false).embedder().err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    // Ids out of range.
    let ids = Weights::from_iter([("input_ids", Tensor::i64(&[1, 2], vec![1, 97]).unwrap())]);
    let error = compiled(base.path(), None, false).run(&ids).unwrap_err().to_string();
    assert!(error.contains("input_ids") && error.contains("97"), "{error}");
    // What ends a text is said wrongly.
    fs::write(base.path().join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
    let error = Pretrained::open(base.path()).unwrap().end_tokens().unwrap_err().to_string();
    assert!(error.ends_with(r#"`eos_token_id` is "</s>", expected an id or a list of ids"#), "{error}");
    fs::write(base.path().join("generation_config.json"), r#"{"eos_token_id": [2, 3]}"#).unwrap();
    assert_eq!(Pretrained::open(base.path()).unwrap().end_tokens().unwrap(), [2, 3]);
    assert!(Pretrained::open(base.path().join("none")).is_err());
}

/// The twelve sentences, with the adapter that PEFT trained and without, alone and together.
#[test]
fn minilm_embeds_as_peft_does() {
    let Some(path) = model(MINILM) else { return };
    let recorded = data("minilm-dora");
    let sentences: Vec<String> =
        serde_json::from_value(json(&recorded.join("case.json"))["sentences"].clone()).unwrap();
    let io = read_weights(recorded.join("io.safetensors")).unwrap();
    for (adapter, name) in [(None, "embeddings_base"), (Some(recorded.as_path()), "embeddings")] {
        let model = compiled(&path, adapter, false);
        let mut embedder = model.embedder().unwrap();
        let together = embedder.embed(&sentences).unwrap();
        let theirs = io.get(name).unwrap();
        let ours: Vec<f64> = together.iter().map(|&x| f64::from(x)).collect();
        assert_close(&ours, &reals(theirs), ATOL, RTOL);
        for (row, sentence) in sentences.iter().enumerate() {
            let alone = embedder.embed(&[sentence]).unwrap();
            let alone: Vec<f64> = alone.iter().map(|&x| f64::from(x)).collect();
            assert_close(&alone, &ours[row * 384..(row + 1) * 384], ATOL, 0.0);
        }
        assert_eq!(embedder.embed::<&str>(&[]).unwrap().shape(), [0, 384]);
    }
}

/// Logits and 64 greedy tokens, as transformers gives them for the same dequantised weights.
#[test]
fn smollm2_goes_on_as_transformers_does() {
    let Some(path) = model(SMOLLM2) else { return };
    let recorded = json(&data("smollm2/greedy.json"));
    let options = CompileOptions { logits: Logits::Last, ..CompileOptions::default() };
    let model = Pretrained::open(&path).unwrap().compile(options).unwrap();

    let ids: Vec<i64> = serde_json::from_value(recorded["logits"]["ids"].clone()).unwrap();
    let ids = Tensor::i64(&[1, ids.len()], ids).unwrap();
    let outputs = model.run(&Weights::from_iter([("input_ids", ids)])).unwrap();
    let theirs = read_weights(data("smollm2/logits.safetensors")).unwrap();
    assert_close(&reals(&outputs[0].1), &reals(theirs.get("logits").unwrap()), ATOL, RTOL);

    // The recording goes on after the tokens that end a text: here they are asked for one by one.
    let prompt: Vec<i64> = serde_json::from_value(recorded["greedy"]["ids"].clone()).unwrap();
    let expected: Vec<i64> = serde_json::from_value(recorded["greedy"]["continuation"].clone()).unwrap();
    assert_eq!(expected.len(), 64);
    let (mut session, mut sampler, mut latest, mut tokens) =
        (model.session(), Sampler::greedy(), prompt, Vec::new());
    for _ in 0..expected.len() {
        let ids = Tensor::i64(&[1, latest.len()], latest).unwrap();
        let outputs = model.run_in(&mut session, &Weights::from_iter([("input_ids", ids)])).unwrap();
        tokens.push(sampler.choose(outputs[0].1.as_f32().unwrap()).unwrap() as i64);
        latest = vec![*tokens.last().unwrap()];
    }
    assert_eq!(tokens, expected);

    let mut generator = model.generator().unwrap();
    let mut pieces = String::new();
    let text = recorded["greedy"]["prompt"].as_str().unwrap();
    let generation =
        generator.generate(text, 64, &mut Sampler::greedy(), |piece| pieces.push_str(piece)).unwrap();
    assert_eq!((generation.end, generation.prompt_tokens), (End::Token, 5));
    assert_eq!(generation.text, pieces);
    assert!(recorded["greedy"]["text"].as_str().unwrap().starts_with(&pieces));
    let expected: Vec<u32> = expected.iter().map(|&id| id as u32).take(generation.tokens.len()).collect();
    assert_eq!(generation.tokens, expected);
    // The same seed draws the same tokens, and few tokens are few.
    let mut drawn = |seed| {
        let mut sampler = Sampler::seeded(0.8, 0.9, seed).unwrap();
        generator.generate(text, 8, &mut sampler, |_| ()).unwrap()
    };
    assert_eq!(drawn(1), drawn(1));
    assert!(drawn(1).tokens.len() <= 8);
    // A model that gives the logits of all tokens goes on in the same way.
    let all = Pretrained::open(&path).unwrap().compile(CompileOptions::default()).unwrap();
    let again = all.generator().unwrap().generate(text, 4, &mut Sampler::greedy(), |_| ()).unwrap();
    assert_eq!(again.tokens, generation.tokens[..4]);
    let error = generator.generate("", 8, &mut Sampler::greedy(), |_| ()).unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt { prompt: 1 }), "{error}");
}

/// Here the adapter is read before it is put on the model.
#[test]
fn one_thread_gives_what_two_give() {
    let base = model_directory(&case("gpt2_dora"));
    let io = common::file("gpt2_dora", "io.safetensors");
    let run = |threads: usize| {
        let adapter = PeftAdapter::open(case("gpt2_dora")).unwrap();
        let model = Pretrained::open(base.path()).unwrap().with_adapter(Path::new("dora"), adapter);
        let runtime =
            runtime::Options { threads: NonZeroUsize::new(threads), kernels: Some(KernelSet::Portable) };
        let model = model.compile(CompileOptions { runtime, ..CompileOptions::default() }).unwrap();
        model.run(&given(&io)).unwrap()
    };
    assert_eq!(run(1), run(2));
}
