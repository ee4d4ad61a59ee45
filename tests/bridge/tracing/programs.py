"""Random small programs: torch modules put together from a table of expressions, each checked to run in torch.

An expression is written for the hidden values `h`, batch first. In braces: `axis`, an axis of a sample; `weight`, a
parameter shaped like a sample; `row`, one as long as the last axis; `last` and `first`, the lengths of a sample's last
and first axis; `flag`, true or false; `number`, a number between -1.5 and 1.5.
"""

from __future__ import annotations

import itertools
import random
import string
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ANY = (1, 2, 3)
SHAPES = [(5,), (6,), (4, 3), (3, 6), (2, 5, 4), (3, 4, 4)]

EXPRESSIONS: dict[tuple[int, ...], list[str]] = {
    ANY: """
        F.relu(h) | F.gelu(h) | F.silu(h) | F.elu(h, 0.7) | F.celu(h, 1.3) | F.selu(h) | F.mish(h) | F.softplus(h, 2)
        F.leaky_relu(h, {number}) | F.hardtanh(h, -0.4, 0.6) | F.hardswish(h) | F.hardsigmoid(h) | F.logsigmoid(h)
        F.softshrink(h, 0.3) | F.hardshrink(h, 0.3) | F.threshold(h, 0.1, -1.0) | F.tanhshrink(h) | F.softsign(h)
        F.gelu(h, approximate="tanh") | torch.sigmoid(h) * h | torch.tanh(h + {weight}) | F.prelu(h, {row}[:1])
        torch.sin(h) + torch.cos(h) | torch.exp(-h.abs()) | torch.log1p(h.abs()) | torch.sqrt(h.abs() + 0.1)
        torch.erf(h) | torch.expm1(h.clamp(max=1)) | torch.atan(h) | torch.sinh(h.clamp(-2, 2)) | torch.sinc(h)
        torch.rsqrt(h * h + 1) | torch.lgamma(h.abs() + 1) | torch.sign(h) * h.square() | torch.frac(h) + h
        h.round() + h | torch.trunc(2 * h) - h | h % 0.7 | torch.fmod(h, 0.6) + h
        torch.remainder(h, {weight}.abs() + 0.3) | torch.div(h, 0.4, rounding_mode="floor") + h
        torch.lerp(h, {weight}, 0.3) | torch.lerp(h, {weight}, h.sigmoid()) | torch.atan2(h, {weight})
        torch.hypot(h, {weight}) | torch.logaddexp(h, {weight}) | torch.copysign(h, {weight})
        torch.maximum(h, {weight}) | torch.minimum(h, {weight}) + h | h.clamp(-0.5, 0.8) | h.clamp(min={weight})
        torch.where(h > {weight}, h, {weight}) | torch.where(h > 0, h, {number}) | h.masked_fill(h < -0.5, 0.2)
        torch.addcmul(h, h, {weight}, value=0.4) | torch.addcdiv(h, h, {weight}.abs() + 1)
        torch.xlogy(h.abs(), h.abs() + 1) | h ** 2 | h.abs() ** 1.5 | (h.abs() + 0.5) ** -1 | 2 ** h.clamp(-2, 2)
        (h.abs() + 0.2) ** {weight} | h ** 3 | h * {weight} + {weight} | h - {number} | {number} - h
        h / (2 + {weight}.abs()) | 1 / (h.abs() + 0.5) | -h | h.sum({axis}, keepdim=True) + h
        h.mean({axis}, keepdim=True) * h | h - h.mean({axis}, keepdim=True) | h.amax({axis}, keepdim=True) + h
        h.amin({axis}, keepdim=True) + h | h.max({axis}, keepdim=True)[0] + h
        h.var({axis}, keepdim=True, correction={flag}) + h | h.std({axis}, keepdim=True, unbiased=False) + h
        h.prod({axis}, keepdim=True) + h | h.logsumexp({axis}, keepdim=True) + h
        h.norm(dim={axis}, keepdim=True) + h | h.norm(p=1, dim={axis}, keepdim=True) * h
        h.norm(p=3, dim={axis}, keepdim=True) + h | F.normalize(h, dim={axis}) | h.softmax({axis})
        h.log_softmax({axis}) | h.cumsum({axis}) | h.tanh().cumprod({axis}) | h.logcumsumexp({axis})
        h.median({axis}, keepdim=True)[0] + h | h.sort({axis}, descending={flag})[0] | h * h.argsort({axis})
        h.topk(2, {axis})[0] | h.flip({axis}) | h.roll(1, {axis}) | h.roll((1, 2), (0, {axis})) * 0 + h
        h.flip(0) * 0 + h | torch.cat([h, 2 * h], {axis}) | torch.cat(h.chunk(2, {axis})[::-1], {axis})
        h.narrow({axis}, 0, 2) | h.unflatten({axis}, (-1, 1)).sum({axis} + 1)
        torch.stack([h, h.relu()], {axis}).sum({axis}) | h.repeat_interleave(2, {axis})
        h.index_select({axis}, torch.tensor([1, 0, 1])) | h.gather({axis}, (h > 0).long())
        h.scatter_add({axis}, torch.zeros_like(h, dtype=torch.long), h) | h.movedim({axis}, -1) | h.detach() * h
        h + h.detach().sin() | (h * 4).long() % 3 + h | h * (h * 3).int() // 2 | (h > 0) * h + (h < {number})
        h * h.shape[0] / (1 + h.shape[0]) | h.flatten(1) | h.squeeze({axis}) | h.unsqueeze({axis}).sum({axis})
        h.contiguous() * 2 | F.dropout(h, 0.5, False) | F.pad(h, (1, 2)) | F.pad(h, (0, 1), value={number})
        h[..., ::2] | h[..., 1:] * 2 | h[..., -2:] | torch.einsum("b...,b...->b...", h, h)
        h.tril() if h.dim() > 2 else h | h.diff(dim={axis}) | F.glu(torch.cat([h, h], {axis}), {axis})
        h * 2 if h.shape[0] > 1 else h - 1 | h + 1 if h.shape[0] % 2 else 2 * h | h.reshape(h.shape[0], -1, 1).sum(2)
        h.mean(0) * 0 + h | h[:1] * 0.5 + h | h.sum(0, keepdim=True).tanh() + h
        h - h.mean(0) if h.shape[0] > 1 else h
    """,
    (1,): """
        F.linear(h, torch.outer({row}, {row})) | h.outer({row}[:0]) if h.dim() == 1 else h | h @ {row}[:, None]
        h[:, None] * {row}[:, None] | (h[:, :, None] * h[:, None]).flatten(1) | h.view(h.shape[0], -1, 1)
        F.one_hot(h.argmax(-1), {last}) * h | torch.cdist(h[:, :, None], h[:, :, None] + 1).sum(-1)
        F.embedding(h.argmax(-1), torch.outer({row}, {row})) + h
    """,
    (2,): """
        h.transpose(1, 2) | h @ h.transpose(1, 2) | torch.einsum("bij,bkj->bik", h, h) | h.mean(1) | h[:, 0]
        h[:, -1] * 2 | F.scaled_dot_product_attention(h, h, h.flip(1))
        F.scaled_dot_product_attention(h, h, h, is_causal=True) | F.avg_pool1d(h, 2, 1) | F.max_pool1d(h, 2, 1)
        F.adaptive_avg_pool1d(h, 2) | F.adaptive_max_pool1d(h, 2) | F.interpolate(h, scale_factor=2)
        F.interpolate(h, size=7, mode="linear") | F.layer_norm(h, h.shape[2:]) | h.unfold(2, 2, 1).sum(-1)
        F.pad(h, (1, 1), mode="reflect") | F.pad(h, (2, 1), mode="replicate") | h.permute(0, 2, 1).flatten(1)
    """,
    (3,): """
        h.permute(0, 2, 3, 1) | h.mean((2, 3)) | h.flatten(2).transpose(1, 2) | h.amax((1, 2)) | F.avg_pool2d(h, 2)
        F.max_pool2d(h, 2, 1) | F.adaptive_avg_pool2d(h, (2, 3)) | F.interpolate(h, scale_factor=2)
        F.interpolate(h, size=(5, 3), mode="bilinear", align_corners={flag})
        F.pixel_shuffle(h.repeat(1, 4, 1, 1), 2) | F.unfold(h, 2, padding=1)
        F.pad(h, (1, 0, 1, 1), mode="replicate") | h.mean((-1, -2), keepdim=True) + h | F.local_response_norm(h, 2)
        F.group_norm(h, {first}) | F.instance_norm(h) | h * {weight}.mean((1, 2), keepdim=True)
    """,
}  # fmt: skip

