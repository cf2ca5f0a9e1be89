#!/usr/bin/env python3
"""Writes an .h5ad whose cells are those of another, repeated: an input of any size for memory measurements.

usage: scripts/tile-h5ad.py IN.h5ad OUT.h5ad TIMES     IN: encoding 0.1.0 or 0.2.0, X in CSR; needs h5py and numpy
"""
import sys
import h5py, numpy as np

source, target, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with h5py.File(source) as a, h5py.File(target, "w") as b:
    x = a["X"]
    data, indices, indptr = (x[k][:] for k in ("data", "indices", "indptr"))
    cells = len(indptr) - 1
    out = b.create_group("X")
    out.attrs["encoding-type"] = "csr_matrix"
    out.attrs["shape"] = np.array([cells * times, int(x.attrs["shape"][1])])
    options = dict(compression="gzip", compression_opts=1, chunks=(1 << 16,))
    for name, values in (("data", data.astype("f4")), ("indices", indices.astype("i4"))):
        column = out.create_dataset(name, shape=(len(values) * times,), dtype=values.dtype, **options)
        for i in range(times):
            column[i * len(values) : (i + 1) * len(values)] = values
    steps = [indptr[:-1].astype("i8") + i * len(data) for i in range(times)] + [np.array([len(data) * times])]
    out.create_dataset("indptr", data=np.concatenate(steps))
    text = h5py.string_dtype()
    obs, var = b.create_group("obs"), b.create_group("var")
    for group in (obs, var):
        group.attrs["_index"] = "_index"
        group.attrs["column-order"] = np.array([], dtype="S1")
    obs.create_dataset("_index", data=[f"cell{i}" for i in range(cells * times)], dtype=text, chunks=(1024,))
    names = a["var"][a["var"].attrs["_index"]][:]
    var.create_dataset("_index", data=names, dtype=text)
