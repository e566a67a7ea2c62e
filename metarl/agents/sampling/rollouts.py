"""Rollouts of copies whose episodes go on from one update to the next, as SB3's on-policy algorithms collect them.

Copies are those of a ``VecEnv``, which starts new episodes by itself: of a family's view, task-major, or of one
environment. Observations stay in the dtype of their space until the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from metarl.agents.networks.distributions import Distribution, draw_noise, from_heads
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import require_fit, split_streams
from metarl.agents.sampling.fields import PER_EPISODE, PER_STEP, Fields
from metarl.agents.sampling.one_env import clip_actions
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.params import Params, take

PART_COPIES = 16
PART_BYTES = 200_000
"""Copies that one thread looks at together where a layer's activations of a task's are larger than this."""


@dataclass(frozen=True)
class Rollout(Fields):
    """Equally many env steps of every copy of a batch of tasks; episodes begin and end anywhere in them.

    :param obs: ``[task, env, time, *observation]``, in the dtype of the space.
    :param actions: ``[task, env, time, *action]``, before clipping.
    :param rewards: ``[task, env, time]``, float32.
    :param values: ``[task, env, time]``, the critic's at ``obs``.
    :param log_prob: ``[task, env, time]``, of the actions.
    :param ended: ``[task, env, time]``, whether the episode ended with the step.
    :param final_values: ``[task, env, time]``, where an episode was cut at its horizon, the critic's at the observation
        after its last step; 0 elsewhere.
    :param last_values: ``[task, env]``, the critic's at the observation after the last step.
    :param kept: ``[task, env, time, …]``, what the network keeps of ``obs``; only where it was asked for.
    """

    obs: np.ndarray = field(metadata=PER_STEP)
    actions: np.ndarray = field(metadata=PER_STEP)
    rewards: np.ndarray = field(metadata=PER_STEP)
    values: np.ndarray = field(metadata=PER_STEP)
    log_prob: np.ndarray = field(metadata=PER_STEP)
    ended: np.ndarray = field(metadata=PER_STEP)
    final_values: np.ndarray = field(metadata=PER_STEP)
    last_values: np.ndarray = field(metadata=PER_EPISODE)
    kept: Mapping[str, torch.Tensor] | None = field(default=None, metadata=PER_STEP)


class _Part(NamedTuple):
    """Copies that are played by one thread: those ``where`` of every task."""

    env: VecEnv
    where: slice


class _Keeper(NamedTuple):
    """What fills what the network keeps, and where."""

    judges: Sequence[Callable[[torch.Tensor, Params], tuple[Distribution, torch.Tensor]]]
    """Each task's, see :meth:`FunctionalPolicy.keeper <metarl.agents.networks.policy.FunctionalPolicy.keeper>`."""
    kept: Params
    """``[task, env, time, …]``."""

    def at(self, where: slice, t: int) -> _Keeper:
        """Return what takes some copies' env step, ``[task, env, …]``."""
        return _Keeper(self.judges, {name: tensor[:, where, t] for name, tensor in self.kept.items()})


class _Told(NamedTuple):
    """What came of an env step of a part's copies.

    :param fields: those of a :class:`Rollout`, ``[task, env, …]``.
    :param ended: the infos of the copies whose episodes ended, by task and copy.
    """

    fields: dict[str, Any]
    ended: dict[tuple[int, int], dict[str, Any]]

    def episodes(self) -> Iterator[tuple[int, int, tuple[float, int]]]:
        """Yield the task, the copy, and the (return, length) of each episode that ended."""
        for (task, env), info in self.ended.items():
            yield task, env, (float(info["episode"]["r"]), int(info["episode"]["l"]))


