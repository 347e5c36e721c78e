//! The invariants of `docs/architecture.md` that a build does not enforce by itself: who depends on whom.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

/// What a crate depends on outside its tests, by name.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
    let (_, rest) = text.split_once("\n[dependencies]\n").unwrap();
    let section = rest.split("\n[").next().unwrap();
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
    section.lines().filter(|line| !line.is_empty()).map(name).collect()
}

#[test]
fn each_crate_knows_only_what_it_stands_on() {
    let rooms: [(&str, &[&str]); 4] = [
        ("ir/Cargo.toml", &[]),
        ("runtime/Cargo.toml", &[]),
        ("compiler/Cargo.toml", &["engraft-ir", "engraft-runtime"]),
        ("import/Cargo.toml", &["engraft-ir", "engraft-runtime"]),
    ];
    for (manifest, stands_on) in rooms {
        let found = dependencies(manifest);
        let ours: Vec<_> = found.iter().filter(|name| name.starts_with("engraft")).collect();
        assert_eq!(ours, stands_on, "{manifest}");
        let knows_cranelift = found.iter().any(|name| name.starts_with("cranelift"));
        assert_eq!(knows_cranelift, manifest == "compiler/Cargo.toml", "{manifest}");
    }
}

#[test]
fn the_page_names_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let is_path = |code: &&str| code.contains('/') && !code.contains(' ');
    let prose: String = page.split("```").step_by(2).collect();
    let paths: Vec<_> = prose.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(paths.len() > 5, "the page names {paths:?}");
    for path in paths {
        let is_there = ["", "src", "ir/src", "compiler/src", "runtime/src", "import/src"]
            .iter()
            .any(|room| root.join(room).join(path).exists());
        assert!(is_there, "docs/architecture.md names `{path}`");
    }
}
