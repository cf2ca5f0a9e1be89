#!/usr/bin/env python3
"""Prints the numbers about the demo's cells that the golden files expect, read with h5py alone.

usage: tests/sql/demo_numbers.py     needs h5py and numpy
"""
import collections, pathlib
import h5py, numpy as np

f = h5py.File(pathlib.Path(__file__).resolve().parents[2] / "demo" / "baron_pancreas.h5ad")
data, indices, indptr = (f["X"][k][:] for k in ("data", "indices", "indptr"))
genes = [g.decode() for g in f["var"][f["var"].attrs["_index"]][:]]
rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def column(gene):
    out = np.zeros(len(indptr) - 1)
    at = indices == genes.index(gene)
    out[rows[at]] = data[at]
    return out


for name in ("CXCL8", "IL8"):
    if name in genes:
        print(name, column(name).sum())
ins = column("INS")
print("INS", [(int(i), ins[i]) for i in sorted(range(len(ins)), key=lambda i: (-ins[i], i))[:3]])
donor = f["obs"]["donor_id"]
names = [c.decode() for c in donor["categories"][:]]
print("donors", sorted(collections.Counter(names[c] for c in donor["codes"][:]).items()))
print("values", len(data), data.sum(dtype=np.float64), "zeros stored", int((data == 0).sum()), "genes", len(genes))
