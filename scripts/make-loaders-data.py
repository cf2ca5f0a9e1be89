#!/usr/bin/env python3
"""Makes what benches/loaders.py reads; run by scripts/bench-loaders.sh.

    make-loaders-data.py split FOLDER              raw.h5ad's cells, in ten data sets: cells.h5ad, parts/, whole.json
    make-loaders-data.py zarr FOLDER shuffled      annbatch's collection of parts/: shuffled.zarr, unshuffled.zarr
    make-loaders-data.py zarr FOLDER unshuffled

Cells of a data set lie one after another, as in an atlas of several files. Each step imports only what it needs, since
annbatch and the others live in different Pythons.
"""

import json
import sys
from pathlib import Path

SETS = 10


def split(place):
    import anndata
    import pandas

    adata = anndata.read_h5ad(place / "raw.h5ad")
    edges = [i * adata.n_obs // SETS for i in range(SETS + 1)]
    sets = [after - before for before, after in zip(edges, edges[1:])]
    adata.obs["dataset"] = pandas.Categorical([f"set{i}" for i in range(SETS) for _ in range(sets[i])])
    adata.write_h5ad(place / "cells.h5ad")
    (place / "parts").mkdir()
    for i in range(SETS):
        adata[edges[i] : edges[i + 1]].write_h5ad(place / "parts" / f"set{i}.h5ad")
    whole = {"cells": adata.n_obs, "counts": float(adata.X.sum(dtype="float64")), "sets": sets}
    (place / "whole.json").write_text(json.dumps(whole))


def write_zarr(place, how):
    import numpy
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    from annbatch import DatasetCollection

    parts = sorted((place / "parts").iterdir())
    rng = numpy.random.default_rng(0)
    DatasetCollection(place / f"{how}.zarr").add_adatas(parts, shuffle=how == "shuffled", rng=rng)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["split", place]:
            split(Path(place))
        case ["zarr", place, "shuffled" | "unshuffled" as how]:
            write_zarr(Path(place), how)
        case _:
            sys.exit(__doc__)
