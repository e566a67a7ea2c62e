"""Synchronous advantage actor-critic (Mnih et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples
from metarl.agents.learners.base import LearnerState, Watcher
from metarl.agents.learners.descent import descend, task_blocks
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples
from metarl.params import Rate


class A2C(ActorCritic):
    """One step of an optimiser on each batch of whole episodes, for every task of a stack; equals SB3's ``A2C``.

    The parameters are those of :class:`metarl.agents.learners.actor_critic.ActorCritic`, with SB3's defaults. Its
    ``use_rms_prop`` is ``optimizer="rmsprop"``.
    """

    def __init__(
        self,
        policy: FunctionalPolicy,
        *,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        optimizer: str = "rmsprop",
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
            parallel=parallel,
        )

    def actor_loss(self, log_prob: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        return -(samples.advantages * log_prob)

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after one step on all samples, as SB3's ``train()`` takes it.

        :param rate: the optimiser's learning rate; SB3's default is 7e-4.
        :param seeds: not drawn from.
        :param watcher: is told the step, by the calling thread, with the whole stack.
        """
        return descend(
            self,
            self._optimizer,
            state,
            rate,
            task_blocks(len(samples), samples.obs.shape[1], self.policy.width),
            lambda block: iter([(samples.tasks(block), None)]),
            max_grad_norm=self.max_grad_norm,
            parallel=self._parallel,
            watcher=watcher,
        )
