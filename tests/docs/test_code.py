"""Whatever a page or a docstring shows as Python runs, and gets the message that the page says."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import warnings

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.setups import DOCSTRINGS, WORLDS, arrays

WITH_CODE = [page for page in PAGES if any(block.kind == "python" for block in blocks(page))]
WITH_MISTAKE = [page for page in PAGES if any(":pyobject: mistake" in block.text for block in blocks(page))]


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def run(block: Block, world: dict[str, object]) -> str | None:
    """What a block raises or warns of, as Python would show it."""
    code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            exec(code, world)
        except Exception as error:
            return f"{type(error).__name__}: {on_one_line(str(error))}"
    return f"{seen[0].category.__name__}: {on_one_line(str(seen[0].message))}" if seen else None


def promised(text: str, shown: str) -> bool:
    """Whether a page's message is in what was shown; ` ...` stands for a part that it leaves out."""
    return re.search(".*?".join(map(re.escape, text.split(" ..."))), shown) is not None


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_a_page_run_in_their_order_and_get_the_messages_that_it_shows(page):
    world = WORLDS[str(page.relative_to(ROOT))]()
    all_blocks = blocks(page)
    for block, after in zip(all_blocks, [*all_blocks[1:], None], strict=True):
        if block.kind != "python" or block.not_run:
            continue
        message = after.message if after is not None else None
        shown = run(block, world)
        where = f"{block.page}:{block.line}"
        if message is not None:
            assert shown is not None and promised(message, shown), f"{where}: {shown}"
        else:
            assert shown is None or "Warning: " in shown.split(" ", 1)[0] + " ", f"{where}: {shown}"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", WITH_MISTAKE, ids=lambda p: str(p.relative_to(ROOT)))
def test_mistake_of_a_script_gets_the_message_on_its_page(page):
    all_blocks = blocks(page)
    at = next(i for i, block in enumerate(all_blocks) if ":pyobject: mistake" in block.text)
    script = (page.parent / all_blocks[at].argument).resolve()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        importlib.import_module(script.stem).mistake()
    message = on_one_line(all_blocks[at + 1].text)
    assert all_blocks[at + 1].kind == "text" and promised(message, on_one_line(shown.getvalue())), shown.getvalue()


def test_every_block_can_be_run():
    assert not [f"{b.page}:{b.line}: {b.not_run}" for page in PAGES for b in blocks(page) if b.not_run]


def test_how_to_pages_show_a_mistake_each():
    pages = [page for page in PAGES if page.parent.name == "how-to" and page.stem not in ("index", "libraries")]
    without = [page.name for page in pages if page not in WITH_MISTAKE and not any(b.message for b in blocks(page))]
    assert pages and not without


def with_examples() -> list[str]:
    """The full names of classes and functions whose docstrings hold examples."""
    found = []
    for package in ("bridge", "jax_core"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>>" in (source := path.read_text()):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                found += [f"{module}.{name}" for name in _documented(ast.parse(source))]
    return found


def _documented(node: ast.AST, within: str = "") -> list[str]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            name = f"{within}{child.name}"
            found += [name] if ">>>" in (ast.get_docstring(child) or "") else []
            found += _documented(child, f"{name}.")
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", with_examples())
def test_examples_of_a_docstring_run(name):
    value = pkgutil.resolve_name(name)
    world = DOCSTRINGS.get(name, arrays)()
    example = doctest.DocTestParser().get_doctest(value.__doc__, world, name, None, 0)
    report = io.StringIO()
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.write).failed
    assert failed == 0, report.getvalue()
