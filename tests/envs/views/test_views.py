"""Every view of a family takes and refuses the same things: one parametrised test holds each to the others."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import TimeAwareObservation, TimeLimit
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.one_env import collect_env
from metarl.envs.family import Family, Step
from metarl.envs.promises import is_image
from metarl.envs.registry import family_ids, make_family, register_family, takes_argument
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, DivergedError, NonFiniteError, TaskError, UnknownNameError
from metarl.streams import seed_sequence


class Dial(Family):
    """Turn a dial with a lever that has three positions, 2 to 4."""

    def __init__(self, pays: float = 1.0, shows: float = 1.0) -> None:
        self.id = "Dial-v0"
        self.task_space = gymnasium.spaces.Dict({"aim": Box(-1.0, 1.0, (), np.float64)})
        self.observation_space, self.action_space = Box(-99, 99, (1,), np.float32), Discrete(3, start=2)
        self.horizon, self.pays, self.shows = 5, pays, shows

    def reset(self, tasks, rngs, n_envs):
        x = np.stack([rng.normal(size=(n_envs, 1)) for rng in rngs])
        return {"x": x}, x.astype(np.float32)

    def step(self, tasks, state, actions, rngs, active=None):
        x = state["x"] + (actions - 3)[..., None]
        reward = -np.abs(x[..., 0] - tasks["aim"][:, None]) * self.pays
        return Step({"x": x}, (x * self.shows).astype(np.float32), reward, np.zeros(reward.shape, bool), {"r": reward})


@functools.cache
def family_of(id: str) -> Family:
    return Dial() if id == "Dial-v0" else make_family(id.removesuffix("+oracle"), oracle=id.endswith("+oracle"))


# ----------------------------------------------------------------------------------------------------------- the views
class View:
    """One copy of a family's first test task, stepped one action at a time, whatever the view takes."""

    def __init__(self, family: Family) -> None:
        self.family, self.task = family, one_task(family.tasks("test", 1), 0)
        self.make()

    def make(self) -> None:
        self.env: Any = SingleEnv(self.family, **self.task)

    def reset(self) -> np.ndarray:
        return self.env.reset(seed=3)[0]

    def step(self, action: Any) -> tuple[np.ndarray, np.float32]:
        obs, reward, *_ = self.env.step(action)
        return obs, np.float32(reward)


class Made(View):
    """What ``gymnasium.make`` returns, with all of Gymnasium's wrappers."""

    def make(self) -> None:
        super().make()
        self.env = self.env.spec.make()


class Vector(View):
    """Two copies in SB3's form; the second one's actions are always good."""

    def make(self) -> None:
        self.env = FamilyVecEnv(self.family, {name: [value] for name, value in self.task.items()}, n_envs=2)

    def reset(self) -> np.ndarray:
        self.env.seed(3)
        return self.env.reset()[0]

    def step(self, action: Any) -> tuple[np.ndarray, np.float32]:
        obs, rewards, _, _ = self.env.step(self.batch(action))
        return obs[0], rewards[0]

    def batch(self, action: Any) -> Any:
        space = self.family.action_space
        good = np.full(space.shape, 2 if isinstance(space, Discrete) else 0.0)
        if isinstance(action, np.ndarray) and action.shape == space.shape:
            stack = np.ma.stack if np.ma.is_masked(action) else np.stack
            return stack([action, good.astype(action.dtype)])
        if torch.is_tensor(action) and action.shape == space.shape:
            return torch.stack([action, torch.full_like(action, float(good.flat[0]))])
        return [action, np.asarray(good, type(action)) if isinstance(action, np.integer | int) else good.tolist()]


class Stock(Vector):
    """SB3's own vector environment of single views."""

    def make(self) -> None:
        self.env = DummyVecEnv([lambda: SingleEnv(self.family, **self.task)] * 2)


class Says(FunctionalPolicy):
    """A policy that acts as it is told."""

    says: Any

    def actions_to_env(self, actions: np.ndarray) -> Any:
        return [self.says]


