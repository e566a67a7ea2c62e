"""Extremes of numbers: what is rounding stays small, and what float32 does not hold is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.baseline import standardize
from metarl.agents.learners.optimizers import clip_norms
from metarl.agents.learners.ppo import PPO
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.rounding import is_rounding, nothing_differs, warn_of_lost_digits
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks
from metarl.envs.views.single import SingleEnv
from metarl.errors import ConfigError, MetaRLWarning, NonFiniteError
from tests.agents.toys import make_seeds, make_stack

LEARNERS: dict[str, Callable[..., Any]] = {
    "vpg": VPG,
    "a2c": lambda policy, **kwargs: A2C(policy, normalize_advantage=True, **kwargs),
    "ppo": PPO,
}
Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Paid(Family):
    """A random walk whose reward is a function of noise and of the action.

    :param random_end: episodes may end at any step.
    """

    id = "Paid-v0"
    horizon = 10

    def __init__(self, reward: Reward, random_end: bool = False) -> None:
        self.task_space = spaces.Dict({"x": spaces.Box(0.0, 1.0, (), np.float64)})
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._reward = reward
        self._random_end = random_end

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.stack([rng.standard_normal((n_envs, 2)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        action = np.clip(actions, -1.0, 1.0).astype(np.float64)
        noise = np.stack([rng.standard_normal(action.shape[1]) for rng in rngs])
        x = state["x"] + 0.1 * action
        ends = (noise > 1.0) & self._random_end
        return Step({"x": x}, x.astype(np.float32), self._reward(noise, action[..., 0]), ends, {})


def advantages(name: str, reward: Reward, random_end: bool = False, **kwargs: Any) -> torch.Tensor:
    """Return the advantages of two tasks with five copies, padding included."""
    family = Paid(reward, random_end)
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, None, critic=name != "vpg")
    params = make_stack(policy, 2)
    tasks = {"x": np.zeros(2)}
    episodes = collect(family, policy, params, tasks, make_seeds(2), n_episodes=5)
    found: torch.Tensor = LEARNERS[name](policy, **kwargs).process(episodes, params).advantages
    return found


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("size", [0.0, 1.0, -1e6])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_constant_reward_is_nothing_to_learn_from(name: str, size: float, gamma: float) -> None:
    found = advantages(name, lambda noise, action: np.full(noise.shape, size), gamma=gamma)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_constant_reward_is_much_to_learn_from_where_episodes_end(name: str) -> None:
    found = advantages(name, lambda noise, action: np.ones(noise.shape), random_end=True)
    assert float(found.abs().max()) > 1.0


@pytest.mark.parametrize("name", LEARNERS)
def test_small_differences_are_learnt_from_at_full_size(name: str) -> None:
    small = advantages(name, lambda noise, action: 1.0 + 1e-3 * action)
    assert 1.0 < float(small.abs().max()) < 10.0
    if name == "vpg":
        tiny, plain = (advantages(name, lambda noise, action, scale=scale: scale * action) for scale in (1e-6, 1.0))
        np.testing.assert_allclose(tiny, plain, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", LEARNERS)
def test_advantages_that_are_rounding_stay_small(name: str) -> None:
    # Rewards of a million that differ by one unit of float32's last digit or two.
    family = Paid(lambda noise, action: np.ones(noise.shape))
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, None, critic=name != "vpg")
    shape = (1, 4, 1)
    rewards = np.float32(1e6) + np.array([0.0, 0.0625, 0.0, 0.125], dtype=np.float32).reshape(shape)
    episodes = Episodes(
        obs=np.zeros((*shape, 2), dtype=np.float32),
        actions=np.zeros((*shape, 2), dtype=np.float32),
        rewards=rewards,
        mask=np.ones(shape, dtype=bool),
        terminated=np.ones(shape[:2], dtype=bool),
        final_obs=np.zeros((1, 4, 2), dtype=np.float32),
    )
    assert len(np.unique(rewards)) == 3
    found = LEARNERS[name](policy).process(episodes, make_stack(policy, 1)).advantages
    assert torch.equal(found, torch.zeros_like(found))


def test_what_differs_by_rounding() -> None:
    mask = np.array([[[True, True, False]], [[True, False, False]]])
    values = np.array([[[1.0, 1.0 + 5e-7, np.nan]], [[1.0, np.nan, np.nan]]])
    size = np.ones(mask.shape)
    # A single value is no difference.
    assert is_rounding(values, mask, size).tolist() == [True, False]
    assert is_rounding(values, mask, 0.1 * size).tolist() == [False, False]


def test_returns_that_are_equal_by_themselves() -> None:
    mask = np.array([[[True, True], [True, True], [False, False]]])
    rewards, ends = np.full(mask.shape, 2.0), np.zeros((1, 3), dtype=bool)
    assert nothing_differs(rewards, mask, ends).tolist() == [True]
    assert nothing_differs(rewards, mask, ~ends).tolist() == [True]
    assert nothing_differs(rewards, mask, np.array([[True, False, False]])).tolist() == [False]
    assert nothing_differs(rewards + np.array([0.0, 1e-3]), mask, ends).tolist() == [False]
    shorter = mask & np.array([[[True, True], [True, False], [True, True]]])
    assert nothing_differs(rewards, shorter, ends).tolist() == [False]
    one = np.array([[[True, False]]])
    assert nothing_differs(np.ones(one.shape), one, np.array([[True]])).tolist() == [False]


def test_standardising_leaves_usual_advantages_alone() -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.standard_normal((2, 3, 4)), np.ones((2, 3, 4), dtype=bool)
    found = standardize(values, mask, nothing=np.array([False, True]))
    np.testing.assert_array_equal(found[0], standardize(values, mask)[0])
    assert not found[1].any()


def test_rewards_that_float32_does_not_hold_are_said() -> None:
    family = Paid(lambda noise, action: 1e8 + noise)
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space)
    params, tasks = make_stack(policy, 1), {"x": np.zeros(1)}
    with pytest.warns(MetaRLWarning, match="rewards of Paid-v0 are between .* float32, in which they are kept"):
        collect(family, policy, params, tasks, make_seeds(1), n_episodes=3)
    one = {name: tensor[0] for name, tensor in params.items()}
    with pytest.warns(MetaRLWarning, match="float32, in which they are kept"):
        collect_env(SingleEnv(family, x=0.0), policy, one, make_seeds(1)[0], 3)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e8, 1e30])
def test_constant_rewards_are_held(reward: float) -> None:
    rewards = np.full((2, 3, 4), reward)
    warn_of_lost_digits("x", rewards, np.ones(rewards.shape, dtype=bool))
    warn_of_lost_digits("x", rewards * (1.0 + 1e-5 * np.arange(4)), np.ones(rewards.shape, dtype=bool))
    # What is no step does not count.
    rewards[0, 1, 2] = reward + 0.5 * np.spacing(np.float32(reward)).astype(np.float64)
    mask = np.ones(rewards.shape, dtype=bool)
    mask[0, 1, 2] = False
    warn_of_lost_digits("x", rewards, mask)


def test_rewards_beyond_float32_are_no_numbers() -> None:
    family = Paid(lambda noise, action: 1e39 * (2.0 + action))
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space)
    with pytest.raises(NonFiniteError, match="non-finite reward"):
        collect(family, policy, make_stack(policy, 1), {"x": np.zeros(1)}, make_seeds(1), n_episodes=2)


def test_a_gradient_whose_norm_overflows_is_clipped_to_the_norm() -> None:
    gradient = torch.tensor([[3e30, 4e30], [0.3, 0.4], [3.0, 4.0], [3e38, -3e38]])
    clip_norms(gradient, 1.0)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8], [0.5**0.5, -(0.5**0.5)]], rtol=1e-5)


@pytest.mark.parametrize("log_std", [-20.0, -13.9, 40.5, 60])
def test_standard_deviations_that_nothing_can_be_computed_with(log_std: float) -> None:
    family = Paid(lambda noise, action: action)
    kwargs = {"log_std_init": log_std}
    with pytest.raises(ConfigError, match=r"log_std_init=.* is outside \(-13.82, 40\]"):
        FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs)
