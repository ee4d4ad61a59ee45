"""The main job on a handful of digits, from training to the figures."""

import argparse
import json

import numpy as np
import one_network
import pytest
import torch
from models import MODELS, train
from report import save_calibration, save_shift, save_spectrum, score, table, write_json
from torch.utils.data import TensorDataset

pytestmark = pytest.mark.in_turns


def compared():
    from digits import PACKAGED

    with np.load(PACKAGED) as packed:
        images = torch.from_numpy(packed["train_images"][:192]).float()[:, None] / 255
        labels = torch.from_numpy(packed["train_labels"][:192]).long()
    parts = [TensorDataset(images[i:j], labels[i:j]) for i, j in ((0, 128), (128, 158), (158, 192))]
    data = one_network.Data(*parts, source="a few digits")
    torch.manual_seed(0)
    model = MODELS["seed"]()
    train(model, *data.train.tensors, steps=120, learning_rate=1e-3, quiet=True)
    rows, la = one_network.compare(model, data, argparse.Namespace(quiet=True, full=False, model="seed"))
    return rows, la, data.test.tensors[1].numpy()


def every_row_holds_probabilities(rows):
    for row in rows:
        assert row.probabilities.shape == (34, 10) and row.probabilities.min() >= 0
        np.testing.assert_allclose(row.probabilities.sum(-1), 1, atol=1e-5)


def flax_on_the_core_alone_gives_the_bridges_probabilities(rows):
    np.testing.assert_allclose(rows[3].probabilities, rows[4].probabilities, atol=1e-4)


def no_laplace_row_is_surer_than_the_network(rows):
    network, _, *laplace = rows
    for row in laplace:
        assert row.confidence.mean() <= network.confidence.mean() + 1e-3


def report_is_written(rows, la, labels, tmp_path):
    scores = [score(row, labels) for row in rows]
    lines = table(scores).splitlines()
    assert len(lines) == 2 + len(rows) and len({len(line) for line in lines}) == 1
    write_json(tmp_path / "results.json", {"model": "seed"}, scores)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(rows)
    save_calibration(rows, labels, tmp_path)
    save_shift(rows[0], rows[3], labels, tmp_path)
    save_spectrum(one_network.eigenvalues(la), float(la.prior_precision), tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"results.json", "reliability.png", "proportions.png", "shift.png", "spectrum.png"}


def test_the_main_job_compares_and_reports(tmp_path):
    """One test, since the comparison takes a minute: workers that share its tests would each make it anew."""
    rows, la, labels = compared()
    every_row_holds_probabilities(rows)
    flax_on_the_core_alone_gives_the_bridges_probabilities(rows)
    no_laplace_row_is_surer_than_the_network(rows)
    report_is_written(rows, la, labels, tmp_path)


def test_size_of_the_dense_curvature_is_said():
    assert "679,730,993,764 entries, 2.719 TB" in one_network.describe(MODELS["nnx-docs"]())
