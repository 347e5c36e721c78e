//! The command on whole models: what it prints and writes, and what it says of bad input.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, data, file, model_directory, reals};
use engraft::import::safetensors::{read_weights, write};
use engraft::runtime::Tensor;
use engraft_testing::{MINILM, SMOLLM2, assert_close, model};
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn engraft(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may fail before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn succeeds(arguments: &[&str], input: &str) -> String {
    let output = engraft(arguments, input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a failing command says.
#[track_caller]
fn fails(arguments: &[&str]) -> String {
    let output = engraft(arguments, "");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn path(of: &std::path::Path) -> &str {
    of.to_str().unwrap()
}

#[test]
fn run_takes_a_directory_an_adapter_and_inputs() {
    for (name, output) in
        [("bert_dora", "last_hidden_state"), ("llama_dora", "logits"), ("gpt2_dora", "logits")]
    {
        let (base, place) = (model_directory(&case(name)), tempfile::tempdir().unwrap());
        let (input, written) = (case(name).join("io.safetensors"), place.path().join("y.safetensors"));
        let adapter = case(name);
        let printed = succeeds(
            &[
                "run",
                path(base.path()),
                "--adapter",
                path(&adapter),
                "--input",
                path(&input),
                "--output",
                path(&written),
            ],
            "",
        );
        assert!(printed.contains(&format!("{output} f32[3, 11, ")), "{printed}");
        // What is in the file beside the inputs is told, for it may be a misspelt one.
        assert!(printed.contains("ignored, since the model has no such input: y, y_base"), "{printed}");
        let (ours, theirs) = (read_weights(&written).unwrap(), file(name, "io.safetensors"));
        assert_close(&reals(ours.get(output).unwrap()), &reals(theirs.get("y").unwrap()), 1e-5, 1e-4);
    }
}

#[test]
fn verify_proves_a_whole_model() {
    let base = model_directory(&case("bert_dora"));
    let adapter = case("bert_dora");
    let printed = succeeds(&["verify", path(base.path()), "--adapter", path(&adapter)], "");
    assert!(printed.contains("fuse_dora"), "{printed}");
}

#[test]
fn bad_models_are_one_line_that_names_them() {
    let base = model_directory(&case("bert_dora"));
    let config = base.path().join("config.json");
    let original = fs::read_to_string(&config).unwrap();
    let embed = |adapter: Option<&str>| {
        let mut arguments = vec!["embed", path(base.path())];
        arguments.extend(adapter.into_iter().flat_map(|adapter| ["--adapter", adapter]));
        fails(&arguments)
    };
    assert!(embed(None).contains("tokenizer.json"));
    let adapter = case("llama_dora");
    assert!(embed(Some(path(&adapter))).contains("llama_dora"));
    assert!(fails(&["generate", path(base.path()), "--prompt", "x"]).contains("expected a decoder"));
    let ids = base.path().join("ids.safetensors");
    write(&ids, &[("input_ids", Tensor::i64(&[1, 2], vec![0, -1]).unwrap())]).unwrap();
    let run = ["run", path(base.path()), "--input", path(&ids), "--output", "never-written"];
    let line = fails(&run);
    assert!(
        line.contains("ids.safetensors: input `input_ids`, row 0, token 1: -1 is out of range"),
        "{line}"
    );
    let tokenizer = base.path().join("tokenizer.json");
    fs::write(
        &tokenizer,
        r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordPiece", "unk_token": "?",
        "continuing_subword_prefix": "", "max_input_chars_per_word": 9, "vocab": {"?": 0, "a": 99999}}}"#,
    )
    .unwrap();
    let line = embed(None);
    assert!(line.contains("tokenizer.json: the tokenizer has 100000 ids, but the model has"), "{line}");
    fs::write(&config, original.replace("\"gelu\"", "\"swiglu\"")).unwrap();
    let line = embed(None);
    assert!(line.contains("config.json") && line.contains("hidden_act") && line.contains("swiglu"), "{line}");
    fs::write(&config, "{").unwrap();
    assert!(embed(None).contains("config.json"));
    fs::write(&config, &original).unwrap();
    let weights = base.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    assert!(embed(None).contains("model.safetensors"));
    fs::remove_file(&weights).unwrap();
    assert!(embed(None).contains("model.safetensors"));
    let gguf = base.path().join("broken.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    assert!(fails(&["generate", path(&gguf), "--prompt", "x"]).contains("broken.gguf"));
}

/// What sentence-transformers' files say is blamed on them, by the field.
#[test]
fn sentence_files_that_do_not_fit_are_named() {
    let base = model_directory(&case("bert_dora"));
    let put = |file: &str, json: serde_json::Value| {
        let file = base.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, json.to_string()).unwrap();
    };
    let module = |index: usize, name: &str, path: &str| {
        let kind = format!("sentence_transformers.models.{name}");
        serde_json::json!({"idx": index, "name": index.to_string(), "path": path, "type": kind})
    };
    put("modules.json", serde_json::json!([module(0, "Transformer", ""), module(1, "Pooling", "pool")]));
    put("sentence_bert_config.json", serde_json::json!({"max_seq_length": 1}));
    put("pool/config.json", serde_json::json!({"word_embedding_dimension": 48, "pooling_mode": "mean"}));
    put(
        "tokenizer.json",
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["w1", 1], "cls": ["w0", 0]},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "w0", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9, "vocab": {"w0": 0, "w1": 1}},
        }),
    );
    let line = fails(&["embed", path(base.path())]);
    let expected =
        "sentence_bert_config.json: `max_seq_length` is 1, expected more than the 2 special tokens";
    assert!(line.contains(expected), "{line}");
    put("sentence_bert_config.json", serde_json::json!({"max_seq_length": 3}));
    assert_eq!(succeeds(&["embed", path(base.path())], "w1 w1").lines().count(), 1);
    // What the model has no positions for is cut off, whatever the files say.
    put("sentence_bert_config.json", serde_json::json!({"max_seq_length": 1000}));
    let [long, longer] = [38, 100].map(|words| "w1 ".repeat(words));
    let embedding = |text: &str| {
        let line: serde_json::Value =
            serde_json::from_str(&succeeds(&["embed", path(base.path())], text)).unwrap();
        line["embedding"].clone()
    };
    assert_eq!(embedding(&long), embedding(&longer));
    put("pool/config.json", serde_json::json!({"word_embedding_dimension": 49, "pooling_mode": "mean"}));
    let line = fails(&["embed", path(base.path())]);
    let expected = "pool/config.json: the pooling is said to give 49 numbers, expected 48";
    assert!(line.contains(expected), "{line}");
}

