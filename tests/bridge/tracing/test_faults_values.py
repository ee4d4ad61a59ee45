"""Values and derivatives where implementations differ: at zero, at ties, at NaN and infinity, beyond a type's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bridge.tensors import to_jax
from bridge.tracing import TraceError, trace

pytestmark = pytest.mark.in_turns

NAN, INF = float("nan"), float("inf")
SPECIAL = torch.tensor(
    [0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, 20.0, INF, -INF, NAN], dtype=torch.float64
)
ORDINARY = SPECIAL[:11]  # at which derivatives are compared: kinks and ties, but numbers


class Pointwise(nn.Module):
    """A function of tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


def both(function, *values):
    """Outputs and gradients by torch and by JAX; traced on ordinary values."""
    model = Pointwise(function)
    with jax.enable_x64(True):
        traced = trace(model, tuple(torch.full_like(value, 0.75) for value in values), verify=False)
        given = [value.clone().requires_grad_() for value in values]
        wanted = model(*given)
        got, pullback = jax.vjp(lambda *xs: traced.apply({}, *xs), *map(to_jax, values))
        if not wanted.requires_grad:
            return got, wanted, []
        grads = torch.autograd.grad(wanted.sum(), given, materialize_grads=True, allow_unused=True)
        return got, wanted, list(zip(pullback(jnp.ones_like(got)), grads, strict=True))


def same(got, wanted):
    np.testing.assert_allclose(np.asarray(got), wanted.detach().numpy(force=True), rtol=1e-7, atol=1e-10)


