"""The page for users of laplax: a row for each of its public names, names that exist."""

import ast
import functools
import itertools
import pathlib

import jax
import jax.experimental.sparse.linalg
import jax.numpy as jnp
import laplax
import pytest

import jax_core
from tests.docs.pages import DOCS, path_of, quoted, rows

PAGE = (DOCS / "how-to" / "from_laplax.md").read_text()
ROOT = pathlib.Path(laplax.__file__).parent
# what the page writes that is a name of neither library
OTHERS = {"jax": jax, "jnp": jnp, "itertools": itertools, "tuple": tuple, "int": int, "str": str}
SPOKEN = {"flatten", "unflatten", "results", "structures", "cache", "batch_size", "block_size", "special_pred_type"}
SPOKEN |= {"metrics_dict", "mc_pred_act", "special_pred_act", "scatter", "use_correction", "data_batch_size", "laplace"}
SPOKEN |= {"cov_mv", "scale_mv", "sample", "logdet", "to_dense_batch_size", "diagonal_batch_size", "reduction"}


def public_names(path):
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_public_name_of_laplax_has_a_row(path):
    named = {name for left, _ in rows(PAGE) for name in quoted(left)}
    assert {name for name in public_names(path) if not name.startswith("_")} <= named


def test_what_to_call_here_is_there():
    known = vars(jax_core) | OTHERS | {"jax_core": jax_core}
    missing = []
    for _, right in rows(PAGE):
        for token in quoted(right):
            first, *rest = path_of(token)
            if not first or first in SPOKEN:
                continue
            try:
                functools.reduce(getattr, rest, known[first])
            except (KeyError, AttributeError):
                missing.append(token)
    assert not missing
