"""The tables of a page of names, and the code that it shows."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page):
    """`(what the peer calls it, what it is called here)` for each row of two columns."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| ")]
    return [(left.strip(), right.strip()) for left, right in (pair for pair in cells if len(pair) == 2)]


def quoted(cell):
    """Everything between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(page):
    """The blocks of Python."""
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def path_of(token):
    """`a.b.c(...)[0]` -> `["a", "b", "c"]`; empty for what is no name."""
    return re.match(r"[A-Za-z_][\w.]*|", token).group().rstrip(".").split(".")
