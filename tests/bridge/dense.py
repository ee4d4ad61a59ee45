"""Dense float64 references by torch's autograd, one sample at a time, in the order of ``model.parameters()``."""

import copy
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

from bridge import Laplace


def fit(model, x, y, likelihood="classification", structure="full", **options):
    """A fitted Laplace over batches of eight."""
    given = {"hessian_structure": structure, "progress": False} | options
    return Laplace(model, likelihood, **given).fit(DataLoader(TensorDataset(x, y), batch_size=8))


def double(model):
    return copy.deepcopy(model).double()


def jacobian(model, x):
    """``(D, P)`` of one sample, given as a batch of one (of two, for a model that squeezes)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = model(x).flatten()
    rows = [torch.autograd.grad(o, parameters, retain_graph=True, allow_unused=True) for o in outputs]
    flat = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)] for row in rows]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in flat])


def ggn(model, x, loss):
    """``sum_i J_i^T H_i J_i``; ``loss(outputs of sample i as a batch of one, i)`` is a sum."""
    model, x = double(model), x.double() if x.is_floating_point() else x
    total = 0
    for i in range(len(x)):
        outputs = model(x[i : i + 1]).detach()
        rows = jacobian(model, x[i : i + 1])
        hessian = torch.autograd.functional.hessian(
            lambda z, i=i, shape=outputs.shape: loss(z.reshape(shape), i), outputs.flatten()
        )
        total = total + rows.T @ hessian @ rows
    return total


def trace_of(la):
    return float(la.fitted.curvature.trace())


def silent(function):
    """A call without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()
