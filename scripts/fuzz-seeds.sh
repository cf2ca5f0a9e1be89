#!/bin/sh
# Puts one small file of every format into a folder, for the fuzzer to begin with: those the tests of ingest are made
# of.
set -eu
out=$1
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$cache/python/bin/python" tests/python/make_fixtures.py "$scratch/fixtures"
mkdir -p "$out"
for file in "$scratch"/fixtures/*/cells.* "$scratch"/fixtures/*/*.h5 "$scratch"/fixtures/mtx*/*matrix.mtx*; do
    cp "$file" "$out/$(basename "$(dirname "$file")")"
done
