//! What sentence-transformers' files say, and pooling against its formula.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_import::sentence::{Pooling, SentenceConfig, pool};
use engraft_runtime::{Source, Tensor};
use engraft_testing::{MINILM, assert_close, model};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The files of a model such as all-MiniLM-L6-v2, by name.
fn files() -> Vec<(&'static str, Json)> {
    let module = |index: u64, kind: &str, path: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({"idx": index, "name": index.to_string(), "path": path, "type": kind})
    };
    let modules = [
        module(0, "Transformer", ""),
        module(1, "Pooling", "1_Pooling"),
        module(2, "Normalize", "2_Normalize"),
    ];
    vec![
        ("modules.json", json!(modules)),
        ("sentence_bert_config.json", json!({"max_seq_length": 256, "do_lower_case": false})),
        (
            "1_Pooling/config.json",
            json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false,
                "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false,
                "pooling_mode_mean_sqrt_len_tokens": false}),
        ),
        (
            "config_sentence_transformers.json",
            json!({"__version__": {"sentence_transformers": "2.0.0"}, "prompts": {"query": "find: ", "none": ""},
                "default_prompt_name": null, "similarity_fn_name": "cosine", "model_type": "SentenceTransformer"}),
        ),
    ]
}

fn write(files: &[(&str, Json)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, json) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, json.to_string()).unwrap();
    }
    directory
}

/// A field of a file: `file:/place`.
fn with(place: &str, value: Json) -> Vec<(&'static str, Json)> {
    let (name, pointer) = place.split_once(':').unwrap();
    let mut files = files();
    let json = &mut files.iter_mut().find(|(file, _)| *file == name).unwrap().1;
    match pointer.rsplit_once('/') {
        None => *json = value,
        Some((parent, field)) => match json.pointer_mut(parent).unwrap() {
            Json::Array(list) if field == "-" => list.push(value),
            Json::Array(list) => list[field.parse::<usize>().unwrap()] = value,
            object => object[field] = value,
        },
    }
    files
}

