"""What every meta-iteration consists of: tasks, blocks, a step that is taken as a whole, and what is logged of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from metarl.envs.family import draw_tasks
from metarl.envs.tasks import Tasks, n_tasks, one_task
from metarl.errors import DivergedError
from metarl.meta.adaptation.base import Outcome, PathWatcher, Walk
from metarl.meta.blocks.cut import Block
from metarl.meta.evaluating import Evaluates
from metarl.meta.outer.base import Outer
from metarl.meta.progress import Timer, Work
from metarl.meta.unfinished import Halfway, Unfinished
from metarl.params import Params, norm
from metarl.streams import stream

LARGEST_GROWTH = 100.0
"""The factor by which a meta-iteration may lengthen the parameters. Fresh ones have a norm of about 10, and a trust
region on a handful of episodes, whose curvature is nearly singular, has been seen to make it 13 times that."""
LARGEST_ENTRY = 100.0
"""The root mean square entry beyond which they may not grow at all; fresh ones have one of about 0.1."""


def require_sound(before: Params, after: Params) -> None:
    """Raise where a meta-iteration made the parameters explode, long before they are no numbers.

    :raises DivergedError: the norm of ``after`` is more than :data:`LARGEST_GROWTH` times that of ``before`` (or 1), or
        grew although its entries are beyond :data:`LARGEST_ENTRY` already.
    """
    new, beyond = norm(after), LARGEST_ENTRY * math.sqrt(sum(tensor.numel() for tensor in after.values()))
    if new <= min(LARGEST_GROWTH, beyond):
        return  # whatever the old norm was
    old = norm(before)
    if not new <= min(LARGEST_GROWTH * max(old, 1.0), max(old, beyond)):  # a NaN is none of these either
        raise DivergedError(
            f"the norm of the parameters went from {old:.4g} to {new:.4g}: training diverges; take a smaller "
            "learning_rate in outer_kwargs, or a smaller inner_lr"
        )


class Iterates(Evaluates):
    """A meta-algorithm whose meta-iteration learns the blocks of a meta-batch and takes one outer step.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    outer_optimizer: Outer
    """Takes the outer steps."""

    def _sample_tasks(self) -> Tasks:
        """Return the training tasks of this meta-iteration."""
        return draw_tasks(self.family, stream(self.seed, "tasks", self.n_iterations), self.meta_batch_size)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Do a meta-iteration as a whole or not at all: an error leaves parameters and outer optimiser as they were.

        One that a callback stops inside goes on the next time, from what its walks have done, unless the model was
        changed meanwhile.
        """
        address, going_on = (self.seed, self.n_iterations), self._unfinished
        if going_on is None or not going_on.is_of(address, self.params):
            going_on = Unfinished(address, self.params, self.outer_optimizer.state())
        self._unfinished = going_on
        try:
            yield
        except BaseException as error:
            self.params = going_on.params
            self.outer_optimizer.load_state(going_on.outer, self.meta_params)
            self._unfinished = going_on.stopped() if isinstance(error, Halfway) else None
            raise
        self._unfinished = None

    def _learn_block(
        self,
        block: Block,
        timer: Timer,
        *,
        query: bool = False,
        keep: bool = False,
        second_order: bool = False,
        watcher: PathWatcher | None = None,
    ) -> Outcome:
        """Learn every task of a block, inside :meth:`_whole`, and tell callbacks of every unit of work that is done.

        See :meth:`metarl.meta.adaptation.base.Adaptation.walk`.

        :raises Halfway: a callback asked for a stop.
        """
        how = {"query": query, "keep": keep, "second_order": second_order}
        return self._walked(block, timer, **how, watcher=watcher).outcome()

    def _walked(self, block: Block, timer: Timer, **how: Any) -> Walk:
        """Return the walk of a block, with all its units done; see :meth:`_learn_block`."""
        assert self._unfinished is not None
        walk = self._unfinished.take(block.adaptation.walk(self.theta, block.request, **how))
        while walk.n_done < walk.n_units:
            walk.work(timer)
            self._tell_of(walk)
        return walk

    def _tell_of(self, walk: Walk) -> None:
        if not self._listeners:
            return
        assert self._unfinished is not None
        first = self.family.describe(one_task(walk.tasks, 0))
        more = n_tasks(walk.tasks) - 1
        work = Work(
            f"{first} and {more} more" if more else first, walk.n_done, walk.n_units, self._unfinished.env_steps
        )
        answers = [listener.on_unit(work) for listener in self._listeners]
        if not all(answers):
            raise Halfway

    def _move(self, moved: Params, outcomes: Sequence[Outcome]) -> None:
        """Replace the meta-parameters by what an outer step made of them, and statistics by those of the tasks learnt.

        :raises DivergedError: the norm of the parameters exploded.
        """
        require_sound(self.meta_params, moved)
        self.params = {**self.params, **moved, **self.adaptation.carried(self.theta, outcomes)}

    def _statistics(self, parts: Sequence[Outcome], timer: Timer) -> dict[str, float]:
        """Return what a meta-iteration saw.

        :param parts: what came of its tasks, in one part or several.
        """
        returns = np.concatenate([part.returns for part in parts])
        known = {k: column[~np.isnan(column)] for k, column in enumerate(returns.T)}
        after = {k: float(np.mean(column)) for k, column in known.items() if len(column)}
        steps = sum(part.n_steps for part in parts)
        last_steps = sum(float(np.nan_to_num(part.ep_steps[:, -1]).sum()) for part in parts)
        n_episodes = sum(int(part.n_episodes[..., -1].sum()) for part in parts)
        self._n_ended = sum(int(part.n_episodes.sum()) for part in parts)
        done = float(self.n_iterations + 1)
        stats = {"meta/n_meta_iterations": done, "train/n_updates": done}
        if after:
            first, last = min(after), max(after)
            stats["rollout/ep_rew_mean"] = stats["meta/post_adapt_rew"] = after[last]
            stats["meta/pre_adapt_rew"] = after[first]
            stats["meta/adapt_gain"] = after[last] - after[first]
        if n_episodes:
            stats["rollout/ep_len_mean"] = last_steps / n_episodes
        for k, value in after.items():
            stats[f"inner/return_after_{k}"] = value
        for phase, seconds in timer.seconds.items():
            stats[f"time/{phase}"] = seconds
        if "sampling" in timer.seconds:
            stats["time/sampling_fps"] = steps / max(timer.seconds["sampling"], 1e-9)
        log_std = self.params.get("policy/log_std")
        if log_std is not None:
            stats["train/std"] = float(log_std.exp().mean())
        return stats
