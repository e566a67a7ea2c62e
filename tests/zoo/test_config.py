"""Hyperparameters: parsing without evaluation, merging, and the check of names and types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from metarl.errors import ConfigError, UnknownNameError
from metarl.files.untrusted import dump_yaml
from metarl.meta.adaptation.learners import merge_arguments
from metarl.zoo import config


class Base:
    def __init__(
        self,
        policy: str,
        env: str,
        inner_lr: float | list[float] = 0.1,
        outer: Literal["trpo", "adam"] = "trpo",
        n_episodes: int = 20,
        n_transitions: int | None = None,
        outer_kwargs: Mapping[str, Any] | None = None,
        first_order: bool = False,
        seed: int = 0,
    ) -> None:
        pass


class Child(Base):
    def __init__(self, policy: str, env: str, *, extra: float = 1.0, **kwargs: Any) -> None:
        super().__init__(policy, env, **kwargs)


def check(**values: Any) -> dict[str, Any]:
    return config.check_hyperparameters({"n_timesteps": 10, **values}, Child)


def test_another_learner_inherits_neither_rates_nor_a_trust_region() -> None:
    base = {
        "learner": "vpg",
        "inner_lr": 0.1,
        "gae_lambda": 0.97,
        "gamma": 0.9,
        "outer": "trpo",
        "fisher_fraction": 0.5,
    }
    kept = {"gamma": 0.9, "fisher_fraction": 0.5}
    assert config.merge(base, {"learner": "ppo", "inner_lr": 1e-3}) == {**kept, "learner": "ppo", "inner_lr": 1e-3}
    adam = {**base, "outer": "adam", "outer_kwargs": {"learning_rate": 0.01}}
    assert config.merge(adam, {"learner": "a2c"})["outer_kwargs"] == {"learning_rate": 0.01}
    assert config.merge(base, {"learner": "vpg"}) == base
    assert config.merge(base, {"gamma": 0.9}) == base


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("a:1", "a", 1),
        ("a:1e-3", "a", 1e-3),
        ("a:-2.5E+3", "a", -2500.0),
        ("a:1_000", "a", 1000),
        ("a:[0.1, 1e-2]", "a", [0.1, 0.01]),
        ("a:true", "a", True),
        ("a:null", "a", None),
        ("a:b:c", "a", "b:c"),
        ("a.b:tanh", "a.b", "tanh"),
        ("a:1.2.3", "a", "1.2.3"),
    ],
)
def test_pairs_are_yaml(pair: str, key: str, value: Any) -> None:
    assert config.parse_pairs([pair], "-params") == {key: value}


@pytest.mark.parametrize(
    "pair", ["a", "a:", ":1", "a:[1", "a:!!python/object/apply:os.system [id]", "a:!!python/name:os.system"]
)
def test_bad_pairs_are_refused(pair: str) -> None:
    with pytest.raises(ConfigError):
        config.parse_pairs([pair], "-params")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["n:3", "n:4"], "-params sets n twice, 'n:3' and 'n:4': leave one out"),
        (["n:3", "m:1", "n:3"], "-params sets n twice, 'n:3' and 'n:3': leave one out"),
        (["a.b:1", "a.b:2"], "-params sets a.b twice, 'a.b:1' and 'a.b:2': leave one out"),
        (["a.b:1", "a:{c: 2}"], "-params sets a twice, 'a.b:1' and 'a:{c: 2}': leave one out"),
        (["a:{b: {c: 1}}", "a.b.c:2"], "-params sets a.b.c twice, 'a:{b: {c: 1}}' and 'a.b.c:2': leave one out"),
        (["n:" + "3" * 999, "n:4"], "characters) and 'n:4'"),
    ],
)
def test_what_is_set_twice_is_refused_with_both_values(pairs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        config.parse_pairs(pairs, "-params")
    assert len(str(caught.value)) < 400


def test_pairs_beside_each_other_are_fine() -> None:
    pairs = ["a:{b: 1}", "a.c:2", "ab:3", "a.d.e:4", "a.d.f:5"]
    assert config.parse_pairs(pairs, "-params") == {"a": {"b": 1}, "a.c": 2, "ab": 3, "a.d.e": 4, "a.d.f": 5}


def test_expressions_stay_text() -> None:
    assert config.parse_pairs(["a:__import__('os').getcwd()"], "-params") == {"a": "__import__('os').getcwd()"}


def test_merge_reaches_into_mappings_and_leaves_its_arguments() -> None:
    base = {"outer_kwargs": {"max_kl": 0.01, "cg_steps": 10}, "gamma": 0.99}
    merged = config.merge(base, {"outer_kwargs.max_kl": 0.02, "policy_kwargs.net_arch": [8], "gamma": 0.9})
    assert merged == {
        "outer_kwargs": {"max_kl": 0.02, "cg_steps": 10},
        "policy_kwargs": {"net_arch": [8]},
        "gamma": 0.9,
    }
    assert base == {"outer_kwargs": {"max_kl": 0.01, "cg_steps": 10}, "gamma": 0.99}


def test_names_of_base_classes_count() -> None:
    assert check(extra=2, inner_lr=[1, 0.5], n_episodes=3.0) == {
        "n_timesteps": 10,
        "extra": 2.0,
        "inner_lr": [1.0, 0.5],
        "n_episodes": 3,
    }


def test_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'inner_lr'"):
        check(iner_lr=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inner_lr", "fast"),
        ("inner_lr", True),
        ("inner_lr", ["a"]),
        ("outer", "newton"),
        ("n_episodes", 2.5),
        ("n_episodes", None),
        ("n_episodes", False),
        ("outer_kwargs", [1]),
        ("outer_kwargs", {1: 2}),
        ("first_order", 1),
        ("n_timesteps", "many"),
        ("n_timesteps", 0),
        ("n_timesteps", 1e30),
        ("policy", 3),
    ],
)
def test_wrong_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        check(**{name: value})


def test_arguments_with_a_flag_are_no_hyperparameters() -> None:
    with pytest.raises(ConfigError, match="use --seed"):
        check(seed=3)


def test_n_timesteps_is_required() -> None:
    with pytest.raises(ConfigError, match="n_timesteps is missing"):
        config.check_hyperparameters({"inner_lr": 0.1}, Child)


@pytest.mark.parametrize("path", sorted(config.HYPERPARAMS.glob("*.yml")), ids=lambda path: path.stem)
def test_shipped_files_are_plain_yaml_with_a_default(path: Any) -> None:
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in table.values():
        assert entry["n_timesteps"] >= 1
    assert config.load_hyperparameters(path.stem, "Unheard-v0") == table["default"]


def test_conf_file(tmp_path: Any) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("PointMass-v0: {n_timesteps: 1e3}\n")
    assert config.load_hyperparameters("maml", "PointMass-v0", str(path)) == {"n_timesteps": 1000.0}
    with pytest.raises(ConfigError, match="no hyperparameters for AntVel-v0"):
        config.load_hyperparameters("maml", "AntVel-v0", str(path))
    for text in ("[1, 2]", "a: [1", "x: !!python/name:os.system"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            config.load_hyperparameters("maml", "AntVel-v0", str(path))
    for name in ("mine.py", "missing.yml"):
        with pytest.raises(ConfigError):
            config.load_hyperparameters("maml", "AntVel-v0", str(tmp_path / name))


def test_dump_and_load_are_inverse() -> None:
    value = {"a": 1e-05, "b": [0.1, 3], "c": {"d": None, "e": "1e-3", "f": "x"}, "g": 1e20}
    assert config.load_yaml(dump_yaml(value), "test") == value


def test_another_outer_optimiser_does_not_inherit_arguments() -> None:
    base = {"outer": "trpo", "outer_kwargs": {"max_kl": 0.02}, "seed": 1}
    assert config.merge(base, {"outer": "adam"}) == {"outer": "adam", "seed": 1}
    assert config.merge(base, {"outer": "adam", "outer_kwargs.learning_rate": 0.01})["outer_kwargs"] == {
        "learning_rate": 0.01
    }
    assert config.merge(base, {"outer": "trpo"}) == base


def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yml"
    path.write_text("PointMass-v0: {n_timesteps: 5, n_timesteps: 6}\n")
    with pytest.raises(ConfigError, match="'n_timesteps' is given twice"):
        config.load_hyperparameters("maml", "PointMass-v0", str(path))
    path.write_text("default: &default {n_timesteps: 5}\nPointMass-v0: {<<: *default, n_timesteps: 6}\n")
    assert config.load_hyperparameters("maml", "PointMass-v0", str(path)) == {"n_timesteps": 6}
    path.write_text("PointMass-v0:\n")
    with pytest.raises(ConfigError, match="the entry for PointMass-v0 is None"):
        config.load_hyperparameters("maml", "PointMass-v0", str(path))


def test_a_number_of_episodes_replaces_one_of_env_steps() -> None:
    """The env steps would be taken before it, and the number of episodes be without effect."""
    base = {"n_transitions": 50_000, "meta_batch_size": 2}
    assert merge_arguments(base, {"n_episodes": 2}) == {"n_episodes": 2, "meta_batch_size": 2}
    assert merge_arguments({"n_episodes": 2}, {"n_transitions": 9})["n_transitions"] == 9
    assert merge_arguments(base, {"n_episodes": 2, "n_transitions": None}) == {"n_episodes": 2, "meta_batch_size": 2}
    with pytest.raises(ConfigError, match="n_episodes and n_transitions both say how large a batch is"):
        merge_arguments({}, {"n_episodes": 2, "n_transitions": 9})
