//! One module's part of an adapter as numbers: A, B, s, and where they are used m and the bias of B. Found in the file's
//! own tensors, so it takes no graph; knows nothing about the base.

use super::adapter::PeftAdapter;
use super::arithmetic::Kind;
use super::attach::AdaptedModule;
use super::modules::Layer;
use super::select::{PatternError, Selection};
use super::tensors::{Ledger, TensorsError};
use engraft_runtime::{Tensor, TensorError, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// Why an adapter's tensors make no factors.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum FactorsError {
    /// A module's tensors do not fit together.
    #[error("module `{module}`: {source}")]
    Tensors {
        /// The module.
        module: String,
        /// Why.
        source: TensorsError,
    },
    /// A tensor of a module that the config does not mean.
    #[error("module `{module}` has tensors, but the config does not target it")]
    Untargeted {
        /// The module.
        module: String,
    },
    /// A tensor holds infinities or no numbers.
    #[error("module `{module}`: tensor `{tensor}` has the element {found}, expected finite numbers")]
    NotFinite {
        /// The module.
        module: String,
        /// The tensor, without the module's name.
        tensor: &'static str,
        /// The element.
        found: f32,
    },
    /// A tensor's numbers cannot be read.
    #[error("module `{module}`: tensor `{tensor}`: {source}")]
    Read {
        /// The module.
        module: String,
        /// The tensor, without the module's name.
        tensor: &'static str,
        /// Why.
        source: TensorError,
    },
    /// Tensors of LoRA that belong to no module that the config means, or to another kind of adapter.
    #[error(transparent)]
    Stray(TensorsError),
    /// There is nothing in the file.
    #[error("the adapter has no tensor named `<module>.lora_A.weight` or `<module>.lora_embedding_A`")]
    Empty,
    /// A pattern of the config takes too long to match.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// What an adapter has for one module: A `[r, in]`, B `[out, r]` and s, under DoRA m `[out]`, and perhaps a bias of B
/// `[out]`. Of an embedding in is vocab and out is dim.
#[derive(Clone, Debug)]
pub struct Factors {
    module: String,
    layer: Option<Layer>,
    alpha: f64,
    scale: f64,
    a: Arc<Tensor>,
    b: Arc<Tensor>,
    magnitude: Option<Arc<Tensor>>,
    bias_of_b: Option<Arc<Tensor>>,
}

/// What is in an adapter, seen without its base.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The adapted modules, by name.
    pub factors: Vec<Factors>,
    /// The tensors that take the place of the base's own: biases, and modules saved as a whole.
    pub replaced: Vec<String>,
}

/// What A's and B's tensors are called in linear layers and in embeddings, behind the module's name.
const NAMES: [(&str, &str, Layer); 2] = [
    (".lora_A.weight", ".lora_B.weight", Layer::Linear),
    (".lora_embedding_A", ".lora_embedding_B", Layer::Embedding),
];

impl Factors {
    /// The module.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// What the module is, if a graph said so; of an embedding the tensors' names tell it.
    pub fn layer(&self) -> Option<Layer> {
        self.layer
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }

    /// in, or vocab.
    pub fn inputs(&self) -> usize {
        self.a.shape()[1]
    }

    /// out, or dim.
    pub fn outputs(&self) -> usize {
        self.b.shape()[0]
    }

    /// alpha.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether it is DoRA.
    pub fn is_dora(&self) -> bool {
        self.magnitude.is_some()
    }

    /// A `[r, in]`.
    pub fn a(&self) -> &[f32] {
        floats(&self.a)
    }

    /// B `[out, r]`.
    pub fn b(&self) -> &[f32] {
        floats(&self.b)
    }

    /// m `[out]`, under DoRA.
    pub fn magnitude(&self) -> Option<&[f32]> {
        self.magnitude.as_deref().map(floats)
    }

    /// The bias of B `[out]`, if it has one.
    pub fn bias_of_b(&self) -> Option<&[f32]> {
        self.bias_of_b.as_deref().map(floats)
    }

    /// A module's factors among tensors that were checked against its graph.
    pub(super) fn of_adapted(
        adapted: &AdaptedModule,
        kind: Kind,
        weights: &Weights,
    ) -> Result<Self, FactorsError> {
        let AdaptedModule { module, alpha, scale, .. } = adapted;
        let mut parts = super::arithmetic::parts(module, kind).into_iter().map(|part| {
            let name = format!("{}.{}", module.name, part.name);
            let missing = TensorsError::Missing { tensor: name.clone(), expected: part.shape.clone() };
            weights.get(&name).cloned().ok_or(missing)
        });
        let mut next = || {
            let source = parts.next().transpose();
            source.map_err(|source| FactorsError::Tensors { module: module.name.clone(), source })
        };
        let (a, b, extra) = (next()?, next()?, next()?);
        let (Some(a), Some(b)) = (a, b) else { return Err(FactorsError::Empty) };
        Self {
            module: module.name.clone(),
            layer: Some(module.layer),
            alpha: *alpha,
            scale: *scale,
            a,
            b,
            magnitude: extra.clone().filter(|_| kind.dora),
            bias_of_b: extra.filter(|_| kind.lora_bias),
        }
        .checked()
    }

