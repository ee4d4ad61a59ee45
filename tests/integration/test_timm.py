"""Backbones of timm with a head of one's own: the last layer is found."""

import pytest
import timm
import torch
from torch.nn import functional as F

from bridge import Laplace
from tests.bridge import dense

pytestmark = pytest.mark.in_turns

MODELS = {
    "resnet10t": ({}, "fc"),
    "test_vit": ({"img_size": 32}, "head"),
    "test_convnext": ({}, "head.fc"),
    "test_efficientnet": ({}, "classifier"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_the_last_layer_and_its_variance_is_exact(name):
    options, head = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    x, y = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    la = Laplace(model, subset_of_weights="last_layer", hessian_structure="full", progress=False).fit([(x, y)])
    assert la.subset.name == head
    layer = model.get_submodule(head)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(layer(features), model(x))
    precision = dense.ggn(layer, features, lambda z, i: F.cross_entropy(z, y[i : i + 1], reduction="sum"))
    precision += torch.eye(len(precision), dtype=torch.float64)
    rows = [dense.jacobian(dense.double(layer), f[None].double()) for f in features]
    exact = torch.stack([row @ torch.linalg.solve(precision, row.T) for row in rows])
    torch.testing.assert_close(la.predictive_distribution(x)[1].double(), exact, rtol=1e-3, atol=1e-6)