class Collecting(View):
    """Collecting from one environment. It starts its own episodes, so each step is the first one of another."""

    def make(self) -> None:
        super().make()
        space, actions = self.family.spaces(self.task)
        self.policy = Says("FewShotCnnPolicy" if is_image(space) else "MlpPolicy", space, actions)

    def reset(self) -> np.ndarray:
        inner, self.policy.says = self.env, None
        view = self

        class Once(gymnasium.Wrapper):
            def reset(self, *, seed=None, options=None):
                view.first = inner.reset(seed=3)[0]
                return view.first, {}

            def step(self, action):
                view.seen = super().step(action)
                return *view.seen[:2], True, False, {}

        self.once = Once(inner)
        return inner.reset(seed=3)[0]

    def step(self, action: Any) -> tuple[np.ndarray, np.float32]:
        self.policy.says = action
        collect_env(self.once, self.policy, self.policy.init(0), seed_sequence(0, "x"), 1)
        return self.seen[0], np.float32(self.seen[1])


VIEWS = [View, Made, Vector, Stock, Collecting]
# Live families have tests of their own (test_live.py, atari/): what they begin with takes long.
FAMILIES = [*(id for id in family_ids() if not make_family(id).live), "PointMass-v0+oracle", "Dial-v0"]


class Rude:
    """Cannot be made an array of."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise RuntimeError("no\narray")


BAD_EVERYWHERE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda good: None,
    "text": lambda good: "up",
    "texts": lambda good: np.full(good.shape, "0.5"),
    "booleans": lambda good: np.ones(good.shape, bool),
    "complex numbers": lambda good: good.astype(complex),
    "masked": lambda good: np.ma.array(good, mask=True),
    "dates": lambda good: np.zeros(good.shape, "datetime64[s]"),
    "a dict": lambda good: {"action": good},
    "huge integers": lambda good: np.full(good.shape, 10**30, dtype=object).tolist(),
    "no numbers at all": lambda good: [],
    "ragged lists": lambda good: [[0.0, 1.0], 0.0],
    "an extra axis": lambda good: good[None],
    "too many": lambda good: np.concatenate([good.ravel(), good.ravel()]),
    "no array": lambda good: Rude(),
}
BAD_IN_A_BOX: dict[str, Callable[[Any], Any]] = {
    "objects": lambda good: good.astype(object),
    "one number": lambda good: 0.5,
    "one in a list": lambda good: good[:1],
    "one too few": lambda good: good[:-1],
    "a column": lambda good: good[:, None],
    "NaN": lambda good: np.where(np.arange(len(good)) == len(good) - 1, np.nan, good),
    "infinity": lambda good: np.where(np.arange(len(good)) == 0, -np.inf, good),
}
NOT_FINITE = {"NaN", "infinity", "beyond float64"}
if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
    BAD_IN_A_BOX["beyond float64"] = lambda good: good * np.finfo(np.longdouble).max
BAD_IN_DISCRETE: dict[str, Callable[[Any], Any]] = {
    "a float": lambda good: 2.0,
    "a whole float array": lambda good: np.float32(2.0),
    "true": lambda good: True,
    "below": lambda good: int(good) - 3,
    "above": lambda good: int(good) + 99,
    "negative": lambda good: -1,
    "largest": lambda good: np.uint64(2**64 - 1),
    "in a list": lambda good: np.array([2]),
}
GOOD_IN_A_BOX: dict[str, Callable[[Any], Any]] = {
    "float32": lambda good: good.astype(np.float32),
    "float64": lambda good: good,
    "float16": lambda good: good.astype(np.float16),
    "a list": lambda good: good.tolist(),
    "a tuple": lambda good: tuple(good),
    "integers": lambda good: np.ones(good.shape, np.int8),
    "backwards": lambda good: good[::-1],
    "strided": lambda good: np.repeat(good, 2)[::2],
    "big endian": lambda good: good.astype(">f8"),
    "read only": lambda good: np.broadcast_to(good[0], good.shape),
    "masked nowhere": lambda good: np.ma.array(good, mask=False),
    "a tensor": lambda good: torch.tensor(good, dtype=torch.float32),
    "outside the bounds": lambda good: 100 * good,
}
GOOD_IN_DISCRETE: dict[str, Callable[[Any], Any]] = {
    "int": lambda good: int(good),
    "int64": lambda good: np.int64(good),
    "int8": lambda good: np.int8(good),
    "uint64": lambda good: np.uint64(good),
    "an array": lambda good: good,
    "a tensor": lambda good: torch.tensor(int(good)),
}


def good_action(family: Family) -> Any:
    """Return an action that has an effect: of a Discrete space the third."""
    space = family.action_space
    return np.array(space.start + 2) if isinstance(space, Discrete) else np.linspace(-0.3, 0.7, *space.shape)


def inputs(family: Family, box: dict[str, Any], discrete: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every input that fits the kind of the family's action space."""
    good = good_action(family)
    if good.shape == (1,):
        box = {name: value for name, value in box.items() if name != "one in a list"}
    return [(name, value(good)) for name, value in (discrete if good.shape == () else box).items()]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("id", FAMILIES)
