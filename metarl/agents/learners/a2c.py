"""Synchronous advantage actor-critic (Mnih et al., 2016)."""

from __future__ import annotations

import torch

from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples
from metarl.agents.learners.base import SB3Settings
from metarl.agents.learners.registry import register_learner
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel


@register_learner("a2c")
class A2C(ActorCritic):
    """One step of an optimiser on each batch of whole episodes, for every task of a stack; equals SB3's ``A2C``.

    A meta-wrapper takes it by name::

        model = metarl.FOMAML("MlpPolicy", "PointMass-v0", learner="a2c", learner_kwargs={"ent_coef": 0.01})
        assert "value_net.weight" in model.policy_params

    The parameters are those of :class:`metarl.agents.learners.actor_critic.ActorCritic`, with SB3's defaults. Its
    ``use_rms_prop`` is ``optimizer="rmsprop"``.
    """

    default_rate = 7e-4
    steps_per_update = 1

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
        assert samples.advantages is not None
        return -(samples.advantages * log_prob)

    def sb3_settings(self, n_samples: int) -> SB3Settings:
        """Return the settings of SB3's A2C, whose optimiser is given by its class."""
        update = {"max_grad_norm": self.max_grad_norm, "use_rms_prop": False}
        return SB3Settings("a2c", self.optimizer, self.sb3_loss(), update)
