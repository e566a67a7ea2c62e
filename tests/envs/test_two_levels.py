"""Families of two levels: what is drawn of them, which lists are held out, and what they may not be."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from metarl.envs import Oracle, TwoLevels, check_family, make_family
from metarl.envs.checker.common import FamilyCheckError
from metarl.envs.supervised.sinusoid import Sinusoid
from metarl.envs.tasks import n_tasks, take_tasks
from metarl.envs.two_levels import draw_families, draw_tasks_of
from metarl.envs.views.around import two_levels
from metarl.errors import ConfigError, TaskError
from metarl.streams import stream

IDS = ("SinusoidFamilies-v0", "PointMassFamilies-v0")


@pytest.mark.parametrize("id", IDS)
def test_it_keeps_every_promise(id):
    check_family(make_family(id), n=2, n_steps=5)


@pytest.mark.parametrize("id", IDS)
def test_held_out_families_are_lists_of_their_own(id):
    family = make_family(id)
    many, few = family.families("test", 12), make_family(id).families("test", 5)
    for name in many:
        np.testing.assert_array_equal(few[name], many[name][:5])
        assert len(np.unique(many[name])) == many[name].size
        assert not np.isin(many[name], family.families("validation", 12)[name]).any()
    assert len(family.families("train", 3)[next(iter(many))]) == 3
    with pytest.raises(TaskError, match="unknown split of families 'shifted': known: train, validation, test"):
        family.families("shifted")


def test_sines_of_a_family_have_one_phase_and_amplitudes_of_their_own():
    family = make_family("SinusoidFamilies-v0")
    families = family.sample_families(stream(0, "families"), 400)
    assert families["phase"].min() < 0.05
    assert families["phase"].max() > np.pi - 0.05
    tasks = family.sample_tasks(stream(0, "tasks"), 3, families=families)
    np.testing.assert_array_equal(tasks["phase"].reshape(400, 3), np.tile(families["phase"][:, None], 3))
    assert len(np.unique(tasks["amplitude"])) == 1200
    assert tasks["amplitude"].min() < 0.15
    assert tasks["amplitude"].max() > 4.95
    plain = Sinusoid()
    for name in ("reset", "step"):
        assert getattr(type(family), name) is getattr(Sinusoid, name)
    assert family.task_space == plain.task_space
    over_all = family.sample_tasks(stream(0, "all"), 1000)
    assert np.abs(np.corrcoef(over_all["phase"], over_all["amplitude"])[0, 1]) < 0.1


def test_goals_of_a_family_lie_in_its_rectangle_inside_the_square():
    family = make_family("PointMassFamilies-v0")
    families = family.sample_families(stream(0, "families"), 500)
    size, low = families["size"], families["low"]
    assert size.min() == pytest.approx(0.25, abs=0.01)
    assert size.max() == pytest.approx(0.75, abs=0.01)
    assert np.all(low >= -0.5)
    assert np.all(low + size <= 0.5 + 1e-12)
    goals = family.sample_tasks(stream(0, "goals"), 40, families=families)["goal"].reshape(500, 40, 2)
    inside = (goals - low[:, None]) / size[:, None]
    assert inside.min() >= 0.0
    assert inside.max() <= 1.0 + 1e-12
    assert inside.mean(axis=(0, 1)) == pytest.approx([0.5, 0.5], abs=0.01)
    # The marginal is that of a crop: the middle of the square is in more rectangles than its edge.
    over_all = family.sample_tasks(stream(1, "goals"), 4000)["goal"]
    assert np.mean(np.abs(over_all) < 0.1) > 0.25  # 0.2 where goals are uniform


def test_rectangles_scale_with_the_square_and_corners_are_refused():
    families = make_family("PointMassFamilies-v0", goal_range=2.0).sample_families(stream(0, "families"), 50)
    assert families["size"].max() > 2.0
    with pytest.raises(ConfigError, match="goals='corners'"):
        make_family("PointMassFamilies-v0", lineage="promp_corner")


def test_views_lead_to_the_levels_of_the_family_inside():
    family = make_family("SinusoidFamilies-v0")
    assert two_levels(family) is family
    assert two_levels(Oracle(family)) is family
    assert two_levels(make_family("Sinusoid-v0")) is None


class Phases(TwoLevels, Sinusoid):
    def __init__(self):
        super().__init__()
        self.id = "Phases-v0"
        self.family_space = Dict({"phase": self.task_space["phase"]})

    def tasks_within(self, rng, families):
        return {"amplitude": rng.uniform(0.1, 5.0, n_tasks(families)), "phase": families["phase"]}


class Unnamed(Phases):
    def __init__(self):
        super().__init__()
        self.family_space = Box(0.0, 1.0)


class Deaf(Phases):
    def sample_families(self, rng, n):
        return {"phase": np.linspace(0.0, 1.0, n)}


class Outside(Phases):
    def sample_families(self, rng, n):
        return {"phase": super().sample_families(rng, n)["phase"] + 4.0}


class Few(Phases):
    def sample_families(self, rng, n):
        return super().sample_families(rng, 1)


class Mixed(Phases):
    def tasks_within(self, rng, families):
        return {**super().tasks_within(rng, families), "phase": families["phase"][::-1].copy()}


class Alike(Phases):
    def tasks_within(self, rng, families):
        return {"amplitude": np.ones(n_tasks(families)), "phase": families["phase"]}


class Short(Phases):
    def sample_tasks(self, rng, n, families=None):
        return super().sample_tasks(rng, n if families is None else 1, families)


class Curt(Phases):
    def sample_tasks(self, rng, n):
        return super().sample_tasks(rng, n)


class Leaking(Phases):
    def families(self, split, n=40):
        return self.sample_families(stream(0, "check/families", 0), n)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Unnamed, "family_space .* is not a Dict"),
        (Deaf, "sample_families ignores its generator"),
        (Outside, "outside family_space"),
        (Few, r"not a dict of arrays \[16"),
        (Mixed, "a task within a family has phase"),
        (Alike, "one task of each family again and again|amplitude"),
        (Short, "returned 16 tasks, not 64"),
        (Curt, "sample_tasks.* is called as"),
        (Leaking, "training draws hold families of the validation split"),
    ],
)
def test_what_families_of_two_levels_may_not_be_is_found(broken, words):
    with pytest.raises(FamilyCheckError, match=words) as caught:
        check_family(broken(), n=2)
    assert "\n" not in str(caught.value)


def test_what_is_drawn_is_looked_at():
    with pytest.raises(TaskError, match="sample_families of Phases-v0 gives"):
        draw_families(Outside(), stream(0, "families"), 2)
    families = draw_families(Phases(), stream(0, "families"), 2)
    with pytest.raises(TaskError, match="not 6 tasks: 3 of each family"):
        draw_tasks_of(Short(), stream(0, "tasks"), 3, families)
    assert n_tasks(take_tasks(families, slice(0, 1))) == 1
