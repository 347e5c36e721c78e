//! The variable that forces a set of kernels. Each case runs this file's own test again in a process with that variable.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use std::process::Command;

use engraft_runtime::{Context, KERNELS_VARIABLE, Options};

/// What a process with the variable set to `value` makes of it.
fn with_variable(value: &str) -> String {
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "the_variable_is_obeyed_or_refused", "--nocapture"]).env(KERNELS_VARIABLE, value);
    let output = String::from_utf8(test.output().unwrap().stdout).unwrap();
    output.lines().find_map(|line| line.split_once("outcome: ")).unwrap().1.to_owned()
}

#[test]
fn the_variable_is_obeyed_or_refused() {
    if std::env::var_os(KERNELS_VARIABLE).is_some() {
        match Context::new(Options::default()) {
            Ok(context) => println!("\noutcome: {}", context.kernels.set()),
            Err(error) => println!("\noutcome: {error}"),
        }
        return;
    }
    assert_eq!(with_variable("portable"), "portable");
    assert_eq!(
        with_variable("sse9"),
        "ENGRAFT_KERNELS: there are no kernels called \"sse9\": expected portable, avx2 or avx512"
    );
}
