"""The tables of a store in DuckDB, and what the random statements have to know of them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import duckdb

from oracle_expressions import Column, Expressions

TABLES = ("genes", "datasets", "embeddings", "gene_embeddings")
TYPES = {
    "BOOLEAN": "bool", "VARCHAR": "text", "DOUBLE": "float", "FLOAT": "float", "TINYINT": "int", "SMALLINT": "int",
    "INTEGER": "int", "BIGINT": "int", "UTINYINT": "int", "USMALLINT": "int", "UINTEGER": "int", "UBIGINT": "int",
}
VIEWS = """
CREATE VIEW obs AS SELECT * EXCLUDE (expr) FROM cells;
CREATE VIEW var AS SELECT * FROM genes WHERE len(source_names) > 0;
CREATE VIEW "X" AS SELECT cell_id, unnest(expr.gene_id) AS gene_id, unnest(expr.value) AS value FROM cells;
CREATE MACRO centred(v) AS list_transform(v, lambda x: x - list_avg(v));
CREATE MACRO expression(e, d, g) AS CASE
    WHEN list_contains((SELECT measured_genes FROM datasets m WHERE m.dataset_id = d), g)
    THEN coalesce(e.value[list_position(e.gene_id, g)], CAST(0 AS FLOAT)) ELSE UNMEASURED END;
CREATE MACRO logged(e, d, g) AS
    ln(1 + 1e4 * CAST(expression(e, d, g) AS DOUBLE) / list_sum(CAST(e.value AS DOUBLE[])));
"""


@dataclass
class Table:
    name: str
    columns: list

    def scope(self, rng, alias="", for_where=False):
        return Expressions(rng, self.columns, alias, for_where)


def export_tables(program, store, folder):
    """Writes the tables beside `cells` to Parquet files, as `cellql sql` gives them."""
    for table in TABLES:
        command = [program, "sql", store, "--quiet", "--format", "parquet", "-c", f"SELECT * FROM {table}"]
        with open(Path(folder) / f"{table}.parquet", "wb") as file:
            subprocess.run(command, check=True, stdout=file)


class Catalog:
    """A DuckDB database with the tables of a store, read from the Parquet files of a folder."""

    def __init__(self, folder, unmeasured="NULL"):
        self.duck = duckdb.connect(config={"threads": 1})
        for file in ("cells", "genes", "datasets"):
            path = Path(folder) / f"{file}.parquet"
            self.duck.execute(f"CREATE TABLE {file} AS SELECT * FROM read_parquet('{path}')")
        self.dim = self.vectors("embeddings", folder)
        self.vectors("gene_embeddings", folder)
        self.duck.execute(VIEWS.replace("UNMEASURED", unmeasured))
        self.cells, self.genes, self.datasets, self.embeddings = map(
            self.described, ("cells", "genes", "datasets", "embeddings")
        )
        self.cell_ids = self.all("SELECT cell_id FROM cells ORDER BY 1")
        self.embedded = self.all("SELECT cell_id FROM embeddings WHERE vector IS NOT NULL ORDER BY 1")
        query = "SELECT gene_id, symbol FROM gene_embeddings JOIN genes USING (gene_id) ORDER BY 1"
        self.embedded_genes = self.duck.execute(query).fetchall()
        self.named_genes = self.genes_to_ask_for()

    def vectors(self, table, folder):
        """Reads a table of vectors, as vectors of DOUBLE so that distances are as exact. Gives their dimension."""
        file = f"read_parquet('{Path(folder) / table}.parquet')"
        dim = self.value(f"SELECT max(len(vector)) FROM {file}")
        columns = f"* REPLACE (CAST(vector AS DOUBLE[{dim}]) AS vector)"
        self.duck.execute(f"CREATE TABLE {table} AS SELECT {columns} FROM {file}")
        return dim

    def all(self, query):
        return [row[0] for row in self.duck.execute(query).fetchall()]

    def value(self, query):
        return self.duck.execute(query).fetchone()[0]

    def described(self, table):
        columns = []
        for name, kind, *_ in self.duck.execute(f"DESCRIBE {table}").fetchall():
            if kind in TYPES and not name.endswith(("_at", "_report", "obs_columns")):
                columns.append(self.column(table, name, kind))
        return Table(table, columns)

    def column(self, table, name, kind):
        """A column with some of its values, for constants in conditions."""
        place = '"' + name.replace('"', '""') + '"'
        value = f"CAST({place} AS DOUBLE)" if kind == "FLOAT" else place
        query = f"SELECT DISTINCT {value} AS v FROM {table} WHERE {place} IS NOT NULL ORDER BY hash(v), v LIMIT 30"
        return Column(name, TYPES[kind], self.all(query), is_unsigned=kind.startswith("U"))

    def genes_to_ask_for(self):
        """Genes that most cells express, that few do, that few data sets measured, and that none did: (name, id)."""
        query = """
            WITH counted AS (SELECT gene_id, count(*) AS cells FROM "X" GROUP BY gene_id),
            measured AS (SELECT unnest(measured_genes) AS gene_id FROM datasets),
            known AS (SELECT g.gene_id, g.symbol, g.ensembl_id, coalesce(c.cells, 0) AS cells,
                (SELECT count(*) FROM measured m WHERE m.gene_id = g.gene_id) AS files
                FROM genes g LEFT JOIN counted c USING (gene_id) WHERE g.hgnc_id IS NOT NULL)
            SELECT symbol, ensembl_id, gene_id FROM (
                (SELECT * FROM known ORDER BY cells DESC, gene_id LIMIT 30)
                UNION ALL (SELECT * FROM known WHERE files BETWEEN 1 AND 3 ORDER BY cells DESC, gene_id LIMIT 30)
                UNION ALL (SELECT * FROM known WHERE files = 0 ORDER BY gene_id LIMIT 5)
                UNION ALL (SELECT * FROM known WHERE cells = 0 AND files > 3 ORDER BY gene_id LIMIT 5))
        """
        rows = self.duck.execute(query).fetchall()
        return [(ensembl if ensembl and i % 7 == 3 else symbol, gene) for i, (symbol, ensembl, gene) in enumerate(rows)]

    def vector(self, cell):
        return self.value(f"SELECT vector FROM embeddings WHERE cell_id = {cell}")
