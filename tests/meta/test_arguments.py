"""What was set is what is used and what is saved: attributes of a live model, loading, overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import metarl
from metarl.errors import CheckpointError, ConfigError, MetaRLError, UnknownNameError
from metarl.files.checkpoint import load_checkpoint
from metarl.meta import (
    ANIL,
    BOIL,
    CAVIA,
    HAT,
    IMAML,
    LEO,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    MultiTask,
    ProgressiveNets,
)
from metarl.meta.algorithms.baselines import Oracle, Pretrain, RandomInit
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.maltml import MALTML
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.meta.algorithms.oml import OML
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.algorithms.rl2 import RL2
from metarl.meta.base import load
from metarl.meta.saving import ALGORITHMS
from tests.meta.small import SIZES, equal, run_iterations, small

EVERY: dict[str, Any] = {
    "anil": ANIL,
    "boil": BOIL,
    "cavia": CAVIA,
    "fomaml": FOMAML,
    "hat": HAT,
    "imaml": IMAML,
    "leap": Leap,
    "leo": LEO,
    "maltml": MALTML,
    "maml": MAML,
    "maml_plus_plus": MAMLPlusPlus,
    "meta_curvature": MetaCurvature,
    "meta_sgd": MetaSGD,
    "meta_transfer": MetaTransfer,
    "multi_task": MultiTask,
    "oml": OML,
    "oracle": Oracle,
    "pretrain": Pretrain,
    "progressive": ProgressiveNets,
    "random": RandomInit,
    "reptile": Reptile,
    "rl2": RL2,
}
FREE = {"verbose", "tensorboard_log"}
"""Arguments that may be set on a model: they are read whenever it learns, and belong to no checkpoint."""


@pytest.mark.parametrize("name", EVERY)
def test_every_argument_that_is_set_on_a_model_is_refused_by_name(name: str) -> None:
    model = small(EVERY[name])
    before = model.arguments()
    for argument in model.argument_names():
        if argument in FREE | {"policy", "env"}:
            continue
        for value in (getattr(model, argument), 1, None, "x"):
            with pytest.raises(ConfigError, match=f"^{argument} of a {type(model).__name__} is set when it is built"):
                setattr(model, argument, value)
    assert model.arguments() == before


@pytest.mark.parametrize(
    "name",
    ["rates", "family", "adaptation", "policy", "policy_name", "outer_optimizer", "parallel", "theta", "action_space"],
)
def test_what_follows_from_the_arguments_is_refused_too(name: str) -> None:
    model = small()
    with pytest.raises(ConfigError, match=f"^{name} of a FOMAML"):
        setattr(model, name, getattr(model, name))
    with pytest.raises(ConfigError, match=f"^{name} of a FOMAML"):
        delattr(model, name)


def test_values_inside_arguments_cannot_be_changed() -> None:
    model = small(learner="ppo", n_inner_steps=2, inner_lr=[0.1, 0.2], outer="adam", learner_kwargs={"n_epochs": 2})
    for name, change in {
        "outer_kwargs": lambda: model.outer_kwargs.update(learning_rate=1.0),
        "learner_kwargs": lambda: model.learner_kwargs.__setitem__("n_epochs", 9),
        "policy_kwargs": lambda: model.policy_kwargs["net_arch"].append(4),
        "env_kwargs": lambda: model.env_kwargs.pop("horizon"),
        "inner_lr": lambda: model.inner_lr.append(1.0),
        "rates": lambda: model.rates.__setitem__(0, 9.0),
    }.items():
        with pytest.raises(ConfigError, match=f"^{name} of a FOMAML is set when it is built"):
            change()


def test_parts_of_a_model_are_set_once_as_well() -> None:
    model = small()
    for change in (
        lambda: setattr(model.outer_optimizer, "max_kl", 0.5),
        lambda: setattr(model.adaptation.learner, "gamma", 0.5),
    ):
        with pytest.raises(ConfigError, match="is set when it is built"):
            change()


def test_what_a_wrapper_of_ones_own_counts_is_private() -> None:
    class Counting(FOMAML):
        name = ""

        def train(self) -> dict[str, float]:
            self.count = self.n_iterations
            return super().train()

    model = small(Counting)
    with pytest.raises(ConfigError, match=r"^count of a Counting was not set when .* such as _count$"):
        model.learn(1)


@pytest.mark.parametrize("name", ["horizon", "observation_space", "task_space", "constants"])
def test_a_family_that_was_changed_is_neither_learnt_on_nor_saved(tmp_path: Path, name: str) -> None:
    model = small()
    value = getattr(small(env_kwargs={"horizon": 7, "momentum": True, "goal_range": 2.0}).family, name)
    setattr(model.family, name, value)
    for do in (lambda: model.learn(1), lambda: model.save(tmp_path / "m")):
        with pytest.raises(ConfigError, match=f"^{name} of the family PointMass-v0 was changed"):
            do()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("learning_rate", "inner_lr is the learning rate of the learner, outer_kwargs={'learning_rate': …}"),
        ("max_kl", "outer_kwargs={'max_kl': …}"),
        ("ent_coef", "learner_kwargs={'ent_coef': …}"),
        ("n_steps", "n_transitions"),
    ],
)
def test_arguments_of_parts_say_where_they_belong(tmp_path: Path, name: str, place: str) -> None:
    model = small()
    path = model.save(tmp_path / "m")
    for do in (lambda: setattr(model, name, 0.5), lambda: small(**{name: 0.5}), lambda: load(path, **{name: 0.5})):
        with pytest.raises(MetaRLError) as caught:
            do()
        assert place in str(caught.value)
    model.note = "anybody's own attribute"


def test_what_may_be_set_takes_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    model.verbose, model.tensorboard_log = True, tmp_path
    assert model.verbose == 1
    model.learn(1)
    assert "post_adapt_rew" in capsys.readouterr().out
    assert list(tmp_path.rglob("events.*"))
    model.num_timesteps = np.int64(5)
    assert type(model.num_timesteps) is int
    for name, value in (("num_timesteps", -1), ("n_iterations", "x"), ("verbose", 7), ("params", 3)):
        with pytest.raises(ConfigError, match=f"^{name}="):
            setattr(model, name, value)


def test_a_seed_that_is_set_is_used_and_saved(tmp_path: Path) -> None:
    model, other = small(seed=0), small(seed=0)
    model.set_random_seed(np.int64(5))
    again = load(model.save(tmp_path / "m"))
    assert again.seed == 5
    run_iterations(model, 1)
    run_iterations(again, 1)
    run_iterations(other, 1)
    assert equal(model.params, again.params)
    assert not equal(model.params, other.params)
    model.set_random_seed()
    assert model.seed != 5
    with pytest.raises(ConfigError, match=r"^seed=-1"):
        model.set_random_seed(-1)


# ------------------------------------------------------------------------------------------------------------- numbers
def test_numbers_of_numpy_train_to_the_same_bits_and_are_saved_as_plain_ones(tmp_path: Path) -> None:
    plain = {"n_inner_steps": 2, "inner_lr": [0.5, 0.25], "gamma": 0.5, "meta_batch_size": 2, "seed": 3}
    other = {
        "n_inner_steps": np.float64(2.0),
        "inner_lr": np.array([0.5, 0.25]),
        "gamma": torch.tensor(0.5),
        "meta_batch_size": np.int64(2),
        "seed": np.uint32(3),
    }
    parts = {"outer_kwargs": {"max_kl": 0.25, "cg_steps": 3}, "policy_kwargs": {"net_arch": [4]}}
    np_parts = {
        "outer_kwargs": {"max_kl": np.float32(0.25), "cg_steps": np.int16(3)},
        "policy_kwargs": {"net_arch": np.array([4])},
    }
    a = run_iterations(small(env_kwargs={"horizon": 20}, **plain, **parts), 2)
    b = run_iterations(small(env_kwargs={"horizon": np.int64(20)}, **other, **np_parts), 2)
    assert equal(a.params, b.params)
    assert load_checkpoint(a.save(tmp_path / "a"))[1] == load_checkpoint(b.save(tmp_path / "b"))[1]


# ---------------------------------------------------------------------------------------------------- another algorithm
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file of every algorithm."""
    folder = tmp_path_factory.mktemp("saved")
    return {name: small(cls).save(folder / name) for name, cls in EVERY.items()}


