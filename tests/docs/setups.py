"""What the blocks of a page find when they run: one small world per page, named by the page.

Names are those that the pages use. Models are tiny, so that all pages together take seconds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
import bridge.subnetworks
import jax_core
from bridge import Laplace

World = dict[str, object]


def loader_of(inputs: torch.Tensor, targets: torch.Tensor, batch: int = 20) -> DataLoader:
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch)


@functools.cache
def trained() -> nn.Module:
    """Three clusters in the plane, and a network that has learnt them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, targets = clusters(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def clusters(seed: int, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    centres = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    return centres[targets] + 0.6 * torch.randn(count, 2, generator=drawn), targets


def classification() -> World:
    return {
        "torch": torch,
        "model": trained(),
        "train_loader": loader_of(*clusters(0)),
        "held_out_loader": loader_of(*clusters(1)),
        "val_loader": loader_of(*clusters(1)),
        "x": clusters(2)[0][:5],
    }


@functools.cache
def _fitted() -> Laplace:
    given = classification()
    return Laplace(given["model"], prior_precision=3.0, progress=False).fit(given["train_loader"])


def fitted() -> World:
    return classification() | {"Laplace": Laplace, "la": _fitted()}


def linear_regression() -> World:
    torch.manual_seed(0)
    inputs = torch.randn(40, 3)
    linear = nn.Linear(3, 1)
    return {
        "torch": torch,
        "Laplace": Laplace,
        "linear": linear,
        "inputs": inputs,
        "regression_loader": loader_of(inputs, inputs[:, :1]),
    }


def tracing() -> World:
    with contextlib.suppress(RuntimeError):  # defined by another page's world in the same process

        @torch.library.custom_op("mylib::scaled_add", mutates_args=())
        def scaled_add(x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x + scale * y

    inputs, _ = clusters(0)
    arrays = {"x": jnp.asarray(inputs.numpy()), "xs": jnp.asarray(inputs.numpy())}
    return {"torch": torch, "jax": jax, "bridge": bridge, "model": trained(), "example_batch": inputs[:4], **arrays}


def sentences() -> World:
    from peft import LoraConfig, get_peft_model

    from tests.integration import tiny

    torch.manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(1, 9, (4, length)),
            "attention_mask": torch.ones(4, length, dtype=torch.long),
            "labels": torch.tensor([0, 1, 0, 1]),
        }
        for length in (5, 7)
    ]
    return {
        "Laplace": Laplace,
        "model": tiny.bert(labels=2),
        "pretrained": tiny.bert(labels=2),
        "get_peft_model": get_peft_model,
        "LoraConfig": LoraConfig,
        "tokenizer": tiny.tokenizer(),
        "texts": ["a good film", "the plot was not very fine indeed"],
        "batches": batches,
        "trainer": SimpleNamespace(get_train_dataloader=lambda: batches),
        "validation_loader": batches[1:],
    }


def tokens() -> World:
    torch.manual_seed(0)
    targets = torch.arange(80).reshape(16, 5) % 3
    targets[:, -1] = -100
    marked = loader_of(torch.randint(10, (16, 5)), targets, batch=8)
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 3))
    return {"Laplace": Laplace, "token_model": model, "marked_loader": marked}


def images() -> World:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    train_loader = loader_of(torch.randn(16, 3, 32, 32), torch.arange(16) % 3, batch=8)
    larger = torch.randn(4, 3, 40, 40)
    model = nn.Sequential(*layers).eval()
    return {"Laplace": Laplace, "model": model, "train_loader": train_loader, "larger_images": larger}


def trained_on() -> World:
    def train_one_more_step(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)

    own = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))  # changed by the page
    return classification() | {"Laplace": Laplace, "model": own, "train_one_more_step": train_one_more_step}


def plain_function() -> World:
    rng = np.random.default_rng(0)

    def data(count: int) -> dict[str, jax.Array]:
        inputs = rng.normal(size=(count, 2)).astype(np.float32)
        noise = 0.3 * rng.normal(size=(count, 1)).astype(np.float32)
        return {"input": jnp.asarray(inputs), "target": jnp.asarray(inputs[:, :1] + noise)}

    train_data = data(20)
    loader = [(train_data["input"][i : i + 5], train_data["target"][i : i + 5]) for i in range(0, 20, 5)]
    return {
        "loader": loader,
        "inputs": train_data["input"][:3],
        "model_fn": lambda input, params: jnp.tanh(input @ params["a"]) @ params["b"],
        "params": {"a": jnp.eye(2, 3), "b": jnp.ones((3, 1))},
        "train_data": train_data,
        "held_out_data": data(20),
        "test_data": data(10),
    }


WORLDS = {
    "README.md": classification,
    "docs/index.md": classification,
    "docs/how-to/finetuned_transformer.md": sentences,
    "docs/how-to/flax_and_equinox.md": plain_function,
    "docs/how-to/from_laplace_torch.md": classification,
    "docs/how-to/from_laplax.md": plain_function,
    "docs/how-to/libraries.md": sentences,
    "docs/how-to/lightning_test.md": trained_on,
    "docs/how-to/timm_last_layer.md": images,
    "docs/how-to/token_classification.md": tokens,
    "docs/ideas/curvature.md": linear_regression,
    "docs/ideas/links.md": fitted,
    "docs/ideas/models.md": tracing,
    "docs/ideas/tracing.md": tracing,
}


def to_trace() -> World:
    return tracing() | {"x": clusters(2)[0][:5], "to_jax": bridge.to_jax}


def on_disk() -> World:
    path = Path(tempfile.mkdtemp()) / "posterior.safetensors"
    return fitted() | {"bridge": bridge, "path": path, "la": copy.deepcopy(_fitted())}


def arrays() -> World:
    return {"jax": jax, "jnp": jnp, "np": np} | {name: getattr(jax_core, name) for name in jax_core.__all__}


# of docstrings that hold examples, by their full name; of the core's, arrays and its public names
DOCSTRINGS = {
    "bridge.checkpoint.load": on_disk,
    "bridge.laplace.Laplace": fitted,
    "bridge.subnetworks.largest_magnitude": lambda: fitted() | {"bridge": bridge},
    "bridge.tracing.trace": to_trace,
}
