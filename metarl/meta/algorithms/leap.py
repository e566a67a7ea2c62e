"""Leap (Flennerhag, Moreno, Lawrence and Damianou, 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.checks import SWITCH, plain
from metarl.envs.family import Family
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Outcome
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.meta.algorithms.path import PathAlgorithm
from metarl.meta.blocks.cut import Block
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import MetaGradient
from metarl.meta.progress import Timer
from metarl.params import mean


class Leap(PathAlgorithm):
    """Leap: the initialisation moves so that the paths of learning, on the surface of the loss, become shorter.

    Their energy instead of their length, around A2C::

        options = {"learner": "a2c", "metric": "energy"}
        model = Leap("MlpPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2, **options).learn(total_timesteps=1)

    The meta-gradient is eq. 8 with identity Jacobians, summed over the segments of a path (the steps of the learner's
    optimiser) and averaged over tasks, without the factor p. ∆f along a segment is the difference of the losses that
    two steps saw, each on its own minibatch, as in the reference code. Along the last segment, and where the learner
    does not show its loss (stock SB3 algorithms), it is ⟨∇f, ∆θ⟩, exact to first order. A stock algorithm that clips
    gradients (PPO and A2C, to a norm of 0.5) shows ∇f as its optimiser gets it, so that ∆f and ∇f are smaller than the
    loss's by the factor of the clipping; a larger ``max_grad_norm`` in ``learner_kwargs`` avoids that. Segments that no
    optimiser made, as TRPO's, are measured in the space of parameters only. See
    :class:`~metarl.meta.algorithms.leap_watcher.LeapWatcher`.

    Which tensors a path consists of is said by leaving others out: those of ``task_local`` are each task's own, as the
    heads of games are (``task_local=["action_net", "value_net"]`` leaves the encoder of a ``CnnPolicy``), those of
    ``exclude`` begin every task as they were made. Both are learnt, have no length and pull nothing. Memory does not
    grow with the path.

    With ``metric="energy"``, ``loss=False`` and ``stabilizer=False`` the meta-gradient is θ − mean φ, Reptile's; with
    ``drop_last`` φ is where the last but one step ended.

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param metric: ``"length"`` (p = 1, the paper's choice) or ``"energy"`` (p = 2).
    :param loss: measure on the loss surface; False: in the space of parameters.
    :param stabilizer: take −abs(∆f) for ∆f in the meta-gradient.
    :param drop_last: leave the last segment out, as the reference code does; where no path has another one, training
        raises :class:`~metarl.errors.ConfigError`.

    The other parameters are those of :class:`~metarl.meta.algorithms.path.PathAlgorithm`,
    :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and :class:`~metarl.meta.base.MetaAlgorithm`; ``outer`` is
    ``"adam"`` with a learning rate of 0.01, as in ``leap.yml``. The gradient steps of 0.1 of the paper's Omniglot
    experiment, ``outer="sgd"``, explode around learners that take many steps or see the loss of a critic, whose paths
    pull harder.
    """

    name: ClassVar[str] = "leap"
    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = ("adam", {"learning_rate": 0.01})

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        metric: str = "length",
        loss: bool = True,
        stabilizer: bool = True,
        drop_last: bool = False,
        **kwargs: Any,
    ) -> None:
        self.metric = plain(metric)
        self.loss = SWITCH("loss", loss)
        self.stabilizer = SWITCH("stabilizer", stabilizer)
        self.drop_last = SWITCH("drop_last", drop_last)
        self._measure = LeapMetric(self.metric, self.loss, self.stabilizer, self.drop_last)
        self._mean_loss: float | None = None
        super().__init__(policy, env, **kwargs)

    def _check_learner(self) -> None:
        super()._check_learner()
        if self.drop_last and self.n_inner_steps == self.abilities.steps_per_update == 1:
            raise ConfigError(f"drop_last with n_inner_steps=1: {self.learner!r} takes one step, and nothing is left")

    def _watcher(self, block: Block) -> LeapWatcher:
        return LeapWatcher(self._measure, [*self.excluded, *block.request.local])

    def train(self) -> dict[str, float]:
        """Do one meta-iteration; the mean loss of the minibatches of all inner steps is logged, where it is shown."""
        stats = super().train()
        return stats if self._mean_loss is None else {**stats, "inner/mean_loss": self._mean_loss}

    def _learn(self, blocks: Sequence[Block], timer: Timer) -> tuple[MetaGradient, list[Outcome]]:
        watchers = [self._watcher(block) for block in blocks]
        outcomes = self._learn_blocks(blocks, timer, watchers=watchers)
        if self.drop_last and not any(watcher.n_segments for watcher in watchers):
            raise ConfigError(
                f"drop_last with n_inner_steps={self.n_inner_steps}: {self.learner!r} took one step of its optimiser "
                "on every path, and nothing is left"
            )
        n_losses = sum(watcher.n_losses for watcher in watchers)
        self._mean_loss = sum(watcher.losses for watcher in watchers) / n_losses if n_losses else None
        n_tasks, theta = sum(outcome.n_tasks for outcome in outcomes), InnerRule().start(self.meta_params)
        pulls = [watcher.gradient() for watcher in watchers if watcher.n_segments]
        shared = [{name: pull[name] for name in theta if name in pull} for pull in pulls]
        pull = mean(shared, n_tasks) if shared else {}
        return MetaGradient(sum(watcher.distance for watcher in watchers) / n_tasks, self._as_gradient(pull)), outcomes
