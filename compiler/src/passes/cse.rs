//! Common subexpressions: the same op with the same attributes on the same operands is computed once. Inputs and
//! parameters are never merged: two tensors of a file may be equal only by chance.

use super::{Editor, Pass, PassError};
use engraft_ir::ops::Binary;
use engraft_ir::{NodeId, Op};
use std::collections::BTreeMap;

/// The pass.
pub const PASS: Pass<'static> = Pass { name: "cse", summary: "compute equal expressions once", run: &run };

fn run(editor: &mut Editor) -> Result<(), PassError> {
    // Operands before users, so that equal operands are one node already when their users are compared.
    let mut first: BTreeMap<(String, Vec<Option<NodeId>>), NodeId> = BTreeMap::new();
    for id in editor.order() {
        let op = editor.graph().node(id).op().clone();
        if matches!(op, Op::Input(_) | Op::Param(_)) || editor.is_retired(id) {
            continue;
        }
        let mut operands = editor.graph().operands(id);
        if matches!(op, Op::Binary(Binary::Add | Binary::Mul)) {
            operands.sort_unstable();
        }
        // The debug form prints floats so that different ones differ; ops have no order of their own.
        match first.entry((format!("{op:?}"), operands)) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(id)),
            std::collections::btree_map::Entry::Occupied(entry) => {
                editor.replace("common_subexpression", id, *entry.get(), Vec::new())?;
            }
        }
    }
    Ok(())
}
