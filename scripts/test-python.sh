#!/bin/sh
# Installs the Python libraries that tests compare with (anndata, scanpy, pyarrow, DuckDB) into an environment of their
# own, below $CELLQL_TEST_DATA, else ~/.cache/cellql-test-data. Does nothing where it is there.
set -eu
folder=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
if [ -f "$folder/python/complete-2" ]; then
    exit 0
fi
mkdir -p "$folder"
rm -rf "$folder/python"
python3 -m venv "$folder/python"
"$folder/python/bin/pip" -q --disable-pip-version-check install \
    anndata==0.12.19 duckdb==2.0.1 h5py==3.16.0 numpy==2.4.6 pandas==2.3.3 pyarrow==26.0.1 scanpy==1.11.5 scipy==1.16.3
touch "$folder/python/complete-2"
echo "Python for tests: $folder/python" >&2