#[test]
fn embed_prints_lines_of_json_or_writes_an_array() {
    let Some(minilm) = model(MINILM) else { return };
    let (adapter, place) = (data("minilm-dora"), tempfile::tempdir().unwrap());
    let json = fs::read_to_string(adapter.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sentences: Vec<String> = serde_json::from_value(json["sentences"].clone()).unwrap();
    let text = sentences.join("\n");
    let printed = succeeds(&["embed", path(&minilm), "--adapter", path(&adapter)], &text);
    let io = read_weights(adapter.join("io.safetensors")).unwrap();
    let theirs = reals(io.get("embeddings").unwrap());
    let mut ours = Vec::new();
    for (line, sentence) in printed.lines().zip(&sentences) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["text"], **sentence);
        ours.extend(line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()));
    }
    assert_close(&ours, &theirs, 1e-5, 1e-4);

    let (file, npy) = (place.path().join("texts.txt"), place.path().join("v.npy"));
    fs::write(&file, &text).unwrap();
    succeeds(
        &[
            "embed",
            path(&minilm),
            "--adapter",
            path(&adapter),
            "--merge",
            "--text",
            path(&file),
            "--output",
            path(&npy),
        ],
        "",
    );
    let array: ndarray::Array2<f32> = ndarray_npy::read_npy(&npy).unwrap();
    assert_eq!(array.shape(), [12, 384]);
    let array: Vec<f64> = array.iter().map(|&x| f64::from(x)).collect();
    assert_close(&array, &theirs, 1e-5, 1e-4);
    assert!(fails(&["embed", path(&minilm), "--merge"]).contains("no adapter that could be merged"));
}

