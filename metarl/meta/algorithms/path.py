"""What Reptile and Leap share: they look at the paths that learning takes, and differentiate nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.checks import COUNT
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptation.base import Outcome
from metarl.meta.adaptive import AdaptiveAlgorithm, names_of
from metarl.meta.blocks.cut import Block
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.params import Params, inner_name, select


class PathAlgorithm(AdaptiveAlgorithm):
    """Base of the wrappers that watch a learner's path: any learner will do, and there is no query batch.

    Every batch is learnt from, so a meta-iteration logs the returns after 0 to K − 1 inner steps; the gain of a single
    step is seen in evaluations only.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param inner_lr: None takes the learner's own for paths, 0.05 around ``"vpg"``.
    :param n_inner_steps: inner steps in training.
    :param n_episodes: episodes for each of them.
    :param meta_batch_size: tasks in a meta-iteration.
    :param exclude: tensors, or modules such as ``"value_net"`` and ``"mlp_extractor.value_net"``, that are not
        meta-learnt: every task starts with them as they were initialised, and learns them too.

    The other parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        inner_lr: float | Sequence[float] | None = None,
        n_inner_steps: int = 3,
        n_episodes: int = 10,
        meta_batch_size: int = 20,
        exclude: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.exclude = names_of("exclude", exclude)
        super().__init__(
            policy,
            env,
            inner_lr=inner_lr,
            n_inner_steps=n_inner_steps,
            n_episodes=n_episodes,
            meta_batch_size=meta_batch_size,
            **kwargs,
        )
        self.excluded = self._excluded()
        """Names of the tensors that are not meta-learnt."""

    def _excluded(self) -> list[str]:
        names = list(self.policy_params)
        found = select(names, self.exclude)
        if len(found) == len(names):
            raise ConfigError(f"exclude={shorten(self.exclude)} leaves nothing to learn")
        return found

    def _default_rate(self) -> float:
        rate = self.abilities.path_rate
        return super()._default_rate() if rate is None else rate

    def _check_learner(self) -> None:
        super()._check_learner()
        COUNT("n_inner_steps", self.n_inner_steps)

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        return self.meta_batch_size * self.support_steps(self.n_inner_steps)

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer = Timer()
        outcomes: list[Outcome] = []
        stats: list[dict[str, float]] = []
        with self._whole():
            for group in self._groups():
                gradient, learnt = self._learn(self._training_blocks(group), timer)
                with timer("outer"):
                    objective, remaining = KnownGradient(gradient), self._current_progress_remaining
                    result = self.outer_optimizer.step(objective, self.meta_params, remaining)
                self._move(result.params, learnt)
                outcomes += learnt
                stats.append(result.stats)
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        means = {name: float(np.mean([values[name] for values in stats])) for name in stats[0]}
        return {**self._statistics(outcomes, timer), **means}

    def _groups(self) -> list[range]:
        """Return which of a meta-batch's tasks start from the same initialisation."""
        return [range(self.meta_batch_size)]

    @abstractmethod
    def _learn(self, blocks: Sequence[Block], timer: Timer) -> tuple[MetaGradient, list[Outcome]]:
        """Learn tasks from the initialisation; return the meta-gradient, a mean over them, and what came of it."""

    def _as_gradient(self, pull: Params) -> Params:
        """Return the gradient of every meta-parameter, of which some may not be learnt here.

        :param pull: by the names of the inner loop.
        """
        return {
            name: pull[own]
            if (own := inner_name(name)) in pull and own not in self.excluded
            else torch.zeros_like(tensor)
            for name, tensor in self.meta_params.items()
        }
