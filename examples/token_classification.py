"""Which words are names? Probabilities for each token of sentences of several lengths. Offline, under a minute.

A name is whatever stands behind a title, so that the network has to look at the word before.
"""

from __future__ import annotations

import random
from pathlib import Path

import pictures
import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, DistilBertConfig

from bridge import Laplace
from jax_core import Categorical

TITLES, NAMES, OTHERS = range(1, 3), range(3, 13), range(13, 40)
PAD, IGNORED = 0, -100
_TEXT = """Dr Ms Ada Emmy Kurt Leon Carl Rosa Hugo Ines Otto Vera the a on in at of and then saw met read wrote
baker miller smith hill stone brook field rose reed frost again today soon left here"""
WORDS = ["", *_TEXT.split()]


def sentence(rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids, and for each whether it is a name."""
    ids, tags = [], []
    for _ in range(rng.randint(2, 7)):
        if rng.random() < 0.3:
            ids += [rng.choice(TITLES), rng.choice([*NAMES, *OTHERS])]  # after a title every word is a name
            tags += [0, 1]
        else:
            ids.append(rng.choice(OTHERS))
            tags.append(0)
    return ids, tags


def collate(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """As ``DataCollatorForTokenClassification`` does: a batch as long as its longest sentence."""
    longest = max(len(ids) for ids, _ in rows)

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in lists])

    return {
        "input_ids": padded([ids for ids, _ in rows], PAD),
        "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0),
        "labels": padded([tags for _, tags in rows], IGNORED),
    }


def loader(count: int, seed: int) -> DataLoader:
    rng = random.Random(seed)
    return DataLoader([sentence(rng) for _ in range(count)], batch_size=32, collate_fn=collate)


def trained(train: DataLoader, epochs: int) -> torch.nn.Module:
    config = DistilBertConfig(
        vocab_size=40, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=32, num_labels=2
    )
    model = AutoModelForTokenClassification.from_config(config)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    return model.eval()


def scores(predict, data: DataLoader) -> tuple[float, float]:
    """Accuracy and negative log-likelihood of the tokens that are there."""
    right, nll, count = 0.0, 0.0, 0
    for batch in data:
        p, y = predict(batch).flatten(0, 1), batch["labels"].flatten()
        there = y != IGNORED
        right += float((p.argmax(1) == y)[there].sum())
        nll += float(F.nll_loss(p[there].clamp_min(1e-12).log(), y[there], reduction="sum"))
        count += int(there.sum())
    return right / count, nll / count


def main(sentences: int = 128, epochs: int = 40, folder: Path = pictures.RESULTS) -> None:
    torch.manual_seed(0)
    train = loader(sentences, seed=0)
    model = trained(train, epochs)
    # classes on the last axis; tokens with the target -100 are not there
    la = Laplace(model, Categorical(ignore_index=IGNORED), subset_of_weights="last_layer", progress=False)
    la.fit(train)
    la.optimize_prior_precision(val_loader=loader(64, seed=1))

    @torch.no_grad()
    def network(batch) -> torch.Tensor:
        return model(batch["input_ids"], batch["attention_mask"]).logits.softmax(-1)

    data = loader(256, seed=2)
    print(f"{'method':10}{'accuracy':>9}{'NLL of a token':>16}")
    for method, predict in (("network", network), ("Laplace", la)):
        print("{:10}{:9.3f}{:16.4f}".format(method, *scores(predict, data)))
    draw({"network": network, "Laplace": la}, next(iter(data)), folder)
    mistake(model, train)


def draw(methods, batch, folder: Path) -> None:
    """The sentences in which the network is surest of something wrong, by each method."""
    tags, ids = batch["labels"], batch["input_ids"]
    probabilities = {name: predict(batch)[..., 1] for name, predict in methods.items()}
    surprise = (probabilities["network"] - tags).abs().where(tags != IGNORED, 0.0).amax(1)
    rows = surprise.argsort(descending=True)[:6].tolist()
    longest = int((tags[rows] != IGNORED).sum(1).max())
    figure, axes = plt.subplots(len(methods), 1, figsize=(10, 5.6), layout="constrained", sharex=True)
    for ax, (name, p) in zip(axes, probabilities.items(), strict=True):
        there = tags[rows, :longest] != IGNORED
        drawn = ax.imshow(p[rows, :longest].where(there, torch.nan), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(rows):
            for j in range(int(there[i].sum())):
                word, value = WORDS[ids[row, j]], float(p[row, j])
                style = {"weight": "bold"} if tags[row, j] else {}
                ax.text(
                    j,
                    i,
                    f"{word}\n{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if value > 0.5 else "white",
                    **style,
                )
        ax.set(ylabel="sentence", yticks=range(len(rows)), yticklabels=range(1, len(rows) + 1), title=name)
    axes[-1].set(
        xlabel="position of the word (names in bold)", xticks=range(longest), xticklabels=range(1, longest + 1)
    )
    figure.colorbar(drawn, ax=axes, label="probability of a name")
    pictures.save(figure, folder, "token_classification")


def mistake(model: torch.nn.Module, train: DataLoader) -> None:
    """Nobody said that -100 is no class."""
    try:
        Laplace(model, likelihood="classification", progress=False).fit(train)
    except ValueError as error:
        print(f"\nTargets of -100 under plain classification:\n  {error}")


if __name__ == "__main__":
    main(folder=pictures.folder())
