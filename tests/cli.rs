//! The command as a user calls it: what succeeds, what is refused in one line, and with which exit code.
#![allow(clippy::unwrap_used, reason = "tests unwrap, also outside test functions")]

mod common;

use common::{base, case, file, printed, refused};
use engraft::import::safetensors::{read_weights, write};
use engraft::ir::json;
use engraft::prelude::{F32, GraphBuilder, dims};
use engraft::runtime::Tensor;
use engraft::snapshot;
use engraft_testing::assert_close;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(arguments);
    command
}

fn engraft(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// What a successful command prints.
#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    printed(arguments, engraft(arguments))
}

/// Requires exit code 1 and one line of error that says all of this.
#[track_caller]
fn refuses(arguments: &[&str], parts: &[&str]) {
    refused(arguments, engraft(arguments), parts);
}

/// A directory with the base of the case `dora` as text and JSON, and what else a test puts there.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        let graph = base("dora");
        place.put("mlp.txt", snapshot::built(&graph));
        place.put("mlp.json", json::to_string(&graph));
        place
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn tensors(&self, name: &str, tensors: &[(&str, Tensor)]) -> String {
        write(self.path(name), tensors).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

/// A file of the case `dora`.
fn dora(file: &str) -> String {
    case("dora").join(file).to_str().unwrap().to_owned()
}

#[track_caller]
fn assert_y(path: impl AsRef<Path>, expected: &str) {
    let reals =
        |tensor: &Tensor| -> Vec<f64> { tensor.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect() };
    let (ours, recorded) = (read_weights(path).unwrap(), file("dora", "io.safetensors"));
    let (ours, theirs) = (ours.get("y").unwrap(), recorded.get(expected).unwrap());
    assert_eq!(ours.shape(), theirs.shape());
    assert_close(&reals(ours), &reals(theirs), 1e-5, 1e-4);
}

#[test]
fn demo_agrees_and_fits_the_page() {
    let text = succeeds(&["demo"]);
    assert_eq!(text.matches(": agrees").count(), 2, "{text}");
    let headings: Vec<_> =
        text.lines().filter(|line| line.starts_with(char::is_numeric)).map(|line| &line[..1]).collect();
    assert_eq!(headings, ["1", "2", "3", "4", "5", "6"]);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains('\x1b'), "no colours but on a terminal");
}

#[test]
fn demo_as_json() {
    let facts: serde_json::Value = serde_json::from_str(&succeeds(&["demo", "--json"])).unwrap();
    assert_eq!(facts["times"].as_array().unwrap().len(), 3);
    assert!(facts["agreement"][0]["tolerances"].as_f64().unwrap() <= 1.0);
}

