"""Trials: several episodes of one task as one, in which the last step is observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from metarl.envs import Family, State, Step, TrialEnv, Trials, check_family, from_gym, make_family
from metarl.envs.tasks import Tasks
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError


class Counted(Family):
    """An episode is as long as the task says, or as the stream says; it starts where the stream says."""

    def __init__(self, horizon: int = 3) -> None:
        self.id = "Counted-v0"
        self.task_space = spaces.Dict({"length": spaces.Discrete(3, start=1)})
        self.observation_space = spaces.Box(-1.0, 99.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3, start=2)
        self.horizon = horizon

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        place = np.stack([rng.uniform(size=n_envs) for rng in rngs])
        return {"place": place, "left": np.repeat(tasks["length"][:, None], n_envs, 1)}, _seen(place)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        place, left = state["place"] + 1.0, state["left"] - 1
        reward = (actions * tasks["length"][:, None]).astype(np.float64)
        return Step({"place": place, "left": left}, _seen(place), reward, left == 0, {"reward_all": reward})


def _seen(place: np.ndarray) -> np.ndarray:
    return place[..., None].astype(np.float32)


def _streams(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(n)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_family("PointMass-v0", horizon=4),
        lambda: make_family("Sinusoid-v0"),
        lambda: make_family("Maze-v0"),
        lambda: make_family("HalfCheetahVel-v0", horizon=3),
        lambda: from_gym("Pendulum-v1", {"g": (5.0, 15.0), "m": (0.5, 2.0)}, horizon=3),
        Counted,
    ],
)
def test_trials_keep_the_promises_of_a_family(make: Callable[[], Family]) -> None:
    check_family(Trials(make(), 3))


def test_what_is_seen_of_the_last_step() -> None:
    family = Trials(Counted(), 2)
    tasks = {"length": np.array([2, 3])}
    rngs = _streams(2)
    state, obs = family.reset(tasks, rngs, 1)
    first, _ = Counted().reset(tasks, _streams(2), 1)
    assert family.horizon == 6
    np.testing.assert_array_equal(obs[:, 0, 1:], np.zeros((2, 5)))  # three choices, reward, end of an episode
    np.testing.assert_array_equal(obs[:, 0, 0], first["place"][:, 0].astype(np.float32))
    choices, seen, ends = [2, 3, 4, 2, 3, 4], [], []
    for choice in choices:
        step = family.step(tasks, state, np.full((2, 1), choice), rngs)
        state = step.state
        seen.append(step.obs[:, 0])
        ends.append(step.ended[:, 0])
    told = np.stack(seen, axis=1)
    np.testing.assert_array_equal(told[..., 1:4], np.broadcast_to(np.eye(3)[[0, 1, 2, 0, 1, 2]], (2, 6, 3)))
    np.testing.assert_array_equal(told[..., 4], np.outer([2, 3], choices))
    # A task of 2 steps has its second episode over after 4; one of 3 is cut by nothing, and ends by itself as well.
    np.testing.assert_array_equal(told[:, :4, 5], [[0, 1, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(np.stack(ends, axis=1)[0, :4], [False, False, False, True])
    np.testing.assert_array_equal(np.stack(ends, axis=1)[1], [False] * 5 + [True])
    assert 0.0 < told[0, 1, 0] < 1.0  # the second episode begins in the step that ends the first
    assert told[0, 1, 0] != obs[0, 0, 0]


def test_a_trial_ends_as_its_last_episode_does() -> None:
    tasks, actions = {"length": np.array([2, 3])}, np.full((2, 1), 2)
    family, rngs = Trials(Counted(horizon=2), 2), _streams(2)
    state, _ = family.reset(tasks, rngs, 1)
    for k in range(4):
        step = family.step(tasks, state, actions, rngs)
        state = step.state
        np.testing.assert_array_equal(step.ended, np.full((2, 1), k == 3))
    assert step.truncated is not None
    np.testing.assert_array_equal(step.terminated[:, 0], [True, False])
    np.testing.assert_array_equal(step.truncated[:, 0], [False, True])


def test_later_episodes_of_a_copy_do_not_depend_on_how_long_others_last() -> None:
    family = Trials(Counted(), 3)

    def starts(lengths: list[int], n_envs: int, active: np.ndarray | None) -> np.ndarray:
        tasks, rngs = {"length": np.array(lengths)}, _streams(len(lengths))
        state, _ = family.reset(tasks, rngs, n_envs)
        found = []
        for _ in range(9):
            step = family.step(tasks, state, np.full((len(lengths), n_envs), 2), rngs, active)
            state = step.state
            found.append(step.obs[0, 0, 0])
        return np.array(found)

    alone = starts([3], 1, None)
    np.testing.assert_array_equal(starts([3, 1, 2], 1, None), alone)
    one_of_two = starts([3], 2, np.array([[True, False]]))
    np.testing.assert_array_equal(starts([3], 2, None), one_of_two)


def test_views_of_trials_are_those_of_any_family() -> None:
    env = gymnasium.make("PointMass-v0", trial_episodes=2, horizon=4, goal=[0.3, 0.1])
    assert isinstance(env.unwrapped, SingleEnv)
    assert env.unwrapped.horizon == 8
    by_hand = TrialEnv(gymnasium.make("PointMass-v0", horizon=4, goal=[0.3, 0.1]), n_episodes=2)
    assert by_hand.observation_space == env.observation_space
    sb3_check_env(by_hand, warn=False)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(env.reset(seed=0)[0], by_hand.reset(seed=0)[0])
    for k in range(8):
        action = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
        ours, theirs = env.step(action), by_hand.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4] == (ours[1], False, k == 7)


def test_actions_are_seen_as_the_environment_took_them() -> None:
    family = make_family("PointMass-v0", trial_episodes=2)
    tasks, rngs = family.tasks("test", 1), _streams(1)
    state, _ = family.reset(tasks, rngs, 1)
    step = family.step(tasks, state, np.array([[[7.0, -0.5]]], np.float32), rngs)
    np.testing.assert_array_equal(step.obs[0, 0, 2:4], np.array([1.0, -0.5], np.float32))


def test_an_oracle_may_have_trials_too() -> None:
    family = make_family("PointMass-v0", oracle=True, trial_episodes=2)
    assert family.observation_space.shape == (2 + 2 + 2 + 2,)


def test_a_stock_recurrent_algorithm_learns_on_trials() -> None:
    family = make_family("PointMass-v0", trial_episodes=2, horizon=4)
    env = FamilyVecEnv(family, family.tasks("validation", 2), n_envs=1, seed=0)
    small = {"lstm_hidden_size": 4, "net_arch": []}
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=small, seed=0)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(32)
    assert model.num_timesteps == 32
    assert any(not (tensor == before[name]).all() for name, tensor in model.policy.state_dict().items())
    assert {episode["l"] for episode in model.ep_info_buffer or []} == {8}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trials(make_family("PointMass-v0"), 0), "n_episodes=0"),
        (lambda: make_family("PointMassImitation-v0", trial_episodes=2), "scored in another family"),
        (lambda: make_family("PointMass-v0", trial_episodes="two"), "n_episodes=.two."),
        (lambda: Trials(make_family("PointMass-v0", trial_episodes=2)), "has trials already"),
        (lambda: TrialEnv(gymnasium.make("FrozenLake-v1")), "needs a vector"),
    ],
)
def test_what_has_no_trials_is_refused_in_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        make()
    assert "\n" not in str(found.value)