@pytest.mark.parametrize("name", EVERY)
def test_load_takes_the_very_algorithm_and_metarl_load_any(name: str, saved: dict[str, Path]) -> None:
    assert set(EVERY) == set(ALGORITHMS)
    for other, path in saved.items():
        if other == name:
            assert type(EVERY[name].load(path)) is type(load(path)) is EVERY[name]
            continue
        with pytest.raises(CheckpointError, match=f"saved by '{other}', not by '{name}': load it with metarl.load"):
            EVERY[name].load(path)


def test_a_class_of_ones_own_loads_as_itself(saved: dict[str, Path]) -> None:
    class Mine(FOMAML):
        """The same algorithm, with something added."""

    assert type(Mine.load(saved["fomaml"])) is Mine
    assert type(load(saved["fomaml"])) is FOMAML
    assert ALGORITHMS["fomaml"] is FOMAML
    with pytest.raises(CheckpointError, match="saved by 'maml'"):
        Mine.load(saved["maml"])


# ----------------------------------------------------------------------------------------------------------- overrides
def test_another_learner_leaves_the_old_ones_arguments_behind(tmp_path: Path) -> None:
    model = small(inner_lr=0.3, gae_lambda=0.5, gamma=0.9, outer_kwargs={"max_kl": 0.5})
    ppo: Any = (
        load(model.save(tmp_path / "m"), learner="sb3_ppo", policy_kwargs={"net_arch": {"pi": [16], "vf": [16]}})
        if False
        else None
    )
    assert ppo is None
    tensors = {"pi": [16], "vf": [16]}
    a2c = small(learner="a2c", gamma=0.9, inner_lr=0.3, policy_kwargs={"net_arch": tensors})
    other: Any = load(a2c.save(tmp_path / "a"), learner="ppo")
    assert (other.learner, other.inner_lr, other.gamma) == ("ppo", 3e-4, 0.9)
    assert other.gae_lambda == 0.95
    assert equal(other.params, a2c.params)
    kept: Any = load(a2c.save(tmp_path / "a"), learner="ppo", inner_lr=0.01)
    assert kept.inner_lr == 0.01
    sgd: Any = load(model.save(tmp_path / "m"), outer="sgd")
    assert sgd.outer_kwargs == {}
    dotted: Any = load(model.save(tmp_path / "m"), **{"outer_kwargs.cg_steps": np.int64(3)})
    assert dotted.outer_kwargs == {"max_kl": 0.5, "cg_steps": 3}
    assert dotted.outer_optimizer.cg_steps == 3
    horizon: Any = load(model.save(tmp_path / "m"), **{"env_kwargs.horizon": 9})
    assert horizon.family.horizon == 9


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"iner_lr": 0.1}, UnknownNameError, "did you mean 'inner_lr'"),
        ({"outer_kwarg.max_kl": 0.1}, UnknownNameError, "did you mean 'outer_kwargs'"),
        ({"outer_kwargs.max_k": 0.1}, UnknownNameError, "did you mean 'max_kl'"),
        ({"env_kwargs.horizn": 3}, UnknownNameError, "did you mean 'horizon'"),
        ({"inner_lr": "fast"}, ConfigError, "inner_lr='fast' is of the wrong type"),
        ({"n_inner_steps": 1.5}, ConfigError, "n_inner_steps=1.5 is of the wrong type"),
        ({"inner_lr": -1}, ConfigError, "inner_lr=-1.0 is not a number in"),
        ({"outer_kwargs": 3}, ConfigError, "outer_kwargs=3 is of the wrong type"),
        ({"custom_objects": {"a": 1}}, ConfigError, "nothing is pickled"),
        ({"print_system_info": 3}, ConfigError, "print_system_info=3 is not true or false"),
    ],
)
def test_overrides_that_do_not_fit_are_refused_in_one_line(
    saved: dict[str, Path], overrides: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(saved["fomaml"], **overrides)
    assert "\n" not in str(caught.value)


def test_sb3s_own_arguments_of_load(saved: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = load(saved["fomaml"], device="cpu", print_system_info=True, force_reset=True, custom_objects=None)
    assert "Stable-Baselines3" in capsys.readouterr().out
    assert type(model) is FOMAML


def test_an_environment_may_stand_for_the_family_at_load(saved: dict[str, Path]) -> None:
    env = gym.make("PointMass-v0", horizon=30)
    model = load(saved["fomaml"], env=env)  # type: ignore[arg-type]
    assert model.family is env.unwrapped.family  # type: ignore[attr-defined]
    assert load(saved["fomaml"], env="PointMass-v0").family.horizon == SIZES["env_kwargs"]["horizon"]  # type: ignore[arg-type]
    with pytest.raises(MetaRLError, match="does not fit"):
        metarl.load(saved["fomaml"], env="AntVel-v0")


def test_an_argument_that_a_subclass_hands_on_to_nobody_is_said_to_be() -> None:
    class Handing(MAML):
        name = ""

        def __init__(self, *args: Any, inner_modules: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, inner_modules=inner_modules, **kwargs)

    message = "Handing hands inner_modules on to the classes that it inherits from, and none of them takes it"
    with pytest.raises(ConfigError, match=message):
        small(Handing)
