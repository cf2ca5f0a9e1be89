"""Random SQL expressions, each as the text for cellql and the text for DuckDB.

What the two write or define differently, and is therefore translated or left out:

- 7 / 2 is 3 in cellql and 3.5 in DuckDB: both sides of a division are cast to DOUBLE.
- 1.5 is a DOUBLE in cellql and a DECIMAL in DuckDB: numbers with a fraction are written 1.5e0.
- A cast from DOUBLE to an integer truncates in cellql and rounds in DuckDB: none is made.
- NULLS FIRST or LAST is always said to DuckDB, whose default differs (`oracle_statements.direction`).
- DuckDB refuses the square root or logarithm of a number that has none: their argument is kept positive.
- upper('ß') is SS in cellql and ẞ in DuckDB: no value has it.

What DataFusion 54 answers wrongly, and is left out:

- sum() of BIGINT wraps: columns of large numbers are not added up.
- -0e0 = 0e0 is false, and the NaN of inf * 0e0 is less than 1: zero is added where a result could be -0, and nothing is
  calculated of infinities.
- `x IN (1, NULL) AND x IN (2)` is false where x is 2, not NULL: a list with NULL is asked of another expression.
- `a IS DISTINCT FROM b AND c` is read as `a IS DISTINCT FROM (b AND c)`: IS DISTINCT FROM is always in parentheses.
- `a JOIN b ON a.x IS NOT DISTINCT FROM b.x WHERE a.y = b.y` takes NULL in y as equal: no such join.
- `GROUP BY x + 1, x, y ORDER BY x + 1, x, y` forgets y: groups that are sorted have plain columns as keys.
- A field of `CASE WHEN b THEN expr END` is that of the cell's expr where b is false: no CASE gives a struct.
- UBIGINT with BIGINT becomes a DECIMAL, and DOUBLE beside it too, which infinities do not fit: both are made signed.
"""

from dataclasses import dataclass, field

NUMERIC = ("int", "float")


@dataclass
class Sql:
    """An expression in both dialects, and its type: int, float, text or bool."""

    ours: str
    duck: str
    type: str = ""


@dataclass
class Column:
    name: str
    type: str
    values: list = field(default_factory=list)
    is_unsigned: bool = False
    is_nullable: bool = True

    @property
    def is_large(self):
        """Whether it has numbers that cannot be added up exactly, or infinities, whose difference is NaN."""
        return self.type in NUMERIC and any(abs(v) > 2**40 for v in self.values)


def make(template, type, *parts):
    """Fills the places {} of a template with expressions, which may have braces themselves."""
    pieces = template.split("{}")
    assert len(pieces) == len(parts) + 1, template
    ours, duck = pieces[0], pieces[0]
    for part, piece in zip(parts, pieces[1:]):
        ours, duck = ours + part.ours + piece, duck + part.duck + piece
    return Sql(ours, duck, type)


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def literal(value):
    """A value as both write it."""
    if value is None:
        text = "NULL"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif value in (float("inf"), float("-inf")):
        text = f"CAST('{'-' * (value < 0)}Infinity' AS DOUBLE)"
    elif isinstance(value, float):
        text = f"{value!r}e0" if "e" not in repr(value) else repr(value)
    elif isinstance(value, str):
        text = "'" + value.replace("'", "''") + "'"
    else:
        text = str(value)
    return Sql(text, text)


