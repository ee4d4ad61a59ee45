"""Docstrings as this project writes them: `$...$` is a formula, a role names what is there.

A role may name an object by any path under which Python finds it: `jax_core.lowrank.lanczos.lanczos`, `LowRank`, or
`fit` within its class. What is on the site is linked; what is not public is set as code; what is not there
is a warning.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

OURS = ("bridge", "jax_core")
# what stands between backticks is no formula, whatever it holds
TOKENS = re.compile(r"(``.+?``|`[^`]+`)|\$\$(.+?)\$\$|\$([^$]+?)\$", flags=re.DOTALL)
COLON = "\ue000"  # of no script: stands for a colon while others read


def formulas(text: str) -> str:
    """`$x$` as a role, `$$x$$` as a directive.

    >>> formulas("of $x$, not ``$x``")
    'of :math:`x`, not ``$x``'
    """

    def written(match: re.Match[str]) -> str:
        code, block, inline = match.groups()
        if code:
            return code
        if block:
            return f"\n\n.. math:: {' '.join(block.split())}\n\n"
        return f":math:`{' '.join(inline.split())}`"

    return TOKENS.sub(written, text)


def _before_napoleon(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    # which would take what stands before a property's first colon for its type
    if lines and what in ("attribute", "data", "property"):
        lines[0] = lines[0].replace(":", COLON)


def _after_napoleon(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    lines[:] = formulas("\n".join(lines).replace(COLON, ":")).split("\n")


def _paths(node: addnodes.pending_xref) -> Iterator[str]:
    """Where the name may stand: as it is, in its class, in its module, in any module of ours."""
    target = node["reftarget"]
    yield target
    for context in (node.get("py:class"), node.get("py:module")):
        if context:
            yield f"{context}.{target}"
    if node.get("py:module") and node.get("py:class"):
        yield f"{node['py:module']}.{node['py:class']}.{target}"
    yield from (f"{name}.{target}" for name in sorted(sys.modules) if name.split(".")[0] in OURS)


def _object(path: str) -> object | None:
    """What Python has under a dotted path, of the modules that are loaded."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        found = sys.modules.get(".".join(parts[:cut]))
        if found is None:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = getattr(found, part, fields.get(part))
            if found is None:
                break
        else:
            return found
    return None


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """A link to the object under its name on the site; its name alone if it is not public."""
    if node.get("refdomain") != "py":
        return None
    documented = env.domains.python_domain.objects
    in_signature = isinstance(node.parent, addnodes.desc_sig_name | addnodes.desc_annotation | addnodes.desc_parameter)
    in_signature = in_signature or _within(node, addnodes.desc_signature)
    for path in _paths(node):
        found = _object(path)
        if found is None:
            continue
        names = {path} | {f"{package}.{_qualified(found, path)}" for package in OURS}
        for name in sorted(names & documented.keys()):
            entry = documented[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)
        if not in_signature:
            return contnode
    return contnode if in_signature else None


def _qualified(found: object, path: str) -> str:
    return getattr(found, "__qualname__", path.rsplit(".", 1)[-1])


def _within(node: nodes.Node, kind: type[nodes.Element]) -> bool:
    while node.parent is not None:
        if isinstance(node, kind):
            return True
        node = node.parent
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
