"""Check that a family keeps the promises that the rest of metarl builds on."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from metarl.checks import COUNT, NONE, SEED, integer
from metarl.envs.checker.common import FamilyCheckError, blame, equal, family_name, require
from metarl.envs.checker.laws import check_hidden, check_streams, check_task_matters, check_timing
from metarl.envs.checker.levels import check_levels
from metarl.envs.checker.live import check_episodes, check_live_hidden, check_live_streams
from metarl.envs.checker.pictures import check_pictures
from metarl.envs.checker.probe import Probe, declarations, require_declared
from metarl.envs.checker.steps import check_edges, check_starts, check_steps, check_use
from metarl.envs.checker.support import check_support
from metarl.envs.checker.tasks import (
    check_declarations,
    check_finite_tasks,
    check_spaces,
    check_splits,
    check_training_draws,
    check_validation,
    different_tasks,
    edge_tasks,
)
from metarl.envs.checker.views import check_single
from metarl.envs.family import Family
from metarl.envs.groups import group_tasks
from metarl.envs.tasks import n_tasks, take_tasks

__all__ = ["FamilyCheckError", "check_family"]

MAX_STEPS = 500
"""Longest walk by default, env steps."""
REPEATED = (check_starts, check_steps, check_streams, check_hidden, check_timing)
"""What families are asked whose steps can be repeated from a state."""
LIVE = (check_starts, check_episodes, check_live_streams, check_live_hidden)
"""What live families are asked, whose episodes can be repeated from their start only."""


def check_family(family: Family, n: int = 4, n_envs: int = 2, n_steps: int | None = None, seed: int = 0) -> None:
    """Raise for the first promise that ``family`` breaks; return silently if it keeps them all.

    What a family promises is listed in :mod:`metarl.envs.promises`: its declarations; tasks and splits; arrays; numbers
    within their spaces, at the edges of the task space and with actions outside theirs too; that a step depends on its
    arguments alone and leaves them as they are; that randomness comes from the generators it is given; that nothing of
    the task can be seen (unless ``observes_task``) and every part of it matters; that observation and reward are of the
    state after the step; and that the single Gymnasium view equals the batch and passes Stable-Baselines3's checker.

    The same arguments check the same things: nothing here is drawn from elsewhere.

    :param n: tasks to try, 2 or more, besides those at the edges of the task space.
    :param n_envs: copies of each.
    :param n_steps: env steps that are walked; None: the whole horizon, at most 500.
    :param seed: of tasks, streams and actions.
    :raises FamilyCheckError: one line that says which promise is broken, and where it shows in a trajectory the time
        step (1 is an episode's first), the task and the value; whatever else the family raised is its cause.
    :raises ConfigError: an argument outside its range.
    """
    n, n_envs, n_steps = integer(2)("n", n), COUNT("n_envs", n_envs), (COUNT | NONE)("n_steps", n_steps)
    seed = SEED("seed", seed)
    try:
        with np.errstate(all="ignore"):
            _check(family, n, n_envs, n_steps, seed)
    except FamilyCheckError:
        raise
    except Exception as error:
        raise FamilyCheckError(f"{family_name(family)}: {blame(error)}") from error


def _check(family: Family, n: int, n_envs: int, n_steps: int | None, seed: int) -> None:
    check_declarations(family)
    declared = copy.deepcopy(declarations(family))
    n_steps = min(family.horizon, MAX_STEPS) if n_steps is None else n_steps
    # Not around the views: what they import draws from global generators.
    with _global_generators_kept(family):
        finite = family.finite_tasks()
        check_finite_tasks(family)
        check_levels(family, seed)
        check_training_draws(family, n, seed)
        tasks = different_tasks(family, n, seed)
        check_splits(family)
        check_validation(family, tasks)
        check_spaces(family, tasks)
        check_support(family, tasks, seed)
        groups = group_tasks(family, tasks)
        probes = [Probe(family, *group[1:], n_envs, n_steps, seed) for group in groups]
        for probe in probes:
            for check in LIVE if family.live else REPEATED:
                check(probe)
        edges = edge_tasks(family)
        if edges is not None:
            check_spaces(family, edges)
            check_support(family, edges, seed)
            for group in group_tasks(family, edges):
                check_edges(Probe(family, *group[1:], n_envs, n_steps, seed))
        if len(groups) == 1:
            # What is shown of two tasks may be alike here and there: they differ in the family that it is shown of.
            real = family.acts_in
            check_task_matters(real, tasks, (min(n_steps, 20, real.horizon), real.horizon), seed)
    for index in range(min(2, n_tasks(tasks))):
        check_single(family, take_tasks(tasks, slice(index, index + 1)), min(n_steps, 100), seed)
    check_pictures(family, groups[0].tasks, seed)
    for probe in probes:
        check_use(probe)
    require_declared(family, declared)
    now = family.finite_tasks()
    same = finite is None if now is None else finite is not None and equal(finite, now)
    require(same, family, "finite_tasks changes from call to call")


@contextmanager
def _global_generators_kept(family: Family) -> Iterator[None]:
    """Require that nobody has drawn from the process-wide generators, or seeded them."""
    before, ours = _numpys(), random.getstate()
    yield
    same = _numpys() == before
    require(same, family, "NumPy's global generator has moved: families draw from the generators they are given")
    same = random.getstate() == ours
    require(same, family, "the random module has moved: families draw from the generators they are given")


def _numpys() -> str:
    """Return the state of NumPy's global generator."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (nobody draws from it)
    return f"{state['state']['key'].tobytes()!r} {state['state']['pos']} {state['has_gauss']} {state['gauss']}"