MODULES: dict[tuple[int, ...], list[str]] = {
    ANY: ["nn.Linear({last}, 4)", "nn.Linear({last}, {last}, bias=False)", "nn.LayerNorm({last})", "nn.PReLU()"],
    (1,): [
        *("nn.BatchNorm1d({first})", "nn.Sequential(nn.Linear({last}, 3), nn.Tanh())"),
        *("nn.Bilinear({last}, {last}, 3)", "nn.Softmax(-1)"),
    ],
    (2,): [
        *("nn.Conv1d({first}, 3, 2)", "nn.Conv1d({first}, {first}, 3, padding=1, groups={first})"),
        *("nn.BatchNorm1d({first})", "nn.ConvTranspose1d({first}, 2, 2, stride=2)"),
        *("nn.TransformerEncoderLayer({last}, 1, 4, batch_first=True)", "nn.GRU({last}, 3, batch_first=True)"),
        *("nn.LSTM({last}, 2, batch_first=True, bidirectional=True)", "nn.RNN({last}, 3, batch_first=True)"),
    ],
    (3,): [
        *("nn.Conv2d({first}, 4, 3, padding=1)", "nn.Conv2d({first}, 2, 2, stride=2, bias=False)"),
        *("nn.Conv2d({first}, 2, 1)", "nn.BatchNorm2d({first})", "nn.ConvTranspose2d({first}, 2, 2, stride=2)"),
        *("nn.GroupNorm(1, {first})", "nn.InstanceNorm2d({first}, affine=True)", "nn.Upsample(scale_factor=2)"),
    ],
}  # fmt: skip


