"""Meta-iterations that are stopped inside: by a callback, into a file, and on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import CallbackList

import metarl
from metarl.envs.registry import make_family
from metarl.errors import CheckpointError
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.progress import UnitCallback, Work
from tests.envs.families import Doors
from tests.meta.small import equal

CONTINUING: dict[str, Any] = {"learner": "a2c", "learner_kwargs": {"n_steps": 5, "n_envs": 2}, "n_transitions": 20}
STOCK: dict[str, Any] = {"learner": "sb3_a2c", "n_transitions": 20}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "fomaml": (FOMAML, CONTINUING),
    "reptile": (Reptile, CONTINUING),
    "leap": (Leap, CONTINUING),
    "serial": (Reptile, {**CONTINUING, "serial": True}),
    "maml on whole episodes": (MAML, {}),
    "unequal spaces": (Leap, {"env": Doors(), "learner": "ppo", "metric": "energy"}),
    "stock fomaml": (FOMAML, STOCK),
    "stock leap": (Leap, STOCK),
    "stock segments": (FOMAML, {**STOCK, "learner_kwargs": {"segments": True}}),
}


def make(case: str) -> Any:
    cls, options = CASES[case]
    sizes = {"n_inner_steps": 2, "n_episodes": 2, "meta_batch_size": 3, "policy_kwargs": {"net_arch": [12]}}
    env = make_family("PointMass-v0", horizon=8)
    return cls(**{"env": env, "n_threads": 1, "seed": 3, **sizes, **options})


class Stop(UnitCallback):
    """Stops after some units, and after some meta-iterations, and writes down what it hears."""

    def __init__(self, units: int, iterations: int = 10**6) -> None:
        super().__init__()
        self.units, self.iterations = units, iterations
        self.heard: list[Work] = []

    def on_unit(self, work: Work) -> bool:
        self.heard.append(work)
        return len(self.heard) != self.units

    def _on_step(self) -> bool:
        return self.model.n_iterations < self.iterations  # type: ignore[attr-defined]


def learn(model: Any, stop: Stop) -> Stop:
    model.learn(10**6 - model.num_timesteps, CallbackList([stop]), reset_num_timesteps=False)
    return stop


@pytest.mark.parametrize("case", CASES)
def test_wherever_it_is_stopped_it_goes_on_to_the_same_bits(case: str, tmp_path: Path) -> None:
    whole = make(case)
    heard = learn(whole, Stop(0, 2)).heard
    n_units = len(heard) // 2
    assert heard[n_units - 1].env_steps == whole.num_timesteps // 2 or case != "reptile"
    assert all(each.env_steps > 0 for each in heard)
    for stop in sorted({1, n_units - 1}):
        model = make(case)
        learn(model, Stop(n_units + stop))
        assert model.n_iterations == 1
        again = metarl.load(model.save(tmp_path / "halfway"), env=model.family)
        for each in (again, model):  # in another process, and in this one
            later = learn(each, Stop(0, 2)).heard
            assert len(later) == n_units - stop
            assert equal(each.state()[0], whole.state()[0])
            assert each.num_timesteps == whole.num_timesteps


def test_a_file_that_is_written_inside_holds_the_model_before_and_what_was_learnt(tmp_path: Path) -> None:
    model = make("reptile")
    before = model.state()[0]
    learn(model, Stop(1))
    tensors = load_checkpoint(model.save(tmp_path / "halfway"))[0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    assert int(tensors["unfinished/0/n_done"]) == 1
    assert tensors["unfinished/0/params/log_std"].shape == (3, 2)


def test_what_is_learnt_otherwise_begins_anew(tmp_path: Path) -> None:
    model = make("reptile")
    learn(model, Stop(1))
    path = model.save(tmp_path / "halfway")
    for change in ({"inner_lr": 0.1}, {"meta_batch_size": 2}):
        assert len(learn(metarl.load(path, env=model.family, **change), Stop(0, 1)).heard) == 2
    assert len(learn(metarl.load(path, env=model.family, n_threads=2), Stop(0, 1)).heard) == 1
    other = metarl.load(path, env=model.family)
    other.set_random_seed(4)
    assert len(learn(other, Stop(0, 1)).heard) == 2
    other = metarl.load(path, env=model.family)
    other.params = {name: 2.0 * tensor for name, tensor in other.params.items()}
    assert len(learn(other, Stop(0, 1)).heard) == 2


@pytest.mark.parametrize("case", ["reptile", "stock leap"])
@pytest.mark.parametrize("damage", ["n_done", "missing", "shape", "walk", "nan"])
def test_a_file_that_was_tampered_with_is_refused_in_one_line(case: str, damage: str, tmp_path: Path) -> None:
    model = make(case)
    learn(model, Stop(1))
    tensors, document = model.state()
    prefix = "unfinished/0/params/" if case == "reptile" else "unfinished/0/reached/0/"
    if damage == "n_done":
        tensors["unfinished/0/n_done"] = torch.tensor(99)
    elif damage == "missing":
        del tensors[f"{prefix}log_std"]
    elif damage == "shape":
        tensors[f"{prefix}log_std"] = torch.zeros(7)
    elif damage == "nan":
        tensors[f"{prefix}log_std"].fill_(torch.nan)
    else:
        tensors = {name.replace("unfinished/0/", "unfinished/1/"): tensor for name, tensor in tensors.items()}
    save_checkpoint(tmp_path / "damaged.safetensors", tensors, document)
    with pytest.raises(CheckpointError, match="walk") as error:
        learn(metarl.load(tmp_path / "damaged", env=model.family), Stop(0, 1))
    assert "\n" not in str(error.value)
