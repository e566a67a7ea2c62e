"""Families of Gymnasium environments: physics, tasks, declarations, names, and what is refused."""

import json
import pickle
from copy import deepcopy

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit

from metarl.envs import Oracle, SingleEnv, check_family, from_gym, make_family, n_tasks, register_family
from metarl.envs import registry as families
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError, MetaRLError, TaskError
from metarl.meta.kept import family_traits
from metarl.streams import stream

CARTPOLE = {"gravity": (5.0, 15.0), "length": (0.3, 1.0)}
PENDULUM = {"g": (5.0, 15.0), "m": (0.5, 2.0)}


class Line(gymnasium.Env):
    """A place on a line that drifts; it is left at 3, and cut below -1. Observations are float64."""

    def __init__(self, drift=0.0, mode="plain", size=1):
        self.observation_space = Box(-10.0, 10.0, (size,), np.float64)
        self.action_space = Box(np.array([-1.0]), np.array([1.0]), dtype=np.float64)
        self.drift, self.mode, self.scale, self.where = drift, mode, 1, np.zeros(2)
        self._x = 0.0

    @property
    def fixed(self):
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x = self.np_random.normal()
        return np.full(self.observation_space.shape, self._x), {}

    def step(self, action):
        assert action.dtype == np.float64
        assert abs(action[0]) <= 1.0
        double = 2.0 if self.mode == "fast" else 1.0
        self._x += double * (self.scale * float(action[0]) + self.drift) + 0.1 * self.where.sum()
        obs = np.clip(np.full(self.observation_space.shape, self._x), -10, 10)
        return obs, -abs(self._x), bool(self._x > 3), bool(self._x < -1), {"reward_strange": 7.0}


class Pictures(gymnasium.Env):
    observation_space, action_space = Box(0, 255, (8, 8, 3), np.uint8), Discrete(2)

    def __init__(self, level=0.0):
        pass


def made_line():
    return TimeLimit(Line(), 9)


# -------------------------------------------------------------------------------------------------------------- physics
@pytest.mark.parametrize(("id", "tasks"), [("CartPole-v1", CARTPOLE), ("Pendulum-v1", PENDULUM)])
def test_classic_control_keeps_every_promise(id, tasks):
    family = from_gym(id, tasks, horizon=12)
    check_family(family, n=3)
    assert family.live


def test_a_task_is_the_environment_with_these_numbers():
    """To the last bit, what CartPole's constructor derives from length and masses included."""
    family = from_gym("CartPole-v1", {"gravity": (5.0, 15.0), "length": (0.3, 1.0), "masspole": (0.05, 0.5)})
    assert family.horizon == 500
    tasks = {"gravity": np.array([7.0, 12.0]), "length": np.array([0.4, 0.9]), "masspole": np.array([0.2, 0.1])}
    rngs = [stream(0, "cart", row) for row in range(2)]
    seeds = [stream(0, "cart", row).integers(2**31, size=3) for row in range(2)]
    state, obs = family.reset(tasks, rngs, 3)
    for row in range(2):
        for copy in range(3):
            env = gymnasium.make("CartPole-v1").unwrapped
            env.gravity, env.length, env.masspole = (float(tasks[name][row]) for name in tasks)
            env.total_mass, env.polemass_length = env.masscart + env.masspole, env.masspole * env.length
            np.testing.assert_array_equal(env.reset(seed=int(seeds[row][copy]))[0], obs[row, copy])
    actions = np.random.default_rng(0).integers(2, size=(200, 2, 3))
    active = np.ones((2, 3), bool)
    own = [gymnasium.make("CartPole-v1").unwrapped for _ in range(3)]
    for copy, env in enumerate(own):
        env.gravity, env.length, env.masspole = 12.0, 0.9, 0.1
        env.total_mass, env.polemass_length = env.masscart + env.masspole, env.masspole * env.length
        env.reset(seed=int(seeds[1][copy]))
    lengths = np.zeros(3, int)
    for chosen in actions:
        step = family.step(tasks, state, chosen, rngs, active)
        for copy, env in enumerate(own):
            if active[1, copy]:
                seen, reward, terminated, _, _ = env.step(int(chosen[1, copy]))
                np.testing.assert_array_equal(step.obs[1, copy], seen)
                assert (step.reward[1, copy], step.terminated[1, copy]) == (reward, terminated)
                lengths[copy] += 1
        state, active = step.state, active & ~step.ended
        if not active.any():
            break
    assert lengths.min() > 5


