"""Where differences are no more than rounding: what float32 loses of rewards, and advantages of equal returns."""

from __future__ import annotations

import warnings

import numpy as np

from metarl.errors import MetaRLWarning, shorten

ROUNDING = 8.0 * float(np.finfo(np.float32).eps)
"""Relative differences up to this, 1e-6, are rounding of the float32 that rewards are kept in."""
EXACT = 1e-12
"""Relative differences up to this are rounding of the float64 that families compute rewards in."""


def nothing_differs(rewards: np.ndarray, mask: np.ndarray, terminated: np.ndarray) -> np.ndarray:
    """Return whether all returns of a task are equal by themselves, ``[task]``: then no action was better than another.

    That is a constant reward in episodes that are equally long and end alike. The parameters are those of
    :class:`~metarl.agents.sampling.episodes.Episodes`.
    """
    low, high = _range(rewards, mask)
    lengths = mask.sum(-1)
    taken = lengths > 0
    ended = terminated & taken
    equally_long = ((lengths == lengths.max(1, keepdims=True)) | ~taken).all(1)
    end_alike = (ended == taken).all(1) | ~ended.any(1)
    result: np.ndarray = equally_long & end_alike & _is_rounding(low, high, ROUNDING) & (lengths.sum(1) > 1)
    return result


def is_rounding(values: np.ndarray, mask: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return whether the values of a task, more than one, differ by rounding only, ``[task]``.

    :param values: ``[task, …]``.
    :param mask: of its shape, which of them count; of each task at least one.
    :param size: ``[task, …]``, the numbers that they are differences of.
    """
    low, high = _range(values, mask)
    several = mask.sum(tuple(range(1, mask.ndim))) > 1
    result: np.ndarray = several & (high - low <= ROUNDING * np.maximum(*np.abs(_range(size, mask))))
    return result


def warn_of_lost_digits(name: str, rewards: np.ndarray, mask: np.ndarray) -> None:
    """Warn where float32, in which rewards are kept, does not hold what they differ in.

    :param name: whose rewards they are.
    :param rewards: float64, ``[task, env, time]``.
    :param mask: of its shape, which of them count; of each task at least one.
    """
    low, high = _range(rewards, mask)
    lost = _is_rounding(low, high, ROUNDING) & ~_is_rounding(low, high, EXACT)
    if lost.any():
        task = int(np.argmax(lost))
        warnings.warn(
            f"rewards of {shorten(name, quote=False)} are between {low[task]:.10g} and {high[task]:.10g}: "
            "float32, in which they are kept, does not hold what they differ in: subtract a constant from them",
            MetaRLWarning,
            stacklevel=2,
        )


def _range(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest value of each task, ``[task]``."""
    axes = tuple(range(1, values.ndim))
    counted: np.ndarray | bool = True if mask.all() else mask  # NumPy is several times faster where all count
    low = np.min(values, axis=axes, where=counted, initial=np.inf)
    high = np.max(values, axis=axes, where=counted, initial=-np.inf)
    return low.astype(np.float64), high.astype(np.float64)


def _is_rounding(low: np.ndarray, high: np.ndarray, relative: float) -> np.ndarray:
    result: np.ndarray = high - low <= relative * np.maximum(np.abs(low), np.abs(high))
    return result
