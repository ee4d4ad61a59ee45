"""What benchmarks call is there, and gives figures: of those that reach into the core or meet laplace-torch."""

import sys
from pathlib import Path

import pytest

import jax_core.fit

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = [pytest.mark.in_turns, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def few(monkeypatch):
    """Benchmarks as they are imported where they run, with few digits and networks that nothing was taught."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common
    import digits as packaged

    monkeypatch.setattr(packaged, "_full_mnist", lambda root: None)
    whole, trained = common.digits, common.trained

    def take(train=True, count=None):
        return whole(train, min(40, count or 40))

    monkeypatch.setattr(common, "digits", take)
    monkeypatch.setattr(common, "trained", lambda make, steps, seed=0, count=None: trained(make, 1, seed, count))
    monkeypatch.setattr(common, "trained_cnn", lambda steps=100, seed=0: common.trained(tiny_cnn, 1, seed))
    yield common
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def tiny_cnn():
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 3, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10))


def test_products_have_figures(few, monkeypatch):
    import product

    monkeypatch.setattr(product, "median_seconds", lambda function, **how: function() is None or 1.0)
    assert set(product.ours(4)) == {"forward", "one", "block"}
    assert set(product.curvlinops(4)) == {"forward", "one", "block"}


def test_structures_have_figures(few, monkeypatch):
    import structures

    monkeypatch.setattr(structures, "NETWORKS", {"tiny": few.trained_cnn})
    monkeypatch.setattr(structures, "STRUCTURES", {"kron": {"hessian_structure": "kron"}})
    found = structures.measure("tiny")
    assert found["kron/1000.0"] > 0


def test_low_ranks_have_figures(few, monkeypatch):
    import quality

    monkeypatch.setattr(quality, "CURVATURE", 16)
    monkeypatch.setattr(quality, "TEST", 5)
    monkeypatch.setattr(quality, "WAYS", {name: how | {"rank": 4} for name, how in quality.WAYS.items()})
    assert all(value > 0 for value in quality.measure().values())


def test_the_choice_has_figures(few, monkeypatch):
    import choice

    monkeypatch.setattr(jax_core.fit, "make_plan", jax_core.fit.make_plan)  # which it replaces: put back after the test
    monkeypatch.setattr(choice, "case", lambda name: (few.trained_cnn(), *few.digits(), 4))
    assert choice.measure("a case", "nystrom/rows")["seconds"] > 0
    assert choice.WAYS[choice.measure("a case", "auto")["way"]]


def test_the_peer_is_met_on_both_roads(few, monkeypatch):
    import against_laplace_torch

    assert against_laplace_torch.all_weights(20)["difference"] < 1e-3
    monkeypatch.setattr(
        against_laplace_torch, "resnet", lambda samples: (few.trained_cnn(), *few.digits(count=samples))
    )
    assert against_laplace_torch.last_layer("kron", 20)["difference"] < 1e-3
