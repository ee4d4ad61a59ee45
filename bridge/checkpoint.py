"""A fitted posterior on disk: safetensors, never pickle. The network itself stays where its owner keeps it.

No training data are in it: of the inputs, shapes and types alone.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from bridge import hyperparameters
from bridge.curvature_record import arrays_of, kinds_of, operator_of
from bridge.fitting import FittedModel, trace_for_fit
from bridge.hyperparameters import Hyperparameters
from bridge.losses import describe
from bridge.options import LinkName, one_of
from bridge.outputs import OutputLayout
from bridge.parameter_order import ParameterOrder
from bridge.precision import in_float32
from bridge.serialization import Record, pack, unpack
from bridge.state import LaplaceState
from bridge.subset import Subset, covering
from bridge.template import InputTemplate
from bridge.tensors import to_jax, to_torch
from bridge.tracing.checks import unwrap
from bridge.weights import WeightWatch, digest
from bridge.wide_types import wide_types
from jax_core.data.trees import on_device_of
from jax_core.fitted import Fitted
from jax_core.lowrank.plan import Plan

_NUMBERS = ("nll", "num_samples", "num_total_samples", "outputs_per_sample")
_ARRAYS = ("prior_precision", "prior_mean", "sigma_noise")


def save(la: LaplaceState, path: str | Path) -> None:
    """Write what a fit has found: the reduced curvature, the hyperparameters, and how inputs and outputs are shaped.

    An existing file is replaced only once the new one is complete.

    Args:
        la: A fitted :class:`~bridge.laplace.Laplace`.
        path: The file, ``*.safetensors`` by custom.

    Raises:
        RuntimeError: Before ``fit``, or if the model's weights have changed since.
    """
    la.posterior  # noqa: B018 - raises where there is none
    unfinished = Path(f"{path}.part")
    with open(unfinished, "wb") as file:
        file.write(to_bytes(la))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def load(path: str | Path, la: LaplaceState) -> LaplaceState:
    """Give a new ``Laplace`` around the same trained model the posterior of a file.

    Args:
        path: Written by :func:`save`.
        la: Described as the saved one was, not fitted; the model holds the weights it had then.

    Returns:
        ``la``, as if fitted, with the hyperparameters and the link that were saved.

    Raises:
        ValueError: If the file is damaged or of another kind, or its likelihood, structure, parameters or weights are
            not those of ``la``; ``la`` is then unchanged.

    Example:
        >>> bridge.save(la, path)
        >>> again = bridge.load(path, Laplace(model))
        >>> torch.equal(again(x), la(x))
        True
    """
    if not isinstance(la, LaplaceState):
        raise TypeError(
            f"load takes a Laplace around the model, not a {type(la).__name__}: load(path, Laplace(model))."
        )
    with wide_types(la.runs_wide()):
        return restore(unpack(Path(path).read_bytes(), str(path)), la)


def to_bytes(la: LaplaceState) -> bytes:
    """A fitted Laplace as the content of a file."""
    fit, hyper = la.fit_result(check_weights=False)[0], la.hyperparameters
    curvature = fit.fitted.curvature
    tensors = {f"curvature.{n}": to_torch(a).cpu().contiguous().clone() for n, a in arrays_of(curvature).items()}
    for name in _ARRAYS:
        tensors[name] = torch.from_numpy(np.array(getattr(hyper, name), np.float64))
    described = {
        "structure": la.options.structure,
        "of": la.options.curvature,
        "kfac_approx": la.options.kfac_approx,
        "curvature": kinds_of(curvature),
        "subset": dataclasses.asdict(fit.subset),
        "likelihood": describe(la.loss_fn.likelihood),
        "link": la.link_approx,
        "temperature": hyper.temperature,
        "logit_temperature": hyper.logit_temperature,
        "parameters": [[name, list(shape)] for name, shape in zip(la.order.names, la.order.shapes, strict=True)],
        "weights": "changed since fit" if la.moved_weights() else digest(la.model),
        "template": dataclasses.asdict(fit.template),
        "layout": dataclasses.asdict(fit.layout),
        "prior_factor": fit.prior_factor,
        "plan": None if fit.fitted.plan is None else dataclasses.asdict(fit.fitted.plan),
        **{name: getattr(fit.fitted, name) for name in _NUMBERS},
        "trace": fit.fitted.trace,
    }
    return pack(tensors, described)


def check_description(record: Record, la: LaplaceState) -> None:
    """Refuse a record that belongs to a Laplace of another kind, whatever the weights.

    Raises:
        ValueError: Naming what differs.
    """
    earlier = {"of": "ggn", "kfac_approx": "expand"}  # files of earlier versions hold no other
    for name, ours, remedy in (
        ("structure", la.options.structure, "hessian_structure"),
        ("of", la.options.curvature, "curvature"),
        ("kfac_approx", la.options.kfac_approx, "kfac_approx"),
        ("likelihood", describe(la.loss_fn.likelihood), "likelihood"),
    ):
        theirs = record.described.get(name, earlier.get(name))
        if theirs != ours:
            raise ValueError(
                f"{record.source} holds a posterior with {remedy}={theirs!r}, this Laplace has "
                f"{ours!r}. Construct it with the {remedy} that was saved."
            )
    subset, order = covered_by(record, la)
    if subset != dataclasses.replace(la.subset, name=la.subset.name or subset.name):
        raise ValueError(
            f"{record.source} holds a posterior over {subset.told}, this Laplace is about {la.subset.told}. "
            "Construct it with the subset_of_weights, last_layer_name and subnetwork_indices that were saved."
        )
    covered = [[name, list(shape)] for name, shape in zip(order.names, order.shapes, strict=True)]
    if record.described["parameters"] != covered:
        odd = {name for name, _ in record.described["parameters"]} ^ set(order.names)
        raise ValueError(
            f"{record.source} covers other parameters than this model has with requires_grad=True"
            f"{': ' + ', '.join(sorted(odd)[:5]) if odd else ' (other shapes)'}. Set requires_grad as it was at fit."
        )


def covered_by(record: Record, la: LaplaceState) -> tuple[Subset, ParameterOrder]:
    """What a record's posterior covers, and its parameters as this Laplace's model has them.

    Raises:
        ValueError: If the model has no module of that name.
    """
    subset = Subset.of_record(record.described.get("subset", {}))  # files of earlier versions cover all
    if subset.name is not None:
        subset = Subset.checked(subset.kind, subset.name, la.model)
    return subset, subset.order(la.model)


def restore(record: Record, la: LaplaceState) -> LaplaceState:
    """Give a Laplace the posterior of a record; see :func:`load`."""
    check_description(record, la)
    subset, order = covered_by(record, la)
    described, tensors = record.described, record.tensors
    if described["weights"] != digest(la.model):
        raise ValueError(
            f"{record.source} belongs to a model with other weights. Load the state dict that was in force at fit, or "
            "fit anew."
        )
    one_of("link", described["link"], LinkName)
    values = {name: tensors[name].numpy() for name in _ARRAYS}
    hyper = Hyperparameters(
        hyperparameters.prior_precision(values["prior_precision"], order),
        hyperparameters.prior_mean(values["prior_mean"], order),
        hyperparameters.sigma_noise(values["sigma_noise"]),
        hyperparameters.temperature(described["temperature"]),
        # a file of before this was a hyperparameter has none
        hyperparameters.temperature(described.get("logit_temperature", 1.0)),
    )
    template, layout = InputTemplate.of_record(described["template"]), OutputLayout.of_record(described["layout"])
    network = in_float32(unwrap(la.model))
    with covering(network, subset.names(network)):
        traced = trace_for_fit(network, template.example(), la.reading.tracer, verify=False)
    named = {name.removeprefix("curvature."): t for name, t in tensors.items() if name.startswith("curvature.")}
    curvature = operator_of(described["curvature"], on_device_of(traced.params, to_jax(named)))
    plan = None if described["plan"] is None else Plan(**described["plan"])
    fitted = Fitted(curvature, **{name: described[name] for name in _NUMBERS}, plan=plan)
    fitted = dataclasses.replace(fitted, trace=described.get("trace"))  # files of earlier versions hold none
    loss = la.loss_for(layout, hyper)
    same = {"places": subset.places(la.model), "prior_factor": described.get("prior_factor", 1.0)}
    fit = FittedModel(traced, fitted, template, layout, loss, WeightWatch(la.model), subset, **same)
    la.adopt(fit, hyper, verified=False)
    la.link_approx = described["link"]
    return la
