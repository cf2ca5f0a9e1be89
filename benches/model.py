#!/usr/bin/env python3
"""Times embedding and prediction of real cells with a model of 100M sizes: cellql beside PyTorch, in one run.

    benches/model.py --cellql PROGRAM --source raw-Baron_human.h5ad [--what embed,enhance]
                     [--cells 16] [--enhance 2] [--repeat 3] [--no-batched]

Cells are Baron's human pancreas cells with 1,500 to 2,500 expressed genes, and the same cells thinned binomially to
about 400. Weights are random (`cellql model init --size 100M`), the same file for all. PyTorch runs
`benches/model_torch.py`: as the published script does (one cell at a time, fp32) and, unless `--no-batched`, in its
fastest batched bf16 form. Machine peaks are PyTorch's own matrix products. cellql's seconds are those of the whole
command over one cell more, less those of the command over that cell alone, which opens the store and loads the model
too. Programs take turns; medians over `--repeat` are printed, with [smallest, largest].
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

TORCH = Path(__file__).with_name("model_torch.py")


def choose(source, cells, seed):
    """Counts `[cells, genes]` of cells with 1,500 to 2,500 genes, spread over the file, and gene names."""
    with h5py.File(source) as file:
        x, genes = file["X"], file["var"]
        names = genes[genes.attrs.get("_index", "index")].asstr()[:] if isinstance(genes, h5py.Group) else None
        if names is None:
            names = np.array([n.decode() for n in genes["index"]])
        starts = x["indptr"][:]
        expressed = np.diff(starts)
        fit = np.flatnonzero((expressed >= 1500) & (expressed <= 2500))
        chosen = fit[np.linspace(0, len(fit) - 1, cells).astype(int)]
        dense = np.zeros((cells, len(names)), dtype=np.int64)
        for row, cell in enumerate(chosen):
            part = slice(starts[cell], starts[cell + 1])
            dense[row, x["indices"][part]] = x["data"][part]
    rng = np.random.default_rng(seed)
    thinned = np.zeros_like(dense)
    for row, counts in enumerate(dense):
        keep = 0.5
        for _ in range(30):  # the share of counts that leaves about 400 genes
            thinned[row] = rng.binomial(counts, keep)
            keep *= (400 / max(1, np.count_nonzero(thinned[row]))) ** 0.7
            keep = min(1.0, keep)
            if abs(np.count_nonzero(thinned[row]) - 400) <= 12:
                break
    return {"long": dense, "short": thinned}, names


def write_csv(path, counts, names):
    with open(path, "w") as out:
        out.write("," + ",".join(names) + "\n")
        for i, row in enumerate(counts):
            out.write(f"cell{i}," + ",".join(map(str, row)) + "\n")


def run(*command):
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def tokens(cellql, store, model_file, path):
    """The cells as the encoder reads them, computed here and not by the code that is timed."""
    with open(model_file, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    places = {name: i for i, name in enumerate(json.loads(header["__metadata__"]["cellql"])["vocabulary"])}
    query = 'SELECT x.cell_id, g.symbol, x.value FROM "X" x JOIN genes g ON x.gene_id = g.gene_id'
    rows = run(cellql, "sql", store, "-c", query, "--format", "csv")[1].splitlines()[1:]
    cells = {}
    for row in rows:
        cell, symbol, value = row.split(",")
        if symbol in places:
            cells.setdefault(int(cell), []).append((places[symbol], float(value)))
    starts, positions, values = [0], [], []
    for cell in sorted(cells)[1:]:  # the first one is only there to know what loading costs
        found = sorted(cells[cell])
        total = sum(v for _, v in found)
        positions += [p for p, _ in found] + [len(places), len(places) + 1]
        values += [np.log1p(v / total * 1e4) for _, v in found] + [4.0, np.log10(total)]
        starts.append(len(positions))
    np.savez(
        path, starts=np.array(starts), positions=np.array(positions, np.int32), values=np.array(values, np.float32)
    )
    return np.diff(starts)


def torch(*arguments):
    lines = run(sys.executable, TORCH, *arguments)[1].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def vectors(cellql, store, call, where):
    query = f"SELECT {call} AS v FROM cells WHERE {where} ORDER BY cell_id"
    seconds, out = run(cellql, "--quiet", "sql", store, "-c", query, "--format", "ndjson")
    return seconds, np.array([json.loads(line)["v"] for line in io.StringIO(out)], dtype=np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).min())


def show(what, name, seconds, cells, gflop, peak, script):
    middle = statistics.median(seconds)
    share = f"  {100 * gflop / middle / peak:5.0f} % of fp32 peak"
    ratio = "" if script is None else f"  {script / (middle / cells):5.2f} x script"
    spread = f"[{min(seconds) / cells:.3f}, {max(seconds) / cells:.3f}]"
    print(
        f"{what:16} {name:22} {middle / cells:8.3f} s/cell {spread:16} {cells / middle:7.2f} cells/s "
        f"{gflop / middle:7.1f} GFLOP/s{share}{ratio}",
        flush=True,
    )
    return middle / cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cellql", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--enhance", type=int, default=2, help="cells to predict")
    parser.add_argument("--what", default="embed,enhance", help="which of the two to time")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--no-batched", action="store_true", help="leave out PyTorch's batched form, whose trials take minutes"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cellql-bench-"))
    try:
        bench(args, folder)
    finally:
        shutil.rmtree(folder)


def bench(args, folder):
    counts, names = choose(args.source, args.cells + 1, 0)
    peaks = torch("--what", "peak")
    best = {dtype: max(p["gflops"] for p in peaks if p["dtype"] == dtype) for dtype in ["float32", "bfloat16"]}
    print("PyTorch matrix product peaks: " + ", ".join(f"{dtype} {rate:.0f} GFLOP/s" for dtype, rate in best.items()))
    peak = best["float32"]
    for what, dense in counts.items():
        write_csv(folder / f"{what}.csv", dense, names)
        store = folder / what
        run(args.cellql, "init", store)
        run(args.cellql, "ingest", store, folder / f"{what}.csv", "--min-genes", 0)
        run(args.cellql, "model", "init", store, "--size", "100M", "--name", "m")
        model = next((store / "models").glob("*.safetensors"))
        lengths = tokens(args.cellql, store, model, folder / f"{what}.npz")
        print(f"{what}: {len(lengths)} cells, {lengths.mean():.0f} tokens [{lengths.min()}, {lengths.max()}]")
        common = ["--weights", model, "--cells", folder / f"{what}.npz", "--repeat", 1]
        if "embed" not in args.what.split(","):
            continue
        rounds = {}
        for _ in range(args.repeat):
            out = folder / "script.npy"
            script = torch("--what", "embed", "--method", "script", *common, "--out", out)[-1]
            rounds.setdefault("script", []).append(script["seconds"])
            for precision in ["f32", "bf16", "int8"]:
                call = f"embed(expr, precision => '{precision}')"
                load = vectors(args.cellql, store, call, "cell_id = 0")[0]
                seconds, found = vectors(args.cellql, store, call, "true")
                rounds.setdefault(precision, []).append(seconds - load)
                rounds.setdefault(f"{precision} cosine", []).append(cosine(found[1:], np.load(out)))
        gflop, n = script["gflop"], len(lengths)
        base = show(f"embed {what}", "torch script fp32", rounds["script"], n, gflop, peak, None)
        if not args.no_batched:
            batched = torch("--what", "embed", "--method", "batched", *common)[-1]
            show(f"embed {what}", "torch batched bf16", [batched["seconds"]], n, gflop, peak, base)
        for precision in ["f32", "bf16", "int8"]:
            show(f"embed {what}", f"cellql {precision}", rounds[precision], n, gflop, peak, base)
            print(f"{'':16} smallest cosine to torch fp32: {min(rounds[precision + ' cosine']):.6f}")
    if "enhance" in args.what.split(","):
        enhance(args, folder, peak)


def enhance(args, folder, peak):
    store, n = folder / "long", args.enhance
    model = next((store / "models").glob("*.safetensors"))
    whole = np.load(folder / "long.npz")
    end = whole["starts"][n]
    part = {"starts": whole["starts"][: n + 1], "positions": whole["positions"][:end], "values": whole["values"][:end]}
    np.savez(folder / "few.npz", **part)
    common = ["--weights", model, "--cells", folder / "few.npz", "--repeat", 1]
    rounds = {}
    for _ in range(args.repeat):
        script = torch("--what", "enhance", "--method", "script", *common)[-1]
        rounds.setdefault("script", []).append(script["seconds"])
        for precision in ["f32", "bf16", "int8"]:
            call = f"expression(enhance(expr, precision => '{precision}'), 'INS')"
            load = run(args.cellql, "--quiet", "sql", store, "-c", f"SELECT {call} FROM cells WHERE cell_id = 0")[0]
            seconds = run(args.cellql, "--quiet", "sql", store, "-c", f"SELECT {call} FROM cells WHERE cell_id <= {n}")[
                0
            ]
            rounds.setdefault(precision, []).append(seconds - load)
    base = show("enhance", "torch script fp32", rounds["script"], n, script["gflop"], peak, None)
    if not args.no_batched:
        batched = torch("--what", "enhance", "--method", "batched", *common)[-1]
        show("enhance", "torch batched bf16", [batched["seconds"]], n, script["gflop"], peak, base)
    for precision in ["f32", "bf16", "int8"]:
        show("enhance", f"cellql {precision}", rounds[precision], n, script["gflop"], peak, base)


if __name__ == "__main__":
    main()
