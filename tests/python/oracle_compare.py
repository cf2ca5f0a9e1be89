"""Compares the rows of cellql, as JSON gives them, with those of DuckDB."""

import math
from decimal import Decimal

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def are_near(ours, theirs, tolerance):
    if math.isnan(ours) or math.isnan(theirs):
        return math.isnan(ours) and math.isnan(theirs)
    if math.isinf(ours) or math.isinf(theirs):
        return ours == theirs
    return abs(ours - theirs) <= tolerance * max(abs(ours), abs(theirs)) + 1e-9


def is_equal(ours, theirs, tolerance):
    """Whether a JSON value is a value of DuckDB. NULL is None; NaN and infinities are words in JSON."""
    if theirs is None or ours is None:
        return theirs is None and ours is None
    if isinstance(theirs, bool) or isinstance(ours, bool):
        return isinstance(ours, bool) and isinstance(theirs, bool) and ours == theirs
    if isinstance(theirs, int) and isinstance(ours, int):
        return ours == theirs
    if isinstance(theirs, (int, float, Decimal)):
        ours = WORDS.get(ours, ours) if isinstance(ours, str) else ours
        return isinstance(ours, (int, float)) and are_near(float(ours), float(theirs), tolerance)
    if isinstance(theirs, (list, tuple)):
        same_length = isinstance(ours, list) and len(ours) == len(theirs)
        return same_length and all(is_equal(a, b, tolerance) for a, b in zip(ours, theirs))
    return isinstance(ours, str) and ours == theirs


def tolerances(types):
    return [1e-5 if "FLOAT" in kind else 1e-6 for kind in types]


def are_equal_rows(ours, theirs, allowed):
    return all(is_equal(a, b, t) for a, b, t in zip(ours, theirs, allowed))


def order_key(value):
    """A key that puts the same value of both programs at about the same place."""
    if isinstance(value, str) and value in WORDS:
        value = WORDS[value]
    if value is None:
        return (0, 0)
    if isinstance(value, bool):
        return (1, value)
    if isinstance(value, (int, float, Decimal)):
        number = float(value)
        return (2, math.inf, 1) if math.isnan(number) else (2, number, 0)
    if isinstance(value, (list, tuple)):
        return (3, tuple(order_key(v) for v in value))
    return (4, value)


def sort_key(row, floats):
    """Exact values first: rounding of the others can change the order only among rows that are else equal."""
    exact = [order_key(v) for v, is_float in zip(row, floats) if not is_float]
    return (exact, [order_key(v) for v, is_float in zip(row, floats) if is_float])


def difference(ours, theirs, types, ordered):
    """The first rows that differ, as (row of cellql, row of DuckDB), or None. A row that is missing is None."""
    allowed = tolerances(types)
    if not ordered:
        floats = [any(word in kind for word in ("FLOAT", "DOUBLE", "DECIMAL")) for kind in types]
        ours = sorted(ours, key=lambda row: sort_key(row, floats))
        theirs = sorted(theirs, key=lambda row: sort_key(row, floats))
    for a, b in zip(ours, theirs):
        if not are_equal_rows(a, b, allowed):
            return a, b
    if len(ours) > len(theirs):
        return ours[len(theirs)], None
    return (None, theirs[len(ours)]) if len(theirs) > len(ours) else None


def nearest_difference(ours, theirs, k, offset, exact):
    """What is wrong with an answer to a search, or None; and how many of its rows are among the nearest.

    `theirs` has every row that qualifies, nearest first; the first two columns are the id and the distance. Of rows
    that are as far, cellql may give any. Where the search is not exact, rows may be missing, but none may be wrong.
    """
    wanted = theirs[offset:offset + k]
    if len(ours) != len(wanted):
        return f"{len(ours)} rows, not {len(wanted)}", 0
    by_id = {row[0]: row for row in theirs}
    if len({row[0] for row in ours}) != len(ours):
        return "a row twice", 0
    found, last = 0, -math.inf
    for row, right in zip(ours, wanted):
        known = by_id.get(row[0])
        if known is None:
            return f"{row} does not qualify", 0
        if not are_near(row[1], known[1], 1e-5) and abs(row[1] - known[1]) > 1e-6:
            return f"the distance of {row}: DuckDB has {known}", 0
        if not are_equal_rows(row[2:], known[2:], [1e-6] * len(row)):
            return f"{row}: DuckDB has {known}", 0
        if row[1] < last - 1e-6:
            return f"{row} comes after a distance of {last}", 0
        if exact and abs(row[1] - right[1]) > 1e-5 * max(1, abs(right[1])):
            return f"{row} in the place of {right}", 0
        last = row[1]
    farthest = wanted[-1][1] if wanted else 0
    found = sum(row[1] <= farthest + 1e-6 for row in ours)
    return None, found
