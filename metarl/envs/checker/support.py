"""What is seen of tasks in the family that is declared for it."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from metarl.envs.checker.common import FamilyCheckError, alike, blame, family_name, number, require, where
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks, n_tasks, take_tasks
from metarl.streams import stream

N_EXAMPLES = 5
"""Examples of each task that are looked at."""


def check_support(family: Family, tasks: Tasks, seed: int) -> None:
    """Require that the support family has sound examples of every task, each drawn from its own stream.

    :param tasks: of ``family``.
    """
    support = family.support_family
    if support is None:
        return
    assert isinstance(support, OneStep)
    inputs, targets = _examples(support, tasks, range(n_tasks(tasks)), seed)
    for what, array, space in (
        ("inputs", inputs, support.observation_space),
        ("targets", targets, support.action_space),
    ):
        expected = [n_tasks(tasks), N_EXAMPLES, *(space.shape or ())]
        require(
            isinstance(array, np.ndarray) and list(array.shape) == expected and array.dtype.kind in "biuf",
            support,
            f"examples gives {what} {list(np.shape(array))}, not {expected} numbers",
        )
        bad = ~np.isfinite(array).reshape(*array.shape[:2], -1).all(-1)
        if what == "inputs" and not bad.any():
            assert isinstance(space, spaces.Box)
            seen = array.astype(space.dtype)
            bad = ((seen < space.low) | (seen > space.high)).reshape(*array.shape[:2], -1).any(-1)
        if bad.any():
            task, copy = np.argwhere(bad)[0]
            words = f"examples gives {what} {number(array[task, copy])}, {where(0, tasks, int(task), int(copy))}"
            require(False, support, words)
    for task in range(n_tasks(tasks)):
        alone = _examples(support, take_tasks(tasks, slice(task, task + 1)), [task], seed)
        require(
            alike(alone[0][0], inputs[task]) and alike(alone[1][0], targets[task]),
            support,
            f"examples of a task depend on the other tasks or their streams, {where(0, tasks, task)}",
        )


def _examples(support: OneStep, tasks: Tasks, rows: range | list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        return support.examples(tasks, [stream(seed, "check/support", row) for row in rows], N_EXAMPLES)
    except Exception as error:
        raise FamilyCheckError(f"{family_name(support)}: {blame(error)}") from error