UNARY = {
    **{name: getattr(torch, name) for name in ("abs", "sign", "sgn", "sinc", "sqrt", "i0", "round", "frac")},
    **{name: getattr(torch.special, name) for name in ("entr", "expit", "ndtr")},
    **{name: getattr(F, name) for name in ("relu", "elu", "celu", "selu", "softshrink", "hardshrink", "tanhshrink")},
    **{name: getattr(F, name) for name in ("hardswish", "hardtanh", "relu6", "softplus", "silu", "gelu", "leaky_relu")},
    "threshold": lambda x: F.threshold(x, 0.5, -2.0),
    "logit": lambda x: torch.logit(x.clamp(0, 1), eps=0.25),
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp crossed": lambda x: x.clamp(2, -1),
    "clamp min": lambda x: x.clamp(min=0),
    "square root": lambda x: x.abs() ** 0.5,
    "root of minus infinity": lambda x: torch.where(x == -INF, x, 1.0) ** 0.5,
    "power zero": lambda x: x**0,
    "inverse": lambda x: (x + 0.25) ** -2,
    "rounded decimals": lambda x: x.round(decimals=1),
    "remainder": lambda x: x % 0.7,
    "lerp": lambda x: torch.lerp(x, 2 * x, 0.7),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number_are_torchs_at_special_points(name):
    got, wanted, _ = both(UNARY[name], SPECIAL)
    same(got, wanted)
    for ours, gradient in both(UNARY[name], ORDINARY)[2]:
        same(ours, gradient)


BINARY = {
    **{name: getattr(torch, name) for name in ("atan2", "copysign", "hypot", "maximum", "minimum", "xlogy")},
    "xlog1py": torch.special.xlog1py,
    "power": lambda x, y: torch.pow(x.abs(), y),
    "clamp": lambda x, y: x.clamp(min=y),
    "clamp both": lambda x, y: x.clamp(y, y + 1),
    "where": lambda x, y: torch.where(x > y, x, y),
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers_are_torchs_at_special_points(name):
    x, y = (a.reshape(-1) for a in torch.meshgrid(ORDINARY, ORDINARY, indexing="ij"))
    got, wanted, gradients = both(BINARY[name], x, y)
    same(got, wanted)
    for ours, gradient in gradients:
        same(ours, gradient)


ROWS = torch.tensor(
    [[1, 2, 3, 4], [0, 0, 0, 0], [2, 2, 1, 1], [NAN, 1, 2, 3], [1, NAN, 0, NAN], [INF, 1, 2, 3], [-INF] * 4],
    dtype=torch.float64,
)
MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
REDUCTIONS = {
    **{f"norm {p}": lambda x, p=p: x.norm(p=p, dim=1) for p in (0, 1, 2, 3, INF, -INF)},
    **{f"var {c}": lambda x, c=c: x.var(1, correction=c) for c in (0, 1, 4)},
    "std 5": lambda x: x.std(1, correction=5).detach() + 0 * x.sum(1),
    "amax": lambda x: x.amax(1),
    "max": lambda x: x.max(1)[0],
    "median": lambda x: x.median(1)[0],
    "median of all": lambda x: x.median() + 0 * x.nan_to_num(0, 0, 0).sum(1),
    "linear": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="linear"),
    "aligned": lambda x: F.interpolate(x[:, None], size=7, mode="linear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x[:, None, None].expand(-1, 1, 4, 4), size=(5, 6), mode="bicubic"),
    "antialiased": lambda x: F.interpolate(
        x[:, None, None].expand(-1, 1, 4, 4), size=(3, 2), mode="bilinear", antialias=True
    ),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x[:, None], 3),
    "masked attention": lambda x: F.scaled_dot_product_attention(*[x[:, None, :, None]] * 3, attn_mask=MASK),
    "softmax": lambda x: x.softmax(1),
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_neither_swallow_nor_spread_what_is_no_number(name):
    got, wanted, _ = both(REDUCTIONS[name], ROWS)
    same(got, wanted)
    if name not in ("var 4", "std 5"):  # infinite themselves
        for ours, gradient in both(REDUCTIONS[name], ROWS[:3])[2]:
            same(ours, gradient)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_casts_beyond_the_range_give_what_torch_gives(dtype):
    beyond = torch.tensor([127.5, 128, -2.55, 255, 256, 300, -129, 32768, 40000, -70000, INF, -INF, NAN])
    got, wanted, _ = both(lambda x: x.detach().to(dtype) + (0 * x).detach().nan_to_num().to(dtype), beyond.double())
    np.testing.assert_array_equal(np.asarray(got), wanted.numpy())


def test_integers_are_computed_as_torch_computes_them():
    class Powers(nn.Module):
        def forward(self, i):
            return i**4.0, i * 0.1, i / 3, i > 2.5

    model, i = Powers(), torch.tensor([[300], [7]])
    traced = trace(model, torch.tensor([[1], [2]]))
    for got, wanted in zip(traced.apply({}, to_jax(i)), model(i), strict=True):
        assert got.dtype == to_jax(wanted).dtype
        np.testing.assert_allclose(np.asarray(got), wanted.numpy(), rtol=3e-7)


def test_a_comparison_rounds_to_torchs_type_first():
    class Above(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("low", torch.tensor(0.1, dtype=torch.float64))

        def forward(self, x):
            return (x > self.low) * 1.0

    with jax.enable_x64(True):
        traced = trace(Above(), torch.randn(2, 3))
        assert float(traced.apply({}, jnp.full((1, 3), 0.1, jnp.float32)).sum()) == 0


HASHES = {
    "powers": lambda i: (i * 31 + 7) ** 3 % 101,
    "a large constant": lambda i: i * 2654435761 % 101,
    "large primes": lambda i: ((i * 73856093) ^ (i.flip(1) * 19349663)) % 101,
    "shifts": lambda i: (i << 20) % 101,
    "large offsets": lambda i: (i + 2147483647) % 101,
    "large floats": lambda i: (i.float() * 1e6).long() % 101,
}


@pytest.mark.parametrize("name", HASHES)
def test_hashed_indices_do_not_overflow_without_64_bits(name):
    class Hashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(101, 2)

        def forward(self, i):
            return self.embedding(HASHES[name](i))

    model, i = Hashed(), torch.tensor([[300, 70000], [5, 2**31 - 1]])
    traced = trace(model, torch.tensor([[1, 2], [3, 4]]))
    wanted = model(i)
    for apply in (traced.apply, jax.jit(traced.apply)):
        got = apply(traced.params, to_jax(i))
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(got), wanted.detach().numpy())
    wanted.sum().backward()
    ours = jax.jit(jax.grad(lambda p: traced.apply(p, to_jax(i)).sum()))(traced.params)
    np.testing.assert_allclose(ours["embedding.weight"], model.embedding.weight.grad.numpy())


class Reads(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.table, self.read = nn.Parameter(torch.arange(8.0).reshape(4, 2)), read

    def forward(self, i):
        return self.read(self.table, i)


READS = {
    "embedding": (lambda w, i: F.embedding(i, w), -1),
    "index_select": (lambda w, i: w.index_select(0, i.flatten()), -1),
    "gather": (lambda w, i: w.gather(0, i), -1),
    "index": (lambda w, i: w[i], -5),
    "scatter": (lambda w, i: w.scatter(0, i, torch.zeros(i.shape)), -1),
    "index_add": (lambda w, i: w.index_add(0, i.flatten(), torch.ones(i.numel(), 2)), -1),
}


@pytest.mark.parametrize("name", READS)
def test_an_index_out_of_range_raises_where_it_is_known(name):
    read, low = READS[name]
    model = Reads(read)
    traced = trace(model, torch.tensor([[0, 1], [2, 3]]))
    for bad in (low, 4, 99):
        i = torch.tensor([[bad, 0], [1, 2]])
        with pytest.raises((IndexError, RuntimeError)):
            model(i)
        with pytest.raises(IndexError, match=f"{bad} is out of range for an axis of length 4"):
            traced.apply(traced.params, to_jax(i))
        if name in ("embedding", "index_select", "gather", "index"):
            assert bool(jnp.isnan(jax.jit(traced.apply)(traced.params, to_jax(i))).any())


@pytest.mark.parametrize("make", [nn.Embedding, lambda *a, **k: nn.EmbeddingBag(*a, mode="sum", **k)])
def test_gradients_by_frequency_are_refused(make):
    with pytest.raises(TraceError, match="scale_grad_by_freq"):
        trace(make(5, 2, scale_grad_by_freq=True), torch.tensor([[0, 1], [2, 3]]))


def test_sparse_gradients_are_compared():
    trace(nn.Embedding(5, 2, sparse=True), torch.tensor([[0, 1], [2, 3]]))
