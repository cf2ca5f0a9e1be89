#!/usr/bin/env python3
"""Times approximate nearest-neighbour search of cellql-neighbours, hnsw_rs, hnswlib, usearch and faiss on one set.

    benches/neighbours.py --ours PROGRAM --source raw-Baron_human.h5ad --cache FOLDER
                          [--count 100000] [--dim 256] [--threads 1,2] [--repeat 3] [--only ours,hnsw_rs,hnswlib,...]

The vectors: Baron's human pancreas cells, counts scaled to 10,000 a cell, log(1 + x), centred, their first 50 principal
components (numpy, exact). A vector is the scores of a cell drawn at random plus Gaussian noise in every component, half
as wide as that component's spread within cell types (the authors' labels), then projected into `--dim` dimensions by
one random matrix of orthonormal rows and scaled to unit length. So the set is clustered like an atlas: types, cells
within them, and neighbours around every cell. The 1,000 queries are drawn in the same way and are not in the set. Exact
neighbours come from numpy's matrix product over the whole set, and so do those among a random half, twentieth and
thousandth of it.

All graphs have M = 16 (32 links a vector on the base layer) and are built with ef_construction = 128, by the greatest
number of `--threads`. Programs run in turns, each in its own process, and answer the 1,000 queries as one batch with
every ef_search of a ladder up to recall 0.99; that is a round, and there are `--repeat` rounds. Printed are medians
over the rounds with [smallest, largest], by wall clock and by processor seconds, which other work on the machine
disturbs less. Queries/s at recall 0.95 are interpolated between the two neighbouring ef_search, log(queries/s) being
linear in recall; a program that finds more with the least ef_search is taken there. Memory is the peak of the process
that answers. Graphs are kept in FOLDER, and a graph found there is not built again: its seconds are those of the run
that built it.

hnsw_rs runs in the same program as ours (crates/neighbours/examples/bench) and computes distances with the same kernel.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

K, QUERIES, M, EF_CONSTRUCTION, COMPONENTS, NOISE = 10, 1000, 16, 128, 50, 0.5
SHARES = [0.5, 0.05, 0.001]
LADDER = [10, 14, 20, 28, 40, 56, 80, 112, 160, 224]
AIM, ENOUGH = 0.95, 0.99


def scores(source):
    """Principal components `[cells, 50]` of log-normalised counts and their spread within cell types `[50]`."""
    import h5py

    with h5py.File(source) as file:
        x = file["X"]
        shape = x.attrs["shape"]
        dense = np.zeros(shape, np.float32)
        starts, indices, data = x["indptr"][:], x["indices"][:], x["data"][:]
        for row in range(shape[0]):
            part = slice(starts[row], starts[row + 1])
            dense[row, indices[part]] = data[part]
        types = file["obs/cell_type1"][:]
    dense = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    dense -= dense.mean(0)
    values, vectors = np.linalg.eigh(dense.astype(np.float64) @ dense.T.astype(np.float64))
    top = np.argsort(values)[::-1][:COMPONENTS]
    found = vectors[:, top] * np.sqrt(values[top])
    residual = found.copy()
    for cell_type in np.unique(types):
        residual[types == cell_type] -= found[types == cell_type].mean(0)
    return found, residual.std(0)


def make(folder, source, count, dim):
    """Writes the set, the queries, the subsets and all exact neighbours."""
    if (folder / "made").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    found, spread = scores(source)
    rng = np.random.default_rng(1)
    projection = np.linalg.qr(rng.standard_normal((dim, COMPONENTS)))[0].T

    def draw(rows):
        chosen = found[rng.integers(len(found), size=rows)] + NOISE * spread * rng.standard_normal((rows, COMPONENTS))
        chosen = chosen @ projection
        return (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype("<f4")

    queries = draw(QUERIES)
    queries.tofile(folder / "queries.f32")
    with open(folder / "base.f32", "wb") as out:
        for start in range(0, count, 50_000):
            draw(min(50_000, count - start)).tofile(out)
    base = np.memmap(folder / "base.f32", "<f4", "r", shape=(count, dim))
    inside = {1.0: np.ones(count, bool), **{share: rng.random(count) < share for share in SHARES}}
    best = {share: (np.full((QUERIES, K), -np.inf, np.float32), np.zeros((QUERIES, K), "<u4")) for share in inside}
    for start in range(0, count, 50_000):
        products = queries @ base[start:start + 50_000].T
        for share, allowed in inside.items():
            columns = np.flatnonzero(allowed[start:start + 50_000])
            if len(columns) == 0:
                continue
            part = products[:, columns]
            values = np.hstack([best[share][0], part])
            places = np.hstack([best[share][1], np.broadcast_to((columns + start).astype("<u4"), part.shape)])
            top = np.argpartition(-values, K, axis=1)[:, :K]
            best[share] = np.take_along_axis(values, top, 1), np.take_along_axis(places, top, 1)
    for share, (_, places) in best.items():
        places.astype("<u4").tofile(folder / f"exact-{share}.u32")
        inside[share].astype(np.uint8).tofile(folder / f"among-{share}.u8")
    (folder / "made").touch()


def peak_gib():
    """Peak memory of this process since it was started; `ru_maxrss` would be at least what its parent had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def truth(folder):
    return np.fromfile(folder / "exact-1.0.u32", "<u4").reshape(QUERIES, K)


