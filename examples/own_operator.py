"""A network with an operator of your own, which JAX knows nothing of. Offline, a quarter of a minute.

The operator is registered with torch as its manual says, with a gradient and a rule for shapes. One more function says
the same in ``jax.numpy``; a fit then compares outputs and gradients with torch's before it believes it.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pictures
import torch
from matplotlib import pyplot as plt
from models import descend
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace


@torch.library.custom_op("examples::soft_clip", mutates_args=())
def soft_clip(x: Tensor, limit: float) -> Tensor:
    """Numbers as they are near zero, and never beyond the limit."""
    return limit * torch.tanh(x / limit)


@soft_clip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


def remember(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.limit = inputs[1]


def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
    (output,) = ctx.saved_tensors
    return gradient * (1 - (output / ctx.limit) ** 2), None


soft_clip.register_autograd(backward, setup_context=remember)


def in_jax(x, limit):
    return limit * jnp.tanh(x / limit)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(soft_clip(self.second(soft_clip(self.first(x), 2.0)), 2.0))


def spirals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places in the plane, and on which of two arms they lie."""
    drawn = torch.Generator().manual_seed(seed)
    arm = torch.arange(count) % 2
    turn = 4.5 * torch.rand(count, generator=drawn).sqrt()
    angle = turn + torch.pi * arm
    places = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 2
    return places + 0.25 * torch.randn(count, 2, generator=drawn), arm


def trained(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    descend(optimizer, lambda: nn.functional.cross_entropy(model(x), y), steps)
    return model.eval()


def main(count: int = 200, steps: int = 600, folder: Path = pictures.RESULTS) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from a second one
    mistake()  # before the line that registers the operator
    bridge.lowers(torch.ops.examples.soft_clip.default, layout="elementwise")(in_jax)

    x, y = spirals(count, seed=0)
    model = trained(x, y, steps)
    la = Laplace(model, hessian_structure="full", progress=False)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=50))
    la.optimize_prior_precision(val_loader=[spirals(count, seed=1)])

    test_x, test_y = spirals(1_000, seed=2)
    found = {}
    print(f"\n{'method':10}{'accuracy':>9}{'NLL':>8}")
    for name, predict in (("network", lambda x: model(x).softmax(1).detach()), ("Laplace", la)):
        p = predict(test_x)
        found[name] = float(nn.functional.nll_loss(p.log(), test_y))
        print(f"{name:10}{float((p.argmax(1) == test_y).float().mean()):9.3f}{found[name]:8.3f}")
    draw({"network": lambda x: model(x).softmax(1).detach(), "Laplace": la}, x, y, folder)
    return found


def draw(methods, x: Tensor, y: Tensor, folder: Path) -> None:
    side = torch.linspace(-4, 4, 60)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for ax, (name, predict) in zip(axes, methods.items(), strict=True):
        entropy = torch.special.entr(predict(grid)).sum(1).reshape(60, 60).numpy()
        shown = ax.pcolormesh(side.numpy(), side.numpy(), entropy, cmap="cividis", vmin=0, vmax=0.7, rasterized=True)
        for arm, colour in ((0, pictures.ORANGE), (1, "white")):
            ax.plot(*x[y == arm].T.numpy(), ".", color=colour, markeredgecolor="black", markeredgewidth=0.3)
        ax.set(title=name, xlabel="first input", aspect="equal")
    axes[0].set_ylabel("second input")
    figure.colorbar(shown, ax=axes, label="entropy of the prediction (nats)")
    pictures.save(figure, folder, "own_operator")


def mistake() -> None:
    """The operator is used, but nobody has said what it is in JAX."""
    bridge.tracing.lowering.LOWERINGS.pop(torch.ops.examples.soft_clip.default, None)
    try:
        Laplace(Network(), progress=False).fit([spirals(8, seed=0)])
    except bridge.MissingLoweringError as error:
        print(f"A fit before the operator is registered:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