def test_constructor_arguments_win_over_attributes_and_instances_are_made_for_them():
    made = []

    class Counted(Line):
        def __init__(self, drift=0.0):
            made.append(drift)
            super().__init__(drift)

    family = from_gym(Counted, {"drift": (-1.0, 1.0), "scale": [1, 2]}, horizon=5)
    made.clear()
    tasks = {"drift": np.array([0.25, -0.5]), "scale": np.array([1, 2])}
    for _ in range(2):
        state = None  # nobody has the episodes before
        state, _ = family.reset(tasks, [stream(0, "x"), stream(1, "x")], 2)
        assert made == [0.25, 0.25, -0.5, -0.5], "the second time they are used again"
    env = state["run"][1, 0].instance
    assert (env.drift, env.scale, type(env.scale)) == (-0.5, 2, int)


def test_a_function_tells_an_environment_its_task():
    told = []

    def set_task(env, task):
        told.append(task)
        env.unwrapped.where = task["where"]

    family = from_gym(made_line, {"where": Box(-1.0, 1.0, (2,))}, set_task=set_task)
    assert (family.id, family.horizon, family.named()) == ("made_line", 9, None)
    check_family(family, n=2)
    assert all(isinstance(task["where"], np.ndarray) and task["where"].shape == (2,) for task in told)


def test_an_environment_that_cuts_its_episodes_is_not_terminated():
    env = SingleEnv(from_gym(Line, {"drift": (-1.0, 1.0)}, horizon=50), drift=-0.9)
    env.reset(seed=0)
    for _ in range(20):
        obs, _, terminated, truncated, info = env.step([-1.0])
        if truncated:
            break
    assert truncated
    assert not terminated
    assert obs[0] < -1
    assert info == {}, "whose terms of the reward need not add up to it"


# ---------------------------------------------------------------------------------------------------------------- tasks
def test_lists_are_finite_and_their_splits_are_apart():
    family = from_gym("CartPole-v1", {"gravity": [5.0, 8.0, 11.0, 14.0], "length": [0.3, 0.5, 1.0]}, horizon=8)
    assert n_tasks(family.finite_tasks()) == 12
    check_family(family, n=2, n_steps=5)
    with pytest.raises(TaskError, match="is not one of the 12 tasks"):
        family.validate_tasks({"gravity": [6.0], "length": [0.5]})


def test_lists_beside_ranges_are_drawn_from_the_values():
    family = from_gym("CartPole-v1", {"gravity": (5.0, 15.0), "length": [0.3, 0.5, 1.0]}, horizon=8)
    tasks = family.sample_tasks(stream(0, "x"), 200)
    assert set(tasks["length"]) == {0.3, 0.5, 1.0}
    assert family.finite_tasks() is None
    check_family(family, n=2, n_steps=5)
    with pytest.raises(TaskError, match=r"length=0.4 is none of CartPole-v1's: \[0.3, 0.5, 1.0\]"):
        family.validate_tasks({"gravity": [6.0], "length": [0.4]})


def test_words_whole_numbers_and_spaces_reach_the_environment_as_what_they_are():
    tasks = Dict({"scale": Discrete(3, start=1), "where": Box(-1.0, 1.0, (2,), np.float32)})
    family = from_gym(Line, {"mode": ["plain", "fast"], **tasks.spaces, "drift": [0.0, 0.5]}, horizon=6)
    assert from_gym(Line, tasks, horizon=6).task_space["scale"] == Discrete(3, start=1)
    check_family(family, n=2)
    state, _ = family.reset(family.validate_tasks({"mode": [1], "scale": [2], "where": [[0.5, 1]], "drift": [0.5]}),
                            [stream(0, "x")], 1)  # fmt: skip
    env = state["run"][0, 0].instance
    assert (env.mode, env.scale, type(env.scale), env.drift) == ("fast", 2, int, 0.5)
    np.testing.assert_array_equal(env.where, [0.5, 1.0])