class Hnswlib:
    def __init__(self, base, dim, threads):
        import hnswlib

        self.index, self.threads = hnswlib.Index("ip", dim), threads
        self.count, self.index_file = len(base), None

    def build(self, base):
        self.index.init_index(len(base), M=M, ef_construction=EF_CONSTRUCTION)
        self.index.add_items(base, num_threads=self.threads)

    def save(self, path):
        self.index.save_index(path)

    def load(self, path):
        self.index.load_index(path, max_elements=self.count)

    def search(self, queries, ef):
        self.index.set_ef(ef)
        return self.index.knn_query(queries, K, num_threads=self.threads)[0]


class Usearch:
    def __init__(self, base, dim, threads, dtype):
        from usearch.index import Index

        self.threads = threads
        self.index = Index(ndim=dim, metric="ip", dtype=dtype, connectivity=M, expansion_add=EF_CONSTRUCTION)

    def build(self, base):
        step = 20_000
        for start in range(0, len(base), step):
            part = np.ascontiguousarray(base[start:start + step])
            self.index.add(np.arange(start, start + len(part), dtype=np.uint64), part, threads=self.threads)

    def save(self, path):
        self.index.save(path)

    def load(self, path):
        self.index.load(path)

    def search(self, queries, ef):
        self.index.expansion_search = ef
        return self.index.search(queries, K, threads=self.threads).keys


class Faiss:
    def __init__(self, base, dim, threads, bits):
        import faiss

        faiss.omp_set_num_threads(threads)
        self.faiss, metric = faiss, faiss.METRIC_INNER_PRODUCT
        if bits == 8:
            self.index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, M, metric)
        else:
            self.index = faiss.IndexHNSWFlat(dim, M, metric)
        self.index.hnsw.efConstruction = EF_CONSTRUCTION

    def build(self, base):
        if not self.index.is_trained:
            self.index.train(np.ascontiguousarray(base[:50_000]))
        self.index.add(base)

    def save(self, path):
        self.faiss.write_index(self.index, path)

    def load(self, path):
        self.index = self.faiss.read_index(path)

    def search(self, queries, ef):
        self.index.hnsw.efSearch = ef
        return self.index.search(queries, K)[1]


# Those that the program `--ours` runs.
RUST = ["ours", "hnsw_rs"]
RIVALS = {
    "hnswlib f32": Hnswlib,
    "usearch f32": lambda *a: Usearch(*a, "f32"),
    "usearch bf16": lambda *a: Usearch(*a, "bf16"),
    "usearch i8": lambda *a: Usearch(*a, "i8"),
    "faiss f32": lambda *a: Faiss(*a, 32),
    "faiss 8-bit": lambda *a: Faiss(*a, 8),
}


def worker(args, folder):
    """A process of one rival: builds its graph, or answers the queries with every ef_search."""
    name, threads = args.worker, int(args.threads)
    base = np.memmap(folder / "base.f32", "<f4", "r", shape=(args.count, args.dim))
    rival = RIVALS[name](base, args.dim, threads)
    path = str(folder / f"{name.replace(' ', '-')}.graph")
    if args.build:
        start, work = time.perf_counter(), time.process_time()
        rival.build(base)
        seconds, work = time.perf_counter() - start, time.process_time() - work
        rival.save(path)
        peak = peak_gib()
        print(json.dumps({"seconds": seconds, "cpu_seconds": work, "threads": threads, "peak_gib": peak}))
        return
    rival.load(path)
    queries = np.fromfile(folder / "queries.f32", "<f4").reshape(QUERIES, args.dim)
    exact, found = truth(folder), []
    rival.search(queries, LADDER[0])
    for ef in LADDER:
        start, work = time.perf_counter(), time.process_time()
        keys = rival.search(queries, ef)
        seconds, work = time.perf_counter() - start, time.process_time() - work
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(keys.astype(np.int64), exact.astype(np.int64)))
        found.append({"ef": ef, "recall": hits / exact.size, "rate": QUERIES / seconds, "cpu_rate": QUERIES / work})
        if found[-1]["recall"] > ENOUGH:
            break
    peak = peak_gib()
    print(json.dumps({"peak_gib": peak, "ladder": found}))


