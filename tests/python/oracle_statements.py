"""Random statements over one table, groups, windows and sets. Those over several tables are in `oracle_joins`, searches
in `oracle_vectors`.
"""

from dataclasses import dataclass

from oracle_expressions import Sql, literal, make


@dataclass
class Statement:
    """A statement in both dialects. Its columns are c0, c1, …

    A search (`k` rows, by distance) is answered by DuckDB with all rows that qualify, nearest first.
    """

    kind: str
    ours: str
    duck: str
    columns: int
    ordered: bool = False
    k: int = 0
    offset: int = 0
    exact: bool = True


def select_list(values):
    text = lambda which: ", ".join(f"{getattr(v, which)} AS c{i}" for i, v in enumerate(values))
    return Sql(text("ours"), text("duck"))


def listed(parts):
    return Sql(", ".join(p.ours for p in parts), ", ".join(p.duck for p in parts))


def statement(kind, sql, columns, **more):
    return Statement(kind, sql.ours, sql.duck, columns, **more)


def direction(rng, key):
    """A sort key with a direction. Without NULLS FIRST or LAST, NULL counts as larger than all in cellql."""
    way = rng.choice(["ASC", "DESC"])
    nulls = rng.choice(["", " NULLS FIRST", " NULLS LAST"])
    stated = nulls or (" NULLS LAST" if way == "ASC" else " NULLS FIRST")
    return Sql(f"{key.ours} {way}{nulls}", f"{key.duck} {way}{stated}")


def ordered_by(rng, keys, unique):
    """ORDER BY, with a last key that makes the order total."""
    return make("ORDER BY {}", "", listed([direction(rng, key) for key in keys] + [direction(rng, unique)]))


def limit(rng, largest=40):
    offset = f" OFFSET {rng.randint(0, largest)}" if rng.random() < 0.4 else ""
    return literal_text(f"LIMIT {rng.randint(0, largest)}{offset}")


def literal_text(text):
    return Sql(text, text)


KEY = Sql("cell_id", "cell_id", "int")


def some_values(rng, scope, count, depth=2):
    values = []
    for _ in range(count):
        if rng.random() < 0.5:
            inner, column = scope.any_column()
            values.append(inner.column_sql(column))
        else:
            values.append(scope.value(rng.choice(["float", "float", "text", "text", "bool"]), depth))
    return values


def filtered(rng, catalog):
    """WHERE on a table or view."""
    table, name = rng.choice([(catalog.cells, "cells"), (catalog.cells, "cells"), (catalog.cells, "obs"),
                              (catalog.datasets, "datasets")])
    scope = table.scope(rng)
    values = some_values(rng, scope, rng.randint(1, 3))
    sql = make(f"SELECT {{}} FROM {name} WHERE {{}}", "", select_list(values), scope.boolean(3))
    return statement("filter", sql, len(values))


def filtered_genes(rng, catalog):
    """WHERE on genes or on the measured genes; of all genes only the number of rows, and the first."""
    scope = catalog.genes.scope(rng)
    condition = scope.boolean(2)
    if rng.random() < 0.5:
        text = "SELECT count(*) AS c0, min(gene_id) AS c1, max(symbol) AS c2 FROM genes WHERE {}"
        return statement("genes", make(text, "", condition), 3)
    values = [Sql("gene_id", "gene_id")] + some_values(rng, scope, 2, 1)
    text = "SELECT {} FROM var WHERE {} ORDER BY gene_id LIMIT 200"
    return statement("genes", make(text, "", select_list(values), condition), 3, ordered=True)


def sorted_and_limited(rng, catalog):
    scope = catalog.cells.scope(rng)
    values = some_values(rng, scope, rng.randint(1, 3))
    keys = some_values(rng, scope, rng.randint(1, 2), 1)
    where = make("WHERE {}", "", scope.boolean(2)) if rng.random() < 0.6 else literal_text("")
    sql = make("SELECT {} FROM cells {} {} {}", "", select_list(values), where, ordered_by(rng, keys, KEY), limit(rng))
    return statement("order, limit", sql, len(values), ordered=True)


