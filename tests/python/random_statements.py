"""Compares cellql with DuckDB on random statements.

    random_statements.py PROGRAM STORE PARQUET [--statements 1000] [--seed 1] [--only 17]

PARQUET is a folder with `cells.parquet`, which `cellql export STORE` wrote; the other tables are written beside it.
Statement number n of a seed is always the same for the same store; `--only n` runs it alone. Rows are compared as
lists where the order is total, else as multisets; searches by their distances, since neighbours can be equally far.
An error of cellql is a difference; a statement that DuckDB refuses is not compared, and there may be few of them.
Exit status 1: there is a difference.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter

import oracle_functions as functions
import oracle_joins as joins
import oracle_statements as plain
import oracle_vectors as vectors
from oracle_answers import Cellql, duck_answer
from oracle_catalog import Catalog, export_tables
from oracle_compare import difference, nearest_difference

# Each with its weight.
KINDS = [
    (plain.filtered, 22), (plain.filtered_genes, 3), (plain.sorted_and_limited, 10), (plain.distinct, 5),
    (plain.grouped, 14), (plain.summarised, 8), (plain.windowed, 8), (plain.united, 6), (plain.with_subquery, 8),
    (plain.with_common_table, 4), (joins.of_data_set, 5), (joins.of_embeddings, 4), (joins.of_cells, 6),
    (joins.semi, 3), (joins.three_tables, 3), (joins.expressed, 7), (joins.as_lists, 3), (joins.as_rows, 4),
    (joins.measured, 1), (vectors.searched, 10), (vectors.ordered_by_distance, 6), (vectors.chosen, 12),
    (vectors.distances, 2), (vectors.genes_searched, 4),
    (functions.of_a_cell, 6), (functions.of_a_group, 6),
]
# Shares that the whole run has to reach: neighbours that an index finds, and statements that both can say.
LEAST_RECALL = 0.95
LEAST_COMPARED = 0.95
# Errors of statements that DuckDB runs: what the message contains, and why it may be.
KNOWN_REFUSALS = {
    "does not satisfy order requirements": "DataFusion 54 finds no order by ln(), sqrt() and some comparisons",
    "there is no column '__grouping_id'": "aggregates of constants in ROLLUP and CUBE, DataFusion 54",
    "Physical input schema should be the same": "DISTINCT and grouping of (a > b) IS TRUE, DataFusion 54",
    "column types must match schema types, expected List(non-null": "array_slice of a list without NULL, DataFusion 54",
}


def random_statement(seed, number, catalog):
    rng = random.Random(f"{seed}-{number}")
    kind = rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
    return kind(rng, catalog)


def first_difference(statement, ours, theirs):
    """What differs, in words, or None; and for searches the neighbours found."""
    if ours.error:
        return ours.error, 0
    if statement.k:
        return nearest_difference(ours.rows, theirs.rows, statement.k, statement.offset, statement.exact)
    found = difference(ours.rows, theirs.rows, theirs.types, statement.ordered)
    if found is None:
        return None, 0
    counts = f"{len(ours.rows)} rows of cellql, {len(theirs.rows)} of DuckDB"
    return f"{counts}; first difference:\n    cellql {found[0]}\n    DuckDB {found[1]}", 0


class Report:
    def __init__(self, is_short):
        self.is_short = is_short
        self.compared, self.differing, self.refused = Counter(), Counter(), []
        self.known = Counter()
        self.found = self.wanted = self.rows = self.empty = 0

    def add(self, number, statement, ours, theirs):
        """Compares an answer, and prints it where it differs."""
        if theirs.error:
            self.refused.append((number, statement, theirs.error))
            return
        known = next((why for text, why in KNOWN_REFUSALS.items() if text in ours.error), None)
        if known:
            self.known[known] += 1
            return
        self.compared[statement.kind] += 1
        problem, found = first_difference(statement, ours, theirs)
        self.rows += len(theirs.rows)
        self.empty += not theirs.rows
        if statement.k and not statement.exact and not problem:
            self.found += found
            self.wanted += len(ours.rows)
        if problem:
            self.differing[statement.kind] += 1
            print(f"\nstatement {number} ({statement.kind}): {problem}")
            print(f"  cellql: {self.text(statement.ours)}\n  DuckDB: {self.text(statement.duck)}", flush=True)

    def text(self, sql):
        """A statement, without the numbers of its vectors where all statements ran."""
        return re.sub(r"\[-?[0-9., e-]{200,}\]", "[…]", sql) if self.is_short else sql

    def print(self, seconds):
        print(f"\n{'statements':24}{'compared':>9}{'different':>11}")
        for kind, count in sorted(self.compared.items()):
            print(f"{kind:24}{count:9}{self.differing[kind]:11}")
        print(f"{'all':24}{self.compared.total():9}{self.differing.total():11}")
        print(f"{self.rows} rows, {self.empty} answers without a row")
        print(f"neighbours found where an index may answer: {self.found} of {self.wanted}")
        for why, count in self.known.items():
            print(f"cellql refused {count}: {why}")
        print(f"DuckDB refused {len(self.refused)}")
        for number, statement, error in self.refused[:10]:
            print(f"  statement {number} ({statement.kind}): {error.splitlines()[0]}\n    {statement.duck}")
        print("seconds: " + ", ".join(f"{what} {spent:.1f}" for what, spent in seconds.items()))

    def is_good(self):
        total = self.compared.total() + self.known.total() + len(self.refused)
        recalled = self.found >= LEAST_RECALL * self.wanted
        return not self.differing and recalled and self.compared.total() >= LEAST_COMPARED * total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("store")
    parser.add_argument("parquet")
    parser.add_argument("--statements", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", help="run only statements of this kind")
    parser.add_argument("--only", type=int, help="run only the statement of this number")
    parser.add_argument("--old-json", action="store_true", help="for programs whose JSON has no NULL, NaN, infinities")
    parser.add_argument("--unmeasured-is-zero", action="store_true", help="for programs whose expression() is 0")
    args = parser.parse_args()
    start = time.monotonic()
    print(f"random statements of seed {args.seed} on {args.store}")
    export_tables(args.program, args.store, args.parquet)
    catalog = Catalog(args.parquet, "CAST(0 AS FLOAT)" if args.unmeasured_is_zero else "NULL")
    numbers = range(args.statements) if args.only is None else [args.only]
    statements = [random_statement(args.seed, number, catalog) for number in numbers]
    kept = [i for i, s in enumerate(statements) if args.kind in (None, s.kind)]
    numbers, statements = [numbers[i] for i in kept], [statements[i] for i in kept]
    prepared = time.monotonic()
    cellql = Cellql(args.program, args.store, args.old_json)
    answers = cellql.answers([(s.ours, s.columns) for s in statements])
    asked = time.monotonic()
    report = Report(is_short=args.only is None)
    for number, statement, answer in zip(numbers, statements, answers):
        report.add(number, statement, answer, duck_answer(catalog.duck, statement.duck, args.old_json))
    end = time.monotonic()
    report.print({"preparation": prepared - start, "cellql": asked - prepared, "DuckDB": end - asked})
    return 0 if report.is_good() else 1


if __name__ == "__main__":
    sys.exit(main())
