//! Dimensions: fixed numbers, symbols (`batch`, `seq`), and sums and products of them, kept in a canonical form so
//! that equality is structural. Knows nothing about tensors.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Add, Mul};
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// The largest value a fixed dim or a coefficient may take (2^40); beyond it a shape is refused as absurd.
pub const MAX_DIM: u64 = 1 << 40;

/// The most terms and the most factors in a term that a dim may have.
const MAX_TERMS: usize = 32;

/// The name of an open dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol of this name. Whether the name is one (`[A-Za-z_][A-Za-z0-9_]*`) is checked by [`Dim::check`].
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The symbol's name.
    pub fn name(&self) -> &str {
        &self.0
    }

    fn is_valid(&self) -> bool {
        let mut chars = self.0.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a dim is not usable.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DimError {
    /// The text is not a sum of products of numbers and symbols.
    #[error("`{text}` is not a dim: expected a sum of products of numbers and names, as in `2*batch+1`")]
    Syntax {
        /// The text found.
        text: String,
    },
    /// A symbol's name is not an identifier.
    #[error("`{name}` is not a dim's name: expected a letter or `_`, then letters, digits or `_`")]
    Name {
        /// The name found.
        name: String,
    },
    /// A number is beyond [`MAX_DIM`], or the expression has too many terms.
    #[error("dim `{dim}` is too large: the limit is {MAX_DIM} and {MAX_TERMS} terms")]
    TooLarge {
        /// The dim, printed.
        dim: String,
    },
    /// A symbol has no value where one is needed.
    #[error("dim `{symbol}` has no value here")]
    Unbound {
        /// The symbol's name.
        symbol: String,
    },
}

/// Values of symbols.
pub type Bindings = BTreeMap<Symbol, u64>;

/// A dimension: a polynomial over symbols with non-negative integer coefficients.
///
/// ```
/// use engraft_ir::Dim;
/// let batch = Dim::from("batch");
/// assert_eq!(batch.clone() * 2 + 1, "1 + batch*2".parse().unwrap());
/// assert_eq!((batch * 2).to_string(), "2*batch");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Coefficient (never 0) of each product of symbols (sorted; empty for the constant term).
    terms: BTreeMap<Vec<Symbol>, u64>,
}

impl Dim {
    /// A fixed dim.
    pub fn fixed(value: u64) -> Self {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Vec::new(), value);
        }
        Self { terms }
    }

    /// An open dim.
    pub fn symbol(name: &str) -> Self {
        Self { terms: BTreeMap::from([(vec![Symbol::new(name)], 1)]) }
    }

    /// The value, if no symbol is involved.
    pub fn as_fixed(&self) -> Option<u64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// The symbol, if this is one symbol and nothing else.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        let mut terms = self.terms.iter();
        match (terms.next(), terms.next()) {
            (Some((product, 1)), None) if product.len() == 1 => product.first(),
            _ => None,
        }
    }

    /// Every symbol in this dim.
    pub fn symbols(&self) -> BTreeSet<Symbol> {
        self.terms.keys().flatten().cloned().collect()
    }

    /// The terms: each a coefficient and the symbols it multiplies.
    pub fn terms(&self) -> impl Iterator<Item = (u64, &[Symbol])> {
        self.terms.iter().map(|(product, &c)| (c, product.as_slice()))
    }

    /// `self - other`, if it is again a dim: every coefficient non-negative, so `other <= self` for all values.
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        let mut terms = self.terms.clone();
        for (product, &c) in &other.terms {
            let left = terms.get(product).copied().unwrap_or(0).checked_sub(c)?;
            if left == 0 {
                terms.remove(product);
            } else {
                terms.insert(product.clone(), left);
            }
        }
        Some(Self { terms })
    }

    /// The value under these bindings.
    ///
    /// # Errors
    /// [`DimError::Unbound`] if a symbol has no value, [`DimError::TooLarge`] if the value overflows.
    pub fn eval(&self, bindings: &Bindings) -> Result<u64, DimError> {
        let mut sum = 0u64;
        for (coefficient, product) in self.terms() {
            let mut term = Some(coefficient);
            for symbol in product {
                let value = bindings
                    .get(symbol)
                    .copied()
                    .ok_or_else(|| DimError::Unbound { symbol: symbol.name().to_owned() })?;
                term = term.and_then(|t| t.checked_mul(value));
            }
            sum = term.and_then(|t| t.checked_add(sum)).ok_or_else(|| self.too_large())?;
        }
        Ok(sum)
    }

    /// Whether names and sizes are within bounds.
    ///
    /// # Errors
    /// [`DimError::Name`] or [`DimError::TooLarge`].
    pub fn check(&self) -> Result<(), DimError> {
        if self.terms.len() > MAX_TERMS {
            return Err(self.too_large());
        }
        for (coefficient, product) in self.terms() {
            if coefficient > MAX_DIM || product.len() > MAX_TERMS {
                return Err(self.too_large());
            }
            if let Some(bad) = product.iter().find(|s| !s.is_valid()) {
                return Err(DimError::Name { name: bad.name().to_owned() });
            }
        }
        Ok(())
    }

    fn too_large(&self) -> DimError {
        DimError::TooLarge { dim: self.to_string() }
    }

    fn add_term(&mut self, product: Vec<Symbol>, coefficient: u64) {
        if coefficient != 0 {
            let c = self.terms.entry(product).or_insert(0);
            *c = c.saturating_add(coefficient);
        }
    }
}

