"""Random statements over several tables: joins, and the expression of cells as lists and as rows."""

from oracle_expressions import Sql, literal, make
from oracle_statements import aggregate, direction, limit, listed, literal_text, select_list, some_values, statement


def near_cells(rng, catalog, alias, share=0.25):
    """A condition that holds for a part of the cells, so that products stay small."""
    of = max(2, round(1 / share))
    return literal_text(f"{alias}.cell_id % {of} = {rng.randrange(of)}")


def of_data_set(rng, catalog):
    """Cells with their data set."""
    cells, sets = catalog.cells.scope(rng, "c"), catalog.datasets.scope(rng, "d")
    both = cells.joined(sets)
    kind = rng.choice(["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"])
    on = make("c.dataset_id = d.dataset_id AND {}", "", rng.choice([both, cells, sets]).boolean(1))
    values = [cells.column_sql(catalog.cells.columns[0])] + some_values(rng, both, 2, 1)
    sql = make(f"SELECT {{}} FROM cells c {kind} datasets d ON {{}}", "", select_list(values), on)
    if rng.random() < 0.6:
        sql = make("{} WHERE {}", "", sql, both.boolean(2))
    return statement("join: data sets", sql, 3)


def of_embeddings(rng, catalog):
    """Cells with their embedding, also those that have none."""
    cells, vectors = catalog.cells.scope(rng, "c"), catalog.embeddings.scope(rng, "e")
    both = cells.joined(vectors)
    shape = rng.choice(["JOIN", "LEFT JOIN", "RIGHT JOIN"])
    values = some_values(rng, both, 3, 1) + [make(f"e.vector[{rng.randint(1, catalog.dim)}]", "float")]
    sql = make(f"SELECT {{}} FROM cells c {shape} embeddings e ON c.cell_id = e.cell_id WHERE {{}}", "",
               select_list(values), both.boolean(2))
    return statement("join: embeddings", sql, 4)


def of_cells(rng, catalog):
    """Cells with other cells: on a column, or on a condition that is no equality."""
    left, right = catalog.cells.scope(rng, "a"), catalog.cells.scope(rng, "b")
    both = left.joined(right)
    column = rng.choice([c for c in left.columns if c.type in ("int", "text")])
    equal = make("{} = {}", "", left.column_sql(column), right.column_sql(column))
    on = rng.choice([equal, equal, literal_text("a.duplicate_of = b.cell_id"),
                     make("{} AND a.cell_id < b.cell_id", "", equal),
                     make("{} < {} AND a.dataset_id = b.dataset_id", "", left.number(0), right.number(0))])
    kind = rng.choice(["JOIN", "LEFT JOIN", "FULL JOIN", "RIGHT JOIN"])
    values = some_values(rng, both, 2, 1)
    few = [f"(SELECT * FROM cells x WHERE {near_cells(rng, catalog, 'x', 0.08).ours})" for _ in range(2)]
    sql = make(f"SELECT {{}} FROM {few[0]} a {kind} {few[1]} b ON {{}}", "", select_list(values), on)
    if rng.random() < 0.4:
        sql = make("{} WHERE {}", "", sql, both.boolean(1))
    return statement("join: cells", sql, 2)


def semi(rng, catalog):
    """Cells for which there is, or is not, another."""
    left, right = catalog.cells.scope(rng, "a"), catalog.cells.scope(rng, "b")
    column = rng.choice([c for c in left.columns if c.type in ("int", "text", "bool")])
    kind = rng.choice(["SEMI", "ANTI"])
    values, condition, here = some_values(rng, left, 2, 1), right.boolean(1), left.boolean(1)
    on = make("{} = {} AND {}", "", left.column_sql(column), right.column_sql(column), condition)
    text = "SELECT {} FROM cells a LEFT_JOIN cells b ON {} WHERE {}"
    sql = make(text, "", select_list(values), on, here)
    sql = Sql(sql.ours.replace("LEFT_JOIN", f"LEFT {kind} JOIN"), sql.duck.replace("LEFT_JOIN", f"{kind} JOIN"))
    return statement("join: semi, anti", sql, 2)


def three_tables(rng, catalog):
    cells, sets, vectors = (catalog.cells.scope(rng, "c"), catalog.datasets.scope(rng, "d"),
                            catalog.embeddings.scope(rng, "e"))
    all_three = cells.joined(sets).joined(vectors)
    values = [literal_text("c.dataset_id")]
    values += [aggregate(rng, all_three, "c.cell_id") for _ in range(2)]
    text = ("SELECT {} FROM cells c JOIN datasets d ON c.dataset_id = d.dataset_id LEFT JOIN embeddings e "
            "ON e.cell_id = c.cell_id WHERE {} GROUP BY {}")
    return statement("join: three", make(text, "", select_list(values), all_three.boolean(2), values[0]), 3)


# Expression.


def of_gene(rng, catalog, alias="c"):
    """The value of a gene in a cell: NULL where the data set did not measure it."""
    name, gene = rng.choice(catalog.named_genes)
    ours = f"expression({alias}.expr, {literal(name).ours})"
    return Sql(ours, f"expression({alias}.expr, {alias}.dataset_id, {gene})", "float")


