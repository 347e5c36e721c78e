//! Every op, compiled, against the reference interpreter: over shapes that are 1, prime, no multiple of 4 or 16, and
//! empty.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use common::{agree, agree_on, bindings, program};
use engraft_ir::DType::{F32, I32, I64};
use engraft_ir::eval::Values;
use engraft_ir::ops::{Attention, EpsilonAt, OutputDora, Reduction, Unary};
use engraft_ir::value::Value;
use engraft_ir::{Graph, GraphBuilder, Tensor, dims, sample};
use engraft_runtime::{Context, Options, Tensor as RunTensor, Weights};

/// Extents that catch what a vector loop can get wrong.
const EXTENTS: [u64; 8] = [0, 1, 2, 3, 5, 13, 17, 67];

/// A graph of one expression on an input `[batch, n]`.
fn on_input(n: u64, body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", n]);
    g.output("y", body(&g, x));
    g.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn over_extents(body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>, u64) -> Tensor<'g>) {
    for n in EXTENTS {
        let graph = on_input(n, |g, x| body(g, x, n));
        for batch in [0, 1, 4, 7] {
            agree(&graph, &[("batch", batch)], n + batch);
        }
    }
}

#[test]
fn unary() {
    for function in Unary::ALL {
        // Square roots of what is not negative.
        over_extents(|_, x, _| match function {
            Unary::Sqrt | Unary::Rsqrt => (x.square() + 0.1).unary(function),
            _ => x.scale(8.0).unary(function),
        });
    }
}

#[test]
fn binary() {
    over_extents(|g, x, n| {
        let v = g.param("v", F32, dims![n]);
        let s = g.param("s", F32, dims![1]);
        ((x + v) * x - s) / (x.square() + 1.0)
    });
}

#[test]
fn broadcasting() {
    for n in EXTENTS {
        let g = GraphBuilder::new("op");
        let a = g.input("a", F32, dims!["batch", 1, n]);
        let b = g.input("b", F32, dims![3, 1]);
        g.output("sum", a + b);
        g.output("wide", b.broadcast(dims![2, 3, 5]));
        let graph = g.finish().unwrap();
        agree(&graph, &[("batch", 4)], n);
        agree(&graph, &[("batch", 0)], n);
    }
}

#[test]
fn magnitude_and_normalize() {
    for (epsilon, at) in [
        (0.0, EpsilonAt::Inside),
        (1e-2, EpsilonAt::Outside),
        (0.3, EpsilonAt::Max),
        (1e-8, EpsilonAt::Inside),
    ] {
        over_extents(|g, x, n| {
            let m = g.param("m", F32, dims![n]);
            (x + 0.5).normalize_with(-1, epsilon, at).magnitude(m, -1)
        });
        over_extents(|_, x, _| (x + 2.0).normalize_with(0, epsilon, at));
    }
}

#[test]
fn reductions() {
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
        for keep in [false, true] {
            over_extents(|_, x, _| x.reduce(reduction, &[-1], keep));
            over_extents(|_, x, _| x.reduce(reduction, &[0], keep));
            over_extents(|_, x, _| x.reduce(reduction, &[0, 1], keep));
        }
        for axes in [&[0_i64, 2][..], &[1], &[0, 1], &[1, 2], &[0, 1, 2], &[1, 3], &[0, 3]] {
            let g = GraphBuilder::new("op");
            let x = g.input("x", F32, dims!["batch", 5, 3, 6]);
            g.output("y", x.reduce(reduction, axes, false));
            let graph = g.finish().unwrap();
            for batch in [0, 1, 3] {
                agree(&graph, &[("batch", batch)], batch);
            }
        }
    }
}

#[test]
fn softmax() {
    over_extents(|_, x, _| x.scale(5.0).softmax(-1));
    over_extents(|_, x, _| x.softmax(0));
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims![3, "batch", 7]);
    g.output("y", x.softmax(1));
    let graph = g.finish().unwrap();
    for batch in [0, 1, 6] {
        agree(&graph, &[("batch", batch)], batch);
    }
}

#[test]
fn norms() {
    over_extents(|g, x, n| {
        let (w, b) = (g.param("w", F32, dims![n]), g.param("b", F32, dims![n]));
        x.layer_norm(Some(w), Some(b), 1e-5)
    });
    over_extents(|_, x, _| x.layer_norm(None, None, 1e-5));
    over_extents(|g, x, n| x.layer_norm(None, Some(g.param("b", F32, dims![n])), 1e-5));
    over_extents(|g, x, n| x.rms_norm(Some(g.param("w", F32, dims![n])), 1e-6));
    over_extents(|_, x, _| x.rms_norm(None, 1e-6));
}

