"""Evaluate metrics over a loader, batch by batch, in one compiled step.

A metric step maps `(results, aux)` to a new `(results, aux)`: `aux` holds what the prediction says of a batch and its
`target`, `results` what is kept. `transfer_entry` and `apply_fns` make such steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jax_core.data.batches import as_batch
from jax_core.types import Data
from jax_core.xla.compiled import jit_closure

Entries: TypeAlias = dict[str, Any]
Field: TypeAlias = Literal["results", "aux"]
MetricStep: TypeAlias = Callable[..., tuple[Entries, Entries]]
"""`step(results=..., aux=...) -> (results, aux)`."""

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
        **arguments: Argument name to entry name; entries are looked up in the results, then in the prediction.

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
        values = {argument: _look_up(entry, results, aux) for argument, entry in arguments.items()}
        made = {
            outcome: function(**{name: values[name] for name in accepted})
            for function, outcome, accepted in zip(funcs, outcomes, taken, strict=True)
        }
        return (results | made, aux) if field == "results" else (results, aux | made)

    return apply


def _name_of(function: Callable[..., Any]) -> str:
    try:
        return function.__name__
    except AttributeError:
        raise ValueError(f"{function!r} has no name of its own: give names=[...], one a function.") from None


def evaluate_metrics_on_generator(
    pushforward_fn: Callable[[Any], Mapping[str, Any]],
    loader: Iterable[Data],
    *,
    metrics: Sequence[MetricStep],
    transform: Callable[[Any], Data] | None = None,
    reduce: Callable[[list[Any]], Any] | None = None,
    vmap_over_data: bool = True,
) -> Entries:
    """Push every batch of a loader through a predictive, apply metrics, and gather the outcomes.

    Prediction and metrics are one program, compiled once for each batch shape. Both settings of `vmap_over_data` give
    the same numbers: they say only whether the functions are written for a sample or for a batch.

    Args:
        pushforward_fn: Maps an input to a mapping of entries (`map`, `pred_mean`, `mc_pred_act`, ...).
        loader: Yields batches: mappings with `input` and `target`, or `(input, target)` pairs.
        metrics: Steps of `apply_fns` and `transfer_entry`, run in order.
        transform: Makes such a batch out of what the loader yields.
        reduce: Joins the list of a metric's outcomes over batches, for example `jnp.concatenate`; by default the
            list itself is returned.
        vmap_over_data: True if `pushforward_fn` and the metrics take one sample, False if they take a batch.

    Returns:
        The gathered results by name; empty if the loader yields nothing.

    Raises:
        TypeError: If a batch is neither a mapping nor a pair.
        KeyError: If a step asks for an entry that nothing made.
    """

    def evaluate(input: Any, target: Any) -> Entries:
        results: Entries = {}
        aux: Entries = {**pushforward_fn(input), "target": target}
        for step in metrics:
            results, aux = step(results=results, aux=aux)
        return results

    # vmap and not lax.map: a compiled loop over samples runs convolutions one by one, many times slower on a CPU.
    program = jit_closure(jax.vmap(evaluate) if vmap_over_data else evaluate)
    outcomes: list[Entries] = []
    for item in loader:
        batch = as_batch(item if transform is None else transform(item))
        outcomes.append(program(*jax.tree.map(jnp.asarray, tuple(batch))))
    if not outcomes:
        return {}
    gathered = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    return gathered if reduce is None else {name: reduce(values) for name, values in gathered.items()}
