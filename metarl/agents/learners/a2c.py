"""Synchronous advantage actor-critic (Mnih et al., 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    In SB3's way, on episodes that go on, an inner step of 40 env steps is 4 updates::

        options = {"n_steps": 5, "n_envs": 2, "optimizer_kwargs": {"eps": 1e-4}}
        model = metarl.Reptile(
            "MlpPolicy", "PointMass-v0", learner="a2c", learner_kwargs=options, n_transitions=40, n_inner_steps=2
        )

    The parameters are those of :class:`metarl.agents.learners.actor_critic.ActorCritic`, with SB3's defaults. Its
    ``use_rms_prop`` is ``optimizer="rmsprop"``, and ``rms_prop_eps`` the ``eps`` of ``optimizer_kwargs``.
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

    def actor_loss(self, log_prob: torch.Tensor, samples: ActorCriticSamples) -> torch.Tensor:
        assert samples.advantages is not None
        return -(samples.advantages * log_prob)

    def sb3_settings(self, n_samples: int) -> SB3Settings:
        """Return the settings of SB3's A2C, whose optimiser is given by its class."""
        update = {"max_grad_norm": self.max_grad_norm, "use_rms_prop": False}
        return SB3Settings("a2c", self.optimizer, self.sb3_loss(), update, self.sb3_optimizer())
