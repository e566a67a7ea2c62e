"""Supervised tasks as environments of one step."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.checker.common import FamilyCheckError
from metarl.envs.checker.family import check_family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.streams import stream


class Planes(OneStep):
    """Two numbers that are linear in two others."""

    def __init__(self) -> None:
        self.id = "Planes-v0"
        self.task_space = Dict({"slopes": Box(-1.0, 1.0, (2, 2), np.float64)})
        self.observation_space, self.action_space = Box(-1, 1, (2,), np.float32), Box(-2, 2, (2,), np.float32)

    def examples(self, tasks, rngs, n):
        x = np.stack([rng.uniform(-1, 1, (n, 2)) for rng in rngs]).astype(np.float32)
        return x, np.einsum("tij,tnj->tni", tasks["slopes"], x)


class Halves(OneStep):
    """Three classes, counted from 5: which third of the numbers from the task's edge on an input is in."""

    loss = "cross_entropy"

    def __init__(self) -> None:
        self.id = "Halves-v0"
        self.task_space = Dict({"edge": Box(0.0, 1.0, (), np.float64)})
        self.observation_space, self.action_space = Box(0, 1, (1,), np.float32), Discrete(3, start=5)

    def examples(self, tasks, rngs, n):
        x = np.stack([rng.uniform(0, 1, (n, 1)) for rng in rngs])
        third = np.floor(3 * np.mod(x[..., 0] - tasks["edge"][:, None], 1.0)).astype(np.int64)
        return x, 5 + third


def start(family, n_envs=4):
    tasks = family.sample_tasks(stream(0, "tasks"), 3)
    rngs = [stream(0, "test", task) for task in range(3)]
    return tasks, *family.reset(tasks, rngs, n_envs)


@pytest.mark.parametrize("make", [Planes, Halves, lambda: Oracle(Planes()), lambda: Oracle(Halves())])
def test_they_keep_every_promise(make):
    check_family(make())


def test_an_episode_is_one_example_and_ends_by_itself():
    for family in (Planes(), Halves()):
        tasks, state, obs = start(family)
        step = family.step(tasks, state, np.zeros((3, 4, *family.action_space.shape), int), [], None)
        assert family.horizon == 1
        assert step.terminated.all()
        np.testing.assert_array_equal(step.obs, obs)


def test_the_reward_is_minus_the_squared_error_summed_over_a_prediction():
    family = Planes()
    tasks, state, obs = start(family)
    target = np.einsum("tij,tnj->tni", tasks["slopes"], obs)
    step = family.step(tasks, state, target + np.array([0.1, -0.3]), [], None)
    np.testing.assert_allclose(step.reward, -(0.01 + 0.09))
    np.testing.assert_allclose(step.info["target"], target)
    np.testing.assert_array_equal(step.info["reward_squared_error"], step.reward)
    far = family.step(tasks, state, np.full((3, 4, 2), 50.0), [], None)
    np.testing.assert_allclose(far.reward, -np.square(2.0 - target).sum(-1))


def test_the_reward_of_a_class_is_1_where_it_is_right():
    family = Halves()
    tasks, state, obs = start(family)
    target = 5 + np.floor(3 * np.mod(obs[..., 0] - tasks["edge"][:, None], 1.0)).astype(int)
    actions = np.where(np.arange(4) < 2, target, 5 + (target - 4) % 3)
    step = family.step(tasks, state, actions, [], None)
    np.testing.assert_array_equal(step.reward, np.broadcast_to([1.0, 1.0, 0.0, 0.0], (3, 4)))
    np.testing.assert_array_equal(step.info["target"], target)


def test_an_oracle_declares_the_loss_too():
    assert Oracle(Halves()).loss == "cross_entropy"
    assert Oracle(Planes()).loss == "squared_error"


def test_views_report_the_target_of_their_copy():
    family = Planes()
    slopes = np.array([[1.0, 0.5], [0.0, -1.0]])
    env = SingleEnv(family, slopes=slopes)
    obs, _ = env.reset(seed=3)
    *_, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated) == (True, False)
    np.testing.assert_allclose(info["target"], slopes @ obs)
    vec = FamilyVecEnv(family, {"slopes": slopes[None]}, n_envs=2, seed=3)
    first = vec.reset()
    np.testing.assert_array_equal(first[0], obs)
    _, rewards, dones, infos = vec.step(np.zeros((2, 2)))
    assert dones.all()
    for index in range(2):
        np.testing.assert_allclose(infos[index]["target"], slopes @ first[index])
        assert infos[index]["episode"]["r"] == pytest.approx(float(rewards[index]), abs=1e-5)
    np.testing.assert_array_equal(vec.reward_terms["target"], [info["target"] for info in infos])


class Untold(Planes):
    def step(self, tasks, state, actions, rngs, active=None):
        step = super().step(tasks, state, actions, rngs, active)
        return step._replace(info={"reward_squared_error": step.reward})


class Narrow(Planes):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs, n)
        return x, y[..., :1]


class Uncounted(Halves):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs, n)
        return x, y - 5


class Wrong(Planes):
    loss = "cross_entropy"


class Unknown(Planes):
    loss = "hinge"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Untold, "loss is declared, and info has no target, at time step 1"),
        (Narrow, r"info 'target' is \[2, 2, 1\] float64, not \[2, 2, 2\] numbers"),
        (Uncounted, r"info 'target' has [012], which Discrete\(3, start=5\) has not"),
        (Wrong, "loss='cross_entropy' with action_space Box.*: it takes a Discrete"),
        (Unknown, "loss='hinge': None or one of squared_error, cross_entropy"),
    ],
)
def test_what_does_not_go_together_is_found(broken, words):
    with pytest.raises(FamilyCheckError, match=words):
        check_family(broken(), n=2)


def test_terms_of_the_reward_have_no_further_axes():
    class Long(Planes):
        def step(self, tasks, state, actions, rngs, active=None):
            step = super().step(tasks, state, actions, rngs, active)
            return step._replace(info={**step.info, "reward_squared_error": step.reward[..., None]})

    with pytest.raises(FamilyCheckError, match=r"info 'reward_squared_error' is .* float64, not numbers"):
        check_family(Long())
