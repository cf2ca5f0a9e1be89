"""Random searches for neighbours and where-strings. DuckDB gives every row that qualifies, nearest first."""

from oracle_expressions import literal
from oracle_statements import Statement

# Metric of `vector_search`: DuckDB's distance of the vectors v and q.
METRICS = {
    "cosine": "array_cosine_distance({v}, {q})",
    "l2": "array_distance({v}, {q})",
    "inner_product": "array_negative_inner_product({v}, {q})",
    "correlation": "list_cosine_distance(centred({v}), centred({q}))",
}
# Function of SQL: DuckDB's.
FUNCTIONS = {
    "cosine_distance": METRICS["cosine"],
    "l2_distance": METRICS["l2"],
    "array_distance": METRICS["l2"],
    "correlation_distance": METRICS["correlation"],
}


def query_of(rng, catalog):
    """A cell, or a vector near one: (what `vector_search` takes, its cell or None, the vector for DuckDB)."""
    cell = rng.choice(catalog.embedded)
    vector = catalog.vector(cell)
    if rng.random() < 0.5:
        return str(cell), cell, typed(catalog, vector)
    numbers = [round(number + rng.uniform(-0.2, 0.2), 4) for number in vector]
    return "[" + ", ".join(map(str, numbers)) + "]", None, typed(catalog, numbers)


def typed(catalog, vector):
    return f"CAST([{', '.join(map(str, vector))}] AS DOUBLE[{catalog.dim}])"


def nearest(distance, query, condition, but, extra):
    """DuckDB's rows, nearest first."""
    others = f" AND e.cell_id <> {but}" if but is not None else ""
    shown = "".join(f", {column} AS c{i + 2}" for i, column in enumerate(extra))
    measure = distance.format(v="e.vector", q="query.q")
    return (f"SELECT e.cell_id AS c0, {measure} AS c1{shown} FROM embeddings e JOIN cells c ON c.cell_id = e.cell_id, "
            f"(SELECT {query} AS q) query WHERE e.vector IS NOT NULL AND ({condition}){others} ORDER BY c1, c0")


def searched(rng, catalog):
    """`vector_search`, with and without a where-string and joins."""
    metric = rng.choice(list(METRICS) + ["cosine"])
    text, cell, vector = query_of(rng, catalog)
    k = rng.choice([1, 3, 10, 25, 2000])
    condition = catalog.cells.scope(rng, for_where=True).boolean(2).ours if rng.random() < 0.7 else "true"
    options = f", k => {k}" + (f", metric => '{metric}'" if metric != "cosine" or rng.random() < 0.3 else "")
    if condition != "true":
        options += f", where => {literal(condition).ours}"
    column = rng.choice(catalog.cells.columns[1:])
    place = '"' + column.name + '"'
    ours = f"SELECT s.cell_id AS c0, s._distance AS c1, s.{place} AS c2 FROM vector_search('cells', {text}{options}) s"
    if rng.random() < 0.2:
        ours += " JOIN cells c ON c.cell_id = s.cell_id"
    if rng.random() < 0.7:
        ours += " ORDER BY s._distance, s.cell_id"
    else:
        ours = ours.replace(" JOIN cells c ON c.cell_id = s.cell_id", "")
    # A condition names columns of cells only; in DuckDB, embeddings is beside.
    inside = f"e.cell_id IN (SELECT cell_id FROM cells WHERE {condition})"
    duck = nearest(METRICS[metric], vector, inside, cell, [f"c.{place}"])
    return Statement("vector_search", ours, duck, 3, k=k, exact=metric != "cosine")


