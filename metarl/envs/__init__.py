"""Families of tasks: what is learnt on. Importing this registers them, here and with Gymnasium."""

from metarl.envs.atari.family import Atari
from metarl.envs.checker.family import FamilyCheckError, check_family
from metarl.envs.family import SPLITS, Family, State, Step
from metarl.envs.groups import Group, group_tasks
from metarl.envs.gym.family import GymFamily, from_gym
from metarl.envs.imitation import ant_leg as ant_leg_imitation
from metarl.envs.imitation import ant_leg_transfer, maze_transfer
from metarl.envs.imitation import maze as maze_imitation
from metarl.envs.imitation import point_mass as point_mass_imitation
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.maze.grid import parse_maze
from metarl.envs.maze.maze import Maze
from metarl.envs.mujoco import ant, ant_leg, half_cheetah, pendulum
from metarl.envs.plane import point_mass, point_mass_families
from metarl.envs.plane.point_mass import PointMass
from metarl.envs.registry import family_ids, make_family, register_family
from metarl.envs.score import Score
from metarl.envs.supervised import continual_sinusoid, cosine_sine, sinusoid, sinusoid_families
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.supervised.sinusoid import Sinusoid
from metarl.envs.supervised.vision import multi_cv, omniglot
from metarl.envs.tasks import Task, Tasks, concatenate_tasks, n_tasks, one_task, stack_tasks, take_tasks
from metarl.envs.two_levels import TwoLevels
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.single import SingleEnv, episode_stream
from metarl.envs.views.trials import TrialEnv, Trials

__all__ = [
    "SPLITS",
    "Atari",
    "Expert",
    "Family",
    "FamilyCheckError",
    "Group",
    "GymFamily",
    "Imitation",
    "Maze",
    "OneStep",
    "Oracle",
    "PointMass",
    "Score",
    "SingleEnv",
    "Sinusoid",
    "State",
    "Step",
    "Task",
    "Tasks",
    "TrialEnv",
    "Trials",
    "TwoLevels",
    "ant",
    "ant_leg",
    "ant_leg_imitation",
    "ant_leg_transfer",
    "check_family",
    "concatenate_tasks",
    "continual_sinusoid",
    "cosine_sine",
    "episode_stream",
    "family_ids",
    "from_gym",
    "group_tasks",
    "half_cheetah",
    "make_family",
    "maze_imitation",
    "maze_transfer",
    "multi_cv",
    "n_tasks",
    "omniglot",
    "one_task",
    "parse_maze",
    "pendulum",
    "point_mass",
    "point_mass_families",
    "point_mass_imitation",
    "register_family",
    "sinusoid",
    "sinusoid_families",
    "stack_tasks",
    "take_tasks",
]
