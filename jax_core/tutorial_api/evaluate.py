"""Evaluate metrics over a loader or a whole data set, batch by batch, in one compiled step.

A metric step maps `(results, aux)` to a new `(results, aux)`: `aux` holds what the prediction says of a batch and its
`target`, `results` what is kept. `transfer_entry` and `apply_fns` make such steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jax_core.data.batches import as_batch, pieces
from jax_core.types import Data
from jax_core.xla.compiled import jit_closure

Entries: TypeAlias = dict[str, Any]
Field: TypeAlias = Literal["results", "aux"]
MetricStep: TypeAlias = Callable[..., tuple[Entries, Entries]]
"""`step(results=..., aux=...) -> (results, aux)`."""
Prediction: TypeAlias = Callable[[Any], Mapping[str, Any]]

_FIELDS = ("results", "aux")


def _check_field(name: str, field: str) -> None:
    if field not in _FIELDS:
        raise ValueError(f"{name}={field!r} is neither 'results' nor 'aux'.")


def _look_up(key: str, *places: Entries) -> Any:
    for place in places:
        if key in place:
            return place[key]
    known = sorted({name for place in places for name in place})
    raise KeyError(f"No entry {key!r} among {known}. Does a pushforward function or an earlier step make it?")


def transfer_entry(
    mapping: Mapping[str, str] | Sequence[str],
    *,
    field: Field = "results",
    access_from: Field = "aux",
) -> MetricStep:
    """Make a step that copies entries, by default from the prediction into the results.

    Args:
        mapping: Names to copy, or a mapping of new name to the name to copy from.
        field: Where to copy to.
        access_from: Where to copy from.

    Returns:
        A metric step.

    Raises:
        ValueError: If a place is neither `"results"` nor `"aux"`.
        KeyError: When the step runs and an entry is missing.
    """
    _check_field("field", field)
    _check_field("access_from", access_from)
    pairs = dict(mapping) if isinstance(mapping, Mapping) else {name: name for name in mapping}

    def transfer(results: Entries, aux: Entries) -> tuple[Entries, Entries]:
        places = {"results": results, "aux": aux}
        copied = {new: _look_up(old, places[access_from]) for new, old in pairs.items()}
        places[field] = places[field] | copied
        return places["results"], places["aux"]

    return transfer


def _accepted(function: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those of the names that a function takes as keywords: all of them where it takes `**kwargs`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return list(names)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return list(names)
    return [n for n in names if n in parameters and parameters[n].kind is not inspect.Parameter.POSITIONAL_ONLY]


def apply_fns(
    *funcs: Callable[..., Any],
    names: Sequence[str] | None = None,
    field: Field = "results",
    **arguments: str,
) -> MetricStep:
    """Make a step that calls functions on entries and keeps what they return.

    `apply_fns(correctness, names=["right"], pred="map", target="target")` calls `correctness(pred=aux["map"],
    target=aux["target"])` and keeps the outcome as `results["right"]`. Every function gets the arguments that its
    signature names, and all of them where it takes `**kwargs`.

    Args:
        *funcs: Functions of keyword arguments.
        names: Names of the outcomes, one a function; the functions' own names by default.
        field: Where to keep the outcomes.
        **arguments: Argument name to entry name; entries are looked up in the results, then in the prediction. With
            none, a function gets the entries of the names that its signature has.

    Returns:
        A metric step.

    Raises:
        TypeError: If something is not callable, or none of the functions takes an argument.
        ValueError: If there are not as many names as functions, or the field is neither `"results"` nor `"aux"`.
        KeyError: When the step runs and an entry is missing.
    """
    for function in funcs:
        if not callable(function):
            raise TypeError(f"apply_fns takes functions, not {function!r} of type {type(function).__name__}.")
    outcomes = [_name_of(function) for function in funcs] if names is None else list(names)
    if len(outcomes) != len(funcs):
        raise ValueError(f"{len(outcomes)} names for {len(funcs)} functions: give one a function.")
    _check_field("field", field)
    taken = [_accepted(function, arguments) for function in funcs]
    if unused := set(arguments) - {name for names_ in taken for name in names_}:
        raise TypeError(f"None of {outcomes} takes the argument(s) {sorted(unused)}. Is one misspelt?")

    def apply(results: Entries, aux: Entries) -> tuple[Entries, Entries]:
        if arguments:
            values = {argument: _look_up(entry, results, aux) for argument, entry in arguments.items()}
            given = [{name: values[name] for name in accepted} for accepted in taken]
        else:
            given = [entries_for(function, {**aux, **results}) for function in funcs]
        made = {name: function(**values) for function, name, values in zip(funcs, outcomes, given, strict=True)}
        return (results | made, aux) if field == "results" else (results, aux | made)

    return apply


def entries_for(function: Callable[..., Any], entries: Mapping[str, Any]) -> Entries:
    """The entries of the names that a function's signature has; all of them where it takes `**kwargs`.

    Raises:
        KeyError: If there is none for an argument that it needs.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for needed in (p.name for p in parameters if p.kind in named and p.default is p.empty):
        _look_up(needed, dict(entries))
    return {name: entries[name] for name in _accepted(function, entries)}


