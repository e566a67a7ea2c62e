"""What MALTML and OML share: a meta-batch is of families of tasks, whose tasks start from their family's parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from metarl.agents.derivatives.levels import spread
from metarl.agents.learners.registry import Abilities
from metarl.checks import COUNT
from metarl.envs.family import draw_tasks
from metarl.envs.groups import has_equal_spaces
from metarl.envs.tasks import Tasks, take_tasks
from metarl.envs.two_levels import draw_families, draw_tasks_of
from metarl.envs.views.around import two_levels
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Adaptation, Amount, Request, Streams
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.blocks.cut import BLOCK_TASKS, Block
from metarl.meta.blocks.derivatives import CHUNK_BYTES
from metarl.meta.two_levels.finetuning import contiguous
from metarl.params import Params, Rate
from metarl.streams import stream

GRAPH_BYTES = 4 * CHUNK_BYTES
"""One layer's activations of the tasks whose graph is kept at once, at most. A graph of third order holds each about a
hundred times."""


class FamilyAlgorithm(AdaptiveAlgorithm):
    """Base of the wrappers whose meta-batch is of families of tasks; one without two levels is the only family.

    The parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm`; ``meta_batch_size`` counts families.
    """

    @property
    @abstractmethod
    def _differentiates(self) -> bool:
        """Whether inner steps are differentiated, and so are plain gradient steps."""

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        if not learner.differentiable:
            return "a stock algorithm learns one task at a time: use a learner that is batched over tasks"
        return None

    def _check_learner(self) -> None:
        super()._check_learner()
        COUNT("n_inner_steps", self.n_inner_steps)

    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        if not has_equal_spaces(self.family) or self.task_local:
            reason = f"task_local={self.task_local}" if self.task_local else "has tasks of different spaces"
            raise ConfigError(f"{self.name} on {self.family.id}: {reason}, and tasks of a family share all tensors")
        adaptation = super()._make_adaptation(observation_space, action_space, options)
        assert isinstance(adaptation, BatchedAdaptation)
        if self._differentiates:
            adaptation.learner = adaptation.learner.gradient_steps(self.parallel)
        return adaptation

    def _draw(self, **sizes: int) -> list[Tasks]:
        """Draw the families of this meta-iteration, and tasks of each, family after family.

        :param sizes: by what they are for, how many of each family.
        """
        family, n, found = two_levels(self.family), self.meta_batch_size, []
        families = None
        if family is not None:
            families = draw_families(family, stream(self.seed, "families", self.n_iterations), n)
        for name, size in sizes.items():
            rng = stream(self.seed, f"tasks/{name}", self.n_iterations)
            if family is None or families is None:
                found.append(draw_tasks(self.family, rng, n * size))
            else:
                found.append(draw_tasks_of(family, rng, size, families))
        return found

    def _parts(self, size: int) -> list[slice]:
        """Cut the families of a meta-batch, by their number and the size of the data only.

        :param size: tasks of a family that are learnt together.
        """
        room = self.chunk_size or GRAPH_BYTES // (4 * self.batch_steps * self.policy.width)
        n = max(1, min(BLOCK_TASKS, room) // size)
        return [slice(i, min(i + n, self.meta_batch_size)) for i in range(0, self.meta_batch_size, n)]

    def _block(
        self,
        part: slice,
        tasks: Tasks,
        size: int,
        rates: Sequence[Rate],
        streams: Streams,
        stack: Params,
        amount: Amount | None = None,
    ) -> Block:
        """Return the tasks of some families, to be learnt from their families' parameters.

        :param part: the families' places in the meta-batch.
        :param tasks: of all families, ``size`` of each.
        :param rates: of inner steps; none where the families' parameters were learnt from the tasks before.
        :param stack: the families' parameters, ``[family, …]``.
        :param amount: what is collected; as in training if None.
        """
        places = range(part.start * size, part.stop * size)
        own, local = take_tasks(tasks, slice(places.start, places.stop)), contiguous(spread(stack, size))
        amount = amount or self._amount(None, None)
        request = Request(own, rates, streams.of(places), amount, local, learnt=not rates)
        return Block(tuple(places), self.adaptation, request)
