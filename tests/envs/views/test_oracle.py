"""The oracle view."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.checker.family import check_family
from metarl.envs.family import Family, Step
from metarl.envs.registry import make_family
from metarl.envs.views.oracle import Oracle
from metarl.errors import ConfigError
from tests.envs.streams import task_streams


class Mixed(Family):
    """One parameter of each kind."""

    def __init__(self, shape: tuple[int, ...] = (2,)) -> None:
        self.id = "Mixed-v0"
        self.task_space = Dict({"gear": Discrete(3, start=1), "speed": Box(0.0, 1.0, (), np.float64)})
        self.shifted_space = Dict({"gear": Discrete(3, start=1), "speed": Box(1.0, 2.0, (), np.float64)})
        self.observation_space, self.action_space = Box(-9, 9, shape, np.float32), Box(-1, 1, (1,), np.float32)
        self.horizon = 3

    def reset(self, tasks, rngs, n_envs):
        obs = np.stack([rng.uniform(-1, 1, (n_envs, 2)) for rng in rngs]).astype(np.float32)
        return {"obs": obs}, obs.copy()

    def step(self, tasks, state, actions, rngs, active=None):
        obs = state["obs"] + np.clip(actions, -1, 1).astype(np.float32)
        reward = obs.sum(-1) * tasks["speed"][:, None] + tasks["gear"][:, None]
        return Step({"obs": obs}, obs.copy(), reward, np.zeros(reward.shape, bool), {"reward_sum": reward})


def test_the_observation_ends_with_the_task():
    oracle = Oracle(Mixed())
    tasks = oracle.validate_tasks({"gear": [3, 1], "speed": [0.25, 1.5]})
    np.testing.assert_array_equal(oracle.flatten_tasks(tasks), np.array([[0, 0, 1, 0.25], [1, 0, 0, 1.5]], np.float32))
    state, obs = oracle.reset(tasks, task_streams(0, "t", 0, 2), 3)
    inner_state, inner = Mixed().reset(tasks, task_streams(0, "t", 0, 2), 3)
    assert obs.shape == (2, 3, 6)
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs[..., :2], inner)
    np.testing.assert_array_equal(obs[1, :, 2:], np.broadcast_to([1, 0, 0, 1.5], (3, 4)))
    actions = np.full((2, 3, 1), 0.5, np.float32)
    step = oracle.step(tasks, state, actions, [])
    expected = Mixed().step(tasks, inner_state, actions, [])
    np.testing.assert_array_equal(step.obs[..., :2], expected.obs)
    np.testing.assert_array_equal(step.obs[0, 2, 2:], [0, 0, 1, 0.25])
    np.testing.assert_array_equal(step.reward, expected.reward)


def test_the_space_holds_shifted_tasks_too():
    space = Oracle(Mixed()).observation_space
    np.testing.assert_array_equal(space.low, np.array([-9, -9, 0, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(space.high, np.array([9, 9, 1, 1, 1, 2], np.float32))


def test_tasks_and_splits_are_the_family_s():
    family, oracle = make_family("PointMass-v0"), make_family("PointMass-v0", oracle=True)
    assert isinstance(oracle, Oracle)
    assert oracle.id == family.id
    assert oracle.horizon == family.horizon
    assert oracle.task_space == family.task_space
    assert oracle.action_space == family.action_space
    for split in ("validation", "test", "shifted"):
        np.testing.assert_array_equal(oracle.tasks(split, 5)["goal"], family.tasks(split, 5)["goal"])
    assert make_family("PointMass-v0", oracle=True, goals="corners").splits_coincide


def test_oracles_pass_the_checks():
    check_family(Oracle(Mixed()))
    check_family(make_family("PointMass-v0", oracle=True))


def test_oracle_needs_a_vector():
    with pytest.raises(ConfigError, match="an oracle needs a vector"):
        Oracle(Mixed((2, 2)))
    with pytest.raises(ConfigError, match="oracle='yes' is not true or false"):
        make_family("PointMass-v0", oracle="yes")