def test_bad_actions_are_refused_and_change_nothing(view, id):
    family = family_of(id)
    good = good_action(family)
    tried, twin = view(family), view(family)
    np.testing.assert_array_equal(tried.reset(), twin.reset())
    for name, bad in inputs(family, BAD_EVERYWHERE | BAD_IN_A_BOX, BAD_EVERYWHERE | BAD_IN_DISCRETE):
        with pytest.raises(DivergedError if name in NOT_FINITE else ConfigError) as caught:
            tried.step(bad)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        # Collecting names the environment, which is called after its family.
        assert family.id in str(caught.value)
    for a, b in zip(tried.step(good), twin.step(good), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("id", FAMILIES)
def test_good_actions_do_the_same_in_every_view(id):
    family = family_of(id)
    views = [view(family) for view in VIEWS]
    for name, action in inputs(family, GOOD_IN_A_BOX, GOOD_IN_DISCRETE):
        (first, expected), *others = [(view.reset(), view.step(action)) for view in views]
        # Vectors show the start of the next episode where one has ended.
        goes_on = family.horizon > 1
        assert not goes_on or not np.array_equal(first, expected[0])
        for start, got in others:
            np.testing.assert_array_equal(first, start)
            for a, b in zip(expected[not goes_on :], got[not goes_on :], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
                assert a.dtype == b.dtype


def test_numbers_keep_their_precision():
    env, vec = View(family_of("PointMass-v0")), Vector(family_of("PointMass-v0"))
    for action in (np.array([0.1, 0.3]), np.array([0.1, 0.3], np.float32)):
        env.reset(), vec.reset()
        env.step(action), vec.step(action)
        for view in (env, vec):
            np.testing.assert_array_equal(view.env._state["position"][0, 0], action.astype(np.float64) * 0.1)


# ------------------------------------------------------------------------------------------------- outside an episode
@pytest.mark.parametrize("view", [View, Made, Vector, Stock])
@pytest.mark.parametrize("id", FAMILIES)
def test_a_step_needs_an_episode(view, id):
    family = family_of(id)
    env = view(family)
    with pytest.raises(ResetNeeded, match=r"reset\(\)|call reset"):
        env.step(good_action(family))
    env.reset()
    env.step(good_action(family))


@pytest.mark.parametrize("view", [View, Made])
def test_a_step_after_the_end_needs_another_episode(view):
    env = view(Dial())
    env.reset()
    for _ in range(5):
        env.step(3)
    with pytest.raises(ResetNeeded, match=r"Dial-v0: reset\(\) starts an episode"):
        env.step(3)
    env.reset()
    env.step(3)


def test_waiting_needs_actions():
    vec = Vector(Dial()).env
    vec.reset()
    vec.step_async([3, 3])
    vec.step_wait()
    with pytest.raises(ConfigError, match=r"step_async\(actions\) comes before step_wait"):
        vec.step_wait()
    vec.step_async([3, 3])
    # A reset cancels what was begun.
    vec.reset()
    with pytest.raises(ConfigError, match="step_async"):
        vec.step_wait()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("what", "family"),
    [("reward", Dial(pays=np.nan)), ("reward", Dial(pays=1e39)), ("observation", Dial(shows=np.inf))],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_numbers_that_are_none_stop_every_view(view, what, family):
    env = view(family)
    env.reset()
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=f"^non-finite {what} in Dial-v0 task .*time step"):
            env.step(2)
    if not np.isinf(family.shows):
        env.reset()


# --------------------------------------------------------------------------------------------------------- other spaces
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"action_space": Box(-1, 1, (1,), np.float32)}, r"acts in Box\(.*\(1,\).*PointMass-v0.* has Box\(.*\(2,\)"),
        ({"action_space": Discrete(3)}, r"acts in Discrete\(3\)"),
        ({"observation_space": Box(-1, 1, (3,), np.float32)}, r"observes Box\(.*\(3,\)"),
    ],
)
def test_collecting_takes_policies_of_the_same_spaces(other, message):
    family = family_of("PointMass-v0")
    spaces = {"observation_space": family.observation_space, "action_space": family.action_space, **other}
    policy = FunctionalPolicy("MlpPolicy", **spaces)
    with pytest.raises(ConfigError, match=message):
        collect_env(SingleEnv(family), policy, policy.init(0), seed_sequence(0, "x"), 1)
    stacked = {name: tensor[None] for name, tensor in policy.init(0).items()}
    with pytest.raises(ConfigError, match=message):
        collect(family, policy, stacked, family.tasks("test", 1), [seed_sequence(0, "x")], n_episodes=1)


