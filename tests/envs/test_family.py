"""Task spaces, splits, validation and the registry."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from metarl.envs import registry
from metarl.envs.family import SPLITS, Family, Step
from metarl.envs.gym.family import from_gym
from metarl.envs.registry import family_ids, make_family, register_family
from metarl.envs.tasks import concatenate_tasks, n_tasks, one_task, stack_tasks, take_tasks
from metarl.errors import ConfigError, MetaRLError, TaskError, UnknownNameError
from metarl.streams import stream


class Still(Family):
    """Tasks without dynamics."""

    def __init__(self, size: int | None = None, shifted: bool = True, scale: float = 1.0) -> None:
        self.id = "Still-v0"
        self.size = size
        box = {"speed": Box(0.0, scale, (), np.float32), "gear": Discrete(3, start=1)}
        self.task_space = Dict({"index": Discrete(size)} if size else box)
        if shifted and not size:
            self.shifted_space = Dict({"speed": Box(scale, 2 * scale, (), np.float32), "gear": Discrete(3, start=1)})
        self.observation_space, self.action_space = Box(-1, 1, (1,), np.float32), Discrete(2)
        self.horizon = 1

    def finite_tasks(self):
        return None if self.size is None else {"index": np.arange(self.size)}

    def reset(self, tasks, rngs, n_envs):
        obs = np.zeros((len(rngs), n_envs, 1), np.float32)
        return {"obs": obs}, obs

    def step(self, tasks, state, actions, rngs, active=None):
        shape = actions.shape[:2]
        return Step(state, state["obs"].copy(), np.zeros(shape), np.zeros(shape, bool), {})


@pytest.fixture
def registered(monkeypatch):
    """A private copy of both registries."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    before = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


# -------------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize("split", SPLITS)
def test_continuous_splits_are_prefixes(split):
    family = Still()
    many = family.tasks(split, 12)
    few = family.tasks(split, 5)
    assert n_tasks(many) == 12
    for name in many:
        np.testing.assert_array_equal(few[name], many[name][:5])
        np.testing.assert_array_equal(many[name], Still().tasks(split, 12)[name])
    assert len(np.unique(many["speed"])) == 12
    family.validate_tasks(many)


def test_splits_differ_from_each_other_and_between_families():
    family, other = Still(), Still()
    other.id = "Other-v0"
    tests = family.tasks("test", 5)["speed"]
    assert not np.isin(tests, family.tasks("validation", 40)["speed"]).any()
    assert not np.isin(tests, other.tasks("test", 40)["speed"]).any()
    assert (family.tasks("shifted", 40)["speed"] >= 1.0).all()


def test_default_split_has_forty_tasks():
    assert n_tasks(Still().tasks("test")) == 40


@pytest.mark.parametrize(("size", "parts"), [(10, (6, 2, 2)), (17, (10, 3, 4)), (104, (62, 21, 21))])
def test_finite_splits_are_disjoint_and_complete(size, parts):
    family = Still(size)
    held_out = {split: family.tasks(split, size)["index"] for split in ("validation", "test")}
    trained = np.unique(family.sample_tasks(stream(0, "t"), 40 * size)["index"])
    assert (len(trained), len(held_out["validation"]), len(held_out["test"])) == parts
    together = np.concatenate([trained, *held_out.values()])
    np.testing.assert_array_equal(np.sort(together), np.arange(size))
    np.testing.assert_array_equal(family.tasks("test", 2)["index"], held_out["test"][:2])
    np.testing.assert_array_equal(np.sort(family.tasks("train", size)["index"]), trained)
    assert not family.splits_coincide


def test_small_finite_families_have_one_split():
    family = Still(9)
    assert family.splits_coincide
    for split in ("validation", "test"):
        np.testing.assert_array_equal(family.tasks(split)["index"], np.arange(9))
    assert set(family.sample_tasks(stream(0, "t"), 300)["index"].tolist()) == set(range(9))
    assert not Still().splits_coincide


@pytest.mark.parametrize(
    ("family", "split", "n", "message"),
    [
        (Still(), "tests", 4, "unknown split 'tests': known: train, validation, test, shifted"),
        (Still(shifted=False), "shifted", 4, "Still-v0 has no shifted split: known: train, validation, test"),
        (Still(), "test", 0, "n=0 is not an integer in"),
    ],
)
def test_bad_split(family, split, n, message):
    with pytest.raises((TaskError, ConfigError), match=message):
        family.tasks(split, n)


