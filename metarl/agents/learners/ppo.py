"""Proximal policy optimisation with a clipped objective (Schulman et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples, standardized
from metarl.agents.learners.base import SB3Settings
from metarl.agents.learners.descent import Minibatch, descend, task_blocks
from metarl.agents.learners.registry import register_learner
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.fields import PER_SAMPLE
from metarl.agents.sampling.samples import Samples
from metarl.checks import ABOVE_ZERO, NONE, ROUNDS, integer
from metarl.params import Rate


@register_learner("ppo")
class PPO(ActorCritic):
    """Epochs of minibatches on each batch of whole episodes, for every task of a stack; equals SB3's ``PPO``.

    Each task has its own order of minibatches over its own samples. One that has fewer of them, or that has stopped at
    ``target_kl``, waits for the others untouched: parameters, optimiser and its step counter.

    The loss on all samples, which MAML differentiates, takes them as one minibatch.

    By itself it learns a stack of tasks; ``learner="ppo"`` puts it into a meta-wrapper::

        family = make_family("PointMass-v0", horizon=20)
        policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
        learner = PPO(policy, n_epochs=2, batch_size=32)
        params, seeds = expand(policy.init(seed=0), 2), np.random.SeedSequence(0).spawn(2)
        episodes = collect(family, policy, params, family.tasks("test", 2), seeds, n_episodes=3)
        state = learner.update(learner.start(params), learner.process(episodes, params), 3e-4, seeds)
        assert state.optimizer["step"].tolist() == [4, 4]    # two epochs of two minibatches

    The parameters are those of :class:`metarl.agents.learners.actor_critic.ActorCritic`, with SB3's defaults, and:

    :param n_epochs: passes over the samples.
    :param batch_size: samples in a minibatch; the last one of an epoch may be smaller. Where it has a single sample,
        that keeps its advantage standardised over the whole batch (SB3 takes it raw, on another scale).
    :param clip_range: the ratio of new to old probability earns nothing more outside 1 ± this.
    :param clip_range_vf: values may move this far from the old ones in the value loss; None: anywhere.
    :param target_kl: a task stops before a step at which its estimated KL divergence is over 1.5 times this.
    :raises ConfigError: a policy without a critic, or a value outside its range.
    """

    default_rate = 3e-4
    update_options = (*ActorCritic.update_options, "n_epochs", "batch_size", "target_kl")

    def __init__(
        self,
        policy: FunctionalPolicy,
        *,
        n_epochs: int = 10,
        batch_size: int = 64,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_range_vf: float | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        optimizer: str = "adam",
        optimizer_kwargs: Mapping[str, Any] | None = None,
        n_steps: int | None = None,
        n_envs: int = 1,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(
            policy,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            optimizer=optimizer,
            optimizer_kwargs=optimizer_kwargs,
            n_steps=n_steps,
            n_envs=n_envs,
            parallel=parallel,
        )
        size = integer(2 if self.normalize_advantage else 1)
        self.n_epochs = ROUNDS("n_epochs", n_epochs)
        self.batch_size = size.says(size.words + " (normalize_advantage needs two)" * self.normalize_advantage)(
            "batch_size", batch_size
        )
        self.clip_range = ABOVE_ZERO("clip_range", clip_range)
        self.clip_range_vf = (ABOVE_ZERO | NONE)("clip_range_vf", clip_range_vf)
        self.target_kl = (ABOVE_ZERO | NONE)("target_kl", target_kl)

    def actor_loss(self, log_prob: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        assert samples.log_prob is not None
        ratio = torch.exp(log_prob - samples.log_prob)
        clipped = ratio.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        assert samples.advantages is not None
        return -torch.minimum(samples.advantages * ratio, samples.advantages * clipped)

    def predicted(self, values: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        if self.clip_range_vf is None:
            return values
        return samples.values + (values - samples.values).clamp(-self.clip_range_vf, self.clip_range_vf)

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after the epochs of one of SB3's ``train()``.

        :param rate: the optimiser's learning rate; SB3's default is 3e-4.
        :param seeds: one stream for each task, which draws a permutation of its samples for each epoch.
        :param watcher: is told every step, by the calling thread, with the whole stack.
        """
        assert isinstance(samples, ActorCriticSamples)
        size = min(self.batch_size, samples.obs.shape[1])
        return descend(
            self.policy,
            self.head_loss,
            self._optimizer,
            state,
            rate,
            task_blocks(len(samples), size, self.policy.width),
            lambda block: self._minibatches(samples.tasks(block), seeds[block], size),
            max_grad_norm=self.max_grad_norm,
            stop=None if self.target_kl is None else self._too_far,
            parallel=self._parallel,
            watcher=watcher,
        )

    def _minibatches(
        self, samples: ActorCriticSamples, seeds: Sequence[np.random.SeedSequence], size: int
    ) -> Iterator[Minibatch]:
        """Yield the minibatches of a block of tasks."""
        rngs = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        n_tasks, n_samples = samples.weights.shape
        n_batches = -(-n_samples // size)
        sizes = (samples.counts[None] - size * np.arange(n_batches)[:, None]).clip(0, size)
        weights = torch.from_numpy((np.arange(size) < sizes[..., None]) / sizes.clip(1)[..., None])
        weights = weights.to(samples.weights.dtype)
        own = samples.present(PER_SAMPLE)
        del own["weights"]  # of the whole batch: a minibatch has its own
        flat = {name: tensor.flatten(0, 1) for name, tensor in own.items()}
        order = np.zeros((n_tasks, n_batches * size), dtype=np.int64)
        for _ in range(self.n_epochs):
            for task, (rng, count) in enumerate(zip(rngs, samples.counts, strict=True)):
                order[task, :count] = rng.permutation(count)
            # A whole epoch is put in order at once, minibatch by minibatch.
            rows = (order + n_samples * np.arange(n_tasks)[:, None]).reshape(n_tasks, n_batches, size).swapaxes(0, 1)
            index = torch.from_numpy(rows.reshape(-1))
            epoch = {name: tensor.index_select(0, index).unflatten(0, weights.shape) for name, tensor in flat.items()}
            if self.normalize_advantage:
                epoch["advantages"] = standardized(epoch["advantages"], weights)
            for k, counts in enumerate(sizes):
                longest = int(counts.max())
                batch = replace(
                    samples,
                    weights=weights[k][:, :longest],
                    counts=counts,
                    episode_ends=counts[:, None],
                    **{name: tensor[k][:, :longest] for name, tensor in epoch.items()},
                )
                yield batch, None if counts.min() else torch.from_numpy(counts > 0)

    def sb3_settings(self, n_samples: int) -> SB3Settings:
        """Return the settings of SB3's PPO."""
        names = ("max_grad_norm", "n_epochs", "clip_range", "clip_range_vf", "target_kl")
        update = {name: getattr(self, name) for name in names}
        update["batch_size"] = min(self.batch_size, n_samples)
        return SB3Settings("ppo", self.optimizer, self.sb3_loss(), update, self.sb3_optimizer())

    @torch.no_grad()
    def _too_far(self, distribution: Distribution, samples: Samples) -> torch.Tensor:
        """Return which tasks are further from where their samples were collected than ``target_kl`` allows."""
        assert samples.log_prob is not None
        assert self.target_kl is not None
        log_ratio = distribution.log_prob(samples.actions) - samples.log_prob
        kl = (samples.weights * (torch.expm1(log_ratio) - log_ratio)).sum(-1)
        return kl > 1.5 * self.target_kl
