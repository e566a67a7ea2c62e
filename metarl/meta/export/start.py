"""Where a stock model starts in a task: at the export, or at what adaptation to that task comes to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from metarl.envs.tasks import take_tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import ConfigError
from metarl.meta.adaptation.stock import StockAdaptation
from metarl.meta.evaluating import Evaluates
from metarl.meta.export.sb3 import Exported
from metarl.meta.model import Model
from metarl.params import Params, take

Make = Callable[[VecEnv, int], BaseAlgorithm]
"""Builds a stock model on an environment from a seed."""


def reach_of(model: Model, n_inner_steps: int, n_episodes: int | None) -> Callable[..., Params] | None:
    """Return what adapts to tasks, see :meth:`~metarl.meta.evaluating.Evaluates.reached`; None for no inner steps.

    :raises ConfigError: inner steps are a stock algorithm's own.
    """
    if n_inner_steps == 0:
        return None
    if not isinstance(model, Evaluates) or isinstance(model.adaptation, StockAdaptation):
        kind = getattr(model, "learner", model.name)
        raise ConfigError(
            f"n_inner_steps={n_inner_steps} around {kind!r}: its inner steps are what the stock algorithm does from "
            "the start"
        )
    return partial(model.reached, n_inner_steps=n_inner_steps, n_episodes=n_episodes)


def start_at(
    model: Model, reach: Callable[..., Params] | None, exported: Exported, build: Callable[[Exported], Make]
) -> Make:
    """Return what builds a stock model that starts where adaptation to the task of its environment ends.

    :param reach: adapts; None: it starts at the export.
    :param build: what is done with an export.
    """
    plain = build(exported)
    if reach is None:
        return plain

    def make(env: VecEnv, seed: int) -> BaseAlgorithm:
        assert isinstance(env, FamilyVecEnv)
        actor = take(reach(take_tasks(env.tasks, slice(0, 1)), seed=seed), 0)
        return build(exported.acting_as(model, actor))(env, seed)

    return make
