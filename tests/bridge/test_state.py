"""A fitted Laplace as any module: copied, pickled, in a state dict, watched; altered bytes are noticed."""

import copy
import io
import pickle
import random

import pytest
import torch
from torch import nn

import bridge
from bridge import Laplace
from bridge.serialization import pack, unpack
from tests.bridge.dense import fit

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) + 7
Y = torch.arange(12) % 4


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).eval()


def new(model, **options):
    return Laplace(model, hessian_structure="full", progress=False, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit(network(), X, Y, prior_precision=2.0)


def by_pickle(la):
    return pickle.loads(pickle.dumps(la))


def by_torch_save(la):
    buffer = io.BytesIO()
    torch.save(la, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_state_dict(la):
    other = new(network(seed=1))
    buffer = io.BytesIO()
    torch.save(la.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


def by_nested_state_dict(la):
    outer = nn.ModuleDict({"la": new(network(seed=1))})
    outer.load_state_dict(nn.ModuleDict({"la": la}).state_dict())
    return outer["la"]


WAYS = {
    f.__name__: f for f in (by_pickle, by_torch_save, by_state_dict, by_nested_state_dict, copy.deepcopy, copy.copy)
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_keeping_keeps_the_posterior(fitted, way):
    other = WAYS[way](fitted)
    assert torch.equal(other(X), fitted(X))
    assert other.prior_precision == 2.0
    assert other.log_marginal_likelihood() == pytest.approx(fitted.log_marginal_likelihood())
    other.prior_precision = 5.0
    assert way == "copy" or fitted.prior_precision == 2.0


@pytest.mark.parametrize("way", ["by_pickle", "by_torch_save", "deepcopy"])
def test_an_unfitted_one_can_be_kept_and_fitted(way):
    other = WAYS[way](new(network()))
    with pytest.raises(RuntimeError, match=r"fit\(train_loader\)"):
        other(X)
    assert other.fit([(X, Y)])(X).shape == (12, 4)


def test_a_state_dict_of_another_kind_changes_nothing(fitted):
    other = Laplace(network(seed=1), "regression", hessian_structure="full", progress=False)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"likelihood='Categorical.*this Laplace has 'Gaussian"):
        other.load_state_dict(fitted.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def changes():
    def in_place(model):
        with torch.no_grad():
            model[0].weight.mul_(1.01)

    def by_optimizer(model):
        model(X).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()

    def statistics(model):
        model.train()(X)

    def replaced(model):
        model[2] = nn.Linear(5, 4)

    return {
        "in place": in_place,
        "data": lambda model: model[2].bias.data.add_(1.0),
        "optimizer": by_optimizer,
        "state dict": lambda model: model.load_state_dict(network(seed=3).state_dict()),
        "statistics": statistics,
        "replaced": replaced,
        "half": lambda model: model.half(),
        "parameter": lambda model: setattr(model[0], "bias", nn.Parameter(torch.ones(5))),
    }


@pytest.mark.parametrize("name", changes())
def test_weights_changed_after_fit_are_noticed_by_everything(fitted, name, tmp_path):
    la = copy.deepcopy(fitted)
    changes()[name](la.model)
    for call in (
        lambda: la(X),
        lambda: la(X, pred_type="nn"),
        lambda: la.predictive_distribution(X),
        la.log_marginal_likelihood,
        la.optimize_prior_precision,
        lambda: bridge.save(la, tmp_path / "la"),
        lambda: la.posterior,
    ):
        with pytest.raises(RuntimeError, match=r"weights have changed since fit"):
            call()
    assert not (tmp_path / "la").exists()


@pytest.mark.parametrize("harmless", ["train", "requires_grad", "zero_grad", "same values", "forward", "twice"])
def test_what_leaves_the_weights_alone_is_let_through(fitted, harmless):
    la = copy.deepcopy(fitted)
    act = {
        "train": lambda m: m.train(),
        "requires_grad": lambda m: m.requires_grad_(False),
        "zero_grad": lambda m: m.zero_grad(),
        "same values": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
        "forward": lambda m: m.eval()(X),
        "twice": lambda m: m.double().float(),
    }
    act[harmless](la.model)
    assert torch.equal(la(X), fitted(X))


def test_a_state_dict_of_changed_weights_is_made_and_not_believed(fitted):
    la = copy.deepcopy(fitted)
    changes()["in place"](la.model)
    with pytest.raises(ValueError, match="belongs to a model with other weights"):
        new(network(seed=1)).load_state_dict(la.state_dict())


def test_channels_last_weights_are_watched_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(40, 4)).to(memory_format=torch.channels_last)
    x = torch.randn(12, 3, 3, 3)
    la = fit(model, x, Y, structure="diag")
    la(x)
    model[0].weight.data[:, 1, 2, 0] *= 2
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        la(x)


def test_a_file_holds_no_example(fitted, tmp_path):
    bridge.save(fitted, tmp_path / "la")
    content = (tmp_path / "la").read_bytes()
    assert not any(row.numpy().tobytes() in content for row in X)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "data parallel"])
def test_wrappers_of_a_model_do_not_matter(fitted, wrap, tmp_path):
    bridge.save(fit(wrap(network()), X, Y, prior_precision=2.0), tmp_path / "la")
    assert torch.equal(bridge.load(tmp_path / "la", new(network()))(X), fitted(X))


def test_hyperparameters_and_link_come_back(tmp_path):
    options = {"prior_precision": torch.arange(1.0, 7.0), "prior_mean": 0.1, "temperature": 2.0, "link_approx": "mc"}
    la = fit(network(), X, Y, **options)
    bridge.save(la, tmp_path / "la")
    other = bridge.load(tmp_path / "la", new(network()))
    assert other.temperature == 2.0
    assert other.prior_mean == pytest.approx(0.1)
    assert other.link_approx == "mc"
    assert torch.equal(other.prior_precision, la.prior_precision)
    assert torch.equal(other(X), la(X))
    noisy = fit(nn.Linear(3, 2), X, X[:, :2], "regression", sigma_noise=[0.3, 0.4])
    bridge.save(noisy, tmp_path / "noisy")
    back = bridge.load(tmp_path / "noisy", Laplace(noisy.model, "regression", hessian_structure="full", progress=False))
    assert torch.equal(back.sigma_noise, noisy.sigma_noise)
    assert back.log_marginal_likelihood() == pytest.approx(noisy.log_marginal_likelihood())


def test_a_model_whose_code_has_changed_is_noticed_at_its_first_prediction(tmp_path):
    class Scaled(nn.Module):
        scale = 1.0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x) * self.scale

    torch.manual_seed(0)
    model = Scaled()
    bridge.save(fit(model, X, Y), tmp_path / "la")
    la = bridge.load(tmp_path / "la", new(model))
    model.scale = 2.0
    with pytest.raises(bridge.MismatchError, match="differs from torch"):
        la(X)


