"""Collecting episodes, batched over tasks and copies.

One policy evaluation and one native call per time step serve every copy of every task; there is no Python loop over
environments. Tensors are made here, and of what was collected in ``samples.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.networks.acting import Acting
from metarl.agents.networks.distributions import draw_noise
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import (
    ACTIONS,
    ENV,
    Episodes,
    amount_of,
    kept_info,
    kept_rewards,
    require_finite,
    require_fit,
    require_reported,
)
from metarl.envs.family import Family, State
from metarl.envs.promises import require_sound_step, sound_start
from metarl.envs.stepping import Reached, Stepper, stepper_of
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.params import Params
from metarl.streams import generators

N_BLOCKS = 2
"""Blocks of tasks that are collected side by side where a family gains from it: while one block waits for its policy,
the other's physics runs. A fixed number, so that nothing depends on the number of threads."""
COPIES_OF_A_PART = 4
"""Fewest copies of a single task that are a block of their own: threads of physics are handed rows in fours."""
PATIENCE = 1e-4
"""How long a block waits for another one's policy before it asks its own, s: longer than a small network takes."""


def collect(
    family: Family,
    policy: Acting,
    params: Params,
    tasks: Tasks,
    seeds: Sequence[np.random.SeedSequence],
    *,
    n_episodes: int | None = None,
    n_transitions: int | None = None,
    info: Sequence[str] = (),
    deterministic: bool = False,
    parallel: Parallel | None = None,
) -> Episodes:
    """Run whole episodes of every task with its own parameters.

    What a task collects does not depend on the others, bit for bit, for any number of copies and any size of actions;
    layers that are no multiple of 4 units wide, or narrower than 12, may round otherwise beside other tasks.

    :param params: stacked tensors, ``[task, …]``.
    :param tasks: tasks of equal spaces.
    :param seeds: one stream for each task; task ``i`` draws from ``seeds[i]`` only, see :func:`split_streams`.
    :param n_episodes: episodes a task, or
    :param n_transitions: at least that many env steps a task, in whole episodes (the fewest that suffice). The last of
        them is a long one more often than not, so where lengths vary a task's episodes are too long on average: with
        lengths of 1 to 7 by 4.4% at 20 env steps, 1.7% at 60, 0.5% at 200, and its mean return leans towards theirs.
        The reference stops in the same way.
    :param info: which of the terms that steps report to keep.
    :param deterministic: take the most likely action in each state, and draw none.
    :param parallel: the threads that collect blocks of tasks side by side, where the family gains from it; results do
        not depend on them.
    :raises ConfigError: the policy has other spaces than the tasks, or steps do not report what was asked for.
    :raises NonFiniteError: a NaN or infinite reward, observation or action; names the task.
    """
    n_episodes, n_transitions = amount_of(n_episodes, n_transitions)
    require_fit(policy, *family.spaces(one_task(tasks, 0)), family.id)
    how = _How(family, policy, tuple(info), deterministic, parallel or Parallel(1))
    if n_episodes is not None:
        return _collect_wave(how, params, tasks, how.streams(seeds), n_episodes)
    assert n_transitions is not None
    return _collect_transitions(how, params, tasks, seeds, n_transitions)


@dataclass(frozen=True)
class _How:
    """How episodes are collected: see :func:`collect`."""

    family: Family
    policy: Acting
    info: tuple[str, ...]
    deterministic: bool
    parallel: Parallel

    def streams(self, seeds: Sequence[np.random.SeedSequence], wave: int = 0) -> list[Streams]:
        """Return each task's generators for a wave of episodes: in the first those of :func:`split_streams`, without
        the policy's where it draws nothing.

        A family may draw at every step, and a batch is stepped until its last task ends: streams that went on from wave
        to wave would make a task's numbers depend on the others.
        """
        key = (2, wave) if wave else ()
        parts = (ENV,) if self.deterministic else (ENV, ACTIONS)
        return list(zip(*(generators(seeds, *key, part) for part in parts), strict=True))


Streams = tuple[np.random.Generator, ...]
"""The generators of a task: the environment's, and the policy's where actions are sampled."""


