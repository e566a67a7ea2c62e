"""How far the Jacobian of learning is from the identity that first-order methods take it for (Leap, appendix B)."""

from __future__ import annotations

import numpy as np
import torch

from metarl.agents.learners.base import Learner
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.samples import Samples
from metarl.checks import COUNT
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Request, Streams
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.evaluating import Evaluates
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.params import Params, expand, take

TOGETHER = 32
"""Columns of the Jacobian that are followed side by side."""


@library_torch()
def identity_error(
    model: Evaluates, tensor: str, n_steps: int, *, every: int = 1, n_tasks: int = 5, rate: float, seed: int = 0
) -> np.ndarray:
    """Return ρ_i = ‖I − J_i‖ / ‖J_i‖ in the Schatten 1-norm, where J_i is ∂θ_i/∂θ_0 of one tensor.

    With plain gradient steps θ_{i+1} = θ_i − α ∇f_i(θ_i) on minibatches, a change t of θ_0 becomes
    t_{i+1} = t_i − α ∇²f_i(θ_i) t_i; the columns of J_i are those of changes of one entry each, exactly.

    :param model: gives the initialisation, the learner and the tasks, those of the test split.
    :param tensor: such as ``"features_extractor.cnn.0.weight"``.
    :param n_steps: gradient steps.
    :param every: after how many of them there is a number.
    :param n_tasks: tasks.
    :param rate: α.
    :param seed: of the streams.
    :return: ``[task, n_steps // every]``.
    :raises ConfigError: a learner that takes no gradient steps, or no such tensor.
    """
    n_steps, every = COUNT("n_steps", n_steps), COUNT("every", every)
    adaptation = model.adaptation
    if not isinstance(adaptation, BatchedAdaptation):
        raise ConfigError(f"what adapts {model.name} takes no gradient steps: there is no Jacobian")
    learner = adaptation.learner.gradient_steps()
    tasks, _, _ = evaluation_tasks(model.family, "test", n_tasks)
    streams, amount = Streams(seed, "jacobian"), {"n_episodes": model.n_episodes, "n_transitions": None}
    blocks = model.adaptations.cut(tasks, [rate] * n_steps, streams, amount, size=1)
    return np.stack([_of_task(learner, adaptation, model.theta, block.request, tensor, every) for block in blocks])


def _of_task(
    learner: Learner, adaptation: BatchedAdaptation, theta: Params, request: Request, tensor: str, every: int
) -> np.ndarray:
    params = {**theta, **take(request.local, 0)}
    if tensor not in params:
        raise ConfigError(f"{tensor!r} is no tensor of the policy: known: {', '.join(params)}")
    n = params[tensor].numel()
    columns = {
        name: torch.eye(n).reshape(n, *t.shape) if name == tensor else t.new_zeros(n, *t.shape)
        for name, t in params.items()
    }
    found = []
    for k, rate in enumerate(request.rates):
        assert isinstance(rate, float)
        stacked = expand(params, 1)
        samples = adaptation.process(adaptation.collect(stacked, request, k), stacked)
        slope, curves = _derivatives(learner, params, samples, columns)
        params = {name: t - rate * slope[name] for name, t in params.items()}
        columns = {name: t - rate * curves[name] for name, t in columns.items()}
        if (k + 1) % every == 0:
            jacobian = columns[tensor].reshape(n, n).double()
            away = torch.linalg.matrix_norm(torch.eye(n, dtype=torch.float64) - jacobian, "nuc")
            found.append(float(away / torch.linalg.matrix_norm(jacobian, "nuc")))
    return np.array(found)


def _derivatives(learner: Learner, params: Params, samples: Samples, columns: Params) -> tuple[Params, Params]:
    """Return the gradient at ``params``, and the Hessian times each of the ``columns``, ``[column, …]``."""

    def loss(own: Params) -> torch.Tensor:
        return learner.loss({name: t.unsqueeze(0) for name, t in own.items()}, samples).sum()

    # The Hessian is symmetric, so that what is pulled back through the gradient is its product.
    slope, pull_back, *_ = torch.func.vjp(torch.func.grad(loss), params)
    (curves,) = torch.func.vmap(pull_back, chunk_size=TOGETHER)(columns)
    return slope, curves
