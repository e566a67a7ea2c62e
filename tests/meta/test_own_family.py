"""A user's own family: what the check passes is learnt on and exported, what it refuses is refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Discrete

import metarl
from metarl.envs import FamilyCheckError, check_family, make_family
from metarl.envs.views.oracle import Oracle
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, MetaRLError, TaskError
from metarl.meta.export.spaces import require_equal_spaces, space_to_json
from tests.envs.families import CartPole, Reach


def test_cartpole_of_one_s_own_is_checked_learnt_on_and_exported() -> None:
    family = CartPole(horizon=25)
    check_family(family, n=2)
    model = metarl.FOMAML("MlpPolicy", family, meta_batch_size=2, n_episodes=2, n_inner_steps=1, seed=0)
    model.learn(1)
    assert model.n_iterations == 1
    ppo = model.to_sb3("ppo", value_tasks=2, value_episodes=1, n_steps=16, batch_size=16)
    ppo.set_env(gym.make("CartPole-v1"))
    ppo.learn(16)


@pytest.mark.parametrize(
    ("family", "env"),
    [
        ("AntVel-v0", "Ant-v5"),
        ("AntDir-v0", "Ant-v5"),
        ("AntLeg-v0", "Ant-v5"),
        ("HalfCheetahVel-v0", "HalfCheetah-v5"),
        ("HalfCheetahDir-v0", "HalfCheetah-v5"),
    ],
)
def test_the_gymnasium_lineages_have_the_spaces_of_their_namesakes(family: str, env: str) -> None:
    ours = make_family(family, lineage="gymnasium")
    theirs = gym.make(env)
    spoken = {name: space_to_json(getattr(ours, name)) for name in ("observation_space", "action_space")}
    require_equal_spaces(theirs, spoken)
    assert ours.action_space == theirs.action_space
    assert theirs.spec is not None
    assert ours.horizon == theirs.spec.max_episode_steps
    theirs.close()
    ours.close()


DECLARATIONS: dict[str, dict[str, Any]] = {
    "float64 observations": {"observation_space": Box(-20, 20, (1,), np.float64)},
    "integer observations": {"observation_space": Box(0, 255, (1,), np.uint8)},
    "scalar observations": {"observation_space": Box(-20, 20, (), np.float32)},
    "empty observations": {"observation_space": Box(-20, 20, (0,), np.float32)},
    "a Dict of observations": {"observation_space": Dict({"x": Box(-20, 20, (1,), np.float32)})},
    "Discrete observations": {"observation_space": Discrete(3)},
    "scalar actions": {"action_space": Box(-1, 1, (), np.float32)},
    "actions of two axes": {"action_space": Box(-1, 1, (1, 1), np.float32)},
    "empty actions": {"action_space": Box(-1, 1, (0,), np.float32)},
    "endless actions": {"action_space": Box(-np.inf, np.inf, (1,), np.float32)},
    "integer actions": {"action_space": Box(-1, 1, (1,), np.int64)},
    "MultiDiscrete actions": {"action_space": spaces.MultiDiscrete([2, 2])},
    "a horizon of 0": {"horizon": 0},
    "a horizon that is a float": {"horizon": 5.0},
    "a task space that is a Box": {"task_space": Box(-1, 1, (1,))},
    "an endless task space": {"task_space": Dict({"goal": Box(-np.inf, np.inf, ())})},
}


@pytest.mark.parametrize("name", DECLARATIONS)
@pytest.mark.parametrize("learner", ["vpg", "sb3_ppo"])
def test_learning_refuses_the_declarations_that_the_check_refuses(name: str, learner: str) -> None:
    family = Reach(horizon=5)
    for attribute, value in DECLARATIONS[name].items():
        setattr(family, attribute, value)
    with pytest.raises(FamilyCheckError) as checked:
        check_family(family)
    with pytest.raises(ConfigError) as learnt:
        metarl.Reptile("MlpPolicy", family, learner=learner)
    assert str(learnt.value) == f"{checked.value} (metarl.envs.check_family says more)"
    for view in (lambda: SingleEnv(family), lambda: FamilyVecEnv(family, {"goal": np.zeros(1, np.float32)})):
        with pytest.raises(ConfigError) as seen:
            view()
        assert str(seen.value) == str(learnt.value)


METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "no super().__init__()": ({"__init__": lambda self: None}, "task_space is not set: __init__ does that"),
    "Gymnasium's reset": (
        {"reset": lambda self, seed=None, options=None: None},
        r"reset\(seed=None, options=None\) is called as reset\(tasks, rngs, n_envs\): too many positional arguments",
    ),
    "Gymnasium's step": (
        {"step": lambda self, action: None},
        r"step\(action\) is called as step\(tasks, state, actions, rngs, active\): too many",
    ),
    "step without active": (
        {"step": lambda self, tasks, state, actions, rngs: None},
        r"step\(tasks, state, actions, rngs\) is called as step\(tasks, state, actions, rngs, active\)",
    ),
    "sample_tasks without rng": (
        {"sample_tasks": lambda self, n: None},
        r"sample_tasks\(n\) is called as sample_tasks\(rng, n\): too many",
    ),
    "tasks without n": ({"tasks": lambda self, split: None}, r"tasks\(split\) is called as tasks\(split, n\)"),
    "spaces without task": ({"spaces": lambda self: None}, r"spaces\(\) is called as spaces\(task\)"),
    "close with more": ({"close": lambda self, how: None}, r"close\(how\) is called as close\(\): missing a required"),
    "a reset that is none": ({"reset": property(lambda self: 3)}, "reset is an int, not a method"),
    "concurrent in words": ({"concurrent": "yes"}, "concurrent='yes': a bool"),
    "observes_task in words": ({"observes_task": "no"}, "observes_task='no': a bool"),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_cannot_be_called_are_refused_everywhere(name: str) -> None:
    members, message = METHODS[name]
    family = type("Odd", (Reach,), members)()
    ways = {
        "check": lambda: check_family(family),
        "learn": lambda: metarl.FOMAML("MlpPolicy", family),
        "single": lambda: SingleEnv(family),
        "batch": lambda: FamilyVecEnv(family, {"goal": np.zeros(1, np.float32)}),
        "oracle": lambda: Oracle(family),
    }
    for way in ways.values():
        # Without __init__ a family has not its name either.
        with pytest.raises(MetaRLError, match=rf"^(Reach-v0|Odd): {message}") as error:
            way()
        assert "\n" not in str(error.value)


DRAWN: dict[str, Any] = {
    "a list of tasks": lambda n: [{"goal": 0.1}] * n,
    "one task": lambda n: {"goal": 0.1},
    "Python lists": lambda n: {"goal": [0.1] * n},
    "another name": lambda n: {"gaol": np.zeros(n, np.float32)},
    "a tuple": lambda n: (np.zeros(n, np.float32),),
    "nothing": lambda n: None,
    "one too many": lambda n: {"goal": np.zeros(n + 1, np.float32)},
    "none": lambda n: {"goal": np.zeros(0, np.float32)},
}


# Lists may be of any length, and a family need not be finite.
@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("sample_tasks", name) for name in DRAWN),
        *(("finite_tasks", name) for name in DRAWN if name not in ("one too many", "nothing")),
        *(("tasks", name) for name in DRAWN if name != "one too many"),
    ],
)
def test_tasks_that_are_none_are_refused_where_they_are_drawn(method: str, name: str) -> None:
    members = {
        "sample_tasks": lambda self, rng, n: DRAWN[name](n),
        "finite_tasks": lambda self: DRAWN[name](3),
        "tasks": lambda self, split, n=40: DRAWN[name](n),
    }
    family = type("Odd", (Reach,), {method: members[method]})()
    model = metarl.FOMAML("MlpPolicy", family, meta_batch_size=2, n_episodes=2, n_inner_steps=1)
    ways = [lambda: model.evaluate(n_tasks=3, n_inner_steps=1)]
    if method != "tasks":
        ways += [lambda: model.learn(1), lambda: SingleEnv(family).reset(seed=0)]
    message = rf"^{method} of Reach-v0 gives .*, not a batch.*\[task, ...\], goal"
    for way in ways:
        with pytest.raises(TaskError, match=message) as error:
            way()
        assert "\n" not in str(error.value)


ARRAYS: dict[str, tuple[str, Any]] = {
    "float32 rewards": (
        "reward is .* float32, not .* float64",
        lambda step: {"reward": step.reward.astype(np.float32)},
    ),
    "ends as integers": (
        "terminated is .* int64, not .* bool",
        lambda step: {"terminated": step.terminated.astype(int)},
    ),
    "one end for all": ("terminated is a bool, not", lambda step: {"terminated": False}),
    "flat observations": ("step observes .* float32, not .* float32 in Box", lambda step: {"obs": step.obs[..., 0]}),
    "info of numbers": ("info 'x' is a float, not numbers", lambda step: {"info": {"x": 0.5}}),
    "a state of lists": ("state 'x' is a list, not numbers", lambda step: {"state": {**step.state, "x": [0.0]}}),
}


@pytest.mark.parametrize("learner", ["vpg", "sb3_ppo"])
@pytest.mark.parametrize("name", ARRAYS)
def test_learning_refuses_the_arrays_that_the_check_refuses(name: str, learner: str) -> None:
    message, change = ARRAYS[name]

    class Odd(Reach):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            step = super().step(*args, **kwargs)
            return step._replace(**change(step))

    with pytest.raises(FamilyCheckError, match=f"Reach-v0: {message}"):
        check_family(Odd())
    arguments = {"learner_kwargs": {"n_steps": 8, "batch_size": 8}} if learner == "sb3_ppo" else {"n_episodes": 2}
    model = metarl.Reptile("MlpPolicy", Odd(), learner=learner, meta_batch_size=1, n_inner_steps=1, **arguments)
    with pytest.raises(ConfigError, match=rf"Reach-v0: {message}.* \(metarl.envs.check_family says more\)"):
        model.learn(1)


def test_learning_refuses_a_reset_that_returns_something_else() -> None:
    class Odd(Reach):
        def reset(self, *args: Any) -> Any:
            return super().reset(*args)[1]

    with pytest.raises(FamilyCheckError, match=r"Reach-v0: reset returns .* float32, not \(state, obs\)"):
        check_family(Odd())
    with pytest.raises(ConfigError, match=r"Reach-v0: reset returns .* float32, not \(state, obs\)"):
        metarl.FOMAML("MlpPolicy", Odd(), meta_batch_size=1, n_episodes=2).learn(1)


class Spoilt(Reach):
    """Pays or observes something else from the third env step on."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(horizon=5)
        self.what, self.value = what, value
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        step = super().step(*args, **kwargs)
        late = step.state["t"] >= 3
        if self.what == "reward":
            return step._replace(reward=np.where(late, self.value, step.reward), info={})
        return step._replace(obs=np.where(late[..., None], self.value, step.obs).astype(np.float32))


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_numbers_that_stop_learning_are_found_before(what: str, value: float) -> None:
    found = "rewards are finite" if what == "reward" else "observations are finite"
    with pytest.raises(FamilyCheckError, match=rf"at time step 3, copy 0 of task 0 {{'goal': .*}}: {found}"):
        check_family(Spoilt(what, value))
    model = metarl.FOMAML("MlpPolicy", Spoilt(what, value), meta_batch_size=2, n_episodes=2, seed=0)
    with pytest.raises(MetaRLError, match=f"non-finite {what} in Reach-v0 task 0"):
        model.learn(1)
