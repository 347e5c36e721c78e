//! The verifier, and the queries and rewriting of a finished graph.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::DType::F32;
use engraft_ir::ops::{Binary, Concat, Input, Param, Scale, Unary};
use engraft_ir::{Dim, Graph, GraphBuilder, GraphError, Op, Stage, VerifyError, dims, text, verify};

fn input(shape: engraft_ir::Shape) -> Op {
    Input { dtype: F32, shape, carries: None }.into()
}

#[test]
fn a_graph_without_outputs_or_sources_of_its_symbols_is_refused() {
    let mut graph = Graph::new("open").unwrap();
    let x = graph.add("x", input(dims![Dim::from("n") + 1]), &[]).unwrap();
    assert_eq!(
        verify(&graph).unwrap_err(),
        [VerifyError::UnboundSymbol { symbol: "n".to_owned(), node: "x".to_owned() }, VerifyError::NoOutput,]
    );
    graph.add_output("x", x).unwrap();
    graph.add("n", input(dims!["n"]), &[]).unwrap();
    assert_eq!(verify(&graph), Ok(()));
}

#[test]
fn a_parameters_shape_must_be_known_when_its_value_is() {
    let mut graph = Graph::new("late").unwrap();
    graph.add("x", input(dims!["n"]), &[]).unwrap();
    let binding = Stage::Adapter;
    let param =
        Param { dtype: F32, shape: dims![Dim::from("n") * 2], binding, group: String::new(), init: None };
    let w = graph.add("w", param, &[]).unwrap();
    graph.add_output("w", w).unwrap();
    let late = VerifyError::LateSymbol {
        param: "w".to_owned(),
        binding,
        symbol: "n".to_owned(),
        known: Stage::Call,
    };
    assert_eq!(verify(&graph).unwrap_err(), [late]);
}

#[test]
fn an_output_whose_node_is_gone_is_refused() {
    let mut graph = Graph::new("gone").unwrap();
    let x = graph.add("x", input(dims![2]), &[]).unwrap();
    let y = graph.add("y", Unary::Relu, &[Some(x)]).unwrap();
    graph.add_output("x", x).unwrap();
    assert_eq!(graph.prune(), ["y"]);
    graph.add_output("y", y).unwrap();
    assert_eq!(verify(&graph).unwrap_err(), [VerifyError::Output { name: "y".to_owned() }]);
}

#[test]
fn an_input_carries_an_output_that_appends_to_it() {
    let carried =
        |carries: &str| Input { dtype: F32, shape: dims!["n", 2], carries: Some(carries.to_owned()) };
    let fixed = Input { shape: dims![3, 2], ..carried("out") };
    let reason = |past: Input, parts: &[&str], axis: usize| {
        let mut graph = Graph::new("carried").unwrap();
        let past = graph.add("past", past, &[]).unwrap();
        let new = graph.add("new", input(dims!["n", 2]), &[]).unwrap();
        let parts: Vec<_> =
            parts.iter().map(|part| if *part == "past" { Some(past) } else { Some(new) }).collect();
        let all = graph.add("all", Concat { axis }, &parts).unwrap();
        graph.add_output("out", all).unwrap();
        verify(&graph).map_err(|errors| errors[0].to_string())
    };
    assert_eq!(reason(carried("out"), &["past", "new"], 0), Ok(()));
    let says = |reason: &str| Err(format!("input `past` carries `out`, but {reason}"));
    let appends = "that is not a concat along axis 0 that begins with the input and has it once";
    assert_eq!(reason(carried("out"), &["new", "past"], 0), says(appends));
    assert_eq!(reason(carried("out"), &["past", "new", "past"], 0), says(appends));
    assert_eq!(reason(carried("out"), &["past", "new"], 1), says(appends));
    assert_eq!(reason(fixed, &["past"], 0), says("its first dim, along which it grows, is not a symbol"));
    let none = reason(carried("else"), &["past", "new"], 0);
    assert_eq!(none, Err("input `past` carries `else`, but there is no such output".to_owned()));
}

#[test]
fn two_inputs_do_not_carry_one_output() {
    let text = "engraft 1\ngraph g\na: f32[n] = input() {carries: \"y\"}\nb: f32[n] = input() {carries: \"y\"}\n\
                y = concat(a, b) {axis: 0}\noutput y = y";
    let error = text::parse(text).unwrap_err().to_string();
    assert!(error.contains("input `b` carries `y`, but that is not a concat"), "{error}");
}

#[test]
fn the_graph_refuses_what_would_break_it() {
    let mut graph = Graph::new("strict").unwrap();
    let x = graph.add("x", input(dims![2]), &[]).unwrap();
    let y = graph.add("y", Unary::Relu, &[Some(x)]).unwrap();
    for name in ["", "_", "a b", "a:", "é", "a\"b", "#a", "a(b"] {
        let error = graph.add(name, Unary::Relu, &[Some(x)]).unwrap_err();
        assert_eq!(error, GraphError::BadName { name: name.to_owned() });
        assert!(graph.rename(y, name).is_err() && graph.add_output(name, y).is_err());
    }
    for name in ["a:b", "a/b", "-", "0", "_a", "output", "graph"] {
        assert!(graph.add(name, Unary::Relu, &[Some(x)]).is_ok(), "{name}");
    }
    assert!(matches!(graph.rename(y, "x"), Err(GraphError::DuplicateName { op: "input", .. })));
    assert!(matches!(graph.set_op(y, Binary::Add), Err(GraphError::Rule { .. })));
    assert_eq!(graph.set_op(y, Unary::Tanh), Ok(()));
    graph.add_output("y", y).unwrap();
    assert_eq!(verify(&graph), Ok(()));
}

