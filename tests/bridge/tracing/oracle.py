"""Judges of traced models: torch's values and derivatives in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bridge.tensors import to_jax
from bridge.tracing import trace
from bridge.tracing.outputs import plain


def randomized(model):
    """The model in float64 and eval mode, with no parameter or statistic at a special value."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise + 0.5 if "var" in name else noise - 0.5)
    return model


def assert_carried(model, inputs, tolerance=1e-9):
    """Value, vjp and jvp in float64 against torch, on another batch size than the traced one too."""
    model = randomized(model)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with jax.enable_x64(True):
        traced = trace(model, inputs, verify=False)
        for batch in (inputs, tuple(torch.cat([x, x[:1]]) for x in inputs)):
            compare(model, traced, batch, tolerance)


def compare(model, traced, inputs, tolerance):
    generator = torch.Generator().manual_seed(1)
    outputs = [x for x in jax.tree.leaves(plain(model(*inputs))) if isinstance(x, torch.Tensor)]
    arrays = tuple(to_jax(x) for x in inputs)
    tangents = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in traced.params.items()}
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs]

    @jax.jit
    def run(params, tangents, cotangents):
        def function(params):
            leaves = jax.tree.leaves(traced.apply(params, *arrays))
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)], leaves

        _, pushed = jax.jvp(lambda p: function(p)[0], (params,), (tangents,))
        _, pullback, leaves = jax.vjp(function, params, has_aux=True)
        floats = [c for c, x in zip(cotangents, leaves, strict=True) if jnp.issubdtype(x.dtype, jnp.floating)]
        return leaves, sum((a * b).sum() for a, b in zip(pushed, floats, strict=True)), pullback(floats)[0]

    got, contracted, gradients = run(traced.params, to_jax(tangents), to_jax(cotangents))
    for a, b in zip(got, outputs, strict=True):
        assert a.shape == tuple(b.shape)
        assert close(a, b, tolerance), f"values differ by {error(a, b):.1e}"
    params = {k: p for k, p in model.named_parameters() if k in traced.params}
    pairs = [(x, c) for x, c in zip(outputs, cotangents, strict=True) if x.requires_grad]
    if not params or not pairs:
        return
    total = sum((x * c).sum() for x, c in pairs)
    wanted = torch.autograd.grad(total, list(params.values()), allow_unused=True, materialize_grads=True)
    scale = max(float(g.norm()) for g in wanted) + 1e-12
    directional = 0.0
    for (name, _), gradient in zip(params.items(), wanted, strict=True):
        # torch's own derivatives of hardsigmoid and celu hold float32 constants: 3e-8
        assert float(np.linalg.norm(np.asarray(gradients[name]) - gradient.numpy())) <= 1e-7 * scale, name
        directional += float((gradient * tangents[name]).sum())
    bound = 1e-7 * scale * sum(float(t.norm()) for t in tangents.values())
    assert abs(float(contracted) - directional) <= bound, "jvp"


def error(a, b):
    b = b.detach().numpy()
    return float(np.linalg.norm(np.asarray(a, np.float64) - b) / max(np.linalg.norm(b), 1e-6))


def close(a, b, tolerance):
    return error(a, b) <= tolerance
