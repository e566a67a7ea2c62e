"""How a stack of tasks goes down a learner's loss, one optimiser's step after the other, and who may look on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from metarl.agents.derivatives.base import Derivatives
from metarl.agents.learners.optimizers import FlatRate, Layout, Optimizer, clip_norms, take_step
from metarl.agents.learners.watching import FlatParams, LearnerState, Watcher
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel, single_threaded_torch
from metarl.agents.sampling.samples import Samples
from metarl.params import Params, Rate

BLOCK_TASKS = 8
BLOCK_BYTES = 2_000_000
"""Tasks that step together: past this size of one layer's activations they leave the cache and larger blocks are
slower, and a few blocks are needed for threads to share."""
SMALL_BYTES = 200_000
"""A stack whose layers have no more activations than this is one block: handing it to threads takes longer."""


def task_blocks(n_tasks: int, n_samples: int, width: int) -> list[slice]:
    """Cut a stack into blocks that depend on the sizes of the data only, never on threads.

    :param n_samples: of one task in one step.
    :param width: units of the widest layer.
    """
    task_bytes = 4 * n_samples * width
    if n_tasks * task_bytes <= SMALL_BYTES:
        return [slice(0, n_tasks)]
    size = max(1, min(BLOCK_TASKS, BLOCK_BYTES // task_bytes))
    return [slice(start, min(start + size, n_tasks)) for start in range(0, n_tasks, size)]


PART_SAMPLES, KEPT_SAMPLES = 32, 40
"""Samples of a task, at least, that one thread differentiates where a task's are cut; the second number where layers
were kept, so that adding up gradients takes a larger share."""


def sample_parts(n_samples: int, width: int, kept: bool = False) -> list[slice]:
    """Cut the samples of each task, so that a single task with a large network keeps several threads busy.

    Parts depend on the sizes of the data only, as in :func:`task_blocks`, whose parameters these are.

    :param kept: whether what the network computed of the samples was kept; two parts at least, because nothing else of
        the update is shared by threads.
    """
    n = max(2, n_samples // KEPT_SAMPLES) if kept else max(1, n_samples // PART_SAMPLES)
    if n > n_samples or 4 * n_samples * width <= BLOCK_BYTES:
        n = 1
    return [slice(i * n_samples // n, (i + 1) * n_samples // n) for i in range(n)]


Minibatch = tuple[Samples, torch.Tensor | None]
"""What one step of a block is computed on, and the tasks that take it, ``[task]`` (None: all)."""


HeadLoss = Callable[[Distribution, Samples, torch.Tensor | None], torch.Tensor]
"""The loss of each task, ``[task]``, from the policy's distribution at the samples and the critic's values there."""


def descend(
    policy: FunctionalPolicy,
    head_loss: HeadLoss,
    optimizer: Optimizer,
    state: LearnerState,
    rate: Rate,
    blocks: Sequence[slice],
    minibatches: Callable[[slice], Iterator[Minibatch]],
    *,
    max_grad_norm: float | None = None,
    stop: Callable[[Distribution, Samples], torch.Tensor] | None = None,
    parts: Sequence[slice] = (slice(None),),
    parallel: Parallel | None = None,
    watcher: Watcher | None = None,
) -> LearnerState:
    """Return the state after one step of the optimiser for each minibatch.

    Blocks go down side by side. Without a watcher each runs to its end on its own; with one they wait for each other
    after every step, and the watcher is told by the calling thread, in the order of the steps and with the whole stack
    in one call. Either way the numbers are the same.

    :param policy: whose tensors go down the loss.
    :param head_loss: the loss.
    :param optimizer: what turns gradients into steps.
    :param state: where to start; it is not changed, unless it is spent.
    :param rate: the optimiser's learning rate.
    :param blocks: of tasks, see :func:`task_blocks`.
    :param minibatches: yields those of a block, in order.
    :param max_grad_norm: each task's gradient is scaled down to this norm.
    :param stop: tells, from the distribution at a minibatch's samples, which tasks end before its step, ``[task]``.
    :param parts: of a minibatch's samples, whose gradients are computed side by side and added; not with ``stop``.
    :param parallel: the threads that blocks run on.
    """
    threads = parallel or Parallel(1)
    layout = Layout(state.params)
    room = dict(state.room)
    if state.spent and isinstance(state.params, FlatParams):
        flat, moments = state.params.flat, state.optimizer
    else:
        flat, moments = layout.flatten(state.params), {name: tensor.clone() for name, tensor in state.optimizer.items()}
    gradient = _room(room, "gradient", flat)
    losses = flat.new_zeros(len(flat))
    moved = torch.zeros(len(flat), dtype=torch.bool)
    flat_rate: FlatRate = rate if not isinstance(rate, dict) else layout.flatten(_spread(rate, state.params))

    def walk(block: slice) -> Iterator[bool]:
        own, slope = flat[block], gradient[block]
        params, places = layout.views(own), layout.views(slope)
        own_moments = {name: tensor[block] for name, tensor in moments.items()}
        own_rate = flat_rate[block] if isinstance(flat_rate, torch.Tensor) else flat_rate
        stopped = torch.zeros(len(own), dtype=torch.bool)
        for samples, active in minibatches(block):

            def derive(piece: tuple[Samples, Params | None]) -> Derivatives:
                part, into = piece
                loss = lambda heads, values: head_loss(heads, part, values)  # noqa: E731
                return policy.differentiate(params, part.obs, loss, kept=part.kept, into=into)

            pieces = [samples] if len(parts) == 1 else [samples.part(place) for place in parts]
            rooms: list[Params | None] = [None] * len(pieces)
            if samples.kept is not None:
                further = [_room(room, f"gradient of {block.start}, {i}", own) for i in range(1, len(parts))]
                rooms = [places, *map(layout.views, further)]
            found = threads.map(derive, list(zip(pieces, rooms, strict=True)))
            if stop is not None:
                stopped |= stop(found[0].distribution, samples)
                active = ~stopped if active is None else active & ~stopped
                if stopped.all():
                    return
                if not active.any():
                    continue
            for name, place in places.items():
                if found[0].gradient[name] is not place:
                    place.copy_(found[0].gradient[name])
                for each in found[1:]:
                    place.add_(each.gradient[name])
            step = slope
            if max_grad_norm is not None:
                step = slope if watcher is None else slope.clone()  # a watcher sees the loss's gradient
                clip_norms(step, max_grad_norm)
            take_step(optimizer, own, step, own_moments, own_rate, active, threads if len(blocks) == 1 else None)
            losses[block] = sum(each.losses for each in found)
            moved[block] = True if active is None else active
            # A walk that waits must not hold memory that the next block could use: fresh pages cost a tenth of a step.
            del found, pieces, samples
            yield True

    walks = [walk(block) for block in blocks]
    if watcher is None:
        threads.map(lambda steps: deque(steps, maxlen=0), walks)
    else:
        before = _room(room, "before", flat).copy_(flat)
        start, end, slope = (FlatParams(layout.views(matrix), matrix) for matrix in (before, flat, gradient))
        # What a watcher adds up must not depend on the number of threads either.
        with single_threaded_torch():
            while any(threads.map(lambda steps: next(steps, False), walks)):
                watcher.segment(start, end, slope, losses, None if moved.all() else moved)
                before.copy_(flat)
                moved.zero_()
    return LearnerState(FlatParams(layout.views(flat), flat), moments, room=room if state.spent else {})


def _room(room: Params, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return a matrix that holds any finite numbers, the last update's where it fits."""
    if name not in room or room[name].shape != like.shape or room[name].dtype != like.dtype:
        room[name] = torch.zeros_like(like)
    return room[name]


def _spread(rate: Params, params: Params) -> Params:
    """Return the rates of all tasks, stacked."""
    return {name: rate[name].expand(tensor.shape) for name, tensor in params.items()}
