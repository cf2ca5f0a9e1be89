"""Writes one small data set in every format and encoding, and for each what anndata (or the format's own library) reads
from it, so that the tests of ingest compare with a reader that is not ours.

    python make_fixtures.py FOLDER [REAL.h5ad ...]

FOLDER/NAME/...        the file or directory to ingest FOLDER/NAME.expected/  barcodes.txt, genes.txt, matrix.bin (int64
cells, int64 values, indptr, int32 indices, float32 data), obs.json (column -> list of values, null where missing)
"""

import gzip
import json
import shutil
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import scipy.sparse as sp

warnings.simplefilter("ignore")
rng = np.random.default_rng(20260625)

# Human symbols, current, previous and alias, a date, a name of no gene, one that R has changed.
GENES = """INS GCG SST PPY GHRL IL8 CD8A CD4 CD3E MS4A1 NKG7 LYZ FCGR3A PPBP HLA-A HLA.B MT-CO1 MT-ND1 SEPT7 2-Sep
ACTB GAPDH KRT19
PRSS1 REG1A COL1A1 PECAM1 VWF SDS TPSAB1 AARS AAED1 no_such_gene MKI67 TOP2A PCNA B2M EEF1A1 RPL10 RPS27""".split()
CELLS = 60


def cells():
    counts = rng.poisson(rng.gamma(0.4, 3.0, (CELLS, len(GENES)))).astype(np.float32)
    counts[7] = 0  # a cell without any count
    kind = pd.Categorical.from_codes(rng.integers(-1, 3, CELLS), ["beta", "alpha", "delta"])
    stage = pd.Categorical.from_codes(rng.integers(0, 3, CELLS), ["late", "early", "adult"], ordered=True)
    obs = pd.DataFrame(
        {
            "cell_type": kind,
            "stage": stage,
            "score": np.where(rng.random(CELLS) < 0.1, np.nan, rng.normal(size=CELLS)),
            "age": rng.integers(0, 90, CELLS),
            "is_doublet": rng.random(CELLS) < 0.2,
            "note": [f"nöte {i % 5}" for i in range(CELLS)],
        },
        index=[f"CELL{i:04d}-1" for i in range(CELLS)],
    )
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


def plain(column):
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    # Numbers with a fraction as text: not every JSON reader gets their last digit right.
    values = [None if pd.isna(v) else v.item() if hasattr(v, "item") else v for v in column]
    return [repr(v) if isinstance(v, float) else v for v in values]


def expect(folder, name, matrix, barcodes, genes, obs):
    target = folder / f"{name}.expected"
    target.mkdir()
    matrix = sp.csr_matrix(matrix).astype(np.float32)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    (target / "barcodes.txt").write_text("\n".join(barcodes) + "\n")
    (target / "genes.txt").write_text("\n".join(genes) + "\n")
    with open(target / "matrix.bin", "wb") as out:
        out.write(np.array([matrix.shape[0], matrix.nnz], np.int64).tobytes())
        out.write(matrix.indptr.astype(np.int64).tobytes())
        out.write(matrix.indices.astype(np.int32).tobytes())
        out.write(matrix.data.tobytes())
    columns = {} if obs is None else {c: plain(obs[c]) for c in obs.columns}
    (target / "obs.json").write_text(json.dumps(columns))


def place(folder, name):
    target = folder / name
    target.mkdir()
    return target


def h5ad(folder, name, data, matrix=lambda a: a.X, var=lambda a: a.var_names, **options):
    path = place(folder, name) / "cells.h5ad"
    data.write_h5ad(path, **options)
    back = ad.read_h5ad(path)
    expect(folder, name, matrix(back), back.obs_names, var(back), back.obs)


