"""Optimisers for a stack of tasks: every task has its own state, its own step counter and its own gradient norm.

They work on all tensors of all tasks at once, as one matrix ``[task, n]``, in place. The formulas, and the order in
which state is kept, are those of ``torch.optim`` with the settings that SB3 gives it.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat, starmap
from typing import Any, Protocol

import torch

from metarl.agents.parallel import Parallel
from metarl.checks import ABOVE_ZERO, number
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params

FlatRate = float | torch.Tensor
"""A learning rate: one number, or one for each entry, ``[task, n]``."""


CHUNK = 1 << 18
"""Entries whose step is taken before the next ones': what a large step needs in between would be memory that the system
hands out anew, page by page, which takes longer than the step."""


def by_chunks(step: Callable[..., None], parallel: Parallel | None, rate: FlatRate, *matrices: torch.Tensor) -> None:
    """Take a step that treats every entry alike, of the rate and of matrices that are contiguous, in pieces of at most
    :data:`CHUNK` entries.

    :param parallel: threads that share the pieces; None: the calling one.
    """
    if matrices[0].numel() <= CHUNK:
        step(rate, *matrices)
        return
    rates = torch.split(rate.view(-1), CHUNK) if isinstance(rate, torch.Tensor) else repeat(rate)
    pieces = list(zip(rates, *(torch.split(matrix.view(-1), CHUNK) for matrix in matrices), strict=False))
    if parallel is None:
        deque(starmap(step, pieces), maxlen=0)
    else:
        parallel.map(lambda piece: step(*piece), pieces)


class Layout:
    """Where the tensors of a stack lie in one matrix ``[task, n]``, in their order.

    :param params: stacked tensors.
    """

    def __init__(self, params: Params) -> None:
        self._shapes = {name: tensor.shape[1:] for name, tensor in params.items()}

    def flatten(self, params: Params) -> torch.Tensor:
        """Return the tensors as one matrix, a copy."""
        return torch.cat([params[name].detach().flatten(1) for name in self._shapes], dim=1)

    def room(self, params: Params) -> torch.Tensor:
        """Return a matrix that holds the tensors, with nothing in it yet."""
        first = next(iter(params.values()))
        return first.new_empty((len(first), sum(shape.numel() for shape in self._shapes.values())))

    def views(self, flat: torch.Tensor) -> Params:
        """Return the tensors that a matrix holds, without copying."""
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()], dim=1)
        shapes = self._shapes.items()
        return {name: part.view(len(flat), *shape) for (name, shape), part in zip(shapes, parts, strict=True)}


class Optimizer(Protocol):
    """Steps of a stack of tasks."""

    def start(self, flat: torch.Tensor) -> Params:
        """Return the state before the first step, each tensor with a task axis.

        :param flat: a matrix such as that of the parameters, ``[task, n]``; what is in it does not matter.
        """
        ...

    def move(
        self,
        flat: torch.Tensor,
        gradient: torch.Tensor,
        state: Params,
        rate: FlatRate,
        parallel: Parallel | None = None,
    ) -> None:
        """Take one step of every task: changes ``flat`` and ``state``.

        :param parallel: threads that nothing else keeps busy; None: there are none.
        """
        ...


class SGD:
    """Plain gradient steps, without a state."""

    def start(self, flat: torch.Tensor) -> Params:
        return {}

    def move(
        self,
        flat: torch.Tensor,
        gradient: torch.Tensor,
        state: Params,
        rate: FlatRate,
        parallel: Parallel | None = None,
    ) -> None:
        flat.sub_(gradient * rate)


class Adam:
    """Kingma and Ba (2015), as SB3's policies use it.

    :param betas: decay of the means of the gradient and of its square.
    :param eps: added to the root of the mean square.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5) -> None:
        self.betas = betas
        self.eps = eps

    def start(self, flat: torch.Tensor) -> Params:
        return {
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
            "step": torch.zeros(len(flat), dtype=torch.int64),
        }

    def move(
        self,
        flat: torch.Tensor,
        gradient: torch.Tensor,
        state: Params,
        rate: FlatRate,
        parallel: Parallel | None = None,
    ) -> None:
        first, second = self.betas
        steps = state["step"].add_(1).double().unsqueeze(1)
        mean = state["exp_avg"].lerp_(gradient, 1.0 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        # The bias corrections of mean and square, one number a task, are pulled out of the root and the quotient.
        root = torch.sqrt(1.0 - second**steps)
        scale = (root / (first**steps - 1.0)).to(flat.dtype)
        least = self.eps * math.sqrt(1.0 - second)
        quotient = mean / _root_plus(square, least).add_((self.eps * root).to(flat.dtype))
        flat.addcmul_(quotient, scale * rate)


def _root_plus(square: torch.Tensor, eps: float) -> torch.Tensor:
    """Return √square for a sum with ``eps`` or more, where what is too small to change it is replaced.

    PyTorch's root of zeros takes 5 to 9 times as long as that of other numbers, of denormal ones 35 times. Images
    give many of both: a weight behind what is black has no gradient, and squares that were not 0 shrink for ever.
    √least is below half of the last digit of ``eps``, so that the sum is the same, bit for bit.
    """
    least = (eps * torch.finfo(square.dtype).eps / 16.0) ** 2
    return square.clamp(min=least).sqrt_()


class RMSProp:
    """Hinton's RMSProp as SB3's A2C uses it: torch's, whose mean square starts at 0 and where eps is outside the root.

    :param alpha: decay of the mean square.
    :param eps: added to its root.
    """

    def __init__(self, alpha: float = 0.99, eps: float = 1e-5) -> None:
        self.alpha = alpha
        self.eps = eps

    def start(self, flat: torch.Tensor) -> Params:
        return {"square_avg": torch.zeros_like(flat)}

    def move(
        self,
        flat: torch.Tensor,
        gradient: torch.Tensor,
        state: Params,
        rate: FlatRate,
        parallel: Parallel | None = None,
    ) -> None:
        def step(rate: FlatRate, own: torch.Tensor, slope: torch.Tensor, square: torch.Tensor) -> None:
            square.mul_(self.alpha).addcmul_(slope, slope, value=1.0 - self.alpha)
            own.sub_((slope / self._root(square)).mul_(rate))

        by_chunks(step, parallel, rate, flat, gradient, state["square_avg"])

    def _root(self, square: torch.Tensor) -> torch.Tensor:
        """Return what the gradient is divided by."""
        return _root_plus(square, self.eps).add_(self.eps)


class RMSPropTFLike(RMSProp):
    """SB3's ``RMSpropTFLike``, TensorFlow's: the mean square starts at 1, and eps is inside the root."""

    def start(self, flat: torch.Tensor) -> Params:
        return {"square_avg": torch.ones_like(flat)}

    def _root(self, square: torch.Tensor) -> torch.Tensor:
        return square.add(self.eps).sqrt_()


OPTIMIZERS: dict[str, type[SGD] | type[Adam] | type[RMSProp]] = {
    "adam": Adam,
    "rmsprop": RMSProp,
    "rmsprop_tf_like": RMSPropTFLike,
    "sgd": SGD,
}
_DECAY = number("[0, 1)")


def make_optimizer(name: str, kwargs: Mapping[str, Any] | None = None) -> Optimizer:
    """Return an optimiser with SB3's settings.

    :param kwargs: other settings: ``alpha`` and ``eps`` of RMSProp, ``betas`` and ``eps`` of Adam.
    :raises UnknownNameError: no such optimiser, or no such setting.
    :raises ConfigError: a value outside its range.
    """
    if name not in list(OPTIMIZERS):
        raise unknown_name("optimizer", name, OPTIMIZERS)
    given = dict(kwargs or {})
    if given and OPTIMIZERS[name] is SGD:
        raise ConfigError(f"optimizer_kwargs={shorten(given)}: {name!r} takes no others than its learning rate")
    known = list(inspect.signature(OPTIMIZERS[name]).parameters)
    for key, value in given.items():
        if key not in known:
            raise unknown_name(f"optimizer_kwargs of {name!r}:", key, known)
        given[key] = _setting(key, value)
    return OPTIMIZERS[name](**given)


def _setting(name: str, value: Any) -> Any:
    """Return a setting of an optimiser as a plain value."""
    where = f"optimizer_kwargs.{name}"
    if name == "betas":
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ConfigError(f"{where}={shorten(value)} is not a list of two numbers in [0, 1)")
        return tuple(_DECAY(where, each) for each in value)
    return (ABOVE_ZERO if name == "eps" else _DECAY)(where, value)


def clip_norms(gradient: torch.Tensor, max_norm: float) -> None:
    """Scale each task's gradient down to ``max_norm`` where it is longer, as ``clip_grad_norm_`` does.

    :param gradient: ``[task, n]``, changed in place.
    """
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    scale = (max_norm / (norms + 1e-6)).clamp_(max=1.0)
    over = norms[:, 0].isinf()
    if over.any():
        # Squares overflow before their root is taken, and the step would be 0.
        wide = gradient[over].double()
        lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        gradient[over] = (wide * (max_norm / lengths)).to(gradient.dtype)
        scale[over] = 1.0
    gradient.mul_(scale)


def take_step(
    optimizer: Optimizer,
    flat: torch.Tensor,
    gradient: torch.Tensor,
    state: Params,
    rate: FlatRate,
    active: torch.Tensor | None = None,
    parallel: Parallel | None = None,
) -> None:
    """Take one step of some tasks; parameters, state and step counter of the others stay as they are.

    :param active: ``[task]``, which take it; None: all.
    :param parallel: threads that nothing else keeps busy.
    """
    if active is None:
        optimizer.move(flat, gradient, state, rate, parallel)
        return
    rows = active.nonzero()[:, 0]
    own, part = flat[rows], {name: tensor[rows] for name, tensor in state.items()}
    optimizer.move(own, gradient[rows], part, rate[rows] if isinstance(rate, torch.Tensor) else rate)
    flat[rows] = own
    for name, tensor in part.items():
        state[name][rows] = tensor
