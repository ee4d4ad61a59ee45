"""A loop of torchmetrics that was written for the plain model takes a Laplace in its place."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.functional.classification import multiclass_calibration_error

from bridge import Laplace

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)


def evaluate(model, metrics):
    model.eval()
    with torch.no_grad():
        for x, y in LOADER:
            metrics.update(model(x), y)
    return metrics.compute()


def test_a_loop_for_the_model_is_a_loop_for_the_posterior():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    la = Laplace(model, hessian_structure="full", progress=False).fit(LOADER)
    metrics = MetricCollection({"accuracy": MulticlassAccuracy(3), "ece": MulticlassCalibrationError(3)})
    evaluate(model, metrics)
    metrics.reset()
    found = evaluate(la, metrics)
    torch.testing.assert_close(found["ece"], multiclass_calibration_error(la(X), Y, 3))
    assert 0 <= found["accuracy"] <= 1


def test_a_regressions_mean_goes_into_a_metric():
    model = nn.Linear(4, 1)
    la = Laplace(model, "regression", progress=False).fit(DataLoader(TensorDataset(X, X[:, :1]), batch_size=16))
    metric = MeanSquaredError()
    mean, covariance = la(X)
    metric.update(mean, X[:, :1])
    torch.testing.assert_close(metric.compute(), ((model(X) - X[:, :1]) ** 2).mean().detach())
    assert covariance.shape == (40, 1, 1)
