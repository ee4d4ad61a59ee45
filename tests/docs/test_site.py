"""The site: every public name is on it, its extensions do what they say, and it builds without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import subprocess
import sys
import zlib

import pytest

import bridge
import jax_core
from tests.docs.pages import DOCS, ROOT


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = module_at(DOCS / "_ext" / "reference.py")
check_site = module_at(ROOT / "scripts" / "check_site.py")
PUBLIC = {f"{package.__name__}.{name}" for package in (bridge, jax_core) for name in package.__all__}


def listed():
    return [f"{place}.{name}" for names in reference.names_by_part().values() for place, name in names]


def test_every_public_name_is_in_the_reference_once():
    assert set(listed()) >= PUBLIC
    assert len(listed()) == len(set(listed()))


def test_every_part_of_the_reference_has_a_title():
    found = {part for part, names in reference.names_by_part().items() if names}
    assert found <= reference.BRIDGE.keys() | reference.CORE.keys()


@pytest.mark.parametrize("package", [bridge, jax_core], ids=lambda p: p.__name__)
def test_every_public_name_has_a_docstring(package):
    assert not [name for name in package.__all__ if callable(v := getattr(package, name)) and not v.__doc__]


def test_formulas_in_docstrings_become_roles():
    extension = module_at(DOCS / "_ext" / "docstrings.py")
    assert doctest.testmod(extension).failed == 0
    assert ".. math:: a + b" in extension.formulas("before $$a\n  + b$$ after")


def test_every_page_is_in_the_table_of_contents():
    contents = (DOCS / "index.md").read_text().splitlines()
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    assert pages <= set(contents)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here">', None),
        ('<a href="https://example.org/">', None),
        ('<a href="gone.html">', "leads nowhere"),
        ('<a href="../outside.html">', "leads nowhere"),
        ('<a href="other.html#gone">', "names no place"),
        ('<img src="gone.png">', "leads nowhere"),
        ('<script src="https://example.org/x.js"></script>', "fetched from elsewhere"),
        ('<link href="//example.org/x.css">', "fetched from elsewhere"),
    ],
)
def test_links_of_a_site_are_checked(tmp_path, body, complaint):
    (tmp_path / "site").mkdir()
    (tmp_path / "outside.html").write_text("")
    (tmp_path / "site" / "other.html").write_text('<p id="there">')
    (tmp_path / "site" / "page.html").write_text(f'<p id="here">{body}')
    found = check_site.complaints(tmp_path / "site")
    assert [complaint in line for line in found] == [True] if complaint else not found


@pytest.mark.slow
def test_site_builds_without_a_warning_and_holds_every_public_name(tmp_path):
    how = ["--builder", "html", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *how, str(DOCS), str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert check_site.complaints(tmp_path) == []
    inventory = zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    assert set(listed()) <= {line.split(" ")[0] for line in inventory.splitlines()}
