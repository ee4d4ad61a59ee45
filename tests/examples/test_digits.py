"""Where the examples get their digits from."""

import numpy as np
import pytest
import torchvision
from digits import MEAN, PACKAGED, STD, load_digits


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no data here, and no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)


def test_without_the_full_set_the_packaged_digits_are_used_and_said_so(offline, tmp_path):
    digits = load_digits(tmp_path)
    assert digits.train_images.shape == (10_000, 28, 28, 1) and digits.test_images.shape == (2_000, 28, 28, 1)
    assert "10,000 training and 2,000 test digits" in digits.source and "subset" in digits.source


def test_packaged_digits_are_small_normalised_and_stratified(offline, tmp_path):
    assert PACKAGED.stat().st_size < 3e6
    digits = load_digits(tmp_path)
    pixels = digits.train_images * STD + MEAN
    assert digits.train_images.dtype == np.float32 and pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    shares = [np.bincount(labels) / len(labels) for labels in (digits.train_labels, digits.test_labels)]
    np.testing.assert_allclose(*shares, atol=0.02)


def test_held_out_digits_leave_the_training_set(offline, tmp_path):
    digits = load_digits(tmp_path)
    kept, images, labels = digits.split_train(1_000, seed=0)
    assert len(kept.train_labels) == 9_000 and len(images) == len(labels) == 1_000
    together = np.concatenate([kept.train_labels, labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(digits.train_labels))