class Copies:
    """Copies of a batch of tasks that a policy with a critic acts in, rollout by rollout::

        family = make_family("PointMass-v0", horizon=20)
        policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
        copies = Copies.of(family, policy, family.tasks("test", 2), np.random.SeedSequence(0).spawn(2), n_envs=4)
        rollout = copies.collect(expand(policy.init(seed=0), 2), n_steps=5)
        assert rollout.rewards.shape == (2, 4, 5)

    :param env: ``n_tasks × n_envs`` copies, task-major; they are reset here. Where there are several, each has further
        copies of every task, and they are played side by side.
    :param policy: of their spaces.
    :param rngs: one generator for each task, for what its policy draws.
    :param parallel: the threads that copies are played on, and a large network is evaluated on; numbers do not depend
        on them.
    :raises ConfigError: the policy has other spaces.
    """

    def __init__(
        self,
        env: VecEnv | Sequence[VecEnv],
        policy: FunctionalPolicy,
        rngs: Sequence[np.random.Generator],
        parallel: Parallel | None = None,
    ) -> None:
        envs = [env] if isinstance(env, VecEnv) else env
        require_fit(policy, envs[0].observation_space, envs[0].action_space, str(envs[0]))
        self._policy, self._rngs = policy, list(rngs)
        ends = np.cumsum([each.num_envs // len(rngs) for each in envs]).tolist()
        self._parts = [_Part(each, slice(*ends)) for each, ends in zip(envs, pairwise([0, *ends]), strict=True)]
        self._shape = len(rngs), ends[-1]
        self._parallel = parallel or Parallel(1)
        self._rollout: Rollout | None = None
        self._kept: Params = {}
        self._ended: list[list[tuple[float, int]]] = [[] for _ in rngs]
        self._obs = np.concatenate([self._seen(each.reset()) for each in envs], axis=1)

    @classmethod
    def of(
        cls,
        family: Family,
        policy: FunctionalPolicy,
        tasks: Tasks,
        seeds: Sequence[np.random.SeedSequence],
        n_envs: int,
        parallel: Parallel | None = None,
    ) -> Copies:
        """Return ``n_envs`` fresh copies of each task of a family.

        Those of a live family whose network is large are played in parts: while one waits for its environments, the
        network looks at what another one sees.

        :param tasks: of equal spaces.
        :param seeds: one stream for each task, which its copies and its policy draw from.
        :param parallel: see :class:`Copies`.
        """
        in_parts = family.live and family.concurrent and 4 * n_envs * policy.width > PART_BYTES
        size = min(PART_COPIES, -(-n_envs // 2)) if in_parts else n_envs
        numbers, envs = np.array([seed.generate_state(n_envs) for seed in seeds]), []
        for start in range(0, n_envs, size):
            own = numbers[:, start : start + size]
            envs.append(FamilyVecEnv(family, tasks, own.shape[1], seed=0))
            envs[-1].seed_copies([int(n) for n in own.flat])
        return cls(envs, policy, [split_streams(seed)[1] for seed in seeds], parallel)

    def _seen(self, obs: object) -> np.ndarray:
        """Return observations ``[task, env, *observation]`` in the dtype of the policy's."""
        seen = np.asarray(obs, dtype=self._policy.observation_space.dtype)
        return seen.reshape(len(self._rngs), -1, *seen.shape[1:])

    def _room(self, n_steps: int) -> Rollout:
        """Return the arrays to fill: those of the last rollout again, where they fit."""
        if self._rollout is None or self._rollout.rewards.shape[2] != n_steps:
            shape, space = (*self._shape, n_steps), self._policy.action_space
            discrete = isinstance(space, spaces.Discrete)
            told = ("rewards", "values", "log_prob", "final_values")
            floats: dict[str, Any] = {name: np.empty(shape, np.float32) for name in told}
            self._rollout = Rollout(
                obs=np.empty((*shape, *self._obs.shape[2:]), self._obs.dtype),
                actions=np.empty((*shape, *(space.shape or ())), np.int64 if discrete else np.float32),
                ended=np.empty(shape, bool),
                last_values=np.empty(self._shape, np.float32),
                **floats,
            )
        return self._rollout

    def _room_kept(self, n_steps: int) -> Params:
        """Return the tensors that take what the network keeps, ``[task, env, time, …]``."""
        shapes = self._policy.network.kept
        if any(tensor.shape[2] != n_steps for tensor in self._kept.values()):
            self._kept = {}
        for name in shapes.keys() - self._kept.keys():
            # Channels last, as they come and as they are used.
            *rest, last = *shapes[name][1:], shapes[name][0]
            self._kept[name] = torch.empty(*self._shape, n_steps, *rest, last).movedim(-1, 3)
        return self._kept

    def _judge(
        self, params: Params, where: slice = slice(None), keeper: _Keeper | None = None
    ) -> tuple[Distribution, torch.Tensor]:
        """Return the action distribution and the critic's values at what some copies of each task see now.

        A large network is evaluated task by task, for :data:`PART_COPIES` copies at a time, side by side.

        :param keeper: takes what the network keeps, ``[task, env, …]``.
        """
        seen = torch.from_numpy(self._obs[:, where])
        n_tasks, n_envs = seen.shape[:2]
        if keeper is None and 4 * self._shape[1] * self._policy.width <= PART_BYTES:
            return self._policy.judge(params, seen)
        places = [(task, start) for task in range(n_tasks) for start in range(0, n_envs, PART_COPIES)]

        def look(place: tuple[int, int]) -> tuple[Distribution, torch.Tensor]:
            task, start = place
            part = slice(start, start + PART_COPIES)
            with torch.inference_mode():  # which is each thread's own
                if keeper is None:
                    return self._policy.judge(take(params, task), seen[task, part])
                return keeper.judges[task](seen[task, part], {n: each[task, part] for n, each in keeper.kept.items()})

        if len(places) == 1:  # the most frequent case, inside another map
            distribution, found_values = look(places[0])
            return from_heads(tuple(head.unsqueeze(0) for head in distribution.heads)), found_values.unsqueeze(0)
        found = self._parallel.map(look, places)
        n = len(places) // n_tasks
        rows = [found[i : i + n] for i in range(0, len(found), n)]
        values = torch.stack([torch.cat([each for _, each in row]) for row in rows])
        heads = torch.stack([torch.cat([each.heads[0] for each, _ in row]) for row in rows])
        others = [torch.stack([row[0][0].heads[k] for row in rows]) for k in range(1, len(rows[0][0][0].heads))]
        return from_heads((heads, *others)), values

    def collect(self, params: Params, n_steps: int, keep: bool = False) -> Rollout:
        """Act for ``n_steps`` env steps in every copy, each task by its own parameters.

        The next call uses the arrays again.

        :param params: ``[task, …]``.
        :param keep: what the network keeps of an evaluation too, for a gradient at these parameters.
        :raises NonFiniteError: a NaN or infinite reward or observation; names the task.
        :raises DivergedError: such an action.
        """
        out, noise = self._room(n_steps), self._noise(n_steps)
        kept = self._room_kept(n_steps) if keep else {}
        judges = [self._policy.keeper(take(params, task)) for task in range(len(self._rngs))] if kept else []
        keeper = _Keeper(judges, kept) if kept else None

        def play(part: _Part) -> list[tuple[int, int, int, tuple[float, int]]]:
            found, where = [], part.where
            with torch.inference_mode():
                for t in range(n_steps):
                    out.obs[:, where, t] = self._obs[:, where]
                    told = self._act(part, params, noise[:, t, where], keeper and keeper.at(where, t))
                    for name, value in told.fields.items():
                        getattr(out, name)[:, where, t] = value
                    out.final_values[:, where, t] = self._final_values(params, told) if told.ended else 0.0
                    found += [(t, task, where.start + env, episode) for task, env, episode in told.episodes()]
                out.last_values[:, where] = self._judge(params, where)[1].numpy()
            return found

        ended = self._parallel.map(play, self._parts)
        for _, task, _, episode in sorted(each for part in ended for each in part):
            self._ended[task].append(episode)
        return replace(out, kept=kept or None)

    def _noise(self, n_steps: int) -> np.ndarray:
        """Return what the policies of some env steps draw, ``[task, time, env, …]``."""
        space, shape = self._policy.action_space, (n_steps, self._shape[1])
        return np.stack([draw_noise(space, rng, shape) for rng in self._rngs])

    def _act(self, part: _Part, params: Params, noise: np.ndarray, keeper: _Keeper | None = None) -> _Told:
        """Take an env step in the copies of a part.

        :param noise: ``[task, env, …]``.
        """
        policy, env = self._policy, part.env
        distribution, values = self._judge(params, part.where, keeper)
        actions = distribution.sample(torch.from_numpy(noise))
        log_prob, shape = distribution.log_prob(actions), values.shape
        acted = clip_actions(env.action_space, policy.actions_to_env(actions.numpy()))
        obs, rewards, ended, infos = env.step(acted.reshape(env.num_envs, *acted.shape[2:]))
        self._obs[:, part.where] = self._seen(obs)
        fields = {"values": values.numpy(), "actions": actions.numpy(), "log_prob": log_prob.numpy()}
        fields |= {"rewards": rewards.reshape(shape), "ended": ended.reshape(shape)}
        copies = np.flatnonzero(ended).tolist()
        return _Told(fields, {divmod(copy, shape[1]): infos[copy] for copy in copies})

    def _final_values(self, params: Params, told: _Told) -> np.ndarray:
        """Return what the critic expects of episodes that were cut, ``[task, env]``; 0 elsewhere."""
        final_values: np.ndarray = np.zeros_like(told.fields["values"])
        cut: dict[int, list[int]] = {}
        for (task, env), info in told.ended.items():
            if info.get("TimeLimit.truncated", False):
                cut.setdefault(task, []).append(env)
        for task, envs in cut.items():
            last = [told.ended[task, env]["terminal_observation"] for env in envs]
            seen = torch.from_numpy(np.asarray(last, dtype=self._obs.dtype))
            final_values[task, envs] = self._policy.values(take(params, task), seen).numpy()
        return final_values

    def ended(self) -> list[list[tuple[float, int]]]:
        """Return (undiscounted return, length) of the episodes that have ended, of each task in their order."""
        return self._ended

    def play(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Play until every copy has ended an episode; return ``[task, env]`` returns and lengths of each copy's first.

        :param params: as in :meth:`collect`, and what it raises.
        """
        returns, lengths = np.full(self._shape, np.nan), np.zeros(self._shape, np.int64)
        while not lengths.all():
            (noise,) = np.moveaxis(self._noise(1), 1, 0)

            def act(part: _Part, noise: np.ndarray = noise) -> _Told:
                with torch.inference_mode():
                    return self._act(part, params, noise[:, part.where])

            for part, told in zip(self._parts, self._parallel.map(act, self._parts), strict=True):
                for task, env, episode in told.episodes():
                    place = task, part.where.start + env
                    if lengths[place] == 0:
                        returns[place], lengths[place] = episode
        return returns, lengths
