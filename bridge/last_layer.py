"""The last layer of a model, found by running it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as torch_pytree

from bridge.independence import call
from bridge.outputs import single_output
from bridge.tracing.state import looking_at

_NAMED = 12  # modules in a message
_REMEDY = "Name the module to cover with last_layer_name=, or set requires_grad=False on the rest and use 'all'."


def find_last_layer(model: nn.Module, inputs: Any) -> str:
    """The name of the module with parameters whose output alone carries parameters into the model's output.

    Of the modules that are called, the last one whose output the model's depends on; with that output held fixed, no
    other parameter may reach the model's output, and none of its own may be used elsewhere.

    Args:
        model: Run in eval mode.
        inputs: A few samples.

    Raises:
        ValueError: If there is none, naming those that might be.
    """
    owners = owners_of(model)
    with looking_at(model), _all_differentiable(model):
        called = list(dict.fromkeys(reversed(_calls(model, owners, inputs))))
        leaves = [name for name in called if not any(other != name and _is_inside(other, name) for other in called)]
        for name in leaves if leaves != [""] or _is_layer(model) else []:
            around, within = _reached(model, owners[name], inputs)
            if around is None:
                continue  # the output does not depend on it
            _check_alone(model, name, around, within)
            return name
    raise ValueError(
        f"No module with parameters of its own is called in forward before the model's output: there is no last layer "
        f"to find. {_REMEDY} There are {listed(owners)}."
    )


def _check_alone(model: nn.Module, name: str, around: set[str], within: set[str]) -> None:
    ids = {id(q) for q in model.get_submodule(name).parameters()}
    everywhere = model.named_parameters(remove_duplicate=False)
    own = {n for n, p in model.named_parameters() if id(p) in ids}
    shared = [n for n, p in everywhere if not _is_inside(n, name) and id(p) in ids]
    if shared or own & (around | within):
        used = ", ".join(shared or sorted(own & (around | within)))
        raise ValueError(
            f"The last layer {name!r} shares a weight with what lies before it ({used}), so that there is no last "
            f"layer by itself. {_REMEDY}"
        )
    if around:
        beside = sorted(around - within or around)  # what lies before this layer too is no candidate
        modules = list(dict.fromkeys(parameter.rpartition(".")[0] for parameter in beside if "." in parameter))
        loose = sorted(parameter for parameter in beside if "." not in parameter)
        what = f"parameters {listed(loose)} of the model itself" if loose else f"those of {listed(modules[-_NAMED:])}"
        candidates = listed([*dict.fromkeys([*modules[-_NAMED:], name])])
        raise ValueError(
            f"No single layer is the model's last: beside {name!r}, {what} reach the output without passing through "
            f"it. {_REMEDY} Candidates are {candidates}."
        )


def owners_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters of their own, by name; those that make a weight count as its module's."""
    modules = dict(model.named_modules())
    names = [name for name, m in modules.items() if next(m.parameters(recurse=False), None) is not None]
    whole = dict.fromkeys(name.partition("parametrizations")[0].rstrip(".") for name in names)
    return {name: modules[name] for name in whole}


def _is_layer(model: nn.Module) -> bool:
    """Whether it is one of torch's own, not a module of the user's that holds its parameters loose."""
    return type(model).__module__.startswith("torch.nn.")


def _calls(model: nn.Module, owners: dict[str, nn.Module], inputs: Any) -> list[str]:
    """Names of the owners in the order in which their forward ends."""
    names, found = {id(module): name for name, module in owners.items()}, []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names:
            found.append(names[id(module)])

    with _hook(after), torch.no_grad():
        call(model, inputs)
    return found


def _reached(model: nn.Module, layer: nn.Module, inputs: Any) -> tuple[set[str] | None, set[str]]:
    """Names of parameters that reach the output around a layer, and of those behind its inputs.

    The first is ``None`` if the output does not depend on the layer's.
    """
    held: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def hold(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        held.append(leaf.detach().requires_grad_())
        return held[-1]

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if module is not layer:
            return None
        given.extend(x for x in torch_pytree.tree_leaves(args) if isinstance(x, torch.Tensor) and x.requires_grad)
        return torch_pytree.tree_map(hold, output)

    with _hook(after):
        output = single_output(call(model, inputs))
    named = dict(model.named_parameters())
    if not held or not any(_depends([output], held)):
        return None, set()
    around = {name for name, met in zip(named, _depends([output], [*named.values()]), strict=True) if met}
    within = {name for name, met in zip(named, _depends(given, [*named.values()]), strict=True) if met}
    return around, within


def _depends(outputs: list[torch.Tensor], sources: list[torch.Tensor]) -> list[bool]:
    summed = [x.sum() for x in outputs if x.requires_grad]
    if not summed:
        return [False] * len(sources)
    wanted = [source for source in sources if source.requires_grad]
    gradients = iter(torch.autograd.grad(summed, wanted, allow_unused=True, retain_graph=True))
    return [next(gradients) is not None if source.requires_grad else False for source in sources]


@contextlib.contextmanager
def _hook(after: Any) -> Iterator[None]:
    handle = torch_module.register_module_forward_hook(after)  # a hook on the model itself would change it
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _all_differentiable(model: nn.Module) -> Iterator[None]:
    with turned([p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]):
        yield


@contextlib.contextmanager
def turned(parameters: list[nn.Parameter]) -> Iterator[None]:
    """The other value of ``requires_grad`` for some parameters that share one."""
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(not flag)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def _is_inside(parameter: str, module: str) -> bool:
    return not module or parameter.startswith(f"{module}.")


def listed(names: Any) -> str:
    """Names for a message, the last of many."""
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return (", ".join(shown[-_NAMED:]) or "none") + more