def _collect_wave(
    how: _How,
    params: Params,
    tasks: Tasks,
    streams: Sequence[Streams],
    n_envs: int,
) -> Episodes:
    """Run one episode in each of ``n_envs`` copies of every task."""
    family, policy, parallel = how.family, how.policy, how.parallel
    n, horizon = len(streams), family.horizon
    discrete = isinstance(policy.action_space, spaces.Discrete)
    action_shape = policy.action_space.shape or ()
    seen = family.spaces(one_task(tasks, 0))[0]
    # Time comes first in memory, so that a step writes one contiguous piece; the public view has it last.
    buffers = Episodes(
        obs=np.zeros((horizon, n, n_envs, *seen.shape), dtype=seen.dtype),
        actions=np.zeros((horizon, n, n_envs, *action_shape), dtype=np.int64 if discrete else np.float32),
        rewards=np.zeros((horizon, n, n_envs), dtype=np.float64),
        mask=np.zeros((horizon, n, n_envs), dtype=bool),
        terminated=np.zeros((n, n_envs), dtype=bool),
        final_obs=np.empty((n, n_envs, *seen.shape), dtype=seen.dtype),
    )

    def start(block: slice) -> _Start:
        return _start(how, take_tasks(tasks, block), streams[block], horizon, n_envs)

    turn = Lock()

    def run(block: slice, begun: _Start | None = None, copies: slice = slice(None)) -> _Block:
        own = {name: tensor[block] for name, tensor in params.items()}
        out = _rows(buffers, block, copies)
        with torch.inference_mode():
            return _collect_block(how, own, (begun or start(block)).copies(copies), out, turn)

    if _copies_part(how, n, n_envs):
        blocks, axis = [slice(i * n_envs // N_BLOCKS, (i + 1) * n_envs // N_BLOCKS) for i in range(N_BLOCKS)], 2
        begun = start(slice(None))
        with family.shared_by(N_BLOCKS):
            parts = parallel.map(lambda copies: run(slice(None), begun, copies), blocks)
    else:
        side_by_side, axis = min(N_BLOCKS, n) if family.concurrent else 1, 1
        # Of a family that bounds how many copies run at once, block comes after block.
        at_once = n if family.max_copies is None else max(1, family.max_copies // n_envs)
        in_turn = -(-n // at_once)
        n_blocks = min(n, side_by_side * in_turn)
        blocks = [slice(i * n // n_blocks, (i + 1) * n // n_blocks) for i in range(n_blocks)]
        with family.shared_by(min(side_by_side, parallel.n_threads)):
            parts = [
                part
                for i in range(0, n_blocks, side_by_side)
                for part in parallel.map(run, blocks[i : i + side_by_side])
            ]
    longest = max(length for length, _ in parts)
    terms = {name: [kept_info(np.stack(reported[name])) for _, reported in parts] for name in how.info}
    info = {name: _time_last(_beside(each, longest, axis)) for name, each in terms.items()}
    episodes = buffers.map(lambda axes, each: _time_last(each[:longest]) if "time" in axes else each)
    rewards = kept_rewards(episodes.rewards, episodes.mask, family.id)
    episodes = replace(episodes, rewards=rewards, info=info)
    require_finite(family, tasks, episodes)
    return episodes


def _time_last(array: np.ndarray) -> np.ndarray:
    """Return an array ``[time, task, env, …]`` as ``[task, env, time, …]``, without copying."""
    return array.transpose(1, 2, 0, *range(3, array.ndim))


def _beside(blocks: Sequence[np.ndarray], longest: int, axis: int) -> np.ndarray:
    """Join what blocks reported, ``[time, task, env, …]`` each, along the axis that they are parts of."""

    def padded(array: np.ndarray) -> np.ndarray:
        width = [(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return array if len(array) == longest else np.pad(array, width)

    return np.concatenate([padded(array) for array in blocks], axis=axis)


def _rows(buffers: Episodes, block: slice, copies: slice) -> Episodes:
    """Return the part of buffers ``[time, task, env, …]`` that belongs to a block of tasks, or of copies."""
    return buffers.map(lambda axes, each: each[:, block, copies] if "time" in axes else each[block, copies])


def _copies_part(how: _How, n_tasks: int, n_envs: int) -> bool:
    """Whether the copies of a single task are collected in two blocks, as tasks are: where that changes no bit."""
    family, policy = how.family, how.policy
    alone = n_tasks == 1 and family.concurrent and not family.draws_in_steps and family.max_copies is None
    enough = policy.rowwise and n_envs >= N_BLOCKS * COPIES_OF_A_PART
    # On one thread a second block is more calls for the same physics.
    return alone and enough and how.parallel.n_threads >= N_BLOCKS


@dataclass(frozen=True)
class _Start:
    """Where the episodes of a block of tasks begin, and what they draw from."""

    tasks: Tasks
    state: State
    obs: np.ndarray
    rngs: Sequence[np.random.Generator]
    noise: np.ndarray | None
    """What actions are sampled with, ``[time, task, env, …]``."""

    def copies(self, part: slice) -> _Start:
        """Return the part that belongs to some copies of each task."""
        if part == slice(None):
            return self
        state = {name: value[:, part] for name, value in self.state.items()}
        noise = None if self.noise is None else self.noise[:, :, part]
        return replace(self, state=state, obs=self.obs[:, part], noise=noise)


def _start(how: _How, tasks: Tasks, streams: Sequence[Streams], horizon: int, n_envs: int) -> _Start:
    family, policy = how.family, how.policy
    rngs = [own[0] for own in streams]
    batch = len(rngs), n_envs
    state, obs = sound_start(family, family.reset(tasks, rngs, n_envs), batch, policy.observation_space)
    noise = None if how.deterministic else _noise(policy, [own[1] for own in streams], horizon, n_envs)
    return _Start(tasks, state, obs, rngs, noise)


_Block = tuple[int, dict[str, list[np.ndarray]]]
"""The length of a block's longest episode, and of what was asked for what each step reported."""


def _collect_block(how: _How, params: Params, start: _Start, out: Episodes, turn: Lock) -> _Block:
    """Fill ``out``, whose arrays are ``[time, task, env, …]``.

    :param turn: of all blocks: the one that holds it asks its policy. Each of PyTorch's operators gives up Python's
        lock, and two small networks that are evaluated at once wait for each other at every one of them; in turn, one
        is evaluated while the other block's physics runs. Large ones gain from being evaluated at once, so a block
        waits for :data:`PATIENCE` only.
    """
    family, policy = how.family, how.policy
    horizon, n, n_envs = out.mask.shape
    tasks, state, obs, rngs, noise = start.tasks, start.state, start.obs, start.rngs, start.noise
    act = policy.actor(params)
    active, lengths = np.ones((n, n_envs), dtype=bool), np.full((n, n_envs), horizon)
    rows, kept, min_rows = np.arange(n)[:, None], None, policy.min_rows
    stepper: Stepper | None = None
    # Tensors of all time steps at once, on the arrays' memory, cost less than one after the other.
    looks = torch.from_numpy(out.obs).unbind()
    draws = [None] * horizon if noise is None else torch.from_numpy(noise).unbind()
    for t in range(horizon):
        out.obs[t] = obs
        look, drawn = looks[t], draws[t]
        if kept is not None:
            look = torch.from_numpy(obs[rows, kept])
            drawn = None if noise is None else torch.from_numpy(noise[t][rows, kept])
        ours = turn.acquire(timeout=PATIENCE)
        try:
            chosen = act(look, drawn).numpy()
        finally:
            if ours:
                turn.release()
        if kept is None:
            out.actions[t] = chosen
            actions = policy.actions_to_env(chosen)
        else:
            out.actions[t][rows, kept] = chosen
            actions = actions.copy()
            actions[rows, kept] = policy.actions_to_env(chosen)
        if stepper is None:
            first = family.step(tasks, state, actions, rngs, active)
            require_sound_step(family, first, (n, n_envs), policy.observation_space)
            require_reported(how.info, first.info, family.id)
            stepper = stepper_of(family, tasks, first.state, rngs, how.info)
            reached = Reached(first.obs, first.terminated, first.ended)
        else:
            reached = stepper.step(actions, active)
        obs, terminated, ended = reached
        if terminated is None or ended is None:
            continue
        over = ended & active
        if over.any():
            out.terminated[over] = terminated[over]
            out.final_obs[over] = obs[over]
            lengths[over] = t + 1
            active = active & ~over
            left = int(active.sum(1).max())
            if left == 0:
                break
            if max(left, min_rows) <= 0.75 * look.shape[1]:
                kept = np.argsort(~active, axis=1, kind="stable")[:, : max(left, min_rows)]
    assert stepper is not None
    out.final_obs[active] = obs[active]
    np.less(np.arange(horizon)[:, None, None], lengths, out=out.mask)
    rewards, terms = stepper.earned()
    out.rewards[0] = first.reward
    for reward, place in zip(rewards, out.rewards[1:], strict=False):
        place[:] = reward
    return t + 1, {name: [first.info[name], *terms[name]] for name in how.info}


def _noise(policy: Acting, rngs: Sequence[np.random.Generator], horizon: int, n_envs: int) -> np.ndarray:
    """Return what actions are sampled with, ``[time, task, env, …]``."""
    first = draw_noise(policy.action_space, rngs[0], (horizon, n_envs))
    noise = np.empty((horizon, len(rngs), *first.shape[1:]), dtype=np.float32)
    noise[:, 0] = first
    for i in range(1, len(rngs)):
        noise[:, i] = draw_noise(policy.action_space, rngs[i], (horizon, n_envs))
    return noise


def _collect_transitions(
    how: _How, params: Params, tasks: Tasks, seeds: Sequence[np.random.SeedSequence], n_transitions: int
) -> Episodes:
    """Run waves of episodes until every task has enough, then keep the shortest sufficient prefix of each task."""
    n_envs = -(-n_transitions // how.family.horizon)
    waves: list[Episodes] = []
    steps = np.zeros(n_tasks(tasks), dtype=np.int64)
    while (short := np.flatnonzero(steps < n_transitions)).size:
        own = {name: tensor[torch.from_numpy(short)] for name, tensor in params.items()}
        streams = how.streams([seeds[int(i)] for i in short], len(waves))
        wave = _collect_wave(how, own, take_tasks(tasks, short), streams, n_envs)
        waves.append(_scatter(wave, short, len(seeds)))
        steps += waves[-1].task_steps
    episodes = _join(waves)
    lengths = episodes.lengths
    before = np.cumsum(lengths, axis=1) - lengths
    keep = (before < n_transitions) & (lengths > 0)
    # Kept episodes move to the front, so that what is cut off holds nothing.
    order = np.argsort(~keep, axis=1, kind="stable")[:, : int(keep.sum(1).max())]
    rows = np.arange(len(seeds))[:, None]
    kept = replace(episodes, mask=episodes.mask & keep[..., None])
    return kept.map(lambda axes, each: each[rows, order])


def _scatter(wave: Episodes, index: np.ndarray, n: int) -> Episodes:
    """Return ``wave`` with empty rows for the tasks that took no part."""

    def spread(axes: tuple[str, ...], array: np.ndarray) -> np.ndarray:
        full = np.zeros((n, *array.shape[1:]), dtype=array.dtype)
        full[index] = array
        return full

    return wave.map(spread)


def _join(waves: Sequence[Episodes]) -> Episodes:
    """Join waves along the env axis, padding to the longest."""
    longest = max(wave.mask.shape[2] for wave in waves)

    def pad(array: np.ndarray) -> np.ndarray:
        width = [(0, 0)] * array.ndim
        width[2] = (0, longest - array.shape[2])
        return np.pad(array, width)

    def join(axes: tuple[str, ...], *arrays: np.ndarray) -> np.ndarray:
        return np.concatenate([pad(array) if "time" in axes else array for array in arrays], axis=1)

    return waves[0].map(join, *waves[1:])
