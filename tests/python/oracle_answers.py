"""Runs statements in cellql, many to a process, and in DuckDB."""

import json
import math
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

PROCESSES = 2
PATIENCE = 300  # seconds for one process


@dataclass
class Answer:
    rows: list = field(default_factory=list)
    error: str = ""
    types: list = field(default_factory=list)


class Cellql:
    """The program on a store. Rows are lists of values, in the order of the statement's columns `c0`, `c1`, …"""

    def __init__(self, program, store, old_json=False):
        self.program, self.store, self.old_json = program, store, old_json

    def answers(self, statements):
        """The answers to statements (text, number of columns), by several processes at once."""
        with ThreadPoolExecutor(PROCESSES) as pool:
            parts = [statements[i::PROCESSES] for i in range(PROCESSES)]
            done = list(pool.map(self.run_all, parts))
        return [done[i % PROCESSES][i // PROCESSES] for i in range(len(statements))]

    def run_all(self, statements):
        """Runs a script; where a statement fails, the rest runs in another process."""
        answers = []
        while len(answers) < len(statements):
            rest = statements[len(answers):]
            done, error = self.script(rest)
            answers += done
            if len(done) < len(rest):
                answers.append(Answer(error=error or "no answer"))
        return answers

    def script(self, statements):
        """The answers up to the first statement that fails, and its error. A marker follows each statement."""
        with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as file:
            for i, (text, _) in enumerate(statements):
                file.write(f"{text};\nSELECT 'marker-{i}' AS marker;\n")
            file.flush()
            command = [self.program, "sql", self.store, "--quiet", "--format", "ndjson", "-f", file.name]
            try:
                out = subprocess.run(command, capture_output=True, timeout=PATIENCE)
                text, error = out.stdout, out.stderr.decode("utf-8", "replace").strip()
                error = error and f"exit status {out.returncode}: {error}"
            except subprocess.TimeoutExpired as late:
                text, error = late.stdout or b"", f"no answer in {PATIENCE} s"
        answers, lines = [], []
        for line in text.decode("utf-8").split("\n")[:-1]:
            if line == f'{{"marker":"marker-{len(answers)}"}}':
                answers.append(self.parsed(lines, statements[len(answers)][1]))
                lines = []
            else:
                lines.append(line)
        return answers, error

    def parsed(self, lines, columns):
        names = [f"c{i}" for i in range(columns)]
        rows = [json.loads(line) for line in lines]
        for row in rows:
            if not (set(row) <= set(names) if self.old_json else list(row) == names):
                return Answer(error=f"the columns are {list(row)}, not {names}")
        return Answer([[row.get(name) for name in names] for row in rows])


def as_old_json(value):
    """What programs write that have no NaN and no infinities in JSON."""
    if isinstance(value, list):
        return [as_old_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duck_answer(duck, text, old_json=False):
    try:
        result = duck.execute(text)
        types = [str(column[1]) for column in result.description]
        rows = [list(row) for row in result.fetchall()]
        return Answer([as_old_json(row) for row in rows] if old_json else rows, types=types)
    except Exception as error:
        return Answer(error=f"{type(error).__name__}: {error}")
