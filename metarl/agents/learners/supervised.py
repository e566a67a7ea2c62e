"""Gradient steps on a declared loss: few-shot regression and classification, as MAML's authors have it, and cloning."""

from __future__ import annotations

import torch
from gymnasium import spaces

from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import register_learner
from metarl.agents.networks.distributions import MIN_LOG_STD, Distribution, Gaussian
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.samples import Samples, pack
from metarl.checks import COUNT, NONE, SWITCH
from metarl.envs.family import Family
from metarl.params import Params


@register_learner("supervised")
class Supervised(Learner):
    """One gradient step on the loss that a family of supervised tasks declares, with its targets.

    A prediction is the most likely action, as ``model.predict(x, deterministic=True)`` returns it: learning samples
    nothing, and ``log_std`` gets no gradient. The loss of a task is the mean over its examples of ``‖mean(x) − y‖²``
    where actions are a ``Box``, and of ``−log softmax(logits(x))[y]`` where they are ``Discrete``.

    One support batch of K shots (``n_episodes``) is drawn for a task, and all inner steps go down the loss on it, or,
    without ``reuses_support``, each on a batch of its own; the query batch is drawn anew. Scores are those of further
    examples, the same ones after each inner step; without ``reuses_support`` they are those of the next batch, unless
    the family has others for queries::

        model = metarl.MAML("MlpPolicy", "Sinusoid-v0", learner="supervised", n_episodes=10, inner_lr=0.01)

    :param policy: the policy whose mode predicts.
    :param n_query: examples of a query batch; None: as many as of the support.
    :param n_eval: examples that a score of an evaluation is the mean over.
    :param reuses_support: whether all inner steps learn from one batch; otherwise each draws its own.
    :param parallel: the threads to update blocks of tasks on.
    """

    default_rate = 0.01
    plain_steps = True
    steps_per_update = 1
    reuses_support = True
    deterministic = True
    predicts = True
    info = ("target",)

    def __init__(
        self,
        policy: FunctionalPolicy,
        *,
        n_query: int | None = None,
        n_eval: int = 100,
        reuses_support: bool = True,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(policy, parallel=parallel)
        self.n_query = (COUNT | NONE)("n_query", n_query)
        self.n_eval = COUNT("n_eval", n_eval)
        self.reuses_support = SWITCH("reuses_support", reuses_support)

    @classmethod
    def misfit(cls, family: Family) -> str | None:
        if family.loss is None:
            return "it takes families that declare a loss and report the target of every action"
        return None

    def process(self, episodes: Episodes, params: Params) -> Samples:
        """Turn episodes into samples with their targets; classes are counted from 0."""
        target = episodes.info["target"]
        space = self.policy.action_space
        if isinstance(space, spaces.Discrete):
            target = target - int(space.start)
        return pack(episodes, None, target)

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task, ``[task]``: the mean squared error, or the mean cross-entropy."""
        assert samples.target is not None
        if isinstance(distribution, Gaussian):
            each = (distribution.mean - samples.target).square().sum(-1)
        else:
            each = -distribution.log_prob(samples.target)
        return (samples.weights * each).sum(-1)


@register_learner("cloning")
class Cloning(Supervised):
    """One gradient step on the expected imitation loss, computed exactly from the targets.

    Where actions are a ``Box``, a family of imitation pays −‖a − a*‖². The loss of a task is the mean over its pairs
    of the expectation for a Gaussian policy, E‖a − a*‖² = ‖μ(s) − a*‖² + tr Σ, so that the standard deviation is learnt
    too: it shrinks. Where actions are ``Discrete`` it is −log π(a*|s).

    As with ``supervised``, of which this is the case for policies that act, one support batch serves all inner steps,
    and the policy's most likely action is what is scored: on families of imitation in the real environment::

        options = {"n_episodes": 10, "meta_batch_size": 2, "policy_kwargs": {"net_arch": [8]}}
        model = metarl.FOMAML("MlpPolicy", "PointMassImitation-v0", learner="cloning", **options)
        report = model.evaluate("test", n_inner_steps=1, n_tasks=2)
        assert report.env == "PointMassImitation-v0"
        assert (report.learning_returns < 0.0).all()  # minus the imitation loss; report.returns are of PointMass-v0

    The parameters are those of :class:`~metarl.agents.learners.supervised.Supervised`.
    """

    default_rate = 0.1

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the expected loss of each task, ``[task]``."""
        loss = super().head_loss(distribution, samples, values)
        if isinstance(distribution, Gaussian):
            loss = loss + torch.exp(2.0 * distribution.log_std.clamp(min=MIN_LOG_STD)).sum(-1)
        return loss