#[test]
fn wrapping_makes_no_cycle() {
    let mut graph = Graph::new("wrapped").unwrap();
    let x = graph.add("x", input(dims![2]), &[]).unwrap();
    let y = graph.add("y", Unary::Relu, &[Some(x)]).unwrap();
    let z = graph.add("z", Unary::Tanh, &[Some(y)]).unwrap();
    graph.add_output("z", z).unwrap();
    let w = graph.add("w", Binary::Add, &[Some(y), Some(y)]).unwrap();
    graph.replace_uses(y, w).unwrap();
    assert_eq!(graph.operands(w), [Some(y), Some(y)]);
    assert_eq!(graph.operands(z), [Some(w)]);
    assert_eq!(graph.order(), [x, y, w, z]);
    assert_eq!(verify(&graph), Ok(()));
}

fn model() -> Graph {
    let g = GraphBuilder::new("model");
    let x = g.input("x", F32, dims!["batch", 3]);
    let w = g.param("w", F32, dims![2, 3]);
    let a = g.param("a", F32, dims![2]).adapter().group("gain");
    g.output("y", (x.dense(w, None) * a).relu().named("last"));
    g.output("w", w.scale(2.0));
    g.finish().unwrap()
}

#[test]
fn queries() {
    let graph = model();
    let inputs: Vec<_> = graph.inputs().into_iter().map(|i| format!("{} {}", i.name, i.ty)).collect();
    assert_eq!(inputs, ["x f32[batch, 3]"]);
    let params: Vec<_> = graph.params().into_iter().map(|p| (p.name, p.stage, p.group)).collect();
    let expected = [("w", Stage::Base, ""), ("a", Stage::Adapter, "gain")];
    assert_eq!(params, expected.map(|(name, stage, group)| (name.to_owned(), stage, group.to_owned())));
    let outputs: Vec<_> = graph.output_types().into_iter().map(|(name, ty)| format!("{name} {ty}")).collect();
    assert_eq!(outputs, ["y f32[batch, 2]", "w f32[2, 3]"]);
    assert_eq!(graph.op_counts()["param"], 2);
    assert_eq!((graph.len(), graph.is_empty()), (7, false));
    let (w, last) = (graph.find("w").unwrap(), graph.find("last").unwrap());
    assert_eq!(graph.use_count(w), 2);
    assert_eq!(graph.use_count(last), 1);
    assert_eq!(graph.ancestors(last).len(), 5);
    assert_eq!(graph.fresh_name("w"), "w.2");
    assert_eq!(graph.fresh_name("new"), "new");
}

#[test]
fn fresh_names_are_names() {
    let mut graph = model();
    let last = graph.find("last").unwrap();
    for stem in ["n".to_owned(), "n".repeat(510), "n".repeat(2000)] {
        for _ in 0..70 {
            let name = graph.fresh_name(&stem);
            graph.add(&name, Unary::Relu, &[Some(last)]).unwrap();
        }
    }
    assert!(graph.find("n.70").is_some() && graph.find("n.71").is_none());
}

#[test]
fn walking_sees_operands_first() {
    let mut seen = Vec::new();
    model().walk(|node, operands| {
        assert!(operands.iter().flatten().all(|operand| seen.contains(&operand.name().to_owned())));
        seen.push(node.name().to_owned());
    });
    assert_eq!(seen.len(), 7);
}

#[test]
fn mapping_changes_ops_and_infers_types_anew() {
    let graph = model();
    assert_eq!(graph.map(|node| node.op().clone()).unwrap(), graph);
    let doubled = graph
        .map(|node| match node.op() {
            Op::Scale(Scale { factor }) => Scale { factor: factor * 2.0 }.into(),
            Op::Param(param) => Param { binding: Stage::Call, ..param.clone() }.into(),
            op => op.clone(),
        })
        .unwrap();
    assert!(text::print(&doubled).contains("w.scale: f32[2, 3] @call = scale(w) {factor: 4.0}"));
    let error = graph.map(|node| match node.op() {
        Op::Param(param) => Param { shape: dims![7], ..param.clone() }.into(),
        op => op.clone(),
    });
    assert!(matches!(error, Err(GraphError::Rule { op: "dense", .. })), "{error:?}");
}

#[test]
fn graphs_are_equal_by_names_and_structure() {
    let graph = model();
    assert_eq!(graph, model());
    let mut renamed = model();
    renamed.rename(renamed.find("last").unwrap(), "other").unwrap();
    assert_ne!(graph, renamed);
    let mut rewired = model();
    let (scaled, w) = (rewired.find("w.scale").unwrap(), rewired.find("w").unwrap());
    rewired.replace_uses(scaled, w).unwrap();
    assert_ne!(graph, rewired);
}
