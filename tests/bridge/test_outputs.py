"""Outputs of any shape: predictions lie as the model's outputs do, and are those of a dense reference."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace
from bridge.outputs import OutputLayout, single_output
from tests.bridge.dense import double, fit, ggn, jacobian, silent, trace_of

SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)


class Tokens(nn.Module):
    """Logits per token, (B, L, C)."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def pixels():
    """Logits per pixel, (B, C, H, W) with C = H = W, where a wrong axis of classes would go unseen."""
    torch.manual_seed(0)
    return nn.Conv2d(2, 4, 1), torch.randn(6, 2, 4, 4), torch.randint(4, (6, 4, 4))


def tokens():
    torch.manual_seed(0)
    return Tokens(), torch.randn(12, 5, 3), torch.randint(4, (12, 5))


@given(SHAPES, st.sampled_from([None, 1]))
def test_core_and_model_layouts_undo_each_other(shape, class_axis):
    layout = OutputLayout(shape, class_axis)
    outputs = jnp.arange(3 * max(layout.size, 1), dtype=float)[: 3 * layout.size].reshape(3, *shape)
    core = layout.to_core(outputs)
    assert core.shape == (3, *layout.core_shape)
    np.testing.assert_array_equal(layout.to_model(core), outputs)
    np.testing.assert_array_equal(layout.to_model(core.reshape(3, -1)), outputs)
    np.testing.assert_array_equal(core.reshape(3, -1)[:, layout.order], outputs.reshape(3, -1))
    assert OutputLayout.of_record(vars(layout)) == layout


@pytest.mark.parametrize("pred_type", ["glm", "nn"])
@pytest.mark.parametrize(
    ("make", "likelihood", "axis"), [(tokens, "classification", -1), (pixels, nn.CrossEntropyLoss(), 1)]
)
def test_every_position_is_normalised_by_itself(make, likelihood, axis, pred_type):
    model, x, y = make()
    p = fit(model, x, y, likelihood, prior_precision=1e9)(x, pred_type=pred_type)
    torch.testing.assert_close(p, model(x).softmax(axis).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
def test_curvature_of_many_positions_is_the_dense_one(structure):
    model, x, y = pixels()
    la = fit(model, x, y, nn.CrossEntropyLoss(), structure, rank=12)
    dense = ggn(model, x, lambda f, i: F.cross_entropy(f, y[i : i + 1], reduction="sum"))
    np.testing.assert_allclose(trace_of(la), float(dense.trace()), rtol=3e-3)  # a low rank may drop a thousandth


def test_distribution_over_moved_axes_is_the_dense_one_in_the_models_order():
    model, x, y = pixels()
    la = fit(model, x, y, nn.CrossEntropyLoss(), prior_precision=2.0)
    dense = ggn(model, x, lambda f, i: F.cross_entropy(f, y[i : i + 1], reduction="sum"))
    sigma = torch.linalg.inv(dense + 2.0 * torch.eye(len(dense), dtype=torch.float64))
    mean, covariance = la.predictive_distribution(x[:2])
    torch.testing.assert_close(mean, model(x[:2]).detach())
    rows = [jacobian(double(model), x[i : i + 1].double()) for i in range(2)]
    for i in range(2):
        torch.testing.assert_close(covariance[i].double(), rows[i] @ sigma @ rows[i].T, rtol=1e-3, atol=1e-5)
    joint = la.predictive_distribution(x[:2], joint=True)[1].double()
    torch.testing.assert_close(joint[0, :, 1], rows[0] @ sigma @ rows[1].T, rtol=1e-3, atol=1e-5)


def test_ignored_tokens_count_nothing_in_fit_and_tuning():
    model, x, y = tokens()
    masked = y.clone()
    masked[:, 3:] = -100
    torch_like = nn.CrossEntropyLoss()  # ignores -100, classes on axis 1
    swapped = nn.Sequential(model, _Swap())
    la = fit(swapped, x, masked, torch_like, "diag")
    short = fit(nn.Sequential(model, _Swap()), x[:, :3], y[:, :3], torch_like, "diag")
    np.testing.assert_allclose(trace_of(la), trace_of(short), rtol=1e-4)
    held = DataLoader(TensorDataset(x, masked), batch_size=5)
    tuned = silent(lambda: la.optimize_prior_precision(method="gridsearch", val_loader=held, grid=[1.0, 100.0, 1e4]))
    la.prior_precision = 100.0
    chosen = la(x).gather(1, y[:, None])[:, 0, :3]
    np.testing.assert_allclose(tuned.losses[1], -float(chosen.log().mean()), rtol=1e-4)


class _Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


def test_regression_keeps_the_models_shape_whatever_the_path():
    torch.manual_seed(0)
    model, x = nn.Conv2d(1, 1, 3, padding=1), torch.randn(12, 1, 4, 4)
    la = fit(model, x, 2 * x, "regression", prior_precision=1e6)
    mean, covariance = la(x)
    torch.testing.assert_close(mean, model(x).detach())
    assert covariance.shape == (12, 16, 16)
    same, variance = la(x, diagonal_output=True)
    assert torch.equal(same, mean)
    torch.testing.assert_close(variance.flatten(1), covariance.diagonal(dim1=1, dim2=2))
    sampled, spread = la(x, pred_type="nn", diagonal_output=True, n_samples=8)
    assert sampled.shape == spread.shape == x.shape


def test_squeezed_outputs_stay_squeezed_also_for_one_sample():
    class Squeezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            return self.layer(x).squeeze()

    torch.manual_seed(0)
    model, x = Squeezing(), torch.randn(9, 3)
    la = fit(model, x, torch.randn(9), "regression", prior_precision=3.0)
    dense = ggn(model.layer, x, lambda f, i: 0.5 * (f**2).sum())
    sigma = torch.linalg.inv(dense + 3.0 * torch.eye(4, dtype=torch.float64))
    for batch in (x, x[:1], x[:2]):
        mean, covariance = la(batch)
        torch.testing.assert_close(mean, model(batch).detach())
        assert covariance.shape == (len(batch), 1, 1)
        assert la(batch, diagonal_output=True)[1].shape == model(batch).shape
    rows = jacobian(double(model.layer), x[:1].double())
    torch.testing.assert_close(la(x)[1][0].double(), rows @ sigma @ rows.T, rtol=1e-3, atol=1e-5)


def test_many_outputs_come_with_variances_alone_and_a_word_about_it(monkeypatch):
    monkeypatch.setattr("bridge.predictives._COVARIANCE_BYTES", 4 * 3 * 36**2)
    torch.manual_seed(0)
    model, x = nn.Conv2d(1, 1, 3, padding=1), torch.randn(4, 1, 6, 6)
    la = fit(model, x, x, "regression", "diag")
    assert la(x[:3])[1].shape == (3, 36, 36)
    with pytest.warns(UserWarning, match=r"variances are returned.*diagonal_output=True"):
        mean, variance = la(x)
    assert mean.shape == variance.shape == x.shape


def test_batch_axis_elsewhere_is_refused():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x).transpose(0, 1)

    with pytest.raises(Exception, match=r"Axis 0 of the model's outputs is not the batch.*batch_first=True"):
        fit(TimeFirst(), torch.randn(8, 5, 3), torch.randint(2, (8, 5)))


