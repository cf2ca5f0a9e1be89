"""Random statements with cellql's own functions, which DuckDB answers from the lists of `expr` and the vectors.

`expression` and `logged` are macros of `oracle_catalog`; they are NULL where the data set did not measure the gene.
"""

from oracle_expressions import Sql, literal, make
from oracle_statements import different, few_values, literal_text, select_list, statement


def some_genes(rng, catalog, count):
    """Different genes: their names as an SQL array, and their ids."""
    genes = rng.sample(catalog.named_genes, count)
    return "[" + ", ".join(literal(name).ours for name, _ in genes) + "]", [gene for _, gene in genes]


def as_float(text):
    """DuckDB's value of a Float32, compared with the tolerance of one."""
    return f"CAST({text} AS FLOAT)"


def of_a_cell(rng, catalog):
    """expression of several genes, log_normalise, gene_score, genes_seen and top_genes."""
    names, ids = some_genes(rng, catalog, 3)
    name, gene = rng.choice(catalog.named_genes)
    name = literal(name).ours
    n = rng.randint(1, 6)
    scores = ", ".join(f"logged(c.expr, c.dataset_id, {g})" for g in ids)
    symbols = ("(SELECT coalesce(list(g.symbol ORDER BY t.value DESC, t.gene_id), []) FROM (SELECT r.* FROM "
               "(SELECT unnest(c.expr.gene_id) AS gene_id, unnest(c.expr.value) AS value) r ORDER BY r.value DESC, "
               f"r.gene_id LIMIT {n}) t JOIN genes g ON g.gene_id = t.gene_id)")
    shapes = [
        Sql(f"expression(log_normalise(c.expr), {name})", as_float(f"logged(c.expr, c.dataset_id, {gene})")),
        Sql(f"expression(c.expr, {names})[2]", f"expression(c.expr, c.dataset_id, {ids[1]})"),
        Sql(f"gene_score(c.expr, {names})", as_float(f"list_avg([{scores}])")),
        Sql(f"top_genes(c.expr, {n})", symbols),
        Sql("genes_seen(c.expr)", "(SELECT genes_seen FROM embeddings e WHERE e.cell_id = c.cell_id)"),
    ]
    cells = catalog.cells.scope(rng, "c")
    values = [literal_text("c.cell_id"), rng.choice(shapes)]
    # Of cells without a vector, the column genes_seen is 0.
    embedded = "(SELECT cell_id FROM embeddings WHERE vector IS NOT NULL)"
    text = f"SELECT {{}} FROM cells c WHERE c.cell_id IN {embedded} AND {{}} AND c.cell_id % PART"
    sql = make(text.replace("PART", f"4 = {rng.randrange(4)}"), "", select_list(values), cells.boolean(1))
    return statement("functions: cell", sql, 2)


def of_a_group(rng, catalog):
    """sum_expr, mean_expr and centroid."""
    cells = catalog.cells.scope(rng, "c")
    keys = different(few_values(rng, cells) for _ in range(rng.randint(0, 2)))
    name, gene = rng.choice(catalog.named_genes)
    name, value = literal(name).ours, f"expression(c.expr, c.dataset_id, {gene})"
    logged = f"logged(c.expr, c.dataset_id, {gene})"
    place = rng.randint(1, catalog.dim)
    shapes = [
        Sql(f"expression(sum_expr(c.expr), {name})", as_float(f"sum({value})")),
        Sql(f"expression(mean_expr(c.expr), {name})", as_float(f"avg({value})")),
        Sql(f"expression(mean_expr(log_normalise(c.expr)), {name})", as_float(f"avg({logged})")),
        Sql("nullif(cardinality(sum_expr(c.expr)['gene_id']), 0)", "len(list_distinct(flatten(list(c.expr.gene_id))))"),
        Sql(f"centroid(e.vector)[{place}]", as_float(f"avg(e.vector[{place}])")),
    ]
    values = keys + rng.sample(shapes, 2) + [literal_text("count(*)")]
    condition = cells.boolean(1)
    text = "SELECT {} FROM cells c LEFT JOIN embeddings e ON e.cell_id = c.cell_id WHERE {}"
    sql = make(text, "", select_list(values), condition)
    if keys:
        sql = make("{} GROUP BY {}", "", sql, make(", ".join(["{}"] * len(keys)), "", *keys))
    return statement("functions: group", sql, len(values))
