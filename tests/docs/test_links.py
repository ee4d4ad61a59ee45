"""Links between files, as a reader of the repository follows them: they lead to a file, and to a heading in it."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT

FILES = sorted({*PAGES, *(p for folder in ("benchmarks", "examples") for p in (ROOT / folder).rglob("*.md"))})
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(path):
    """Without blocks of code and code in lines, in which brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE))


def anchor(heading):
    """As GitHub and this site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path):
    return {anchor(line.lstrip("#").replace("`", "")) for line in path.read_text().splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, place = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        made_at_build = path.is_relative_to(ROOT / "docs" / "reference")
        if not made_at_build and (not path.exists() or (place and place not in anchors(path))):
            wrong.append(link)
    assert not wrong
