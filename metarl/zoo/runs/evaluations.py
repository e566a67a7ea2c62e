"""The evaluations of a run: what its two ``.npz`` files hold, and how they are checked before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metarl.errors import CheckpointError, shorten
from metarl.files.writing import read_npz
from metarl.meta.evaluation.report import LARGEST_RETURN

RESULTS = ("timesteps", "results", "ep_lengths")
"""Arrays of evaluations.npz with a row for each evaluation: SB3's names, results are returns after adaptation."""
META = ("timesteps", "pre", "post", "env_steps")
"""The same for meta_evaluations.npz; its ``task_<parameter>`` arrays have a row for each task."""
TASK = "task_"
"""Begins their names."""


def read_results(path: Path, n_tasks: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of evaluations.npz.

    :param n_tasks: tasks in an evaluation; None: as many as there are.
    :raises CheckpointError: one is missing, holds something else than finite numbers, or has another shape.
    """
    return _read(path, RESULTS, n_tasks)


def read_meta(path: Path, n_tasks: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of meta_evaluations.npz; parameters and errors as in :func:`read_results`."""
    return _read(path, META, n_tasks)


def _read(path: Path, names: Sequence[str], n_tasks: int | None) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    for name in names:
        if name not in arrays:
            raise CheckpointError(f"{path} is damaged: {name} is missing")
    n, of_tasks = arrays["timesteps"].size, arrays[names[1]]
    if n_tasks is None:
        n_tasks = of_tasks.shape[1] if of_tasks.ndim == 2 else 0
    n_steps = arrays["post"].shape[1] if "post" in arrays and arrays["post"].ndim == 3 else 0
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (n, n_tasks))
    shapes |= {"timesteps": (n,)} | (
        {"post": (n, n_steps, n_tasks), "env_steps": (n, n_steps + 1)} if "post" in names else {}
    )
    for name, array in arrays.items():
        if name not in shapes and not name.startswith(TASK):
            continue
        shape = shapes.get(name, (n_tasks, *array.shape[1:]))
        if array.shape != shape or array.dtype.kind not in "iuf":
            found = f"{shorten(array.dtype, quote=False)} {list(array.shape)}"
            raise CheckpointError(f"{path} is damaged: {name} is {found}, not numbers {list(shape)}")
        if not (np.abs(array.astype(np.float64)) <= LARGEST_RETURN).all():
            raise CheckpointError(f"{path} is damaged: {name} holds NaN, or numbers beyond {LARGEST_RETURN:g}")
    if n and 0 in (n_tasks, n_steps if "post" in names else 1):
        raise CheckpointError(f"{path} is damaged: its evaluations are of no task or no inner step")
    return arrays
