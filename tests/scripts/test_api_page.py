"""The page of public names is the one that its script writes."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_api_page_is_current_and_every_name_is_documented():
    spec = importlib.util.spec_from_file_location("make_api_page", ROOT / "scripts" / "make_api_page.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "api.md").read_text() == script.page(), "run python scripts/make_api_page.py"
    for module in (script.bridge, script.jax_core):
        for name in module.__all__:
            value = getattr(module, name)
            assert not callable(value) or value.__doc__, f"{name} has no docstring"