def test_what_an_environment_observes_has_the_shape_of_its_space():
    sized = from_gym(Line, {"size": [1, 2]}, horizon=5)
    with pytest.raises(ConfigError, match=r"Line has other spaces with {'size': 2}: tasks need equal ones"):
        sized.reset({"size": np.array([1, 2])}, [stream(0, "x")] * 2, 1)

    class Flat(Line):
        def step(self, action):
            return (0.0, *super().step(action)[1:])

    flat = SingleEnv(from_gym(Flat, {"drift": (0, 1)}, horizon=5), drift=0.5)
    flat.reset(seed=0)
    with pytest.raises(ConfigError, match=r"Flat observes shape \[\], not Box"):
        flat.step([0.0])


@pytest.mark.parametrize("through", [deepcopy, lambda family: pickle.loads(pickle.dumps(family))])
@pytest.mark.parametrize("env", ["CartPole-v1", CartPoleEnv])
def test_a_copy_of_a_family_is_one_of_its_own(env, through):
    family = from_gym(env, CARTPOLE, horizon=6)
    tasks = family.tasks("test", 2)
    state, obs = family.reset(tasks, [stream(0, "x"), stream(1, "x")], 2)
    twin = through(family)
    np.testing.assert_array_equal(twin.reset(tasks, [stream(0, "x"), stream(1, "x")], 2)[1], obs)
    family.step(tasks, state, np.zeros((2, 2), int), [])
    assert twin.named() == family.named()


def test_shifted_tasks_are_said():
    family = from_gym("Pendulum-v1", PENDULUM, shifted={"g": (15.0, 20.0)}, horizon=4)
    check_family(family, n=2)
    tasks = family.tasks("shifted", 20)
    assert (tasks["g"] >= 15).all()
    assert (tasks["m"] <= 2).all()
    with pytest.raises(TaskError, match="has no shifted split"):
        from_gym("Pendulum-v1", PENDULUM).tasks("shifted")


# ---------------------------------------------------------------------------------------------------------------- views
def test_registered_it_is_a_family_as_any_other(monkeypatch):
    monkeypatch.setattr(families, "_REGISTRY", dict(families._REGISTRY))
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    register_family("Pole-v0", from_gym, env="CartPole-v1", tasks=CARTPOLE, horizon=20)
    family = make_family("Pole-v0", horizon=7)
    assert (family.id, family.horizon, family.named()) == ("Pole-v0", 7, None)
    env = gymnasium.make("Pole-v0", gravity=9.0, length=0.4)
    assert env.spec.max_episode_steps == 20
    obs, _ = env.reset(seed=3)
    vec = FamilyVecEnv(make_family("Pole-v0"), {"gravity": [9.0], "length": [0.4]}, seed=3)
    np.testing.assert_array_equal(vec.reset()[0], obs)
    for action in (0, 1, 1, 0):
        np.testing.assert_array_equal(vec.step(np.array([action]))[0][0], env.step(action)[0])
    told = gymnasium.make("Pole-v0", oracle=True, gravity=9.0, length=0.4).reset(seed=3)[0]
    np.testing.assert_array_equal(told, np.float32([*obs, 9.0, 0.4]))


