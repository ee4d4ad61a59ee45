"""Rows from kept linearisations are those of Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.gradients.factored import FactoredRows
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.pullbacks import linearize
from jax_core.gradients.weight_order import find_order, in_order
from tests.cases import attention, cnn, dense_jacobian, mlp


def always(leaf, sides):
    return True


def never(leaf, sides):
    return False


@pytest.mark.parametrize("worth", [always, never])
@pytest.mark.parametrize("make", [mlp, cnn, attention])
def test_pullbacks_that_outlive_their_program_give_the_jacobians_rows(x64, make, worth):
    case = make()
    example = jax.tree.map(lambda leaf: leaf[0], case.inputs)
    order = find_order(case.model_fn, case.params, example)
    model, params = in_order(case.model_fn, order), order.of(case.params)
    layout = find_layout(model, params, example, worth)
    pulls, right = jax.jit(lambda p, x: linearize(model, p, x, layout))(params, case.inputs)
    exact = dense_jacobian(case)[..., order.positions(case.params)]
    apply = jax.jit(lambda pulls, cotangents: pulls(cotangents))
    for c in range(exact.shape[1]):
        cotangent = jnp.zeros(exact.shape[:2]).at[:, c].set(1.0)
        plain, left = apply(pulls, cotangent)
        rows = FactoredRows(plain[:, None], tuple(part[:, None] for part in left), tuple(right), layout)
        np.testing.assert_allclose(rows.dense()[:, 0], exact[:, c], atol=1e-10)
        np.testing.assert_allclose(rows.written().dense()[:, 0], exact[:, c], atol=1e-10)


def test_what_examples_share_is_kept_once(x64):
    case = mlp()
    layout = find_layout(case.model_fn, case.params, case.inputs[0], never)
    pulls, _ = linearize(case.model_fn, case.params, case.inputs, layout)
    assert all(len(leaf) == len(case.inputs) for leaf in pulls.own)
    weights = [leaf.shape for leaf in jax.tree.leaves(case.params) if leaf.ndim > 1]
    assert not any(leaf.shape[1:] in weights for leaf in pulls.own)
