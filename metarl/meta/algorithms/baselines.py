"""Baselines that are configurations of MAML's code: joint training, the oracle, and no training at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from gymnasium import spaces

from metarl.envs.family import Family
from metarl.envs.groups import has_equal_spaces
from metarl.envs.views.oracle import Oracle as OracleView
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Adaptation, Request, Streams
from metarl.meta.adaptation.stock import StockAdaptation
from metarl.meta.algorithms.maml import MAML
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.meta.sb3_words import MaybeCallback
from metarl.params import inner_name


class Pretrain(MAML):
    """Joint training on all tasks without adaptation ("pretrain"): MAML with no inner steps in training.

    What joint training reaches is what adaptation starts from::

        model = Pretrain("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2).learn(total_timesteps=1)
        report = model.evaluate(n_tasks=2, n_inner_steps=1)

    A stock SB3 algorithm learns all tasks of a meta-batch at once, with one call of its own ``learn()`` on copies of
    all of them (``learner_kwargs`` has ``n_envs``, of each task), and goes on from there with the next meta-batch; its
    optimiser begins anew, its statistics go on. The outer optimiser sees θ − φ, as Reptile's does: with the learning
    rate of 1 that it has where none is given, θ becomes φ. A stock PPO on copies of 32 tasks, two rollouts of 64 env
    steps each::

        options = {"learner": "sb3_ppo", "learner_kwargs": {"n_steps": 32, "batch_size": 64}}
        model = Pretrain("MlpPolicy", "PointMass-v0", meta_batch_size=32, n_transitions=64, **options)
        model.learn(total_timesteps=1)
        assert model.num_timesteps == 32 * 64

    The arguments are those of :class:`MAML`; ``inner_lr`` and ``n_inner_steps`` are what evaluation adapts with, and
    the former is a stock algorithm's learning rate.
    """

    name: ClassVar[str] = "pretrain"
    first_order: ClassVar[bool] = True
    adapts: ClassVar[bool] = False

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return super()._default_outer() if self.abilities.differentiable else ("sgd", {"learning_rate": 1.0})

    def _n_together(self) -> int:
        return self.meta_batch_size

    def _check_learner(self) -> None:
        super()._check_learner()
        if self.task_local and not self.abilities.differentiable:
            raise ConfigError(
                f"task_local={self.task_local}: {self.name} around {self.learner!r} has one policy for all tasks"
            )

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        if not (self.abilities.differentiable or has_equal_spaces(self.family)):
            raise ConfigError(
                f"{self.family.id} has tasks of different spaces: {self.name} around {self.learner!r} has one policy "
                "for all tasks"
            )
        return super()._make_adaptation(observation_space, action_space, options)

    def train(self) -> dict[str, float]:
        if self.abilities.differentiable:
            return super().train()
        assert isinstance(self.adaptation, StockAdaptation)
        timer, streams = Timer(), Streams(self.seed, "train", self.n_iterations)
        request = Request(self._sample_tasks(), self.rates[:1], streams, self._amount(None, None))
        with self._whole():
            with timer("inner"):
                outcome = self.adaptation.learn_together(self.theta, request)
            with timer("outer"):
                phi = {name: outcome.params[inner_name(name)][0] for name in self.meta_params}
                away = {name: tensor - phi[name] for name, tensor in self.meta_params.items()}
                objective, remaining = KnownGradient(MetaGradient(math.nan, away)), self._current_progress_remaining
                result = self.outer_optimizer.step(objective, self.meta_params, remaining)
            self._move(result.params, [outcome])
        self.num_timesteps += outcome.n_steps
        return {**self._statistics([outcome], timer), **result.stats}


class Oracle(Pretrain):
    """Joint training of a policy that observes the task: the reference that needs no adaptation.

    Observations of PointMass have two entries, and two more that are the goal::

        assert Oracle("MlpPolicy", "PointMass-v0").observation_space.shape == (4,)

    The arguments are those of :class:`MAML`; the family's oracle view is taken by itself.
    """

    name: ClassVar[str] = "oracle"
    is_told_the_task: ClassVar[bool] = True

    def _make_family(self, env: str | Family, env_kwargs: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any], bool]:
        if isinstance(env, str):
            env_kwargs = {**env_kwargs, "oracle": True}
        elif not isinstance(env, OracleView):
            raise ConfigError(f"{type(env).__name__} hides the task: pass metarl.envs.Oracle(family)")
        return super()._make_family(env, env_kwargs)


class RandomInit(MAML):
    """The untrained initialisation: what adaptation reaches without meta-learning.

    It is evaluated as it was made::

        report = RandomInit("MlpPolicy", "PointMass-v0").evaluate(n_tasks=2, n_inner_steps=1, n_episodes=2)

    The arguments are those of :class:`MAML`.
    """

    name: ClassVar[str] = "random"
    first_order: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> RandomInit:
        """Return at once: there is nothing to learn, and no env step is taken."""
        return self
