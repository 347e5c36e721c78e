//! The layers: their parameters, their meaning at the start, what they wrap, and their refusals.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::DType::{F32, I64};
use engraft_ir::eval::{Values, eval};
use engraft_ir::layers::{
    DoraConfig, DoraMeaning, DoraOptions, LoraConfig, LoraOptions, conv1d, dora, dora_layer, embedding,
    linear, lora, lora_delta, lora_layer,
};
use engraft_ir::{Cause, Graph, GraphBuilder, Stage, Tensor, dims, init, sample, text};
use engraft_testing::{assert_close, assert_values_close, bindings, ids, real};

fn graph(make: impl for<'g> Fn(Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("layers");
    g.output("y", make(g.input("x", F32, dims!["batch", 3])));
    g.finish().unwrap()
}

fn start(graph: &Graph) -> Values {
    let mut values = init::initialize(graph, 7).unwrap();
    values.extend(
        sample::values(graph, &bindings(&[("batch", 4)]), 8)
            .unwrap()
            .into_iter()
            .filter(|(name, _)| name == "x"),
    );
    values
}

#[test]
fn names_shapes_stages_and_groups() {
    let graph = DoraConfig::new(6, 4).rank(2).name("query").build().unwrap();
    let params: Vec<_> = graph
        .params()
        .into_iter()
        .map(|p| format!("{} {} @{} {}", p.name, p.ty, p.stage, p.group).trim_end().to_owned())
        .collect();
    let expected = [
        "query.lora_A f32[2, 6] @adapter lora_A",
        "query.lora_B f32[4, 2] @adapter lora_B",
        "query.weight f32[4, 6] @base",
        "query.magnitude f32[4] @adapter magnitude",
    ];
    assert_eq!(params, expected);
    assert_eq!(graph.inputs()[0].name, "input");
    assert_eq!(graph.output_types()[0].0, "output");
    assert!(graph.find("query").is_some());
}

#[test]
fn the_defaults_are_edifices() {
    let options = dora::recommended_defaults();
    assert_eq!((options.rank, options.alpha, options.name.as_str()), (8, 16.0, "dora"));
    let options = lora::recommended_defaults();
    assert_eq!((options.rank, options.alpha, options.name.as_str()), (8, 16.0, "lora"));
    assert_eq!(DoraConfig::new(6, 4).output_size(), 4);
    assert_eq!(LoraConfig::new(6, 4).output_size(), 4);
    assert_eq!(DoraConfig::new(6, 4).options(), &dora::recommended_defaults());
}

#[test]
fn linear_and_conv1d_store_their_weights_either_way_round() {
    let x = real(&[1, 3], &[1.0, 2.0, 3.0]);
    let (rows, columns) = ([1.0, 0.0, 2.0, 0.0, 1.0, -1.0], [1.0, 0.0, 0.0, 1.0, 2.0, -1.0]);
    let run = |graph: &Graph, weight| {
        let values = [("x", x.clone()), ("fc.weight", weight), ("fc.bias", real(&[2], &[10.0, 20.0]))];
        eval(graph, &values.map(|(name, value)| (name.to_owned(), value)).into()).unwrap()["y"].clone()
    };
    let expected = real(&[1, 2], &[17.0, 19.0]);
    assert_eq!(run(&graph(|x| linear(x, "fc", 2, true)), real(&[2, 3], &rows)), expected);
    assert_eq!(run(&graph(|x| conv1d(x, "fc", 2)), real(&[3, 2], &columns)), expected);
}