class Foreign(gymnasium.Env):
    """An environment whose spaces do not say what it gives."""

    observation_space, action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (2,), np.float32)

    def __init__(self, obs: Any, reward: Any) -> None:
        self.given = obs, reward

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return *self.given, True, False, {}


@pytest.mark.parametrize(
    ("obs", "reward", "message"),
    [
        (np.zeros(3), 0.0, r"observation of shape \[3\] from <Foreign.*: its space says \[2\]"),
        (np.ma.array([0.5, 0.5], mask=[True, False]), 0.0, "observation masked_array.* at time step 1: real numbers"),
        ("here", 0.0, "observation 'here' of <Foreign.* at time step 1: real numbers"),
        ({"x": 0.0}, 0.0, "observation {'x': 0.0} of"),
        ([[0.0], [0.0, 1.0]], 0.0, "real numbers"),
        (np.zeros(2), None, "reward None of"),
        (np.zeros(2), np.zeros(2), r"reward of shape \[2\]"),
        (np.zeros(2), "1.0", "reward '1.0' of"),
        (np.zeros(2), 1j, "reward 1j of"),
    ],
)
def test_what_foreign_environments_give_is_looked_at(obs, reward, message):
    policy = FunctionalPolicy("MlpPolicy", Foreign.observation_space, Foreign.action_space)
    with pytest.raises(ConfigError, match=message):
        collect_env(Foreign(obs, reward), policy, policy.init(0), seed_sequence(0, "x"), 1)
    good = collect_env(Foreign([0, 1], np.array([2])), policy, policy.init(0), seed_sequence(0, "x"), 1)
    assert good.returns.tolist() == [[2.0]]


# -------------------------------------------------------------------------------------------------------- tasks outside
def setters() -> dict[str, tuple[Any, Callable[[Any, Any], Any]]]:
    """Every way to set a task from outside, by view."""
    return {
        "set_task": (View, lambda env, task: env.set_task(task)),
        "attribute": (View, lambda env, task: setattr(env, "task", task)),
        "unwrapped attribute": (Made, lambda env, task: setattr(env.unwrapped, "task", task)),
        "wrapper attribute": (Made, lambda env, task: env.set_wrapper_attr("task", task)),
        "options": (View, lambda env, task: env.reset(options={"task": task})),
        "vector set_attr": (Vector, lambda env, task: env.set_attr("task", task)),
        "vector set_task": (Vector, lambda env, task: env.env_method("set_task", task)),
        "vector options": (Vector, lambda env, task: env.set_options({"task": task})),
        "vector list of options": (Vector, lambda env, task: env.set_options([{"task": task}] * 2)),
        "stock set_attr": (Stock, lambda env, task: env.set_attr("task", task)),
        "stock set_task": (Stock, lambda env, task: env.env_method("set_task", task)),
        "stock options": (Stock, lambda env, task: env.set_options({"task": task}) or env.reset()),
    }


