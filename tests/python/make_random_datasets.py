"""Makes ten random data sets (h5ad) for the comparison with DuckDB (`random_statements.py`).

    make_random_datasets.py SOURCE.h5ad GENES.tsv FOLDER [--seed 0] [--cells 80]

Counts are drawn from the cells of SOURCE and thinned, or drawn anew. Each file has its own subset of the genes, and
some of the genes of GENES.tsv, the vocabulary of the model that embeds them. Two files share cells, one has a cell
twice, one has log-normalised values without counts. The obs columns have every type that a file can hold, NULLs, empty
and foreign text, odd names, and names whose type differs from file to file.
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

warnings.simplefilter("ignore")

FILES = 10
NOTES = ["", " ", "beta", "Beta", "β-cell", "naïve", "細胞", "a,b", 'say "hi"', "it's", "50%", "x_y", "-1", "NULL", "NaN"]
STAGES = ["early", "late", "adult", "émbryo"]


def thinned(matrix, rng):
    """Cells drawn with replacement, each with a random share of its counts."""
    out = matrix.copy()
    keep = np.repeat(rng.uniform(0.3, 1.0, matrix.shape[0]), np.diff(matrix.indptr))
    out.data = rng.binomial(matrix.data.astype(np.int64), keep).astype(np.float32)
    out.eliminate_zeros()
    return out


def drawn_anew(cells, genes, rng):
    """Poisson counts with gamma rates: few genes are high. Some cells express very little."""
    rates = rng.gamma(0.15, 2.0, genes) * rng.choice([0.005, 0.3, 1.0], (cells, 1))
    return sp.csr_matrix(rng.poisson(rates).astype(np.float32))


def some(values, rng, null=0.3):
    """Values of which a share is None."""
    return [None if rng.random() < null else value for value in values]


def typed_columns(n, rng):
    """Columns of each type."""
    small = rng.integers(-3, 4, n)
    shares = [0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.02, 0.08]
    floats = rng.choice([0.25, 1.5, -2.75, 3.0, 1e-3, 12345.678, np.inf, np.nan], n, p=shares)
    return {
        "lane": pd.array(some(small.tolist(), rng), dtype="Int64"),
        "small": small.astype(np.int8),
        "unsigned": rng.integers(0, 60000, n).astype(np.uint16),
        "large": rng.choice([2**53 + 1, -(2**60), 7, 0], n).astype(np.int64),
        "score": floats.astype(np.float64),
        "score32": (np.round(rng.normal(0, 2, n), 2) + 0).astype(np.float32),
        "is_doublet": rng.random(n) < 0.2,
        "maybe": pd.array(some((rng.random(n) < 0.5).tolist(), rng, 0.5), dtype="boolean"),
        "note": pd.array(some(rng.choice(NOTES, n).tolist(), rng, 0.2), dtype="string"),
        "stage": pd.Categorical(some(rng.choice(STAGES, n).tolist(), rng, 0.25), categories=STAGES, ordered=True),
        "celltype": pd.Categorical(rng.choice(["alpha", "beta", "delta", "T cell"], n, p=[0.5, 0.3, 0.15, 0.05])),
        "donor": pd.Categorical(rng.choice([f"donor{i}" for i in range(4)], n)),
        "rare": pd.array(some(rng.integers(0, 3, n).tolist(), rng, 0.95), dtype="Int64"),
    }


def odd_columns(n, rng):
    """Columns with names that have to be quoted, or that cellql keeps for itself."""
    return {
        "Größe (µm)": np.round(rng.uniform(5, 20, n), 1),
        "select": rng.integers(0, 5, n),
        "UPPER": rng.choice(["X", "x", "Y"], n),
        "with space": pd.array(some(rng.integers(0, 9, n).tolist(), rng, 0.4), dtype="Int64"),
        "dot.ted": rng.random(n) < 0.5,
        'quo"ted': rng.choice(["'", '"', "''"], n),
        "n_genes": rng.integers(0, 100, n),
        "_hidden": rng.choice(["h", "H"], n),
    }


def column_of_many_types(file, n, rng):
    """The column `age`: numbers, text or truth values, by file."""
    numbers = rng.integers(20, 90, n)
    forms = [numbers, numbers.astype(str), numbers + 0.5, numbers > 50]
    return {"age": forms[file % len(forms)]}


def obs_of(file, n, rng):
    """The obs table of a file: `age`, and a random choice of the other columns."""
    columns = column_of_many_types(file, n, rng)
    others = typed_columns(n, rng)
    odd = odd_columns(n, rng)
    for chosen, share in ((others, 0.8), (odd, 0.5)):
        columns |= {name: value for name, value in chosen.items() if rng.random() < share or file == 0}
    barcodes = [f"cell{i}-{file}" if i % 5 else f"cell{i}" for i in range(n)]
    frame = pd.DataFrame(columns, index=barcodes)
    for name in frame.columns:
        if frame[name].dtype == object:
            frame[name] = frame[name].astype(str)
    return frame


def matrix_of(file, source, genes, n, rng):
    """Counts of a file, dense for some files and of other types for others."""
    if file % 3 == 2:
        matrix = drawn_anew(n, len(genes), rng)
    else:
        matrix = thinned(source.X[rng.integers(source.n_obs, size=n)][:, genes], rng)
    if file == 5:
        matrix[3] = matrix[1]
    return sp.csr_matrix(matrix)


def stored(file, matrix):
    """The matrix in the form in which a file holds it."""
    if file == 7:
        total = np.maximum(np.asarray(matrix.sum(1)), 1)
        return sp.csr_matrix(np.log1p(matrix.multiply(1e4 / total)).astype(np.float32) * np.float32(0.731))
    forms = [sp.csr_matrix, sp.csc_matrix, lambda m: m.toarray(), lambda m: m.astype(np.int32)]
    return forms[file % len(forms)](matrix)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("genes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", type=int, default=80)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    source = ad.read_h5ad(args.source)
    vocabulary = [line.split("\t")[0] for line in Path(args.genes).read_text().splitlines()[1:]]
    known = source.var_names.get_indexer(vocabulary)
    known = known[known >= 0]
    args.folder.mkdir(parents=True, exist_ok=True)
    first = None
    for file in range(FILES):
        n = int(rng.integers(args.cells // 2, args.cells * 3 // 2))
        others = rng.choice(source.n_vars, int(rng.integers(200, 3000)), replace=False)
        genes = np.union1d(rng.choice(known, len(known) * 2 // 3, replace=False), others)
        if file == 4:
            genes = first[0]
        matrix = matrix_of(file, source, genes, n, rng)
        if file == 4:
            matrix = sp.vstack([first[1][:15], matrix[15:]]).tocsr()
        if file == 0:
            first = (genes, matrix)
        data = ad.AnnData(stored(file, matrix), obs_of(file, matrix.shape[0], rng))
        data.var_names = source.var_names[genes]
        data.write_h5ad(args.folder / f"random{file}.h5ad")


if __name__ == "__main__":
    main()
