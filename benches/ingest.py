#!/usr/bin/env python3
"""Times `cellql ingest` against `slaf convert` and `anndata.read_h5ad` on the same files, in turns, in one run.

    benches/ingest.py --cellql PATH --python PYTHON FILE.h5ad ... [--runs 3]

PYTHON is one with slafdb and anndata installed (`pip install slafdb==0.5.2`). Inputs of any size come from
scripts/resample-h5ad.py. Prints, as medians over the runs with the least and most in brackets: seconds of the whole
command, cells/s, MB/s of the input file, peak memory, and the size of what was written beside the input's.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py


def run(command):
    """Seconds and peak memory (MB) of a command, with all it starts."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    talk = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: {talk.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def size(path):
    return sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file())


def cellql(program, file, place):
    store = place / "store"
    subprocess.run([program, "--quiet", "init", store], check=True)
    taken = run([program, "--quiet", "ingest", store, file])
    return *taken, size(store)


def slaf(python, file, place):
    out = place / "out.slaf"
    taken = run([Path(python).parent / "slaf", "convert", file, out])
    return *taken, size(out)


def anndata(python, file, place):
    code = f"import anndata; anndata.read_h5ad({str(file)!r})"
    return *run([python, "-c", code]), 0


def row(name, cells, bytes_in, runs):
    seconds, memory, written = zip(*runs)
    middle = statistics.median(seconds)
    spread = f"{middle:.1f} [{min(seconds):.1f}–{max(seconds):.1f}]"
    out = f"{written[0] / 1e6:.1f}" if written[0] else "–"
    rates = f"{cells / middle:,.0f} | {bytes_in / 1e6 / middle:.1f}"
    return middle, f"| {name} | {spread} | {rates} | {max(memory):.0f} | {out} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cellql", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for file in args.files:
        with h5py.File(file) as source:
            cells = int(source["X"].attrs["shape"][0])
        runs = {"cellql ingest": [], "slaf convert": [], "anndata.read_h5ad": []}
        for _ in range(args.runs):
            for (name, done), how in zip(runs.items(), (cellql, slaf, anndata)):
                place = Path(tempfile.mkdtemp())
                try:
                    done.append(how(args.cellql if how is cellql else args.python, file, place))
                finally:
                    shutil.rmtree(place)
        bytes_in = file.stat().st_size
        print(f"\n{file.name}: {cells:,} cells, {bytes_in / 1e6:.1f} MB\n")
        print("| | seconds | cells/s | MB/s | peak MB | written MB |\n|---|---|---|---|---|---|")
        medians = {}
        for name, done in runs.items():
            medians[name], text = row(name, cells, bytes_in, done)
            print(text)
        print(
            f"\ncellql is {medians['slaf convert'] / medians['cellql ingest']:.2f} × slaf, "
            f"{medians['anndata.read_h5ad'] / medians['cellql ingest']:.2f} × anndata",
            flush=True,
        )


if __name__ == "__main__":
    main()