@pytest.mark.parametrize("how", setters())
def test_a_task_set_from_outside_counts_from_the_next_episode(how):
    view, set_task = setters()[how]
    env = view(make_family("PointMass-v0"))
    env.reset()
    set_task(env.env, {"goal": [0.3, 0.4]})
    env.reset()
    assert env.step(np.zeros(2))[1] == np.float32(-0.5)


@pytest.mark.parametrize("how", setters())
@pytest.mark.parametrize("task", [{"goal": [3.0, 0.0]}, {"gaol": [0.0, 0.0]}, {}, None, 3, [0.1, 0.2], "here"], ids=str)
def test_bad_tasks_are_refused_however_they_are_set(how, task):
    view, set_task = setters()[how]
    env, twin = view(make_family("PointMass-v0")), view(make_family("PointMass-v0"))
    env.reset(), twin.reset()
    with pytest.raises(TaskError) as caught:
        set_task(env.env, task)
    assert "\n" not in str(caught.value)
    if "options" in how:
        # SB3 keeps the options of a reset that failed.
        env.env.set_options() if isinstance(env, Vector) else None
        env.reset()
    assert env.step(np.zeros(2))[1] == twin.step(np.zeros(2))[1]
    env.reset(), twin.reset()
    assert env.step(np.zeros(2))[1] == twin.step(np.zeros(2))[1]


def test_what_a_view_tells_of_its_task_is_a_copy():
    env, vec = SingleEnv("PointMass-v0", goal=[0.3, 0.4]), FamilyVecEnv("PointMass-v0", {"goal": [[0.3, 0.4]]})
    env.reset(seed=0), vec.reset()
    env.task["goal"][:] = 9.0
    vec.tasks["goal"][:] = 9.0
    vec.get_attr("task")[0]["goal"][:] = 9.0
    assert env.step(np.zeros(2))[1] == -0.5
    assert vec.step(np.zeros((1, 2)))[1][0] == -0.5
    np.testing.assert_array_equal(env.task["goal"], [0.3, 0.4])
    np.testing.assert_array_equal(vec.tasks["goal"], [[0.3, 0.4]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (3, ConfigError, "reset options 3: a dict such as {'task': {...}}"),
        ("task", ConfigError, "reset options 'task': a dict"),
        ([("task", {"goal": [0.0, 0.0]})], ConfigError, "a dict such as"),
        ({"goal": [0.0, 0.0]}, UnknownNameError, "unknown reset option 'goal': known: task"),
        (
            {"task": {"goal": [0.0, 0.0]}, "taks": 1},
            UnknownNameError,
            "unknown reset option 'taks': did you mean 'task'?",
        ),
        ({3: 4}, UnknownNameError, "unknown reset option 3"),
    ],
)
def test_options_of_a_reset(options, error, message):
    env, vec = SingleEnv("PointMass-v0", goal=[0.3, 0.4]), FamilyVecEnv("PointMass-v0", {"goal": [[0.3, 0.4]]})
    for refuse in (lambda: env.reset(seed=1, options=options), lambda: vec.set_options(options)):
        with pytest.raises(error) as caught:
            refuse()
        assert message in str(caught.value)
    # Nothing was begun, neither the seed nor the task.
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    np.testing.assert_array_equal(env.task["goal"], [0.3, 0.4])
    vec.reset()
    np.testing.assert_array_equal(vec.tasks["goal"], [[0.3, 0.4]])
    with pytest.raises(ConfigError, match="2 reset options: one dict, or 1, one for each copy"):
        vec.set_options([{}, {}])


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", [1], np.float64("nan")])
def test_bad_seeds(seed):
    env, vec = SingleEnv(Dial()), FamilyVecEnv(Dial(), {"aim": [0.0]})
    for refuse in (
        lambda: env.reset(seed=seed),
        lambda: vec.seed(seed),
        lambda: FamilyVecEnv(Dial(), {"aim": [0.0]}, 1, seed),
    ):
        with pytest.raises(ConfigError, match=r"^seed=.* is not an integer in \[0, 1\.84467e\+19\]$"):
            refuse()


def test_seeds_may_be_numpy_integers():
    env, vec = SingleEnv(Dial()), FamilyVecEnv(Dial(), {"aim": [0.0]})
    vec.seed(np.int32(5))
    np.testing.assert_array_equal(env.reset(seed=np.int64(5))[0], vec.reset()[0])
    np.testing.assert_array_equal(env.reset(seed=5)[0], env.reset(seed=np.uint8(5))[0])


