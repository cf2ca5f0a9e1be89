#!/bin/sh
# Times queries over a million cells, those about expression beside slaf. The cells are Baron's, resampled to some 340
# genes a cell; made once, in minutes, below $CELLQL_BENCH_QUERIES, else ~/.cache/cellql-bench-queries (5 GB while they
# are made).
#
# usage: scripts/bench-queries.sh CELLQL CELLS [OPTIONS OF benches/queries.py]
set -eu
program=$1
cells=$2
shift 2
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
place=${CELLQL_BENCH_QUERIES:-$HOME/.cache/cellql-bench-queries}/$cells
python=$(scripts/bench-python.sh slaf 'slaf, h5py' slafdb==0.5.2 h5py)
if [ ! -e "$place/complete" ]; then
    rm -rf "$place"
    mkdir -p "$place"
    "$python" scripts/resample-h5ad.py "$cache/raw-Baron_human.h5ad" "$place/cells.h5ad" "$cells" \
        --keep 0.05 0.15 --compression none
    "$program" --quiet init "$place/store"
    "$program" --quiet ingest "$place/store" "$place/cells.h5ad" --min-genes 0
    "$(dirname "$python")/slaf" convert "$place/cells.h5ad" "$place/cells.slaf"
    rm "$place/cells.h5ad"
    touch "$place/complete"
fi
exec "$python" benches/queries.py --cellql "$program" --store "$place/store" --slaf "$place/cells.slaf" "$@"