#[test]
fn movement() {
    over_extents(|_, x, _| x.transpose(&[1, 0]));
    over_extents(|_, x, n| x.reshape(dims![n, "batch"]).relu());
    over_extents(|_, x, _| x.concat(&[x.relu(), x], -1));
    over_extents(|_, x, _| x.concat(&[x, x.scale(2.0)], 0));
    over_extents(|_, x, n| x.slice(1, n / 2, n - n / 2));
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", 5, 3, 7]);
    g.output("heads", x.transpose(&[0, 2, 1, 3]).scale(0.5));
    g.output("part", x.slice(3, 2, 4).slice(1, 1, 3).transpose(&[3, 1, 0, 2]) * 2.0);
    let graph = g.finish().unwrap();
    for batch in [0, 1, 3] {
        agree(&graph, &[("batch", batch)], batch);
    }
}

#[test]
fn movement_of_ids() {
    for dtype in [I32, I64] {
        let g = GraphBuilder::new("op");
        let ids = g.input("ids", dtype, dims!["batch", 3]);
        g.output("turned", ids.t());
        g.output("twice", ids.concat(&[ids.slice(1, 1, 2)], 1));
        g.output("same", ids);
        let graph = g.finish().unwrap();
        for batch in [0, 1, 5] {
            agree(&graph, &[("batch", batch)], batch);
        }
    }
}

#[test]
fn cast() {
    for dtype in [I32, I64] {
        let g = GraphBuilder::new("op");
        let ids = g.input("ids", dtype, dims!["batch", 3]);
        let frequencies = g.param("frequencies", F32, dims![3]);
        g.output("floats", ids.cast(F32));
        g.output("angles", (ids.t().cast(F32).t() * frequencies).cos());
        let graph = g.finish().unwrap();
        for batch in [0, 1, 5] {
            agree(&graph, &[("batch", batch)], batch);
        }
    }
}

/// Rounded once, like Rust's `as`: 2⁶⁰ + 2³⁶ + 1 by way of f64 would be a tie, and go the other way.
#[test]
fn integers_are_rounded_once() {
    let g = GraphBuilder::new("op");
    g.output("long", g.input("i", I64, dims!["n"]).cast(F32));
    g.output("short", g.input("j", I32, dims!["n"]).cast(F32));
    let context = Context::new(Options::default()).unwrap();
    let base = program(&g.finish().unwrap(), true).load_base(&Weights::new(), context).unwrap();
    let mut session = base.load_adapter(&Weights::new()).unwrap().session();
    let long = [
        0,
        1,
        -1,
        (1 << 24) + 1,
        (1 << 24) + 3,
        (1 << 60) + (1 << 36) + 1,
        i64::MAX,
        i64::MIN,
        -(1 << 53) - 1,
    ];
    let short = [0, 1, -1, (1 << 24) + 1, (1 << 24) + 3, (1 << 30) + 65, i32::MAX, i32::MIN, -(1 << 25) - 3];
    let (i, j) =
        (RunTensor::i64(&[9], long.to_vec()).unwrap(), RunTensor::i32(&[9], short.to_vec()).unwrap());
    let outputs = session.run(&[("i", &i), ("j", &j)]).unwrap();
    assert_eq!(outputs[0].1.as_f32().unwrap(), long.map(|i| i as f32));
    assert_eq!(outputs[1].1.as_f32().unwrap(), short.map(|j| j as f32));
    assert_ne!(long[5] as f32, long[5] as f64 as f32);
}

#[test]
fn gather() {
    for dtype in [I32, I64] {
        for n in [1, 3, 16, 19] {
            let g = GraphBuilder::new("op");
            let ids = g.input("ids", dtype, dims!["batch", 5]);
            let table = g.param("table", F32, dims![11, n]);
            g.output("y", table.gather(ids));
            g.output("scaled", table.gather(ids) * 2.0);
            let graph = g.finish().unwrap();
            for batch in [0, 1, 4] {
                agree(&graph, &[("batch", batch)], batch);
            }
        }
    }
}

/// Rows of panels, of full ones and of the last: as many rows as a lane, a panel and their neighbours.
#[test]
fn gather_from_a_layer_that_is_tied_to_it() {
    for rows in [1, 5, 16, 17, 47, 48, 49, 70, 96, 113] {
        for n in [1, 3, 19] {
            let g = GraphBuilder::new("op");
            let ids = g.input("ids", I64, dims!["batch", 5]);
            let table = g.param("table", F32, dims![rows, n]);
            let states = table.gather(ids);
            g.output("states", states);
            g.output("y", states.dense(table, None));
            let graph = g.finish().unwrap();
            for batch in [0, 1, 30] {
                agree(&graph, &[("batch", batch)], batch);
            }
        }
    }
}

