"""Proximal policy optimisation of a policy with a memory, on whole trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from metarl.agents.learners.actor_critic import ActorCriticSamples, standardized
from metarl.agents.learners.baseline import generalized_advantages
from metarl.agents.learners.ppo import PPO
from metarl.agents.networks.distributions import Distribution, from_heads
from metarl.agents.parallel import Parallel
from metarl.agents.recurrent.policy import RecurrentPolicy
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.fields import Fields, axes
from metarl.checks import ROUNDS
from metarl.params import Params, total

PART_TRIALS = 16
"""Trials that one thread differentiates together. A fixed number, so that nothing depends on the number of threads."""


@dataclass(frozen=True)
class TrialSamples(Fields):
    """Trials as losses take them, of all tasks in a row.

    :param obs: ``[trial, time, entry]``.
    :param actions: ``[trial, time, *action]``.
    :param advantages: ``[trial, time]``.
    :param returns: ``[trial, time]``, λ-returns, which the critic is to learn.
    :param values: ``[trial, time]``, what the critic said.
    :param log_prob: ``[trial, time]``, of the actions, at the parameters that collected them.
    :param mask: ``[trial, time]``, whether a step was taken; a trial is a prefix of its row.
    """

    obs: torch.Tensor = field(metadata=axes("trial", "time"))
    actions: torch.Tensor = field(metadata=axes("trial", "time"))
    advantages: torch.Tensor = field(metadata=axes("trial", "time"))
    returns: torch.Tensor = field(metadata=axes("trial", "time"))
    values: torch.Tensor = field(metadata=axes("trial", "time"))
    log_prob: torch.Tensor = field(metadata=axes("trial", "time"))
    mask: torch.Tensor = field(metadata=axes("trial", "time"))

    def __len__(self) -> int:
        return len(self.mask)

    def of(self, trials: slice | torch.Tensor) -> TrialSamples:
        """Return some trials, cut to the longest of them."""
        longest = int(self.mask[trials].sum(1).max())
        return self.map(lambda _, each: each[trials][:, :longest])


@dataclass(frozen=True)
class TrialGradient:
    """What a minibatch of trials says.

    :param loss: SB3's, a mean over all steps.
    :param gradient: of the loss.
    :param approx_kl: SB3's estimate of the divergence from the policy that collected the trials.
    :param clip_fraction: steps whose ratio of probabilities is outside the clipping range.
    :param entropy: of the action distribution.
    """

    loss: float
    gradient: Params
    approx_kl: float
    clip_fraction: float
    entropy: float


class TrialPPO:
    """Epochs of minibatches of whole trials; equals sb3-contrib's ``RecurrentPPO`` where that has whole episodes.

    The loss of a minibatch is PPO's, a mean over all its steps, in which the log-probabilities and values at a step
    depend on all that the trial has shown until then, and the gradient goes through the memory back to the trial's
    beginning. Returns and advantages run over the ends of a trial's episodes: what is learnt is what a whole trial
    brings, so that looking around in the first episode pays in later ones. A trial that is cut at its end is worth what
    the critic expects there, as SB3 has it for ``TimeLimit.truncated``.

    :param policy: whose tensors are learnt.
    :param batch_size: trials in a minibatch.
    :param parallel: the threads that parts of a minibatch are differentiated on; numbers do not depend on them.

    :param loss: arguments of :class:`~metarl.agents.learners.ppo.PPO`, whose epochs pass over the trials.
    """

    def __init__(
        self,
        policy: RecurrentPolicy,
        *,
        batch_size: int = 16,
        parallel: Parallel | None = None,
        **loss: Any,
    ) -> None:
        self.loss = PPO(policy, **loss)  # type: ignore[arg-type]  # its loss asks nothing of the policy
        """The loss, and its checked arguments."""
        self.policy = policy
        self.batch_size = ROUNDS("batch_size", batch_size)
        self._parallel = parallel or Parallel(1)

    def process(self, trials: Episodes, params: Params) -> TrialSamples:
        """Turn collected trials into samples with advantages, values and λ-returns.

        :param trials: ``[task, env, time]``, an episode of which is a trial.
        :param params: the tensors that collected them.
        """
        shape, lengths = trials.mask.shape, trials.lengths
        n, longest = shape[0] * shape[1], shape[2]

        def row(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).flatten(0, 1)

        obs, actions, mask = row(trials.obs), row(trials.actions), row(trials.mask)
        obs[~mask] = 0.0  # what lies behind a trial's end may be anything
        # What the critic expects after a trial's last step: its memory goes on by one.
        seen = torch.cat([obs, torch.zeros_like(obs[:, :1])], dim=1)
        rows, last = torch.arange(n), torch.from_numpy(lengths.reshape(-1))
        seen[rows, last] = row(trials.final_obs)

        def look(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                heads, values = self.policy.outputs(params, seen[part])
                distribution = from_heads((heads[0][:, :-1], *heads[1:]))
                return values, distribution.log_prob(actions[part])

        looks = self._parallel.map(look, parts_of(n))
        values, log_prob = (torch.cat(found) for found in zip(*looks, strict=True))
        grid = np.where(mask.numpy(), values[:, :-1].numpy(), 0.0).astype(np.float32).reshape(shape)
        rewards = trials.rewards.astype(np.float64)
        task, env = np.nonzero(~trials.terminated)
        final = values[rows, last].numpy().reshape(shape[:2])
        rewards[task, env, lengths[task, env] - 1] += self.loss.gamma * final[task, env]
        found = generalized_advantages(rewards, grid, trials.mask, self.loss.gamma, self.loss.gae_lambda)
        advantages = row(np.where(trials.mask, found, 0.0).astype(np.float32))
        assert advantages.shape == (n, longest)
        return TrialSamples(
            obs, actions, advantages, advantages + row(grid), row(grid), torch.where(mask, log_prob, 0.0), mask
        )

    def minibatches(self, samples: TrialSamples, rng: np.random.Generator) -> Iterator[TrialSamples]:
        """Yield the minibatches of all epochs, each with its advantages as the loss takes them.

        :param rng: puts the trials of each epoch in order.
        """
        for _ in range(self.loss.n_epochs):
            order = torch.from_numpy(rng.permutation(len(samples)))
            for chosen in torch.split(order, self.batch_size):
                batch = samples.of(chosen)
                if self.loss.normalize_advantage:
                    weights = (batch.mask / batch.mask.sum()).flatten().to(batch.advantages.dtype)
                    flat = standardized(batch.advantages.flatten(), weights)
                    advantages = torch.where(batch.mask, flat.view(batch.mask.shape), 0.0)
                    batch = TrialSamples(**{**batch.present(), "advantages": advantages})
                yield batch

    def differentiate(self, params: Params, batch: TrialSamples) -> TrialGradient:
        """Return the loss of a minibatch and its gradient.

        :param params: one set of tensors.
        """
        n_steps = int(batch.mask.sum())

        def derive(place: slice) -> tuple[float, Params, torch.Tensor]:
            part = batch.of(place)
            samples = _flat(part, n_steps)
            told = torch.zeros(3, dtype=torch.float64)

            def loss(distribution: Distribution, values: torch.Tensor) -> torch.Tensor:
                own = from_heads(tuple(each.unsqueeze(0) for each in distribution.heads))
                with torch.no_grad():
                    told[:] = self._divergence(own, samples)
                return self.loss.head_loss(own, samples, values.unsqueeze(0)).sum()

            value, gradient = self.policy.differentiate(params, part.obs, loss)
            return float(value), gradient, told

        found = self._parallel.map(derive, parts_of(len(batch)))
        kl, clipped, entropy = (float(value) for value in sum(told for _, _, told in found))  # type: ignore[union-attr]
        gradient = total([each for _, each, _ in found])
        return TrialGradient(sum(loss for loss, _, _ in found), gradient, kl, clipped, entropy)

    def _divergence(self, distribution: Distribution, samples: ActorCriticSamples) -> torch.Tensor:
        """Return parts of means over a minibatch: estimated divergence, clipped steps, entropy."""
        assert samples.log_prob is not None
        log_ratio = distribution.log_prob(samples.actions) - samples.log_prob
        clipped = (torch.expm1(log_ratio).abs() > self.loss.clip_range).to(log_ratio.dtype)
        each = (torch.expm1(log_ratio) - log_ratio, clipped, distribution.entropy())
        return torch.stack([(samples.weights * own).sum() for own in each]).double()

    def sb3_arguments(self, horizon: int, n_envs: int) -> dict[str, Any]:
        """Return the arguments of sb3-contrib's ``RecurrentPPO`` that make its update this one, on a trial of each
        environment.

        :param horizon: env steps of a trial.
        """
        names = ("n_epochs", "gamma", "gae_lambda", "clip_range", "clip_range_vf", "normalize_advantage", "ent_coef")
        own = {name: getattr(self.loss, name) for name in (*names, "vf_coef", "target_kl")}
        return {**own, "n_steps": horizon, "batch_size": horizon * min(self.batch_size, n_envs)}

    def is_too_far(self, found: TrialGradient) -> bool:
        """Tell whether an update stops before a step, as SB3's does at ``target_kl``."""
        return self.loss.target_kl is not None and found.approx_kl > 1.5 * self.loss.target_kl


def parts_of(n_trials: int) -> list[slice]:
    """Cut a number of trials into parts that depend on it only."""
    return [slice(start, min(start + PART_TRIALS, n_trials)) for start in range(0, n_trials, PART_TRIALS)]


def _flat(part: TrialSamples, n_steps: int) -> ActorCriticSamples:
    """Return trials as the samples of one task, whose weights are 1/n_steps on steps and 0 on padding."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(0, 1).unsqueeze(0)

    n = part.mask.numel()
    return ActorCriticSamples(
        obs=one(part.obs),
        actions=one(part.actions),
        advantages=one(part.advantages),
        weights=one(part.mask.to(part.advantages.dtype) / n_steps),
        counts=np.array([n]),
        episode_ends=np.array([[n]]),
        log_prob=one(part.log_prob),
        values=one(part.values),
        returns=one(part.returns),
    )


def explained_variance(samples: TrialSamples) -> float:
    """Return the share of the variance of λ-returns that the critic explained, as SB3 logs it; NaN if it is 0."""
    values, returns = (each[samples.mask].double() for each in (samples.values, samples.returns))
    spread = float(returns.var())
    return float("nan") if not spread else 1.0 - float((returns - values).var()) / spread
