"""Sequences of several lengths: one for a fit, a few for predictions, with the results of each length alone."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bridge
from bridge import Laplace
from jax_core import Categorical
from tests.bridge import dense
from tests.bridge.test_dataloader import Encoding

pytestmark = pytest.mark.in_turns

LENGTHS = (5, 9, 3)
PRIOR = 1.5


class Attending(nn.Module):
    """Attention over tokens that are not masked; of each token, or of their mean."""

    def __init__(self, per_token=False, masked=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.out = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.embed.requires_grad_(False)
        self.per_token, self.masked = per_token, masked

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        mask = attention_mask if self.masked else torch.ones_like(attention_mask)
        scores = self.mix(x) @ x.transpose(1, 2) + (1.0 - mask[:, None].float()) * -1e9
        x = torch.tanh(scores.softmax(-1) @ x)
        if self.per_token:
            return self.out(x)
        weights = mask.float() / mask.float().sum(1, keepdim=True)
        return self.out((x * weights[..., None]).sum(1))


class OfFeatures(Attending):
    """Of features in the place of token ids, as of audio."""

    def forward(self, values, attention_mask):
        return super().forward((values[..., 0].round() % 20).long(), attention_mask)


class Whole(Attending):
    def forward(self, batch):
        return super().forward(batch["input_ids"], batch["attention_mask"])


def batches(per_token=False, seed=0):
    """Of each length a batch of four, one sample of which is shorter and padded."""
    drawn = torch.Generator().manual_seed(seed)
    made = []
    for length in LENGTHS:
        ids = torch.randint(1, 20, (4, length), generator=drawn)
        mask = torch.ones_like(ids)
        mask[1, length - 1 :] = 0
        labels = torch.randint(0, 3, (4, length) if per_token else (4,), generator=drawn)
        if per_token:
            labels = labels.masked_fill(mask == 0, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def exact(model, data, per_token):
    """The posterior's precision and what gives a sample's covariance, in float64, each batch at its own length."""
    model = dense.double(model)

    def rows(ids, mask):
        class OfSample(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, x):
                return self.model(x, mask[None])

        return OfSample(), dense.jacobian(OfSample(), ids[None])

    total = 0
    for batch in data:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            of_sample, jacobian = rows(ids, mask)
            outputs = of_sample(ids[None]).detach()[0]

            def loss(z, shape=outputs.shape, label=label):
                return F.cross_entropy(z.reshape(shape), label, reduction="sum")

            total = total + jacobian.T @ torch.autograd.functional.hessian(loss, outputs.flatten()) @ jacobian
    total = total + PRIOR * torch.eye(len(total), dtype=torch.float64)

    def covariance(batch):
        found = [rows(i, m)[1] for i, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return torch.stack([row @ torch.linalg.solve(total, row.T) for row in found])

    return covariance


def fitted(per_token=False, kind=Attending, data=None):
    likelihood = Categorical(ignore_index=-100) if per_token else "classification"
    la = Laplace(kind(per_token), likelihood, hessian_structure="full", prior_precision=PRIOR, progress=False)
    return la.fit(batches(per_token) if data is None else data)


@cache
def usual():
    return fitted()


def alike(batch):
    """Without labels."""
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.mark.parametrize("per_token", [False, True], ids=["per sample", "per token"])
def test_fits_and_predictions_are_those_of_each_length_alone(per_token):
    la = fitted(per_token)
    covariance = exact(la.model, batches(per_token), per_token)
    longer = {"input_ids": torch.randint(1, 20, (2, 19)), "attention_mask": torch.ones(2, 19, dtype=torch.long)}
    for batch in [*map(alike, batches(per_token, seed=1)), longer]:
        mean, found = la.predictive_distribution(batch)
        torch.testing.assert_close(mean, la.model(**batch).detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.double(), covariance(batch), rtol=2e-3, atol=1e-5)
        assert la(batch).shape == mean.shape
        joint = la.predictive_distribution(batch, joint=True)[1]
        own = torch.stack([joint[i, :, i] for i in range(len(joint))])
        torch.testing.assert_close(own, found, rtol=1e-4, atol=1e-5)


def test_lengths_that_are_near_share_a_program():
    la = fitted()
    for length in (1, 3, 7, 8, 9, 10, 16, 17, 30):
        mask = torch.ones(2, length, dtype=torch.long)
        la({"input_ids": mask, "attention_mask": mask})
    assert set(la.fit_result()[0].at_lengths) == {8, 16, 32}  # and the fit's own, 9


@pytest.mark.parametrize("form", ["iterator", "encoding", "one mapping", "not kept"])
def test_a_loader_of_any_form_is_read_to_its_longest(form):
    data = {"iterator": iter(batches()), "encoding": [Encoding(batch) for batch in batches()]}.get(form, batches())
    kind = Whole if form == "one mapping" else Attending
    how = {"hessian_structure": "full", "prior_precision": PRIOR, "progress": False}
    la = Laplace(kind(), **how, cache="none" if form == "not kept" else "auto").fit(data)
    batch = alike(batches(seed=1)[0])
    torch.testing.assert_close(la(batch), usual()(batch), rtol=1e-4, atol=1e-5)


def test_features_along_a_sequence_are_filled_up_too():
    data = [
        {"values": batch["input_ids"][..., None].float().expand(-1, -1, 2), **alike(batch), "labels": batch["labels"]}
        for batch in batches()
    ]
    for batch in data:
        del batch["input_ids"]
    la = fitted(kind=OfFeatures, data=data)
    torch.testing.assert_close(la(data[0]), usual()(batches()[0]), rtol=1e-4, atol=1e-5)


def test_held_out_data_may_have_lengths_of_their_own():
    la, short = fitted(), batches(seed=2)
    grid = {"method": "gridsearch", "grid": [0.1, 1.0]}
    padded = [usual().fit_result()[0].template.taken_from(b) | {"labels": b["labels"]} for b in short]
    found = dense.silent(lambda: la.optimize_prior_precision(val_loader=short, **grid).losses)
    wanted = dense.silent(lambda: la.optimize_prior_precision(val_loader=padded, **grid).losses)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_model_that_looks_at_padding_is_refused_with_the_remedy():
    la = Laplace(Attending(masked=False), progress=False)
    with pytest.raises(ValueError, match=r"(?s)several lengths.*looks at padded tokens.*padding='max_length'"):
        la.fit(batches())
    la.fit(batches()[:1])
    with pytest.raises(ValueError, match="looks at padded tokens"):
        la(alike(batches()[2]))


def test_padded_tokens_must_not_count():
    with pytest.raises(ValueError, match=r"per token.*Categorical\(ignore_index=-100\)"):
        Laplace(Attending(per_token=True), progress=False).fit(batches(per_token=True))


def test_held_out_sequences_longer_than_those_of_the_fit_are_refused():
    la = fitted(data=batches()[2:])
    with pytest.raises(ValueError, match="9 tokens, and the longest of the fit had 3"):
        la.optimize_prior_precision(val_loader=batches()[1:2])


def test_a_saved_posterior_predicts_at_every_length(tmp_path):
    la = fitted(per_token=True)
    bridge.save(la, tmp_path / "la")
    new = Laplace(Attending(True), Categorical(ignore_index=-100), hessian_structure="full", progress=False)
    again = bridge.load(tmp_path / "la", new)
    for batch in map(alike, batches(True, seed=1)):
        torch.testing.assert_close(again(batch), la(batch))
