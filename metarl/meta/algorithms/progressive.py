"""Progressive networks: one task after the other, and none is forgotten (Rusu et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from metarl.agents.networks.continual.progressive import Columns
from metarl.agents.networks.layers import head_of
from metarl.checks import integer
from metarl.envs.tasks import n_tasks, one_task, take_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Adaptation, Request, Streams
from metarl.meta.adaptation.learners import make_adaptation
from metarl.meta.algorithms.one_by_one import OneByOne
from metarl.meta.blocks.cut import Adaptations, Block, MakeAdaptation
from metarl.params import HEADS, POLICY, Params, expand
from metarl.streams import seed_sequence

COLUMNS = {
    "MlpPolicy": "MlpProgressivePolicy",
    "CnnPolicy": "CnnProgressivePolicy",
    "FewShotCnnPolicy": "CnnProgressivePolicy",
}
"""The policy of columns that are each like another policy."""


class ProgressiveNets(OneByOne):
    """A column of layers for each of a list of training tasks, learnt one task after the other.

    Column k sees the layers of the columns before it through lateral connections, and is learnt with its head for
    ``n_iterations_per_task`` updates on task k; then both stay. So the policy of every task learnt stays as it is, bit
    for bit. A new task begins with a further column and a head, which are drawn anew, beside those that were learnt::

        options = {"learner": "supervised", "n_training_tasks": 2, "n_iterations_per_task": 5, "n_episodes": 5}
        model = ProgressiveNets("MlpPolicy", "Sinusoid-v0", **options, policy_kwargs={"net_arch": [8]})
        model.learn(total_timesteps=50)
        prediction, _ = model.policy_of(0).predict(np.zeros(1, dtype=np.float32), deterministic=True)
        report = model.evaluate(n_tasks=2, n_inner_steps=2)

    Lateral connections are linear, without the narrow layer in between that the paper has for large networks, and lead
    to the head too.

    :param policy: what a column is made of: ``"MlpPolicy"``, whose ``net_arch`` are its widths, or, of images,
        ``"FewShotCnnPolicy"``. The policies of several columns are ``"MlpProgressivePolicy"`` and
        ``"CnnProgressivePolicy"``.
    :param env: a registered family's name or a family.
    :param n_training_tasks: tasks that have a column, at most.
    :param n_iterations_per_task: updates on each.

    The other parameters are those of :class:`~metarl.meta.algorithms.one_by_one.OneByOne`.
    """

    name: ClassVar[str] = "progressive"

    own_policies: ClassVar[Mapping[str, str]] = COLUMNS
    lacks: ClassVar[str] = "columns"

    # ------------------------------------------------------------------------------------------------------ the columns
    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        return self._with_columns(n_tasks(self.training_tasks) + 1, observation_space, action_space, options)

    def _with_columns(
        self, n: int, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        """Return how tasks of these spaces are learnt with so many columns."""
        extractor = {**(self.policy_kwargs.get("features_extractor_kwargs") or {}), "n_columns": n}
        kwargs = {**self.policy_kwargs, "features_extractor_kwargs": extractor}
        pair, sizes = (observation_space, action_space), (self.n_inner_steps, self.batch_steps)
        how = (self.policy_name, kwargs, self.rates, options, self.parallel, *sizes)
        return make_adaptation(self.learner, self.family, pair, *how)

    def _make_adaptations(self, make: MakeAdaptation) -> Adaptations:
        if self.task_local:
            raise ConfigError(f"task_local={self.task_local}: a column and a head are each task's own in {self.name}")
        tasks = self.training_tasks
        options = make.keywords["options"]  # type: ignore[attr-defined]
        self._stages = [
            self._with_columns(k + 1, *self.family.spaces(one_task(tasks, k)), options) for k in range(n_tasks(tasks))
        ]
        names = Adaptations(self.family, make).names
        return Adaptations(self.family, make, [*_of_column(names, n_tasks(tasks)), *head_of(names)])

    def _first_heads(self) -> Params:
        heads: Params = {}
        for k, adaptation in enumerate(self._stages):
            fresh = adaptation.init(int(seed_sequence(self.seed, "heads", k).generate_state(1)[0]) % 2**31)
            heads |= {f"{HEADS}{k}/{name}": fresh[name] for name in head_of(fresh)}
        return heads

    def policy_of(self, index: int) -> AdaptedPolicy:
        """Return the policy for one of the training tasks, of the columns up to its own, with its own head.

        :param index: of :attr:`training_tasks`.
        """
        index = integer(0, n_tasks(self.training_tasks) - 1)("index", index)
        return self._stages[index].policy_at({**self.theta, **self.head(index)})

    # -------------------------------------------------------------------------------------------------------- training
    def _blocks_of(self, chosen: Sequence[int], streams: Streams) -> list[Block]:
        tasks, places = take_tasks(self.training_tasks, np.array(chosen)), tuple(range(len(chosen)))
        own = expand(self.head(self.stage), len(chosen))
        request = Request(tasks, [], streams.of(places), self._amount(None, None), own)
        return [Block(places, self._stages[self.stage], request)]

    def _moving(self, chosen: Sequence[int]) -> Callable[[str], bool]:
        names = [name.removeprefix(POLICY) for name in self.params if name.startswith(POLICY)]
        own = {f"{POLICY}{name}" for name in _of_column(names, self.stage)}
        return lambda name: name in own or name.startswith(f"{HEADS}{self.stage}/")


def _of_column(names: Sequence[str], column: int) -> list[str]:
    """Return the tensors that belong to a column."""
    modules = tuple(f"{module}." for module in Columns.modules_of(column))
    return [name for name in names if name.startswith(modules)]
