#!/bin/sh
# Times loaders of training data: cellql's, annbatch's, scDataset's and slaf's over the same cells. The cells are
# Baron's, resampled to some 340 genes a cell, in ten data sets; made once below $CELLQL_BENCH_LOADERS, else
# ~/.cache/cellql-bench-loaders (0.7 GB per 100,000 cells, while they are made 1.2 GB).
#
# annbatch needs Python 3.12 or later: $CELLQL_NEWER_PYTHON, else python3.14, 3.13, 3.12, python3 or one of pyenv's; it
# is left out where there is none. PyTorch is that of scripts/bench-model.sh (5 GB), installed where missing.
#
# usage: scripts/bench-loaders.sh CELLQL [CELLS=100000] [OPTIONS OF benches/loaders.py]
set -eu
program=$1
shift
cells=100000
case ${1:-} in [0-9]*) cells=$1; shift ;; esac
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
place=${CELLQL_BENCH_LOADERS:-$HOME/.cache/cellql-bench-loaders}/$cells

packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# slaf and scDataset share the environments of the other benchmarks, so that there is one PyTorch; psutil is what slafdb
# 0.5.2 needs to load raw data but does not ask for.
torch=$(scripts/bench-python.sh bench-python 'torch, h5py, safetensors' torch numpy safetensors h5py)
slaf=$(scripts/bench-python.sh slaf 'slaf, h5py' slafdb==0.5.2 h5py)
python=$(scripts/bench-python.sh loaders-python 'torch, slaf, psutil, scdataset' --no-deps scdataset==0.3.0 psutil)
printf '%s\n' "$(packages "$slaf")" "$(packages "$torch")" > "$(packages "$python")/shared.pth"

annbatch=
for newer in "$cache/annbatch/bin/python" "${CELLQL_NEWER_PYTHON:-}" python3.14 python3.13 python3.12 python3 \
    "$HOME"/.pyenv/versions/3.1[2-9].*/bin/python; do
    if "$newer" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
        annbatch=$(PYTHON=$newer scripts/bench-python.sh annbatch 'annbatch, zarrs, h5py' 'annbatch[zarrs]==0.3.1' h5py)
        break
    fi
done

# Seconds of making a loader's format, for the report.
timed() {
    name=$1
    shift
    start=$(date +%s)
    "$@"
    echo "$name $(($(date +%s) - start))" >> "$place/made"
}

store() {
    "$program" --quiet init "$place/store"
    "$program" --quiet ingest "$place/store" "$place"/parts/*.h5ad --min-genes 0
}

if [ ! -e "$place/complete" ]; then
    rm -rf "$place"
    mkdir -p "$place"
    "$python" scripts/resample-h5ad.py "$cache/raw-Baron_human.h5ad" "$place/raw.h5ad" "$cells" \
        --keep 0.05 0.15 --compression none
    "$python" scripts/make-loaders-data.py split "$place"
    rm "$place/raw.h5ad"
    timed cellql store
    # slaf writes a fragment per chunk, and mixes cells of different fragments: 20 at least, 2 of each data set.
    chunk=$((cells / 20 < 5000 ? cells / 20 : 5000))
    timed slaf "$(dirname "$slaf")/slaf" convert "$place/cells.h5ad" "$place/cells.slaf" --chunk-size "$chunk" \
        > "$place/slaf.log" 2>&1
    if [ -n "$annbatch" ]; then
        timed annbatch "$annbatch" scripts/make-loaders-data.py zarr "$place" shuffled 2> "$place/annbatch.log"
        timed annbatch-unshuffled "$annbatch" scripts/make-loaders-data.py zarr "$place" unshuffled \
            2>> "$place/annbatch.log"
    fi
    rm -r "$place/parts"
    touch "$place/complete"
fi
exec "$python" benches/loaders.py --cellql "$program" --place "$place" --annbatch "$annbatch" "$@"
