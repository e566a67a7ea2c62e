"""The constructors' defaults: what the YAML says of steps, and none that explode; training that does is stopped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metarl.agents.learners.registry import LEARNERS
from metarl.errors import ConfigError, DivergedError
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.iterating import require_sound
from metarl.meta.saving import ALGORITHMS
from metarl.params import norm
from metarl.zoo.config import load_hyperparameters, merge
from tests.meta.small import copy, equal, run_iterations, small

WRAPPERS = {name: cls for name, cls in ALGORITHMS.items() if issubclass(cls, AdaptiveAlgorithm) and name != "random"}
BATCHED = [name for name, cls in LEARNERS.items() if cls.differentiable]
OF_STEPS = ("inner_lr", "outer", "outer_kwargs", "n_inner_steps")
OF_BATCHES = ("meta_batch_size", "n_episodes", "fisher_fraction")


def build(name: str, learner: str, **kwargs: Any) -> Any:
    """Return a wrapper with the steps that its constructor takes by itself; None where the two do not go together."""
    try:
        return small(WRAPPERS[name], learner=learner, **kwargs)
    except ConfigError:
        return None


@pytest.mark.parametrize("name", WRAPPERS)
def test_steps_are_by_default_those_of_the_yaml(name: str) -> None:
    n_checked = 0
    for learner in LEARNERS:
        model = build(name, learner)
        if model is None:
            continue
        config = merge(load_hyperparameters(name, "default"), {"learner": learner})
        given = {key: config[key] for key in OF_STEPS if key in config}
        by_yaml = build(name, learner, **given)
        for key in OF_STEPS:
            assert getattr(model, key) == getattr(by_yaml, key), (learner, key)
        n_checked += 1
    assert n_checked >= 2
    model = WRAPPERS[name]()
    config = load_hyperparameters(name, "default")
    by_yaml = {key: config[key] for key in OF_BATCHES if key in config}
    assert {key: getattr(model, key) for key in by_yaml} == by_yaml
    assert ("fisher_fraction" in by_yaml) == (config["outer"] == "trpo")


@pytest.mark.parametrize("learner", BATCHED)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_few_meta_iterations_with_the_defaults_do_not_explode(name: str, learner: str) -> None:
    model = build(name, learner)
    if WRAPPERS[name].refusal(LEARNERS[learner]) is not None:
        return
    assert model is not None
    start = norm(model.policy_params)
    run_iterations(model, 3)
    assert norm(model.policy_params) < 4.0 * start


@pytest.mark.parametrize(("name", "learner"), [("leap", "ppo"), ("leap", "a2c"), ("fomaml", "ppo")])
def test_training_that_explodes_is_stopped_in_one_sentence(name: str, learner: str) -> None:
    model = build(name, learner, outer="sgd", outer_kwargs={"learning_rate": 1000.0})
    before = [copy(model.params)]

    def remember(*_: Any) -> bool:
        before.append(copy(model.params))
        return True

    with pytest.raises(
        DivergedError, match=r"^meta-iteration \d+: the norm of the parameters went from \S+ to \S+:"
    ) as found:
        model.learn(10**9, callback=remember)
    assert equal(model.params, before[-1])
    assert len(before) == model.n_iterations + 1
    assert str(found.value).startswith(f"meta-iteration {len(before)}: ")


def test_the_outer_optimiser_is_as_before_a_meta_iteration_that_explodes() -> None:
    for name in ("fomaml", "reptile"):
        model = build(name, "vpg", outer="adam", outer_kwargs={"learning_rate": 0.01})
        run_iterations(model, 1)
        state = copy(model.outer_optimizer.state())
        vars(model.outer_optimizer)["learning_rate"] = 1e4
        with pytest.raises(DivergedError, match="meta-iteration 2:"):
            run_iterations(model, 1)
        assert equal(model.outer_optimizer.state(), state)


def test_what_counts_as_exploding() -> None:
    def params(value: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((4,), value)}

    require_sound(params(1.0), params(99.0))
    require_sound(params(0.0), params(49.0))
    require_sound(params(300.0), params(299.0))
    for old, new in ((1.0, 101.0), (0.0, 51.0), (99.0, 101.0), (300.0, 301.0), (1.0, math.nan)):
        with pytest.raises(DivergedError, match="smaller learning_rate"):
            require_sound(params(old), params(new))
