"""Check a built site: every link between its pages, with its anchor, leads somewhere, and nothing is fetched.

python scripts/check_site.py site
"""

from __future__ import annotations

import functools
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

# what a browser loads by itself; a link is only followed by a person
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """The anchors, links and fetched files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.fetched += [given[name] for kind, name in FETCHED if kind == tag and name in given]


def complaints(site: Path) -> list[str]:
    """What is wrong, a line each."""

    @functools.cache
    def page(path: Path) -> Page:
        return Page(path.read_text(encoding="utf-8"))

    def wrong(origin: Path, link: str) -> str | None:
        target, anchor = urldefrag(link)
        path = (origin.parent / unquote(urlsplit(target).path)).resolve() if target else origin
        if not path.is_file() or not path.is_relative_to(site):
            return "leads nowhere"
        if anchor and path.suffix == ".html" and unquote(anchor) not in page(path).anchors:
            return "names no place on its page"
        return None

    found = []
    site = site.resolve()
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site)
        for link in page(path).fetched:
            if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc:
                found.append(f"{name}: {link} would be fetched from elsewhere")
        for link in {*page(path).links, *page(path).fetched}:
            if not urlsplit(link).scheme and not urlsplit(link).netloc and (why := wrong(path, link)):
                found.append(f"{name}: {link} {why}")
    return found


if __name__ == "__main__":
    lines = complaints(Path(sys.argv[1]))
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(bool(lines))
