"""Meta-SGD: the learning rates of the inner loop are meta-learnt too (Li, Zhou, Chen and Li, 2017)."""

from __future__ import annotations

from typing import ClassVar

import torch

from metarl.meta.algorithms.maml import MAML
from metarl.params import RATES, STATISTICS, Params, group, grouped


class MetaSGD(MAML):
    """MAML with a learning rate α for every number of the policy, of either sign, that is meta-learnt with it.

    An inner step is φ = θ − α ∘ ∇L(θ), and the meta-gradient has a second part: with c = ∇_φ L' it is −∇L(θ) ∘ c for α,
    beside (I − H diag(α)) c for θ. All inner steps share α, which begins at ``inner_lr``; where that is a list, a step
    goes in proportion to its rate in it. So do rates at test time::

        model = MetaSGD("MlpPolicy", "PointMass-v0", inner_lr=0.1)
        model.learn(100_000)
        model.params["rates/log_std"]

    So another ``inner_lr`` given to :func:`metarl.load` changes nothing that is learnt already; ``evaluate`` and
    ``adapt`` take one that lengthens or shortens steps. An export goes on with the mean of the rates, and with 0 where
    that is negative: name its ``learning_rate`` then.

    The arguments are those of :class:`~metarl.meta.algorithms.maml.MAML`.
    """

    name: ClassVar[str] = "meta_sgd"

    def _further_params(self, theta: Params) -> Params:
        learnt = {name: tensor for name, tensor in theta.items() if not name.startswith(STATISTICS)}
        return grouped({name: torch.full_like(tensor, self.rates[0]) for name, tensor in learnt.items()}, RATES)

    @property
    def plain_rate(self) -> float:
        """The mean of the rates: an export has one for all."""
        rates = group(self.params, RATES).values()
        return max(float(sum(rate.sum() for rate in rates)) / sum(rate.numel() for rate in rates), 0.0)

    def train(self) -> dict[str, float]:
        """Do one meta-iteration; the mean rate is logged."""
        return {**super().train(), "meta/inner_lr": self.plain_rate}
