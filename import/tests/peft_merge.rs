//! An attached adapter computes what the base computes with the adapter merged into its weight, for layers of every kind
//! and size.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{assert_agree, numbers, value, values, y};
use engraft_import::peft::{LoraConfig, PeftAdapter, attach};
use engraft_ir::{DType, Graph, GraphBuilder, dims};
use engraft_runtime::{Tensor, Weights};
use ndarray::{Array2, Axis, Ix2};
use proptest::prelude::*;
use serde_json::json;

/// How the base uses its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Dense,
    DenseTransposed,
    Matmul,
    MatmulTransposed,
    Gather,
}

impl Use {
    const ALL: [Self; 5] =
        [Self::Dense, Self::DenseTransposed, Self::Matmul, Self::MatmulTransposed, Self::Gather];

    /// Whether the weight is stored `[in, out]`.
    fn is_transposed(self) -> bool {
        matches!(self, Self::DenseTransposed | Self::Matmul | Self::Gather)
    }
}

#[derive(Clone, Debug)]
struct Layer {
    used: Use,
    out: usize,
    r#in: usize,
    rank: usize,
    alpha: i32,
    dora: bool,
    rslora: bool,
    bias: bool,
}

impl Layer {
    fn stored(&self) -> [usize; 2] {
        if self.used.is_transposed() { [self.r#in, self.out] } else { [self.out, self.r#in] }
    }

    fn graph(&self) -> Graph {
        let g = GraphBuilder::new("layer");
        let [rows, columns] = self.stored().map(|dim| dim as u64);
        let w = g.param("a.fc.weight", DType::F32, dims![rows, columns]);
        let b = self.bias.then(|| g.param("a.fc.bias", DType::F32, dims![self.out as u64]));
        let x = match self.used {
            Use::Gather => g.input("x", DType::I64, dims!["n"]),
            _ => g.input("x", DType::F32, dims!["n", self.r#in as u64]),
        };
        let product = match self.used {
            Use::Dense => x.dense(w, b),
            Use::DenseTransposed => x.dense(w.t(), b),
            Use::Matmul => x.matmul(w),
            Use::MatmulTransposed => x.matmul(w.t()),
            Use::Gather => w.gather(x),
        };
        let adds_bias = !matches!(self.used, Use::Dense | Use::DenseTransposed);
        g.output("y", b.filter(|_| adds_bias).map_or(product, |b| product + b));
        g.finish().unwrap()
    }

    fn factor_names(&self) -> [&'static str; 2] {
        match self.used {
            Use::Gather => ["a.fc.lora_embedding_A", "a.fc.lora_embedding_B"],
            _ => ["a.fc.lora_A.weight", "a.fc.lora_B.weight"],
        }
    }

    fn adapter(&self) -> PeftAdapter {
        let config = json!({
            "peft_type": "LORA", "target_modules": ["fc"], "r": self.rank, "lora_alpha": self.alpha,
            "use_dora": self.dora, "use_rslora": self.rslora,
        });
        let [a, b] = self.factor_names();
        let mut tensors = vec![(a, vec![self.rank, self.r#in]), (b, vec![self.out, self.rank])];
        if self.dora {
            tensors.push(("a.fc.lora_magnitude_vector", vec![self.out]));
        }
        let named =
            |(name, shape): (&str, Vec<usize>)| (format!("base_model.model.{name}"), numbers(name, &shape));
        let tensors: Weights = tensors.into_iter().map(named).collect();
        PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors).unwrap()
    }

    /// `m ∘ (W + s B A) / ‖W + s B A‖` per output, or `W + s B A`, stored as the base stores W.
    fn merged(&self, matrix: impl Fn(&str) -> Array2<f64>, magnitude: impl Fn() -> Vec<f64>) -> Array2<f64> {
        let [a, b] = self.factor_names().map(&matrix);
        let rank = self.rank as f64;
        let s = f64::from(self.alpha) / if self.rslora { rank.sqrt() } else { rank };
        let w = matrix("a.fc.weight");
        let mut w = if self.used.is_transposed() { w.t().to_owned() } else { w } + b.dot(&a) * s;
        if self.dora {
            for (mut row, m) in w.axis_iter_mut(Axis(0)).zip(magnitude()) {
                let norm = row.dot(&row).sqrt();
                row *= m / norm;
            }
        }
        if self.used.is_transposed() { w.t().to_owned() } else { w }
    }
}

prop_compose! {
    fn layer()(
        used in proptest::sample::select(&Use::ALL[..]),
        (out, r#in, rank) in (1_usize..9, 1_usize..9, 1_usize..6),
        alpha in -20..40,
        (dora, rslora, bias) in any::<(bool, bool, bool)>(),
    ) -> Layer {
        Layer { used, out, r#in, rank, alpha, dora, rslora, bias }
    }
}

proptest! {
    #[test]
    fn attached_is_merged(layer in layer()) {
        let graph = layer.graph();
        let attached = attach(&graph, &layer.adapter()).unwrap();

        let mut given = values(&attached.weights);
        given.insert("a.fc.weight".to_owned(), value(&numbers("w", &layer.stored())));
        given.insert("a.fc.bias".to_owned(), value(&numbers("b", &[layer.out])));
        let x = match layer.used {
            Use::Gather => Tensor::i64(&[3], vec![0, layer.r#in as i64 - 1, 0]).unwrap(),
            _ => numbers("x", &[3, layer.r#in]),
        };
        given.insert("x".to_owned(), value(&x));
        let ours = y(&attached.graph, &given);

        let matrix = |name: &str| given[name].as_real().unwrap().clone().into_dimensionality::<Ix2>().unwrap();
        let magnitude = || given["a.fc.lora_magnitude_vector"].as_real().unwrap().iter().copied().collect();
        let merged = layer.merged(matrix, magnitude);
        given.insert("a.fc.weight".to_owned(), merged.into_dyn().into());
        assert_agree(&ours, &y(&graph, &given));
    }
}
