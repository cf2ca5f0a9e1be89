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

# Functions over expressions and aggregates: aggregates.slt and the end of functions.slt.
kind = f["obs"]["cell_type"]
kinds = [c.decode() for c in kind["categories"][:]]
kind_of, donor_of = kind["codes"][:], donor["codes"][:]
totals = np.bincount(rows, weights=data.astype(np.float64))


def normalised(gene):
    return np.log1p(column(gene) * 1e4 / totals)


for cell in (17, 105):
    at = slice(indptr[cell], indptr[cell + 1])
    order = np.argsort(-data[at], kind="stable")[:5]
    print("top genes", cell, [(genes[indices[at][i]], float(data[at][i])) for i in order])
hormones = ("INS", "GCG", "SST", "PPY", "TTR")
print("list", {cell: [column(g)[cell] for g in hormones] for cell in (0, 1, 17)})
vectors = {cell: np.array([column(g)[cell] for g in hormones]) for cell in (0, 1)}
print("1 - pearson of 0 and 1", round(1 - np.corrcoef(vectors[0], vectors[1])[0, 1], 6))
print("l2 of 0 and 1", round(float(np.linalg.norm(vectors[0] - vectors[1])), 4), "dot", vectors[0] @ vectors[1])
score = (normalised("INS") + normalised("GCG") + normalised("CD8A")) / 3
for name in ("alpha", "beta", "t_cell"):
    of = kind_of == kinds.index(name)
    print(name, of.sum(), "score", round(score[of].mean(), 4), "sums", [column(g)[of].sum() for g in hormones],
          "means", [round(column(g)[of].mean(), 4) for g in hormones[:3]],
          "log means", [round(normalised(g)[of].mean(), 4) for g in hormones[:3]])
per_gene = np.bincount(indices, weights=data.astype(np.float64), minlength=len(genes))
print("genes above zero", int((per_gene > 0).sum()), "sum", per_gene.sum(), "highest",
      [(genes[i], per_gene[i]) for i in np.argsort(-per_gene)[:4]])
for i, name in enumerate(names):
    of = np.bincount(indices[donor_of[rows] == i], minlength=len(genes))
    print(name, "genes", int((of > 0).sum()), "sum", data[donor_of[rows] == i].sum(dtype=np.float64))
