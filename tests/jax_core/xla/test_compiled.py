"""What is remembered by shape may only see shapes, of what a model binds too."""

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from jax_core.data.batches import Batch
from jax_core.gradients.jacobian_maps import map_jacobians
from jax_core.gradients.jacobian_stream import plan_jacobians
from jax_core.gradients.jacobians import find_layout
from jax_core.gradients.weight_order import find_order
from jax_core.xla.backend import platform
from jax_core.xla.chunks import forward_cost
from jax_core.xla.compiled import cached_by_shape

MODEL = Partial(lambda shift, x, p: (x + shift + 1.0) @ p["w"], jnp.ones(4))
PARAMS, INPUTS = {"w": jnp.ones((4, 3))}, jnp.ones((5, 4))


def test_found_once_for_equal_shapes():
    seen = []
    count = cached_by_shape(lambda x, *, scale: seen.append(x.shape) or scale * x.size)
    assert [count(jnp.ones(3), scale=2), count(jnp.zeros(3), scale=2), count(jnp.ones(3), scale=3)] == [6, 6, 9]
    assert seen == [(3,), (3,)]


def test_found_anew_for_another_backend(monkeypatch):
    found = cached_by_shape(lambda x: platform())
    assert found(INPUTS) == jax.default_backend()
    monkeypatch.setattr(jax, "default_backend", lambda: "elsewhere")
    assert found(INPUTS) == "elsewhere"
    with jax.default_device(jax.devices("cpu")[0]):
        assert found(INPUTS) == "cpu"


@pytest.mark.parametrize(
    "look",
    [
        lambda model: jax.eval_shape(model, INPUTS[0], PARAMS).shape == (3,),
        lambda model: forward_cost(model, PARAMS, INPUTS[0]).bytes > 0,
        lambda model: find_order(model, PARAMS, INPUTS[0]).axes == ((1, 0),),
        lambda model: find_layout(model, PARAMS, INPUTS[0]).size == 12,
    ],
)
def test_shapes_suffice_of_what_a_model_binds(look):
    assert cached_by_shape(look)(MODEL)


def test_plans_take_models_that_bind_arrays():
    layout = find_layout(MODEL, PARAMS, INPUTS[0])
    assert plan_jacobians(MODEL, PARAMS, Batch(INPUTS, jnp.zeros(5, int)), layout=layout).block > 0
    assert map_jacobians(MODEL, PARAMS, lambda mean, rows: rows.sum((1, 2)))(INPUTS).shape == (5,)
