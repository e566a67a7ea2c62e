"""What every meta-iteration consists of: tasks, blocks, a step that is taken as a whole, and what is logged of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from metarl.envs.family import draw_tasks
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.errors import ConfigError, DivergedError, WorkerError
from metarl.meta.adaptation.base import Outcome, PathWatcher, Streams, Walk
from metarl.meta.blocks.cut import Block
from metarl.meta.evaluating import Evaluates
from metarl.meta.outer.base import Outer
from metarl.meta.progress import Timer, Work
from metarl.meta.unfinished import UNFINISHED, Halfway, Unfinished
from metarl.meta.workers.modules import modules_of
from metarl.meta.workers.pool import Message
from metarl.params import Params, grouped, norm
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
    beyond = LARGEST_ENTRY * math.sqrt(sum(tensor.numel() for tensor in after.values()))
    about = math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in after.values()))
    if about <= 0.5 * min(LARGEST_GROWTH, beyond):
        return  # whatever the old norm was, and however the new one is rounded
    new, old = norm(after), norm(before)
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

        One that a callback stops inside, or whose worker process ended, goes on the next time, from what its walks have
        done, unless the model was changed meanwhile.
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
            self._unfinished = going_on.stopped() if isinstance(error, Halfway | WorkerError) else None
            raise
        self._unfinished = None

    @property
    def rates_in_training(self) -> list[float]:
        """The learning rates of the inner steps that a meta-iteration takes."""
        return self.rates

    def _training_blocks(self, indices: Sequence[int]) -> list[Block]:
        """Return the blocks of some tasks of this meta-iteration.

        :param indices: their places in the meta-batch.
        """
        tasks = take_tasks(self._sample_tasks(), np.array(indices))
        streams = Streams(self.seed, "train", self.n_iterations).of(indices)
        return self._blocks(tasks, self.rates_in_training, streams, self._amount(None, None))

    def _watcher(self, block: Block) -> PathWatcher | None:
        """Return what is to be told of every segment of a block; nothing, unless a wrapper watches."""
        del block
        return None

    def _learn_blocks(
        self,
        blocks: Sequence[Block],
        timer: Timer,
        *,
        watchers: Sequence[PathWatcher | None] = (),
        **how: bool,
    ) -> list[Outcome]:
        """Learn every task of some blocks, inside :meth:`_whole`, in worker processes where there are some.

        :param watchers: one for each block, made by :meth:`_watcher`; none where nothing is watched.
        :param how: see :meth:`_learn_block`.
        :raises Halfway: a callback asked for a stop.
        """
        watchers = watchers or [None] * len(blocks)
        if min(self.n_workers, len(blocks)) < 2:
            return [
                self._learn_block(block, timer, watcher=watcher, **how)
                for block, watcher in zip(blocks, watchers, strict=True)
            ]
        assert self._unfinished is not None
        walks = [
            self._unfinished.take(block.adaptation.walk(self.theta, block.request, watcher=watcher, **how))
            for block, watcher in zip(blocks, watchers, strict=True)
        ]
        left = [number for number, walk in enumerate(walks) if walk.n_done < walk.n_units]

        def told(job: int, answer: Message) -> None:
            walk, (document, state) = walks[left[job]], answer
            timer.add(document["seconds"])
            walk.load_state(state)
            self._tell_of(walk)

        if left:
            n_threads = max(1, self.parallel.n_threads // self.n_workers)
            workers, modules = self._workers.get(), modules_of(self.family, self._classes())
            workers.start(self._state_of_workers, self.seed, modules, min(self.n_workers, len(left)), n_threads)
            workers.run([functools.partial(self._job, blocks[n], walks[n], how) for n in left], told)
        return [walk.outcome() for walk in walks]

    def _state_of_workers(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what workers load.

        :raises ConfigError: a family that only this process has.
        """
        if not self._env_by_name:
            raise ConfigError(
                f"n_workers={self.n_workers}: other processes cannot make {self.family.id}, which was given as an "
                "object: register it, and give its name"
            )
        tensors, document = self.state()
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(UNFINISHED)}, document

    def _classes(self) -> list[type]:
        """Return the classes that a model consists of and that somebody may have registered."""
        return [type(self), type(self.outer_optimizer)]

    def _job(self, block: Block, walk: Walk, how: Mapping[str, bool]) -> Message:
        """Return what a worker is told of a block."""
        document = {"iteration": self.n_iterations, "indices": block.request.streams.indices}
        state = grouped(walk.state(), "walk/") if walk.n_done else {}
        return {**document, "how": dict(how)}, {**grouped(self.params, "params/"), **state}

    def walk_of(self, indices: Sequence[int], **how: bool) -> Walk:
        """Return the walk of a block of this meta-iteration, as a worker process does.

        :param indices: the places of its tasks in the meta-batch.
        :param how: see :meth:`_learn_block`.
        """
        (block,) = self._training_blocks(indices)
        return block.adaptation.walk(self.theta, block.request, watcher=self._watcher(block), **how)

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
