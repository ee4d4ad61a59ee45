"""Lightning trains a network; its ``Trainer.test`` then scores a Laplace in its place. Offline, half a minute."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning
import pictures
import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from bridge import Laplace

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def moons(count: int, seed: int) -> DataLoader:
    x, y = make_moons(count, noise=0.3, random_state=seed)
    return DataLoader(TensorDataset(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)), batch_size=32)


class Network(lightning.LightningModule):
    """As one writes it for the network: nothing in here knows of a posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch, _) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Scored(lightning.LightningModule):
    """What ``Trainer.test`` runs, under inference_mode: probabilities from the network or from its posterior."""

    def __init__(self, probabilities: nn.Module) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.metrics = MetricCollection(
            {"accuracy": MulticlassAccuracy(2, average="micro"), "ece": MulticlassCalibrationError(2)}
        )

    def test_step(self, batch, _) -> None:
        p = self.probabilities(batch[0])
        self.log("nll", nn.functional.nll_loss(p.log(), batch[1]))
        self.metrics.update(p, batch[1])
        self.log_dict(self.metrics)


def trainer(**options) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


def main(epochs: int = 150, folder: Path = pictures.RESULTS) -> None:
    warnings.filterwarnings("ignore", module="lightning")  # its advice about worker processes
    lightning.seed_everything(0, verbose=False)
    network, train = Network(), moons(100, seed=0)
    trainer(max_epochs=epochs).fit(network, train)

    la = Laplace(network, hessian_structure="full", progress=False).fit(train)
    la.optimize_prior_precision(val_loader=moons(100, seed=1))

    scores: dict[str, dict[str, float]] = {"NLL": {}, "ECE": {}}
    print(f"{'method':10}{'accuracy':>9}{'NLL':>8}{'ECE':>8}")
    for name, predict in (("network", nn.Sequential(network, nn.Softmax(1))), ("Laplace", la)):
        (found,) = trainer().test(Scored(predict), moons(500, seed=2), verbose=False)
        print(f"{name:10}{found['accuracy']:9.3f}{found['nll']:8.3f}{found['ece']:8.3f}")
        scores["NLL"][name], scores["ECE"][name] = found["nll"], found["ece"]
    pictures.bars(scores, "score of 500 test points", folder, "lightning_test")
    mistake()


def mistake() -> None:
    """Targets as decimal numbers, as a regression has them."""
    x, y = moons(32, seed=0).dataset.tensors
    try:
        Laplace(Network(), progress=False).fit(DataLoader(TensorDataset(x, y.float()), batch_size=16))
    except (TypeError, ValueError) as error:
        print(f"\nClasses as decimal numbers:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
