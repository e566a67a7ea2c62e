"""Reptile (Nichol, Achiam and Schulman, 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.checks import SWITCH
from metarl.envs.family import Family
from metarl.meta.adaptation.base import Outcome
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.algorithms.path import PathAlgorithm
from metarl.meta.blocks.cut import Block
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import MetaGradient
from metarl.meta.progress import Timer
from metarl.params import each, mean, norm


class Reptile(PathAlgorithm):
    """Reptile: the initialisation moves towards the parameters φ that learning reached.

    Half of the way, after three inner steps::

        options = {"n_inner_steps": 3, "outer_kwargs": {"learning_rate": 0.5}}
        model = Reptile("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2, **options)
        model.learn(total_timesteps=1)

    Batched, θ ← θ + ε mean_i(φ_i − θ) over a meta-batch; ``serial=True`` takes its tasks one after another,
    θ ← θ + ε (φ − θ), each starting from the θ that the one before left. The outer optimiser sees θ − mean φ as a
    gradient: with ``"sgd"`` its learning rate is ε, which by default falls linearly from 1 to 0 over training, as in
    the paper. With one plain gradient step inside, Reptile is joint training on all tasks.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param serial: one task at a time.

    The other parameters are those of :class:`~metarl.meta.algorithms.path.PathAlgorithm`,
    :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "reptile"
    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = ("sgd", {"learning_rate": 1.0, "final_learning_rate": 0.0})

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        serial: bool = False,
        **kwargs: Any,
    ) -> None:
        self.serial = SWITCH("serial", serial)
        super().__init__(policy, env, **kwargs)

    def _groups(self) -> list[range]:
        return [range(task, task + 1) for task in range(self.meta_batch_size)] if self.serial else super()._groups()

    def _learn(self, blocks: Sequence[Block], timer: Timer) -> tuple[MetaGradient, list[Outcome]]:
        outcomes = self._learn_blocks(blocks, timer)
        theta, n_tasks = InnerRule().start(self.meta_params), sum(outcome.n_tasks for outcome in outcomes)
        # θ − φ of every task, summed up block by block.
        away = [{name: theta[name] - outcome.params[name] for name in theta} for outcome in outcomes]
        pull = self._as_gradient(mean([each(lambda tensor: tensor.sum(0), block) for block in away], n_tasks))
        counted = [{name: block[name] for name in theta if name not in self.excluded} for block in away]
        distance = 0.5 * sum(norm(block) ** 2 for block in counted) / n_tasks
        return MetaGradient(distance, pull), outcomes
