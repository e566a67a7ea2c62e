"""Small meta-learning problems in float64 with padding, for exact tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples, mean_weights
from metarl.meta.adaptation.gradient import GradientPath, InnerRule, InnerStep
from metarl.meta.blocks.derivatives import BlockDerivatives, Bound
from metarl.meta.outer.objective import BlockObjective
from metarl.params import Params, Rate

TASKS, ENVS, LONGEST = 3, 4, 6


def make_policy(kind: str) -> FunctionalPolicy:
    """Return a small tanh policy (finite differences break on the kinks of ReLU)."""
    action = spaces.Box(-1.0, 1.0, (2,)) if kind == "gaussian" else spaces.Discrete(3)
    kwargs = {"net_arch": [5, 4], "activation_fn": "tanh"}
    return FunctionalPolicy("MlpPolicy", spaces.Box(-1.0, 1.0, (3,)), action, kwargs)


def make_params(policy: FunctionalPolicy, seed: int = 0) -> Params:
    """Return perturbed float64 tensors (SB3 starts the action head near zero)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = policy.init(seed).items()
    return {n: t.double() + 0.3 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in tensors}


def make_samples(policy: FunctionalPolicy, seed: int, tasks: int = TASKS) -> Samples:
    """Return samples of episodes that end early, so that tasks differ in length and rows are padded."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, size=(tasks, ENVS))
    counts = lengths.sum(1)
    n = int(counts.max())
    discrete = isinstance(policy.action_space, spaces.Discrete)
    actions = rng.integers(0, 3, (tasks, n)) if discrete else rng.standard_normal((tasks, n, 2))
    # Padding holds garbage: nothing may look at it.
    return Samples(
        obs=torch.from_numpy(rng.standard_normal((tasks, n, 3))),
        actions=torch.from_numpy(actions),
        advantages=torch.from_numpy(rng.standard_normal((tasks, n))),
        weights=mean_weights(counts, n, torch.float64),
        counts=counts,
        episode_ends=np.cumsum(lengths, axis=1),
        log_prob=torch.from_numpy(rng.standard_normal((tasks, n))) - 2.0,
    )


def make_learner(kind: str, surrogate: str = "log_likelihood") -> VPG:
    """Return the learner of a small policy."""
    return VPG(make_policy(kind), surrogate=surrogate)


def local_objective(
    learner: VPG,
    params: Params,
    support: Sequence[Samples],
    query: Samples,
    rates: Sequence[Rate],
    *,
    fisher_fraction: float = 1.0,
    kl_direction: str = "old_new",
    **kwargs: Any,
) -> BlockObjective:
    """Return the meta-objective of a single block of tasks, whose batches are given."""
    bound = Bound(fisher_fraction, kl_direction)
    return BlockObjective([BlockDerivatives(learner, params, support, query, FixedRates(rates), bound=bound, **kwargs)])


class FixedRates(InnerRule):
    """A rule whose rates may also be one tensor for each parameter."""

    def steps(self, meta: Params) -> list[Rate]:
        return list(self.rates)


def inner_path(
    learner: VPG, params: Params, batches: Sequence[Samples], rates: Sequence[Rate], second_order: bool = False
) -> tuple[list[InnerStep], Params]:
    """Return the steps of a path and the parameters where it ends, on batches that are given."""
    path = GradientPath(learner, params, batches, rates, second_order)
    return path.steps, path.end
