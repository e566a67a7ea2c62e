"""Registries: live, sorted, one class a name, and words for names that are not there."""

from __future__ import annotations

import pytest

from metarl import ALGORITHMS
from metarl.agents import LEARNERS, Learner, StockAlgorithm, find_learner, learner_names, register_learner
from metarl.agents.learners.registry import Abilities
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.algorithms.maml import MAML
from metarl.registry import Registry


class First:
    pass


class Second:
    pass


def test_a_registry_is_live_and_in_the_order_of_names() -> None:
    registry: Registry[type[object]] = Registry("thing")
    names = registry.keys()
    registry.add("b", First)
    registry.add("a", Second)
    assert list(names) == ["a", "b"]
    assert registry.find("b") is registry["b"] is First
    assert len(registry) == 2


def test_two_classes_of_one_name_are_refused_and_a_module_that_is_imported_again_is_not() -> None:
    registry: Registry[type[object]] = Registry("thing")
    registry.add("a", First)
    again = type("First", (), {"__module__": First.__module__, "__qualname__": First.__qualname__})
    registry.add("a", again)
    assert registry["a"] is again
    with pytest.raises(ConfigError, match=r"^thing 'a': tests\.test_registry\.First has it already$"):
        registry.add("a", Second)


@pytest.mark.parametrize("name", ["", "A", "a b", "1a", "a/b", "a:b", None, 3])
def test_names_are_words_that_can_be_typed(name: object) -> None:
    with pytest.raises(ConfigError, match=r"^name of thing .*: small letters, digits, '_', '\.' and '-'$"):
        Registry("thing").add(name, First)  # type: ignore[arg-type]


def test_what_cannot_be_had_says_why() -> None:
    registry: Registry[type[object]] = Registry("thing", {"other": ("known",)})
    registry.add("known", First)
    registry.refused["gone"] = "it left"
    with pytest.raises(ConfigError, match=r"^thing 'gone' is not supported: it left$"):
        registry.find("gone")
    with pytest.raises(UnknownNameError, match="known"):
        registry.find("knwon")
    with pytest.raises(UnknownNameError, match="'known'"):
        registry.find("other")
    for name in (3, ["known"], First):
        with pytest.raises(UnknownNameError):
            registry.find(name)


def test_learners_say_what_they_can_do() -> None:
    assert learner_names() == sorted(LEARNERS)
    for name, cls in LEARNERS.items():
        assert issubclass(cls, Abilities)
        assert cls.name == name
        assert cls.default_rate > 0.0
        assert cls.differentiable == issubclass(cls, Learner) != issubclass(cls, StockAlgorithm)
    able = {
        "plain_steps": {"vpg", "supervised", "cloning"},
        "reuses_support": {"supervised", "cloning"},
        "deterministic": {"supervised", "cloning"},
        "trust_region": {"vpg"},
        "needs_critic": {"a2c", "ppo"},
    }
    for ability, names in able.items():
        assert {name for name, cls in LEARNERS.items() if getattr(cls, ability)} == names
    assert {name: cls.steps_per_update for name, cls in LEARNERS.items() if cls.steps_per_update} == {
        "vpg": 1,
        "a2c": 1,
        "supervised": 1,
        "cloning": 1,
    }


def test_a_second_learner_or_wrapper_of_one_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (LEARNERS, ALGORITHMS):
        monkeypatch.setattr(registry, "_items", dict(registry))
    with pytest.raises(ConfigError, match=r"^learner 'vpg': metarl\.agents\.learners\.vpg\.VPG has it already$"):

        @register_learner("vpg")
        class Mine(Abilities):
            default_rate = 0.1

    with pytest.raises(ConfigError, match=r"^algorithm 'maml': .*MAML has it already$"):

        class Other(MAML):
            name = "maml"

    class Nameless(MAML):
        pass

    assert Nameless not in ALGORITHMS.values()
    assert find_learner("vpg").name == "vpg"


def test_a_learner_says_its_rate() -> None:
    with pytest.raises(ConfigError, match=r"learner 'rateless': Rateless has no default_rate, the rate of its steps"):

        @register_learner("rateless")
        class Rateless(Learner):
            pass

    assert "rateless" not in LEARNERS
