"""Families that keep their promises pass the check, whatever their kind."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from metarl.envs import Oracle, check_family, make_family
from metarl.envs.checker.family import FamilyCheckError
from metarl.errors import ConfigError
from tests.envs.families import Bandit, CartPole, Finite, Maze, Pendulum, Reach, Sound, Spring


class Stateless(Bandit):
    """Nothing is kept, and nothing seen."""

    def reset(self, tasks, rngs, n_envs):
        return {}, np.zeros((len(rngs), n_envs, 1), np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        step = super().step(tasks, {"t": np.zeros(actions.shape, np.int64)}, actions, rngs, active)
        return step._replace(state={}, obs=np.zeros_like(step.obs))


FAITHFUL = {
    "CartPole, whose copies fall on": lambda: CartPole(horizon=60),
    "CartPole's oracle": lambda: Oracle(CartPole(horizon=30)),
    "Pendulum, paid before the step": Pendulum,
    "a slippery maze, sparse and ending early": Maze,
    "a maze's oracle": lambda: Oracle(Maze()),
    "a place that moves late": Spring,
    "actions carried out two steps later": lambda: Spring(late=2),
    "a bandit that observes what it was paid": Bandit,
    "a bandit without a state": Stateless,
    "one step": lambda: Reach(horizon=1),
    "two tasks": lambda: Finite(2),
}


@pytest.mark.parametrize("name", FAITHFUL)
def test_faithful_families_pass(name):
    check_family(FAITHFUL[name]())


@pytest.mark.parametrize(
    "arguments",
    [{"n": 2, "n_envs": 1, "n_steps": 1}, {"n": 5, "n_envs": 3, "n_steps": 12, "seed": 7}, {"n_envs": 1, "seed": 1}],
)
@pytest.mark.parametrize(
    "make", [Sound, Reach, lambda: CartPole(horizon=40), Maze], ids=["Sound", "Reach", "Cart", "Maze"]
)
def test_they_pass_however_they_are_tried(make, arguments):
    check_family(make(), **arguments)


def test_a_whole_horizon_of_cartpole_passes():
    check_family(CartPole())


def test_numpy_integers_are_whole_numbers():
    family = Reach()
    family.horizon = np.int64(10)
    check_family(family)


@pytest.mark.parametrize(("name", "value"), [("n", 1), ("n_envs", 0), ("n_steps", 0), ("n_steps", "all"), ("seed", -1)])
def test_arguments_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        check_family(Reach(), **{name: value})


def test_arguments_may_be_numpy_s_numbers_or_whole_floats():
    check_family(Reach(), n=np.int64(2), n_envs=1.0, n_steps=np.float32(3), seed=np.uint8(4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("AntVel-v0", r"'AntVel-v0' is not a Family: metarl.envs.make_family\('AntVel-v0'\) is, if it is registered"),
        (Reach, r"is not a Family but a class: Reach\(...\) makes one"),
        (gymnasium.make("CartPole-v1"), "is not a Family but one environment: a family has tasks"),
        (None, "None is not a Family"),
    ],
)
def test_what_is_no_family(given, message):
    with pytest.raises(FamilyCheckError, match=message):
        check_family(given)


def test_the_same_arguments_find_the_same():
    family = Reach()
    family.observation_space = Box(-2, 2, (1,), np.float32)
    said = set()
    for _ in range(2):
        with pytest.raises(FamilyCheckError) as error:
            check_family(family)
        said.add(str(error.value))
    assert len(said) == 1


def test_actions_may_start_anywhere():
    class Shifted(Reach):
        def __init__(self):
            super().__init__()
            self.action_space = Discrete(3, start=4)

        def step(self, tasks, state, actions, rngs, active=None):
            assert actions.min() >= 4
            assert actions.max() <= 6
            return super().step(tasks, state, actions[..., None] - 5.0, rngs, active)

    check_family(Shifted())


@pytest.mark.parametrize("id", ["AntVel-v0", "HalfCheetahVel-v0"])
def test_robots_pass_with_warm_starts(id):
    check_family(make_family(id, warm_start=True), n=2, n_steps=5)
