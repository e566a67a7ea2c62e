"""MAML++: a loss at every inner step, a rate for each tensor and step, second order later (Antoniou et al., 2019)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.networks.distributions import Distribution
from metarl.agents.sampling.samples import Samples
from metarl.checks import COUNT_OR_ZERO, SWITCH
from metarl.envs.family import Family
from metarl.meta.adaptation.gradient import GradientPath, InnerRule
from metarl.meta.algorithms.maml import MAML
from metarl.meta.blocks.derivatives import BlockDerivatives, sum_tasks
from metarl.meta.environments import AnyEnv
from metarl.params import RATES, STATISTICS, Params, add, group, grouped

SMALLEST_SHARE = 0.03
"""What the loss of a step before the last keeps of its first weight, 1/N, in the reference's code."""


def loss_weights(n_steps: int, share: float) -> list[float]:
    """Return the weights v_1 … v_N of the query losses after each inner step; they sum to one.

    With e the share of the annealing that is over, v_j = max((1 − e)/N, 0.03/N) for j < N, and the last step has the
    rest; from e = 1 on it has all.

    :param share: e.
    """
    early = max(1.0 - share, SMALLEST_SHARE) / n_steps if share < 1.0 else 0.0
    return [early] * (n_steps - 1) + [1.0 - (n_steps - 1) * early]


class MAMLPlusPlus(MAML):
    """MAML with the changes of "How to train your MAML", each of which can be left out.

    **Multi-step loss.** The meta-objective is Σ_j v_j L'(θ_j), of the query loss after each of the N inner steps. The
    weights are equal at first and go over to the last step (:func:`loss_weights`). Learners of one support batch are
    asked the same query batch after every step. Others collect at each θ_j what the next step learns from, and that
    batch is the query of θ_j too: no further env steps are needed.

    **Rates.** Inner step j of tensor i has a meta-learnt rate α_ij, from ``inner_lr`` on: θ_{j+1} = θ_j − α_ij g_j.
    With c_{j+1} the gradient at θ_{j+1}, that of α_ij is −⟨g_j, c_{j+1}⟩ over the tensor. There are N + 1 rates, so
    that one step more may be taken; those after it have the last rate.

    **Order.** The first meta-iterations may take the derivative of adaptation to be the identity.

    **Outer rate.** It falls along a cosine, which is the ``schedule`` of Adam and SGD::

        model = MAMLPlusPlus("MlpPolicy", "Sinusoid-v0", learner="supervised", n_inner_steps=5, meta_batch_size=4)
        model.learn(total_timesteps=1)
        model.params["rates/action_net.bias"]  # six numbers

    Batch norm (``FewShotCnnPolicy``) has one weight and bias for all steps. The paper's statistics of each step change
    nothing in its code, which normalises by the batch always, as ``batch_statistics="batch"`` does here.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param learn_rates: whether rates are meta-learnt.
    :param n_multi_step_iterations: meta-iterations until the last step's loss is all; 0: from the beginning.
    :param n_first_order_iterations: meta-iterations of first order, before those of second.

    The other parameters are those of :class:`~metarl.meta.algorithms.maml.MAML`; ``outer`` is Adam from 1e-3 to 1e-5
    where it is not given.
    """

    name: ClassVar[str] = "maml_plus_plus"
    no_trust_region: ClassVar[str] = "a trust region bounds the policy at the end of a path, and there is a loss before"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        learn_rates: bool = True,
        n_multi_step_iterations: int = 1_000,
        n_first_order_iterations: int = 0,
        **kwargs: Any,
    ) -> None:
        self.learn_rates = SWITCH("learn_rates", learn_rates)
        self.n_multi_step_iterations = COUNT_OR_ZERO("n_multi_step_iterations", n_multi_step_iterations)
        self.n_first_order_iterations = COUNT_OR_ZERO("n_first_order_iterations", n_first_order_iterations)
        super().__init__(policy, env, **kwargs)

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return "adam", {"learning_rate": 1e-3, "final_learning_rate": 1e-5, "schedule": "cosine"}

    def _further_params(self, theta: Params) -> Params:
        if not self.learn_rates:
            return {}
        rates = torch.tensor([*self.rates, self.rates[-1]])
        return grouped({name: rates.clone() for name in theta if not name.startswith(STATISTICS)}, RATES)

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        rule = super()._rule(rates)
        return StepRates(rule.rates, rule.stays, rule.base, rule.local, bases=self.rates) if self.learn_rates else rule

    @property
    def plain_rate(self) -> float:
        """The mean of the first step's rates: an export has one for all."""
        first = [float(rates[0]) for rates in group(self.params, RATES).values()]
        return max(sum(first) / len(first), 0.0) if first else super().plain_rate

    @property
    def loss_weights(self) -> list[float]:
        """The weights of this meta-iteration's query losses, one after each inner step."""
        n, over = self.n_multi_step_iterations, self.n_iterations
        return loss_weights(max(1, self.n_inner_steps), over / n if n else 1.0)

    @property
    def _is_first_order(self) -> bool:
        return self.n_iterations < self.n_first_order_iterations

    @property
    def _keeps_support(self) -> bool:
        return True

    def _derivatives_type(self) -> Callable[..., BlockDerivatives]:
        return functools.partial(MultiStepDerivatives, weights=self.loss_weights)

    def train(self) -> dict[str, float]:
        """Do one meta-iteration; the first step's mean rate and the last step's weight are logged."""
        last = self.loss_weights[-1]
        return {**super().train(), "meta/inner_lr": self.plain_rate, "meta/last_loss_weight": last}


