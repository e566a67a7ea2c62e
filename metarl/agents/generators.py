"""Random numbers of PyTorch and of Stable-Baselines3 without the generators that a process has only once.

PyTorch initialises networks, and SB3 learns, with numbers of generators that all threads share. What needs PyTorch's
only, draws from a generator of its own (:func:`drawing_from`). SB3's algorithms also draw from NumPy's as they learn:
they have the global generators to themselves meanwhile (:func:`sb3_generators`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarl.processes import ProcessLocal


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands a generator to every random operator of the thread that it is open in."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer no: to be skipped by PyTorch's compiler, the first draw would import it, for more than a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            if not any(argument.name == "generator" for argument in func._schema.arguments):
                # torch.randint and its like have one form with a generator and one without.
                plain = func._overloadname
                func = getattr(func.overloadpacket, "generator" if plain == "default" else f"{plain}_generator")
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let PyTorch draw, in this thread, the numbers that it draws after ``torch.manual_seed(seed)``.

    The global generator, which other threads draw from too, is neither read nor moved.
    """
    with _Drawing(torch.Generator().manual_seed(seed)):
        yield


_SB3: ProcessLocal[Any] = ProcessLocal(threading.RLock)


@contextmanager
def sb3_alone() -> Iterator[None]:
    """Be the only thread of this process that is in here."""
    with _SB3.get():
        yield


@contextmanager
def sb3_generators() -> Iterator[None]:
    """Have the global generators of Python, NumPy and PyTorch, which SB3 draws from, and put them back as they were.

    One thread at a time: another one waits until this one is done, so stock algorithms learn side by side in processes
    only. Code that draws from the global generators without asking here still gets in the way.
    """
    with sb3_alone():
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (SB3 draws minibatches from it)
        with torch.random.fork_rng(devices=[]):
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy)  # noqa: NPY002
