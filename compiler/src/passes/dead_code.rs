//! Dead code: removes what no output needs. Inputs stay, since they are part of the signature.

use super::{Editor, Pass, PassError};

/// The pass.
pub const PASS: Pass<'static> = Pass { name: "dead_code", summary: "remove what no output needs", run: &run };

#[expect(clippy::unnecessary_wraps, reason = "the signature of a pass")]
fn run(editor: &mut Editor) -> Result<(), PassError> {
    editor.remove_dead("dead_code");
    Ok(())
}
