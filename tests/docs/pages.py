"""What the pages hold: their blocks of code, the messages that they promise, their tables and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
FENCE = re.compile(r"^(`{3,}|:{3,})(\{?[\w-]*\}?) *(.*)$")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
# a message on a page: how Python shows an error or a warning
MESSAGE = re.compile(r"(\w+(?:Error|Warning)): ")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page, from the root.
        line: Where its content begins, counted from one.
        kind: What stands behind the fence: `python`, `text`, `{literalinclude}`.
        argument: What follows on the same line: a path, of a directive.
        text: The content.
        before: The last line before it that is not empty.
    """

    page: str
    line: int
    kind: str
    argument: str
    text: str
    before: str

    @property
    def not_run(self) -> str | None:
        """Why the page says that it cannot be run, if it does."""
        found = NOT_RUN.fullmatch(self.before)
        return found and found.group(1)

    @property
    def message(self) -> str | None:
        """The error or warning that it shows, on one line."""
        line = " ".join(self.text.split())
        return line if self.kind == "text" and MESSAGE.match(line) else None


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    lines, found, at, before = path.read_text().splitlines(), [], 0, ""
    while at < len(lines):
        match = FENCE.match(lines[at])
        if match is None:
            before = lines[at].strip() or before
            at += 1
            continue
        fence, kind, argument = match.groups()
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence)
        text = "\n".join(lines[at + 1 : end]) + "\n"
        found.append(Block(str(path.relative_to(ROOT)), at + 2, kind, argument.strip(), text, before))
        before, at = fence, end + 1
    return found


def rows(page: str) -> list[tuple[str, str]]:
    """`(what the peer calls it, what it is called here)` for each row of two columns."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| ")]
    return [(left.strip(), right.strip()) for left, right in (pair for pair in cells if len(pair) == 2)]


def quoted(cell: str) -> list[str]:
    """Everything between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def path_of(token: str) -> list[str]:
    """`a.b.c(...)[0]` -> `["a", "b", "c"]`; empty for what is no name."""
    return re.match(r"[A-Za-z_][\w.]*|", token).group().rstrip(".").split(".")
