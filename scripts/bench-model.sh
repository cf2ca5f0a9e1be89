#!/bin/sh
# Times a model of 100M sizes beside PyTorch on real cells.
#
# usage: scripts/bench-model.sh CELLQL [OPTIONS OF benches/model.py]
set -eu
program=$1
shift
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
python=$(scripts/bench-python.sh bench-python 'torch, h5py, safetensors' torch numpy safetensors h5py)
exec "$python" benches/model.py --cellql "$program" --source "$cache/raw-Baron_human.h5ad" "$@"
