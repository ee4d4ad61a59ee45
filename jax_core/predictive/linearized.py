r"""The linearised predictive $f(x) \sim \mathcal N(f_{\theta^*}(x), J \Sigma J^\top)$ (Immer et al., arXiv:2008.08400).

The covariance is exact: the Jacobian of each example is materialised a few examples at a time, and for a low-rank
posterior $J \Sigma J^\top = (J J^\top - (JU) \operatorname{diag}(\tfrac{m}{1+m}) (JU)^\top) / \tau$, not sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jax_core.compiled import as_data
from jax_core.footprint import footprint
from jax_core.posterior import Posterior
from jax_core.trees import get_size
from jax_core.types import ModelFn, Params

_ROW_BYTES = 12 * 2**20  # Jacobian rows held at a time: they and their gradients stay below the 32 MiB cliff
_ACTIVATIONS = 4 * 2**20  # forward activations of the examples behind them, before the axis of outputs
_GROUP = 16  # chunks per compiled loop


class GaussianOutputs(NamedTuple):
    """Mean ``(B, C)`` and covariance ``(B, C, C)`` of the outputs."""

    mean: Float[Array, "B C"]
    covariance: Float[Array, "B C C"]


class Sizes(NamedTuple):
    """Examples per evaluation and evaluations per compiled loop."""

    chunk: int
    group: int


def jacobian(model_fn: ModelFn, params: Params, x: Any) -> tuple[Float[Array, " C"], Float[Array, "C P"]]:
    """Output of one example, flattened, and its Jacobian over the flattened parameters. Traceable."""
    output, pull = jax.vjp(lambda p: model_fn(x, p).reshape(-1), params)

    def row(cotangent: Array) -> Array:
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent)[0])])

    return output, jax.vmap(row)(jnp.eye(output.size, dtype=output.dtype))


def plan_sizes(model_fn: ModelFn, params: Params, example: Any) -> Sizes:
    """Sizes for a model and the shapes of one example."""
    size = footprint(model_fn, params, example)
    outputs = math.prod(jax.eval_shape(model_fn, example, params).shape)
    fitting = min(_ROW_BYTES // max(1, 4 * outputs * get_size(params)), _ACTIVATIONS // max(1, size.bytes))
    if jax.default_backend() != "cpu":
        return Sizes(max(1, fitting * 16), 1)
    # A convolution primitive must not sit in a compiled loop.
    return Sizes(max(1, fitting), 1 if size.convolves else _GROUP)


def linearized_predictive(
    model_fn: ModelFn, posterior: Posterior, finish: Callable[[GaussianOutputs], Any] | None = None
) -> Callable[[Any], Any]:
    """Make the function from a batch of inputs to mean and exact covariance of the outputs.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
        finish: Applied to each chunk's :class:`GaussianOutputs` inside the program, a link for instance; it keeps the
            leading axis. By default mean and covariance are returned.
    """
    return map_jacobians(model_fn, posterior.mean, Partial(_gaussian, as_data(finish or _unchanged), posterior))


def joint_predictive(model_fn: ModelFn, posterior: Posterior) -> Callable[[Any], GaussianOutputs]:
    r"""Make the function from a batch of inputs to mean ``(B, C)`` and joint covariance ``(B, C, B, C)``.

    $\operatorname{cov}(f_a(x_i), f_b(x_j)) = J_{ia} \Sigma J_{jb}^\top$: what averages, differences and rankings of
    predictions need. All rows of the batch are held at once, ``B C P`` numbers.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        posterior: Of any structure.
    """
    rows_of = map_jacobians(model_fn, posterior.mean, _pair)

    def predict(inputs: Any) -> GaussianOutputs:
        mean, rows = rows_of(inputs)
        flat = posterior.output_covariance(rows.reshape(-1, rows.shape[-1]))
        return GaussianOutputs(mean, flat.reshape(*mean.shape, *mean.shape))

    return predict


def _pair(outputs: Array, rows: Array) -> tuple[Array, Array]:
    return outputs, rows


def map_jacobians(
    model_fn: ModelFn, params: Params, function: Callable[[Array, Array], Any], *, sizes: Sizes | None = None
) -> Callable[[Any], Any]:
    """Make the function from a batch of inputs to ``function(outputs, jacobians)``, a few examples at a time.

    Batches of any size share one compiled program, which walks over the chunks of a piece of fixed size and leaves out
    those that are padding.

    Args:
        model_fn: ``model_fn(input, params)`` for one example.
        params: Where to linearise.
        function: From outputs ``(b, C)`` and Jacobians ``(b, C, P)`` to a pytree with leading axis ``b``. What it and
            ``model_fn`` bind as a ``Partial`` become arguments of the compiled program.
        sizes: Examples per evaluation and evaluations per loop; chosen from the model's size by default.
    """
    model, last = as_data(model_fn), as_data(function)

    def run(inputs: Any) -> Any:
        total = jax.tree.leaves(inputs)[0].shape[0]
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
        chunk, group = sizes or plan_sizes(model, params, example)
        if total == 0:
            one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 1, *leaf.shape), leaf.dtype), example)
            shapes = jax.eval_shape(_evaluate, model, last, params, one, 1)
            return jax.tree.map(lambda s: jnp.zeros((0, *s.shape[1:]), s.dtype), shapes)
        piece = chunk * group
        padded = jax.tree.map(lambda leaf: _pad(leaf, -total % piece), inputs)
        parts = [
            _evaluate(
                model,
                last,
                params,
                jax.tree.map(lambda leaf, at=start: _cut(leaf, at, piece, chunk), padded),
                -(-min(piece, total - start) // chunk),
            )
            for start in range(0, total, piece)
        ]
        joined = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == total else leaf[:total], joined)

    return run


@jax.jit
def _evaluate(model_fn: ModelFn, function: Callable[..., Any], params: Params, inputs: Any, count: Any) -> Any:
    """The first ``count`` chunks of a piece, whose leaves have shape ``(group, chunk, ...)``; the rest stays zero."""

    def evaluate(i: Any) -> Any:
        xs = jax.tree.map(lambda leaf: leaf[i], inputs)
        return function(*jax.vmap(lambda x: jacobian(model_fn, params, x))(xs))

    group = jax.tree.leaves(inputs)[0].shape[0]
    if group == 1:
        return evaluate(0)
    empty = jax.tree.map(lambda s: jnp.zeros((group, *s.shape), s.dtype), jax.eval_shape(evaluate, 0))

    def store(i: Any, results: Any) -> Any:
        return jax.tree.map(lambda buffer, new: buffer.at[i].set(new), results, evaluate(i))

    # The number of rounds is an argument: one program serves batches of every size.
    filled = jax.lax.fori_loop(0, count, store, empty)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), filled)


def _gaussian(finish: Callable[..., Any], posterior: Posterior, mean: Array, rows: Array) -> Any:
    return finish(GaussianOutputs(mean, posterior.output_covariance(rows)))


def _unchanged(outputs: GaussianOutputs) -> GaussianOutputs:
    return outputs


def _pad(leaf: Array, missing: int) -> Array:
    return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


def _cut(leaf: Array, start: int, size: int, chunk: int) -> Array:
    # The start is an argument of this small program; a static slice would be compiled anew for each.
    piece = jax.lax.dynamic_slice_in_dim(leaf, start, size)
    return piece.reshape(-1, chunk, *piece.shape[1:])