# ------------------------------------------------------------------------------------------------- families and batches
@pytest.mark.parametrize("given", [3, None, Dial, SingleEnv("PointMass-v0"), ["PointMass-v0"]], ids=str)
def test_views_are_made_of_families_and_their_names(given):
    for make in (lambda: SingleEnv(given), lambda: FamilyVecEnv(given, {"goal": [[0.0, 0.0]]})):
        with pytest.raises(ConfigError, match=r"^family=.*: a registered name, or a family such as make_family"):
            make()


@pytest.mark.parametrize("tasks", [None, 3, "goal", [[0.1, 0.2]], [{"goal": [0.1, 0.2]}], {}], ids=str)
def test_a_batch_of_tasks_is_a_dict(tasks):
    with pytest.raises(TaskError) as caught:
        FamilyVecEnv("PointMass-v0", tasks)
    assert "goal" in str(caught.value)
    assert "PointMass-v0" in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- horizon
@pytest.mark.parametrize("id", family_ids())
def test_gymnasium_s_spec_has_the_horizon(id):
    family = family_of(id)
    env = gymnasium.make(id)
    assert env.spec.max_episode_steps == family.horizon == env.unwrapped.horizon
    assert "TimeLimit" not in str(env)
    if takes_argument(id, "horizon"):
        assert gymnasium.make(id, horizon=7).spec.max_episode_steps == 7
        if len(family.observation_space.shape) == 1:  # the oracle has no images
            assert gymnasium.make(id, oracle=True, horizon=7).spec.max_episode_steps == 7
    again = env.spec.make()
    assert again.spec == env.spec
    assert "TimeLimit" not in str(again)


@pytest.mark.parametrize("view", VIEWS[:4])
def test_every_view_s_spec_makes_the_same_environment(view):
    env = view(make_family("PointMass-v0", horizon=3, wrap_actions=False))
    spec = env.env.get_attr("spec")[0] if isinstance(env, Vector) else env.env.spec
    assert spec.id == "PointMass-v0"
    assert spec.max_episode_steps == 3
    made = spec.make()
    made.reset(seed=3)
    env.reset()
    action = np.array([0.1, -0.1])
    obs, *_ = made.step(action)
    np.testing.assert_array_equal(env.step(action)[0], obs)
    np.testing.assert_array_equal(env.step(action)[1], np.float32(made.step(action)[1]))
    assert made.step(action)[2:4] == (False, True)


def test_wrappers_read_the_horizon():
    for env in (gymnasium.make("PointMass-v0", horizon=4), SingleEnv("PointMass-v0", horizon=4)):
        wrapped = TimeFeatureWrapper(env)
        wrapped.reset(seed=0)
        left = [float(wrapped.step(np.zeros(2))[0][-1]) for _ in range(4)]
        np.testing.assert_allclose(left, [0.75, 0.5, 0.25, 0.0])
    aware = TimeAwareObservation(gymnasium.make("PointMass-v0", horizon=4), normalize_time=False)
    aware.reset(seed=0)
    assert [aware.step(np.zeros(2))[0][-1] for _ in range(4)] == [1, 2, 3, 4]
    # TimeFeatureWrapper writes its own space over that of the environment inside.
    env = SingleEnv("PointMass-v0", goal=[0.3, 0.4])
    TimeFeatureWrapper(env)
    env.set_task({"goal": [0.0, 0.1]})


def test_gymnasium_s_vector_environments_have_the_horizon():
    vec = gymnasium.make_vec("PointMass-v0", num_envs=2, horizon=4, goal=[0.3, 0.4])
    assert [spec.max_episode_steps for spec in vec.get_attr("spec")] == [4, 4]
    vec.reset(seed=0)
    ends = [vec.step(np.zeros((2, 2), np.float32))[2:4] for _ in range(4)]
    assert [truncated.tolist() for _, truncated in ends] == [[False] * 2] * 3 + [[True] * 2]
    assert not any(terminated.any() for terminated, _ in ends)
    vec.set_attr("task", [{"goal": [0.0, 0.2]}, {"goal": [0.0, 0.1]}])
    vec.reset()
    np.testing.assert_allclose(vec.step(np.zeros((2, 2), np.float32))[1], [-0.2, -0.1])
    vec.close()


