"""Collecting episodes, batched over tasks and copies.

One policy evaluation and one native call per time step serve every copy of every task; there is no Python loop over
environments. Tensors are made here, and of what was collected in ``samples.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.learners.rounding import warn_of_lost_digits
from metarl.agents.networks.distributions import draw_noise
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.fields import PER_EPISODE, PER_STEP, Fields
from metarl.checks import COUNT, NONE, as_array
from metarl.envs.family import Family
from metarl.envs.promises import require_sound_step, sound_start
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.envs.views.rules import as_actions, require_finite
from metarl.errors import ConfigError, DivergedError, NonFiniteError, shorten
from metarl.params import Params

N_BLOCKS = 2
"""Blocks of tasks that are collected side by side where a family gains from it: while one block waits for its policy,
the other's physics runs. A fixed number, so that nothing depends on the number of threads."""


@dataclass(frozen=True)
class Episodes(Fields):
    """Whole episodes of a batch of tasks, padded to the longest.

    :param obs: ``[task, env, time, *observation]``, float32: what the policy saw before each action.
    :param actions: ``[task, env, time, *action]``: what the policy chose, before clipping.
    :param rewards: ``[task, env, time]``, float32.
    :param mask: ``[task, env, time]``, True where a step was taken. An episode is a prefix of its row; a row without
        steps is no episode.
    :param terminated: ``[task, env]``, whether the episode ended by itself (False: cut at the horizon).
    :param final_obs: ``[task, env, *observation]``, float32: the observation after each episode's last step.
    """

    obs: np.ndarray = field(metadata=PER_STEP)
    actions: np.ndarray = field(metadata=PER_STEP)
    rewards: np.ndarray = field(metadata=PER_STEP)
    mask: np.ndarray = field(metadata=PER_STEP)
    terminated: np.ndarray = field(metadata=PER_EPISODE)
    final_obs: np.ndarray = field(metadata=PER_EPISODE)

    @property
    def n_steps(self) -> int:
        """Env steps taken, over all tasks."""
        return int(self.mask.sum())

    @property
    def task_steps(self) -> np.ndarray:
        """Env steps taken by each task, ``[task]``."""
        steps: np.ndarray = self.mask.sum((1, 2))
        return steps

    @property
    def lengths(self) -> np.ndarray:
        """Env steps of each episode, ``[task, env]``."""
        lengths: np.ndarray = self.mask.sum(-1)
        return lengths

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, ``[task, env]``, float64; NaN where a row is no episode."""
        total = np.where(self.mask, self.rewards, 0.0).sum(-1, dtype=np.float64)
        return np.where(self.mask[..., 0], total, np.nan)

    @property
    def mean_returns(self) -> np.ndarray:
        """Mean undiscounted return of each task, ``[task]``."""
        mean: np.ndarray = np.nanmean(self.returns, axis=1)
        return mean


def collect(
    family: Family,
    policy: FunctionalPolicy,
    params: Params,
    tasks: Tasks,
    seeds: Sequence[np.random.SeedSequence],
    *,
    n_episodes: int | None = None,
    n_transitions: int | None = None,
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
    :param parallel: the threads that collect blocks of tasks side by side, where the family gains from it; results do
        not depend on them.
    :raises ConfigError: the policy has other spaces than the tasks.
    :raises NonFiniteError: a NaN or infinite reward, observation or action; names the task.
    """
    n_episodes, n_transitions = _amount(n_episodes, n_transitions)
    _require_fit(policy, *family.spaces(one_task(tasks, 0)), family.id)
    parallel = parallel or Parallel(1)
    if n_episodes is not None:
        streams = [split_streams(seed) for seed in seeds]
        return _collect_wave(family, policy, params, tasks, streams, n_episodes, parallel)
    assert n_transitions is not None
    return _collect_transitions(family, policy, params, tasks, seeds, n_transitions, parallel)


def split_streams(seed: np.random.SeedSequence) -> tuple[np.random.Generator, np.random.Generator]:
    """Return the two generators of a collecting stream: the environment's and the policy's."""
    parts = [np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, part)) for part in (0, 1)]
    env, action = (np.random.Generator(np.random.PCG64(part)) for part in parts)
    return env, action


