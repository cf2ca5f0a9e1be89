#!/usr/bin/env python3
"""Times queries over many cells in one session of cellql, those about a gene's expression in turns with slaf.

    benches/queries.py --cellql PATH --store STORE --slaf DATASET.slaf [--gene INS] [--runs 7]

Run by scripts/bench-queries.sh, which makes both from the same cells. Each statement runs once unmeasured, then --runs
times; times are from a statement's being handed over to its result's being written. Prints medians in ms with the least
and most in brackets, and stops where the two answer differently.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ingest import size
from slaf import SLAFArray

METADATA = [
    "SELECT count(*) FROM cells",
    "SELECT cell_type, count(*) FROM cells GROUP BY cell_type",
    "SELECT count(*) FROM cells WHERE donor_id = 'human1' AND total_counts > 500",
    "SELECT cell_type, donor_id, avg(total_counts) FROM cells GROUP BY cell_type, donor_id",
]
OURS = {
    "all cells": "SELECT 'all' AS cell_type, sum(expression(expr, '{gene}')) AS total, "
    "count(*) FILTER (WHERE expression(expr, '{gene}') > 0) AS cells FROM cells",
    "by cell_type": "SELECT cell_type, sum(expression(expr, '{gene}')) AS total, "
    "count(*) FILTER (WHERE expression(expr, '{gene}') > 0) AS cells FROM cells GROUP BY cell_type",
}
# IN, since slafdb 0.5.2 stops at `gene_integer_id = …` ("Substrait is only capable of representing unsafe casts").
SLAFS = {
    "all cells": "SELECT 'all' AS cell_type, sum(value) AS total, count(*) AS cells FROM expression "
    "WHERE gene_integer_id IN ({number})",
    "by cell_type": "SELECT c.cell_type, sum(e.value) AS total, count(*) AS cells FROM "
    "(SELECT cell_integer_id, value FROM expression WHERE gene_integer_id IN ({number})) AS e "
    "JOIN cells AS c ON e.cell_integer_id = c.cell_integer_id GROUP BY c.cell_type",
}


class Session:
    """`cellql sql`, whose script reads a pipe again and again, so that it stays open and warm between statements."""

    def __init__(self, program, store, folder):
        self.pipe = folder / "statement.sql"
        os.mkfifo(self.pipe)
        script = folder / "script.sql"
        script.write_text(f"\\i {self.pipe}\n" * 1000)
        self.output = (folder / "output.csv").open("w+")
        command = [program, "sql", store, "-f", script, "--timing", "--format", "csv"]
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.PIPE, text=True)

    def run(self, statement):
        """Seconds until the statement's result is written."""
        with self.pipe.open("w") as pipe:  # waits until the session asks for it
            start = time.perf_counter()
            pipe.write(f"{statement};\n")
        line = self.process.stderr.readline()
        if " in " not in line:
            sys.exit(f"{statement}: {line}{self.process.communicate()[1]}")
        return time.perf_counter() - start

    def answer(self, statement):
        before = self.output.seek(0, os.SEEK_END)
        self.run(statement)
        self.output.seek(before)
        return list(csv.DictReader(self.output))

    def close(self):
        self.process.kill()
        self.process.wait()


def totals(rows):
    """What both must agree on: groups that have the gene, with its sum and the number of cells."""
    return {r["cell_type"]: (float(r["total"]), int(r["cells"])) for r in rows if int(r["cells"])}


def row(what, program, seconds):
    ms = sorted(1e3 * s for s in seconds)
    print(f"| {what} | {program} | {statistics.median(ms):,.0f} [{ms[0]:,.0f}–{ms[-1]:,.0f}] |", flush=True)


def expression(session, array, gene, runs):
    genes = array.query(f"SELECT gene_integer_id FROM genes WHERE gene_id = '{gene}'")
    for what, ours in OURS.items():
        ours = ours.format(gene=gene)
        theirs = SLAFS[what].format(number=genes.item())
        mine, other = totals(session.answer(ours)), totals(array.query(theirs).to_dicts())
        if mine != other:
            sys.exit(f"{what}: cellql says {mine}, slaf {other}")
        taken = {"cellql": [], "slaf": []}
        for _ in range(runs):
            taken["cellql"].append(session.run(ours))
            start = time.perf_counter()
            array.query(theirs)
            taken["slaf"].append(time.perf_counter() - start)
        for program, seconds in taken.items():
            row(f"{gene}, {what}", program, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cellql", required=True)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--slaf", required=True, type=Path)
    parser.add_argument("--gene", default="INS")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    array = SLAFArray(str(args.slaf))
    print(f"\n{array.shape[0]:,} cells; store {size(args.store) / 1e6:,.0f} MB, slaf {size(args.slaf) / 1e6:,.0f} MB\n")
    print("| what | program | ms |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        session = Session(args.cellql, args.store, Path(folder))
        try:
            for statement in METADATA:
                session.run(statement)
                row(f"`{statement}`", "cellql", [session.run(statement) for _ in range(args.runs)])
            expression(session, array, args.gene, args.runs)
        finally:
            session.close()


if __name__ == "__main__":
    main()
