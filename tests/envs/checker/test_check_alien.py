"""check_family says in one line what is wrong with what is no family, raises, or returns something else."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs.checker.family import FamilyCheckError, check_family
from tests.envs.families import Finite, Sound


def having(**attributes):
    """Return a sound family with other attributes."""
    family = Sound()
    for name, value in attributes.items():
        setattr(family, name, value)
    return family


def without(name):
    """Return a family whose ``__init__`` forgot an attribute."""
    family = Sound()
    delattr(family, name)
    return family


def methods(base=Sound, **replaced):
    """Return a family with other methods."""
    return type("Changed", (base,), replaced)()


def resetting(change):
    """Return a family whose ``reset`` returns ``change(state, obs)``."""

    def reset(self, tasks, rngs, n_envs):
        return change(*Sound.reset(self, tasks, rngs, n_envs))

    return methods(reset=reset)


def stepping(change):
    """Return a family whose ``step`` returns ``change(step)``."""

    def step(self, tasks, state, actions, rngs, active=None):
        return change(Sound.step(self, tasks, state, actions, rngs, active))

    return methods(step=step)


class Crashes(Sound):
    """Raises at its third step, as a simulator does that blows up."""

    calls = 0

    def step(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 3:
            raise ValueError("no contacts\nleft")
        return super().step(*args, **kwargs)


class ShrinksLater(Sound):
    """Right at first, and another shape in a later trajectory."""

    calls = 0

    def step(self, *args, **kwargs):
        self.calls += 1
        step = super().step(*args, **kwargs)
        return step if self.calls < 25 else step._replace(reward=step.reward[0])


class ReusesRewards(Sound):
    rewards: dict[tuple[int, ...], np.ndarray]

    def __init__(self):
        super().__init__()
        self.rewards = {}

    def step(self, *args, **kwargs):
        step = super().step(*args, **kwargs)
        kept = self.rewards.setdefault(step.reward.shape, np.empty_like(step.reward))
        kept[:] = step.reward
        return step._replace(reward=kept)


def two_copies(self, tasks, rngs, n_envs):
    return Sound.reset(self, tasks, rngs, 2)


def draws(rng, n, **changed):
    return {"drift": rng.uniform(-1, 1, (n, 2)), "price": rng.uniform(0, 1, n), **changed}


ALIEN = {
    "no family at all": (lambda: "Sound-v0", "'Sound-v0' is not a Family"),
    "a class": (lambda: Sound, "is not a Family"),
    "no task space": (lambda: without("task_space"), "task_space is not set: __init__ does that"),
    "no horizon": (lambda: without("horizon"), "horizon is not set: __init__ does that"),
    "id": (lambda: having(id=7), "id=7: a str"),
    "horizon below 1": (lambda: having(horizon=-1), "horizon=-1: at least 1 env step"),
    "horizon of text": (lambda: having(horizon="30"), "horizon='30': an int"),
    "horizon of a bool": (lambda: having(horizon=True), "horizon=True: an int"),
    "actions of None": (lambda: having(action_space=None), "action_space None is not a Box of floats or Discrete"),
    "whole actions": (lambda: having(action_space=Box(-1, 1, (2,), np.int64)), "is not a Box of floats or Discrete"),
    "endless actions": (lambda: having(action_space=Box(-np.inf, np.inf, (2,))), "is not bounded: Stable-Baselines3"),
    "other actions": (lambda: having(action_space=Discrete(3)), "step raises ValueError: operands"),
    "shifted box": (lambda: having(shifted_space=Box(0, 1)), "shifted_space Box.* is not a Dict of bounded"),
    "shifted shape": (
        lambda: having(shifted_space=Dict({"drift": Box(-1, 1, (3,)), "price": Box(1, 2, ())})),
        "shifted_space and task_space have different parameters",
    ),
    "reset returns None": (lambda: resetting(lambda state, obs: None), r"reset returns a NoneType, not \(state, obs\)"),
    "reset returns obs": (lambda: resetting(lambda state, obs: obs), r"reset returns \[4, 2, 2\] float32, not \(state"),
    "reset turned round": (
        lambda: resetting(lambda state, obs: (obs, state)),
        r"reset observes {x: \[4, 2, 2\] float64}",
    ),
    "obs without an axis": (
        lambda: resetting(lambda state, obs: (state, obs[:, 0])),
        r"reset observes \[4, 2\] float32",
    ),
    "obs of one number": (
        lambda: resetting(lambda state, obs: (state, np.float32(0))),
        "reset observes a float32, not",
    ),
    "obs of NaN": (
        lambda: resetting(lambda state, obs: (state, obs * np.float32("nan"))),
        r"reset observes nan \(entry 0\) at reset, copy 0 of task 0 {.*}: observations are finite",
    ),
    "state of None": (
        lambda: resetting(lambda state, obs: (None, obs)),
        "a state that is a NoneType, not a dict of arr",
    ),
    "state of lists": (lambda: resetting(lambda state, obs: ({"x": [0.0]}, obs)), "state 'x' is a list, not numbers"),
    "state of objects": (
        lambda: resetting(lambda state, obs: ({**state, "m": np.full((4, 2), None)}, obs)),
        r"state 'm' is \[4, 2\] object, not numbers",
    ),
    "state forgotten": (
        lambda: resetting(lambda state, obs: ({}, obs)),
        r"step raises KeyError: 'x' \(families.py, line",
    ),
    "reset ignores n_envs": (
        lambda: methods(reset=two_copies),
        r"reset observes \[\d, 2, 2\] float32, not \[\d, [34], 2\]",
    ),
    "reset of one argument": (
        lambda: methods(reset=lambda self, tasks: None),
        r"reset\(tasks\) is called as reset\(tasks, rngs, n_envs\): too many positional arguments",
    ),
    "step returns None": (lambda: stepping(lambda step: None), "step returns a NoneType, not a Step"),
    "step returns Gymnasium's tuple": (
        lambda: stepping(lambda step: (step.obs, 0.0, False, False, {})),
        "a tuple, not a S",
    ),
    "reward of None": (lambda: stepping(lambda step: step._replace(reward=None)), "reward is a NoneType, not"),
    "reward of NaN": (
        lambda: stepping(lambda step: step._replace(reward=step.reward * np.nan)),
        "the reward is nan at time step 1, copy 0 of task 0 {.*}: rewards are finite in float32",
    ),
    "terminated of False": (
        lambda: stepping(lambda step: step._replace(terminated=False)),
        "terminated is a bool, not",
    ),
    "info of None": (
        lambda: stepping(lambda step: step._replace(info=None)),
        "info is a NoneType, not a dict of arrays",
    ),
    "info of text": (
        lambda: stepping(lambda step: step._replace(info={"end": np.full(step.reward.shape, "no")})),
        r"info 'end' is \[4, 2\] <U2, not numbers \[4, 2\]",
    ),
    "state gone": (lambda: stepping(lambda step: step._replace(state={})), "the state after a step has other arrays"),
    "crash": (Crashes, r"step raises ValueError: no contacts left \(test_check_alien.py, line \d+\)"),
    "other shapes later": (ShrinksLater, r"reward is \[2\] float64, not \[4, 2\]"),
    "rewards reused": (ReusesRewards, "step modifies the rewards returned before"),
    "tasks of None": (
        lambda: methods(sample_tasks=lambda self, rng, n: None),
        "sample_tasks gives a NoneType, not a dict",
    ),
    "tasks of lists": (
        lambda: methods(sample_tasks=lambda self, rng, n: {"drift": [[0.0, 0.0]] * n, "price": [0.5] * n}),
        "sample_tasks gives {drift: a list, price: a list}, not a dict of arrays",
    ),
    "no tasks": (
        lambda: methods(sample_tasks=lambda self, rng, n: draws(rng, 0)),
        r"gives {drift: \[0, 2\] float64, price",
    ),
    "tasks of two lengths": (
        lambda: methods(sample_tasks=lambda self, rng, n: draws(rng, n, price=np.zeros(n + 1))),
        "sample_tasks gives a task outside the task space: task parameters differ in length",
    ),
    "a short split": (
        lambda: methods(tasks=lambda self, split, n: Sound().tasks(split, 2)),
        r"tasks\('train', 8\) returned 2 tasks",
    ),
    "a split that raises": (lambda: methods(tasks=lambda self, split, n: {}[split]), "raises KeyError: 'train'"),
    "shifted tasks of None": (
        lambda: methods(sample_shifted_tasks=lambda self, rng, n: None),
        "sample_shifted_tasks gives a NoneType",
    ),
    "validation of nothing": (
        lambda: methods(validate_tasks=lambda self, tasks: None),
        "validate_tasks returns a NoneType, not a dict of arrays",
    ),
    "lists stay lists": (
        lambda: methods(validate_tasks=lambda self, tasks: tasks),
        "validate_tasks returns {drift: a list, price: a list}",
    ),
    "finite tasks of a list": (
        lambda: methods(Finite, finite_tasks=lambda self: [0, 1]),
        "finite_tasks gives a list, not a dict of arrays",
    ),
    "finite tasks twice": (
        lambda: methods(Finite, finite_tasks=lambda self: {"drift": np.arange(12) // 2}),
        "finite_tasks holds task 0 {'drift': 0} twice, as 1 too",
    ),
    "finite split beyond": (
        lambda: methods(Finite, finite_split=lambda self, split: np.arange(20)),
        r"finite_split\('train'\) is not an array of indices into the 12 tasks",
    ),
    "finite split of floats": (
        lambda: methods(Finite, finite_split=lambda self, split: np.arange(2.0)),
        r"finite_split\('train'\) is not an array of indices into the 12 tasks",
    ),
    "spaces of None": (lambda: methods(spaces=lambda self, task: None), r"spaces\(task\) is a NoneType, not a pair"),
    "spaces that raise": (
        lambda: methods(spaces=lambda self, task: 1 / 0),
        "raises ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.parametrize("name", ALIEN)
def test_no_family_makes_the_check_itself_fail(name):
    make, message = ALIEN[name]
    with pytest.raises(FamilyCheckError, match=message) as error:
        check_family(make())
    assert "\n" not in str(error.value)


def test_what_a_family_raised_is_the_cause():
    with pytest.raises(FamilyCheckError) as error:
        check_family(Crashes())
    assert isinstance(error.value.__cause__, ValueError)
