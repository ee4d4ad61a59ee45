"""What the pages around the code say of it: versions, extras, sizes of pages, commands that exist."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, quoted, rows

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = (DOCS / "install.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["authors"]
    assert (cited["title"], str(cited["version"])) == (PROJECT["name"], PROJECT["version"])
    assert cited["license"] == PROJECT["license"]


def test_changelog_speaks_of_this_version():
    assert PROJECT["version"] in re.findall(r"^## .*", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]


def test_every_extra_is_explained():
    assert set(PROJECT["optional-dependencies"]) <= {name for left, _ in rows(INSTALL) for name in quoted(left)}


def test_supported_versions_are_those_that_pip_is_told():
    table = INSTALL[INSTALL.index("## Supported versions") :]
    for requirement in PROJECT["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)\W=([\d.]+)", requirement).groups()
        shown = re.search(rf"^\| {name} \|(.*)", table, flags=re.MULTILINE)
        if name in ("torch", "jax", "jaxlib", "numpy", "scipy", "safetensors"):
            assert shown and bound in shown.group(1), requirement
    for version in re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])):
        assert version in table


@pytest.mark.parametrize(("page", "lines"), [("README.md", 120), ("CONTRIBUTING.md", 50)])
def test_page_is_short(page, lines):
    assert len((ROOT / page).read_text().splitlines()) <= lines


def test_commands_that_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, flags=re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE)}
    assert named and named <= targets


def test_all_pages_say_one_time_for_the_tests():
    said = {line.split(":")[-1].strip() for p in PAGES for line in p.read_text().splitlines() if "make test " in line}
    assert len(said) == 1, said