#[track_caller]
fn assert_refused(directory: &Path, parts: &[&str]) {
    let message = SentenceConfig::read(directory).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn minilm_is_pooled_by_its_mean_and_normalised() {
    let directory = write(&files());
    let mut directories = vec![directory.path().to_owned()];
    directories.extend(model(MINILM));
    for directory in directories {
        let config = SentenceConfig::read(&directory).unwrap();
        // An empty path is the directory itself.
        assert_eq!(config.transformer, directory.join(""));
        assert_eq!((config.max_length, config.dim), (Some(256), Some(384)));
        assert_eq!((config.pooling, config.normalize), (Pooling::Mean, true));
    }
}

#[test]
fn other_ways_of_saying_it_are_read() {
    let read = |files: &[(&str, Json)]| SentenceConfig::read(write(files).path()).unwrap();
    let plain = read(&[]);
    assert_eq!((plain.pooling, plain.normalize, plain.max_length), (Pooling::Mean, false, None));

    let cls = json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": true,
        "pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": false, "include_prompt": true});
    assert_eq!(read(&with("1_Pooling/config.json:", cls)).pooling, Pooling::Cls);
    let newer = json!({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": true});
    let config = read(&with("1_Pooling/config.json:", newer));
    assert_eq!((config.pooling, config.dim), (Pooling::Cls, Some(8)));

    let newer = |kind: &str| {
        json!({"path": kind, "name": kind, "type": match kind {
            "t" => "sentence_transformers.base.modules.transformer.Transformer",
            "1_Pooling" => "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
            _ => "sentence_transformers.base.modules.normalize.Normalize",
        }})
    };
    let mut files = with("modules.json:", json!([newer("t"), newer("1_Pooling")]));
    files.retain(|(name, _)| *name != "sentence_bert_config.json");
    let modality = json!({"text": {"method": "forward", "method_output_name": "last_hidden_state"}});
    files.push((
        "t/sentence_roberta_config.json",
        json!({"max_seq_length": null, "transformer_task": "feature-extraction", "modality_config": modality,
            "module_output_name": "token_embeddings", "model_args": {}}),
    ));
    let directory = write(&files);
    let config = SentenceConfig::read(directory.path()).unwrap();
    assert_eq!(config.transformer, directory.path().join("t"));
    assert_eq!((config.max_length, config.normalize), (None, false));
    // A prompt that is there by default, but empty.
    let files = with("config_sentence_transformers.json:/default_prompt_name", json!("none"));
    assert_eq!(read(&files).max_length, Some(256));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    const GENERAL: &str = "config_sentence_transformers.json:";
    const BERT: &str = "sentence_bert_config.json:";
    const POOLING: &str = "1_Pooling/config.json:";
    let way = |name: &str| format!("{POOLING}/pooling_mode_{name}");
    let kind = "modules.json:/1/type";
    let dense =
        json!({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"});
    let cases: &[(&str, Json, &[&str])] = &[
        (
            "modules.json:/2",
            dense.clone(),
            &["modules.json", "module 2 is sentence_transformers.models.Dense"],
        ),
        ("modules.json:/-", dense, &["module 3 is sentence_transformers.models.Dense"]),
        (
            kind,
            json!("sentence_transformers.models.WeightedLayerPooling"),
            &["module 1 is", "WeightedLayerPooling"],
        ),
        (kind, json!("other.Pooling"), &["module 1 is other.Pooling"]),
        (kind, json!(7), &["`type` is 7, expected a string"]),
        (
            "modules.json:/0",
            json!({"type": "sentence_transformers.models.Transformer"}),
            &["`path` is missing"],
        ),
        ("modules.json:", json!([]), &["module 0 is missing"]),
        ("modules.json:", json!({}), &["modules.json", "malformed"]),
        ("modules.json:/1/path", json!("../other"), &["`path` is \"../other\""]),
        ("modules.json:/1/path", json!("/etc"), &["`path` is \"/etc\""]),
        ("modules.json:/1/path", json!("elsewhere"), &["elsewhere", "config.json", "not found"]),
        ("modules.json:/1/name", json!("0"), &["`name` is \"0\"", "a name of its own"]),
        ("modules.json:/1/kwargs", json!(["task"]), &["`kwargs` is [\"task\"]", "no such field"]),
        (
            &format!("{GENERAL}/default_prompt_name"),
            json!("query"),
            &["`default_prompt_name` is \"query\"", "prompt"],
        ),
        (&format!("{GENERAL}/default_prompt_name"), json!("other"), &["\"other\"", "one of `prompts`"]),
        (&format!("{GENERAL}/default_prompt_name"), json!(7), &["`default_prompt_name` is 7"]),
        (&format!("{GENERAL}/model_type"), json!("SparseEncoder"), &["`model_type` is \"SparseEncoder\""]),
        (&format!("{GENERAL}/truncate_dim"), json!(64), &["`truncate_dim` is 64", "no such field"]),
        (&format!("{BERT}/do_lower_case"), json!(true), &["`do_lower_case` is true", "lower case"]),
        (
            &format!("{BERT}/do_lower_case"),
            json!("no"),
            &["`do_lower_case` is \"no\", expected true or false"],
        ),
        (&format!("{BERT}/max_seq_length"), json!(0), &["`max_seq_length` is 0", "positive"]),
        (&format!("{BERT}/max_seq_length"), json!(1.5), &["`max_seq_length` is 1.5"]),
        (&format!("{BERT}/max_seq_length"), json!({"a": 1}), &["`max_seq_length` is {\"a\":1}"]),
        (&format!("{BERT}/model_args"), json!({"x": 1}), &["`model_args` is {\"x\":1}"]),
        (&format!("{BERT}/transformer_task"), json!("fill-mask"), &["`transformer_task` is \"fill-mask\""]),
        (&format!("{BERT}/module_output_name"), json!("logits"), &["`module_output_name` is \"logits\""]),
        (&format!("{BERT}/modality_config"), json!({"image": {}}), &["`modality_config` is {\"image\":{}}"]),
        (&way("max_tokens"), json!(true), &["1_Pooling/config.json", "[\"max\", \"mean\"]"]),
        (&way("cls_token"), json!(true), &["[\"cls\", \"mean\"]"]),
        (&way("mean_sqrt_len_tokens"), json!(true), &["mean_sqrt_len_tokens"]),
        (&way("weightedmean_tokens"), json!(true), &["weightedmean"]),
        (&way("lasttoken"), json!(true), &["lasttoken"]),
        (&way("mean_tokens"), json!(false), &["the pooling is []"]),
        (&way("mean_tokens"), json!(1), &["`pooling_mode_mean_tokens` is 1"]),
        (&way("median_tokens"), json!(true), &["`pooling_mode_median_tokens` is true", "no such field"]),
        (POOLING, json!({"pooling_mode": "max"}), &["[\"max\"]"]),
        (POOLING, json!({"pooling_mode": ["mean", "max"]}), &["`pooling_mode` is [\"mean\",\"max\"]"]),
        (POOLING, json!({"pooling_mode_cls_token": true}), &["`pooling_mode_mean_tokens` is missing"]),
        (&format!("{POOLING}/word_embedding_dimension"), json!(-1), &["`word_embedding_dimension` is -1"]),
        (&format!("{POOLING}/include_prompt"), json!("yes"), &["`include_prompt` is \"yes\""]),
    ];
    for (place, value, parts) in cases {
        let directory = write(&with(place, value.clone()));
        assert_refused(directory.path(), parts);
    }
}

#[test]
fn files_that_are_no_files_are_refused() {
    let mut more = files();
    more.push(("2_Normalize/config.json", json!({"p": 1})));
    assert_refused(write(&more).path(), &["2_Normalize/config.json", "`p` is 1"]);

    let directory = write(&files());
    let path = directory.path().join("modules.json");
    fs::write(&path, r#"[{"name": "0", "name": "1"}]"#).unwrap();
    assert_refused(directory.path(), &["modules.json", "two fields `name`"]);
    fs::write(&path, "[".repeat(100_000)).unwrap();
    assert_refused(directory.path(), &["malformed"]);
    fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert_refused(directory.path(), &["more than 1048576 bytes"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_refused(directory.path(), &["modules.json", "directory"]);
}

proptest! {
    /// Against the formulas of sentence-transformers' `Pooling` and torch's `normalize`, in f64: by a weighted sum over
    /// all tokens, not a sum over those that the mask leaves.
    #[test]
    fn pooling_is_its_formula(
        (batch, seq, dim) in (1_usize..4, 1_usize..6, 1_usize..5),
        seed in prop::collection::vec(-8.0_f32..8.0, 120),
        ones in prop::collection::vec(any::<bool>(), 24),
        normalize: bool,
    ) {
        let states = &seed[..batch * seq * dim];
        // The first token stays, as with every padding on the right.
        let mask: Vec<f32> = (0..batch * seq).map(|at| if at % seq == 0 || ones[at] { 1.0 } else { 0.0 }).collect();
        let hidden = Tensor::f32(&[batch, seq, dim], states.to_vec()).unwrap();
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let mut expected = Vec::new();
            for row in 0..batch {
                let at = |token: usize, element: usize| f64::from(states[(row * seq + token) * dim + element]);
                let weight = |token: usize| f64::from(mask[row * seq + token]);
                let total: f64 = (0..seq).map(weight).sum();
                let vector: Vec<f64> = (0..dim).map(|element| match pooling {
                    Pooling::Mean => (0..seq).map(|t| weight(t) * at(t, element)).sum::<f64>() / total.max(1e-9),
                    Pooling::Cls => at(0, element),
                }).collect();
                let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
                expected.extend(vector.iter().map(|x| if normalize { x / norm.max(1e-12) } else { *x }));
            }
            let integers = mask.iter().map(|&x| x as i64).collect();
            let small = mask.iter().map(|&x| x as i32).collect();
            for mask in [
                Tensor::f32(&[batch, seq], mask.clone()).unwrap(),
                Tensor::i64(&[batch, seq], integers).unwrap(),
                Tensor::i32(&[batch, seq], small).unwrap(),
            ] {
                let pooled = pool(&hidden, &mask, pooling, normalize).unwrap();
                prop_assert_eq!(pooled.shape(), [batch, dim]);
                let ours: Vec<_> = pooled.as_f32().unwrap().iter().copied().map(f64::from).collect();
                assert_close(&ours, &expected, 1e-7, 1e-6);
            }
        }
    }
}

#[test]
fn small_and_large_sums_keep_their_precision() {
    // A sum in f32 would lose the ones.
    let hidden = Tensor::f32(&[1, 3, 1], vec![1e8, 1.0, -1e8]).unwrap();
    let mask = Tensor::i64(&[1, 3], vec![1; 3]).unwrap();
    let mean = pool(&hidden, &mask, Pooling::Mean, false).unwrap();
    assert_eq!(mean.as_f32().unwrap(), [1.0 / 3.0]);
    // Below the epsilon, a vector is not brought to length 1, and zero stays zero.
    let hidden = Tensor::f32(&[2, 1, 2], vec![3e-13, 4e-13, 0.0, 0.0]).unwrap();
    let mask = Tensor::i64(&[2, 1], vec![1; 2]).unwrap();
    let pooled = pool(&hidden, &mask, Pooling::Mean, true).unwrap();
    assert_close(
        &pooled.as_f32().unwrap().iter().map(|&x| x.into()).collect::<Vec<f64>>(),
        &[0.3, 0.4, 0.0, 0.0],
        1e-7,
        0.0,
    );
    // The first token that the mask leaves, where padding stands on the left.
    let hidden = Tensor::f32(&[1, 2, 1], vec![7.0, 5.0]).unwrap();
    let mask = Tensor::i64(&[1, 2], vec![0, 1]).unwrap();
    assert_eq!(pool(&hidden, &mask, Pooling::Cls, false).unwrap().as_f32().unwrap(), [5.0]);
}

struct Ones;

impl Source for Ones {
    fn read(&self, _: usize, to: &mut [f32]) {
        to.fill(1.0);
    }
}

#[test]
fn what_cannot_be_pooled_is_refused() {
    let f32s = |shape: &[usize], data: &[f32]| Tensor::f32(shape, data.to_vec()).unwrap();
    let hidden = f32s(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let cases = [
        (
            f32s(&[2, 2], &[0.0; 4]),
            f32s(&[2, 2], &[1.0; 4]),
            "the hidden states are f32 [2, 2], expected f32 [batch",
        ),
        (
            Tensor::i64(&[1, 1, 1], vec![0]).unwrap(),
            f32s(&[1, 1], &[1.0]),
            "the hidden states are i64 [1, 1, 1]",
        ),
        (
            hidden.clone(),
            f32s(&[1, 2], &[1.0; 2]),
            "the mask is f32 [1, 2], expected a number for each token, [2, 1]",
        ),
        (hidden.clone(), f32s(&[2, 1], &[1.0, 0.5]), "the mask of token 0 in row 1 is 0.5, expected 0 or 1"),
        (hidden.clone(), f32s(&[2, 1], &[f32::NAN, 1.0]), "the mask of token 0 in row 0 is NaN"),
        (hidden.clone(), f32s(&[2, 1], &[1.0, 0.0]), "the mask leaves no token of row 1"),
        (f32s(&[1, 0, 2], &[]), f32s(&[1, 0], &[]), "the mask leaves no token of row 0"),
        (
            f32s(&[1, 1, 2], &[1.0, f32::NAN]),
            f32s(&[1, 1], &[1.0]),
            "element 1 of row 0 is NaN after pooling",
        ),
        (f32s(&[1, 1, 1], &[f32::INFINITY]), f32s(&[1, 1], &[1.0]), "element 0 of row 0 is inf"),
    ];
    for (hidden, mask, message) in cases {
        let found = pool(&hidden, &mask, Pooling::Mean, true).unwrap_err().to_string();
        assert!(found.contains(message), "{found:?} should contain {message:?}");
    }

    // States that are still to be made, more than any machine has memory for, are not of a wrong shape.
    let hidden = Tensor::stored(&[1, 1, 1 << 60], Ones).unwrap();
    let found = pool(&hidden, &f32s(&[1, 1], &[1.0]), Pooling::Mean, true).unwrap_err().to_string();
    assert!(found.starts_with("there is no memory for the"), "{found}");
}
