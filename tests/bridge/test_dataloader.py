"""Batches as loaders yield them: pairs, longer tuples, mappings, and anything through to_batch."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import Laplace
from tests.bridge.dense import fit, silent

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Two(nn.Module):
    """A model of two inputs, positional or by keyword."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.left(a) + torch.tanh(self.right(b))


class Encoding(collections.UserDict):
    """As a tokenizer's BatchEncoding: a mapping that is no dict."""


class OneMapping(Two):
    """As laplace-torch's models of Hugging Face data: forward takes the whole batch."""

    def forward(self, data):
        return super().forward(data["a"], data["b"])


class OneList(Two):
    def forward(self, parts):
        first, second = parts
        return super().forward(first, second)


class OneOfTwo(Two):
    """A list and an option: two tensors would bind to both."""

    def forward(self, parts, scale=None):
        return super().forward(*parts) if scale is None else super().forward(*parts) * scale


class Loose(Two):
    def forward(self, a, **others):
        return super().forward(a, others["b"])


A, B = X, X[:, :2] * 2
WORDS = ["word"] * 12


def expected():
    model = Two()

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x[:, :4], x[:, 4:])

    return fit(Joined(), torch.cat([A, B], 1), Y)(torch.cat([A, B], 1))


MODELS = {
    "one mapping": (OneMapping, [{"b": B, "a": A, "labels": Y}], {"a": A, "b": B, "labels": Y}),
    "one encoding": (OneMapping, [Encoding(b=B, a=A, labels=Y)], Encoding(a=A, b=B)),
    "one mapping in pairs": (OneMapping, [({"b": B, "a": A, "text": WORDS}, Y)], {"a": A, "b": B}),
    "one list": (OneList, [([A, B], Y)], [A, B]),
    "one tuple": (OneList, [(A, B, Y)], (A, B)),
    "one list and an option": (OneOfTwo, [([A, B], Y)], [A, B]),
    "further keywords": (Loose, [{"a": A, "b": B, "labels": Y, "text": WORDS}], {"a": A, "b": B}),
    "what forward does not take": (
        Two,
        [{"a": A, "b": B, "labels": Y, "text": WORDS, "idx": torch.arange(12), "none": None}],
        {"b": B, "a": A, "text": WORDS},
    ),
    "words by position": (Two, [(A, B, WORDS, Y)], (A, B)),
}


@pytest.mark.parametrize("form", MODELS)
def test_models_take_batches_as_they_are_written_for(form, tmp_path):
    kind, loader, inputs = MODELS[form]
    la = Laplace(kind(), hessian_structure="full", progress=False).fit(loader)
    torch.testing.assert_close(la(inputs), expected(), rtol=1e-4, atol=1e-5)
    silent(lambda: la.optimize_prior_precision("gridsearch", val_loader=loader, grid=[1.0]))
    bridge.save(la, tmp_path / "la")
    again = bridge.load(tmp_path / "la", Laplace(kind(), hessian_structure="full", progress=False))
    torch.testing.assert_close(again(inputs), la(inputs))


def test_keys_of_a_mapping_can_be_named():
    loader = [{"a": A, "b": B, "labels": 2 - Y, "gold": Y}]
    la = Laplace(Two(), hessian_structure="full", progress=False)
    la.reading = dataclasses.replace(la.reading, dict_key_x="a", dict_key_y="gold")
    torch.testing.assert_close(la.fit(loader)({"a": A, "b": B}), expected(), rtol=1e-4, atol=1e-5)
    la.reading = dataclasses.replace(la.reading, dict_key_y="golden")
    with pytest.raises(TypeError, match="dict_key_y='golden'"):
        la.fit(loader)


REFUSED = {
    "misspelt": ({"alphas": A, "beta": B, "labels": Y}, "takes no input 'alphas'. Did you mean 'alpha'"),
    "missing": ({"alpha": A, "labels": Y, "z": B}, "needs the input 'beta'"),
    "words for a tensor": ({"alpha": WORDS, "beta": B, "labels": Y}, "Input 'alpha', which Named.forward takes, is a"),
    "words by position": ((A, WORDS, Y), "Input 'beta' of Named.forward is a list"),
    "deep": (((A, {"b": B}), Y), "nest deeper"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_forward_takes_and_is_no_tensor_is_refused_by_name(name):
    class Named(Two):
        def forward(self, alpha, beta):
            return super().forward(alpha, beta)

    batch, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        Laplace(Named(), progress=False).fit([batch])


def test_a_prediction_lacks_nothing_that_the_fit_had():
    la = Laplace(Two(), hessian_structure="diag", progress=False).fit([{"a": A, "b": B, "labels": Y}])
    with pytest.raises(ValueError, match="lack 'b'"):
        la({"a": A})
    with pytest.raises(TypeError, match="mapping of 'a', 'b'"):
        la(A)
    la.fit([(A, B, Y)])
    with pytest.raises(TypeError, match="by position"):
        la({"a": A, "b": B})


FORMS = {
    "longer tuples": ([(A, B, Y)], (A, B), {}),
    "lists in pairs": ([([A, B], Y)], (A, B), {}),
    "a loader of tuples": (DataLoader(TensorDataset(A, B, Y), batch_size=5), (A, B), {}),
    "keywords and labels": ([{"a": A, "b": B, "labels": Y}], {"a": A, "b": B}, {}),
    "an encoding": ([Encoding(a=A, b=B, labels=Y)], Encoding(a=A, b=B), {}),
    "input and target": ([{"input": {"a": A, "b": B}, "target": Y}], {"a": A, "b": B}, {}),
    "numpy": ([(A.numpy(), B.numpy(), Y.numpy())], (A, B), {}),
    "anything": (
        [(1, {"left": A, "right": B}, Y)],
        (A, B),
        {"to_batch": lambda g: ((g[1]["left"], g[1]["right"]), g[2])},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_posterior(form):
    loader, inputs, options = FORMS[form]
    la = Laplace(Two(), hessian_structure="full", progress=False).fit(loader, **options)
    torch.testing.assert_close(la(inputs), expected(), rtol=1e-4, atol=1e-5)
    grid = {"val_loader": loader, "grid": [0.1, 1.0, 10.0]}
    tuned = silent(lambda: la.optimize_prior_precision("gridsearch", **grid, **options))
    assert np.isfinite(tuned.losses).all()


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX's, of threads that a forked worker does not use
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_show_the_same_data(context):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, num_workers=2, multiprocessing_context=context)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    la = Laplace(model, hessian_structure="full", progress=False).fit(loader)
    torch.testing.assert_close(la(X), fit(model, X, Y)(X), rtol=1e-4, atol=1e-6)
