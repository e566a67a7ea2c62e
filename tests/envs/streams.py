"""The generators of a few tasks."""

from __future__ import annotations

import numpy as np

from metarl.streams import stream


def task_streams(seed: int, purpose: str, iteration: int, n_tasks: int) -> list[np.random.Generator]:
    """Return one generator for each task, addressed ``(iteration, task)``."""
    return [stream(seed, purpose, iteration, task) for task in range(n_tasks)]