def ordered_by_distance(rng, catalog):
    """ORDER BY distance LIMIT k, over embeddings alone or joined."""
    name = rng.choice(list(FUNCTIONS) + ["cosine_distance"])
    text, cell, vector = query_of(rng, catalog)
    query = f"(SELECT vector FROM embeddings WHERE cell_id = {cell})" if cell is not None else text
    k, offset = rng.choice([1, 4, 12, 40]), rng.choice([0, 0, 3])
    cells = catalog.cells.scope(rng, "c")
    condition = cells.boolean(2).ours
    page = f"LIMIT {k}" + (f" OFFSET {offset}" if offset else "")
    shape = rng.randrange(3)
    if shape == 0:
        condition = "e.cell_id % 3 = 1 AND e.vector IS NOT NULL"
        ours = (f"SELECT e.cell_id AS c0, {name}(e.vector, {query}) AS c1 FROM embeddings e WHERE {condition} "
                f"ORDER BY {name}(e.vector, {query}), e.cell_id {page}")
    elif shape == 1:
        ours = (f"SELECT e.cell_id AS c0, {name}(e.vector, {query}) AS c1 FROM embeddings e JOIN cells c "
                f"ON c.cell_id = e.cell_id WHERE ({condition}) AND e.vector IS NOT NULL ORDER BY c1, c0 {page}")
    else:
        source = "SELECT e.cell_id, e.vector FROM embeddings e JOIN cells c ON c.cell_id = e.cell_id"
        ours = (f"SELECT cell_id AS c0, {name}({query}, vector) AS c1 FROM ({source} WHERE ({condition}) "
                f"AND e.vector IS NOT NULL) v ORDER BY c1, c0 {page}")
    duck = nearest(FUNCTIONS[name], vector, condition, None, [])
    exact = name != "cosine_distance"
    return Statement("order by distance", ours, duck, 2, k=k, offset=offset, exact=exact)


def chosen(rng, catalog):
    """Which cells a where-string chooses: all that have a vector, but the one that was asked for."""
    cell = rng.choice(catalog.embedded)
    condition = catalog.cells.scope(rng, for_where=True).boolean(3).ours
    ours = f"SELECT cell_id AS c0 FROM vector_search('cells', {cell}, k => 100000, where => {literal(condition).ours})"
    duck = (f"SELECT cell_id AS c0 FROM cells WHERE ({condition}) AND cell_id <> {cell} AND cell_id IN "
            "(SELECT cell_id FROM embeddings WHERE vector IS NOT NULL)")
    return Statement("where-string", ours, duck, 1)


def genes_searched(rng, catalog):
    """`vector_search` of genes, which looks at every one."""
    metric, k = rng.choice(list(METRICS)), rng.choice([1, 5, 20, 1000])
    gene, name = rng.choice(catalog.embedded_genes)
    condition = catalog.genes.scope(rng, for_where=True).boolean(2).ours if rng.random() < 0.7 else "true"
    where = f", where => {literal(condition).ours}" if condition != "true" else ""
    ours = (f"SELECT s.gene_id AS c0, s._distance AS c1, s.symbol AS c2 FROM vector_search('genes', "
            f"{literal(name).ours}, k => {k}, metric => '{metric}'{where}) s ORDER BY s._distance, s.gene_id")
    measure = METRICS[metric].format(v="e.vector", q="q.vector")
    duck = (f"SELECT e.gene_id AS c0, {measure} AS c1, g.symbol AS c2 FROM gene_embeddings e JOIN genes g "
            f"ON g.gene_id = e.gene_id JOIN gene_embeddings q ON q.gene_id = {gene} WHERE e.gene_id <> {gene} "
            f"AND e.gene_id IN (SELECT gene_id FROM genes WHERE {condition}) ORDER BY c1, c0")
    return Statement("vector_search: genes", ours, duck, 3, k=k)


def distances(rng, catalog):
    """Distances between pairs, and numbers of vectors, without a limit."""
    name = rng.choice(list(FUNCTIONS))
    of, rest = rng.choice([17, 23, 31]), rng.randrange(17)
    measure = FUNCTIONS[name].format(v="a.vector", q="b.vector")
    text = (f"SELECT a.cell_id AS c0, b.cell_id AS c1, DISTANCE AS c2 FROM embeddings a JOIN embeddings b "
            f"ON a.cell_id < b.cell_id WHERE a.cell_id % {of} = {rest} AND b.cell_id % 11 = {rng.randrange(11)}")
    return Statement("distances", text.replace("DISTANCE", f"{name}(a.vector, b.vector)"),
                     text.replace("DISTANCE", measure), 3)