def expressed(rng, catalog):
    cells = catalog.cells.scope(rng, "c")
    genes = [of_gene(rng, catalog) for _ in range(2)]
    shape = rng.randrange(5)
    if shape == 0:
        values = [literal_text("c.cell_id")] + genes
        sql = make("SELECT {} FROM cells c WHERE {}", "", select_list(values), cells.boolean(1))
        return statement("expression", sql, 3)
    if shape == 1:
        bound = rng.randint(0, 4)
        test = rng.choice([f"{{}} > {bound}", "{} IS NULL", "{} = 0", f"NOT ({{}} <= {bound})", "{} IS NOT NULL"])
        sql = make(f"SELECT c.cell_id AS c0, {{}} AS c1 FROM cells c WHERE {test} AND {{}}", "", genes[0], genes[1],
                   cells.boolean(1))
        return statement("expression", sql, 2)
    if shape == 2:
        values = [cells.column_sql(catalog.cells.columns[1]), make("sum({})", "", genes[0]),
                  make("count({})", "", genes[0]), make("avg(CAST({} AS DOUBLE))", "", genes[1])]
        sql = make("SELECT {} FROM cells c WHERE {} GROUP BY {}", "", select_list(values), cells.boolean(1), values[0])
        return statement("expression", sql, 4)
    if shape == 3:
        order = listed([direction(rng, genes[0]), literal_text("c.cell_id")])
        sql = make("SELECT c.cell_id AS c0, {} AS c1 FROM cells c ORDER BY {} {}", "", genes[0], order, limit(rng))
        return statement("expression", sql, 2, ordered=True)
    sql = make("SELECT c.cell_id AS c0, d.name AS c1, {} AS c2 FROM cells c JOIN datasets d ON c.dataset_id = "
               "d.dataset_id WHERE {}", "", genes[0], cells.boolean(1))
    return statement("expression", sql, 3)


def as_lists(rng, catalog):
    """The two lists of a cell's expression."""
    n = rng.randint(1, 30)
    gene = rng.choice(catalog.named_genes)[1]
    ours = ["cardinality(expr['gene_id'])", f"expr['gene_id'][{n}]", f"expr['value'][-{n}]",
            f"array_slice(expr['gene_id'], {n}, {n + 4})", f"array_has(expr['gene_id'], {gene})",
            f"array_position(expr['gene_id'], {gene})"]
    duck = ["len(expr.gene_id)", f"expr.gene_id[{n}]", f"expr.value[-{n}]", f"list_slice(expr.gene_id, {n}, {n + 4})",
            f"list_contains(expr.gene_id, {gene})", f"list_position(expr.gene_id, {gene})"]
    values = [literal_text("cell_id")] + rng.sample([Sql(a, b) for a, b in zip(ours, duck)], 2)
    cells = catalog.cells.scope(rng)
    sql = make("SELECT {} FROM cells WHERE {}", "", select_list(values), cells.boolean(1))
    return statement("lists", sql, 3)


def as_rows(rng, catalog):
    """The view "X", with genes and cells."""
    cells = catalog.cells.scope(rng, "c")
    name, gene = rng.choice(catalog.named_genes)
    low, ids = rng.randint(1, 5), literal_text(", ".join(str(rng.choice(catalog.named_genes)[1]) for _ in range(8)))
    shape = rng.randrange(5)
    if shape == 0:
        sql = make(f'SELECT cell_id AS c0, value AS c1 FROM "X" WHERE gene_id = {gene} AND value >= {low}', "")
    elif shape == 1:
        sql = make(f'SELECT gene_id AS c0, sum(value) AS c1 FROM "X" WHERE value > {low} GROUP BY gene_id '
                   f"HAVING count(*) > {rng.randint(20, 80)}", "")
    elif shape == 2:
        sql = make('SELECT x.cell_id AS c0, g.symbol AS c1 FROM "X" x JOIN genes g ON g.gene_id = x.gene_id '
                   "JOIN cells c ON c.cell_id = x.cell_id WHERE x.gene_id IN ({}) AND {}", "", ids, cells.boolean(1))
    elif shape == 3:
        sql = make('SELECT c.dataset_id AS c0, count(DISTINCT x.gene_id) AS c1 FROM cells c JOIN "X" x '
                   "ON x.cell_id = c.cell_id WHERE {} GROUP BY c.dataset_id", "", cells.boolean(1))
    else:
        some = near_cells(rng, catalog, "x", 0.02).ours
        ranked = "row_number() OVER (PARTITION BY x.cell_id ORDER BY value DESC, gene_id) AS n"
        sql = make(f'SELECT cell_id AS c0, gene_id AS c1 FROM (SELECT x.cell_id, x.gene_id, {ranked} FROM "X" x '
                   f"WHERE {some}) t WHERE n <= {low}", "")
    return statement("X", sql, 2)


def measured(rng, catalog):
    """The measured genes of the data sets."""
    sets = catalog.datasets.scope(rng, "d")
    ours = ("SELECT g.symbol AS c0, count(*) AS c1 FROM (SELECT d.dataset_id, unnest(d.measured_genes) AS gene_id "
            "FROM datasets d WHERE {}) m JOIN genes g ON g.gene_id = m.gene_id GROUP BY g.symbol HAVING count(*) > "
            f"{rng.randint(2, 5)}")
    return statement("measured genes", make(ours, "", sets.boolean(1)), 2)
