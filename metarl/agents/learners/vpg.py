"""Vanilla policy gradient (REINFORCE) with the linear feature baseline: the learner of the MAML papers."""

from __future__ import annotations

from dataclasses import replace

import torch

from metarl.agents.learners.base import Learner, SB3Settings
from metarl.agents.learners.baseline import (
    LinearFeatureBaseline,
    discounted_returns,
    generalized_advantages,
    standardize,
)
from metarl.agents.learners.registry import register_learner
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.rounding import is_rounding, nothing_differs
from metarl.agents.sampling.samples import Samples, pack
from metarl.checks import FRACTION, SWITCH, choice
from metarl.params import Params

SURROGATES = ("log_likelihood", "likelihood_ratio")


@register_learner("vpg")
class VPG(Learner):
    """REINFORCE with generalised advantages over a linear baseline, as pure functions.

    Two tasks, each with its own parameters, take one step::

        family = make_family("PointMass-v0")
        learner = VPG(FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space))
        params, seeds = expand(learner.policy.init(seed=0), 2), np.random.SeedSequence(0).spawn(2)
        episodes = collect(family, learner.policy, params, family.tasks("test", 2), seeds, n_episodes=3)
        samples = learner.process(episodes, params)
        state = learner.update(learner.start(params), samples, 0.1, seeds)
        assert state.params["action_net.bias"].shape == (2, 2)

    :param policy: the policy whose tensors are learnt.
    :param gamma: discount factor.
    :param gae_lambda: 1 takes the whole return, as the reference does.
    :param normalize_advantage: standardise the advantages of each task's batch; those that are rounding of the returns,
        or of returns that are all equal, become 0.
    :param surrogate: ``"log_likelihood"`` (−mean log π·A, the reference, which loses the credit of the pre-update
        samples when it is differentiated twice) or ``"likelihood_ratio"`` (−mean π/π_old·A, as in ProMP's LVC).
    :param parallel: the threads to fit baselines and to update blocks of tasks on.
    """

    default_rate = 0.1
    path_rate = 0.05
    plain_steps = True
    trust_region = True
    steps_per_update = 1

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
        super().__init__(policy, parallel=parallel)
        self.gamma = FRACTION("gamma", gamma)
        self.gae_lambda = FRACTION("gae_lambda", gae_lambda)
        self.normalize_advantage = SWITCH("normalize_advantage", normalize_advantage)
        self.surrogate: str = choice(*SURROGATES)("surrogate", surrogate)
        self.baseline = LinearFeatureBaseline(parallel=parallel)

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

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task, ``[task]``, given the distribution at the samples' observations.

        It is −mean(log π · A) or −mean(π/π_old · A), a mean over all steps and not of episode means.
        """
        log_prob = distribution.log_prob(samples.actions)
        if self.surrogate == "log_likelihood":
            score = log_prob
        else:
            assert samples.log_prob is not None
            score = torch.exp(log_prob - samples.log_prob)
        assert samples.advantages is not None
        return -(samples.weights * score * samples.advantages).sum(-1)

    def query_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return −mean(π/π_old · A) of each task, ``[task]``, whatever the surrogate of the inner steps is.

        At the parameters that collected the batch the ratio is 1, and its gradient is that of log π: there samples need
        no ``log_prob``.
        """
        log_prob = distribution.log_prob(samples.actions)
        old = log_prob.detach() if samples.log_prob is None else samples.log_prob
        assert samples.advantages is not None
        return -(samples.weights * torch.exp(log_prob - old) * samples.advantages).sum(-1)

    def sb3_settings(self, n_samples: int) -> SB3Settings:
        """Return the settings of SB3's PPO, whose loss without clipping, values and entropy has the same gradient."""
        names = ("gamma", "gae_lambda", "normalize_advantage")
        loss = {**{name: getattr(self, name) for name in names}, "ent_coef": 0.0, "vf_coef": 0.0}
        return SB3Settings("ppo", "sgd", loss)
