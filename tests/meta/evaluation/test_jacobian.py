"""The distance of learning's Jacobian from the identity, beside autograd through the whole path."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from metarl import Pretrain, Reptile
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Streams
from metarl.meta.evaluation.jacobian import identity_error
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.params import expand

TENSOR = "mlp_extractor.policy_net.0.weight"


def make(cls: Any = Reptile, **kwargs: Any) -> Any:
    options: dict[str, Any] = {"learner": "supervised", "learner_kwargs": {"reuses_support": False}, "n_episodes": 6}
    network = {"net_arch": [5], "activation_fn": "tanh"}
    return cls("MlpPolicy", "Sinusoid-v0", **{**options, **kwargs}, policy_kwargs=network, n_threads=1)


def test_it_is_that_of_autograd_through_the_path() -> None:
    model, rate = make(), 0.05
    found = identity_error(model, TENSOR, 3, n_tasks=2, rate=rate, seed=4)
    assert found.shape == (2, 3)
    tasks = evaluation_tasks(model.family, "test", 2).tasks
    amount = {"n_episodes": 6, "n_transitions": None}
    (block,) = model.adaptations.cut(tasks, [rate] * 3, Streams(4, "jacobian"), amount)
    theta = expand(model.theta, 2)
    batches = []
    for k in range(3):  # what is drawn does not depend on the parameters
        batches.append(model.adaptation.process(model.adaptation.collect(theta, block.request, k), theta))

    def end(weight: torch.Tensor, task: int, n: int) -> torch.Tensor:
        params = {**{name: t.clone().requires_grad_() for name, t in model.theta.items()}, TENSOR: weight}
        for k in range(n):
            own = {name: t.unsqueeze(0) for name, t in params.items()}
            loss = model.adaptation.learner.loss(own, batches[k].tasks(slice(task, task + 1))).sum()
            names = [name for name in params if name != "log_std"]
            slopes = torch.autograd.grad(loss, [params[name] for name in names], create_graph=True)
            params |= {name: params[name] - rate * slope for name, slope in zip(names, slopes, strict=True)}
        return params[TENSOR]

    start = model.theta[TENSOR]
    for task in range(2):
        for n in (1, 3):
            reached = functools.partial(end, task=task, n=n)
            jacobian = torch.autograd.functional.jacobian(reached, start).reshape(5, 5)
            away = torch.linalg.svdvals(torch.eye(5) - jacobian).sum() / torch.linalg.svdvals(jacobian).sum()
            assert found[task, n - 1] == pytest.approx(float(away), rel=1e-3)


def test_smaller_rates_are_nearer_to_the_identity() -> None:
    errors = [identity_error(make(), TENSOR, 4, every=2, n_tasks=1, rate=rate) for rate in (0.1, 0.01, 0.001)]
    assert all(error.shape == (1, 2) for error in errors)
    assert errors[0].mean() > 5.0 * errors[1].mean() > 25.0 * errors[2].mean()
    assert np.isfinite(errors).all()


def test_what_has_no_jacobian_is_one_line() -> None:
    with pytest.raises(ConfigError, match="'head' is no tensor of the policy: known: log_std, "):
        identity_error(make(), "head", 1, n_tasks=1, rate=0.1)
    stock = Pretrain("MlpPolicy", "PointMass-v0", learner="sb3_ppo", n_threads=1)
    with pytest.raises(ConfigError, match="takes no gradient steps"):
        identity_error(stock, TENSOR, 1, n_tasks=1, rate=0.1)