#[test]
fn dense_and_matmul() {
    over_extents(|g, x, n| {
        let w = g.param("w", F32, dims![19, n]);
        let b = g.param("b", F32, dims![19]);
        (x.dense(w, Some(b)).gelu() + x.dense(w, None)).relu()
    });
    over_extents(|g, x, n| {
        let (w, b) = (g.param("w", F32, dims![19, n]), g.param("b", F32, dims![19]));
        x.adaptable("fc", w, Some(b)).gelu()
    });
    over_extents(|g, x, n| x.matmul(g.param("w", F32, dims![n, 21])).tanh());
    over_extents(|g, x, n| x.dense(g.param("w", F32, dims![n, 21]).t(), None));
    let g = GraphBuilder::new("op");
    let q = g.input("q", F32, dims!["batch", 3, "seq", 8]);
    let k = g.input("k", F32, dims!["batch", 3, "seq", 8]);
    let scores = q.matmul(k.transpose(&[0, 1, 3, 2])).scale(0.35).softmax(-1);
    g.output("y", scores.matmul(k));
    let graph = g.finish().unwrap();
    for (batch, seq) in [(0, 3), (1, 1), (2, 5), (3, 17), (2, 0)] {
        agree(&graph, &[("batch", batch), ("seq", seq)], seq);
    }
}

#[test]
fn adapters() {
    for rank in [1, 3, 8] {
        over_extents(|g, x, n| {
            let (w, bias) = (g.param("w", F32, dims![n, n]), g.param("bias", F32, dims![n]));
            let a = g.param("a", F32, dims![rank, n]).adapter();
            let b = g.param("b", F32, dims![n, rank]).adapter();
            let m = g.param("m", F32, dims![n]).adapter();
            let gain = m / (w.lora_norm(a, b, 2.0) + 0.5);
            let delta = Tensor::lora_delta(a, b, 0.5);
            g.output("lora", x.lora(w, a, b, Some(bias), 2.0));
            g.output("lora_apply", x.lora_apply(a, b, 0.25));
            g.output("merged", x.dense(w + delta, Some(bias)).relu());
            g.output(
                "output_dora",
                x.output_dora(w, (a, b), m, Some(bias), OutputDora { scale: 2.0, epsilon: 1e-8 }),
            );
            x.dora(w, a, b, gain, Some(bias), 2.0).gelu() + x
        });
    }
}

#[test]
fn live_parameters_and_rank_known_at_load() {
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", 20]);
    let w = g.param("w", F32, dims![33, 20]);
    let a = g.param("a", F32, dims!["rank", 20]).adapter();
    let b = g.param("b", F32, dims![33, "rank"]).adapter();
    let m = g.param("m", F32, dims![33]).live();
    g.output("y", x.dora(w, a, b, m / w.lora_norm(a, b, 0.5), None, 0.5));
    let graph = g.finish().unwrap();
    for rank in [0, 1, 4, 9] {
        agree(&graph, &[("batch", 5), ("rank", rank)], rank);
    }
}

#[test]
fn outputs_that_are_inputs_parameters_constants_or_shared() {
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", 6]);
    let w = g.param("w", F32, dims![6]);
    let c = g.constant(&[1.0_f32, 2.0, 3.0][..]);
    let y = x + w;
    g.output("input", x);
    g.output("param", w);
    g.output("constant", c);
    g.output("early", w.square());
    g.output("y", y);
    g.output("again", y);
    g.output("reshaped", y.reshape(dims![6, "batch"]));
    let graph = g.finish().unwrap();
    for batch in [0, 1, 3] {
        agree(&graph, &[("batch", batch)], batch);
    }
}

/// Softmax attention of this many heads.
fn heads(heads: u64, kv_heads: u64, d: u64) -> Attention {
    Attention { heads, kv_heads, scale: (d as f64).sqrt().recip(), causal: false, window: None }
}

#[test]
fn attention_over_extents() {
    for (d, e, causal) in [(1, 1, false), (12, 80, true), (32, 32, false), (64, 5, true), (17, 49, false)] {
        let g = GraphBuilder::new("op");
        let q = g.input("q", F32, dims![2, "queries", 3 * d]);
        let k = g.input("k", F32, dims![2, "keys", 3 * d]);
        let v = g.input("v", F32, dims![2, "keys", 3 * e]);
        g.output("y", q.attention(k, v, None, Attention { causal, ..heads(3, 3, d) }));
        let graph = g.finish().unwrap();
        for queries in [0, 1, 3, 17, 67, 130] {
            for keys in [0, 1, 3, 17, 67, 130] {
                agree(&graph, &[("queries", queries), ("keys", keys)], queries + keys);
            }
        }
    }
}

#[test]
fn attention_of_any_width() {
    for width in (1..=80).chain([127, 128, 129, 257]) {
        let (d, e) = (width, (width * 7) % 80 + 1);
        let g = GraphBuilder::new("op");
        let q = g.input("q", F32, dims![1, "queries", 2 * d]);
        let k = g.input("k", F32, dims![1, 9, d]);
        let v = g.input("v", F32, dims![1, 9, e]);
        g.output("y", q.attention(k, v, None, heads(2, 1, d)));
        let graph = g.finish().unwrap();
        for queries in [1, 5] {
            agree(&graph, &[("queries", queries)], width);
        }
    }
}

