"""The two CNNs in torch, and what a user has done before Laplace comes: training and temperature scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

WEIGHT_DECAY = 1e-4  # optax's default for AdamW, which the tutorial uses; torch's own is 1e-2


def seed_cnn() -> nn.Sequential:
    """The tutorial's network: 28,714 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.AvgPool2d(3, 1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def docs_cnn() -> nn.Sequential:
    """The larger network of the flax documentation: 824,458 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding="same"),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def small_cnn() -> nn.Sequential:
    """A tenth of the tutorial's arithmetic, for examples of half a minute: 13,066 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 10),
    )


MODELS = {"seed": seed_cnn, "nnx-docs": docs_cnn}


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _batches(size: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` full batches: a new shuffle each epoch, its remainder dropped."""
    epoch = size // batch_size
    for step in range(steps):
        if step % epoch == 0:
            order = torch.randperm(size, generator=generator)
        yield order[step % epoch * batch_size :][:batch_size]


def descend(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> None:
    """Steps down a loss of all data at once."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """AdamW on shuffled batches, epoch after epoch, for a number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    # One thread: batches of 32 gain little from a second, and lose twentyfold to it where cores are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for index in tqdm(_batches(len(labels), batch_size, steps, generator), "train", steps, disable=quiet):
        loss = F.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    model.eval()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature whose softmax has the least negative log-likelihood on held-out samples.

    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, arXiv:1706.04599.
    """
    log_temperature = torch.zeros((), requires_grad=True)  # the logarithm keeps it positive
    optimizer = torch.optim.LBFGS([log_temperature], line_search_fn="strong_wolfe", max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log_temperature.exp(), labels)
        value.backward()
        return value

    optimizer.step(loss)
    return float(log_temperature.detach().exp())