def anndata_files(folder):
    data = cells()
    h5ad(folder, "csr", data)
    h5ad(folder, "csr_gzip", data, compression="gzip")
    h5ad(folder, "csr_lzf", data, compression="lzf")
    other = data.copy()
    other.X = sp.csc_matrix(other.X)
    h5ad(folder, "csc_gzip", other, compression="gzip")
    other = data.copy()
    other.X = other.X.toarray()
    h5ad(folder, "dense", other)
    h5ad(folder, "dense_gzip", other, compression="gzip")
    for kind in (np.int32, np.float64, np.uint16):
        other = data.copy()
        other.X = sp.csr_matrix(other.X.astype(kind))
        h5ad(folder, f"csr_{np.dtype(kind).name}", other)
    other = data.copy()
    other.obs["reads"] = pd.array([None if i % 9 == 0 else i for i in range(CELLS)], dtype="Int64")
    other.obs["paired"] = pd.array([None if i % 7 == 0 else i % 2 == 0 for i in range(CELLS)], dtype="boolean")
    h5ad(folder, "nullable", other)

    # Names that mean something to HDF5, to SQL or to paths of columns. HDF5 makes of person/sex a dataset in a group.
    other = data.copy()
    for i, name in enumerate(["person/sex", "*", "a.b", "it's \"q\"", "two words", "`tick`"]):
        other.obs[name] = other.obs["age"] + i
    other.obs["cat/one"] = other.obs["cell_type"]
    h5ad(folder, "odd_names", other)
    # float16, which sparse matrices of scipy do not have, but files do.
    other = data.copy()
    other.X = other.X.toarray().astype(np.float16)
    other.obs["half"] = other.obs["score"].astype(np.float16)
    h5ad(folder, "half_dense", other, matrix=lambda a: a.X.astype(np.float32))
    path = place(folder, "half_csr") / "cells.h5ad"
    data.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:].astype(np.float16)
        del file["X/data"]
        file["X"].create_dataset("data", data=values, compression="gzip").attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
    expect(folder, "half_csr", data.X, data.obs_names, data.var_names, data.obs)
    # Bytes of the user before the HDF5 content.
    path = place(folder, "user_block") / "cells.h5ad"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("X", "obs", "var"):
            ad.io.write_elem(file, name, getattr(data, name))
    back = ad.read_h5ad(path)
    expect(folder, "user_block", back.X, back.obs_names, back.var_names, back.obs)

    # Log-normalised X, counts elsewhere: what most published files are.
    log = data.copy()
    counts = log.X.toarray()
    log.X = sp.csr_matrix(np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4).astype(np.float32))
    raw = log.copy()
    raw.raw = data
    raw = raw[:, :20].copy()
    h5ad(folder, "counts_in_raw", raw, matrix=lambda a: a.raw.X, var=lambda a: a.raw.var_names)
    layers = log.copy()
    layers.layers["other"] = log.X.copy()
    layers.layers["counts"] = data.X.copy()
    h5ad(folder, "counts_in_layer", layers, matrix=lambda a: a.layers["counts"])
    empty = ad.AnnData(None, obs=data.obs, var=data.var, layers={"counts": data.X.copy()})
    h5ad(folder, "no_x", empty, matrix=lambda a: a.layers["counts"])
    ids = data.copy()
    ids.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(len(GENES))]
    h5ad(folder, "ensembl_beside", ids)
    path = place(folder, "packed") / "cells.h5ad.gz"
    data.write_h5ad(folder / "plain.h5ad")
    with open(folder / "plain.h5ad", "rb") as source, gzip.open(path, "wb") as out:
        shutil.copyfileobj(source, out)
    (folder / "plain.h5ad").unlink()
    expect(folder, "packed", data.X, data.obs_names, data.var_names, data.obs)


def text(values):
    return np.array([v.encode() for v in values])


