//! What the tests of every crate share: random graphs, literal values, comparison within a tolerance, and where models
//! are. Its functions panic, as tests do. Random values of a graph are `engraft_ir::sample`.

mod close;
mod literal;
mod models;
mod random_graph;

pub use close::{Far, assert_close, assert_values_close, close};
pub use literal::{bindings, ids, real};
pub use models::{MINILM, SMOLLM2, model};
pub use random_graph::{Step, arb_bindings, arb_graph, arb_steps, graph_of};