def test_logits_of_an_output_object_are_the_outputs():
    logits = torch.zeros(2, 3)
    assert single_output({"logits": logits, "states": None}) is logits
    assert single_output((logits,)) is logits  # of return_dict=False
    with pytest.raises(TypeError, match=r"returns tuple.*one tensor"):
        single_output((logits, logits))


def test_noise_per_output_is_the_dense_posterior():
    torch.manual_seed(0)
    model, x = nn.Linear(2, 3), torch.randn(10, 2)
    noise = torch.tensor([0.5, 1.0, 2.0])
    la = fit(model, x, torch.randn(10, 3), "regression", sigma_noise=noise, prior_precision=2.0)
    dense = ggn(model, x, lambda f, i: 0.5 * ((f / noise.double()) ** 2).sum())
    sigma = torch.linalg.inv(dense + 2.0 * torch.eye(9, dtype=torch.float64))
    rows = jacobian(double(model), x[:1].double())
    torch.testing.assert_close(la(x[:1])[1][0].double(), rows @ sigma @ rows.T, rtol=1e-3, atol=1e-5)
    equal = fit(model, x, torch.zeros(10, 3), "regression", sigma_noise=0.7)
    each = fit(model, x, torch.zeros(10, 3), "regression", sigma_noise=torch.full((3,), 0.7))
    np.testing.assert_allclose(each.log_marginal_likelihood(), equal.log_marginal_likelihood(), rtol=1e-4)


def test_a_saved_layout_and_link_come_back(tmp_path):
    from bridge import load, save

    model, x, y = pixels()
    la = fit(model, x, y, nn.CrossEntropyLoss(), link_approx="mean_field_1")
    save(la, tmp_path / "la")
    new = load(tmp_path / "la", Laplace(model, nn.CrossEntropyLoss(), hessian_structure="full", progress=False))
    torch.testing.assert_close(new(x), la(x))
