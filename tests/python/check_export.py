"""Opens what cellql exported with anndata and scanpy and compares it with what these read from the original.

    python check_export.py FIXTURES EXPORTED.h5ad ...
"""

import json
import re
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

warnings.simplefilter("ignore")


def expected(folder):
    raw = (folder / "matrix.bin").read_bytes()
    cells, values = np.frombuffer(raw, np.int64, 2)
    indptr = np.frombuffer(raw, np.int64, cells + 1, 16)
    at = 16 + 8 * (cells + 1)
    indices = np.frombuffer(raw, np.int32, values, at)
    data = np.frombuffer(raw, np.float32, values, at + 4 * values)
    genes = (folder / "genes.txt").read_text().splitlines()
    barcodes = (folder / "barcodes.txt").read_text().splitlines()
    matrix = sp.csr_matrix((data, indices, indptr), (cells, len(genes)))
    obs = pd.DataFrame(json.loads((folder / "obs.json").read_text()), index=barcodes)
    return matrix, barcodes, genes, obs


SYNONYMS = {"patient": "donor_id", "ethnicity": "self_reported_ethnicity"}


def check(name, path, folder):
    data = ad.read_h5ad(path)
    assert data.X.has_sorted_indices and data.X.dtype == np.float32, (name, data.X.dtype)
    matrix, barcodes, genes, obs = expected(folder)
    kept = np.asarray(matrix.sum(1)).ravel() > 0
    barcodes = [b for b, k in zip(barcodes, kept) if k]
    matrix = matrix[kept]
    if name.startswith("long_"):
        order = data.obs_names.get_indexer(barcodes)
        assert (order >= 0).all(), name
        data = data[order]
    assert list(data.obs_names) == barcodes, name
    assert sorted(data.var["source_name"]) == sorted(genes), name
    assert data.var_names.is_unique and data.obs_names.is_unique, name
    if name != "real_10x_pbmc68k_reduced":
        # Two features of one file may bear one name; then they stand in the file's order.
        ours = pd.DataFrame({"name": data.var["source_name"].to_numpy()})
        theirs = pd.DataFrame({"name": genes})
        key = lambda frame: list(zip(frame["name"], frame.groupby("name").cumcount()))
        place = {k: i for i, k in enumerate(key(ours))}
        columns = [place[k] for k in key(theirs)]
        assert (data.X[:, columns] != matrix).nnz == 0, name
    else:
        assert (data.obs["value_kind"] == "recovered").all()
        # The counts must give back what the file holds, to its three decimals.
        counts = data[:, list(data.var_names)].X
        smallest = np.array([row.data.min() if row.nnz else 1 for row in map(matrix.getrow, range(matrix.shape[0]))])
        unit = sp.diags(np.expm1(smallest))
        columns = [list(data.var["source_name"]).index(g) for g in genes]
        again = (unit @ counts[:, columns].astype(np.float64)).tocsr()
        again.data = np.log1p(again.data)
        difference = abs(again - matrix)
        assert difference.max() < 0.0025, (name, difference.max())
    for column in obs.columns:
        # Names of cellql's own columns are taken; synonyms take the name that CELLxGENE fixes; signs of paths become
        # underscores.
        plain = re.sub(r'[./*"`]', "_", column)
        names = [f"obs_{plain}", plain, SYNONYMS.get(column)]
        ours = data.obs[next(n for n in names if n in data.obs)]
        theirs = obs[column][kept]
        ours = pd.Series([None if pd.isna(v) else v for v in ours.astype(object)], dtype=object)
        theirs = pd.Series([None if pd.isna(v) else v for v in theirs.astype(object)], dtype=object)
        assert [str(a) == str(b) or a == b for a, b in zip(ours, theirs)].count(False) == 0, (name, column)
    if "stage" in data.obs and name.startswith("csr"):
        assert data.obs["stage"].cat.ordered and list(data.obs["stage"].cat.categories) == ["late", "early", "adult"]
        assert not data.obs["cell_type"].cat.ordered
    assert "store" in data.uns["cellql"], name
    # What everyone does next must work.
    data = data.copy()
    sc.pp.calculate_qc_metrics(data, inplace=True, percent_top=None)
    np.testing.assert_allclose(data.obs["total_counts"], np.asarray(data.X.sum(1)).ravel(), rtol=1e-6)
    sc.pp.normalize_total(data)
    sc.pp.log1p(data)
    data.write_h5ad(path.with_suffix(".again.h5ad"))


def main():
    fixtures = Path(sys.argv[1])
    for path in map(Path, sys.argv[2:]):
        check(path.stem, path, fixtures / f"{path.stem}.expected")


if __name__ == "__main__":
    main()