#[test]
fn attention_with_heads_that_share_windows_and_masks() {
    for (shared, (causal, window)) in
        [(1, (true, Some(1))), (2, (true, Some(5))), (3, (false, Some(20))), (5, (true, None))]
    {
        for dtype in [I32, I64] {
            let g = GraphBuilder::new("op");
            let q = g.input("q", F32, dims!["batch", "queries", 2 * shared * 12]);
            let k = g.input("k", F32, dims!["batch", "keys", 24]);
            let v = g.input("v", F32, dims!["batch", "keys", 20]);
            let op = Attention { causal, window, ..heads(2 * shared, 2, 12) };
            g.output("masked", q.attention(k, v, Some(g.input("mask", dtype, dims!["batch", "keys"])), op));
            g.output("all", q.attention(k, v, None, op));
            let graph = g.finish().unwrap();
            for (queries, keys) in [(1, 200), (3, 3), (17, 70), (130, 130), (67, 20)] {
                agree(&graph, &[("batch", 3), ("queries", queries), ("keys", keys)], queries + keys);
            }
        }
    }
}

/// A mask of each kind: padding before and after, holes, nothing at all.
#[test]
fn attention_with_padding() {
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", "seq", 24]);
    let mask = g.input("mask", I64, dims!["batch", "seq"]);
    g.output("y", x.attention(x, x, Some(mask), heads(2, 2, 12)));
    g.output("causal", x.attention(x, x, Some(mask), Attention { causal: true, ..heads(2, 2, 12) }));
    let graph = g.finish().unwrap();
    for seq in [1_usize, 17, 67, 130] {
        let symbols = bindings(&[("batch", 5), ("seq", seq as u64)]);
        let mut values: Values = sample::values(&graph, &symbols, seq as u64).unwrap();
        let there = |item: usize, key: usize| match item {
            0 => key >= seq / 3,
            1 => key < seq.div_ceil(2),
            2 => key * key % 7 > 2,
            3 => false,
            _ => true,
        };
        let mask = ndarray::ArrayD::from_shape_fn(vec![5, seq], |at| i64::from(there(at[0], at[1])));
        values.insert("mask".to_owned(), Value::Int(mask));
        agree_on(&graph, &values);
    }
}

/// Operands that are read where they lie: parts of one row, parts of a sequence, a transposed cache, one item for all, and
/// what is none of these.
#[test]
fn attention_on_views() {
    let g = GraphBuilder::new("op");
    let x = g.input("x", F32, dims!["batch", "seq", 36]);
    let past = g.input("past", F32, dims!["past", "batch", 12]);
    let op = Attention { causal: true, ..heads(3, 3, 4) };
    let [q, k, v] = [0, 12, 24].map(|start| x.slice(2, start, 12));
    g.output("own", q.attention(k, v, None, op));
    let keys = past.concat(&[k.transpose(&[1, 0, 2])], 0);
    let values = past.scale(0.5).concat(&[v.transpose(&[1, 0, 2])], 0);
    g.output("keys", keys);
    let cached = [keys, values].map(|cache| cache.transpose(&[1, 0, 2]));
    g.output("cached", q.attention(cached[0], cached[1], None, op));
    let shared = g.param("shared", F32, dims![1, 5, 20]).slice(2, 3, 12).slice(1, 1, 3);
    g.output(
        "shared",
        q.attention(
            shared.broadcast(dims!["batch", 3, 12]),
            shared.broadcast(dims!["batch", 3, 12]),
            None,
            op,
        ),
    );
    // A row is not in one piece, an operand is computed, and what is moved is read by others, too.
    let turned = g.input("turned", F32, dims!["batch", 12, "seq"]).transpose(&[0, 2, 1]);
    g.output("turned", turned.attention(x.slice(2, 3, 12).relu(), x.relu().slice(2, 1, 12), None, op));
    g.output("k", k);
    let one = g.constant(engraft_ir::ops::Constant {
        shape: dims![1, 1, 1],
        values: engraft_ir::ops::Elements::F32(vec![0.5]),
    });
    let lone = g.input("lone", F32, dims![1, "seq", 1]);
    g.output("lone", one.attention(lone, lone.transpose(&[0, 1, 2]), None, heads(1, 1, 1)));
    let graph = g.finish().unwrap();
    for (batch, seq, past) in [(1, 1, 0), (2, 3, 5), (3, 50, 70), (2, 1, 17), (0, 4, 4), (2, 0, 3)] {
        agree(&graph, &[("batch", batch), ("seq", seq), ("past", past)], seq + past);
    }
}
