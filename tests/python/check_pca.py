#!/usr/bin/env python3
"""Compares a linear model that cellql fitted with scikit-learn's exact PCA of the same matrix.

    check_pca.py FILE.h5ad MODEL.safetensors VECTORS.parquet NAMES.csv WHITENING

FILE holds counts; the model was fitted to all of its cells, as one group. Checks the principal angles between the
loadings, the variances, and the embeddings of every cell (columns `barcode`, `vector`). Prints the figures; fails where
they differ. NAMES has the approved symbol of each gene (`symbol`) and its name in the file (`name`).
"""

import json
import os
import struct
import sys

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.decomposition import PCA


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        body = file.read()
    tensors = {}
    for name, of in header.items():
        if name != "__metadata__":
            first, end = of["data_offsets"]
            tensors[name] = np.frombuffer(body[first:end], np.float32).reshape(of["shape"]).astype(np.float64)
    return json.loads(header["__metadata__"]["cellql"]), tensors


def main():
    file, model, vectors, names, whitening = *sys.argv[1:5], float(sys.argv[5])
    header, tensors = read(model)
    cells = anndata.read_h5ad(file)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    names = pd.read_csv(names).set_index("symbol")["name"]
    dense = cells[:, names.loc[header["vocabulary"]].to_list()].X.toarray().astype(np.float64)
    count = tensors["loadings"].shape[0]
    exact = PCA(count, svd_solver="full").fit(dense)
    cosines = np.linalg.svd(exact.components_ @ tensors["loadings"].T, compute_uv=False)
    angle = np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
    variances = np.abs(tensors["variances"] / exact.explained_variance_ - 1).max()
    scores = exact.transform(dense) / exact.explained_variance_ ** (whitening / 2)
    found = pd.read_parquet(vectors).set_index("barcode").loc[cells.obs_names]
    found = np.stack(found["vector"].to_numpy())
    # Signs are free.
    signs = np.sign((scores * found).sum(0))
    error = np.abs(scores * signs - found).max() / np.abs(scores).max()
    print(f"largest principal angle {angle:.2e} degrees, variances {variances:.1e}, vectors {error:.1e}")
    assert angle < 0.1 and variances < 1e-4 and error < 1e-3


main()
sys.stdout.flush()
# Threads of pyarrow may still run when the interpreter ends, which then aborts.
os._exit(0)
