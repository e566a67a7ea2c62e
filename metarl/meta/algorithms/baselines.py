"""Baselines that are configurations of MAML's code: joint training, the oracle, and no training at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metarl.envs.family import Family
from metarl.envs.views.oracle import Oracle as OracleView
from metarl.errors import ConfigError
from metarl.meta.algorithms.maml import MAML
from metarl.meta.sb3_words import MaybeCallback


class Pretrain(MAML):
    """Joint training on all tasks without adaptation ("pretrain"): MAML with no inner steps in training.

    What joint training reaches is what adaptation starts from::

        model = Pretrain("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2).learn(total_timesteps=1)
        report = model.evaluate(n_tasks=2, n_inner_steps=1)

    The arguments are those of :class:`MAML`; ``inner_lr`` and ``n_inner_steps`` are what evaluation adapts with.
    """

    name: ClassVar[str] = "pretrain"
    first_order: ClassVar[bool] = True
    adapts: ClassVar[bool] = False


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
