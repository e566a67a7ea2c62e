"""The path that a stock Stable-Baselines3 algorithm takes while it learns, as a watcher is told it.

Watching hangs on PyTorch's optimiser hooks and on an SB3 callback. It reads parameters and gradients and changes no
value, so it cannot change what is learnt; the parameters' values lie side by side in one vector (:class:`FlatStorage`),
so that reading them takes little time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import Any

import torch

from metarl.agents.learners.watching import FlatParams, StepsWatcher, Watcher
from metarl.params import Params

_ALIGNED = 16
"""Numbers of four bytes in 64 bytes."""
_HISTORY_BYTES = 1 << 20
_MOST_STEPS = 32
"""How much of a path is kept before a watcher is told: steps of small networks that still lie in the cache."""


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the tensors that an optimiser moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class FlatStorage:
    """One vector that holds the values of parameters, so that a path reads and compares all of them at once.

    The parameters stay the same objects with the same values; where their values lie is all that changes. Each begins
    at a multiple of 64 bytes, as PyTorch's own tensors do, because kernels may add up in another order elsewhere; what
    lies between is zero.

    :param parameters: live tensors by name.
    """

    def __init__(self, parameters: Params) -> None:
        self.parameters = parameters
        ends = list(accumulate(-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in parameters.values()))
        self._starts = [0, *ends]
        self.now = self._named(torch.zeros(1, ends[-1]))
        """The live values, ``[1, …]``."""
        self._live = self.now.flat.numpy().data.cast("B")
        self.room = max(1, min(_MOST_STEPS, _HISTORY_BYTES // self._live.nbytes))
        """Steps that :attr:`starts` and :attr:`gradients` have room for: as many as stay in the cache."""
        size = self._live.nbytes
        self._kept = bytearray(self.room * size)
        self._rows = [memoryview(self._kept)[i * size : (i + 1) * size] for i in range(self.room)]
        self.starts = self._named(torch.frombuffer(self._kept, dtype=torch.float32).view(self.room, -1))
        """The values that :meth:`keep` found, ``[room, …]``."""
        self.gradients = self._named(torch.zeros(self.room, ends[-1]))
        """Room for the gradients, ``[room, …]``."""
        parts = [{name: tensor[row] for name, tensor in self.gradients.items()} for row in range(self.room)]
        self._parts = [{id(t): part[name] for name, t in parameters.items()} for part in parts]
        self._addresses: list[int] = []
        self.hold()

    def _named(self, flat: torch.Tensor) -> FlatParams:
        parts = zip(self.parameters.items(), self._starts, strict=False)
        return FlatParams({n: flat[:, at : at + t.numel()].view(-1, *t.shape) for (n, t), at in parts}, flat)

    def start(self, row: int) -> FlatParams:
        """Return one row of :attr:`starts`, ``[1, …]``."""
        return self._named(self.starts.flat[row : row + 1])

    def gradient(self, row: int) -> FlatParams:
        """Return one row of :attr:`gradients`, ``[1, …]``."""
        return self._named(self.gradients.flat[row : row + 1])

    def held_by(self, optimizer: torch.optim.Optimizer) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Return the parameters that an optimiser moves, and for each row the places of their gradients."""
        tensors = [tensor for tensor in held(optimizer) if id(tensor) in self._parts[0]]
        return tensors, [[parts[id(tensor)] for tensor in tensors] for parts in self._parts]

    def keep(self, row: int = 0) -> None:
        """Remember the values in a row of :attr:`starts`."""
        self._rows[row][:] = self._live

    def moved(self, row: int = 0) -> bool:
        """Return whether a value is not what it was when that row was kept.

        Bits are compared, because writing to ``parameter.data`` leaves no other mark; bytes, because that is the
        shortest way through Python, which counts when small networks learn.
        """
        self.hold()
        return not self._kept.startswith(self._live, row * self._live.nbytes)

    def hold(self) -> None:
        """Take in again what was given a storage of its own by ``parameter.data = ...``, as TRPO does."""
        if list(map(torch.Tensor.data_ptr, self.parameters.values())) == self._addresses:
            return
        places = [(tensor, self.now[name][0]) for name, tensor in self.parameters.items()]
        # Values first: one parameter's may lie where another's belong.
        away = [(t, place, t.detach().clone()) for t, place in places if t.data_ptr() != place.data_ptr()]
        for tensor, place, value in away:
            place.copy_(value)
            tensor.data = place
        self._addresses = [tensor.data_ptr() for tensor in self.parameters.values()]


class Path:
    """Tells a watcher every step of every optimiser, and every other move of the parameters, as its own segment.

    A context: hooks are on the optimisers while it is open. Memory does not grow with the path: a
    :class:`~metarl.agents.learners.watching.StepsWatcher` is told as many steps at once as the storage has room for,
    and the rest when the context ends; any other watcher is told each as it is taken.

    :param storage: holds the parameters whose path it is.
    :param optimizers: what moves them.
    :param watcher: is told; its tensors are used again later.
    """

    def __init__(self, storage: FlatStorage, optimizers: Sequence[torch.optim.Optimizer], watcher: Watcher) -> None:
        self._storage = storage
        self._watcher = watcher
        self._optimizers = optimizers
        self._room = storage.room if isinstance(watcher, StepsWatcher) else 1
        self._n = 0
        """Steps that were taken and not told yet."""
        self._held = [storage.held_by(optimizer) for optimizer in optimizers]
        self._handles: list[Any] = []

    def __enter__(self) -> Path:
        self._storage.hold()
        self._storage.keep()
        for index, optimizer in enumerate(self._optimizers):
            self._handles.append(optimizer.register_step_pre_hook(partial(self._before, index)))
            self._handles.append(optimizer.register_step_post_hook(self._after))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        if kind is None:
            self.moved()
            self._tell(self._storage.now)

    def moved(self) -> None:
        """Report a segment without a gradient if the parameters were moved since the last."""
        if self._storage.moved(self._n):
            start = self._storage.start(self._n)
            self._tell(start)
            self._watcher.segment(start, self._storage.now, None, None)
            self._storage.keep()

    def _before(self, index: int, *_: Any) -> None:
        self.moved()
        # Read here: an optimiser may work on its gradients in place.
        tensors, rows = self._held[index]
        parts = rows[self._n]
        grads = [grad for tensor in tensors if (grad := tensor.grad) is not None]
        if len(grads) < len(self._storage.parameters):
            self._storage.gradients.flat[self._n].zero_()
            parts = [part for tensor, part in zip(tensors, parts, strict=True) if tensor.grad is not None]
        if grads:
            # Many tensors are small: one call takes half the time of one for each.
            torch._foreach_copy_(parts, grads)

    def _after(self, *_: Any) -> None:
        self._n += 1
        if self._n == self._room:
            self._tell(self._storage.now)
        self._storage.keep(self._n)

    def _tell(self, end: FlatParams) -> None:
        """Tell the steps that were taken since the last time.

        :param end: where the last of them ended.
        """
        n, self._n = self._n, 0
        if not n:
            return
        if isinstance(self._watcher, StepsWatcher):
            self._watcher.steps(self._storage.starts, end, self._storage.gradients, n)
        else:
            self._watcher.segment(self._storage.start(0), end, self._storage.gradient(0), None)