def tenx(folder):
    data = cells()
    matrix = sp.csc_matrix(data.X.T.astype(np.int32))
    ids = [f"ENSG{i:011d}" for i in range(len(GENES))]
    antibodies, other = ["CD3_TotalSeqB", "CD19_TotalSeqB"], ["mm10_Ins1", "mm10_Gcg"]

    # Version 3, one genome, with antibodies.
    extra = sp.csc_matrix(rng.poisson(50, (2, CELLS)).astype(np.int32))
    both = sp.csc_matrix(sp.vstack([matrix, extra]))
    path = place(folder, "tenx_v3") / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as out:
        group = out.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(both, name), compression="gzip")
        group["shape"] = np.array(both.shape, np.int32)
        group["barcodes"] = text(data.obs_names)
        features = group.create_group("features")
        features["id"], features["name"] = text(ids + antibodies), text(GENES + antibodies)
        features["feature_type"] = text(["Gene Expression"] * len(GENES) + ["Antibody Capture"] * 2)
        features["genome"] = text(["GRCh38"] * len(GENES) + [""] * 2)
    import scanpy as sc

    back = sc.read_10x_h5(path, gex_only=True)
    expect(folder, "tenx_v3", back.X, back.obs_names, back.var_names, None)

    # Version 2, two genomes.
    path = place(folder, "tenx_v2") / "raw.h5"
    with h5py.File(path, "w") as out:
        for genome, names, mat in (("GRCh38", GENES, matrix), ("mm10", other, extra)):
            group = out.create_group(genome)
            for name in ("data", "indices", "indptr"):
                group.create_dataset(name, data=getattr(mat, name), compression="gzip")
            group["shape"] = np.array(mat.shape, np.int32)
            group["barcodes"] = text(data.obs_names)
            group["gene_names"] = text(names)
            group["genes"] = text(ids if genome == "GRCh38" else [f"ENSMUSG{i:011d}" for i in range(2)])
    back = sc.read_10x_h5(path, genome="GRCh38")
    expect(folder, "tenx_v2", back.X, back.obs_names, back.var_names, None)

    for name, zipped in (("mtx", False), ("mtx_gz", True)):
        target = place(folder, name)
        scipy.io.mmwrite(target / "matrix.mtx", matrix)
        lines = "".join(f"{i}\t{g}\tGene Expression\n" for i, g in zip(ids, GENES))
        (target / "features.tsv").write_text(lines)
        (target / "barcodes.tsv").write_text("".join(f"{b}\n" for b in data.obs_names))
        if zipped:
            for file in list(target.iterdir()):
                # In two members, as BGZF writes many.
                whole = file.read_bytes()
                half = len(whole) // 2
                (target / f"{file.name}.gz").write_bytes(gzip.compress(whole[:half]) + gzip.compress(whole[half:]))
                file.unlink()
            back = sc.read_10x_mtx(target)
            expect(folder, name, back.X, back.obs_names, back.var_names, None)
        else:
            expect(folder, name, data.X, data.obs_names, data.var_names, None)
    target = place(folder, "mtx_old_prefixed")
    scipy.io.mmwrite(target / "GSM1_matrix.mtx", matrix)
    (target / "GSM1_genes.tsv").write_text("".join(f"{i}\t{g}\n" for i, g in zip(ids, GENES)))
    (target / "GSM1_barcodes.tsv").write_text("".join(f"{b}\n" for b in data.obs_names))
    expect(folder, "mtx_old_prefixed", data.X, data.obs_names, data.var_names, None)


def loom(folder):
    data = cells()
    path = place(folder, "loom") / "cells.loom"
    with h5py.File(path, "w") as out:
        out.create_dataset("matrix", data=data.X.T.toarray(), chunks=(16, 16), compression="gzip")
        rows, columns = out.create_group("row_attrs"), out.create_group("col_attrs")
        rows["Gene"] = text(GENES)
        columns["CellID"] = text(data.obs_names)
        columns["cell_type"] = text([str(v) for v in data.obs["cell_type"]])
        columns["age"] = data.obs["age"].to_numpy()
        columns["score"] = data.obs["score"].to_numpy()
        columns["pca"] = rng.normal(size=(CELLS, 5))
        out.create_group("layers"), out.create_group("row_graphs"), out.create_group("col_graphs")
        out.attrs["LOOM_SPEC_VERSION"] = "3.0.0"
    with h5py.File(path) as back:
        obs = pd.DataFrame(
            {
                "cell_type": [v.decode() for v in back["col_attrs/cell_type"][:]],
                "age": back["col_attrs/age"][:],
                "score": back["col_attrs/score"][:],
            }
        )
        expect(folder, "loom", back["matrix"][:].T, data.obs_names, GENES, obs)