def _wave_streams(seed: np.random.SeedSequence, wave: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return the generators of a wave of episodes; the first wave has those of :func:`split_streams`.

    A family may draw at every step, and a batch is stepped until its last task ends: streams that went on from wave to
    wave would make a task's numbers depend on the others.
    """
    if wave == 0:
        return split_streams(seed)
    return split_streams(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2, wave)))


def _collect_wave(
    family: Family,
    policy: FunctionalPolicy,
    params: Params,
    tasks: Tasks,
    streams: Sequence[tuple[np.random.Generator, np.random.Generator]],
    n_envs: int,
    parallel: Parallel,
) -> Episodes:
    """Run one episode in each of ``n_envs`` copies of every task."""
    n, horizon = len(streams), family.horizon
    discrete = isinstance(policy.action_space, spaces.Discrete)
    action_shape = policy.action_space.shape or ()
    obs_shape = family.spaces(one_task(tasks, 0))[0].shape
    # Time comes first in memory, so that a step writes one contiguous piece; the public view has it last.
    buffers = Episodes(
        obs=np.zeros((horizon, n, n_envs, *obs_shape), dtype=np.float32),
        actions=np.zeros((horizon, n, n_envs, *action_shape), dtype=np.int64 if discrete else np.float32),
        rewards=np.zeros((horizon, n, n_envs), dtype=np.float64),
        mask=np.zeros((horizon, n, n_envs), dtype=bool),
        terminated=np.zeros((n, n_envs), dtype=bool),
        final_obs=np.empty((n, n_envs, *obs_shape), dtype=np.float32),
    )

    def run(block: slice) -> int:
        own = {name: tensor[block] for name, tensor in params.items()}
        with torch.inference_mode():
            return _collect_block(family, policy, own, take_tasks(tasks, block), streams[block], _rows(buffers, block))

    n_blocks = min(N_BLOCKS, n) if family.concurrent else 1
    blocks = [slice(i * n // n_blocks, (i + 1) * n // n_blocks) for i in range(n_blocks)]
    with family.shared_by(min(n_blocks, parallel.n_threads)):
        lengths = parallel.map(run, blocks)
    longest = max(lengths)
    episodes = buffers.map(lambda axes, each: np.moveaxis(each[:longest], 0, 2) if "time" in axes else each)
    episodes = replace(episodes, rewards=_kept(episodes.rewards, episodes.mask, family.id))
    _require_finite(family, tasks, episodes)
    return episodes


def _kept(rewards: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """Return rewards as they are kept, float32; those that it does not hold are said, or infinite."""
    warn_of_lost_digits(name, rewards, mask)
    with np.errstate(over="ignore"):
        return rewards.astype(np.float32)


def _rows(buffers: Episodes, block: slice) -> Episodes:
    """Return the part of buffers ``[time, task, env, …]`` that belongs to a block of tasks."""
    return buffers.map(lambda axes, each: each[:, block] if "time" in axes else each[block])


def _collect_block(
    family: Family,
    policy: FunctionalPolicy,
    params: Params,
    tasks: Tasks,
    streams: Sequence[tuple[np.random.Generator, np.random.Generator]],
    out: Episodes,
) -> int:
    """Fill ``out``, whose arrays are ``[time, task, env, …]``; return the length of the longest episode."""
    env_rngs, action_rngs = [env for env, _ in streams], [action for _, action in streams]
    horizon, n, n_envs = out.mask.shape
    batch = n, n_envs
    state, obs = sound_start(family, family.reset(tasks, env_rngs, n_envs), batch, policy.observation_space)
    first = draw_noise(policy.action_space, action_rngs[0], (horizon, n_envs))
    noise = np.empty((horizon, n, *first.shape[1:]), dtype=np.float32)
    noise[:, 0] = first
    for i in range(1, n):
        noise[:, i] = draw_noise(policy.action_space, action_rngs[i], (horizon, n_envs))
    active = np.ones((n, n_envs), dtype=bool)
    rows, kept, min_rows = np.arange(n)[:, None], None, policy.min_rows
    for t in range(horizon):
        out.obs[t] = obs
        seen, drawn = (obs, noise[t]) if kept is None else (obs[rows, kept], noise[t][rows, kept])
        chosen = policy.distribution(params, torch.from_numpy(seen)).sample(torch.from_numpy(drawn))
        if kept is None:
            out.actions[t] = chosen.numpy()
            actions = policy.actions_to_env(chosen)
        else:
            out.actions[t][rows, kept] = chosen.numpy()
            actions = actions.copy()
            actions[rows, kept] = policy.actions_to_env(chosen)
        step = family.step(tasks, state, actions, env_rngs, active)
        if t == 0:
            require_sound_step(family, step, batch, policy.observation_space)
        out.rewards[t] = step.reward
        out.mask[t] = active
        state, obs = step.state, step.obs
        ended = step.terminated & active
        if ended.any():
            out.terminated[ended] = True
            out.final_obs[ended] = obs[ended]
            active = active & ~ended
            left = int(active.sum(1).max())
            if left == 0:
                return t + 1
            if max(left, min_rows) <= 0.75 * seen.shape[1]:
                kept = np.argsort(~active, axis=1, kind="stable")[:, : max(left, min_rows)]
    out.final_obs[active] = obs[active]
    return int(horizon)


def _require_finite(family: Family, tasks: Tasks, episodes: Episodes) -> None:
    """Raise for the first number in time that is not finite: it is what the others come from."""
    found: list[tuple[int, int, str, int, int]] = []
    for rank, name in enumerate(("obs", "actions", "rewards")):
        bad = ~np.isfinite(getattr(episodes, name))
        if bad.any():
            bad = bad.reshape(*episodes.mask.shape, -1).any(-1) & episodes.mask
        if bad.any():
            where = np.argwhere(bad)
            task, env, time = (int(i) for i in where[np.argmin(where[:, 2])])
            found.append((time, rank, ("observation", "action", "reward")[rank], task, env))
    if found:
        time, _, what, task, env = min(found)
        values = {key: np.asarray(value).tolist() for key, value in one_task(tasks, task).items()}
        kind = DivergedError if what == "action" else NonFiniteError
        raise kind(f"non-finite {what} in {family.id} task {task} {values}, copy {env}, time step {time}")


def _collect_transitions(
    family: Family,
    policy: FunctionalPolicy,
    params: Params,
    tasks: Tasks,
    seeds: Sequence[np.random.SeedSequence],
    n_transitions: int,
    parallel: Parallel,
) -> Episodes:
    """Run waves of episodes until every task has enough, then keep the shortest sufficient prefix of each task."""
    n_envs = -(-n_transitions // family.horizon)
    waves: list[Episodes] = []
    steps = np.zeros(n_tasks(tasks), dtype=np.int64)
    while (short := np.flatnonzero(steps < n_transitions)).size:
        own = {name: tensor[torch.from_numpy(short)] for name, tensor in params.items()}
        streams = [_wave_streams(seeds[int(i)], len(waves)) for i in short]
        wave = _collect_wave(family, policy, own, take_tasks(tasks, short), streams, n_envs, parallel)
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


def collect_env(
    env: gym.Env[np.ndarray, np.ndarray],
    policy: FunctionalPolicy,
    params: Params,
    seed: np.random.SeedSequence,
    n_episodes: int | None = None,
    n_transitions: int | None = None,
    max_steps: int = 100_000,
) -> Episodes:
    """Run episodes one after another in any Gymnasium environment, whose task need not be known.

    :param params: one task's tensors, without a task axis.
    :param n_episodes: that many, or
    :param n_transitions: as many as hold at least that many env steps.
    :param max_steps: longest episode; an environment that never ends is an error.
    :return: episodes with a task axis of length 1.
    :raises ConfigError: the policy has other spaces than the environment, which takes and gives what its spaces say.
    :raises NonFiniteError: a NaN or infinite reward, observation or action.
    """
    n_episodes, n_transitions = _amount(n_episodes, n_transitions)
    name = str(env)
    _require_fit(policy, env.observation_space, env.action_space, name)
    rng, action_rng = split_streams(seed)
    rows: list[tuple[list[np.ndarray], list[np.ndarray], list[float]]] = []
    ends: list[bool] = []
    finals: list[np.ndarray] = []
    with torch.inference_mode():
        steps = 0
        while (len(rows) < n_episodes) if n_episodes is not None else (steps < (n_transitions or 0)):
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            row: tuple[list[np.ndarray], list[np.ndarray], list[float]] = ([], [], [])
            terminated = truncated = False
            while not (terminated or truncated):
                if len(row[0]) >= max_steps:
                    raise ConfigError(f"an episode of {env} did not end within {max_steps} env steps")
                seen = _observed(obs, policy, env, len(row[0]))
                noise = torch.from_numpy(draw_noise(policy.action_space, action_rng, (1,)))
                action = policy.distribution(params, torch.from_numpy(seen[None])).sample(noise)
                row[0].append(seen)
                row[1].append(finite_array("action", action[0].numpy(), env, len(row[0]) - 1))
                acted = policy.actions_to_env(action)[0]
                chosen = as_actions(acted, env.action_space, None, name, _of(env, len(row[2])))
                # The environment's bounds, not the policy's: in float64 they may be a little narrower.
                obs, reward, terminated, truncated, _ = env.step(clip_actions(env.action_space, chosen))
                row[2].append(finite_reward(reward, env, len(row[2])))
            rows.append(row)
            steps += len(row[2])
            ends.append(terminated)
            finals.append(_observed(obs, policy, env, len(row[2])))
    longest = max(len(row[2]) for row in rows)

    def table(column: int) -> np.ndarray:
        first = np.asarray(rows[0][column][0])
        out = np.zeros((1, len(rows), longest, *first.shape), dtype=first.dtype)
        for i, row in enumerate(rows):
            out[0, i, : len(row[2])] = np.asarray(row[column])
        return out

    lengths = np.array([len(row[2]) for row in rows])
    mask = (np.arange(longest) < lengths[:, None])[None]
    return Episodes(
        obs=table(0),
        actions=table(1),
        rewards=_kept(table(2), mask, name),
        mask=mask,
        terminated=np.array([ends]),
        final_obs=np.stack(finals)[None],
    )


def _require_fit(
    policy: FunctionalPolicy, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], name: str
) -> None:
    """Raise :class:`ConfigError` unless a policy observes and acts as an environment says; bounds may differ."""
    pairs = (("observes", policy.observation_space, observation_space), ("acts in", policy.action_space, action_space))
    for what, own, other in pairs:
        same = type(own) is type(other) and own.shape == other.shape
        if not same or (isinstance(own, spaces.Discrete) and own != other):
            raise ConfigError(
                f"the policy {what} {shorten(own, quote=False)}: {shorten(name, quote=False)} has "
                f"{shorten(other, quote=False)}"
            )


def _observed(obs: Any, policy: FunctionalPolicy, env: gym.Env[Any, Any], time: int) -> np.ndarray:
    """Return a copy of what an environment showed: many write every observation to the same array."""
    seen = np.array(finite_array("observation", obs, env, time), dtype=np.float32)
    shape = policy.observation_space.shape
    if seen.shape != shape:
        raise ConfigError(f"observation of shape {list(seen.shape)} from {env}: its space says {list(shape)}")
    return finite_array("observation", seen, env, time)


def _amount(n_episodes: int | None, n_transitions: int | None) -> tuple[int | None, int | None]:
    if (n_episodes is None) == (n_transitions is None):
        raise ConfigError("give either n_episodes or n_transitions")
    return (COUNT | NONE)("n_episodes", n_episodes), (COUNT | NONE)("n_transitions", n_transitions)


def finite_array(what: str, value: Any, env: gym.Env[Any, Any], time: int) -> np.ndarray:
    """Return what an environment gave or took as an array.

    :param what: ``"observation"``, ``"action"`` or ``"reward"``.
    :raises ConfigError: it is no real number.
    :raises NonFiniteError: it is NaN or infinite; :class:`~metarl.errors.DivergedError` for an action.
    """
    try:
        array = as_array(value)
    except ValueError:  # lists of different lengths, masked entries
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{what} {shorten(value)} of {env} at time step {time}: real numbers")
    require_finite(what, array[None], _of(env, time))
    return array


def finite_reward(value: Any, env: gym.Env[Any, Any], time: int) -> float:
    """Return an environment's reward; what it raises is said at :func:`finite_array`."""
    array = finite_array("reward", value, env, time)
    if array.size != 1:
        raise ConfigError(f"reward of shape {list(array.shape)} from {env} at time step {time}: one number")
    return float(array.reshape(()))


def _of(env: gym.Env[Any, Any], time: int) -> Callable[[int], str]:
    """Return what says for messages which step of which environment it is."""
    return lambda _: f"{env} at time step {time}"


def clip_actions(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Return actions clipped to the action space, as SB3's collectors do outside the policy."""
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
