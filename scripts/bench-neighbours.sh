#!/bin/sh
# Times approximate nearest neighbours beside hnsw_rs, hnswlib, usearch and faiss, on vectors made from real cells.
# benches/neighbours.py describes the vectors and the measurements. Without options: 100,000 vectors of 256 dimensions.
# The sizes of ARCHITECTURE.md are `--count 1000000 --dim 256` and `--count 100000 --dim 3072`, an hour each on two
# cores.
#
# usage: scripts/bench-neighbours.sh PROGRAM [OPTIONS OF benches/neighbours.py]
#        PROGRAM: the example `bench` of the crate cellql-neighbours
set -eu
program=$1
shift
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
python=$(scripts/bench-python.sh neighbours-python 'faiss, h5py, hnswlib, numpy, usearch' \
    faiss-cpu h5py hnswlib numpy usearch)
exec "$python" benches/neighbours.py --ours "$program" --source "$cache/raw-Baron_human.h5ad" --cache "$cache" "$@"
