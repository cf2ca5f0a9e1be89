#!/bin/sh
# Times a model of 100M sizes beside PyTorch on real cells.
#
# usage: scripts/bench-model.sh CELLQL [OPTIONS OF benches/model.py]
set -eu
program=$1
shift
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
python=$cache/bench-python/bin/python
if ! "$python" -c 'import torch, h5py, safetensors' 2>/dev/null; then
    python3 -m venv "$cache/bench-python"
    "$cache/bench-python/bin/pip" -q --disable-pip-version-check install torch numpy safetensors h5py
fi
exec "$python" benches/model.py --cellql "$program" --source "$cache/raw-Baron_human.h5ad" "$@"
