"""Bad inputs: each is refused by an error that names cause and remedy, before work, and the corrected call succeeds."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

import bridge
from bridge import Laplace
from tests.bridge.bad_inputs import GOOD, NAN, ROWS, X, Y, having, network, pairs


def test_there_are_rows_enough():
    assert len(ROWS) >= 80


def of(row, model):
    options = {"hessian_structure": "diag", "progress": False} | row.options
    return Laplace(model, row.likelihood, **options)


def data_of(row):
    return (
        pairs(X, GOOD.get(row.likelihood, Y) if isinstance(row.likelihood, str) else Y)
        if row.data is None
        else row.data
    )


@cache
def fitted():
    return Laplace(network(), hessian_structure="diag", progress=False).fit(pairs(X, Y))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_input_is_refused_by_name_and_changes_nothing(name):
    row = ROWS[name]
    if row.after is not None:
        la, before = fitted(), fitted()(X)
        with pytest.raises(row.error, match=f"(?s){row.message}"):
            row.after(la)
        assert torch.equal(la(X), before)
        return
    model = row.model()
    state = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) and name != "lazy" else {}
    with pytest.raises(row.error, match=f"(?s){row.message}"):
        of(row, model).fit(data_of(row), **row.fit)
    if state:
        assert all(torch.equal(v, state[k]) | (v != v).any() for k, v in model.state_dict().items())


@pytest.mark.parametrize("likelihood", GOOD)
def test_the_corrected_call_succeeds_on_the_same_object(likelihood):
    la = Laplace(network(), likelihood, hessian_structure="diag", progress=False)
    for data in ([], [X], pairs(NAN, GOOD[likelihood]), pairs(X, GOOD[likelihood][:5])):
        with pytest.raises((ValueError, TypeError)):
            la.fit(data)
        with pytest.raises(RuntimeError, match=r"fit\(train_loader\)"):
            la(X)
    la.fit([{"image": X, "kind": GOOD[likelihood]}], to_batch=lambda batch: (batch["image"], batch["kind"]))
    assert la(X) is not None


def files(path):
    """Files that are none, and what is said of them."""
    la = fitted()
    bridge.save(la, path)
    whole = path.read_bytes()
    return {
        "empty": (b"", "no safetensors file"),
        "text": (b"hello" * 10, "no safetensors file"),
        "cut short": (whole[:-5], "cut short or altered"),
        "altered": (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], "altered after bridge.save"),
        "longer": (whole + b"x", "cut short or altered"),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "cut short", "altered", "longer"])
def test_bad_files_are_refused_and_the_object_is_as_before(kind, tmp_path):
    content, message = files(tmp_path / "la")[kind]
    (tmp_path / "bad").write_bytes(content)
    new = Laplace(network(), hessian_structure="diag", progress=False)
    with pytest.raises(ValueError, match=message):
        bridge.load(tmp_path / "bad", new)
    with pytest.raises(RuntimeError, match="no posterior"):
        new(X)
    assert torch.equal(bridge.load(tmp_path / "la", new)(X), fitted()(X))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda: Laplace(network(), "regression", hessian_structure="diag"), "likelihood='Categorical"),
        (lambda: Laplace(network(), hessian_structure="full"), "hessian_structure='diag'"),
        (lambda: Laplace(having(lambda m: m[0].weight.data.add_(1)), hessian_structure="diag"), "other weights"),
        (lambda: Laplace(having(lambda m: m[0].requires_grad_(False)), hessian_structure="diag"), "other parameters"),
    ],
)
def test_files_of_another_laplace_are_refused(new, message, tmp_path):
    bridge.save(fitted(), tmp_path / "la")
    with pytest.raises(ValueError, match=message):
        bridge.load(tmp_path / "la", new())


def test_an_interrupted_fit_leaves_the_object_as_it_was():
    la = copy.deepcopy(fitted())
    before = la(X)

    class Interrupting:
        def __iter__(self):
            yield X, Y
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        la.fit(Interrupting())
    assert "as it was before" in stop.value.__notes__[0]
    assert torch.equal(la(X), before)


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_would(monkeypatch):
    monkeypatch.setattr("jax_core.source.free_bytes", lambda device: 20_000)
    with pytest.raises(MemoryError, match=r"'full' of 43 parameters takes about .* MiB, and .* are free\. Use 'diag'"):
        Laplace(network(), hessian_structure="full", progress=False).fit(pairs(X, Y))
