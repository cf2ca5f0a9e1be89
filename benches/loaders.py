#!/usr/bin/env python3
"""Times loaders of training data on the same cells, by turns: cellql's, annbatch's, scDataset's and slaf's.

    benches/loaders.py --cellql PATH --place FOLDER [--annbatch PYTHON] [--only NAME...] [--rounds 3] [--batch 64]
                       [--cells N] [--set LOADER.KEY=NUMBER...] [--json FILE]

Run by scripts/bench-loaders.sh, which makes every format from the same cells: ten data sets of equal size, one after
another on disk, as in an atlas of several files. Each loader runs in a process of its own, its files read once
beforehand, so that they are in the page cache; the order changes with every round. A run goes over all cells once (or
--cells), in batches of --batch shuffled cells, and only counts what comes: no model trains meanwhile.

A batch is in memory as a sparse matrix (CSR, float32) of raw counts with a row per cell and a column per gene, and the
data set of every row as a number. annbatch and scDataset hand over CSR as they are set here; slaf's raw mode yields a
table of (cell, gene, value), whose turning into CSR counts as its time. cellql says itself what its loader took.

Columns, medians over the rounds with the least and most in brackets:
  cells/s    cells over the seconds from opening the data to having the last batch; imports are not in it
  steady     the same from the first batch on, thus kind to a loader that reads much before its first batch
  first      seconds from opening the data to having the first batch
  entropy    bits of the data sets' shares in a batch, mean over all batches; with its part of what batches of cells
             drawn fully at random have, simulated here. It is to be 95 % or more for a fair comparison
  process    seconds from starting the process to its end, the interpreter's start and imports included. slaf's loader
             waits for more than a minute to learn that no batch is left: it is left after the last
  peak       MB of resident memory at most, and what there was of it before opening the data (interpreter and
             libraries); for worker processes, their number times the largest one's is added
  disk       MB of the format
  made       seconds that making the format from .h5ad took; scDataset reads the .h5ad itself

Stops where a loader's counts of a whole pass do not add up to those of the .h5ad, or cells are missing.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

# As their documentation recommends for speed, and tried on two cores with cached files: all mix to 95 % or more.
# Each shuffles some 16,000 cells in memory.
SETTINGS = {
    "cellql": {},
    # Shuffled when written, as it recommends, then read by chunks in random order; zarrs decodes, in its own threads.
    "annbatch": {"chunk_size": 512, "preload_nchunks": 32},
    # The same over cells in the order of the files, as the others read them: more and smaller chunks at once.
    "annbatch-unshuffled": {"chunk_size": 64, "preload_nchunks": 256},
    # Workers cost more than they bring on two cores: batches go from process to process.
    "scdataset": {"block_size": 64, "fetch_factor": 256, "num_workers": 0},
    # Its default, a mixture of scanners, over up to 64 fragments at once (with 16 it promises 88 % of random) and fewer
    # rows of each than 4,194,304, at which the first batch waits for most of the data.
    "slaf": {"n_scanners": 64, "prefetch_batch_size": 262144},
}
FORMATS = {
    "cellql": "store",
    "annbatch": "shuffled.zarr",
    "annbatch-unshuffled": "unshuffled.zarr",
    "scdataset": "cells.h5ad",
    "slaf": "cells.slaf",
}


# Each imports what it needs, then returns a function that opens the data and yields (CSR, labels).


def annbatch(path, batch, seed, chunk_size, preload_nchunks):
    import anndata
    import numpy
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

    def read(group):  # as its documentation has it, since all columns of obs would be slower
        obs = anndata.io.read_elem(group["obs"])[["dataset"]]
        return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=obs)

    def batches():
        chunks = {"chunk_size": chunk_size, "preload_nchunks": preload_nchunks}
        loader = Loader(batch_size=batch, shuffle=True, rng=numpy.random.default_rng(seed), **chunks)
        with anndata.settings.override(remove_unused_categories=False):
            loader = loader.use_collection(DatasetCollection(path, mode="r"), load_adata=read)
        for b in loader:
            yield b["X"], b["obs"]["dataset"].cat.codes.to_numpy()

    return batches


def scdataset(path, batch, seed, block_size, fetch_factor, num_workers):
    import anndata
    import torch  # noqa: F401 (so that its import is not in the time)
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    def batches():
        adata = anndata.read_h5ad(path, backed="r")
        labels = adata.obs["dataset"].cat.codes.to_numpy()
        matrix = adata.X  # rows of it rather than of `adata`: no view of obs and var, a little faster
        blocks = BlockShuffling(block_size=block_size)
        data = scDataset(adata, blocks, batch_size=batch, fetch_factor=fetch_factor, seed=seed)
        data.fetch_callback = lambda _, rows: (matrix[rows], labels[rows])
        data.batch_callback = lambda fetched, rows: (fetched[0][rows], fetched[1][rows])
        ahead = {"num_workers": num_workers, "prefetch_factor": fetch_factor + 1} if num_workers else {}
        for x, y in DataLoader(data, batch_size=None, **ahead):
            yield x, y.numpy()

    return batches


def slaf(path, batch, seed, n_scanners, prefetch_batch_size):
    import numpy
    from scipy.sparse import csr_matrix
    from slaf import SLAFArray
    from slaf.ml.dataloaders import SLAFDataLoader

    def batches():
        numpy.random.seed(seed)
        array = SLAFArray(str(path))
        labels = numpy.unique(array.obs["dataset"].to_numpy(), return_inverse=True)[1]
        scan = {"n_scanners": n_scanners, "prefetch_batch_size": prefetch_batch_size}
        for b in SLAFDataLoader(array, batch_size=batch, raw_mode=True, verbose=False, **scan):
            table = b["x"]
            cell = table["cell_integer_id"].to_numpy()
            starts = numpy.flatnonzero(numpy.diff(cell, prepend=cell[0] + 1))
            value = table["value"].to_numpy().astype(numpy.float32)
            gene = table["gene_integer_id"].to_numpy().astype(numpy.int32)
            x = csr_matrix((value, gene, numpy.append(starts, cell.size)), (starts.size, array.shape[1]))
            yield x, labels[cell[starts]]

    return batches


LOADERS = {"annbatch": annbatch, "annbatch-unshuffled": annbatch, "scdataset": scdataset, "slaf": slaf}


def entropy(labels):
    total = len(labels)
    return -sum(n / total * math.log2(n / total) for n in Counter(labels).values())


def one(name, place, batch, cells, seed, settings):
    """Runs a loader in this process; prints what `cellql pretrain --dry-run` does, and more, as a line of JSON."""
    opens = LOADERS[name](place / FORMATS[name], batch, seed, **settings)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, done, labels = 0.0, 0, []
    start = time.perf_counter()
    stream = opens()
    for x, y in stream:
        first = time.perf_counter() - start if not labels else first
        counts += x.data.sum(dtype="float64")
        done += x.shape[0]
        labels.append(y)
        if done >= cells:
            break
    seconds = time.perf_counter() - start
    stream.close()  # ends worker processes
    peak, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    assert x.format == "csr" and x.dtype == "float32" and max(map(len, labels)) == batch
    result = {
        "cells": done,
        "seconds": seconds,
        "label_entropy": statistics.fmean(entropy(y.tolist()) for y in labels),
        "batches": len(labels),
        "first_batch_seconds": first,
        "counts": float(counts),
        "imported_mb": imported / 1024,
        "peak_mb": (peak + settings.get("num_workers", 0) * worker) / 1024,
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # slaf's loader would wait for more than a minute for batches that do not come


# Running them by turns. Nothing large is imported on this side: a process starts out with its parent's peak of memory.


def warm(path):
    """Reads all files, so that they are in the page cache; returns their bytes."""
    total = 0
    for file in [path] if path.is_file() else (f for f in path.rglob("*") if f.is_file()):
        with file.open("rb") as stream:
            while block := len(stream.read(1 << 20)):
                total += block
    return total


def run(name, args, cells, seed):
    settings = json.dumps(args.settings[name])
    if name == "cellql":
        command = [args.cellql, "pretrain", args.place / FORMATS[name], "--dry-run", "--hold-out", 0]
        command += ["--batch", args.batch, "--cells", cells, "--seed", seed]
    else:
        python = args.annbatch if name.startswith("annbatch") else sys.executable
        command = [python, __file__, "one", name, args.place, args.batch, cells, seed, settings]
    size = warm(args.place / FORMATS[name])
    start = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=args.errors, text=True)
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    wall = time.perf_counter() - start
    if status or not lines:
        args.errors.seek(0)
        sys.exit(f"{name} failed:\n{args.errors.read()[-2000:]}")
    measured = {"process_seconds": wall, "disk_mb": size / 1e6, "peak_mb": usage.ru_maxrss / 1024}
    return {"loader": name, "seed": seed, **measured, **json.loads(lines[-1])}


def check(result, whole, cells, batch):
    if not cells - batch < result["cells"] < cells + batch:  # a loader may leave out the last, incomplete batch
        sys.exit(f"{result['loader']}: {result['cells']} cells came, not {cells}")
    if result["cells"] == whole["cells"] and result.get("counts", whole["counts"]) != whole["counts"]:
        sys.exit(f"{result['loader']}: the counts add up to {result['counts']}, not {whole['counts']}")


def random_entropy(sets, batch):
    labels = [i for i, cells in enumerate(sets) for _ in range(cells)]
    rng = random.Random(0)
    return statistics.fmean(entropy(rng.sample(labels, batch)) for _ in range(5000))


def spread(values, digits=0):
    if None in values:
        return "–"
    return "{} [{}–{}]".format(*(f"{of(values):,.{digits}f}" for of in (statistics.median, min, max)))


def report(results, args, ideal):
    made = dict(line.split() for line in (args.place / "made").read_text().splitlines())
    heads = "loader|cells/s|steady|first s|entropy (of random)|process s|peak MB (imports)|disk MB|made s".split("|")
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in args.only:
        mine = [r for r in results if r["loader"] == name]
        bits, imports = [r["label_entropy"] for r in mine], [r.get("imported_mb", 0) for r in mine]
        firsts = [r.get("first_batch_seconds") for r in mine]
        steady = [first and (r["cells"] - args.batch) / (r["seconds"] - first) for r, first in zip(mine, firsts)]
        columns = [
            name,
            spread([r["cells"] / r["seconds"] for r in mine]),
            spread(steady),
            spread(firsts, 2),
            f"{spread(bits, 3)} ({100 * statistics.median(bits) / ideal:.1f} %)",
            spread([r["process_seconds"] for r in mine], 1),
            f"{spread([r['peak_mb'] for r in mine])} ({statistics.median(imports):,.0f})",
            f"{mine[0]['disk_mb']:,.0f}",
        ]
        print("| " + " | ".join([*columns, made.get(name, "–")]) + " |")
        if statistics.median(bits) < 0.95 * ideal:
            print(f"{name} mixes the data sets less than asked: its time is not comparable", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cellql", required=True)
    parser.add_argument("--place", required=True, type=Path)
    parser.add_argument("--annbatch", help="a Python of 3.12 or later that has annbatch")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cells", type=int, help="stop a run after so many (default: all)")
    parser.add_argument("--set", nargs="+", default=[], metavar="LOADER.KEY=NUMBER", help="other settings")
    parser.add_argument("--json", type=Path, help="write every run's numbers to this file, a line each")
    args = parser.parse_args()
    args.settings = {name: dict(settings) for name, settings in SETTINGS.items()}
    for change in args.set:
        (name, key), value = change.split("=")[0].rsplit(".", 1), change.split("=")[1]
        args.settings[name][key] = int(value)
    for name in [n for n in args.only if n.startswith("annbatch")]:
        if not args.annbatch or not (args.place / FORMATS[name]).exists():
            args.only.remove(name)
            print(f"{name} is left out: there is no Python for it (3.12 or later), or was none when the data was made")
    whole = json.loads((args.place / "whole.json").read_text())
    cells = min(args.cells or whole["cells"], whole["cells"])
    ideal = random_entropy(whole["sets"], args.batch)
    print(f"\n{whole['cells']:,} cells in {len(whole['sets'])} data sets; {cells:,} a run, {os.cpu_count()} cores")
    print(f"batches of {args.batch}; fully random batches have {ideal:.3f} bits\n")
    for name in args.only:
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in args.settings[name].items()) or 'as it is'}")
    results = []
    for turn in range(args.rounds):
        for name in [args.only[(turn + i) % len(args.only)] for i in range(len(args.only))]:
            with (args.place / "errors").open("w+") as args.errors:
                results.append(run(name, args, cells, turn))
            check(results[-1], whole, cells, args.batch)
    report(results, args, ideal)
    if args.json:
        args.json.write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", name, place, batch, cells, seed, settings]:
            one(name, Path(place), int(batch), int(cells), int(seed), json.loads(settings))
        case _:
            main()
