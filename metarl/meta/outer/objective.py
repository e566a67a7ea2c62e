"""The meta-objective of one meta-iteration: a mean over the tasks of all blocks.

This is the only seam between meta-wrappers and outer optimisers. Blocks answer with sums over their tasks, which are
added in the order of blocks, so that neither threads nor machines change a bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from metarl.errors import ConfigError
from metarl.meta.blocks.derivatives import BlockDerivatives
from metarl.params import Params, mean, norm, subtract

Result = TypeVar("Result")


@dataclass(frozen=True)
class MetaGradient:
    """What one evaluation of the meta-gradient says.

    :param loss: the meta-objective, a mean over tasks; NaN where it is not visible.
    :param gradient: its gradient with respect to the meta-parameters.
    :param first_order: the first-order gradient beside one of second order.
    """

    loss: float
    gradient: Params
    first_order: Params | None = None

    @functools.cached_property
    def norm(self) -> float:
        """‖g‖ over all tensors."""
        return norm(self.gradient)

    @property
    def second_order_share(self) -> float | None:
        """‖g_MAML − g_FOMAML‖ / ‖g_MAML‖; None for a first-order gradient."""
        if self.first_order is None:
            return None
        return norm(subtract(self.gradient, self.first_order)) / max(self.norm, 1e-30)


class MetaObjective(Protocol):
    """What outer optimisers ask for."""

    def gradient(self) -> MetaGradient:
        """Return the meta-gradient at the parameters that collected the batches."""
        ...

    def curvature_product(self, vector: Params) -> Params:
        """Return the Hessian of the mean KL divergence times ``vector``, at the same parameters."""
        ...

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Adapt ``params`` again and return the meta-objective and the mean KL divergence."""
        ...


class BlockObjective:
    """The learner's loss on the query batches at the adapted parameters, a mean over the tasks of all blocks.

    :param blocks: what they answer.
    :param answer: maps a function over blocks and returns the results in their order; wherever blocks live, and in
        whichever order they are asked, the bits are the same. None asks one after the other.
    """

    def __init__(
        self,
        blocks: Sequence[BlockDerivatives],
        answer: Callable[[Callable[[BlockDerivatives], Result], Sequence[BlockDerivatives]], list[Result]]
        | None = None,
    ) -> None:
        self._blocks = list(blocks)
        self._answer = answer
        self._n_tasks = sum(block.n_tasks for block in blocks)

    def gradient(self) -> MetaGradient:
        """Return the meta-gradient; see :class:`MetaObjective`."""
        parts = self._ask(lambda block: block.gradient())
        gradient = mean([part.gradient for part in parts], self._n_tasks)
        loss = sum(part.loss for part in parts) / self._n_tasks
        first = [part.first_order for part in parts if part.first_order is not None]
        return MetaGradient(loss, gradient, mean(first, self._n_tasks) if first else None)

    def curvature_product(self, vector: Params) -> Params:
        """Return the curvature times ``vector``; see :class:`MetaObjective`."""
        return mean(self._ask(lambda block: block.curvature_product(vector)), self._n_tasks)

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Return loss and divergence of ``params``; see :class:`MetaObjective`."""
        parts = self._ask(lambda block: block.evaluate(params))
        return sum(loss for loss, _ in parts) / self._n_tasks, sum(kl for _, kl in parts) / self._n_tasks

    def _ask(self, question: Callable[[BlockDerivatives], Result]) -> list[Result]:
        if self._answer is None:
            return [question(block) for block in self._blocks]
        return self._answer(question, self._blocks)  # type: ignore[return-value,arg-type]


class KnownGradient:
    """A meta-objective of which the gradient is all that is known: a watched path's, or a stock algorithm's.

    :param result: the gradient.
    """

    def __init__(self, result: MetaGradient) -> None:
        self._result = result

    def gradient(self) -> MetaGradient:
        """Return the meta-gradient."""
        return self._result

    def curvature_product(self, vector: Params) -> NoReturn:
        """Raise :class:`ConfigError`: a trust region has nothing to go by."""
        raise ConfigError("this meta-objective has no policy to bound: use outer='adam' or 'sgd'")

    def evaluate(self, params: Params) -> NoReturn:
        """Raise :class:`ConfigError`: a trust region has nothing to go by."""
        self.curvature_product(params)
