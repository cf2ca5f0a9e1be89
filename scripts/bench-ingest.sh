#!/bin/sh
# Resamples Baron's cells to the sizes given and times ingest on them beside slaf and anndata.
#
# usage: scripts/bench-ingest.sh CELLQL CELLS...
set -eu
program=$1
shift
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
python=$(scripts/bench-python.sh slaf 'slaf, h5py' slafdb==0.5.2 h5py)
files=
for cells in "$@"; do
    file="$cache/resampled-$cells.h5ad"
    if [ ! -f "$file" ]; then
        "$python" scripts/resample-h5ad.py "$cache/raw-Baron_human.h5ad" "$file.part" "$cells"
        mv "$file.part" "$file"
    fi
    files="$files $file"
done
# shellcheck disable=SC2086
exec "$python" benches/ingest.py --cellql "$program" --python "$python" $files
