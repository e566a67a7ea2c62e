"""Fine-tuning of stock models: Stable-Baselines3 steps, and layers go by rates of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metarl import Pretrain
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.export.finetune import finetune
from metarl.meta.export.sb3 import export_sb3
from metarl.meta.export.tuned import tuned
from metarl.params import Params
from tests.meta.walk import Walk

LOWER, UPPER = "mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.2.weight"


@pytest.fixture(scope="module")
def model() -> Pretrain:
    return Pretrain("MlpPolicy", Walk(), policy_kwargs={"net_arch": [4, 4]}, n_threads=1)


def steps(model: Pretrain, n_rollouts: int, tuning: dict[str, Any], kind: str, **kwargs: Any) -> Params:
    """Return how far the tensors of a stock model are from the export after some rollouts."""
    exported = export_sb3(model, kind, n_envs=2, value_tasks=0, n_steps=8, **kwargs)
    family = model.family
    env = FamilyVecEnv(family, family.tasks("test", 1), n_envs=2, seed=0)
    stock = tuned(exported, Tuning.of(tuning))(env, 0)
    stock.learn(16 * n_rollouts)
    return {name: t.detach() - exported.tensors[name] for name, t in stock.policy.named_parameters()}


@pytest.mark.parametrize(("kind", "optimizer"), [("ppo", "adam"), ("a2c", "adam"), ("ppo", "sgd")])
def test_frozen_layers_stay_as_they_are(kind: str, optimizer: str, model: Pretrain) -> None:
    sizes = {"batch_size": 8} if kind == "ppo" and optimizer == "adam" else {}
    away = steps(model, 2, {"freeze": ["body"]}, kind, optimizer=optimizer, **sizes)
    still = {name for name, step in away.items() if not step.any()}
    own = {name for name in away if name.startswith("value_net")} if optimizer == "sgd" else set()  # it fits no values
    assert still == {name for name in away if name.startswith("mlp_extractor")} | own


def test_earlier_layers_take_smaller_steps(model: Pretrain) -> None:
    whole, slower = (steps(model, 1, tuning, "ppo", optimizer="sgd") for tuning in ({}, {"layer_decay": 0.5}))
    for name, factor in (("action_net.weight", 1.0), (UPPER, 0.5), (LOWER, 0.25)):
        torch.testing.assert_close(slower[name], factor * whole[name], rtol=1e-3, atol=1e-7)


def test_layers_come_in_rollout_by_rollout(model: Pretrain) -> None:
    for n_rollouts, lower in ((2, False), (3, True)):
        away = steps(model, n_rollouts, {"unfreeze_every": 1}, "a2c", optimizer="adam")
        assert bool(away[UPPER].any())
        assert bool(away[LOWER].any()) is lower


def test_curves_from_the_export_are_also_learnt_so(model: Pretrain) -> None:
    found = finetune(model, 320, n_tasks=2, optimizers=["adam"], tunings=[{"freeze": "body"}, {"new_head": True}])
    assert [curves.label for curves in found.curves] == [
        "PPO from pretrain, adam",
        "PPO from pretrain, adam, body frozen",
        "PPO from pretrain, adam, new head",
        "PPO from scratch, adam",
    ]
    plain, frozen, new, _ = (curves.returns for curves in found.curves)
    assert (plain[:, 0] == frozen[:, 0]).all()  # the policy before any update
    assert (plain[:, 0] != new[:, 0]).all()
    assert (plain[:, 1] != frozen[:, 1]).any()


def test_what_takes_no_steps_says_so(model: Pretrain) -> None:
    with pytest.raises(ConfigError, match="trpo, whose actor takes no steps of an optimiser: ppo, a2c have rates"):
        tuned(export_sb3(model, "trpo", value_tasks=0), Tuning(freeze=["body"]))