/// Nothing is said of the times: only that they are there, and that what was timed agreed.
#[test]
fn bench_compares_and_fits_the_page() {
    let text = succeeds(&["bench", "--shape", "32x48:2,48x32:3", "--batch", "1,32", "--threads", "2"]);
    for part in ["2 threads", "32 to 48, r 2", "48 to 32, r 3", "% read", "% tile", "speedup"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn bench_as_json() {
    let small = ["bench", "--json", "--shape", "17x33:2", "--batch", "1,32"];
    let facts: serde_json::Value = serde_json::from_str(&succeeds(&small)).unwrap();
    let machine = &facts["machine"];
    assert_eq!(machine["threads"], 1);
    for field in ["architecture", "operating_system", "kernels", "cpu_features", "available_threads"] {
        assert!(!machine[field].is_null(), "{field}: {machine}");
    }
    let layer = &facts["layers"][0];
    let sizes = ["shape", "inputs", "outputs", "rank"].map(|field| &layer[field]);
    assert_eq!(serde_json::json!(sizes), serde_json::json!(["17x33:2", 17, 33, 2]));
    assert!(layer["compile_microseconds"].is_number());
    for (facts, batch) in layer["batches"].as_array().unwrap().iter().zip([1, 32]) {
        assert_eq!(facts["batch"], batch);
        for way in ["dense", "unmerged", "merged", "live"] {
            assert!(facts["agreement"][way]["tolerances"].as_f64().unwrap() <= 1.0);
            assert!(facts[format!("{way}_microseconds")].is_number(), "{way}: {facts}");
        }
        let rates = ["rounds", "ceiling_flops_per_second", "stream_bytes_per_second"];
        let ratios = ["unmerged_per_dense", "merged_per_dense", "live_per_unmerged"];
        for field in [rates, ratios].concat() {
            assert!(facts[field].is_number(), "{field}: {facts}");
        }
        let bounds = ["share_of_ceiling", "share_of_stream", "speedup"].map(|field| facts[field].is_number());
        assert_eq!(bounds, [batch == 32, batch == 1, false]);
    }
}

/// Every stage in every format, or a refusal that names both.
#[test]
fn show_prints_each_stage() {
    let place = Place::new();
    let (text, adapter) = (place.path("mlp.txt"), case("dora"));
    let model = ["show", &text, "--adapter", adapter.to_str().unwrap()];
    for (stage, format, start) in [
        ("built", "text", Some("engraft 1\ngraph mlp\n")),
        ("built", "json", Some("{\n  \"engraft\": 1,\n")),
        ("built", "dot", Some("digraph \"mlp\" {")),
        ("trace", "text", Some("dead_code: ")),
        ("trace", "json", None),
        ("trace", "dot", None),
        ("optimized", "text", Some("engraft 1\ngraph mlp\n")),
        ("optimized", "json", Some("{\n  \"engraft\": 1,\n")),
        ("optimized", "dot", Some("digraph \"mlp\" {")),
        ("plan", "text", Some("plan mlp\n")),
        ("plan", "json", None),
        ("plan", "dot", None),
        ("clif", "text", Some("; ")),
        ("clif", "json", None),
        ("clif", "dot", None),
    ] {
        let arguments = [&model[..], &["--stage", stage, "--format", format]].concat();
        match start {
            Some(start) => assert!(succeeds(&arguments).starts_with(start), "{stage} as {format}"),
            None => refuses(&arguments, &[&format!("the format {format} cannot show the stage {stage}")]),
        }
    }
}

#[test]
fn show_reads_json_and_text() {
    let place = Place::new();
    let [text, json] = ["mlp.txt", "mlp.json"].map(|name| place.path(name));
    assert_eq!(succeeds(&["show", &text]), succeeds(&["show", &json]));
    assert_eq!(succeeds(&["show", &text, "--format", "json"]), fs::read_to_string(json).unwrap());
}

#[test]
fn run_computes_what_peft_recorded() {
    let place = Place::new();
    let (model, output) = (place.path("mlp.txt"), place.path("y.safetensors"));
    let (weights, io, adapter) = (dora("base.safetensors"), dora("io.safetensors"), case("dora"));
    let base = ["run", &model, "--weights", &weights, "--input", &io, "--output", &output];
    // The recorded file has `y` and `y_base` beside the input; they are no inputs, so they are ignored.
    let ignored = "y f32[6, 16]\nignored, since the model has no such input: y, y_base\n";
    assert!(succeeds(&base).starts_with(ignored));
    assert_y(&output, "y_base");
    let adapted = [&base[..], &["--adapter", adapter.to_str().unwrap()]].concat();
    let some = ["--merge-layer", "fc1.adapted=merged"];
    for more in [&[][..], &["--merge"], &["--merge=auto", "--calls-per-swap", "1000"], &some, &["--json"]] {
        let text = succeeds(&[&adapted[..], more].concat());
        assert_y(&output, "y");
        if more == ["--json"] {
            let facts: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(facts["outputs"][0]["shape"], serde_json::json!([6, 16]));
            assert_eq!(facts["ignored"], serde_json::json!(["y", "y_base"]));
        }
    }
    assert_eq!(place.names(), ["mlp.json", "mlp.txt", "y.safetensors"]);
}

/// The plan comes with what it costs and which roof binds: with every dim, how long at least.
#[test]
fn show_tells_the_roofline_of_a_plan() {
    let place = Place::new();
    let (text, adapter) = (place.path("mlp.txt"), case("dora"));
    let plan = ["show", &text, "--stage", "plan", "--adapter", adapter.to_str().unwrap()];
    let open = succeeds(&plan);
    let attached = succeeds(&["show", &text, "--adapter", adapter.to_str().unwrap()]);
    let graph = engraft::ir::text::parse(&attached).unwrap();
    // What is measured stands apart from what is the same everywhere.
    let (level, roofline) = open.split_once("\nroofline one thread, measured now: ").unwrap();
    let (roofline, _) = roofline.split_once("\n\nmerged or factored\n").unwrap();
    assert_eq!(level, snapshot::plan(&graph).unwrap());
    let steps = level.matches(" flops, reads ").count();
    let bounds: Vec<_> = roofline.lines().skip(1).collect();
    assert!(bounds.len() >= steps && bounds.iter().all(|line| line.starts_with("  ")), "{roofline}");
    assert!(roofline.lines().all(|line| line.chars().count() <= 80), "{roofline}");
    assert!(roofline.contains("-bound"), "{roofline}");

    let closed = succeeds(&[&plan[..], &["--dim", "batch=6"]].concat());
    let (_, roofline) = closed.split_once("\nroofline").unwrap();
    let (roofline, _) = roofline.split_once("\n\nmerged or factored\n").unwrap();
    assert_eq!(roofline.matches(" µs").count(), steps, "{roofline}");

    let dim = |dim| [&plan[..], &["--dim", dim]].concat();
    refuses(&dim("rows=6"), &["no dim `rows`", "its dims are: batch"]);
    refuses(&["show", &text, "--dim", "batch=6"], &["--dim", "stage plan", "built"]);
    for wrong in ["batch", "batch=", "batch=-1", "batch=x"] {
        assert_eq!(engraft(&dim(wrong)).status.code(), Some(2), "{wrong}");
    }
}

/// What is merged is told in a line for each adapted layer, with what it costs either way, and may be said of each.
#[test]
fn show_tells_what_is_merged_and_why() {
    let place = Place::new();
    let (text, adapter) = (place.path("mlp.txt"), case("dora"));
    let plan = ["show", &text, "--stage", "plan", "--adapter", adapter.to_str().unwrap(), "--dim", "batch=6"];
    let lines = |more: &[&str]| {
        let text = succeeds(&[&plan[..], more].concat());
        let (_, lines) = text.split_once("\n\nmerged or factored\n").unwrap();
        lines.lines().map(|line| line.trim_start().to_owned()).collect::<Vec<_>>()
    };
    let told = lines(&[]);
    assert!(told.iter().all(|line| line.contains(": factored as told")), "{told:?}");
    for line in &told {
        for part in [" µs a call; merged ", " a swap (6 rows, 1 adapter, rank ", " KiB more; merging "] {
            assert!(line.contains(part), "{line}");
        }
    }
    let (name, _) = told[0].split_once(':').unwrap();
    assert_eq!(name, "fc1.adapted");
    let one = lines(&["--merge-layer", &format!("{name}=merged")]);
    assert!(one[0].starts_with(&format!("{name}: merged as told")), "{one:?}");
    assert!(one[1..].iter().all(|line| line.contains(": factored as told")), "{one:?}");
    assert!(lines(&["--merge"]).iter().all(|line| line.contains(": merged as told")));
    let auto = ["--merge=auto", "--merge-memory", "0"];
    let none = lines(&auto);
    assert!(none.iter().all(|line| line.contains(": factored")), "{none:?}");
    let rare = lines(&["--merge=auto", "--calls-per-swap", "1e-9"]);
    assert!(rare.iter().all(|line| line.contains(": factored, ")), "{rare:?}");

    refuses(
        &[&plan[..], &["--merge-layer", "fc9=merged"]].concat(),
        &["no adapted layer `fc9`", "there are: fc1.adapted, fc2.adapted"],
    );
    for wrong in [&["--merge=some"][..], &["--merge-layer", "fc1"], &["--calls-per-swap", "0"]] {
        assert_eq!(engraft(&[&plan[..], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

/// What is said of merging matters or is refused.
#[test]
fn what_is_said_of_merging_in_vain_is_refused() {
    let place = Place::new();
    let (model, output, adapter) = (place.path("mlp.txt"), place.path("y.safetensors"), case("dora"));
    let (weights, io) = (dora("base.safetensors"), dora("io.safetensors"));
    let run = ["run", &model, "--weights", &weights, "--input", &io, "--output", &output];
    let adapted = [&run[..], &["--adapter", adapter.to_str().unwrap()]].concat();
    for option in ["--calls-per-swap", "--merge-memory", "--rows-per-call"] {
        for rule in [&[][..], &["--merge"]] {
            refuses(&[&adapted[..], rule, &[option, "7"]].concat(), &[option, "--merge=auto"]);
        }
    }
    for said in ["fc9=merged", "fc9=factored"] {
        refuses(&[&adapted[..], &["--merge-layer", said]].concat(), &["no adapted layer `fc9`"]);
    }
    assert!(!std::path::Path::new(&output).exists());
}

/// Adapters of rows are merged or not for as many rows as the layers have.
#[test]
fn show_counts_the_rows_of_layers_that_rows_adapt() {
    let place = Place::new();
    let (text, rows) = (place.path("mlp.txt"), place.path("rows.txt"));
    fs::write(&rows, "a\n-\n").unwrap();
    let adapter = format!("a={}", case("dora").display());
    let plan = ["show", &text, "--stage", "plan", "--adapter", &adapter, "--rows", &rows];
    for (more, counted) in [
        (&[][..], "(32 rows, "),
        (&["--dim", "batch=1000"], "(1000 rows, "),
        (&["--rows-per-call", "5"], "(5 rows, "),
    ] {
        let printed = succeeds(&[&plan[..], more].concat());
        let (_, lines) = printed.split_once("\n\nmerged or factored\n").unwrap();
        assert!(lines.lines().all(|line| line.contains(counted)), "{lines}");
    }
}

/// Every kernel of every stage, with its time and its bound, and the numbers as without.
#[test]
fn run_profiles_each_kernel() {
    let place = Place::new();
    let (model, output) = (place.path("mlp.txt"), place.path("y.safetensors"));
    let (weights, io, adapter) = (dora("base.safetensors"), dora("io.safetensors"), case("dora"));
    let run = ["run", &model, "--weights", &weights, "--input", &io, "--output", &output];
    let run = [&run[..], &["--adapter", adapter.to_str().unwrap(), "--profile"]].concat();
    let text = succeeds(&[&run[..], &["--repeat", "7"]].concat());
    assert_y(&output, "y");
    for part in
        ["base, 1 run", "adapter, 1 run", "call, medians of 7", " row_norm ", " linear ", "all of them"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let facts: serde_json::Value =
        serde_json::from_str(&succeeds(&[&run[..], &["--json"]].concat())).unwrap();
    let profile = &facts["profile"];
    assert!(profile["flops_per_second"].as_f64().unwrap() > 0.0);
    let stages = profile["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "adapter", "call"]);
    let calls = stages[2]["runs"].as_u64().unwrap();
    assert!((11..=1001).contains(&calls), "{calls} calls");
    let kernels: Vec<_> = stages.iter().flat_map(|stage| stage["kernels"].as_array().unwrap()).collect();
    for (index, kernel) in kernels.iter().enumerate() {
        assert_eq!(kernel["step"], index);
        assert!(kernel["bytes_written"].as_u64().unwrap() > 0, "{kernel}");
        assert!(kernel["bound_microseconds"].as_f64().unwrap() > 0.0, "{kernel}");
    }
    // fc1 is 24 to 40 and r 4; six rows are called with.
    let call = stages[2]["kernels"].as_array().unwrap();
    let is_layer = |kernel: &&serde_json::Value| kernel["kernel"] == "linear" && kernel["name"] == "fc1.relu";
    let layer = call.iter().find(is_layer).unwrap();
    assert!(layer["flops"].as_u64().unwrap() >= 6 * 40 * 2 * 24, "{layer}");

    assert_eq!(engraft(&[&run[..], &["--repeat", "0"]].concat()).status.code(), Some(2));
    let unasked = ["run", &model, "--weights", &weights, "--input", &io, "--output", &output];
    assert_eq!(engraft(&[&unasked[..], &["--repeat", "7"]].concat()).status.code(), Some(2));
    assert!(!succeeds(&unasked).contains("profile"));
}

/// Live parameters come with the inputs.
#[test]
fn run_takes_live_parameters_from_the_input() {
    let place = Place::new();
    let graph = "engraft 1\ngraph g\nx: f32[n] @call = input()\nm: f32[n] @call = param()\n\
                 h = mul(x, m)\noutput y = h\n";
    let model = place.put("g.txt", graph);
    let pair = |a, b| Tensor::f32(&[2], vec![a, b]).unwrap();
    let input = place.tensors("in.safetensors", &[("x", pair(2.0, 3.0)), ("m", pair(5.0, 7.0))]);
    let output = place.path("out.safetensors");
    succeeds(&["run", &model, "--input", &input, "--output", &output]);
    assert_eq!(read_weights(&output).unwrap().get("y").unwrap().as_f32().unwrap(), [10.0, 21.0]);
}

#[test]
fn verify_holds() {
    let place = Place::new();
    let (model, weights) = (place.path("mlp.json"), dora("base.safetensors"));
    let adapter = case("dora");
    let adapted = ["verify", &model, "--adapter", adapter.to_str().unwrap()];
    let text = succeeds(&adapted);
    for part in
        ["mlp with random weights", "batch = 0", "batch = 7", "fuse_dora", "  dora at fc1", "as built"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let more = ["--weights", &weights, "--merge", "--json"];
    let facts: serde_json::Value = serde_json::from_str(&succeeds(&[&adapted[..], &more].concat())).unwrap();
    assert_eq!(facts["holds"], true);
    assert!(facts["passes"].as_array().unwrap().iter().any(|pass| pass["pass"] == "merge"));
}

/// What is wrong with a file or a model is said in one line that names it, and nothing is written.
/// A graph that appends: verified with values of what it carries; run from nothing, and on from its own output.
#[test]
fn what_is_carried_is_verified_and_run() {
    let place = Place::new();
    let g = GraphBuilder::new("appends");
    let x = g.input("x", F32, dims!["new", 2]);
    let all = g.append(g.carried("kept", F32, dims!["past", 2]), x.cos());
    g.output("y", all.scale(2.0));
    let graph = place.put("appends.json", json::to_string(&g.finish().unwrap()));
    assert!(succeeds(&["verify", &graph]).contains("past = 7"));
    let zeros = |rows: usize| Tensor::f32(&[rows, 2], vec![0.0; 2 * rows]).unwrap();
    let (first, second) = (place.path("first.safetensors"), place.path("second.safetensors"));
    let x = place.tensors("x.safetensors", &[("x", zeros(1))]);
    succeeds(&["run", &graph, "--input", &x, "--output", &first]);
    let outputs = read_weights(&first).unwrap();
    assert_eq!(outputs.get("kept").unwrap().as_f32().unwrap(), [1.0, 1.0]);
    assert_eq!(outputs.get("y").unwrap().as_f32().unwrap(), [2.0, 2.0]);
    let both = place.tensors("both.safetensors", &[("x", zeros(1)), ("kept", zeros(2))]);
    succeeds(&["run", &graph, "--input", &both, "--output", &second]);
    let outputs = read_weights(&second).unwrap();
    assert_eq!(outputs.get("kept").unwrap().as_f32().unwrap(), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    let wide = Tensor::f32(&[1, 3], vec![0.0; 3]).unwrap();
    let wrong = place.tensors("wrong.safetensors", &[("x", zeros(1)), ("kept", wide)]);
    refuses(
        &["run", &graph, "--input", &wrong, "--output", &second],
        &["`kept` must be f32[past, 2]", "[1, 3]"],
    );
}

#[test]
fn bad_input_is_refused() {
    let place = Place::new();
    let (text, json) = (place.path("mlp.txt"), fs::read(place.path("mlp.json")).unwrap());
    let (weights, io) = (dora("base.safetensors"), dora("io.safetensors"));
    let output = place.put("y.safetensors", "what was there");
    let truncated_json = place.put("truncated.json", &json[..json.len() / 2]);
    let truncated = place.put("truncated.safetensors", &fs::read(&weights).unwrap()[..500]);
    let bad_graph = place
        .put("bad.txt", "engraft 1\ngraph g\nx: f32[2] @call = input()\ny = dense(x, w)\noutput y = y\n");
    let binary = place.put("binary", [0xff, 0xfe, 0]);
    let floats = |shape: &[usize]| Tensor::zeros(engraft::runtime::DType::F32, shape).unwrap();
    let shape = place.tensors("shape.safetensors", &[("x", floats(&[6, 23]))]);
    let ids = Tensor::zeros(engraft::runtime::DType::I64, &[6, 24]).unwrap();
    let dtype = place.tensors("dtype.safetensors", &[("x", ids)]);
    let empty = place.tensors("empty.safetensors", &[]);
    let wrong: Vec<_> =
        read_weights(&weights).unwrap().iter().map(|(name, _)| (name.to_owned(), floats(&[2]))).collect();
    let wrong: Vec<_> = wrong.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    let misshapen = place.tensors("misshapen.safetensors", &wrong);
    let (missing, nowhere) = (place.path("missing"), place.path("no/y.safetensors"));
    let before = place.names();

    refuses(&["show", &missing], &[&missing, "No such file"]);
    refuses(&["show", &truncated_json], &["truncated.json", "line", "EOF"]);
    refuses(&["show", &bad_graph], &["bad.txt", "line 4", "`w`"]);
    refuses(&["show", &binary], &["binary", "not UTF-8 after 0"]);
    refuses(&["show", &text, "--adapter", &missing], &["adapter_config.json"]);
    let pissa = case("pissa");
    refuses(&["show", &text, "--adapter", pissa.to_str().unwrap()], &["changes the base's weights"]);

    let run = |weights: &str, input: &str, output: &str, parts: &[&str]| {
        refuses(&["run", &text, "--weights", weights, "--input", input, "--output", output], parts);
    };
    run(&missing, &io, &output, &[&missing]);
    run(
        &truncated,
        &io,
        &output,
        &["truncated.safetensors", "`fc1.weight` ends at byte 4000", "the file has 212"],
    );
    run(&empty, &io, &output, &["`fc1.weight`", "f32[40, 24]", "looked in", "empty.safetensors"]);
    run(
        &misshapen,
        &io,
        &output,
        &["`fc1.weight`", "f32[40, 24]", "[2]", "looked in", "misshapen.safetensors"],
    );
    run(&weights, &shape, &output, &["shape.safetensors", "`x`", "f32[batch, 24]", "[6, 23]"]);
    run(&weights, &dtype, &output, &["dtype.safetensors", "`x`", "i64"]);
    run(&weights, &empty, &output, &["empty.safetensors", "`x` is missing"]);
    run(&weights, &io, &nowhere, &["no/y.safetensors"]);
    run(&weights, &io, "/", &["/: "]);
    refuses(&["run", &text, "--input", &io, "--output", &output], &["`fc1.weight`", "--weights"]);
    refuses(&["verify", &text, "--weights", &empty], &["`fc1.weight`", "empty.safetensors"]);

    assert_eq!(place.names(), before, "nothing is left behind");
    assert_eq!(fs::read(&output).unwrap(), b"what was there");
}

#[test]
fn wrong_calls_exit_with_2() {
    for arguments in [&[][..], &["dance"], &["show"], &["show", "m", "--stage", "dancing"], &["run", "m"]] {
        assert_eq!(engraft(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for (flag, value, part) in [
        ("--shape", "768x768", "INxOUT:RANK"),
        ("--shape", "768x768:8,0x1:1", "`0x1:1`"),
        ("--shape", "", "INxOUT:RANK"),
        ("--batch", "0", "1..=4096"),
        ("--batch", "1,many", "'many'"),
        ("--threads", "0", "1..=256"),
    ] {
        let Output { status, stderr, .. } = engraft(&["bench", flag, value]);
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{flag} {value}: {stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(stderr.contains(flag) && stderr.contains(part), "{stderr}");
    }
}

/// A reader that goes away is no failure.
#[test]
fn a_closed_pipe_is_quiet() {
    let place = Place::new();
    let mut child = command(&["show", &place.path("mlp.txt"), "--stage", "clif"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{status}: {}", String::from_utf8_lossy(&stderr));
}
