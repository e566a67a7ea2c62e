"""Fine-tuning beside plain gradient steps: what moves in which step, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from metarl import ANIL, MAML, RL2, MetaSGD, Pretrain
from metarl.agents.networks.layers import head_of
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.adaptation.tuning import Tuning
from metarl.params import Params

HIDDEN = {0: "mlp_extractor.policy_net.0.weight", 2: "mlp_extractor.policy_net.2.weight"}
SMALL: dict[str, Any] = {
    "learner": "supervised",
    "n_episodes": 4,
    "n_threads": 1,
    "policy_kwargs": {"net_arch": [4, 4]},
}


@pytest.fixture(scope="module")
def model() -> Pretrain:
    return Pretrain("MlpPolicy", "Sinusoid-v0", **SMALL)


def adapted(model: MAML, n_steps: int, tuning: Mapping[str, Any] | None = None) -> Params:
    """Return how far each tensor is moved by inner steps."""
    policy = model.adapt("Sinusoid-v0", n_steps, inner_lr=0.1, tuning=tuning)
    return {name: tensor - model.policy_params[name] for name, tensor in policy.params.items()}


def moved(steps: Params) -> set[str]:
    return {name for name, step in steps.items() if step.abs().max() > 0.0}


def test_what_is_frozen_stays_and_the_rest_learns_as_with_anil(model: Pretrain) -> None:
    frozen = adapted(model, 3, {"freeze": "body"})
    assert moved(frozen) == {"action_net.weight", "action_net.bias"}
    anil = ANIL("MlpPolicy", "Sinusoid-v0", **SMALL)
    anil.params = model.params
    for name, step in adapted(anil, 3).items():
        torch.testing.assert_close(step, frozen[name], rtol=0.0, atol=0.0)
    assert moved(adapted(model, 1, {"freeze": ["mlp_extractor.policy_net.2", "action_net"]})) == {
        HIDDEN[0],
        "mlp_extractor.policy_net.0.bias",
    }


def test_layers_are_unfrozen_from_the_head_downwards(model: Pretrain) -> None:
    gradual = {"unfreeze_every": 2}
    for n_steps, hidden in ((2, []), (3, [2]), (4, [2]), (5, [2, 0])):
        assert {i for i in HIDDEN if HIDDEN[i] in moved(adapted(model, n_steps, gradual))} == set(hidden)


def test_earlier_layers_take_smaller_steps(model: Pretrain) -> None:
    whole, slower = adapted(model, 1), adapted(model, 1, {"layer_decay": 0.5})
    for name, factor in (("action_net.weight", 1.0), (HIDDEN[2], 0.5), (HIDDEN[0], 0.25)):
        torch.testing.assert_close(slower[name], factor * whole[name], rtol=1e-4, atol=1e-7)


def test_factors_go_with_rates_that_are_meta_learnt() -> None:
    model = MetaSGD("MlpPolicy", "Sinusoid-v0", inner_lr=0.1, **SMALL)
    whole, slower = adapted(model, 1), adapted(model, 1, {"layer_decay": 0.5})
    torch.testing.assert_close(slower[HIDDEN[0]], 0.25 * whole[HIDDEN[0]], rtol=1e-4, atol=1e-7)


def test_a_new_head_is_each_tasks_own(model: Pretrain) -> None:
    new = adapted(model, 0, {"new_head": True})
    assert moved(new) == {"action_net.weight"}  # biases begin at 0
    plain, tuned = (model.evaluate(n_tasks=3, n_inner_steps=0, tuning=tuning) for tuning in (None, {"new_head": True}))
    assert tuned.label == "pretrain, new head"
    assert tuned.meta["tuning"] == {"freeze": [], "unfreeze_every": None, "layer_decay": 1.0, "new_head": True}
    assert "tuning" not in plain.meta
    assert (plain.returns != tuned.returns).all()


def test_tuning_that_changes_nothing_scores_the_same(model: Pretrain) -> None:
    plain, same = (model.evaluate(n_tasks=3, n_inner_steps=2, tuning=tuning) for tuning in (None, Tuning()))
    assert same.label == "pretrain, all layers alike"
    assert plain.returns == pytest.approx(same.returns, rel=1e-5)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"freze": "body"}, "did you mean 'freeze'"),
        ({"freeze": "features_extractor"}, "unknown part of the policy 'features_extractor'.*known: .*body"),
        ({"freeze": "bodi"}, "unknown part of the policy 'bodi': did you mean 'body'"),
        ({"freeze": ["body", "action_net", "log_std"]}, "leaves nothing that learns"),
        ({"freeze": 3}, "freeze=3 is not a list of names"),
        ({"layer_decay": 2.0}, "layer_decay=2.0 is not"),
        ({"unfreeze_every": 0}, "unfreeze_every=0 is not"),
        ("body", "tuning='body' is not a mapping"),
    ],
)
def test_what_cannot_be_is_one_line(tuning: Any, message: str, model: Pretrain) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        model.evaluate(n_tasks=2, n_inner_steps=1, tuning=tuning)


def test_what_has_no_rates_says_so() -> None:
    small = {"n_threads": 1, "policy_kwargs": {"net_arch": [4]}}
    for model in (Pretrain("MlpPolicy", "PointMass-v0", learner="sb3_ppo", **small), RL2(env="PointMass-v0")):
        with pytest.raises(ConfigError, match="has no rate for each tensor"):
            model.evaluate(n_tasks=2, n_inner_steps=1, tuning={"freeze": "body"})


def test_the_head_is_what_sb3_calls_so(model: Pretrain) -> None:
    assert head_of(list(model.policy_params)) == ["log_std", "action_net.weight", "action_net.bias"]
