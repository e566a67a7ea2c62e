"""Bootstrap intervals whose unit is the task, then the run; never the episode.

Episodes of one task share its difficulty, and tasks of one run share its training, so an interval over pooled episodes
is far too narrow. Here tasks are resampled jointly for all runs (runs are tested on the same tasks), and runs on their
own, which is the pigeonhole bootstrap (Owen, 2007): it keeps both variances and is on the safe side for their
interaction. A resample of ``n`` units draws ``n − 1`` of them with replacement (Rao and Wu, 1988), which makes the
variance of a mean unbiased; drawing ``n`` understates that of 3 runs by a third. A single run adds nothing, so the
interval then says nothing about other training seeds; with 2 or 3 runs it still lacks the long tails of Student's t.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metarl.checks import COUNT, number
from metarl.envs.score import fixed
from metarl.errors import ConfigError
from metarl.streams import stream

CHUNK = 4_000_000
"""Numbers held at once while resampling (32 MB)."""
MANY = 500
"""Past so many units draws are counted one by one: NumPy's multinomial draws a binomial number for every unit."""
MIN_UNITS = 20
"""Fewest units, tasks or independent adaptations to all there are, for which a difference may count as clear.

Simulated, 47, 75, 87, 90 and 93 of 100 nominal 95% intervals of one run hold the truth with 2, 3, 5, 10 and 15 tasks of
normal returns (39, 66, 76, 83 and 86 with lognormal ones); from 20 on it is 92 to 94 (87 to 92). See
``python -m benchmarks.coverage``.
"""


class Interval(NamedTuple):
    """A mean and the ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return ``mean [low, high]``; of an interval without width, as a single task gives, the mean alone."""
        digits = 2 if max(abs(self.mean), abs(self.low), abs(self.high)) < 100 else 1
        if self.low == self.high:
            return fixed(self.mean, digits)
        mean, low, high = (fixed(value, digits) for value in self)
        return f"{mean} [{low}, {high}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside. An interval without width says nothing."""
        return self.low < self.high and (self.low > 0.0 or self.high < 0.0)


class Bands(NamedTuple):
    """Intervals of several points, for instance inner steps: each field is ``[point]``."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, point: int) -> Interval:
        """Return the interval of one point."""
        return Interval(float(self.mean[point]), float(self.low[point]), float(self.high[point]))

    def signed(self, sign: int) -> Bands:
        """Return the intervals of the values times 1 or -1."""
        # Not -x: that of 0 is -0.
        return self if sign > 0 else Bands(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)

    @property
    def n_points(self) -> int:
        """How many points there are."""
        return len(self.mean)


def bootstrap_interval(
    values: np.ndarray,
    level: float = 0.95,
    n_resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    strata: np.ndarray | None = None,
) -> Interval:
    """Return the mean over runs and tasks with its bootstrap interval.

    :param values: ``[run, task]`` or ``[task]``, one number for each task of each run: the mean of its episodes.
    :param level: coverage, in (0, 1).
    :param n_resamples: bootstrap resamples.
    :param rng: the generator; by default a fixed stream, so the same values give the same interval.
    :param strata: ``[task]``, for families of fewer than 10 distinct tasks: which of them each entry is. The entries
        are then independent adaptations, resampled within their task.
    :raises ConfigError: a wrong shape, NaN or infinity, or a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise ConfigError(f"values has shape {values.shape}: use [run, task] or [task]")
    return bootstrap_bands(np.atleast_2d(values)[..., None], level, n_resamples, rng, strata).at(0)


def bootstrap_bands(
    values: np.ndarray,
    level: float = 0.95,
    n_resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    strata: np.ndarray | None = None,
) -> Bands:
    """Return the intervals of several points from the same resamples.

    :param values: ``[run, task, point]``; the other parameters are those of :func:`bootstrap_interval`.
    """
    values = _require_finite(values, "values")
    rng = stream(0, "bootstrap") if rng is None else rng
    return _bands([values], [1.0], level, n_resamples, rng, strata)


