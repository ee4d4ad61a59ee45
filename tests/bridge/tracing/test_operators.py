"""Functions of tensors have torch's value, vjp and jvp in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bridge.tracing.oracle import assert_carried

pytestmark = pytest.mark.in_turns


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.function(x * self.weight)


def write_slices(x):
    y = x.clone()
    y[:, 1:3] = y[:, 0:2] * 3
    y[..., 0] += 1
    return y


def write_transposed(x):
    y = x.clone()
    y.transpose(1, 2).mul_(2)[:, 0].zero_()
    return y


def write_view(x):
    y = x.clone()
    y.view(-1, 16).relu_()
    return y


def write_indexed(x):
    y = x.clone()
    y[:, torch.tensor([0, 2])] = 5.0
    return y


def write_masked(x):
    y = x.clone()
    y[y > 0] = 0.0
    return y


def without_gradient(x):
    with torch.no_grad():
        scale = x.sum(-1, keepdim=True).sin()
    return x * scale


def columns(x, *values):
    return torch.tensor(values).expand(x.shape[0], *torch.tensor(values).shape[1:])


FUNCTIONS = {
    "bmm": lambda x: torch.bmm(x, x.mT),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "einsum ellipsis": lambda x: torch.einsum("...ij->...ji", x),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(2),
    "sort": lambda x: x.sort(-1, descending=True),
    "topk": lambda x: x.topk(2, 1, largest=False),
    "gather": lambda x: x.gather(1, columns(x, [[0, 1], [1, 1]])),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, columns(x, [[0, 1, 2], [1, 2, 0]]), x[:, :2, :3]),
    "scatter_add": lambda x: x.scatter_add(1, torch.zeros_like(x, dtype=torch.long), x),
    "index": lambda x: x[:, torch.tensor([0, 1]), torch.tensor([2, 0])],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 0]), x[:, :2]),
    "where": lambda x: torch.where(x > 0, x, 1.0),
    "clamp": lambda x: x.clamp(-0.1, 0.1),
    "norm 1": lambda x: x.norm(p=1, dim=1),
    "norm 2": lambda x: x.norm(dim=-1),
    "norm 3": lambda x: x.norm(p=3, dim=(1, 2)),
    "norm inf": lambda x: x.norm(p=float("inf"), dim=-1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "max": lambda x: x.max(-1),
    "amax": lambda x: x.amax((1, 2)),
    "std": lambda x: x.std(-1),
    "var_mean": lambda x: torch.var_mean(x, 1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "prod": lambda x: x.prod(-1),
    "median": lambda x: x.median(-1)[0],
    "flip and roll": lambda x: x.flip(1).roll((1, -2), (1, 2)),
    "tril": lambda x: x.tril(-1) + x.triu(1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "chunks": lambda x: (*x.chunk(3, 1), *x.split([1, 2, 1], 2), *x.unbind(2)),
    "unflatten": lambda x: x.unflatten(2, (-1, 2)).sum(1) + x.unflatten(-2, (2, -1)).sum(3),
    "swapaxes": lambda x: torch.swapaxes(x, -1, 1),
    "stack and cat": lambda x: torch.cat([torch.stack([x, x * 2], 1).flatten(1, 2), x], 1),
    "unfold": lambda x: x.unfold(1, 3, 1),
    "im2col": lambda x: F.unfold(x[:, None], (2, 3), 1, 1, (1, 2)),
    "col2im": lambda x: F.fold(F.unfold(x[:, None], 2, 1, 1), (4, 4), 2, 1, 1),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x[:, :, None], 2), 2),
    "pad": lambda x: F.pad(F.pad(x, (1, 2), mode="reflect"), (-1, 1, 1, 0), value=2.0),
    "cdist": lambda x: torch.cdist(x, x * 2 + 1),
    "solve": lambda x: torch.linalg.solve(x + 5 * torch.eye(4, dtype=x.dtype), x),
    "reflections": lambda x: torch.linalg.householder_product(x[..., :3], x[..., 0, :3]),
    "slogdet": lambda x: torch.linalg.slogdet(x + 5 * torch.eye(4, dtype=x.dtype))[1],
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x.unflatten(1, (4, 1)), x[:, :2, None], x[:, 2:, None], enable_gqa=True
    ),
    "a row masked out": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(4).bool() & (torch.arange(4) > 1)),
    "writes into slices": write_slices,
    "writes into a transpose": write_transposed,
    "writes into a view": write_view,
    "writes by index": write_indexed,
    "writes by mask": write_masked,
    "detach": lambda x: x.detach() * x,
    "no_grad": without_gradient,
    "powers": lambda x: x.abs() ** 2.5 + x**2 + 2**x,
    "rounding": lambda x: torch.div(x, 0.3, rounding_mode="floor") + x % 0.7 + x.frac(),
    "a flag on shapes": lambda x: x * 2 if x.shape[1] > 3 else x,
    "sizes": lambda x: x * x.shape[0] + x.numel() / x.shape[0],
    "meshgrid": lambda x: x + torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")[0],
    "casts": lambda x: x.float().double() + (x * 3).long(),
    "logaddexp": lambda x: torch.logaddexp(x, x * 2) + torch.hypot(x, x + 1) + torch.maximum(x, x.flip(1)),
    "interpolate antialiased": lambda x: F.interpolate(x[:, None], size=(2, 3), mode="bicubic", antialias=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_torchs(name):
    generator = torch.Generator().manual_seed(5)
    assert_carried(Function(FUNCTIONS[name]), torch.randn(2, 4, 4, dtype=torch.float64, generator=generator))