def test_what_cannot_be_drawn_says_so():
    with pytest.raises(ConfigError, match="is not drawn"):
        SingleEnv(from_gym("CartPole-v1", CARTPOLE), render_mode="rgb_array")

    class Drawn(Line):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

        def __init__(self, drift=0.0, render_mode=None):
            super().__init__(drift)
            self.render_mode = render_mode

        def render(self):
            return np.full((4, 5, 3), int(10 * self._x + 100), np.uint8)

    family = from_gym(Drawn, {"drift": (-1.0, 1.0)}, horizon=5, render_mode="rgb_array")
    check_family(family, n=2)
    env = SingleEnv(family, render_mode="rgb_array", drift=1.0)
    obs, _ = env.reset(seed=0)
    assert (env.metadata["render_fps"], env.render()[0, 0, 0]) == (20, int(10 * obs[0] + 100))


# ---------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    "family",
    [
        from_gym("CartPole-v1", CARTPOLE),
        from_gym("CartPole-v1", {"gravity": [5, 8, 9], "length": (0.3, 1.0)}, horizon=7, max_copies=3),
        from_gym("Pendulum-v1", PENDULUM, shifted={"g": (1.0, 2.0)}, kwargs={}),
        from_gym("CartPole-v1", CARTPOLE, kwargs={"sutton_barto_reward": True}, observes_task=True),
        from_gym(Line, {"where": Box(-1.0, 1.0, (2,)), "mode": ["plain", "fast"], "scale": Discrete(4)}, horizon=5),
        Oracle(from_gym("Pendulum-v1", PENDULUM)),
    ],
    ids=["ranges", "lists", "shifted", "observed", "spaces", "oracle"],
)
def test_a_name_and_json_make_the_same_family(family):
    name, arguments = json.loads(json.dumps(family.named()))
    again = make_family(name, **arguments)
    assert family_traits(again) == family_traits(family)
    assert (again.id, again.named(), again.max_copies) == (family.id, family.named(), family.max_copies)
    for split in ("validation", "test"):
        for ours, theirs in zip(family.tasks(split, 5).values(), again.tasks(split, 5).values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_users_write_is_read_alike():
    written = [{"gravity": (5, 15)}, {"gravity": "5..15"}, {"gravity": Box(5, 15, ())}, {"gravity": np.array("5..15")}]
    assert {str(from_gym("CartPole-v1", tasks).named()) for tasks in written} == {
        "('CartPole-v1', {'tasks': {'gravity': '5.0..15.0'}})"
    }
    listed = [{"length": [0.5, 1]}, {"length": "0.5, 1"}, {"length": np.array([0.5, 1])}, {"length": (0.5, 1, 2)}]
    found = [from_gym("CartPole-v1", tasks).finite_tasks()["length"].tolist() for tasks in listed]
    assert found == [[0.5, 1], [0.5, 1], [0.5, 1], [0.5, 1, 2]]


# -------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: from_gym("CartPol-v1", CARTPOLE), "unknown environment 'CartPol-v1': did you mean 'CartPole-v1'?"),
        (lambda: from_gym("PointMass-v0", CARTPOLE), "'PointMass-v0' is a family of tasks already"),
        (lambda: from_gym(gymnasium.make("CartPole-v1"), CARTPOLE), "is one environment: give its id, its class"),
        (lambda: from_gym(3, CARTPOLE), "env=3: an id of Gymnasium, a class of environments, or a function"),
        (lambda: from_gym(dict, CARTPOLE), "an id of Gymnasium, a class of environments, or a function"),
        (lambda: from_gym(lambda: 3, {"a": (1, 2)}), "makes a int, not an environment of Gymnasium"),
        (lambda: from_gym(lambda: 1 / 0, {"a": (1, 2)}), "cannot be made: division by zero"),
        (lambda: from_gym(Line, {"drift": (0, 1)}), "does not say how long an episode is: give horizon="),
        (lambda: from_gym("no_such_module:Line", {"drift": (0, 1)}), "is not imported: import no_such_module before"),
        (lambda: from_gym("json:loads", {"drift": (0, 1)}), "'json:loads' is no class of environments"),
        (lambda: from_gym("CartPole-v1", {}), "tasks={}: a dict of names"),
        (lambda: from_gym("CartPole-v1", {"a b": (0, 1)}), "tasks has the name 'a b': letters"),
        (lambda: from_gym("CartPole-v1", {"gravty": (5, 15)}), "'gravty': did you mean 'gravity'?"),
        (lambda: from_gym("Acrobot-v1", {"link_lenght_1": (0.5, 2)}), "did you mean 'LINK_LENGTH_1'?"),
        (
            lambda: from_gym("Acrobot-v1", {"mass": (0.5, 2)}),
            "LINK_MASS_1, LINK_MASS_2, LINK_MOI, MAX_VEL_1, MAX_VEL_2",
        ),
        (lambda: from_gym("CartPole-v1", {"open": (5, 15)}), "'open': known: force_mag, gravity, length, masscart"),
        (lambda: from_gym("CartPole-v1", {"step": (5, 15)}), "cannot change 'step' of CartPole-v1, which is a method"),
        (lambda: from_gym(Line, {"fixed": (5, 15)}, horizon=3), "cannot change attributes of "),
        (lambda: from_gym("CartPole-v1", {"gravity": (15, 5)}), "tasks.gravity=15..5: the low end of a range is below"),
        (lambda: from_gym("CartPole-v1", {"gravity": (5, np.inf)}), "tasks.gravity=5..inf: a range has finite ends"),
        (lambda: from_gym("CartPole-v1", {"gravity": "a..b"}), "tasks.gravity='a..b': a range is low..high"),
        (lambda: from_gym("CartPole-v1", {"gravity": "5"}), "tasks.gravity='5' is one value"),
        (lambda: from_gym("CartPole-v1", {"gravity": 9.8}), "tasks.gravity=9.8 is one value: a task parameter is a"),
        (lambda: from_gym("CartPole-v1", {"gravity": [9.8, 9.8]}), "two values or more, each once"),
        (lambda: from_gym("CartPole-v1", {"gravity": [9.8, None]}), "has the value None: numbers, words"),
        (lambda: from_gym("CartPole-v1", {"gravity": {"low": 1}}), "{low: …, high: …} or {n: …, start: …}"),
        (lambda: from_gym("CartPole-v1", {"gravity": {"lo": 1}}), "unknown part of tasks.gravity: 'lo'"),
        (lambda: from_gym("CartPole-v1", {"gravity": {"n": 10**12}}), "has 1,000,000,000,000 values: at most 100,000"),
        (lambda: from_gym("CartPole-v1", {"gravity": Box(0, 5, (), np.int64)}), "whole numbers are a list or a Discr"),
        (lambda: from_gym("CartPole-v1", {"gravity": Dict({})}), "is a Dict: a task parameter is a range"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, kwargs={"gravity": 3}), "kwargs has 'gravity', which tasks has too"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, kwargs={"grvity": 3}), "CartPole-v1 cannot be made: "),
        (lambda: from_gym("CartPole-v1", CARTPOLE, horizon=0), "horizon=0 is not"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, max_copies=0), "max_copies=0 is not"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, set_task="f"), "set_task='f': a function"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, render_mode="human"), "render_mode='human': 'rgb_array' or None"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, shifted={"gravity": (10, 20)}), "is not outside the training range"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, shifted={"mass": (10, 20)}), "task parameter in shifted: 'mass'"),
        (lambda: from_gym("CartPole-v1", CARTPOLE, shifted={"gravity": [20, 30]}), "shifted.gravity: a range"),
        (lambda: from_gym("FrozenLake-v1", {"is_slippery": [True, False]}), "observes Discrete(16): a Box of numbers"),
        (lambda: from_gym("Blackjack-v1", {"natural": [True, False]}, horizon=9), "FlattenObservation makes of most"),
        (lambda: from_gym(Pictures, {"level": (0, 1)}, horizon=5), "observes images"),
        (
            lambda: make_family("CartPole-v1"),
            "is one environment of Gymnasium, not a family of tasks: say what differs",
        ),
        (lambda: make_family("CartPole-v1", tasks=CARTPOLE, length=2), "unknown argument of CartPole-v1 'length'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, words):
    with pytest.raises(MetaRLError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
