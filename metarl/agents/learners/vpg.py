"""Vanilla policy gradient (REINFORCE) with the linear feature baseline: the learner of the MAML papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from metarl.agents.learners.base import LearnerState, Watcher
from metarl.agents.learners.baseline import (
    LinearFeatureBaseline,
    discounted_returns,
    generalized_advantages,
    standardize,
)
from metarl.agents.learners.descent import descend, task_blocks
from metarl.agents.learners.optimizers import SGD
from metarl.agents.learners.rounding import is_rounding, nothing_differs
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import Episodes
from metarl.agents.sampling.samples import Samples, pack
from metarl.checks import FRACTION, SWITCH, choice
from metarl.frozen import SetOnce
from metarl.params import Params, Rate

SURROGATES = ("log_likelihood", "likelihood_ratio")


class VPG(SetOnce):
    """REINFORCE with generalised advantages over a linear baseline, as pure functions.

    :param policy: the policy whose tensors are learnt.
    :param gamma: discount factor.
    :param gae_lambda: 1 takes the whole return, as the reference does.
    :param normalize_advantage: standardise the advantages of each task's batch; those that are rounding of the returns,
        or of returns that are all equal, become 0.
    :param surrogate: ``"log_likelihood"`` (−mean log π·A, the reference, which loses the credit of the pre-update
        samples when it is differentiated twice) or ``"likelihood_ratio"`` (−mean π/π_old·A, as in ProMP's LVC).
    :param parallel: the threads to fit baselines and to update blocks of tasks on.
    """

    def __init__(
        self,
        policy: FunctionalPolicy,
        *,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = True,
        surrogate: str = "log_likelihood",
        parallel: Parallel | None = None,
    ) -> None:
        self.policy = policy
        self.gamma = FRACTION("gamma", gamma)
        self.gae_lambda = FRACTION("gae_lambda", gae_lambda)
        self.normalize_advantage = SWITCH("normalize_advantage", normalize_advantage)
        self.surrogate: str = choice(*SURROGATES)("surrogate", surrogate)
        self.baseline = LinearFeatureBaseline(parallel=parallel)
        self._parallel = parallel

    def process(self, episodes: Episodes, params: Params) -> Samples:
        """Turn episodes into samples with advantages; the baseline is fitted for each task on this batch.

        :param params: the stacked tensors that collected the episodes.
        """
        returns = discounted_returns(episodes.rewards, episodes.mask, self.gamma)
        values = self.baseline.fit_predict(episodes, returns)
        advantages = generalized_advantages(episodes.rewards, values, episodes.mask, self.gamma, self.gae_lambda)
        if self.normalize_advantage:
            nothing = nothing_differs(episodes.rewards, episodes.mask, episodes.terminated)
            nothing |= is_rounding(advantages, episodes.mask, returns)
            advantages = standardize(advantages, episodes.mask, nothing=nothing)
        samples = pack(episodes, advantages)
        if self.surrogate == "likelihood_ratio":
            with torch.no_grad():
                log_prob = self.policy.distribution(params, samples.obs).log_prob(samples.actions)
            samples = replace(samples, log_prob=log_prob)
        return samples

    def loss(self, params: Params, samples: Samples) -> torch.Tensor:
        """Return the loss of each task, ``[task]``; twice differentiable in ``params`` (stacked).

        It is the mean over all steps of all episodes, not a mean of episode means.
        """
        return self.head_loss(self.policy.distribution(params, samples.obs), samples)

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task, ``[task]``, given the distribution at the samples' observations."""
        log_prob = distribution.log_prob(samples.actions)
        if self.surrogate == "log_likelihood":
            score = log_prob
        else:
            assert samples.log_prob is not None
            score = torch.exp(log_prob - samples.log_prob)
        return -(samples.weights * score * samples.advantages).sum(-1)

    def start(self, params: Params) -> LearnerState:
        """Return the state with which learning starts at the stacked ``params``: plain gradient steps have none."""
        return LearnerState(params, {})

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after one gradient step: the inner step of MAML.

        :param rate: the inner learning rate.
        :param seeds: not drawn from.
        :param watcher: is told the step, by the calling thread, with the whole stack.
        """
        return descend(
            self,
            SGD(),
            state,
            rate,
            task_blocks(len(samples), samples.obs.shape[1], self.policy.width),
            lambda block: iter([(samples.tasks(block), None)]),
            parallel=self._parallel,
            watcher=watcher,
        )
