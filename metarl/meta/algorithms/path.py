"""What Reptile and Leap share: they look at the paths that learning takes, and differentiate nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.policies import BasePolicy

from metarl.checks import COUNT
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, take_tasks
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.batched import Learnt, PathWatcher, Streams
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.gradients import KnownGradient
from metarl.meta.outer.objective import MetaGradient
from metarl.meta.progress import Timer


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
        if isinstance(exclude, str):
            raise ConfigError(f"exclude={shorten(exclude)} is not a list of names")
        self.exclude = list(exclude)
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
        found: set[str] = set()
        for part in self.exclude:
            own = {name for name in names if name == part or name.startswith(f"{part}.")}
            if not own:
                raise unknown_name("part of the policy", part, names)
            found |= own
        if len(found) == len(names):
            raise ConfigError(f"exclude={shorten(self.exclude)} leaves nothing to learn")
        return [name for name in names if name in found]

    def _default_rate(self) -> float:
        rate = self.abilities.path_rate
        return super()._default_rate() if rate is None else rate

    def _check_learner(self) -> None:
        super()._check_learner()
        COUNT("n_inner_steps", self.n_inner_steps)

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        return self.meta_batch_size * self.batch_steps * self.n_inner_steps

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer = Timer()
        tasks = self._sample_tasks()
        parts: list[Learnt] = []
        stats: list[dict[str, float]] = []
        params, state = self.params, self.outer_optimizer.state()
        try:
            for group in self._groups():
                streams = Streams(self.seed, "train", self.n_iterations, group.start)
                learnt, gradient = self._learn(take_tasks(tasks, group), streams, timer)
                with timer("outer"):
                    objective, remaining = KnownGradient(gradient), self._current_progress_remaining
                    result = self.outer_optimizer.step(objective, self.policy_params, remaining)
                self._move({**result.params, **learnt.statistics})
                parts.append(learnt)
                stats.append(result.stats)
        except BaseException:
            # A meta-iteration is done as a whole or not at all.
            self.params = params
            self.outer_optimizer.load_state(state, self.policy_params)
            raise
        self.num_timesteps += sum(part.n_steps for part in parts)
        means = {name: float(np.mean([values[name] for values in stats])) for name in stats[0]}
        return {**self._statistics(parts, timer), **means}

    def _groups(self) -> list[slice]:
        """Return which of a meta-batch's tasks start from the same initialisation."""
        return [slice(0, self.meta_batch_size)]

    @abstractmethod
    def _learn(self, tasks: Tasks, streams: Streams, timer: Timer) -> tuple[Learnt, MetaGradient]:
        """Learn tasks from the initialisation; return what came of it, and the meta-gradient, a mean over them."""

    def _walk(self, tasks: Tasks, streams: Streams, timer: Timer, watcher: PathWatcher | None = None) -> Learnt:
        """Take the inner steps of training on some tasks."""
        amount = self._amount(None, None)
        return self.loop.learn(self.theta, tasks, self.rates, streams, amount, timer, watcher=watcher)