impl From<u64> for Dim {
    fn from(value: u64) -> Self {
        Self::fixed(value)
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Self::fixed(value as u64)
    }
}

impl From<i32> for Dim {
    /// A negative number becomes one that [`Dim::check`] refuses.
    fn from(value: i32) -> Self {
        Self::fixed(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Self::symbol(name)
    }
}

impl From<&Dim> for Dim {
    fn from(dim: &Dim) -> Self {
        dim.clone()
    }
}

impl<D: Into<Dim>> Add<D> for Dim {
    type Output = Dim;
    /// The sum; coefficients saturate (and [`Dim::check`] refuses the result).
    fn add(mut self, other: D) -> Dim {
        for (product, c) in other.into().terms {
            self.add_term(product, c);
        }
        self
    }
}

impl<D: Into<Dim>> Mul<D> for Dim {
    type Output = Dim;
    /// The product; coefficients saturate (and [`Dim::check`] refuses the result).
    fn mul(self, other: D) -> Dim {
        let other = other.into();
        let mut result = Dim::fixed(0);
        for (left, &c) in &self.terms {
            for (right, &d) in &other.terms {
                let mut product: Vec<_> = left.iter().chain(right).cloned().collect();
                product.sort();
                result.add_term(product, c.saturating_mul(d));
            }
        }
        result
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols first, the constant last, as one writes `batch+1`.
        let (constant, products): (Vec<_>, Vec<_>) = self.terms().partition(|(_, p)| p.is_empty());
        for (i, (coefficient, product)) in products.into_iter().chain(constant).enumerate() {
            if i > 0 {
                f.write_str("+")?;
            }
            if coefficient != 1 || product.is_empty() {
                write!(f, "{coefficient}")?;
            }
            for (j, symbol) in product.iter().enumerate() {
                if j > 0 || coefficient != 1 {
                    f.write_str("*")?;
                }
                write!(f, "{symbol}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Dim {
    type Err = DimError;

    fn from_str(text: &str) -> Result<Self, DimError> {
        let syntax = || DimError::Syntax { text: text.to_owned() };
        if text.len() > 1024 {
            return Err(DimError::Syntax { text: text.chars().take(32).collect() });
        }
        let mut sum = Dim::fixed(0);
        for term in text.split('+') {
            let mut product = Dim::fixed(1);
            for factor in term.split('*').map(str::trim) {
                let factor = if factor.starts_with(|c: char| c.is_ascii_digit()) {
                    Dim::fixed(factor.parse().map_err(|_| syntax())?)
                } else if Symbol::new(factor).is_valid() {
                    Dim::symbol(factor)
                } else {
                    return Err(syntax());
                };
                product = product * factor;
            }
            sum = sum + product;
        }
        sum.check()?;
        Ok(sum)
    }
}

impl Serialize for Dim {
    /// A number if fixed, else the printed form.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_fixed() {
            Some(value) => serializer.serialize_u64(value),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a non-negative integer or a string such as \"2*batch+1\"")]
        enum Repr {
            Fixed(u64),
            Text(String),
        }
        let dim = match Repr::deserialize(deserializer)? {
            Repr::Fixed(value) => Dim::fixed(value),
            Repr::Text(text) => text.parse().map_err(serde::de::Error::custom)?,
        };
        dim.check().map_err(serde::de::Error::custom)?;
        Ok(dim)
    }
}

/// A list of dims: `dims!["batch", 768]`.
#[macro_export]
macro_rules! dims {
    ($($dim:expr),* $(,)?) => { $crate::Shape::new(vec![$($crate::Dim::from($dim)),*]) };
}
