"""Turned and foreign inputs, and the figures and tables about them."""

import json
import types

import numpy as np
import pytest
import torch
from methods import Digits, Fits, last_layer, methods
from models import seed_cnn
from shift_report import judge, save_angles, tables, write_json
from shifts import DARK, letters, rotated, shapes
from torch.utils.data import TensorDataset


def test_turning_by_nothing_and_by_a_whole_turn_changes_nothing():
    images = letters(3)
    torch.testing.assert_close(rotated(images, 0), images)
    torch.testing.assert_close(rotated(images, 360), images)
    torch.testing.assert_close(rotated(rotated(images, 90), -90), images)


@pytest.mark.parametrize("make", [letters, shapes])
def test_foreign_images_are_normalised_like_digits_and_repeat_themselves(make):
    images = make(5, seed=3)
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == pytest.approx(DARK, abs=1e-5) and images.max() > 1
    assert torch.equal(images, make(5, seed=3)) and not torch.equal(images, make(5, seed=4))


def sets(count=12):
    labels = np.arange(count) % 10
    images = torch.randn(count, 1, 28, 28)
    turned = {15: images, 30: images}
    return types.SimpleNamespace(
        clean=images, labels=labels, turned=turned, turned_labels=labels, foreign={"letters": letters(4)}
    )


def uniform(x):
    return torch.full((len(x), 10), 0.1)


def test_an_even_prediction_is_judged_as_one(tmp_path):
    found = judge("a network", "even", uniform, sets(), fit_seconds=1.0)
    assert found.figures["NLL"] == pytest.approx(np.log(10), rel=1e-5)
    assert found.figures["letters AUROC"] == pytest.approx(0.5) and found.figures["letters FPR95"] == 1.0
    assert found.nll_by_angle.keys() == {0, 15, 30}
    other = judge("a network", "even", uniform, sets(), fit_seconds=3.0)
    text = tables([[found], [other]])
    assert "2.303 ± 0.000" in text and "2.0 ± 1.0" in text
    write_json(tmp_path / "results.json", [[found]])
    assert json.loads((tmp_path / "results.json").read_text())[0][0]["method"] == "even"
    save_angles([[found], [other]], tmp_path / "nll.png")
    assert (tmp_path / "nll.png").stat().st_size > 0


def test_a_second_network_takes_the_programs_of_the_first():
    torch.manual_seed(0)
    model = seed_cnn().eval()
    x, y = torch.randn(40, 1, 28, 28), torch.arange(40) % 10
    digits = Digits(TensorDataset(x, y), 40, TensorDataset(x[:20], y[:20]))
    fits = Fits(model)
    first = last_layer(fits, digits)
    before = first(x[:4])
    assert before.shape == (4, 10) and len(fits.kept) == 1
    model.load_state_dict(seed_cnn().state_dict())
    second = last_layer(fits, digits)
    assert second is first and not torch.allclose(second(x[:4]), before)
    assert {"network", "Laplace, held-out digits", "Laplace, kron"} <= methods().keys()