def distinct(rng, catalog):
    scope = catalog.cells.scope(rng)
    values = different(group_key(rng, scope) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.3:
        return distinct_on(rng, scope, different(few_values(rng, scope) for _ in range(rng.randint(1, 3))))
    sql = make("SELECT DISTINCT {} FROM cells WHERE {}", "", select_list(values), scope.boolean(2))
    return statement("distinct", sql, len(values))


def distinct_on(rng, scope, keys):
    value = scope.number(1)
    order = make("ORDER BY {}, cell_id", "", listed([direction(rng, key) for key in keys]))
    text = "SELECT DISTINCT ON ({}) {} FROM cells WHERE {} {}"
    sql = make(text, "", listed(keys), select_list(keys + [value]), scope.boolean(2), order)
    return statement("distinct", sql, len(keys) + 1)


# Groups.


def few_values(rng, scope):
    """A column of few values."""
    return scope.column_sql(rng.choice([c for c in scope.columns if c.type == "bool" or len(c.values) < 20]))


def group_key(rng, scope):
    """A key of few values, NULL among them."""
    shape = rng.random()
    if shape < 0.65:
        return few_values(rng, scope)
    if shape < 0.8:
        return make(f"({{}} % {rng.randint(2, 4)})", "int", scope.integer())
    if shape < 0.9:
        return scope.boolean(1)
    return make("CASE WHEN {} THEN {} END", "text", scope.boolean(1), scope.text(0))


def different(expressions):
    """Each expression once: DataFusion refuses the same key twice in CUBE and DISTINCT ON."""
    return list({sql.ours: sql for sql in expressions}.values())


def aggregate(rng, scope, unique="cell_id"):
    """An aggregate, and its type. `unique` gives lists their order."""
    value = scope.number(1)
    addend = scope.small(1)
    kind, column = scope.any_column()
    any_value = kind.column_sql(column)
    text = scope.text(0)
    shapes = [
        ("count(*)", "int", []), ("count({})", "int", [any_value]), ("count(DISTINCT {})", "int", [any_value]),
        ("sum({})", "float", [addend]), ("avg({})", "float", [addend]), ("min({})", "float", [value]),
        ("max({})", "float", [value]), ("min({})", "text", [text]), ("max({})", "text", [text]),
        ("stddev({})", "float", [addend]), ("var_pop({})", "float", [addend]), ("stddev_pop({})", "float", [addend]),
        ("bool_and({})", "bool", [scope.boolean(0)]), ("bool_or({})", "bool", [scope.boolean(0)]),
        ("count(*) FILTER (WHERE {})", "int", [scope.boolean(1)]),
        ("sum({}) FILTER (WHERE {})", "float", [addend, scope.boolean(1)]),
        ("median(CAST({} AS DOUBLE))", "float", [addend]), ("sum(DISTINCT {})", "float", [scope.small(0)]),
        (f"string_agg({{}}, ',' ORDER BY {unique})", "text", [text]),
        (f"array_agg({{}} ORDER BY {unique})", "list", [any_value]),
        (f"first_value({{}} ORDER BY {unique} DESC)", "any", [any_value]),
        (f"last_value({{}} ORDER BY {unique})", "any", [any_value]),
    ]
    template, type, parts = rng.choice(shapes)
    made = make(template, type, *parts)
    if template.startswith(("first_value", "last_value")):
        made.duck = made.duck.replace("first_value(", "first(", 1).replace("last_value(", "last(", 1)
    return made


def having(rng, scope):
    shapes = [
        make(f"count(*) > {rng.randint(1, 20)}", "bool"),
        make(f"count(DISTINCT {{}}) {rng.choice(['>', '<=', '='])} {rng.randint(1, 4)}", "bool", scope.text(0)),
        make("max({}) IS NOT NULL", "bool", scope.number(0)),
        make(f"avg({{}}) > {rng.randint(0, 5)}e0 OR count(*) < 3", "bool", scope.small(0)),
    ]
    return make("HAVING {}", "", rng.choice(shapes))


def grouped(rng, catalog):
    scope = catalog.cells.scope(rng)
    is_cube, is_ordered = rng.random() < 0.15, rng.random() < 0.3
    key = few_values if is_cube or is_ordered else group_key
    keys = different(key(rng, scope) for _ in range(rng.choice([1, 1, 2, 3])))
    values = keys + [aggregate(rng, scope) for _ in range(rng.randint(1, 4))]
    where = make("WHERE {}", "", scope.boolean(2)) if rng.random() < 0.6 else literal_text("")
    by = listed(keys)
    if is_cube:
        by = make(rng.choice(["ROLLUP ({})", "CUBE ({})"]), "", by)
    tail = having(rng, scope) if rng.random() < 0.4 else literal_text("")
    sql = make("SELECT {} FROM cells {} GROUP BY {} {}", "", select_list(values), where, by, tail)
    if is_ordered and not is_cube:
        order = make("ORDER BY {}", "", listed([direction(rng, literal_text(f"c{i}")) for i in range(len(keys))]))
        sql = make("{} {} {}", "", sql, order, limit(rng, 8))
        return statement("group", sql, len(values), ordered=True)
    return statement("group", sql, len(values))


def summarised(rng, catalog):
    """Aggregates over all rows, also over none."""
    scope = catalog.cells.scope(rng)
    values = [aggregate(rng, scope) for _ in range(rng.randint(1, 4))]
    where = make("WHERE {}", "", scope.boolean(2)) if rng.random() < 0.8 else literal_text("")
    return statement("aggregate", make("SELECT {} FROM cells {}", "", select_list(values), where), len(values))


# Windows.


def window_function(rng, scope):
    keys = listed([direction(rng, scope.value(rng.choice(["float", "text"]), 0))])
    total = make(f"{{}}, cell_id {rng.choice(['ASC', 'DESC'])}", "", keys)
    part = rng.choice([literal_text(""), make("PARTITION BY {}", "", group_key(rng, scope))])
    value = scope.value(rng.choice(["float", "text"]), 0)
    addend = scope.small(0)
    n = rng.randint(0, 3)
    frame = f"ROWS BETWEEN {n} PRECEDING AND {rng.choice(['CURRENT ROW', '1 FOLLOWING', 'UNBOUNDED FOLLOWING'])}"
    shapes = [
        ("row_number() OVER ({} ORDER BY {})", [part, total]), ("rank() OVER ({} ORDER BY {})", [part, keys]),
        ("dense_rank() OVER ({} ORDER BY {})", [part, keys]), ("percent_rank() OVER ({} ORDER BY {})", [part, keys]),
        ("cume_dist() OVER ({} ORDER BY {})", [part, keys]),
        (f"ntile({n + 1}) OVER ({{}} ORDER BY {{}})", [part, total]),
        (f"lag({{}}, {n}) OVER ({{}} ORDER BY {{}})", [value, part, total]),
        (f"lead({{}}, {n}) OVER ({{}} ORDER BY {{}})", [value, part, total]),
        (f"first_value({{}}) OVER ({{}} ORDER BY {{}} {frame})", [value, part, total]),
        (f"last_value({{}}) OVER ({{}} ORDER BY {{}} {frame})", [value, part, total]),
        (f"nth_value({{}}, {n + 1}) OVER ({{}} ORDER BY {{}} {frame})", [value, part, total]),
        (f"sum({{}}) OVER ({{}} ORDER BY {{}} {frame})", [addend, part, total]),
        (f"avg({{}}) OVER ({{}} ORDER BY {{}} {frame})", [addend, part, total]),
        (f"max({{}}) OVER ({{}} ORDER BY {{}} {frame})", [value, part, total]),
        ("count({}) OVER ({} ORDER BY {})", [value, part, keys]), ("count(*) OVER ({})", [part]),
        ("min({}) OVER ({})", [value, part]),
    ]
    template, parts = rng.choice(shapes)
    return make(template, "float", *parts)


def windowed(rng, catalog):
    scope = catalog.cells.scope(rng)
    values = [KEY] + [window_function(rng, scope) for _ in range(rng.randint(1, 2))]
    where = make("WHERE {}", "", scope.boolean(1)) if rng.random() < 0.5 else literal_text("")
    sql = make("SELECT {} FROM cells {}", "", select_list(values), where)
    if rng.random() < 0.25:
        key, order = group_key(rng, scope), direction(rng, scope.number(0))
        ranked = make("row_number() OVER (PARTITION BY {} ORDER BY {}, cell_id)", "", key, order)
        sql = make(f"{{}} QUALIFY {{}} <= {rng.randint(1, 5)}", "", sql, ranked)
    return statement("window", sql, len(values))


# Sets.


def branch(rng, scope, types):
    values = [scope.value(t, 1) for t in types]
    return make("SELECT {} FROM cells WHERE {}", "", select_list(values), scope.boolean(2))


def united(rng, catalog):
    scope = catalog.cells.scope(rng)
    types = [rng.choice(["text", "bool", "float"]) for _ in range(rng.randint(1, 2))]
    columns = [rng.choice([c for c in scope.columns if c.type == t]) for t in types]
    branches = []
    for _ in range(rng.choice([2, 2, 3])):
        values = select_list([scope.column_sql(c) for c in columns])
        branches.append(make("SELECT {} FROM cells WHERE {}", "", values, scope.boolean(2)))
    if rng.random() < 0.3:
        branches[-1] = branch(rng, scope, types)
    operator = rng.choice(["UNION", "UNION ALL", "INTERSECT", "EXCEPT", "UNION"])
    sql = make(f" {operator} ".join(["{}"] * len(branches)), "", *branches)
    return statement("set", sql, len(types))


# Subqueries.


def with_subquery(rng, catalog):
    outer, inner = catalog.cells.scope(rng, "c"), catalog.cells.scope(rng, "i")
    column = rng.choice([c for c in outer.columns if c.type in ("int", "text")])
    here, there = outer.column_sql(column), inner.column_sql(column)
    values = some_values(rng, outer, 2, 1)
    some = inner.boolean(2)
    shapes = [
        make(f"{{}} {rng.choice(['IN', 'NOT IN'])} (SELECT {{}} FROM cells i WHERE {{}})", "", here, there, some),
        make(f"{{}} NOT IN (SELECT {{}} FROM cells i WHERE {{}} AND {{}} IS NOT NULL)", "", here, there, some, there),
        make(f"{rng.choice(['', 'NOT '])}EXISTS (SELECT 1 FROM cells i WHERE {{}} = {{}} AND i.cell_id <> c.cell_id "
             "AND {})", "", there, here, some),
        make("{} > (SELECT avg({}) FROM cells i WHERE {})", "", outer.small(0), inner.small(0), some),
        make("c.total_counts >= (SELECT avg(i.total_counts) FROM cells i WHERE i.dataset_id = c.dataset_id)", ""),
        make("(SELECT count(*) FROM cells i WHERE {} = {} AND {}) > 3", "", there, here, some),
        make("({} IN (SELECT {} FROM cells i WHERE {}) OR {})", "", here, there, some, outer.boolean(0)),
    ]
    sql = make("SELECT {} FROM cells c WHERE {} AND {}", "", select_list(values), rng.choice(shapes), outer.boolean(1))
    return statement("subquery", sql, 2)


def with_common_table(rng, catalog):
    scope = catalog.cells.scope(rng)
    key, value = group_key(rng, scope), scope.small(0)
    first = make("SELECT cell_id, {} AS k, {} AS v FROM cells WHERE {}", "", key, value, scope.boolean(2))
    last = rng.choice([
        "SELECT k AS c0, count(*) AS c1, sum(v) AS c2 FROM t GROUP BY k",
        "SELECT a.cell_id AS c0, a.k AS c1, b.n AS c2 FROM t a JOIN (SELECT k, count(*) AS n FROM t GROUP BY k) b "
        "ON a.k IS NOT DISTINCT FROM b.k",
        "SELECT cell_id AS c0, k AS c1, v AS c2 FROM t WHERE v > (SELECT avg(v) FROM t)",
        "SELECT k AS c0, max(v) AS c1, min(cell_id) AS c2 FROM (SELECT * FROM t ORDER BY v DESC NULLS LAST, cell_id "
        "LIMIT 50) GROUP BY k",
        "SELECT cell_id AS c0, k AS c1, v AS c2 FROM t UNION SELECT cell_id + 1, k, v FROM t WHERE k IS NOT NULL",
    ])
    return statement("common table", make(f"WITH t AS ({{}}) {last}", "", first), 3)
