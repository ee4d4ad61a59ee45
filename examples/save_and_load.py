"""Keep a posterior on disk in three ways, and go on with a fit that was killed. Offline, half a minute.

The network stays where its owner keeps it: a file of ``bridge.save`` holds the curvature and the hyperparameters, none
of the data, and a hash of the weights that it belongs to.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pictures
import torch
from digits import torch_digits
from matplotlib import pyplot as plt
from models import small_cnn, train
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bridge
from bridge import Laplace


class Unreliable:
    """A loader whose disk is gone after some batches."""

    def __init__(self, loader: DataLoader, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        for number, batch in enumerate(self.loader):
            if number == self.batches:
                raise ConnectionError("the disk is gone")
            yield batch


def described(model: nn.Module) -> Laplace:
    """What is fitted, or loaded into: the same description both times."""
    # cache="none" reads the loader anew in each pass, as with data beyond memory
    return Laplace(model, hessian_structure="ekfac", cache="none", progress=False)


def main(digits: int = 2_000, steps: int = 500, folder: Path = pictures.RESULTS) -> dict[str, float]:
    torch.manual_seed(0)
    training, held_out, test = torch_digits(digits, 500, 200)
    loader, x = DataLoader(training, batch_size=100), test.tensors[0]
    model = small_cnn()
    train(model, *training.tensors, steps=steps, learning_rate=1e-3, quiet=True)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - start

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        # 1. a fit that is killed goes on from its last state; the loader must show the same batches again
        killed = Unreliable(loader, batches=len(loader) // 2)
        try:
            described(model).fit(killed, checkpoint=place / "state")
        except ConnectionError as error:
            print(f"the fit stopped: {error}")
        resumed = described(model)
        resumed.fit(loader, checkpoint=place / "state")

        la = described(model)
        timed("fit", lambda: la.fit(loader))
        la.optimize_prior_precision(val_loader=DataLoader(held_out, batch_size=250))
        resumed.prior_precision, resumed.logit_temperature = la.prior_precision, la.logit_temperature
        resumed.link_approx = la.link_approx

        # 2. a file without pickle, for a process that has the model
        timed("bridge.save", lambda: bridge.save(la, place / "posterior.safetensors"))
        loaded = described(model)
        timed("bridge.load", lambda: bridge.load(place / "posterior.safetensors", loaded))
        size = (place / "posterior.safetensors").stat().st_size

        # 3. as in any module: the network's weights and the posterior together
        torch.save(la.state_dict(), place / "all.pt")
        both = described(small_cnn())
        both.load_state_dict(torch.load(place / "all.pt"))

    wanted = la(x)
    print(f"a file of {size / 1e6:.2f} MB for {la.order.size:,} weights")
    print(f"\n{'posterior':16}{'largest difference of a probability':>36}")
    found = {}
    for name, other in (("resumed", resumed), ("bridge.load", loaded), ("state_dict", both)):
        found[name] = float((other(x) - wanted).abs().max())
        print(f"{name:16}{found[name]:36.1e}")
    draw(seconds, folder)
    mistake()
    return found


def draw(seconds: dict[str, float], folder: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
    bars = ax.barh(list(seconds), list(seconds.values()), color=pictures.BLUE)
    ax.bar_label(bars, [f"{s:.2g} s" for s in seconds.values()], padding=3)
    ax.set(xlabel="seconds", xlim=(0, 1.15 * max(seconds.values())))
    ax.invert_yaxis()
    pictures.save(figure, folder, "save_and_load")


def mistake() -> None:
    """The network was trained on after the posterior was saved."""
    model = nn.Linear(4, 3)
    la = Laplace(model, hessian_structure="full", progress=False).fit([(torch.randn(8, 4), torch.arange(8) % 3)])
    with tempfile.TemporaryDirectory() as place:
        bridge.save(la, f"{place}/posterior.safetensors")
        with torch.no_grad():
            model.weight += 0.1
        try:
            bridge.load(f"{place}/posterior.safetensors", Laplace(model, hessian_structure="full"))
        except ValueError as error:
            print(f"\nA posterior of other weights:\n  {str(error).replace(place, '...')}")


if __name__ == "__main__":
    main(folder=pictures.folder())
