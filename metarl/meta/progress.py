"""What shows how learning goes on: a bar, and the time that phases take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stable_baselines3.common.callbacks import BaseCallback

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


class ProgressBar(BaseCallback):
    """A bar over env steps with rate and time left."""

    def _on_training_start(self) -> None:
        from tqdm.auto import tqdm

        total = self.locals["total_timesteps"]
        self._bar = tqdm(total=total, initial=self.model.num_timesteps, unit=" env steps", unit_scale=True)

    def _on_step(self) -> bool:
        stats = self.locals.get("stats", {})
        if "meta/post_adapt_rew" in stats:
            self._bar.set_postfix_str(f"{stats['meta/pre_adapt_rew']:.1f} → {stats['meta/post_adapt_rew']:.1f}")
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
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