@dataclass(frozen=True)
class StepRates(InnerRule):
    """Rates that each tensor has for each step: the meta-parameters ``rates/…`` are lists, of which the last goes on.

    :param bases: the learning rates that they began with.
    """

    bases: Sequence[float] = (1.0,)

    def tangents(self, vector: Params) -> list[Params]:
        learnt = group(vector, RATES)
        return [
            {name: rates[min(k, len(rates) - 1)] * self._share(k) for name, rates in learnt.items()}
            for k in range(len(self.rates))
        ]

    def of_rates(self, learnt: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        columns = learnt.new_zeros((len(parts[0]), len(learnt)))
        for k, part in enumerate(parts):
            columns[:, min(k, len(learnt) - 1)] += part.flatten(1).sum(1) * self._share(k)
        return columns

    def _share(self, k: int) -> float:
        """Return how far a step goes in proportion to training's."""
        return self.rates[k] / self.bases[min(k, len(self.bases) - 1)]


class MultiStepDerivatives(BlockDerivatives):
    """The derivatives of Σ_j v_j L'(θ_j), the query losses after every inner step of a block's tasks.

    Backwards along the path, what arrives at θ_j from the steps after it and v_j ∇L'(θ_j) are added up before step j's
    derivative is applied.

    :param weights: v_1 … v_N.

    The other parameters are those of :class:`~metarl.meta.blocks.derivatives.BlockDerivatives`.
    """

    def __init__(self, *args: Any, weights: Sequence[float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weights = weights

    def _chunk_gradient(self, index: int, first: Params, whole: Params | None) -> float:
        path, self._walked = self._walked, None
        if path is None:
            path = self._path(self._params, index, self._second_order)
        points = [step.end for step in path.steps] or [path.end]
        found = [self._weighted(*each) for each in zip(self._weights, points, self._asked(index), strict=True)]
        slopes = [slope for _, slope in found]
        sum_tasks(self._pulled(*self._back(path, slopes, first_order=True)), first, index)
        if whole is not None:
            sum_tasks(self._pulled(*self._back(path, slopes)), whole, index)
        return sum(loss for loss, _ in found)

    def _asked(self, index: int) -> list[Samples]:
        """Return the query batch of a chunk's tasks after each inner step."""
        chunk = self._chunks[index]
        last = self._query.tasks(chunk)
        n_before = max(0, len(self._support) - 1)
        if self._learner.reuses_support:
            return [last] * (n_before + 1)
        return [*(batch.tasks(chunk) for batch in self._support[1:]), last]

    def _weighted(self, weight: float, point: Params, query: Samples) -> tuple[float, Params | None]:
        """Return v L', summed over tasks, and its gradient at a point of the path; None where v is 0."""
        if not weight:
            return 0.0, None

        def loss(distribution: Distribution, values: torch.Tensor | None) -> torch.Tensor:
            return self._learner.query_loss(distribution, query, values)

        found = self._learner.policy.differentiate(point, query.obs, loss)
        slope = {name: weight * tensor for name, tensor in found.gradient.items()}
        return weight * float(found.losses.sum()), slope

    def _back(
        self, path: GradientPath, slopes: Sequence[Params | None], first_order: bool = False
    ) -> tuple[Params, list[Params]]:
        """Return the gradients at the start and of the rates of each step, given those at the ends of all steps."""
        of_rates: list[Params] = []
        cotangent = slopes[-1]
        assert cotangent is not None
        for k in reversed(range(len(path.steps))):
            if self._has_rates:
                of_rates.insert(0, path.steps[k].rate_gradient(cotangent))
            if not first_order:
                cotangent = path.steps[k].backward(cotangent)
            before = slopes[k - 1] if k else None
            if before is not None:
                cotangent = add(cotangent, before)
        return cotangent, of_rates