#[test]
fn embedding_looks_rows_up() {
    let g = GraphBuilder::new("embedding");
    g.output("y", embedding(g.input("ids", I64, dims!["seq"]), "wte", 3, 2));
    let graph = g.finish().unwrap();
    let table = real(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let values = [("ids".to_owned(), ids(&[2], &[2, 0])), ("wte.weight".to_owned(), table)].into();
    assert_eq!(eval(&graph, &values).unwrap()["y"], real(&[2, 2], &[4.0, 5.0, 0.0, 1.0]));
}

#[test]
fn adapters_start_as_their_base() {
    let options = DoraOptions { rank: 2, ..DoraOptions::default() };
    let base = graph(|x| linear(x, "fc", 4, true));
    let adapted = graph(|x| dora::wrap(linear(x, "fc", 4, true), &options));
    let also =
        graph(|x| lora::wrap(linear(x, "fc", 4, true), &LoraOptions { rank: 2, ..LoraOptions::default() }));
    let transposed = graph(|x| dora::wrap(conv1d(x, "fc", 4), &options));
    let plain = graph(|x| conv1d(x, "fc", 4));
    for (base, adapted) in [(&base, &adapted), (&base, &also), (&plain, &transposed)] {
        let expected = eval(base, &start(base)).unwrap();
        assert_values_close(&eval(adapted, &start(adapted)).unwrap(), &expected, 1e-6, 0.0);
    }
}

#[test]
fn lora_is_its_base_and_its_update() {
    let options = LoraOptions { rank: 2, ..LoraOptions::default() };
    let g = GraphBuilder::new("lora");
    let x = g.input("x", F32, dims!["batch", 3]);
    g.output("layer", lora_layer(x, 4, &options));
    let (a, b) = (g.find("lora.lora_A"), g.find("lora.lora_B"));
    g.output("sum", x.dense(g.find("lora.weight"), None) + x.dense(a, None).dense(b, None) * 8.0);
    g.output("delta", lora_delta(x, 4, &LoraOptions { name: "other".to_owned(), ..options }));
    let graph = g.finish().unwrap();
    let y = eval(&graph, &sample::values(&graph, &bindings(&[("batch", 2)]), 1).unwrap()).unwrap();
    let flat = |name: &str| y[name].as_real().unwrap().iter().copied().collect::<Vec<_>>();
    assert_close(&flat("layer"), &flat("sum"), 1e-12, 0.0);
    assert_eq!(y["delta"].shape(), [2, 4]);
}

#[test]
fn wrapping_replaces_the_layer_within_a_finished_graph() {
    let g = GraphBuilder::edit(graph(|x| linear(x, "fc", 3, true).relu()));
    let dense = g.find("fc");
    g.replace(dense, dora::wrap(dense, &DoraOptions { rank: 1, ..DoraOptions::default() }));
    let adapted = g.finish().unwrap();
    insta::assert_snapshot!(text::print(&adapted));
    assert_eq!(adapted.params().iter().filter(|p| p.stage == Stage::Adapter).count(), 3);
}

#[test]
fn refusals() {
    #[track_caller]
    fn refused(make: impl for<'g> Fn(Tensor<'g>) -> Tensor<'g>, expected: &str) {
        let g = GraphBuilder::new("refused");
        g.output("y", make(g.input("x", F32, dims!["batch", 3])));
        let errors = g.finish().unwrap_err();
        assert_eq!(errors.errors().len(), 1, "{errors}");
        assert!(errors.errors()[0].location.file().ends_with("layers.rs"), "{errors}");
        assert!(errors.errors()[0].location.file().starts_with("ir/tests"), "{errors}");
        assert!(errors.to_string().contains(expected), "{errors}");
    }
    let rank_0 = DoraOptions { rank: 0, ..DoraOptions::default() };
    let endless = LoraOptions { alpha: f64::INFINITY, ..LoraOptions::default() };
    refused(|x| dora_layer(x, 4, &rank_0), "`dora`: rank is 0, expected 1 or more");
    refused(|x| dora::wrap(linear(x, "fc", 4, false), &rank_0), "`dora`: rank is 0, expected 1 or more");
    refused(|x| dora_layer(x, 0, &DoraOptions::default()), "`dora`: output_size is 0");
    refused(|x| lora_layer(x, 0, &LoraOptions::default()), "`lora`: output_size is 0");
    refused(|x| lora_delta(x, 4, &endless), "`lora`: alpha is inf, expected a finite number");
    refused(|x| linear(x, "fc", 0, false), "`fc`: out_features is 0");
    refused(|x| conv1d(x, "fc", 0), "`fc`: out_features is 0");
    refused(|x| embedding(x, "wte", 0, 4), "`wte`: vocab is 0");
    refused(|x| embedding(x, "wte", 4, 0), "`wte`: dim is 0");
    refused(|x| linear(x.sum(&[0, 1]), "fc", 2, false), "axis -1 is outside f32[]");
    refused(|x| dora::wrap(x.relu(), &DoraOptions::default()), "is relu, expected the result of `dense`");
    refused(|x| lora::wrap(x, &LoraOptions::default()), "`x` is input, expected the result of `dense`");
}

#[test]
fn two_wrappers_of_one_name_are_refused_and_of_two_names_are_not() {
    let twice = |second: &str| {
        let g = GraphBuilder::new("twice");
        let fc = linear(g.input("x", F32, dims!["batch", 3]), "fc", 3, false);
        let first = dora::wrap(fc, &DoraOptions::default());
        g.output("y", dora::wrap(first, &DoraOptions { name: second.to_owned(), ..DoraOptions::default() }));
        g.finish()
    };
    let errors = twice("dora").unwrap_err();
    assert!(errors.to_string().contains("the name `dora.lora_A` is taken"), "{errors}");
    assert_eq!(twice("second").unwrap().params().len(), 7);
}

#[test]
fn a_config_without_sizes_is_refused() {
    for errors in [DoraConfig::new(0, 4).build().unwrap_err(), LoraConfig::new(0, 4).build().unwrap_err()] {
        let cause = &errors.errors()[0].cause;
        assert!(matches!(cause, Cause::LayerOption { option: "input_size", .. }), "{cause}");
        assert!(errors.errors()[0].location.file().ends_with("tests/layers.rs"), "{errors}");
    }
    let errors = DoraConfig::new(4, 0).meaning(DoraMeaning::Output).build().unwrap_err();
    assert!(
        matches!(&errors.errors()[0].cause, Cause::LayerOption { option: "output_size", .. }),
        "{errors}"
    );
}