# ---------------------------------------------------------------------------------------------------------- validation
def test_valid_tasks_become_new_arrays_of_the_space():
    given = {"gear": [1, 3.0], "speed": np.array([0.0, 1.9])}
    valid = Still().validate_tasks(given)
    assert list(valid) == ["gear", "speed"]
    assert valid["speed"].dtype == np.float32
    assert valid["gear"].dtype == np.int64
    given["speed"][0] = 7.0
    assert valid["speed"][0] == 0.0


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"speed": [0.5], "gear": [1], "colour": [1]}, "Still-v0 has no task parameter 'colour': known: gear, speed"),
        ({"speed": [0.5]}, "task parameter 'gear' of Still-v0 is missing"),
        (
            {"speed": [2.1], "gear": [1]},
            r"speed=2.0999\d* is outside the task space of Still-v0: \[0, 1\] \(or \[1, 2\]",
        ),
        ({"speed": [0.5, np.nan], "gear": [1, 1]}, "speed=nan is outside the task space"),
        ({"speed": [0.5], "gear": [0]}, "gear=0 is outside the task space of Still-v0: 1 to 3"),
        ({"speed": [0.5], "gear": [4]}, "gear=4 is outside the task space"),
        ({"speed": [0.5], "gear": [1.5]}, r"gear=\[1.5\] is not whole: Still-v0 takes 1 to 3"),
        ({"speed": ["fast"], "gear": [1]}, r"speed=\['fast'\] is not a number: Still-v0 takes \[0, 1\]"),
        ({"speed": [None], "gear": [1]}, r"speed=\[None\] is not a number"),
        ({"speed": np.ma.array([0.5], mask=[True]), "gear": [1]}, r"speed=masked_array.* is not a number"),
        ({"speed": [np.ma.masked], "gear": [1]}, "is not a number"),
        ({"speed": [[0.5], [0.5, 0.6]], "gear": [1, 1]}, "is not a number"),
        ({"speed": [[0.5]], "gear": [1]}, r"speed has shape \[1, 1\]: Still-v0 takes \[task\]"),
        ({"speed": 0.5, "gear": [1]}, r"speed has shape \[\]: Still-v0 takes \[task\]"),
        ({"speed": [0.5], "gear": [1, 1]}, "task parameters differ in length: {'gear': 2, 'speed': 1}"),
        ({"speed": [], "gear": np.zeros(0, int)}, "no tasks of Still-v0 were given"),
    ],
)
def test_bad_tasks(tasks, message):
    with pytest.raises(TaskError, match=message) as error:
        Still().validate_tasks(tasks)
    assert "\n" not in str(error.value)


def test_small_integers_do_not_wrap_round():
    family = Still(shifted=False)
    family.task_space = Dict({"gear": Box(0, 255, (), np.uint8)})
    assert family.validate_tasks({"gear": [255.0]})["gear"].dtype == np.uint8
    for value in (256, -1, 511.0):
        with pytest.raises(TaskError, match=rf"gear=\[{value}\] is outside the task space of Still-v0: \[0, 255\]"):
            family.validate_tasks({"gear": [value]})


def test_finite_families_take_only_their_tasks():
    class Signs(Still):
        def __init__(self):
            super().__init__(shifted=False)
            self.task_space = Dict({"sign": Box(-1.0, 1.0, (1,), np.float64)})

        def finite_tasks(self):
            return {"sign": np.array([[-1.0], [1.0]])}

    assert n_tasks(Signs().validate_tasks({"sign": [[1.0], [-1.0], [1.0]]})) == 3
    with pytest.raises(TaskError, match=r"\{'sign': \[0.5\]\} is not one of the 2 tasks of Still-v0"):
        Signs().validate_tasks({"sign": [[1.0], [0.5]]})


