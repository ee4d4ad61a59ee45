"""What tracing promises about the model, the traced function and bad input."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridge.tensors import to_jax
from bridge.tracing import (
    MismatchError,
    MissingLoweringError,
    TraceError,
    explain,
    lowers,
    trace,
)
from bridge.tracing.lowering import LOWERINGS


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3)
    )


def digits(n=3):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def same(got, wanted, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got), wanted.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tracer", ["export", "torch2jax", "auto"])
def test_any_batch_size_after_tracing_with_one(tracer):
    model = cnn().eval()
    traced = trace(model, digits(3), tracer=tracer)
    for n in (1, 2, 7):
        same(traced.apply(traced.params, to_jax(digits(n))), model(digits(n)))


def test_vmap_over_single_examples_equals_the_batch():
    model = cnn().eval()
    traced = trace(model, digits(1))
    out = jax.vmap(lambda x: traced.apply(traced.params, x[None])[0])(to_jax(digits(5)))
    same(out, model(digits(5)))


def test_a_traced_model_passes_through_jit_as_a_pytree():
    traced = trace(cnn(), digits())
    x = to_jax(digits())
    jitted = jax.jit(lambda traced, x: traced.apply(traced.params, x))
    np.testing.assert_allclose(jitted(traced, x), traced.apply(traced.params, x), rtol=1e-5, atol=1e-6)


def test_weights_are_never_literals_of_the_program():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    traced = trace(model, torch.randn(2, 64))
    program = jax.make_jaxpr(traced.function)(traced.buffers, traced.params, jnp.ones((2, 64)))
    assert set(traced.params) == {"1.weight", "1.bias"}
    assert set(traced.buffers) == {"0.weight", "0.bias"}
    assert not any(np.size(constant) > 1 for constant in program.consts)


def test_the_model_is_never_changed():
    model = cnn().train()
    model[3].eval()
    model(digits()).sum().backward()
    model[0].weight.grad.fill_(3.0)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    trace(model, digits())
    explain(model, digits())
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert bool((model[0].weight.grad == 3.0).all())


def test_cudnn_is_off_while_a_model_is_traced_and_back_afterwards():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(torch.backends.cudnn.enabled)
            return super().forward(x)

    assert torch.backends.cudnn.enabled
    trace(Watched(3, 2), torch.randn(2, 3))
    assert torch.backends.cudnn.enabled and seen and not any(seen)


def test_modes_are_restored_after_a_failure():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout()

        def forward(self, x):
            raise RuntimeError("no such thing")

    model = Broken().train()
    with pytest.raises(TraceError, match="no such thing"):
        trace(model, torch.ones(2, 2))
    assert model.training and model.inner.training


def test_training_on_does_not_change_the_traced_arrays():
    model = nn.Linear(2, 2)
    traced = trace(model, torch.ones(2, 2))
    before = np.array(traced.params["weight"])
    with torch.no_grad():
        model.weight.add_(1)
    np.testing.assert_array_equal(before, traced.params["weight"])


def test_tied_weights_are_one_entry_and_collect_both_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    traced = trace(Tied(), torch.randn(2, 3))
    assert set(traced.params) == {"first.weight"}


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Options(nn.Module):
    """Several inputs, some optional, and a dataclass for an output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x, ids=None, keep=True):
        out = self.linear(x) * self.scale
        if ids is not None:
            out = out + ids[:, None]
        return Output(out if keep else -out)


torch.export.register_dataclass(Output)


def test_keyword_inputs_come_as_one_mapping():
    model = Options()
    x, ids = torch.randn(4, 3), torch.arange(4)
    traced = trace(model, {"x": x, "ids": ids})
    out = traced.apply(traced.params, {"ids": to_jax(ids), "x": to_jax(x)})
    same(out["logits"], model(x, ids).logits)
    assert out["hidden"] is None
    with pytest.raises(TypeError, match="keyword inputs"):
        traced.apply(traced.params, {"x": to_jax(x)})


def test_inputs_that_are_no_tensors_are_fixed():
    model = Options()
    x, ids = torch.randn(4, 3), torch.arange(4)
    traced = trace(model, (x, ids, False))
    same(traced.apply(traced.params, to_jax(x), to_jax(ids), False)["logits"], model(x, ids, False).logits)
    with pytest.raises(ValueError, match="fixed by tracing"):
        traced.apply(traced.params, to_jax(x), to_jax(ids), True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype):
    traced = trace(cnn().to(dtype), digits().to(dtype))
    assert traced.apply(traced.params, to_jax(digits().to(dtype))).dtype == to_jax(torch.ones(1, dtype=dtype)).dtype


def test_float64_needs_x64():
    model, x = cnn().double(), digits().double()
    with pytest.raises(TraceError, match="jax_enable_x64"):
        trace(model, x)
    with jax.enable_x64(True):
        assert trace(model, x).params["0.weight"].dtype == jnp.float64


def test_wrapped_modules_are_looked_through():
    model = cnn()
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        assert set(trace(wrapped, digits(), verify=False).params) == set(dict(model.named_parameters()))


def test_parametrized_modules_are_traced_with_their_own_parameters():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert "0.parametrizations.weight.original0" in trace(model, torch.randn(2, 3)).params


def test_a_wrong_shape_or_dtype_is_refused():
    traced = trace(cnn(), digits())
    with pytest.raises(ValueError, match=r"traced for \(batch, 1, 8, 8\)"):
        traced.apply(traced.params, jnp.ones((2, 1, 9, 9)))
    with pytest.raises(TypeError, match="Convert it to float32"):
        traced.apply(traced.params, jnp.ones((2, 1, 8, 8), int))
    with pytest.raises(TypeError, match="to_jax"):
        traced.apply(traced.params, digits())


@torch.library.custom_op("bridge_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(lambda x: torch.empty_like(x))
twice.register_autograd(lambda context, gradient: gradient * 2, setup_context=lambda ctx, inputs, output: None)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return twice(self.linear(x))


def test_an_operator_without_a_lowering_is_named_and_can_be_registered():
    operator = torch.ops.bridge_tests.twice.default
    model = nn.Sequential(Twice())
    with pytest.raises(MissingLoweringError, match=r"bridge_tests\.twice.*model\.0(.|\n)*lowers\(torch\.ops"):
        trace(model, torch.ones(2, 2))
    assert explain(model, torch.ones(2, 2)).missing == ("bridge_tests.twice.default",)
    try:
        lowers(operator)(lambda x: x * 2)
        trace(model, torch.ones(2, 2))
        lowers(operator)(lambda x: x * 3)
        with pytest.raises(MismatchError, match="In float64"):
            trace(model, torch.ones(2, 2))
    finally:
        LOWERINGS.pop(operator, None)


def test_a_mismatch_in_gradients_alone_is_refused():
    operator = torch.ops.bridge_tests.twice.default
    try:
        lowers(operator)(lambda x: jax.lax.stop_gradient(x) * 2)
        with pytest.raises(MismatchError, match="gradients"):
            trace(Twice(), torch.ones(2, 2))
    finally:
        LOWERINGS.pop(operator, None)


def test_a_mapping_among_the_inputs_may_come_in_any_order():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, given):
            return self.left(given["z"]) + self.right(given["a"])

    model = Nested().eval()
    z, a = torch.randn(3, 4), torch.randn(3, 2)
    traced = trace(model, ({"z": z, "a": a},))
    for x in ({"z": z, "a": a}, {"a": a, "z": z}):
        same(jax.jit(traced.apply)(traced.params, to_jax(x)), model(x))  # jit sorts them
