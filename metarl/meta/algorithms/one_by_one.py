"""What Progressive Nets and HAT share: training tasks are learnt one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.checks import integer
from metarl.envs.family import Family
from metarl.envs.tasks import n_tasks
from metarl.errors import ConfigError
from metarl.meta.algorithms.multi_task import MultiTask
from metarl.meta.environments import AnyEnv


class OneByOne(MultiTask):
    """Base of the wrappers that learn a list of training tasks one after the other, and forget none.

    After the last task training goes on with that one.

    :param policy: see the wrappers.
    :param env: a registered family's name or a family.
    :param n_training_tasks: tasks that are learnt, at most: the first of those that the family lists for training, or
        draws from where it has any number.
    :param n_iterations_per_task: updates on each.
    :param meta_batch_size: batches of the task, of ``n_episodes`` each, that an update is the mean over.

    The other parameters are those of :class:`~metarl.meta.algorithms.multi_task.MultiTask`.
    """

    own_policies: ClassVar[Mapping[str, str]]
    """The wrapper's policy that is like another policy, by the name of that one."""
    lacks: ClassVar[str]
    """What other policies have not, for error messages."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        n_training_tasks: int = 5,
        n_iterations_per_task: int = 100,
        meta_batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        self.n_iterations_per_task = integer(1, 10**9)("n_iterations_per_task", n_iterations_per_task)
        super().__init__(
            policy, env, n_training_tasks=integer(1, 50)("n_training_tasks", n_training_tasks),
            meta_batch_size=meta_batch_size, **kwargs,
        )  # fmt: skip

    def _policy_name(self, policy: str | type[BasePolicy]) -> str:
        name = super()._policy_name(policy)
        if (made := self.own_policies.get(name, name)) not in self.own_policies.values():
            raise ConfigError(
                f"{self.name} with policy={name!r}, which has no {self.lacks}: use {' or '.join(self.own_policies)}"
            )
        return made

    @property
    def stage(self) -> int:
        """Which of the training tasks is learnt."""
        return min(self.n_iterations // self.n_iterations_per_task, n_tasks(self.training_tasks) - 1)

    def _chosen(self) -> list[int]:
        return [self.stage] * self.meta_batch_size
