#!/usr/bin/env python3
"""Make a large, realistic .h5ad out of a small one, for timing.

    resample-h5ad.py SOURCE.h5ad OUT.h5ad CELLS [--seed 0] [--keep 0.5 1.0] [--compression gzip|none]

Each output cell is a source cell drawn with replacement whose counts are thinned
binomially by a factor drawn from 0.5..1.0 (--keep), so that sparsity, count distribution and
compressibility stay those of a real experiment while no two cells are the same.
The source matrix (CSR, whole counts) is held in memory; the output is written in blocks,
so memory does not grow with CELLS. Needs numpy and h5py only.
"""

import argparse

import h5py
import numpy as np

BLOCK = 1024  # cells per step; larger is no faster and only takes more memory
COLUMNS = {"cell_type": ("cell_type", "cell_type1"), "donor": ("donor",)}  # ours: source's


def read_categorical(obs, names):
    """Codes and categories of the first column of `names` that obs has."""
    name = next((n for n in names if n in obs), None)
    if name is None:
        raise SystemExit(f"source obs has none of the columns {', '.join(names)}")
    column = obs[name]
    if isinstance(column, h5py.Group):  # anndata 0.8 and later: a group per column
        return column["codes"][:], column["categories"].asstr()[:]
    return column[:], obs["__categories"][name].asstr()[:]  # earlier: categories apart


def barcodes(first, last):
    """16-letter barcodes; an odd multiplier permutes 32-bit integers, so none repeats."""
    code = np.arange(first, last, dtype=np.uint64) * np.uint64(0x9E3779B1)
    letters = np.frombuffer(b"ACGT", dtype="S1")
    digits = (code[:, None] >> np.arange(0, 32, 2, dtype=np.uint64)) & np.uint64(3)
    return [b + "-1" for b in letters[digits].view("S16").ravel().astype(str).tolist()]


def thin(counts, keep, rng):
    """Binomial(counts, keep). Most counts are 1, and for those one comparison will do."""
    kept = (rng.random(counts.size, dtype=np.float32) < keep).astype(np.float32)
    more = np.flatnonzero(counts > 1)
    kept[more] = rng.binomial(counts[more].astype(np.int64), keep[more])
    return kept


def tag(item, kind, version, **attributes):
    item.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return item


def write_frame(parent, name, columns):
    order = np.array(columns, dtype=h5py.string_dtype())
    frame = parent.create_group(name)
    tag(frame, "dataframe", "0.2.0", _index="_index")
    frame.attrs.create("column-order", order)
    return frame


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("cells", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", nargs=2, type=float, default=(0.5, 1.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--compression", choices=["gzip", "none"], default="gzip")
    args = parser.parse_args()
    if not 0 < args.cells <= 2**32:
        parser.error("CELLS must be 1 to 2^32 (barcodes would repeat)")
    if not 0 < args.keep[0] <= args.keep[1] <= 1:
        parser.error("--keep wants two fractions of 0 to 1, the least first")

    with h5py.File(args.source) as source:
        x = source["X"]
        if x.attrs["encoding-type"] != "csr_matrix":
            raise SystemExit("source X is not a CSR matrix")
        data, indices, indptr = x["data"][:], x["indices"][:].astype(np.int32), x["indptr"][:]
        if (data < 0).any() or (data != np.floor(data)).any():
            raise SystemExit("source X does not hold whole counts")
        genes = source["var"][source["var"].attrs["_index"]].asstr()[:]
        obs = {ours: read_categorical(source["obs"], names) for ours, names in COLUMNS.items()}

    lengths = np.diff(indptr)
    packed = {"compression": "gzip", "compression_opts": 4} if args.compression == "gzip" else {}
    rng = np.random.default_rng(args.seed)
    text = h5py.string_dtype()

    with h5py.File(args.out, "w") as out:
        tag(out, "anndata", "0.1.0")
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            tag(out.create_group(name), "dict", "0.1.0")

        var = write_frame(out, "var", [])
        tag(var.create_dataset("_index", data=genes, dtype=text, **packed), "string-array", "0.2.0")

        frame = write_frame(out, "obs", list(obs))
        index = frame.create_dataset("_index", (args.cells,), text, **packed)
        tag(index, "string-array", "0.2.0")
        codes = {}
        for name, (source_codes, categories) in obs.items():
            column = tag(frame.create_group(name), "categorical", "0.2.0", ordered=False)
            labels = column.create_dataset("categories", data=categories, dtype=text)
            tag(labels, "string-array", "0.2.0")
            codes[name] = column.create_dataset("codes", (args.cells,), source_codes.dtype, **packed)
            tag(codes[name], "array", "0.2.0")

        x = tag(out.create_group("X"), "csr_matrix", "0.1.0", shape=[args.cells, len(genes)])
        # h5py picks the chunk size from the first shape, as it does for anndata's own files;
        # thus start at a guess of the final length and resize.
        guess = max(1, int(args.cells * lengths.mean() * 0.85))
        growing = {"shape": (guess,), "maxshape": (None,), **packed}
        out_data = x.create_dataset("data", dtype=np.float32, **growing)
        out_indices = x.create_dataset("indices", dtype=np.int32, **growing)
        out_indptr = x.create_dataset("indptr", (args.cells + 1,), np.int64, **packed)

        written = 0
        for first in range(0, args.cells, BLOCK):
            last = min(first + BLOCK, args.cells)
            rows = rng.integers(len(lengths), size=last - first)
            ends = np.cumsum(lengths[rows], dtype=np.int64)
            # Where each value of the block lies in the source.
            shift = np.repeat(indptr[rows + 1] - ends, lengths[rows])
            places = np.arange(ends[-1]) + shift
            fraction = rng.uniform(*args.keep, rows.size).astype(np.float32)
            kept = thin(data[places], np.repeat(fraction, lengths[rows]), rng)

            some = kept > 0
            before = np.concatenate(([0], np.cumsum(some)))
            end = written + int(before[-1])
            if end > out_data.size:
                out_data.resize((end,))
                out_indices.resize((end,))
            out_data[written:end] = kept[some]
            out_indices[written:end] = indices[places[some]]
            out_indptr[first + 1 : last + 1] = written + before[ends]
            index[first:last] = barcodes(first, last)
            for name, (source_codes, _) in obs.items():
                codes[name][first:last] = source_codes[rows]
            written = end
        out_data.resize((written,))
        out_indices.resize((written,))


if __name__ == "__main__":
    main()