def paired_interval(
    a: np.ndarray,
    b: np.ndarray,
    level: float = 0.95,
    n_resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    strata: np.ndarray | None = None,
) -> Interval:
    """Return the mean of ``a − b`` with its interval, for two methods tested on the same tasks and streams.

    Tasks are resampled jointly for both. Runs are resampled for each on its own: their numbers may differ, and what
    training seed 1 of two methods shares, initial parameters and training tasks, says little about where they end.

    :param a: ``[run, task]`` or ``[task]``.
    :param b: the same tasks, in the same order.
    :raises ConfigError: as in :func:`bootstrap_interval`, or the numbers of tasks differ.
    """
    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a, b))
    return paired_bands(a[..., None], b[..., None], level, n_resamples, rng, strata).at(0)


def paired_bands(
    a: np.ndarray,
    b: np.ndarray,
    level: float = 0.95,
    n_resamples: int = 10_000,
    rng: np.random.Generator | None = None,
    strata: np.ndarray | None = None,
) -> Bands:
    """Return the paired intervals of several points from the same resamples.

    :param a: ``[run, task, point]``; the other parameters are those of :func:`paired_interval`.
    """
    a, b = _require_finite(a, "a"), _require_finite(b, "b")
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(f"a paired interval needs the same tasks and points: got {a.shape[1:]} and {b.shape[1:]}")
    rng = stream(0, "bootstrap") if rng is None else rng
    return _bands([a, b], [1.0, -1.0], level, n_resamples, rng, strata)


def by_task(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Return the means over the adaptations to each distinct task, ``[run, distinct task, …]``.

    :param values: ``[run, adaptation, …]``.
    :param strata: ``[adaptation]``, which task each is to.
    """
    return np.stack([values[:, strata == task].mean(1) for task in np.unique(strata)], axis=1)


def _require_finite(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or 0 in values.shape:
        raise ConfigError(f"{name} has shape {values.shape}: use [run, task, point], none of them empty")
    if not np.isfinite(values).all():
        run, task, point = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ConfigError(f"{name} is {values[run, task, point]} at run {run}, task {task}, point {point}")
    return values


def _bands(
    parts: list[np.ndarray],
    signs: list[float],
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
    strata: np.ndarray | None,
) -> Bands:
    """Return the intervals of a signed sum of parts ``[run, task, point]`` that share their tasks."""
    level, n_resamples = number("(0, 1)")("level", level), COUNT("n_resamples", n_resamples)
    _, n_task, n_point = parts[0].shape
    groups = _groups(strata, n_task)
    size = max(1, CHUNK // (n_task * n_point))
    by_task = [np.moveaxis(part, 1, 0).reshape(n_task, -1) for part in parts]
    resampled = np.zeros((n_resamples, n_point))
    for start in range(0, n_resamples, size):
        rows = min(size, n_resamples - start)
        task_weights = np.empty((rows, n_task))
        for group in groups:
            task_weights[:, group] = _weights(rng, rows, len(group)) * (len(group) / n_task)
        for part, values, sign in zip(parts, by_task, signs, strict=True):
            by_run = (task_weights @ values).reshape(rows, len(part), n_point)
            run_weights = _weights(rng, rows, len(part))
            resampled[start : start + rows] += sign * np.einsum("br,brk->bk", run_weights, by_run)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=0)
    mean = np.zeros(n_point)
    for part, sign in zip(parts, signs, strict=True):
        mean += sign * part.mean((0, 1))
    return Bands(mean, low, high)


def _groups(strata: np.ndarray | None, n_task: int) -> list[np.ndarray]:
    """Return the indices of the units of each stratum."""
    if strata is None:
        return [np.arange(n_task)]
    strata = np.asarray(strata)
    if strata.shape != (n_task,):
        raise ConfigError(f"strata has shape {strata.shape}: use one for each of the {n_task} tasks")
    return [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]


def _weights(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Return resampling weights ``[row, unit]`` that sum to 1 over the units."""
    if n == 1:
        return np.ones((rows, 1))
    if n > MANY:
        drawn = rng.integers(n, size=(rows, n - 1), dtype=np.uint32)
        return np.stack([np.bincount(row, minlength=n) for row in drawn]) / (n - 1)
    weights: np.ndarray = rng.multinomial(n - 1, np.full(n, 1.0 / n), size=rows) / (n - 1)
    return weights
