"""MetaAlgorithm: what every meta-wrapper does, in Stable-Baselines3's words."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import configure_logger

from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, NONE, SWITCH
from metarl.envs.family import Family
from metarl.errors import NonFiniteError
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.environments import as_any_env
from metarl.meta.evaluation.report import Report
from metarl.meta.export.sb3 import to_sb3
from metarl.meta.export.spaces import SPACES, require_equal_spaces, space_to_json
from metarl.meta.progress import UnitCallback, unit_callbacks
from metarl.meta.saving import Saves
from metarl.meta.sb3_words import Locals, MaybeCallback, callback_of
from metarl.meta.unfinished import Halfway

Self = TypeVar("Self", bound="MetaAlgorithm")


class MetaAlgorithm(Saves):
    """Base of the meta-wrappers: learning, and what is made of what was learnt.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    _listeners: Sequence[UnitCallback] = ()
    """What hears of units of work while it learns."""

    # -------------------------------------------------------------------------------------------------------- learning
    @property
    @abstractmethod
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration, at most or about."""

    @abstractmethod
    def train(self) -> dict[str, float]:
        """Do one meta-iteration: sample, adapt, update ``params``. Return scalars for the log."""

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Run meta-iterations until ``total_timesteps`` env steps are collected, support and query together.

        :param total_timesteps: a lower bound, as in SB3; with ``reset_num_timesteps=False`` that many more. Step sizes
            that are annealed reach their final value there.
        :param callback: SB3 callbacks. ``on_step`` comes once a meta-iteration, after its log was written, so
            ``n_calls`` counts meta-iterations; returning False stops. ``on_rollout_start`` and ``on_rollout_end``
            enclose the meta-iteration; what the latter records is in its row of the log. A
            :class:`~metarl.meta.progress.UnitCallback` is called inside meta-iterations too, and may stop there.
        :param log_interval: meta-iterations between two lines of the log; None leaves it to :meth:`dump_logs`.
        :param tb_log_name: name of the TensorBoard run; the class's name if None.
        :param reset_num_timesteps: count env steps from 0; random streams go on in either case.
        :param progress_bar: show a bar with rate and time left.
        :raises NonFiniteError: a NaN or infinity; names task and meta-iteration; ``params`` are those before it.
        :raises DivergedError: the norm of the parameters exploded; likewise.
        """
        total_timesteps = COUNT("total_timesteps", total_timesteps)
        log_interval = (COUNT | NONE)("log_interval", log_interval)
        reset_num_timesteps = SWITCH("reset_num_timesteps", reset_num_timesteps)
        progress_bar = SWITCH("progress_bar", progress_bar)
        self._require_plain_arguments()
        self._require_family_as_built()
        self.take_into_use()
        if reset_num_timesteps:
            self.num_timesteps = 0
        else:
            total_timesteps += self.num_timesteps
        if not self._custom_logger:
            self._logger = configure_logger(
                self.verbose, self.tensorboard_log, tb_log_name or type(self).__name__, reset_num_timesteps
            )
        callbacks = callback_of(callback, progress_bar, self)
        known = {"self": self, "total_timesteps": total_timesteps, "log_interval": log_interval}
        known |= {
            "tb_log_name": tb_log_name or type(self).__name__,
            "progress_bar": progress_bar,
            "callback": callbacks,
        }
        # SB3 hands over its module's globals, with which no callback can be copied or pickled any more.
        callbacks.on_training_start(Locals(known), {})
        self._started = time.perf_counter(), self.num_timesteps
        self._listeners = unit_callbacks(callbacks)
        try:
            with library_torch():
                while self.num_timesteps < total_timesteps:
                    callbacks.on_rollout_start()
                    self._current_progress_remaining = 1.0 - self.num_timesteps / total_timesteps
                    try:
                        stats = self._iteration()
                    except Halfway:
                        break
                    # One for each episode that has ended: SB3's callbacks count them.
                    ended = np.ones(self._n_ended, dtype=bool)
                    callbacks.update_locals({"total_timesteps": total_timesteps, "stats": stats, "dones": ended})
                    callbacks.on_rollout_end()
                    self._unlogged = stats
                    if log_interval is not None and self.n_iterations % log_interval == 0:
                        self.dump_logs()
                    if not callbacks.on_step():
                        break
        finally:
            self._listeners = []
            if (workers := self._workers.take()) is not None:
                workers.close()
            callbacks.on_training_end()
        return self

    def _iteration(self) -> dict[str, float]:
        try:
            stats = self.train()
        except NonFiniteError as error:
            # Counted as progress lines count it: the one that was going on.
            raise type(error)(f"meta-iteration {self.n_iterations + 1}: {error}") from None
        self.n_iterations += 1
        return stats

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the last meta-iteration, and what callbacks recorded, to the log, as SB3's callbacks ask for it.

        :param iteration: without effect.
        """
        del iteration
        if not (self._unlogged or self.logger.name_to_value):
            return
        for key, value in self._unlogged.items():
            self.logger.record(key, value)
        if self._unlogged:
            started, first_step = self._started
            elapsed = time.perf_counter() - started
            self.logger.record("time/fps", (self.num_timesteps - first_step) / max(elapsed, 1e-9))
            self.logger.record("time/time_elapsed", elapsed)
            self._unlogged = {}
        self.logger.record("time/iterations", self.n_iterations, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # ---------------------------------------------------------------------------------------------------- using it
    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return the actions of the policy before adaptation, as SB3's ``predict`` does."""
        return self._unadapted().predict(observation, state, episode_start, deterministic, self._predictions)

    @abstractmethod
    def _unadapted(self) -> AdaptedPolicy:
        """Return the policy before adaptation."""

    @abstractmethod
    def adapt(self, env: gym.Env[Any, Any], n_inner_steps: int | None = None, **kwargs: Any) -> AdaptedPolicy:
        """Adapt to any environment of equal spaces; its task need not be known."""

    @abstractmethod
    def evaluate(self, split: str = "test", n_inner_steps: int | None = None, **kwargs: Any) -> Report:
        """Adapt to the tasks of a held-out split and report the returns after each inner step."""

    def to_sb3(self, kind: str | None = None, env: gym.Env[Any, Any] | None = None, **kwargs: Any) -> BaseAlgorithm:
        """Return a stock SB3 model that starts at the meta-learnt initialisation; see :mod:`metarl.meta.export.sb3`."""
        return to_sb3(self, kind, env, **kwargs)

    def check_env(self, env: gym.Env[Any, Any]) -> None:
        """Raise :class:`ConfigError` unless ``env`` has the family's spaces, bounds included; float64 will do."""
        require_equal_spaces(
            as_any_env(env, self.family), {what: space_to_json(getattr(self.family, what)) for what in SPACES}
        )


def load(path: str | Path, env: Family | None = None, **overrides: Any) -> MetaAlgorithm:
    """Rebuild a saved meta-algorithm of any kind; see :meth:`MetaAlgorithm.load`."""
    return MetaAlgorithm.load(path, env, **overrides)
