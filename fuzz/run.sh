#!/usr/bin/env bash
# Builds the fuzz targets and runs each as often as stands below, always with the same inputs: what CI does.
#
#   fuzz/run.sh                          every target
#   fuzz/run.sh safetensors              one target, once over its corpus
#   fuzz/run.sh safetensors -runs=-1     one target, until it finds something; further words go to libFuzzer
#
# README.md has the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Target and runs; each takes about 10 to 20 seconds.
targets="
safetensors     100000
gguf             20000
adapter_config  100000
graph_json       60000
graph_text       50000
tokenizer        60000
model_config     60000
shard_index      30000
sentence          5000
"

# What `cargo fuzz` sets without a sanitizer: coverage of branches and comparisons, which libFuzzer follows. With a
# target named, cargo keeps these flags away from build scripts and macros, which aren't linked with libFuzzer.
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -C passes=sancov-module -C codegen-units=1"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -C llvm-args=-sanitizer-coverage-$option"
done
RUSTFLAGS="$flags" cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" \
    --target-dir target/fuzz

# New inputs go to a directory of their own; the corpus in git grows by hand only.
run() {
    local target=$1 new=target/fuzz/corpus/$1
    shift
    echo "+ fuzz $target $*"
    mkdir -p "$new"
    "target/fuzz/$host/release/$target" -seed=1 -timeout=20 -rss_limit_mb=2048 -verbosity=0 \
        -artifact_prefix="target/fuzz/$target-" "$@"
}

if [ $# -gt 0 ]; then
    target=$1
    shift
    # Words that are no options are inputs of the caller's, which are run once.
    case "${1:-}" in
    "") run "$target" -runs=0 "fuzz/corpus/$target" ;;
    -*) run "$target" "$@" "target/fuzz/corpus/$target" "fuzz/corpus/$target" ;;
    *) run "$target" "$@" ;;
    esac
    exit
fi
rm -rf target/fuzz/corpus
while read -r target runs; do
    [ -z "$target" ] || run "$target" -runs="$runs" "target/fuzz/corpus/$target" "fuzz/corpus/$target"
done <<<"$targets"