def dense_text(folder):
    data = cells()
    frame = pd.DataFrame(data.X.toarray(), index=data.obs_names, columns=GENES)
    for name, transposed, mark, ending in (
        ("csv_cells", False, ",", "csv"),
        ("tsv_genes", True, "\t", "tsv"),
        ("csv_genes_gz", True, ",", "csv.gz"),
        ("csv_cells_gz", False, ",", "csv.gz"),
    ):
        path = place(folder, name) / f"cells.{ending}"
        (frame.T if transposed else frame).to_csv(path, sep=mark)
        back = pd.read_csv(path, sep=mark, index_col=0)
        back = back.T if transposed else back
        expect(folder, name, back.to_numpy(), back.index, back.columns, None)
    # As R's write.table does: no name over the first column, quoted names.
    path = place(folder, "r_table") / "cells.txt"
    body = frame.T
    with open(path, "w") as out:
        out.write("\t".join(f'"{c}"' for c in body.columns) + "\n")
        for gene, row in body.iterrows():
            out.write(f'"{gene}"\t' + "\t".join(f"{v:g}" for v in row) + "\n")
    expect(folder, "r_table", data.X, data.obs_names, GENES, None)


def arrays(folder):
    data = cells()
    for name, matrix, packed in (
        ("npz_csr", sp.csr_matrix(data.X), True),
        ("npz_csc", sp.csc_matrix(data.X), False),
        ("npz_coo", sp.coo_matrix(data.X), True),
        ("npz_by_gene", sp.csr_matrix(data.X.T), True),
    ):
        target = place(folder, name)
        sp.save_npz(target / "cells.npz", matrix, compressed=packed)
        (folder / f"{name}.genes.txt").write_text("\n".join(GENES) + "\n")
        (folder / f"{name}.barcodes.txt").write_text("\n".join(data.obs_names) + "\n")
        back = sp.csr_matrix(sp.load_npz(target / "cells.npz"))
        expect(folder, name, back.T if "by_gene" in name else back, data.obs_names, GENES, None)


def long_form(folder):
    data = cells()
    data = data[np.asarray(data.X.sum(1)).ravel() > 0].copy()
    entries = sp.coo_matrix(data.X)
    order = rng.permutation(entries.nnz)
    frame = pd.DataFrame(
        {
            "cell": data.obs_names.to_numpy()[entries.row][order],
            "gene": np.array(GENES)[entries.col][order],
            "value": entries.data[order],
        }
    )
    for packing in ("snappy", "zstd", "gzip", "lz4", "none"):
        path = place(folder, f"long_{packing}") / "cells.parquet"
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, compression=packing)
        back = pq.read_table(path).to_pandas()
        rows = {b: i for i, b in enumerate(data.obs_names)}
        columns = {g: i for i, g in enumerate(GENES)}
        shape = (data.n_obs, len(GENES))
        matrix = sp.coo_matrix((back.value, (back.cell.map(rows), back.gene.map(columns))), shape=shape)
        expect(folder, f"long_{packing}", matrix, data.obs_names, GENES, None)


def real(folder, path):
    back = ad.read_h5ad(path)
    name = f"real_{path.stem}"
    shutil.copy(path, place(folder, name) / path.name)
    counts = back.raw if back.raw is not None else back
    expect(folder, name, counts.X, back.obs_names, counts.var_names, back.obs)


def main():
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for write in (anndata_files, tenx, loom, dense_text, arrays, long_form):
        write(folder)
    for path in sys.argv[2:]:
        real(folder, Path(path))


if __name__ == "__main__":
    main()
