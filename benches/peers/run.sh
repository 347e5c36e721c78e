#!/usr/bin/env bash
# Engraft beside its peers: sets everything up, measures, and writes the results. README.md has the rest.
#
#   benches/peers/run.sh                                     the whole grid of layers, into docs/benchmarks/
#   benches/peers/run.sh --models                            whole models, into docs/benchmarks/
#   benches/peers/run.sh --mixed                             rows with different adapters, into docs/benchmarks/
#   benches/peers/run.sh --quick [--models | --mixed]        a few points, into benches/peers/target/results/
#   benches/peers/run.sh --shape 768x768 --batch 1,8 --threads 1
set -euo pipefail
models=$(realpath --canonicalize-missing "${ENGRAFT_MODELS:-$(dirname "${BASH_SOURCE[0]}")/../../target/models}")
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=target/venv
installed=$venv/installed.txt
if ! cmp --silent requirements.txt "$installed"; then
    echo "installing the peers (about 3 GB to download, 6 GB on disk)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$installed"
fi

case " $* " in
*" --models "*) ../../tests/fetch_models.sh "$models" ;;
esac

cargo build --release --locked
# What torch.compile compiled is kept, so that another run need not.
export TORCHINDUCTOR_CACHE_DIR=$PWD/target/inductor
exec target/release/engraft-peers \
    --venv "$venv" --model-files "$models" --results ../../docs/benchmarks --partial-results target/results "$@"
