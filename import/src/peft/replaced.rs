//! What an adapter puts in the place of the base's own parameters: modules to save, biases, and the embeddings that PEFT
//! saves along. Knows nothing about arithmetic.

use super::attach::AttachError;
use super::config::{BiasMode, LoraConfig};
use super::modules::{Module, NotAModule};
use super::tensors::Ledger;
use engraft_ir::{DType, Dim, Graph, Node, Op};
use std::collections::{BTreeMap, BTreeSet};

/// The base and what is known about it.
pub(super) struct Base<'a> {
    pub(super) graph: &'a Graph,
    pub(super) candidates: &'a BTreeMap<String, Result<Module, NotAModule>>,
    /// The modules that are adapted.
    pub(super) targeted: &'a BTreeSet<String>,
}

/// Takes the tensors that replace parameters of the base, and returns the parameters' names.
pub(super) fn take_replaced(
    base: &Base<'_>,
    config: &LoraConfig,
    ledger: &mut Ledger,
) -> Result<Vec<String>, AttachError> {
    let mut replaced = Vec::new();
    let is_param = |node: &&Node| matches!(node.op(), Op::Param(_));
    for node in base.graph.nodes().filter(is_param) {
        let param = node.name();
        let Some(names) = names_in_file(base, config, ledger, param)? else { continue };
        let (module, _) = split(param);
        let fixed: Option<Vec<u64>> = node.shape().iter().map(Dim::as_fixed).collect();
        let (DType::F32, Some(shape)) = (node.ty().dtype, fixed) else {
            return Err(AttachError::Irreplaceable { param: param.to_owned(), found: node.ty().clone() });
        };
        ledger
            .take(param, &names, &shape, None)
            .map_err(|source| AttachError::Tensors { module: module.to_owned(), source })?;
        replaced.push(param.to_owned());
    }
    Ok(replaced)
}

/// The names that a file may have for a parameter that is replaced; `None` for one that stays.
fn names_in_file(
    base: &Base<'_>,
    config: &LoraConfig,
    ledger: &mut Ledger,
    param: &str,
) -> Result<Option<Vec<String>>, AttachError> {
    let (module, leaf) = split(param);
    let is_bias = leaf == "bias";
    if let Some(saved) = saved_module(config, param) {
        check_saved(base, saved, module)?;
        let rest = &param[saved.len() + 1..];
        if config.bias == BiasMode::All && is_bias {
            // With `bias` at "all" the frozen original's bias is saved, too; nothing computes with it.
            ledger.ignore(&format!("{saved}.original_module.{rest}"));
        }
        return Ok(Some(vec![param.to_owned(), format!("{saved}.modules_to_save.{rest}")]));
    }
    let targeted = base.targeted.contains(module);
    let wrapped = format!("{module}.base_layer.{leaf}");
    Ok(match config.bias {
        BiasMode::All | BiasMode::LoraOnly if is_bias && targeted => Some(vec![wrapped, param.to_owned()]),
        BiasMode::All if is_bias => Some(vec![param.to_owned()]),
        // PEFT saves an adapted embedding's own weight along, in case the vocabulary grew, and loads it.
        _ if targeted && ledger.has(&wrapped) => Some(vec![wrapped]),
        _ => None,
    })
}

/// The outermost module around a parameter that is to be saved: PEFT takes those whose name ends like this, even in the
/// middle of a word.
fn saved_module<'p>(config: &LoraConfig, param: &'p str) -> Option<&'p str> {
    let mut modules = param.match_indices('.').map(|(dot, _)| &param[..dot]);
    modules.find(|module| config.modules_to_save.iter().any(|saved| module.ends_with(saved.as_str())))
}

fn check_saved(base: &Base<'_>, saved: &str, module: &str) -> Result<(), AttachError> {
    if base.targeted.contains(module) {
        return Err(AttachError::SavedAndAdapted { module: module.to_owned(), saved: saved.to_owned() });
    }
    // PEFT copies a saved module, so what its weight is tied to keeps the original; one parameter cannot be both.
    if let Some(Ok(Module { tied, .. })) = base.candidates.get(module)
        && !tied.is_empty()
    {
        return Err(AttachError::SavedAndTied { module: module.to_owned(), tied: tied.clone() });
    }
    Ok(())
}

/// A parameter's module, and its own name in it.
fn split(param: &str) -> (&str, &str) {
    param.rsplit_once('.').unwrap_or(("", param))
}
