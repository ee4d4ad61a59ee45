"""Samples that see one another are found and named; those that do not are let through."""

import pytest
import torch
from torch import nn

from bridge import TraceError
from bridge.independence import output_shapes
from tests.bridge.dense import fit


class Mixing(nn.Module):
    """A layer, and what is done with its outputs over the batch."""

    def __init__(self, mix, width=3):
        super().__init__()
        self.layer, self.mix = nn.Linear(2, width), mix

    def forward(self, x):
        return self.mix(self.layer(x))


SEEING = {
    "mean": lambda z: z - z.mean(0),
    "softmax": lambda z: z.softmax(0),
    "length": lambda z: z / len(z),
    "index": lambda z: z + torch.arange(len(z))[:, None],
    "distances": lambda z: torch.cdist(z, z).mean(1, keepdim=True) + z,
    "attention": lambda z: nn.functional.scaled_dot_product_attention(z[None], z[None], z[None])[0],
    "sorted": lambda z: z.sort(0).values,
    "flipped": lambda z: z.flip(0),
    "running sum": lambda z: z.cumsum(0),
    "largest": lambda z: z / z.abs().max(),
    "alone": lambda z: z * 2 if len(z) == 1 else z,
    "gradients alone": lambda z: z + (z.mean(0) - z.mean(0).detach()),
}
ALONE = {
    "plain": lambda z: z,
    "features": lambda z: z - z.mean(1, keepdim=True),
    "kinks": lambda z: (z.relu() - 0.1).relu() + z.abs(),
    "squeezed": lambda z: z.squeeze(),
    "constant shift": lambda z: z + torch.ones(len(z), 1),
}
BATCH = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_models_whose_samples_see_one_another_are_refused(name, count):
    with pytest.raises(TraceError, match=r"samples of a batch see one another in the model's own forward"):
        output_shapes(Mixing(SEEING[name]), BATCH[:count])


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_models_that_treat_samples_alone_are_let_through(name, count):
    whole, one = output_shapes(Mixing(ALONE[name]), BATCH[:count])
    assert whole[1:] == (3,)
    assert one == ((3,) if name == "squeezed" else (1, 3))


def test_the_module_where_it_begins_is_named():
    model = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4, track_running_stats=False)))
    with pytest.raises(TraceError, match=r"model\.1\.1 \(BatchNorm1d\).*track_running_stats=True"):
        output_shapes(nn.Sequential(*model, nn.Linear(4, 3)), BATCH)
    with pytest.raises(TraceError, match=r"model\.1\.1 \(BatchNorm1d\)"):
        fit(nn.Sequential(*model, nn.Linear(4, 3)), BATCH, torch.arange(6) % 3)


def test_what_mixes_before_a_module_is_not_laid_at_its_door():
    class Before(Mixing):
        def forward(self, x):
            return self.layer(self.mix(x))

    with pytest.raises(TraceError, match=r"in the model's own forward, before model\.layer \(Linear\)"):
        output_shapes(Before(SEEING["mean"]), BATCH)
    with pytest.raises(TraceError, match=r"in model\.1, before model\.1\.layer \(Linear\)"):
        output_shapes(nn.Sequential(nn.Tanh(), Before(SEEING["mean"])), BATCH)


def test_batch_norm_with_its_statistics_treats_samples_alone():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    output_shapes(model.train(), BATCH)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
