"""Families of tasks: what is learnt on. Importing this registers them, here and with Gymnasium."""

from metarl.envs import ant, half_cheetah, point_mass
from metarl.envs.batch import SingleEnv, episode_stream
from metarl.envs.check import FamilyCheckError, check_family
from metarl.envs.family import (
    SPLITS,
    Family,
    State,
    Step,
    Task,
    Tasks,
    concatenate_tasks,
    family_ids,
    make_family,
    n_tasks,
    one_task,
    register_family,
    stack_tasks,
    take_tasks,
)
from metarl.envs.groups import Group, group_tasks
from metarl.envs.oracle import Oracle
from metarl.envs.point_mass import PointMass

__all__ = [
    "SPLITS",
    "Family",
    "FamilyCheckError",
    "Group",
    "Oracle",
    "PointMass",
    "SingleEnv",
    "State",
    "Step",
    "Task",
    "Tasks",
    "ant",
    "check_family",
    "concatenate_tasks",
    "episode_stream",
    "family_ids",
    "group_tasks",
    "half_cheetah",
    "make_family",
    "n_tasks",
    "one_task",
    "point_mass",
    "register_family",
    "stack_tasks",
    "take_tasks",
]