#[test]
fn generate_prints_text_or_facts() {
    let Some(smollm2) = model(SMOLLM2) else { return };
    let arguments = ["generate", path(&smollm2), "--prompt", "The capital of France is", "--tokens", "4"];
    let printed = succeeds(&arguments, "");
    assert!(printed.starts_with(" Paris.\n"), "{printed}");
    let facts = succeeds(&[arguments.as_slice(), &["--json"]].concat(), "");
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["tokens"], serde_json::json!([7042, 30, 198, 198]));
    assert_eq!(facts["end"], "token limit");
    let bad = [arguments.as_slice(), &["--temperature=-1"]].concat();
    assert!(fails(&bad).contains("the temperature is -1"));
}

/// Prompts go on together, each with its adapter, as each does alone with it.
#[test]
fn each_prompt_goes_on_with_its_own_adapter() {
    let Some(smollm2) = model(SMOLLM2) else { return };
    let files = tempfile::tempdir().unwrap();
    let (adapter, rows) = (files.path().join("adapter"), files.path().join("rows.txt"));
    lora_of_smollm2(&adapter);
    fs::write(&rows, "a\n-\na\n").unwrap();
    let prompts = ["The capital of France is", "One, two, three, four, five,", "Once upon a time"];
    let tokens = |arguments: &[&str], prompts: &[&str]| -> Vec<serde_json::Value> {
        let fixed = ["generate", path(&smollm2), "--tokens", "4", "--json"];
        let prompts = prompts.iter().flat_map(|prompt| ["--prompt", prompt]);
        let all: Vec<_> = fixed.into_iter().chain(prompts).chain(arguments.iter().copied()).collect();
        let printed = succeeds(&all, "");
        let each = serde_json::Deserializer::from_str(&printed).into_iter::<serde_json::Value>();
        each.map(|facts| facts.unwrap()["tokens"].clone()).collect()
    };
    let (rows, named) = (format!("--rows={}", path(&rows)), format!("--adapter=a={}", path(&adapter)));
    let together = tokens(&[&rows, &named], &prompts);
    let adapted = tokens(&[&format!("--adapter={}", path(&adapter))], &prompts);
    let plain = tokens(&[], &prompts);
    assert_eq!(together, [&adapted[0], &plain[1], &adapted[2]].map(Clone::clone));
    assert!(adapted[0] != plain[0] && adapted[1] != plain[1]);
    assert_eq!(tokens(&[], &prompts[1..2]), plain[1..2]);
}

/// A `LoRA` of rank 1 on each layer that ends a block's MLP, with as much effect as changes tokens.
fn lora_of_smollm2(directory: &std::path::Path) {
    let factor = |out: usize, k: usize| {
        let elements = (0..out * k).map(|index| ((index * 37 % 101) as f32 - 50.0) / 100.0).collect();
        Tensor::f32(&[out, k], elements).unwrap()
    };
    let module = |layer: usize| {
        let name =
            |part: &str| format!("base_model.model.model.layers.{layer}.mlp.down_proj.lora_{part}.weight");
        [(name("A"), factor(1, 1536)), (name("B"), factor(576, 1))]
    };
    let tensors: Vec<_> = (0..30).flat_map(module).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    fs::create_dir(directory).unwrap();
    write(directory.join("adapter_model.safetensors"), &tensors).unwrap();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"],
    });
    fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
}