def _name_of(function: Callable[..., Any]) -> str:
    try:
        return function.__name__
    except AttributeError:
        raise ValueError(f"{function!r} has no name of its own: give names=[...], one a function.") from None


def evaluate_metrics_on_generator(
    pred_fn: Prediction,
    data_generator: Iterable[Data],
    *,
    metrics: Sequence[MetricStep] | None = None,
    metrics_dict: Mapping[str, Callable[..., Any]] | None = None,
    transform: Callable[[Any], Data] | None = None,
    reduce: Callable[[list[Any]], Any] | None = None,
    vmap_over_data: bool = True,
) -> Entries:
    """Push every batch of a loader through a predictive, apply metrics, and gather the outcomes.

    Prediction and metrics are one program, compiled once for each batch shape. Both settings of `vmap_over_data` give
    the same numbers: they say only whether the functions are written for a sample or for a batch.

    Args:
        pred_fn: Maps an input to a mapping of entries (`map`, `pred_mean`, `mc_pred_act`, ...).
        data_generator: Yields batches: mappings with `input` and `target`, or `(input, target)` pairs.
        metrics: Steps of `apply_fns` and `transfer_entry`, run in order.
        metrics_dict: Functions by the names of their outcomes, run after them; each gets the entries of the names that
            its signature has.
        transform: Makes such a batch out of what the loader yields.
        reduce: Joins the list of a metric's outcomes over batches, for example `jnp.concatenate`; by default the
            list itself is returned.
        vmap_over_data: True if `pred_fn` and the metrics take one sample, False if they take a batch.

    Returns:
        The gathered results by name; empty if the loader yields nothing.

    Raises:
        TypeError: If a batch is neither a mapping nor a pair.
        ValueError: Without metrics.
        KeyError: If a step asks for an entry that nothing made.
    """
    steps = _all_steps(metrics, metrics_dict)

    def evaluate(input: Any, target: Any) -> Entries:
        results: Entries = {}
        aux: Entries = {**pred_fn(input), "target": target}
        for step in steps:
            results, aux = step(results=results, aux=aux)
        return results

    # vmap and not lax.map: a compiled loop over samples runs convolutions one by one, many times slower on a CPU.
    program = jit_closure(jax.vmap(evaluate) if vmap_over_data else evaluate)
    outcomes: list[Entries] = []
    for item in data_generator:
        batch = as_batch(item if transform is None else transform(item))
        outcomes.append(program(*jax.tree.map(jnp.asarray, tuple(batch))))
    if not outcomes:
        return {}
    gathered = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    return gathered if reduce is None else {name: reduce(values) for name, values in gathered.items()}


def evaluate_metrics_on_dataset(
    pred_fn: Prediction,
    data: Data,
    *,
    metrics: Sequence[MetricStep] | None = None,
    metrics_dict: Mapping[str, Callable[..., Any]] | None = None,
    reduce: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
) -> Entries:
    """Metrics of each sample of a data set that is one batch.

    Args:
        pred_fn: Maps the input of one sample to a mapping of entries.
        data: A mapping with `input` and `target`, or such a pair, of at least one sample.
        metrics: As of `evaluate_metrics_on_generator`, of one sample.
        metrics_dict: Likewise.
        reduce: Of a metric's outcomes over all samples, a leading axis, for example `jnp.mean`.
        batch_size: Samples that are worked on at once.

    Returns:
        The outcomes by name.

    Raises:
        TypeError: If the data are neither a mapping nor a pair.
        ValueError: Without metrics.
        KeyError: If a step asks for an entry that nothing made.
    """
    parts = pieces(as_batch(data), batch_size)
    steps = {"metrics": metrics, "metrics_dict": metrics_dict}
    outcomes = evaluate_metrics_on_generator(pred_fn, parts, **steps, reduce=_joined)
    return outcomes if reduce is None else {name: reduce(values) for name, values in outcomes.items()}


def evaluate_on_dataset(pred_fn: Prediction, data: Data, *, batch_size: int = 256) -> Entries:
    """What a predictive says of each sample of a data set, and its `target`; arguments as those of the metrics'."""
    return evaluate_metrics_on_dataset(pred_fn, data, metrics=[_keep_all], batch_size=batch_size)


def _all_steps(
    metrics: Sequence[MetricStep] | None, metrics_dict: Mapping[str, Callable[..., Any]] | None
) -> list[MetricStep]:
    if metrics is None and metrics_dict is None:
        raise ValueError("Give metrics=, steps of apply_fns and transfer_entry, or metrics_dict=, functions by name.")
    named = [] if metrics_dict is None else [apply_fns(*metrics_dict.values(), names=list(metrics_dict))]
    return [*(metrics or ()), *named]


def _keep_all(results: Entries, aux: Entries) -> tuple[Entries, Entries]:
    return results | aux, aux


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
