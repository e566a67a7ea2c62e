"""What shows how learning goes on: a bar, and the time that phases take."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from metarl.envs.family import score_of

PRE, POST = "meta/pre_adapt_rew", "meta/post_adapt_rew"
"""Logger keys of the mean return of training tasks before and after adaptation."""
Progress = Callable[[int, int], None]
"""Is called with (parts done, parts in all)."""


def counted(progress: Progress | None, n_units: int) -> Callable[[int], None] | None:
    """Return what counts units of work and hands the count on; None where nobody listens."""
    if progress is None:
        return None
    done = 0

    def told(n: int) -> None:
        nonlocal done
        done += n
        progress(done, n_units)

    return told


@dataclass(frozen=True)
class Work:
    """How far a meta-iteration is, as callbacks hear of it.

    :param tasks: which tasks are learnt at the moment, in a few words.
    :param n_done: units of work of their walk that are done.
    :param n_units: units that it has.
    :param env_steps: of the meta-iteration so far.
    """

    tasks: str
    n_done: int
    n_units: int
    env_steps: int


class UnitCallback(BaseCallback):
    """A callback that is called inside meta-iterations too, after every unit of work: an inner step of the tasks that
    are learnt together, or a whole task around a stock algorithm::

        from metarl.meta.progress import UnitCallback

        class Saving(UnitCallback):
            def on_unit(self, work):
                self.model.save("in_between")  # a file that training goes on from, in the middle of a meta-iteration
                return work.env_steps < 10**6

            def _on_step(self):
                return True
    """

    @abstractmethod
    def on_unit(self, work: Work) -> bool:
        """Hear of a unit that is done; return False to stop here: ``learn`` returns, and goes on here the next time."""


def unit_callbacks(callback: BaseCallback) -> list[UnitCallback]:
    """Return the callbacks among those that a callback consists of that hear of units."""
    if isinstance(callback, CallbackList):
        return [each for part in callback.callbacks for each in unit_callbacks(part)]
    return [callback] if isinstance(callback, UnitCallback) else []


class ProgressBar(UnitCallback):
    """A bar over env steps with rate and time left; inside a long meta-iteration it names the tasks that are learnt."""

    def _on_training_start(self) -> None:
        from tqdm.auto import tqdm

        total = self.locals["total_timesteps"]
        unit = f" {score_of(self.model.family).budget}"  # type: ignore[attr-defined]
        self._bar = tqdm(total=total, initial=self.model.num_timesteps, unit=unit, unit_scale=True)

    def on_unit(self, work: Work) -> bool:
        if work.n_units > 1:
            self._bar.set_postfix_str(f"{work.tasks}: {work.n_done}/{work.n_units}")
        self._bar.update(self.model.num_timesteps + work.env_steps - self._bar.n)
        return True

    def _on_step(self) -> bool:
        stats = self.locals.get("stats", {})
        if POST in stats:
            score = score_of(self.model.family)  # type: ignore[attr-defined]
            self._bar.set_postfix_str(score.change(stats[PRE], stats[POST]))
        self._bar.update(self.model.num_timesteps - self._bar.n)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


class Timer:
    """Seconds spent in named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the ``with`` block to ``phase``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add({phase: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds to phases, as another timer has them."""
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value
