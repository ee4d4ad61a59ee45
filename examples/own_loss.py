"""A loss of your own: how long machines run, where many are still running when the study ends. Offline, half a minute.

A network gives the logarithm of the rate at which machines of some age and load fail. Of a machine that failed, the
time is known; of one that still runs, only that it is longer than what was seen. The loss is the negative
log-likelihood of one machine, convex in the network's output, and its target is a pair: time, and whether it failed.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pictures
import torch
from matplotlib import pyplot as plt
from models import descend
from torch import Tensor, nn

from bridge import Laplace
from jax_core import Custom


def loss_in_jax(output, target):
    """Of one machine: an exponential time that may be cut short (censored)."""
    time, failed = target
    log_rate = output[0]
    return jnp.exp(log_rate) * time - failed * log_rate


def loss_in_torch(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    time, failed = target
    return (output[:, 0].exp() * time - failed * output[:, 0]).mean()


def log_rate(age: Tensor) -> Tensor:
    """What is to be found out."""
    return 1.5 * torch.sin(age) - 0.5


def machines(count: int, seed: int, until: float = 2.0) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Ages from -3 to 3, none between 0 and 1.5; and times, cut where the study ends."""
    drawn = torch.Generator().manual_seed(seed)
    age = 4.5 * torch.rand(count, 1, generator=drawn) - 3
    age = torch.where(age > 0, age + 1.5, age)
    time = torch.empty(count).exponential_(generator=drawn) / log_rate(age[:, 0]).exp()
    return age, (time.clamp(max=until), (time < until).float())


def trained(x: Tensor, target: tuple[Tensor, Tensor], steps: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    descend(optimizer, lambda: loss_in_torch(model(x), target), steps)
    return model.eval()


def main(count: int = 300, steps: int = 500, folder: Path = pictures.RESULTS) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from a second one
    x, target = machines(count, seed=0)
    model = trained(x, target, steps)
    batches = [(x[part], (target[0][part], target[1][part])) for part in torch.arange(count).split(100)]

    la = Laplace(model, Custom(loss_in_jax), hessian_structure="full", progress=False)
    la.fit(batches)
    la.optimize_prior_precision()  # by the evidence: a loss alone has no predictive density

    ages = torch.linspace(-3, 3, 241)[:, None]
    mean, variance = la(ages, diagonal_output=True)  # of the logarithm of the rate
    gap = (ages[:, 0] > 0) & (ages[:, 0] < 1.5)
    error = (mean - log_rate(ages)).abs()[:, 0]
    found = {}
    print(f"{target[1].mean():.0%} of {count} machines failed; prior precision {la.prior_precision:.3g}")
    print(f"\n{'ages':18}{'mean error':>12}{'mean sd':>9}{'within 2 sd':>13}")
    for name, where in (("with machines", ~gap), ("without machines", gap)):
        sd = variance[where, 0].sqrt()
        found[name] = float(sd.mean())
        inside = float((error[where] < 2 * sd).float().mean())
        print(f"{name:18}{float(error[where].mean()):12.3f}{found[name]:9.3f}{inside:13.3f}")
    draw(ages[:, 0], mean[:, 0], variance[:, 0].sqrt(), x[:, 0], target[1], folder)
    mistake()
    return found


def draw(ages: Tensor, mean: Tensor, sd: Tensor, x: Tensor, failed: Tensor, folder: Path) -> None:
    figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    low, high = (mean - 2 * sd).exp(), (mean + 2 * sd).exp()
    ax.fill_between(ages, low, high, color=pictures.BLUE, alpha=0.3, lw=0, label="2 sd of its logarithm")
    ax.plot(ages, mean.exp(), color=pictures.BLUE, label="network")
    ax.plot(ages, log_rate(ages).exp(), "--", color=pictures.GREY, label="the true rate")
    for state, colour, label in ((1, pictures.RED, "failed"), (0, pictures.GREEN, "still running")):
        ax.plot(x[failed == state], torch.full_like(x[failed == state], 0.02 if state else 0.015), "|", color=colour)
        ax.plot([], [], "|", color=colour, label=f"machines: {label}")
    ax.set(xlabel="age (standardised)", ylabel="failures per year", yscale="log", ylim=(0.01, 30))
    ax.legend(ncols=2, loc="upper left")
    pictures.save(figure, folder, "own_loss")


def mistake() -> None:
    """A loss of torch that is flat for outliers: they would count as if they had not been seen."""
    try:
        Laplace(nn.Linear(1, 1), likelihood=nn.HuberLoss())
    except ValueError as error:
        print(f"\nA loss whose Hessian vanishes:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
