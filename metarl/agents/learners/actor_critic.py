"""What A2C and PPO share: a critic, generalised advantages, and an optimiser for every task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from metarl.agents.learners.base import Continuing, Learner
from metarl.agents.learners.baseline import generalized_advantages, rollout_advantages
from metarl.agents.learners.descent import task_blocks
from metarl.agents.learners.optimizers import make_optimizer
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.fields import PER_SAMPLE
from metarl.agents.sampling.rollouts import Rollout
from metarl.agents.sampling.rounding import is_rounding, nothing_differs
from metarl.agents.sampling.samples import Samples, mean_weights, pack
from metarl.checks import ABOVE_ZERO, FRACTION, MAPPING, NONE, NOT_NEGATIVE, SWITCH, integer, plain_tree
from metarl.errors import ConfigError
from metarl.params import Params


@dataclass(frozen=True)
class ActorCriticSamples(Samples):
    """Samples with what the critic said and should have said.

    :param values: ``[task, n]``, the critic's at the parameters that collected the samples.
    :param returns: ``[task, n]``, what it is to learn: λ-returns, the advantages plus the values.
    """

    values: torch.Tensor = field(kw_only=True, metadata=PER_SAMPLE)
    returns: torch.Tensor = field(kw_only=True, metadata=PER_SAMPLE)

    @classmethod
    def of(cls, samples: Samples, values: torch.Tensor, returns: torch.Tensor) -> ActorCriticSamples:
        """Return ``samples`` with values and returns."""
        return cls(**samples.present(), values=values, returns=returns)


class ActorCritic(Learner):
    """What A2C and PPO share; arguments, defaults and meaning are SB3's.

    Batches are whole episodes, and an inner step is one update on one of them; or, with ``n_steps``, an inner step is
    as many updates as its env steps give, each on ``n_steps`` steps of ``n_envs`` copies whose episodes go on from one
    update to the next, as SB3 learns. An inner step begins with fresh episodes; the optimiser goes on. An episode that
    was cut at the horizon is worth what the critic expects of its final observation, as SB3 has it for
    ``TimeLimit.truncated``; one that ended by itself is worth nothing more.

    :param policy: the policy whose tensors are learnt, with a critic.
    :param gamma: discount factor.
    :param gae_lambda: of generalised advantage estimation (Schulman et al., 2016); 1 takes the whole return.
    :param normalize_advantage: standardise the advantages of what one step is computed on; those of a task whose batch
        has advantages that are rounding of the returns, or returns that are all equal, become 0.
    :param ent_coef: weight of the entropy in the loss.
    :param vf_coef: weight of the value loss.
    :param max_grad_norm: each task's gradient is scaled down to this norm.
    :param optimizer: ``"adam"``, ``"rmsprop"``, ``"rmsprop_tf_like"`` or ``"sgd"``, with SB3's settings.
    :param optimizer_kwargs: other settings of it, such as ``{"eps": 1e-4, "alpha": 0.99}``.
    :param n_steps: env steps of each copy that an update learns from; None learns from whole episodes.
    :param n_envs: copies of a task, where ``n_steps`` is given.
    :param parallel: the threads that blocks of tasks run on; not those of a caller that runs inside it.
    :raises ConfigError: a policy without a critic, or a value outside its range.
    """

    needs_critic = True
    update_options: tuple[str, ...] = ("optimizer", "optimizer_kwargs", "max_grad_norm", "n_steps", "n_envs")

    def __init__(
        self,
        policy: FunctionalPolicy,
        *,
        gamma: float,
        gae_lambda: float,
        normalize_advantage: bool,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        optimizer: str,
        optimizer_kwargs: Mapping[str, Any] | None,
        n_steps: int | None,
        n_envs: int,
        parallel: Parallel | None,
    ) -> None:
        super().__init__(policy, parallel=parallel)
        self.gamma = FRACTION("gamma", gamma)
        self.gae_lambda = FRACTION("gae_lambda", gae_lambda)
        self.normalize_advantage = SWITCH("normalize_advantage", normalize_advantage)
        self.ent_coef = NOT_NEGATIVE("ent_coef", ent_coef)
        self.vf_coef = NOT_NEGATIVE("vf_coef", vf_coef)
        self.max_grad_norm = ABOVE_ZERO("max_grad_norm", max_grad_norm)
        self.optimizer_kwargs = plain_tree((MAPPING | NONE)("optimizer_kwargs", optimizer_kwargs) or {})
        self._optimizer = make_optimizer(optimizer, self.optimizer_kwargs)
        self.optimizer = optimizer
        self.n_steps = (integer(1, 10**6) | NONE)("n_steps", n_steps)
        self.n_envs = integer(1, 10**4)("n_envs", n_envs)
        if self.n_steps is not None:
            self.continuing = Continuing(
                self.n_steps, self.n_envs, self.process_rollout, keeps=self.steps_per_update == 1
            )
        elif self.n_envs != 1:
            raise ConfigError(f"n_envs={self.n_envs} without n_steps: whole episodes are collected together anyway")

    samples_type = ActorCriticSamples

    # ------------------------------------------------------------------------------------------------------- the batch
    def process(self, episodes: Episodes, params: Params) -> ActorCriticSamples:
        """Turn episodes into samples with advantages, values and λ-returns.

        :param params: the stacked tensors that collected the episodes.
        """
        samples = pack(episodes, np.zeros(episodes.mask.shape, dtype=np.float32))
        # Rows without steps hold anything.
        cut = ~episodes.terminated & episodes.mask[..., 0]
        final_obs = np.zeros_like(episodes.final_obs)
        final_obs[cut] = episodes.final_obs[cut]
        final = torch.from_numpy(final_obs)

        def look(block: slice) -> tuple[torch.Tensor, ...]:
            own = {name: tensor[block] for name, tensor in params.items()}
            obs = samples.obs[block]
            with torch.no_grad():
                log_prob = self.policy.distribution(own, obs).log_prob(samples.actions[block])
                return self.policy.values(own, obs), self.policy.values(own, final[block]), log_prob

        blocks = task_blocks(len(samples), samples.obs.shape[1], self.policy.width)
        looks = self._parallel.map(look, blocks)
        values, final_values, log_prob = (torch.cat(parts) for parts in zip(*looks, strict=True))

        valid = torch.arange(samples.obs.shape[1]) < torch.from_numpy(samples.counts)[:, None]
        grid = np.zeros(episodes.mask.shape, dtype=np.float32)
        grid[episodes.mask] = values[valid].numpy()
        rewards = episodes.rewards.astype(np.float64)
        task, env = np.nonzero(cut)
        rewards[task, env, episodes.lengths[task, env] - 1] += self.gamma * final_values.numpy()[task, env]
        estimates = generalized_advantages(rewards, grid, episodes.mask, self.gamma, self.gae_lambda)
        advantages = torch.zeros_like(values)
        advantages[valid] = torch.from_numpy(estimates[episodes.mask].astype(np.float32))
        returns = advantages + values
        if self.normalize_advantage:
            nothing = nothing_differs(episodes.rewards, episodes.mask, episodes.terminated)
            nothing |= is_rounding(estimates, episodes.mask, estimates + grid)
            advantages = standardized(advantages, samples.weights)
            # Noise would become noise of unit size.
            advantages[torch.from_numpy(nothing)] = 0.0
        return ActorCriticSamples.of(replace(samples, advantages=advantages, log_prob=log_prob), values, returns)

    def process_rollout(self, rollout: Rollout) -> ActorCriticSamples:
        """Turn a rollout, whose first and last episodes are cut, into the same, in the order (env, time)."""
        n_tasks, n = len(rollout.rewards), rollout.rewards[0].size
        rewards = rollout.rewards + self.gamma * rollout.final_values
        found = rollout_advantages(
            rewards, rollout.values, rollout.ended, rollout.last_values, self.gamma, self.gae_lambda
        )

        def packed(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array.reshape(n_tasks, n, *array.shape[3:]))

        counts, values = np.full(n_tasks, n), packed(rollout.values)
        weights, advantages = mean_weights(counts, n), packed(found.astype(np.float32))
        returns = advantages + values
        if self.normalize_advantage:
            nothing = is_rounding(found, np.ones(found.shape, bool), found + rollout.values)
            advantages = standardized(advantages, weights)
            advantages[torch.from_numpy(nothing)] = 0.0
        return ActorCriticSamples(
            obs=packed(rollout.obs),
            actions=packed(rollout.actions),
            advantages=advantages,
            weights=weights,
            counts=counts,
            episode_ends=counts[:, None],
            log_prob=packed(rollout.log_prob),
            kept=None if rollout.kept is None else {name: each.flatten(1, 2) for name, each in rollout.kept.items()},
            values=values,
            returns=returns,
        )

    # -------------------------------------------------------------------------------------------------------- the loss
    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task on all its samples, ``[task]``: of the actor, the critic and the entropy.

        :param distribution: at the samples' observations.
        :param values: the critic's there.
        """
        assert isinstance(samples, ActorCriticSamples)
        assert values is not None
        actor = self.actor_loss(distribution.log_prob(samples.actions), samples)
        total = actor + self.vf_coef * (samples.returns - self.predicted(values, samples)).square()
        if self.ent_coef:
            total = total - self.ent_coef * distribution.entropy()
        return (samples.weights * total).sum(-1)

    @abstractmethod
    def actor_loss(self, log_prob: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        """Return the actor's loss for each sample, ``[task, n]``."""

    def predicted(self, values: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        """Return what the value loss compares with the λ-returns, ``[task, n]``."""
        return values

    def sb3_loss(self) -> dict[str, Any]:
        """Return the hyperparameters with which an on-policy algorithm of SB3 has this loss."""
        names = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "normalize_advantage")
        return {name: getattr(self, name) for name in names}

    def sb3_optimizer(self) -> dict[str, Any]:
        """Return the arguments with which the optimiser's class of PyTorch's, or SB3's, is the learner's."""
        fixed = {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0.0} if "rmsprop" in self.optimizer else {}
        return {**fixed, **self.optimizer_kwargs}


def standardized(advantages: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return advantages with mean 0 and standard deviation 1, as SB3 does it; a single one is left as it is.

    :param advantages: ``[…, n]``.
    :param weights: ``[…, n]``, 1/count on those that count, 0 on padding.
    """
    counts = (weights > 0.0).sum(-1, keepdim=True)
    centred = advantages - (weights * advantages).sum(-1, keepdim=True)
    variance = (weights * centred.square()).sum(-1, keepdim=True) * (counts / (counts - 1).clamp(min=1))
    return torch.where(counts > 1, centred / (variance.sqrt() + 1e-8), advantages)
