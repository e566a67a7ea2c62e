"""Meta-finetuning: an initialisation moves to a family of tasks, by few tasks of it (Devos and Dandi, 2020).

With L tasks of a family j, an inner step on each, and a step on their queries together (eq. 1 and 2),

    θ'_i = θ − α ∇L_i(θ),        θ_j = θ − β ∇_θ Σ_i L_i(θ'_i),

a sum and no mean. ``"exact"`` differentiates through the inner steps. Two ways do not: ``"first_order"`` takes the
gradient at θ'_i as it is, θ_j = θ − β Σ_i ∇L_i(θ'_i), as FOMAML does, and ``"difference"`` moves towards what was
reached, θ_j = θ + β Σ_i (θ'_i − θ), as Reptile does: with β = 1 / L to the mean of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from metarl.agents.derivatives.base import LossFunction
from metarl.agents.derivatives.levels import gathered, spread, summed
from metarl.agents.derivatives.unrolled import UnrolledPath, UnrolledRate
from metarl.agents.learners.base import Learner
from metarl.agents.networks.distributions import Distribution
from metarl.agents.sampling.samples import Samples
from metarl.checks import COUNT, NOT_NEGATIVE, choice
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Outcome
from metarl.params import STATISTICS, Params, Rate, each

UPDATES = ("exact", "first_order", "difference")
"""How the initialisation moves to a family."""
UPDATE = choice(*UPDATES)


@dataclass(frozen=True)
class MetaFinetuning:
    """How an initialisation is meta-finetuned to families of tasks.

    :param learner: whose loss tasks have; it takes plain gradient steps where the update is ``"exact"``.
    :param rates: of the inner steps of a task.
    :param moves: names of the tensors that move; the others stay as they are in the initialisation.
    :param n_tasks: L, tasks of each family.
    :param n_steps: m, steps on the same tasks.
    :param rate: β.
    :param update: one of :data:`UPDATES`.
    """

    learner: Learner
    rates: Sequence[Rate]
    moves: Sequence[str]
    n_tasks: int = 5
    n_steps: int = 1
    rate: float = 0.01
    update: str = "exact"

    def __post_init__(self) -> None:
        """Check the values.

        :raises ConfigError: one is not allowed.
        """
        UPDATE("update", self.update)
        COUNT("n_tasks", self.n_tasks)
        COUNT("n_steps", self.n_steps)
        NOT_NEGATIVE("rate", self.rate)
        if self.update == "exact" and not self.learner.plain_steps:
            raise ConfigError(
                f"update='exact' around {self.learner.name!r}, which takes other steps than plain gradient steps here: "
                "use 'first_order' or 'difference'"
            )

    def step(self, stack: Params, outcome: Outcome) -> Params:
        """Return where one step leads from parameters ``[family, …]``.

        Where these require gradients, and the update is exact, the result is a function of them that can be
        differentiated any number of times.

        :param outcome: what came of learning the tasks from there: the support of each inner step, and a query.
        """
        if self.update == "exact":
            losses = task_losses(self.learner, outcome, self.rates)
            rates = dict.fromkeys(self.moves, self.rate)
            return UnrolledPath([summed(losses, self.n_tasks)], [rates]).end(stack)
        if self.update == "first_order":
            assert outcome.query is not None
            query = outcome.query
            loss = partial(loss_on, self.learner.query_loss, query)
            at_end = self.learner.policy.differentiate(outcome.params, query.obs, loss)
            away = gathered(at_end.gradient, self.n_tasks)
        else:
            start = spread(stack, self.n_tasks)
            away = gathered(each(torch.sub, start, outcome.params), self.n_tasks)
        return {**stack, **{name: stack[name].detach() - self.rate * away[name] for name in self.moves}}


def task_losses(learner: Learner, outcome: Outcome, rates: Sequence[Rate]) -> LossFunction:
    """Return the losses of tasks on their queries, ``[task]``, as a function of where their inner steps start.

    :param outcome: has the support of each inner step, and the query.
    :param rates: of the inner steps.
    """
    assert outcome.query is not None
    query = learner.policy.loss_function(outcome.query.obs, partial(loss_on, learner.query_loss, outcome.query))

    def losses(params: Params) -> torch.Tensor:
        for batch, rate in zip(outcome.support, rates, strict=True):
            params = stepped(learner, batch, rate, params)
        return query(params)

    return losses


def stepped(learner: Learner, batch: Samples, rate: UnrolledRate, params: Params) -> Params:
    """Return where an inner step on a batch leads, a function of ``params`` that can be differentiated any number of
    times; running statistics move as they do in adaptation, and no gradient goes through them.

    :param params: ``[task, …]``.
    """
    loss = learner.policy.loss_function(batch.obs, partial(loss_on, learner.head_loss, batch))
    start = {name: tensor.detach() for name, tensor in params.items()}
    moved = learner.policy.moved_statistics(start, batch.obs, batch.counts)
    statistics = {name: tensor for name, tensor in moved.items() if name.startswith(STATISTICS)}
    return {**UnrolledPath([loss], [rate]).end(params), **statistics}


def contiguous(params: Params) -> Params:
    """Return parameters that can be stepped in place, without what leads to them."""
    return {name: tensor.detach().contiguous() for name, tensor in params.items()}


def loss_on(
    loss: Callable[[Distribution, Samples, torch.Tensor | None], torch.Tensor],
    samples: Samples,
    distribution: Distribution,
    values: torch.Tensor | None,
) -> torch.Tensor:
    """Return the losses on samples, ``[task]``; with the first two arguments given, a loss of heads."""
    return loss(distribution, samples, values)