def test_covered_parameters_are_compared_at_load(tmp_path):
    model = network()
    model[0].requires_grad_(False)
    bridge.save(fit(model, X, Y), tmp_path / "la")
    with pytest.raises(ValueError, match=r"other parameters.*0\.bias, 0\.weight"):
        bridge.load(tmp_path / "la", new(network()))


def mutated(data, seed):
    """A copy with a few bytes changed, cut, doubled or moved."""
    draw = random.Random(seed)
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(max(len(out), 1)), draw.choice([1, 1, 2, 8, 64])
        kind = draw.randrange(4)
        if kind == 0:
            out[at : at + length] = bytes(draw.randrange(256) for _ in range(length))
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        else:
            out = out[: max(at, 1)]
    return bytes(out)


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_and_never_believed(fitted, tmp_path, count):
    bridge.save(fitted, tmp_path / "la")
    data = (tmp_path / "la").read_bytes()
    whole = unpack(data, "whole")
    believed = 0
    for seed in range(count):
        given = mutated(data, seed)
        try:
            record = unpack(given, "a file")
        except ValueError as error:
            assert "a file" in str(error)
            continue
        believed += 1
        assert record.described == whole.described
        assert all(torch.equal(record.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert believed < count / 100  # a change that changes nothing


def test_bytes_of_any_tensors_come_back():
    tensors = {"a": torch.zeros(0, 3), "b": torch.tensor(1.5), "c": torch.ones(2, dtype=torch.bfloat16)}
    record = unpack(pack(tensors, {"x": [1, None]}), "bytes")
    assert record.described == {"x": [1, None]}
    assert all(torch.equal(record.tensors[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="another version"):
        from safetensors.torch import save

        unpack(save({"a": torch.ones(1)}), "bytes")
