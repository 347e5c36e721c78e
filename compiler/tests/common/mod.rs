//! Running a graph both ways: by the reference interpreter, and compiled.
#![allow(dead_code, clippy::unwrap_used)]

use engraft_compiler::plan::check::check_all;
use engraft_compiler::plan::{PlanOptions, plan};
use engraft_compiler::values::{to_tensor, to_value};
use engraft_ir::eval::{Values, eval};
use engraft_ir::{Graph, Op, Stage, sample};
use engraft_runtime::{Context, Options, Program, Session, Source, Tensor, Weights};
pub use engraft_testing::bindings;

/// The program of a graph as it stands.
pub fn program(graph: &Graph, fuse: bool) -> Program {
    let plan = plan(graph, PlanOptions { fuse }).unwrap_or_else(|e| panic!("{e}"));
    engraft_compiler::plan::verify(&plan).unwrap_or_else(|e| panic!("{e:?}\n{plan}"));
    check_all(&plan).unwrap_or_else(|e| panic!("{e}\n{plan}"));
    engraft_compiler::jit(&plan).unwrap_or_else(|e| panic!("{e}\n{plan}"))
}

/// The values of the parameters of one stage, as tensors.
pub fn weights(graph: &Graph, values: &Values, stage: Stage) -> Weights {
    let mut weights = Weights::new();
    for param in graph.params().iter().filter(|param| param.stage == stage) {
        weights.insert(&param.name, to_tensor(&values[&param.name], &param.ty).unwrap());
    }
    weights
}

/// Floats that a tensor hands out on demand, whole rows of it.
struct Floats {
    floats: Vec<f32>,
    row: usize,
}

impl Source for Floats {
    fn read(&self, first: usize, to: &mut [f32]) {
        assert!(first.is_multiple_of(self.row) && to.len().is_multiple_of(self.row), "no whole rows");
        to.copy_from_slice(&self.floats[first..][..to.len()]);
    }
}

/// The same tensors, but floats are made when they are needed.
pub fn stored(weights: &Weights) -> Weights {
    let stored = |tensor: &Tensor| match tensor.as_f32() {
        Ok(floats) => {
            let source = Floats { floats: floats.to_vec(), row: tensor.shape().last().copied().unwrap_or(1) };
            Tensor::stored(tensor.shape(), source).unwrap()
        }
        Err(_) => tensor.clone(),
    };
    weights.iter().map(|(name, tensor)| (name, stored(tensor))).collect()
}

/// Loads and calls a program on these values.
pub fn run(program: &Program, graph: &Graph, values: &Values) -> Values {
    let [base, adapter] = [Stage::Base, Stage::Adapter].map(|stage| weights(graph, values, stage));
    run_on(program, graph, values, [&base, &adapter])
}

/// The same with weights that are stored in another form, which must not make a difference.
fn run_stored(program: &Program, graph: &Graph, values: &Values) -> Values {
    let [base, adapter] = [Stage::Base, Stage::Adapter].map(|stage| stored(&weights(graph, values, stage)));
    run_on(program, graph, values, [&base, &adapter])
}

fn run_on(program: &Program, graph: &Graph, values: &Values, [base, adapter]: [&Weights; 2]) -> Values {
    let context = Context::new(Options::default()).unwrap();
    let base = program.load_base(base, context).unwrap_or_else(|e| panic!("{e}"));
    let model = base.load_adapter(adapter).unwrap_or_else(|e| panic!("{e}"));
    run_in(&mut model.session(), graph, values)
}

/// Calls a session on the inputs and live parameters among these values.
pub fn run_in(session: &mut Session, graph: &Graph, values: &Values) -> Values {
    let is_given =
        |op: &Op| matches!(op, Op::Input(_)) || matches!(op, Op::Param(p) if p.binding == Stage::Call);
    let tensors: Vec<(String, Tensor)> = graph
        .nodes()
        .filter(|node| is_given(node.op()))
        .map(|node| (node.name().to_owned(), to_tensor(&values[node.name()], node.ty()).unwrap()))
        .collect();
    let carried = carried(session);
    let is_carried = |name: &str| carried.iter().any(|(input, _)| input == name);
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let (kept, given): (Vec<_>, Vec<_>) = tensors.partition(|(name, _)| is_carried(name));
    session.set_carried(&kept).unwrap_or_else(|e| panic!("{e}"));
    let mut outputs = session.run(&given).unwrap_or_else(|e| panic!("{e}"));
    outputs.extend(carried.into_iter().map(|(input, output)| (output, session.carried(&input).unwrap())));
    outputs.into_iter().map(|(name, tensor)| (name, to_value(&tensor).unwrap())).collect()
}

/// The inputs that a session carries, and the outputs that they become.
fn carried(session: &Session) -> Vec<(String, String)> {
    let spec = session.model().program().spec();
    let names =
        spec.carried.iter().map(|pair| (&spec.inputs[pair.input].name, &spec.outputs[pair.output].name));
    names.map(|(input, output)| (input.clone(), output.clone())).collect()
}

/// The largest difference between two sets of outputs, in units of the tolerance `1e-5 max(1, max|theirs|) + 1e-4
/// |theirs|`; panics where shapes or names differ, or one side is not a number where the other is.
pub fn difference(ours: &Values, theirs: &Values) -> f64 {
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (name, theirs) in theirs {
        assert_eq!(ours[name].shape(), theirs.shape(), "shape of `{name}`");
        let (Ok(ours), Ok(theirs)) = (ours[name].as_real(), theirs.as_real()) else {
            assert_eq!(&ours[name], theirs, "`{name}`");
            continue;
        };
        let largest = theirs.iter().filter(|x| x.is_finite()).fold(1.0_f64, |max, x| max.max(x.abs()));
        for (&ours, &theirs) in ours.iter().zip(theirs) {
            if theirs.is_finite() {
                worst = worst.max((ours - theirs).abs() / (1e-5 * largest + 1e-4 * theirs.abs()));
                assert!(!ours.is_nan(), "`{name}`: NaN for {theirs}");
            } else {
                assert!(
                    ours == theirs || (ours.is_nan() && theirs.is_nan()),
                    "`{name}`: {ours} for {theirs}"
                );
            }
        }
    }
    worst
}

/// Compiles the graph, fused and as it stands, and compares both with the reference on random values.
pub fn agree(graph: &Graph, symbols: &[(&str, u64)], seed: u64) {
    agree_on(graph, &sample::values(graph, &bindings(symbols), seed).unwrap_or_else(|e| panic!("{e}")));
}

/// The same on these values.
pub fn agree_on(graph: &Graph, values: &Values) {
    let theirs = eval(graph, values).unwrap_or_else(|e| panic!("{e}"));
    for fuse in [true, false] {
        let program = program(graph, fuse);
        let ours = run(&program, graph, values);
        if fuse && !graph.params().is_empty() {
            // As text, in which a NaN is like another.
            let stored = run_stored(&program, graph, values);
            assert_eq!(format!("{stored:?}"), format!("{ours:?}"), "with stored weights");
        }
        let worst = difference(&ours, &theirs);
        assert!(
            worst <= 1.0,
            "off by {worst} tolerances (fuse {fuse}) in\n{}",
            engraft_ir::text::print(graph)
        );
    }
}
