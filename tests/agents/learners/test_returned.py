"""What a learner of somebody's own returns: taken, or refused in one line where it would be learnt from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from metarl import ALGORITHMS, FOMAML
from metarl.agents import LEARNERS, VPG, register_learner
from metarl.agents.derivatives.autograd import AutogradDerivatives
from metarl.agents.learners.watching import LearnerState
from metarl.agents.sampling.samples import pack
from metarl.errors import ConfigError
from metarl.params import Params
from tests.meta.small import run_iterations, small

WRONG: dict[str, tuple[str, Any, str]] = {
    "a loss for all tasks": (
        "head_loss",
        lambda loss: loss.mean(),
        "a learner's loss is one number for each task, a tensor of shape [4], not a tensor of shape []",
    ),
    "a loss for each sample": ("head_loss", lambda loss: loss[:, None].expand(-1, 2), "not a tensor of shape [4, 2]"),
    "a number": ("head_loss", lambda loss: float(loss.sum()), "a tensor of shape [4], not 0.0"),
    "a query loss for all tasks": ("query_loss", lambda loss: loss.mean(), "not a tensor of shape []"),
    "no samples": (
        "process",
        lambda samples: None,
        "process of the learner 'mine' returned nothing, not Samples: what metarl.agents.sampling.samples.pack makes "
        "of episodes",
    ),
    "an array": ("process", lambda samples: samples.weights.numpy(), "returned a ndarray, not Samples"),
    "advantages of tasks": (
        "process",
        lambda samples: replace(samples, advantages=samples.advantages.mean(1)),
        "process of the learner 'mine' returned 'advantages' of task, sample [4], not [4, 100]",
    ),
    "advantages that would broadcast": (
        "process",
        lambda samples: replace(samples, advantages=samples.advantages[:, :1]),
        "'advantages' of task, sample [4, 1], not [4, 100]",
    ),
    "samples of one task": ("process", lambda samples: samples.tasks(slice(0, 1)), "'counts' of task [1], not [4]"),
    "nothing learnt": ("update", lambda state: None, "update of the learner 'mine' returned nothing, not a Learner"),
    "parameters": ("update", lambda state: dict(state.params), "returned a dict, not a LearnerState"),
    "parameters of one task": (
        "update",
        lambda state: LearnerState({**state.params, "log_std": state.params["log_std"][0]}, {}),
        "update of the learner 'mine' returned 'log_std' of shape [2], where [4, 2] was given",
    ),
    "parameters less": (
        "update",
        lambda state: LearnerState({n: t for n, t in state.params.items() if n != "log_std"}, {}),
        "'log_std' of shape None, where [4, 2] was given",
    ),
}


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a learner that changes what one of VPG's methods returns."""
    monkeypatch.setattr(LEARNERS, "_items", dict(LEARNERS))

    def register(method: str, change: Any) -> None:
        class Mine(VPG):
            pass

        own = getattr(VPG, method)
        setattr(Mine, method, lambda self, *args, **kwargs: change(own(self, *args, **kwargs)))
        register_learner("mine")(Mine)

    return register


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_what_is_of_another_shape_is_refused_in_one_line(case: str, mine: Any) -> None:
    method, change, said = WRONG[case]
    mine(method, change)
    model = small(FOMAML, learner="mine", **({} if method == "query_loss" else {"outer": "adam"}))
    with pytest.raises(ConfigError) as error:
        run_iterations(model, 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algo", ["maml", "reptile", "leap", "pretrain"])
def test_whichever_wrapper_is_around_it(algo: str, mine: Any) -> None:
    mine("head_loss", lambda loss: loss.mean())
    if algo == "pretrain":
        mine("query_loss", lambda loss: loss.mean())
    with pytest.raises(ConfigError, match="one number for each task"):
        run_iterations(small(ALGORITHMS[algo], learner="mine"), 1)


def test_a_loss_that_autograd_differentiates_is_looked_at_too() -> None:
    def outputs(params: Params) -> Any:
        return (params["w"][:, None, None].expand(-1, 5, 2),), ()

    def loss(shape: tuple[int, ...]) -> Any:
        return lambda distribution, values: distribution.entropy().sum(1).reshape(shape)

    weights = {"w": torch.zeros(3)}
    assert AutogradDerivatives(outputs, weights, loss((3,))).losses.shape == (3,)
    with pytest.raises(ConfigError, match=r"shape \[3\], not a tensor of shape \[3, 1\]"):
        AutogradDerivatives(outputs, weights, loss((3, 1)))


def test_advantages_are_of_the_episodes_that_are_packed(mine: Any) -> None:
    class OfTasks(VPG):
        def process(self, episodes: Any, params: Any) -> Any:
            return pack(episodes, np.asarray(episodes.rewards).mean(-1))

    register_learner("mine")(OfTasks)
    with pytest.raises(ConfigError, match=r"^advantages of shape \[4, 5\]: one for each task, env and time, \[4, 5, 2"):
        run_iterations(small(FOMAML, learner="mine"), 1)


def test_a_public_attribute_is_refused_where_it_is_first_set(mine: Any) -> None:
    class Remembers(VPG):
        def process(self, episodes: Any, params: Any) -> Any:
            self.last = episodes
            return super().process(episodes, params)

    register_learner("mine")(Remembers)
    said = r"^last of a Remembers was not set when it was built: what changes while it is used has a private name, "
    with pytest.raises(ConfigError, match=said + "such as _last$"):
        run_iterations(small(FOMAML, learner="mine"), 1)