/// `--adapter NAME=DIR` for each of a recording's adapters, and a file with the rows' names.
fn with_rows(recorded: &std::path::Path, rows: &std::path::Path) -> Vec<String> {
    let json = fs::read_to_string(recorded.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names = json["row_adapters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let lines: Vec<_> = names.map(|name| name.replace("__base__", "-")).collect();
    fs::write(rows, lines.join("\n")).unwrap();
    let adapter = |name| format!("--adapter={name}={}", path(&recorded.join("adapters").join(name)));
    ["a", "b", "c"].map(adapter).into_iter().chain([format!("--rows={}", path(rows))]).collect()
}

#[test]
fn each_row_of_a_run_has_its_own_adapter() {
    let (recorded, files) = (data("mixed/bert"), tempfile::tempdir().unwrap());
    let (base, output) = (model_directory(&recorded), files.path().join("y.safetensors"));
    let adapters = with_rows(&recorded, &files.path().join("rows.txt"));
    let (input, output) =
        (format!("--input={}", path(&recorded.join("io.safetensors"))), path(&output).to_owned());
    let mut arguments = vec!["run", path(base.path()), &input, "--output", &output];
    arguments.extend(adapters.iter().map(String::as_str));
    succeeds(&arguments, "");
    let (ours, theirs) =
        (read_weights(&output).unwrap(), read_weights(recorded.join("io.safetensors")).unwrap());
    assert_close(
        &reals(ours.get("last_hidden_state").unwrap()),
        &reals(theirs.get("y").unwrap()),
        1e-5,
        1e-4,
    );
    // The plan says which layers may be adapted.
    let mut arguments = vec!["show", path(base.path()), "--stage=plan"];
    arguments.extend(adapters.iter().map(String::as_str));
    let plan = succeeds(&arguments, "");
    assert!(plan.contains("adaptable as encoder.layer.1.intermediate.dense"), "{plan}");
}

#[test]
fn adapters_and_rows_that_do_not_fit_are_one_line() {
    let (recorded, files) = (data("mixed/bert"), tempfile::tempdir().unwrap());
    let base = model_directory(&recorded);
    let (a, rows) = (path(&recorded.join("adapters/a")).to_owned(), files.path().join("rows.txt"));
    let input = format!("--input={}", path(&recorded.join("io.safetensors")));
    let run = |lines: &str, adapters: &[String]| {
        fs::write(&rows, lines).unwrap();
        let rows = format!("--rows={}", path(&rows));
        let output = format!("--output={}", path(&files.path().join("y.safetensors")));
        let mut arguments = vec!["run", path(base.path()), &input, &output, &rows];
        arguments.extend(adapters.iter().map(String::as_str));
        fails(&arguments)
    };
    let named = |name: &str| format!("--adapter={name}={a}");
    let told = run("a\nd\n", &[named("a"), named("b")]);
    assert!(
        told.contains("rows.txt, line 2: there is no adapter `d`; expected `-` for the base or one of: a, b"),
        "{told}"
    );
    let told = run("a\n", &[named("a"), named("a")]);
    assert!(told.contains("two adapters are called `a`"), "{told}");
    let told = run("a\n", &[format!("--adapter={a}")]);
    assert!(told.contains("with --rows every adapter has a name, as --adapter NAME=DIR"), "{told}");
    let told = run("a\n-\n", &[named("a")]);
    assert!(told.contains("rows.txt: layer `"), "{told}");
    assert!(told.contains("has 13 items, but adapters are given for 2"), "{told}");
    assert!(!told.contains("io.safetensors"), "the input is not to blame: {told}");
    let told = fails(&["run", path(base.path()), &input, "--output=y", &named("a"), &named("b")]);
    assert!(told.contains("say which row has which with --rows"), "{told}");
    let rows = format!("--rows={}", path(&rows));
    let told = fails(&["verify", path(base.path()), &named("a"), &rows]);
    assert!(told.contains("this command takes one adapter at most"), "{told}");
}

#[test]
fn each_text_is_embedded_with_its_own_adapter() {
    let Some(minilm) = model(MINILM) else { return };
    let (adapter, files) = (data("minilm-dora"), tempfile::tempdir().unwrap());
    let rows = files.path().join("rows.txt");
    fs::write(&rows, "a\n-\na\n").unwrap();
    let (rows, named) = (format!("--rows={}", path(&rows)), format!("--adapter=a={}", path(&adapter)));
    let texts = "the package is late again\nI forgot my login\nis anyone there?\n";
    let embeddings = |arguments: &[&str], texts: &str| -> Vec<Vec<f64>> {
        let all: Vec<_> = ["embed", path(&minilm)].iter().chain(arguments).copied().collect();
        let line = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            json["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        succeeds(&all, texts).lines().map(line).collect()
    };
    let mixed = embeddings(&[&named, &rows], texts);
    let plain = embeddings(&[], texts);
    let adapted = embeddings(&[&format!("--adapter={}", path(&adapter))], texts);
    for (row, expected) in [&adapted[0], &plain[1], &adapted[2]].into_iter().enumerate() {
        assert_close(&mixed[row], expected, 1e-5, 1e-4);
    }
    assert!(mixed[0] != plain[0]);
}
