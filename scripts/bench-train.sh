#!/bin/sh
# Times steps of training beside PyTorch, on the same real cells.
#
# usage: scripts/bench-train.sh CELLQL [OPTIONS OF benches/train.py]
set -eu
program=$1
shift
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
python=$(scripts/bench-python.sh bench-python 'torch, h5py, safetensors' torch numpy safetensors h5py)
exec "$python" benches/train.py --cellql "$program" --source "$cache/raw-Baron_human.h5ad" "$@"
