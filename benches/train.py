#!/usr/bin/env python3
"""Times steps of training beside PyTorch, on the same cells, batch, precision and threads, by turns in one run.

    benches/train.py --cellql PROGRAM --source raw-Baron_human.h5ad [--only 3M] [--rounds 3] [--steps 4] [--threads 2]
                     [--device cuda]

The cells: as many of Baron's human pancreas cells as a batch has, drawn at random from a seed, with the file's first
19,264 genes. Ours is `cellql pretrain` over a store of exactly these cells, so every step goes through all of them; a
step's time is its own `cells_per_second` in metrics.jsonl: reading, thinning and masking, gradients, clipping, AdamW.
PyTorch's is that of benches/train_torch.py, which makes its examples beforehand: forward, backward, clipping, AdamW.
Its forms are `plain`, and `sparse`, where the last decoder layer asks only masked positions, as ours does. Both start
from random weights and mask by the same rule, each with its own draws. With `--device cuda` both learn on a GPU, from
more cells a step. A run drops one step and measures `--steps`; printed are medians over all steps of all rounds with
[smallest, largest], and the median over rounds of the ratio of a round's medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

GENES = 19_264
BATCHES = {"cpu": {"3M": 8, "10M": 4}, "cuda": {"3M": 32, "10M": 16}}


def cells(source, count, seed):
    """Dense counts `[count, GENES]` of cells drawn at random, and the genes' names."""
    with h5py.File(source) as file:
        x = file["X"]
        shape, starts = x.attrs["shape"], x["indptr"][:]
        names = [name.decode() for name in file["var"]["index" if "index" in file["var"] else "_index"][:GENES]]
        dense = np.zeros((count, GENES), np.float32)
        for row, cell in enumerate(np.random.default_rng(seed).permutation(shape[0])[:count]):
            part = slice(starts[cell], starts[cell + 1])
            indices, data = x["indices"][part], x["data"][part]
            dense[row, indices[indices < GENES]] = data[indices < GENES]
    return dense, names


def write(path, dense, names):
    """An .h5ad of these counts."""
    rows, columns = np.nonzero(dense)
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        x = file.create_group("X")
        x.attrs["encoding-type"], x.attrs["encoding-version"] = "csr_matrix", "0.1.0"
        x.attrs["shape"] = dense.shape
        x["data"], x["indices"] = dense[rows, columns], columns.astype(np.int32)
        x["indptr"] = np.concatenate([[0], np.cumsum((dense > 0).sum(1))]).astype(np.int32)
        for axis, index in [("obs", [f"cell{i}" for i in range(len(dense))]), ("var", names)]:
            frame = file.create_group(axis)
            frame.attrs["encoding-type"], frame.attrs["encoding-version"] = "dataframe", "0.2.0"
            frame.attrs["_index"], frame.attrs["column-order"] = "_index", np.array([], h5py.string_dtype())
            frame["_index"] = np.array(index, h5py.string_dtype())
            frame["_index"].attrs["encoding-type"] = "string-array"
            frame["_index"].attrs["encoding-version"] = "0.2.0"


def call(command, threads):
    settings = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **settings})
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def ours(args, folder, size, precision, run):
    name = f"{size}-{precision}-{run}"
    call(
        [
            args.cellql,
            "--quiet",
            "pretrain",
            folder / "store",
            "--name",
            name,
            "--size",
            size,
            "--genes",
            folder / "genes.tsv",
            "--batch",
            args.batches[size],
            "--steps",
            args.steps + 1,
            "--precision",
            precision,
            "--hold-out",
            0,
            "--run",
            folder / name,
            "--device",
            args.device,
        ],
        args.threads,
    )
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [line["cells_per_second"] for line in lines[1:]], lines[0]["loss"]


def torch(args, folder, size, precision, form):
    out = call(
        [
            sys.executable,
            Path(__file__).with_name("train_torch.py"),
            "--size",
            size,
            "--batch",
            args.batches[size],
            "--device",
            args.device,
            "--steps",
            args.steps,
            "--warmup",
            1,
            "--threads",
            args.threads,
            "--precision",
            precision,
            "--cells",
            folder / "cells.h5ad",
            *(["--sparse"] if form == "sparse" else []),
        ],
        args.threads,
    )
    found = json.loads(out.splitlines()[-1])
    return [args.batches[size] / seconds for seconds in found["all"]], found["loss"][0]


def spread(values):
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def bench(args, size):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        dense, names = cells(args.source, args.batches[size], args.seed)
        write(folder / "cells.h5ad", dense, names)
        (folder / "genes.tsv").write_text("gene_name\tindex\n" + "".join(f"{n}\t{i}\n" for i, n in enumerate(names)))
        call([args.cellql, "--quiet", "init", folder / "store", "--no-model"], args.threads)
        call(
            [args.cellql, "--quiet", "ingest", folder / "store", folder / "cells.h5ad", "--min-genes", 0], args.threads
        )
        print(
            f"{size}: {args.batches[size]} cells, {(dense > 0).sum(1).mean():.0f} genes expressed in each, "
            f"{args.threads} threads",
            flush=True,
        )
        for precision in ["f32", "bf16"]:
            rounds = {"ours": [], "plain": [], "sparse": []}
            for run in range(args.rounds):
                for name in list(rounds) if run % 2 == 0 else list(rounds)[::-1]:
                    found = (
                        ours(args, folder, size, precision, run)
                        if name == "ours"
                        else torch(args, folder, size, precision, name)
                    )
                    rounds[name].append(found)
            for name, found in rounds.items():
                ratio = statistics.median(
                    statistics.median(o[0]) / statistics.median(f[0]) for o, f in zip(rounds["ours"], found)
                )
                beside = "" if name == "ours" else f", ours is {ratio:.2f} times as fast"
                print(
                    f"  {precision:5} {name:7} {spread([rate for f in found for rate in f[0]])} cells/s{beside}; "
                    f"loss of the first step {found[0][1]:.2f}",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cellql", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--only", choices=sorted(BATCHES["cpu"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    args = parser.parse_args()
    args.batches = BATCHES[args.device]
    for size in [args.only] if args.only else args.batches:
        bench(args, size)


if __name__ == "__main__":
    main()
