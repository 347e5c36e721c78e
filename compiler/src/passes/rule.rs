//! The driver of local rules: tries each rule of a table at each node until none applies. It knows no rule itself.

use super::{Editor, PassError};
use engraft_ir::{GraphError, NodeId};

/// How often a table is tried over the whole graph; each round has to change something to be followed by another.
pub(super) const MAX_ROUNDS: usize = 64;

/// A local rule: what a node may be replaced by.
pub(super) struct Rule {
    /// The name in the trace.
    pub name: &'static str,
    /// The replacement for a node, if the rule applies to it: an existing node, or one just added.
    pub apply: fn(&mut Editor, NodeId) -> Result<Option<NodeId>, GraphError>,
}

/// Applies the rules until none applies, or the bound is reached.
pub(super) fn rewrite(editor: &mut Editor, rules: &[Rule]) -> Result<(), PassError> {
    for _ in 0..MAX_ROUNDS {
        let mut changed = false;
        for id in editor.order() {
            for rule in rules {
                if editor.is_retired(id) {
                    break;
                }
                if let Some(new) = (rule.apply)(editor, id)? {
                    editor.replace(rule.name, id, new, Vec::new())?;
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    Ok(())
}
