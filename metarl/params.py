"""Named tensors: the groups of meta-parameters, which of them adapt, and arithmetic on all of them at once.

Meta-parameters are one flat dict whose names carry their group: ``policy/action_net.weight``, ``rates/…``,
``context/…``. What a learner sees are the tensors of the inner loop: those of the group ``policy`` under the names that
Stable-Baselines3 gives them (``action_net.weight``), and the other groups' under their full names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from metarl.errors import unknown_name

Params = dict[str, torch.Tensor]
"""Named tensors: one task's, or a stack of several tasks' with a leading task axis."""
Rate = float | Params
"""A learning rate: one number, or one tensor for each parameter (elementwise)."""

POLICY = "policy/"
"""Begins the names of the policy's tensors among the meta-parameters."""
RATES = "rates/"
"""Begins the names of learning rates."""
HEADS = "heads/"
"""Begins the names of what each training task has of its own: ``heads/<task>/action_net.weight``."""
STATISTICS = "statistics/"
"""Begins the names of what stock algorithms carry beside parameters: no optimiser moves it."""
GROUPS = (POLICY, RATES, "context/", "encoder/", "decoder/", HEADS, STATISTICS)
"""Begin the names of all meta-parameters."""


# --------------------------------------------------------------------------------------------------- groups, modules
def meta_name(name: str) -> str:
    """Return the name among the meta-parameters of a tensor of the inner loop."""
    return name if name.startswith(GROUPS) else f"{POLICY}{name}"


def inner_name(name: str) -> str:
    """Return the name in the inner loop of one of the meta-parameters; the inverse of :func:`meta_name`."""
    return name.removeprefix(POLICY)


def group(params: Params, prefix: str) -> Params:
    """Return the tensors of one group, without its name: ``group(params, "rates/")``."""
    return {name.removeprefix(prefix): tensor for name, tensor in params.items() if name.startswith(prefix)}


def grouped(params: Params, prefix: str) -> Params:
    """Return tensors as a group of meta-parameters; the inverse of :func:`group`."""
    return {f"{prefix}{name}": tensor for name, tensor in params.items()}


def select(
    names: Collection[str], modules: Iterable[str], what: str = "part of the policy", words: Iterable[str] = ()
) -> list[str]:
    """Return those of ``names`` that belong to one of ``modules``, in their order.

    :param modules: whole tensors (``"log_std"``) or modules (``"mlp_extractor.value_net"``): never a piece of a name.
    :param what: what error messages call them.
    :param words: what else the caller takes, for error messages to propose.
    :raises UnknownNameError: nothing belongs to a module.
    """
    found: set[str] = set()
    for module in modules:
        own = {name for name in names if name == module or name.startswith((f"{module}.", f"{module}/"))}
        if not own:
            raise unknown_name(what, module, [*words, *names])
        found |= own
    return [name for name in names if name in found]


# ------------------------------------------------------------------------------------------------------------ stacking
def expand(params: Params, n_tasks: int) -> Params:
    """Return ``params`` with a leading task axis, without copying."""
    return {name: tensor.unsqueeze(0).expand(n_tasks, *tensor.shape) for name, tensor in params.items()}


def stack(parts: Sequence[Params]) -> Params:
    """Return one task's parameters after another as a stack ``[task, …]``."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def join(parts: Sequence[Params]) -> Params:
    """Join stacks of parameters along the task axis."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def take(params: Params, tasks: slice | int) -> Params:
    """Return the parameters of some tasks of a stack, or of a single one, without copying."""
    return {name: tensor[tasks] for name, tensor in params.items()}


# ---------------------------------------------------------------------------------------------------------- arithmetic
def each(function: Callable[..., torch.Tensor], *params: Params) -> Params:
    """Return ``function`` of the tensors of each name of the first of ``params``."""
    return {name: function(*(own[name] for own in params)) for name in params[0]}


def add(a: Params, b: Params) -> Params:
    """Return ``a + b``."""
    return {name: tensor + b[name] for name, tensor in a.items()}


def subtract(a: Params, b: Params) -> Params:
    """Return ``a − b``."""
    return {name: tensor - b[name] for name, tensor in a.items()}


def scale(rate: Rate, params: Params) -> Params:
    """Return ``rate ∘ params``."""
    if isinstance(rate, Mapping):
        return {name: tensor * rate[name] for name, tensor in params.items()}
    return {name: tensor * rate for name, tensor in params.items()}


def zeros_like(params: Params) -> Params:
    """Return zeros."""
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}


def norm(params: Params) -> float:
    """Return the Euclidean norm over all tensors."""
    squares = (tensor.to(torch.float64, copy=True).square_() for tensor in params.values())
    return float(sum(float(each.sum()) for each in squares) ** 0.5)


def dot(a: Params, b: Params) -> float:
    """Return the inner product over all tensors, in float64."""
    return float(sum(float((tensor.double() * b[name].double()).sum()) for name, tensor in a.items()))


def total(parts: Sequence[Params]) -> Params:
    """Return the sum of ``parts``, added up in their order."""
    result = {name: tensor.clone() for name, tensor in parts[0].items()}
    for part in parts[1:]:
        for name, tensor in part.items():
            result[name] += tensor
    return result


def mean(parts: Sequence[Params], n: int | None = None) -> Params:
    """Return the sum of ``parts``, added up in their order, divided by ``n`` (their number if None)."""
    whole = parts[0] if len(parts) == 1 else total(parts)
    return {name: tensor / (len(parts) if n is None else n) for name, tensor in whole.items()}


def not_finite(params: Params) -> str | None:
    """Return the name of the first tensor that holds a NaN or infinity, None where there is none."""
    return next((name for name, tensor in params.items() if not bool(torch.isfinite(tensor).all())), None)