def call(command, threads):
    settings = {name: str(threads) for name in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"]}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **settings})
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def command(args, folder, name, threads, build):
    if name in RUST:
        verb = ["build", M, EF_CONSTRUCTION] if build else ["query", ",".join(map(str, LADDER)), ENOUGH]
        return [args.ours, name, verb[0], folder, args.dim, *verb[1:]]
    rest = ["--count", args.count, "--dim", args.dim, "--threads", threads, "--cache", args.cache]
    return [sys.executable, __file__, "--worker", name, *rest, *(["--build"] if build else [])]


def at_aim(ladder, rate):
    """Queries/s at recall 0.95, or None where no ef_search reaches it; `rate` says by which clock."""
    before = None
    for point in ladder:
        if point["recall"] >= AIM:
            if before is None:
                return point[rate]
            part = (AIM - before["recall"]) / (point["recall"] - before["recall"])
            return math.exp((1 - part) * math.log(before[rate]) + part * math.log(point[rate]))
        before = point
    return None


def spread(values, form):
    return f"{form % statistics.median(values)} [{form % min(values)}, {form % max(values)}]"


def bench(args, folder):
    names = [name for name in [*RUST, *RIVALS] if not args.only or {name, name.split()[0]} & set(args.only.split(","))]
    threads = [int(t) for t in args.threads.split(",")]
    print(f"{args.count} vectors x {args.dim}, {QUERIES} queries, recall@{K}; M = {M}, "
          f"ef_construction = {EF_CONSTRUCTION}; {COMPONENTS} components, "
          f"noise {NOISE} of the spread within types", flush=True)
    make(folder, args.source, args.count, args.dim)
    built = {}
    for name in names:
        note = folder / f"{name.replace(' ', '-')}.json"
        if not note.exists() or (name == "ours" and args.rebuild):
            note.write_text(json.dumps(call(command(args, folder, name, max(threads), True), max(threads))[-1]))
        built[name] = json.loads(note.read_text())
        took = {"cpu_seconds": math.nan, "peak_gib": math.nan, **built[name]}
        print(f"{name:14} built in {took['seconds']:6.0f} s by {took['threads']} threads, "
              f"{took['cpu_seconds']:6.0f} s of processors, {took['peak_gib']:.2f} GiB", flush=True)
    rounds = {}
    for turn in range(args.repeat):
        for count in threads:
            for name in names if turn % 2 == 0 else names[::-1]:
                rounds.setdefault((name, count), []).append(call(command(args, folder, name, count, False), count)[-1])
    for count in threads:
        for name in names:
            report(name, count, rounds[name, count])
    if "ours" in names:
        for count in threads:
            for way in rounds["ours", count][0]["filters"]:
                other = f"recall {way['other_recall']:.3f}, {way['other_rate']:.0f} queries/s"
                print(f"ours, {count} threads, filter keeping {way['share']:6.1%}: {way['way']}, "
                      f"recall {way['recall']:.3f}, {way['rate']:.0f} queries/s; other way {other}")


def report(name, count, results):
    label = f"{name:14} {count} threads: "
    ladder = " ".join(f"{p['ef']}:{p['recall']:.3f}/{statistics.median(r['ladder'][i]['rate'] for r in results):.0f}"
                      for i, p in enumerate(results[0]["ladder"]))
    peak = statistics.median(r["peak_gib"] for r in results)
    if at_aim(results[0]["ladder"], "rate") is None:
        best = max(p["recall"] for p in results[0]["ladder"])
        print(f"{label}recall {AIM} not reached, at most {best:.3f}; {peak:.2f} GiB; ef:recall/rate {ladder}",
              flush=True)
        return
    wall, work = ([at_aim(r["ladder"], rate) for r in results] for rate in ["rate", "cpu_rate"])
    print(f"{label}{spread(wall, '%.0f')} queries/s, {spread(work, '%.0f')} per second of processor, {peak:.2f} GiB; "
          f"ef:recall/rate {ladder}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours")
    parser.add_argument("--source")
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="programs, by name or its first word")
    parser.add_argument("--rebuild", action="store_true", help="build our graph even if there is one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.cache / f"neighbours-{args.count}-{args.dim}"
    if args.worker:
        worker(args, folder)
    else:
        bench(args, folder)


if __name__ == "__main__":
    main()
