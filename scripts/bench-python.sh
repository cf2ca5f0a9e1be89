#!/bin/sh
# A Python for a benchmark: an environment of its own below $CELLQL_TEST_DATA, else ~/.cache/cellql-test-data. Prints
# the interpreter; installs the packages where one of the modules is missing.
#
# usage: [PYTHON=python3] scripts/bench-python.sh FOLDER MODULES PACKAGE...
#        MODULES with commas, as `import` takes them
set -eu
cache=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
folder=$cache/$1
modules=$2
shift 2
if ! "$folder/bin/python" -c "import $modules" 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$folder" >&2
    # uv, since pip searches slafdb's many requirements for longer than a benchmark takes.
    "$folder/bin/pip" -q --disable-pip-version-check install uv >&2
    "$folder/bin/uv" -q pip install --python "$folder/bin/python" "$@" >&2
fi
echo "$folder/bin/python"