def test_a_limit_that_contradicts_the_horizon_is_refused():
    message = "max_episode_steps={} contradicts the horizon of PointMass-v0, {} env steps: make the environment with "
    for limit, horizon in ((50, 100), (200, 100), (100, 50)):
        with pytest.raises(ConfigError) as caught:
            gymnasium.make("PointMass-v0", max_episode_steps=limit, **({"horizon": horizon} if horizon != 100 else {}))
        assert message.format(limit, horizon) + f"horizon={limit}" in str(caught.value)
    with pytest.raises(ConfigError, match="max_episode_steps=50 contradicts"):
        gymnasium.make(gymnasium.make("PointMass-v0").spec, max_episode_steps=50)
    for limit in (-1, 3, None):
        env = gymnasium.make("PointMass-v0", max_episode_steps=limit, horizon=3)
        assert env.spec.max_episode_steps == 3
        assert "TimeLimit" not in str(env)
        env.reset(seed=0)
        assert [env.step(np.zeros(2))[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_family("PointMass-v0", max_episode_steps=50), "'max_episode_steps': did you mean 'horizon'?"),
        (lambda: make_family("AntVel-v0", time_limit=50), "'time_limit': did you mean 'horizon'?"),
        (lambda: SingleEnv("PointMass-v0", max_episode_steps=50), "'max_episode_steps': did you mean 'horizon'?"),
        (lambda: make_family("PointMass-v0", render_mode="rgb_array"), "FamilyVecEnv take render_mode"),
        (lambda: make_family("PointMass-v0", goal=[0.0, 0.1]), "'goal': it is of the task, which is drawn"),
        (lambda: make_family("AntDir-v0", direction=1.0), "'direction': it is of the task, which is drawn"),
    ],
)
def test_what_belongs_to_a_view_is_said_to_who_gives_it_to_the_family(make, message):
    with pytest.raises(UnknownNameError) as caught:
        make()
    assert message in str(caught.value)


def test_a_family_without_an_argument_for_it_says_so():
    for family in (Dial(), make_family("PointMass-v0")):
        with pytest.raises(ConfigError, match=r"env steps: it cannot be changed"):
            SingleEnv(family).spec.make(max_episode_steps=3)
    register_family("Dial-v0", Dial)
    try:
        with pytest.raises(ConfigError, match="the horizon of Dial-v0, 5 env steps: it cannot be changed"):
            gymnasium.make("Dial-v0", max_episode_steps=3)
    finally:
        from metarl.envs import registry

        del registry._REGISTRY["Dial-v0"], gymnasium.registry["Dial-v0"]


def test_an_end_at_the_horizon_is_no_truncation_and_a_wrapper_of_one_s_own_cuts():
    env = gymnasium.make("PointMass-v0", horizon=1, goal=[0.0, 0.1], max_episode_steps=1)
    env.reset(seed=0)
    assert env.step(np.array([0.0, 1.0]))[2:4] == (True, False)
    env = TimeLimit(gymnasium.make("PointMass-v0", horizon=5), 2)
    assert env.spec.max_episode_steps == 2
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(2)] == [False, True]


def test_the_horizon_belongs_to_the_family():
    env, vec = View(family_of("PointMass-v0")), Vector(family_of("PointMass-v0"))
    for refuse in (lambda: setattr(env.env, "horizon", 3), lambda: vec.env.set_attr("horizon", 3)):
        with pytest.raises(AttributeError, match="horizon"):
            refuse()


def test_each_view_draws_actions_of_its_own() -> None:
    family = make_family("PointMass-v0")
    single, batch = SingleEnv(family), FamilyVecEnv(family, family.tasks("test", 2))
    for one, other in ((single, batch), (batch, single)):
        one.action_space.seed(0)
        expected = [one.action_space.sample() for _ in range(2)]
        one.action_space.seed(0)
        drawn = [one.action_space.sample()]
        other.action_space.seed(1)
        drawn.append(one.action_space.sample())
        np.testing.assert_array_equal(drawn, expected)
