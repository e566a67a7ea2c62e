"""Families of two levels: what is drawn of families, and of the tasks of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from metarl.envs.checker.common import equal, is_array, require
from metarl.envs.checker.tasks import require_valid, row_list
from metarl.envs.family import Family
from metarl.envs.promises import kind_of
from metarl.envs.tasks import Tasks, inside, n_tasks, take_tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import shorten
from metarl.streams import stream

N_FAMILIES, N_EACH = 16, 4
"""Families that are drawn, and tasks of each."""


def check_levels(family: Family, seed: int) -> None:
    """Require that families are points of their space, and that tasks are drawn inside the families that are given."""
    if not isinstance(family, TwoLevels):
        return
    families = _drawn(family, seed, 0)
    require(
        equal(families, _drawn(family, seed, 0)),
        family,
        "sample_families draws from something else than the generator it is given",
    )
    other = _drawn(family, seed, 1)
    require(
        row_list(families) != row_list(other),
        family,
        "sample_families ignores its generator: two streams draw the same families",
    )
    tasks = _tasks(family, families, seed)
    require(
        equal(tasks, _tasks(family, families, seed)),
        family,
        "sample_tasks within families draws from something else than the generator it is given",
    )
    _check_shared(family, families, tasks)
    many = row_list(tasks)
    require(
        any(len(set(many[i : i + N_EACH])) > 1 for i in range(0, len(many), N_EACH)),
        family,
        "sample_tasks draws one task of each family again and again",
    )
    _check_held_out(family, [*row_list(families), *row_list(other)])


def _drawn(family: TwoLevels, seed: int, index: int) -> Tasks:
    found = family.sample_families(stream(seed, "check/families", index), N_FAMILIES)
    _require_points(family, found, "sample_families", N_FAMILIES)
    return found


def _require_points(family: TwoLevels, found: Tasks, source: str, n: int) -> None:
    """Require ``n`` points of the space of families."""
    names = list(family.family_space.spaces)
    sound = isinstance(found, Mapping) and set(found) == set(names)
    sound = sound and all(is_array(value) and value.ndim > 0 and len(value) == n for value in found.values())
    words = f"not a dict of arrays [{n}, ...], {', '.join(names)}"
    require(sound, family, f"{source} gives {kind_of(found)}, {words}")
    for name, space in family.family_space.spaces.items():
        fits = found[name].shape[1:] == (space.shape or ()) and found[name].dtype == space.dtype
        require(fits, family, f"{source} gives {shorten(name)} as {kind_of(found[name])}, not as family_space has it")
        outside = np.flatnonzero(~inside(space, found[name]))
        value = shorten(found[name][outside[:1]].tolist())
        require(len(outside) == 0, family, f"{source} gives {name}={value}, outside family_space")


def _tasks(family: TwoLevels, families: Tasks, seed: int) -> Tasks:
    tasks = family.sample_tasks(stream(seed, "check/within"), N_EACH, families=families)
    require_valid(family, tasks, "sample_tasks within families")
    n, expected = n_tasks(tasks), N_EACH * N_FAMILIES
    words = f"sample_tasks(rng, {N_EACH}, families) of {N_FAMILIES} families returned {n} tasks, not {expected}"
    require(n == expected, family, words)
    return tasks


def _check_shared(family: TwoLevels, families: Tasks, tasks: Tasks) -> None:
    """Require of what a family and its tasks both have that it is the same."""
    for name in families.keys() & tasks.keys():
        own = np.repeat(families[name], N_EACH, axis=0)
        differ = np.flatnonzero((tasks[name] != own).reshape(len(own), -1).any(-1))
        for index in differ[:1]:
            found, expected = shorten(tasks[name][index].tolist()), shorten(own[index].tolist())
            what = f"a task within a family has {name}={found}, and its family {expected}"
            require(False, family, f"{what}: tasks of a family follow each other, {N_EACH} of the first and so on")


def _check_held_out(family: TwoLevels, trained: list[bytes]) -> None:
    """Require that lists of held-out families stay as they are, and apart from training."""
    for split in ("validation", "test"):
        many, few = family.families(split, 8), family.families(split, 3)
        _require_points(family, many, f"families({split!r}, 8)", 8)
        same = equal(few, take_tasks(many, slice(0, 3))) and equal(many, family.families(split, 8))
        require(same, family, f"the first families of the {split} split change with n or from call to call")
        continuous = len(set(trained)) == len(trained)  # draws from few families coincide anyhow
        apart = not continuous or not set(trained) & set(row_list(many))
        require(apart, family, f"training draws hold families of the {split} split")