class Expressions:
    """Random expressions over columns. `alias` is put before the names, where there is one. `for_where`: only what the
    where-strings of `vector_search` know, which Lance plans: they have no CASE, trim(), substr(), floor() and ceil().
    """

    def __init__(self, rng, columns, alias="", for_where=False):
        self.rng, self.columns, self.alias, self.for_where = rng, columns, alias, for_where

    def joined(self, other):
        """The expressions over the columns of both."""
        return Several(self.rng, [self, other])

    # Columns and constants.

    def of_type(self, *types):
        return [c for c in self.columns if c.type in types]

    def column_sql(self, column):
        text = (f"{self.alias}." if self.alias else "") + quoted(column.name)
        return Sql(text, text, column.type)

    def pick(self, *types):
        """A random column, with the scope that it is of."""
        return self, self.rng.choice(self.of_type(*types))

    def any_column(self):
        types = [t for t in ("int", "int", "float", "text", "text", "bool") if self.has(t)]
        return self.pick(self.rng.choice(types))

    def has(self, type):
        return bool(self.of_type(type))

    def constant(self, column):
        """A value of a column, or one near it."""
        value = self.rng.choice(column.values) if column.values else 0
        if column.type in NUMERIC and value not in (float("inf"), float("-inf")) and self.rng.random() < 0.3:
            value = value + self.rng.choice([-1, 1])
        return literal(max(value, 0) if column.is_unsigned else value)

    # Expressions of each type.

    def number(self, depth=2):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.4 or not self.has("text"):
            return self.plain_number()
        deeper = lambda: self.number(depth - 1)
        shape = rng.randrange(13)
        if shape == 0:
            return make(rng.choice(["({} + {})", "({} - {})"]), "float", self.small(depth - 1), self.small(depth - 1))
        if shape == 1:
            return make(f"({{}} * {rng.randint(-3, 3)} + 0)", "float", self.small(depth - 1))
        if shape == 2:
            return make(f"({{}} % {rng.choice([2, 3, 5, 7])})", "int", self.integer())
        if shape == 3 and not self.for_where:
            return make("CASE WHEN {} THEN {} ELSE {} END", "float", self.boolean(depth - 1), deeper(), deeper())
        if shape == 4:
            return make(f"coalesce({{}}, {rng.randint(-1, 3)})", "float", deeper())
        if shape == 5:
            return make(f"nullif({{}}, {rng.randint(0, 3)})", "float", deeper())
        if shape == 6:
            return make("abs({})", "float", self.small(depth - 1))
        if shape == 7:
            functions = ["round"] if self.for_where else ["floor", "ceil", "round"]
            return make(f"({rng.choice(functions)}({{}}) + 0)", "float", self.decimal())
        if shape == 8:
            return make("length({})", "int", self.text(depth - 1))
        if shape == 9:
            return make(rng.choice(["greatest({}, {})", "least({}, {})"]), "float", deeper(), deeper())
        if shape == 10:
            divisor = rng.choice([2, 3, 7, 1000])
            return make(f"(CAST({{}} AS DOUBLE) / CAST({divisor} AS DOUBLE))", "float", deeper())
        if shape == 11:
            return make(rng.choice(["sqrt(abs({}))", "ln(abs({}) + 1e0)"]), "float", self.small(depth - 1))
        return make(f"strpos({{}}, {literal(rng.choice(['e', '-', 'a', '1'])).ours})", "int", self.text(depth - 1))

    def plain_number(self):
        scope, column = self.pick(*NUMERIC)
        return scope.signed(column)

    def signed(self, column):
        """A column, as a signed number: with an unsigned one, cellql comes to a DECIMAL that holds no infinity."""
        sql = self.column_sql(column)
        return make("CAST({} AS BIGINT)", "int", sql) if column.is_unsigned else sql

    def integer(self):
        if not self.has("int"):
            return literal(self.rng.randint(0, 5))
        scope, column = self.pick("int")
        return scope.signed(column)

    def decimal(self):
        return make("(CAST({} AS DOUBLE) / 4e0)", "float", self.small(0))

    def small(self, depth):
        """A signed number that can be added up without overflow and NaN."""
        for _ in range(20):
            scope, column = self.pick(*NUMERIC)
            if not column.is_large:
                return scope.signed(column)
        return literal(3)

    def text(self, depth=1):
        rng = self.rng
        scope, column = self.pick("text")
        base = scope.column_sql(column)
        if depth <= 0 or rng.random() < 0.5:
            return base
        deeper = self.text(depth - 1)
        shapes = [
            "lower({})", "upper({})", "({} || '-x')",
            f"left({{}}, {rng.randint(0, 3)})", f"right({{}}, {rng.randint(0, 3)})",
            f"replace({{}}, 'e', {literal(rng.choice(['', 'E', 'ée'])).ours})", "coalesce({}, 'none')",
            f"nullif({{}}, {literal(rng.choice(['', 'beta', 'a'])).ours})", "split_part({}, '-', 1)",
            f"lpad({{}}, {rng.randint(1, 6)}, '*')", "concat({}, '/')",
        ]
        if not self.for_where:
            shapes += [f"substr({{}}, {rng.randint(1, 4)}, {rng.randint(0, 3)})", "trim({})"]
        if rng.random() < 0.2:
            return make("concat({}, '|', {})", "text", deeper, base)
        if rng.random() < 0.15 and not self.for_where:
            return make("CASE WHEN {} THEN {} ELSE {} END", "text", self.boolean(0), deeper, base)
        return make(rng.choice(shapes), "text", deeper)

    def value(self, type, depth=1):
        if type in NUMERIC:
            return self.number(depth)
        return self.text(depth) if type == "text" else self.boolean(depth)

    # Conditions.

    def boolean(self, depth=2):
        rng = self.rng
        if depth <= 0 or rng.random() < 0.35:
            return self.simple_condition()
        deeper = lambda: self.boolean(depth - 1)
        shape = rng.random()
        if shape < 0.15:
            return self.chain()
        if shape < 0.35:
            return make("({} AND {})", "bool", deeper(), deeper())
        if shape < 0.7:
            return make("({} OR {})", "bool", deeper(), deeper())
        if shape < 0.85:
            return make("(NOT {})", "bool", deeper())
        if shape < 0.93 or self.for_where:
            test = rng.choice(["IS TRUE", "IS NOT TRUE", "IS FALSE", "IS NOT FALSE", "IS NULL", "IS NOT NULL"])
            return make(f"({{}} {test})", "bool", deeper())
        return make("CASE WHEN {} THEN {} ELSE {} END", "bool", deeper(), deeper(), deeper())

    def chain(self):
        """Conditions with AND, OR and NOT, without parentheses around each: how tightly operators bind."""
        terms = [self.simple_condition() for _ in range(self.rng.randint(2, 4))]
        bare = [t for t in terms if "DISTINCT FROM" not in t.ours] or terms[:1]
        parts = []
        for term in bare:
            is_wrapped = term.ours.startswith("(")
            inner = Sql(term.ours[1:-1], term.duck[1:-1]) if is_wrapped and len(bare) > 1 else term
            parts.append(make(self.rng.choice(["{}", "{}", "NOT {}"]), "bool", inner))
        joints = [self.rng.choice([" AND ", " OR "]) for _ in parts[1:]]
        return make("({}" + "".join(joint + "{}" for joint in joints) + ")", "bool", *parts)

    def simple_condition(self):
        rng = self.rng
        scope, column = self.any_column()
        sql = scope.column_sql(column)
        shape = rng.random()
        if shape < 0.15:
            return make(rng.choice(["({} IS NULL)", "({} IS NOT NULL)"]), "bool", sql)
        if column.type == "bool":
            return rng.choice([sql, make("(NOT {})", "bool", sql), make("({} = true)", "bool", sql)])
        if shape < 0.3:
            return self.in_list(sql, column)
        if shape < 0.4:
            low, high = self.constant(column), self.constant(column)
            return make(rng.choice(["({} BETWEEN {} AND {})", "({} NOT BETWEEN {} AND {})"]), "bool", sql, low, high)
        if shape < 0.5:
            return make(rng.choice(["({} IS DISTINCT FROM {})", "({} IS NOT DISTINCT FROM {})"]), "bool", sql,
                        self.constant(column))
        if column.type == "text" and shape < 0.75:
            return self.pattern(sql, column)
        if shape < 0.8:
            operator = rng.choice(["=", "<>", "<", "<=", ">", ">="])
            return make(f"({{}} {operator} {{}})", "bool", self.value(column.type, 1), self.value(column.type, 0))
        operator = rng.choice(["=", "<>", "<", "<=", ">", ">="])
        return make(f"({{}} {operator} {{}})", "bool", sql, self.constant(column))

    def in_list(self, sql, column):
        items = [self.constant(column) for _ in range(self.rng.randint(1, 6))]
        if self.rng.random() < 0.2:
            items.append(literal(None))
            sql = make("({} || '')", "text", sql) if column.type == "text" else make("({} + 0)", column.type, sql)
        places = ", ".join(["{}"] * len(items))
        kind = self.rng.choice(["IN", "NOT IN"])
        return make(f"({{}} {kind} ({places}))", "bool", sql, *items)

    def pattern(self, sql, column):
        rng = self.rng
        value = str(rng.choice(column.values)) if column.values else "a"
        start, stop = sorted((rng.randint(0, len(value)), rng.randint(0, len(value))))
        piece = value[start:stop].replace("\\", "")
        shape = rng.choice(["{}%", "%{}", "%{}%", "_{}%", "{}", "{}_"]).replace("{}", piece)
        if rng.random() < 0.2:
            return make("starts_with({}, {})", "bool", sql, literal(piece))
        kind = rng.choice(["LIKE", "LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"])
        return make(f"({{}} {kind} {{}})", "bool", sql, literal(shape))


class Several(Expressions):
    """Expressions over the columns of several scopes."""

    def __init__(self, rng, scopes):
        super().__init__(rng, [c for s in scopes for c in s.columns])
        self.scopes = scopes

    def pick(self, *types):
        scope = self.rng.choice([s for s in self.scopes if s.of_type(*types)])
        return scope.pick(*types)

