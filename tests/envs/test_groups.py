"""Groups of tasks with equal spaces."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.checker.family import check_family
from metarl.envs.family import Family, Step, make_family
from metarl.envs.groups import group_tasks
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import TaskError


class Levers(Family):
    """Pull the right lever: some tasks have three, some have five."""

    def __init__(self) -> None:
        self.id = "Levers-v0"
        self.task_space = Dict({"levers": Discrete(2), "right": Discrete(3)})
        self.observation_space, self.action_space, self.horizon = Box(0, 1, (1,), np.float32), Discrete(3), 4

    def spaces(self, task):
        return self.observation_space, Discrete(5 if task["levers"] else 3)

    def reset(self, tasks, rngs, n_envs):
        last = np.zeros((len(rngs), n_envs, 1), np.float32)
        return {"last": last}, last.copy()

    def step(self, tasks, state, actions, rngs, active=None):
        hit = actions == tasks["right"][:, None]
        last = hit[..., None].astype(np.float32)
        reward = hit.astype(np.float64)
        return Step({"last": last}, last.copy(), reward, np.zeros(hit.shape, bool), {"reward_hit": reward})


TASKS = {"levers": np.array([1, 0, 1, 1, 0]), "right": np.array([0, 1, 2, 1, 0])}


def test_groups_keep_the_order_and_cover_the_batch():
    five, three = group_tasks(Levers(), TASKS)
    np.testing.assert_array_equal(five.indices, [0, 2, 3])
    np.testing.assert_array_equal(three.indices, [1, 4])
    assert five.action_space == Discrete(5)
    assert three.action_space == Discrete(3)
    assert five.observation_space == three.observation_space == Levers().observation_space
    np.testing.assert_array_equal(five.tasks["right"], [0, 2, 1])
    np.testing.assert_array_equal(three.tasks["levers"], [0, 0])


def test_equal_spaces_make_one_group():
    family = make_family("PointMass-v0")
    (group,) = group_tasks(family, family.tasks("test", 7))
    np.testing.assert_array_equal(group.indices, np.arange(7))


def test_families_with_different_spaces_pass_the_checks():
    check_family(Levers(), n=6)


def test_a_single_view_has_its_task_s_spaces():
    env = SingleEnv(Levers(), levers=1, right=2)
    assert env.action_space == Discrete(5)
    with pytest.raises(TaskError, match="has other spaces: make an environment for it"):
        env.set_task({"levers": 0, "right": 2})
    assert env.task == {"levers": 1, "right": 2}


def test_a_view_without_a_task_draws_one_of_its_spaces():
    for seed in range(8):
        env = SingleEnv(Levers())
        env.reset(seed=seed)
        assert env.task["levers"] == 0


def test_a_vec_env_takes_one_group():
    with pytest.raises(TaskError, match="these tasks of Levers-v0 have 2 different pairs of spaces: group them"):
        FamilyVecEnv(Levers(), TASKS)
    five, _ = group_tasks(Levers(), TASKS)
    env = FamilyVecEnv(Levers(), five.tasks, n_envs=2)
    assert env.action_space == Discrete(5)
    env.reset()
    _, rewards, _, _ = env.step(np.array([0, 0, 0, 2, 1, 4]))
    np.testing.assert_array_equal(rewards, [1, 1, 0, 1, 1, 0])
