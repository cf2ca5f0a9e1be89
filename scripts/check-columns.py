"""Fails where a line of the project's own text is longer than 120 columns.

Tables of Markdown are exempt, since a row cannot be broken; so are lines with a link that is longer itself, and
generated pages.
"""

import re
import subprocess
import sys

LIMIT = 120
KINDS = re.compile(r"\.(rs|md|toml|py|sh|cu|sql)$|(^|/)Makefile$")


GENERATED = ("docs/cli.md", "docs/functions.md")


def is_exempt(path, line):
    if path in GENERATED:
        return True
    return path.endswith(".md") and (line.lstrip().startswith("|") or re.search(r"\S{80,}", line))


def main():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    found = 0
    for path in filter(KINDS.search, listed.stdout.splitlines()):
        try:
            lines = open(path, encoding="utf-8").read().splitlines()
        except FileNotFoundError:
            continue
        for number, line in enumerate(lines, 1):
            if len(line) > LIMIT and not is_exempt(path, line):
                print(f"{path}:{number}: {len(line)} columns, {LIMIT} at most")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