# ------------------------------------------------------------------------------------------------------------- batches
def test_batches_come_apart_and_together():
    tasks = {"speed": np.array([0.1, 0.2, 0.3]), "gear": np.array([1, 2, 3])}
    assert one_task(tasks, 1) == {"speed": 0.2, "gear": 2}
    stacked = stack_tasks([one_task(tasks, i) for i in range(3)])
    joined = concatenate_tasks([take_tasks(tasks, slice(0, 1)), take_tasks(tasks, np.array([1, 2]))])
    for name in tasks:
        np.testing.assert_array_equal(stacked[name], tasks[name])
        np.testing.assert_array_equal(joined[name], tasks[name])


# ------------------------------------------------------------------------------------------------------------ registry
def test_registering_makes_both_kinds_of_environment(registered):
    register_family("Still-v3", Still, scale=2.0)
    assert "Still-v3" in family_ids()
    family = make_family("Still-v3")
    assert family.id == "Still-v3"
    assert family.task_space["speed"].high == 2.0
    assert make_family("Still-v3", scale=3.0).task_space["speed"].high == 3.0
    env = gymnasium.make("Still-v3", speed=1.5, gear=2)
    assert env.unwrapped.task == {"speed": 1.5, "gear": 2}


def test_every_registered_family_is_in_gymnasium():
    ants = {"AntVel-v0", "AntDir-v0", "AntLeg-v0"}
    assert {"PointMass-v0", *ants, "HalfCheetahVel-v0", "HalfCheetahDir-v0"} <= set(family_ids())
    assert set(family_ids()) <= set(gymnasium.registry)


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Pendulum-v1", {}, "'Pendulum-v1' is one environment of Gymnasium, not a family of tasks: say what differs"),
        ("PointMas-v0", {}, "unknown environment 'PointMas-v0': did you mean 'PointMass-v0'?"),
        ("antvel-v0", {}, "did you mean 'AntVel-v0'?"),
        ("PointMass-v0", {"horizn": 3}, "unknown argument of PointMass 'horizn': did you mean 'horizon'?"),
        ("PointMass-v0", {"id": "x"}, "unknown argument of PointMass 'id': "),
        ("PointMass-v0", {"self": "x"}, "unknown argument of PointMass-v0 'self': "),
        ("PointMass-v0", {"lineage": [1]}, "unknown lineage '[1]': "),
        ("AntDir-v0", {"lineage": {}}, "unknown lineage '{}': "),
    ],
)
def test_unknown_names(id, kwargs, message):
    with pytest.raises(UnknownNameError) as error:
        make_family(id, **kwargs)
    assert message in str(error.value)
    assert isinstance(error.value, MetaRLError)


def test_unknown_argument_of_a_plain_signature(registered):
    register_family("Still-v3", Still)
    with pytest.raises(UnknownNameError, match="unknown argument of Still-v3 'scal': did you mean 'scale'"):
        make_family("Still-v3", scal=2.0)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: make_family("PointMass-v0"), "make_family('PointMass-v0')"),
        (lambda: make_family("Maze-v0", width=6, oracle=True), "make_family('Maze-v0', width=6, oracle=True)"),
        (
            lambda: from_gym("CartPole-v1", tasks={"gravity": (5, 15)}, horizon=9),
            "make_family('CartPole-v1', tasks={'gravity': '5.0..15.0'}, horizon=9)",
        ),
        (Still, "<Still Still-v0>"),
    ],
)
def test_a_family_is_shown_as_the_call_that_makes_it(made, said):
    family = made()
    assert repr(family) == str(family) == said


@pytest.mark.parametrize("id", ["Still", "Still-v", "St ill-v0", "CartPole-v1"])
def test_names_that_cannot_be_registered(id, registered):
    with pytest.raises(ConfigError, match="family name"):
        register_family(id, Still)
    assert id not in family_ids()


def test_envs_do_not_import_torch():
    # The package's own __init__ imports meta-wrappers, so a bare stand-in takes its place.
    code = """
import importlib.util, pathlib, sys, types
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("torch", "stable_baselines3"), name
sys.meta_path.insert(0, Refuse())
package = types.ModuleType("metarl")
package.__path__ = [sys.argv[1]]
sys.modules["metarl"] = package
import metarl.envs
assert "PointMass-v0" in metarl.envs.family_ids()
env = __import__("gymnasium").make("PointMass-v0", goal=[0.1, 0.2])
env.reset(seed=0)
env.step(env.action_space.sample())
"""
    folder = registry.__file__.rsplit("/envs/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