class Program(nn.Module):
    """A random program; `str` gives its source."""

    def __init__(self, seed: int, steps: int = 4) -> None:
        super().__init__()
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.shape = self.random.choice(SHAPES)
        self.weights, self.layers = nn.ParameterList(), nn.ModuleList()
        self.lines: list[str] = []
        self._scale = f"h * {self._parameter(self.shape)} + {self._parameter(self.shape)}"
        self.lines.append(self._scale)
        for _ in range(self.random.randint(2, steps)):
            self._grow()
        self.double().eval()
        self.codes = [compile(line, "<program>", "eval") for line in self.lines]

    def __str__(self) -> str:
        layers = "".join(f"\n  layers[{i}] = {layer}" for i, layer in enumerate(self.layers))
        return f"x: (batch, {', '.join(map(str, self.shape))}){layers}" + "".join(f"\n  h = {x}" for x in self.lines)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: Any = x
        for code in self.codes:
            h = eval(code, {"torch": torch, "F": F, "nn": nn}, {"self": self, "h": h})
            h = h[0] if isinstance(h, tuple) else h
        return h

    def batch(self, size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
        """Random samples."""
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(size, *self.shape, dtype=torch.float64, generator=generator)

    def _grow(self) -> None:
        """Add a line that runs on batches of five and of two, and gives finite numbers, not too many."""
        for _ in range(30):
            lengths = len(self.weights), len(self.layers), len(self.lines)
            shape = tuple(self._run(2).shape[1:])
            try:
                self.lines.append(self._line(shape))
                five, two = self._run(5), self._run(2)
                if _is_fine(five, 5) and _is_fine(two, 2) and five.shape[1:] == two.shape[1:]:
                    return
            except Exception:  # not for this shape
                pass
            self.weights, self.layers, self.lines = (
                nn.ParameterList(itertools.islice(self.weights, lengths[0])),
                nn.ModuleList(itertools.islice(self.layers, lengths[1])),
                self.lines[: lengths[2]],
            )

    def _run(self, size: int) -> torch.Tensor:
        self.codes = [compile(line, "<program>", "eval") for line in self.lines]
        self.double().eval()
        with torch.no_grad():
            return self(self.batch(size, size))

    def _line(self, shape: tuple[int, ...]) -> str:
        ranks = [rank for rank in (ANY, (1,), (2,), (3,)) if len(shape) in rank]
        if self.random.random() < 0.2:
            template = self.random.choice(MODULES[self.random.choice(ranks)])
            layer = eval(self._filled(template, shape), {"nn": nn})
            self.layers.append(layer)
            operands = "h, h" if isinstance(layer, nn.Bilinear) else "h"
            return f"self.layers[{len(self.layers) - 1}]({operands})"
        lines = EXPRESSIONS[self.random.choice(ranks)].strip().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
        choices = [part.strip() for line in lines for part in line.split(" | ")]
        return self._filled(self.random.choice(choices), shape)

    def _filled(self, template: str, shape: tuple[int, ...]) -> str:
        axis = self.random.randint(1, len(shape))
        fixed = {"axis": axis, "last": shape[-1], "first": shape[0], "flag": self.random.random() < 0.5}
        parts = []
        for text, name, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if name in ("weight", "row"):
                parts.append(self._parameter(shape if name == "weight" else shape[-1:]))
            elif name == "number":
                parts.append(str(round(self.random.uniform(-1.5, 1.5), 2)))
            elif name is not None:
                parts.append(str(fixed[name]))
        return "".join(parts)

    def _parameter(self, shape: tuple[int, ...]) -> str:
        self.weights.append(nn.Parameter(torch.randn(shape, dtype=torch.float64) * 0.7))
        return f"self.weights[{len(self.weights) - 1}]"


def _is_fine(h: Any, size: int) -> bool:
    h = h[0] if isinstance(h, tuple) else h
    return (
        h.is_floating_point()
        and 1 < h.dim() < 5
        and len(h) == size
        and 0 < h[0].numel() < 200
        and bool(h.isfinite().all())
    )