    /// Refuses what cannot be read, and what is not finite: it would make every weight it touches the same. Floats that are
    /// still to be made are made here and kept, so that later they are there.
    fn checked(self) -> Result<Self, FactorsError> {
        let module = || self.module.clone();
        let parts = [
            ("lora_A", Some(&self.a)),
            ("lora_B", Some(&self.b)),
            ("lora_magnitude_vector", self.magnitude.as_ref()),
            ("lora_B.bias", self.bias_of_b.as_ref()),
        ];
        for (tensor, part) in parts.into_iter().filter_map(|(tensor, part)| Some((tensor, part?))) {
            let read = |source| FactorsError::Read { module: module(), tensor, source };
            let numbers = part.as_f32().map_err(read)?;
            if let Some(&found) = numbers.iter().find(|x| !x.is_finite()) {
                return Err(FactorsError::NotFinite { module: module(), tensor, found });
            }
        }
        Ok(self)
    }
}

/// The floats of a tensor of factors, which were checked.
fn floats(tensor: &Tensor) -> &[f32] {
    tensor.as_f32().expect("factors that were checked have their floats")
}

impl PeftAdapter {
    /// What is in the adapter, as far as that can be told without its base: whether there is such a module, and of which
    /// shape, is not looked at.
    ///
    /// # Errors
    /// A module's tensors do not fit together or the config, have elements that are not finite, or cannot be read.
    ///
    /// ```
    /// use engraft_import::peft::{LoraConfig, PeftAdapter};
    /// use engraft_runtime::{Tensor, Weights};
    /// let json = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["fc"]}"#;
    /// let tensors = Weights::from_iter([
    ///     ("base_model.model.fc.lora_A.weight", Tensor::f32(&[1, 3], vec![1.0, 0.0, 0.5])?),
    ///     ("base_model.model.fc.lora_B.weight", Tensor::f32(&[2, 1], vec![1.0, -1.0])?),
    /// ]);
    /// let contents = PeftAdapter::new(LoraConfig::parse(json)?, &tensors)?.contents()?;
    /// let fc = &contents.factors[0];
    /// assert_eq!((fc.module(), fc.inputs(), fc.outputs(), fc.rank(), fc.scale()), ("fc", 3, 2, 1, 2.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn contents(&self) -> Result<Contents, FactorsError> {
        let mut ledger = Ledger::new(self.tensors());
        let mut modules = BTreeMap::new();
        for (name, _) in self.tensors().iter() {
            for (a, b, layer) in NAMES {
                if let Some(module) = name.strip_suffix(a).or_else(|| name.strip_suffix(b)) {
                    modules.insert(module.to_owned(), (a, b, layer));
                }
            }
        }
        let factors = modules.iter().map(|(module, names)| self.module(module, *names, &mut ledger));
        let factors: Vec<_> = factors.collect::<Result<_, _>>()?;
        if factors.is_empty() {
            return Err(FactorsError::Empty);
        }
        let replaced: Vec<String> = ledger.left().map(str::to_owned).collect();
        let stray: Vec<_> = replaced.iter().filter(|tensor| tensor.contains(".lora_")).cloned().collect();
        if !stray.is_empty() {
            return Err(FactorsError::Stray(TensorsError::Unused { tensors: stray }));
        }
        Ok(Contents { factors, replaced })
    }

    fn module(
        &self,
        module: &str,
        (a, b, layer): (&str, &str, Layer),
        ledger: &mut Ledger,
    ) -> Result<Factors, FactorsError> {
        let config = self.config();
        if config.select(module)? == Selection::Untouched {
            return Err(FactorsError::Untargeted { module: module.to_owned() });
        }
        let rank = config.rank(module)?;
        let mut take = |names: &[&str], shape: fn(&[usize], u64) -> Option<Vec<u64>>| {
            let names: Vec<_> = names.iter().map(|name| format!("{module}{name}")).collect();
            let taken = ledger.take_shaped(&names, |found| shape(found, rank), rank);
            taken.map_err(|source| FactorsError::Tensors { module: module.to_owned(), source })
        };
        let a = take(&[a], |found, rank| Some(vec![rank, *found.get(1)? as u64]))?;
        let b = take(&[b], |found, rank| Some(vec![*found.first()? as u64, rank]))?;
        let outputs = b.shape()[0];
        let mut vector = |names: &[&str]| {
            let vector = take(names, |found, _| Some(vec![*found.first()? as u64]))?;
            if vector.shape() == [outputs] {
                return Ok(vector);
            }
            let tensor = format!("{module}{}", names[0]);
            let (found, expected) = (vector.shape().to_vec(), vec![outputs as u64]);
            let source = TensorsError::Shape { tensor, found, expected, rank: None };
            Err(FactorsError::Tensors { module: module.to_owned(), source })
        };
        let magnitude = [".lora_magnitude_vector", ".lora_magnitude_vector.weight"];
        let magnitude = config.use_dora.then(|| vector(&magnitude)).transpose()?;
        let bias_of_b = config.lora_bias.then(|| vector(&[".lora_B.bias"])).transpose()?;
        let (alpha, scale) = (config.alpha(module)?, config.scale(module)?);
        let layer = Some(layer).filter(|layer| *layer == Layer::Embedding);
        Factors { module: module.to_owned(), layer, alpha, scale, a, b, magnitude, bias_of_b }.checked()
    }
}
