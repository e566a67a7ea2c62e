"""Rollouts of copies whose episodes go on from one update to the next, as SB3's on-policy algorithms collect them.

Copies are those of a ``VecEnv``, which starts new episodes by itself: of a family's view, task-major, or of one
environment. Observations stay in the dtype of their space until the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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

PART_COPIES, KEPT_COPIES = 8, 16
PART_BYTES = 200_000
"""Copies that one thread looks at together where a layer's activations of a task's are larger than this; the second
number where what it computes is kept."""


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


class Copies:
    """Copies of a batch of tasks that a policy with a critic acts in, rollout by rollout::

        family = make_family("PointMass-v0", horizon=20)
        policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
        copies = Copies.of(family, policy, family.tasks("test", 2), np.random.SeedSequence(0).spawn(2), n_envs=4)
        rollout = copies.collect(expand(policy.init(seed=0), 2), n_steps=5)
        assert rollout.rewards.shape == (2, 4, 5)

    :param env: ``n_tasks × n_envs`` copies, task-major; they are reset here.
    :param policy: of their spaces.
    :param rngs: one generator for each task, for what its policy draws.
    :param parallel: the threads that a large network is evaluated on; numbers do not depend on them.
    :raises ConfigError: the policy has other spaces.
    """

    def __init__(
        self,
        env: VecEnv,
        policy: FunctionalPolicy,
        rngs: Sequence[np.random.Generator],
        parallel: Parallel | None = None,
    ) -> None:
        require_fit(policy, env.observation_space, env.action_space, str(env))
        self._env, self._policy, self._rngs = env, policy, list(rngs)
        self._shape = len(rngs), env.num_envs // len(rngs)
        self._parallel = parallel or Parallel(1)
        self._rollout: Rollout | None = None
        self._kept: Params = {}
        self._ended: list[list[tuple[float, int]]] = [[] for _ in rngs]
        self._obs = self._seen(env.reset())

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

        :param tasks: of equal spaces.
        :param seeds: one stream for each task, which its copies and its policy draw from.
        :param parallel: see :class:`Copies`.
        """
        env = FamilyVecEnv(family, tasks, n_envs, seed=0)
        env.seed_copies([int(n) for seed in seeds for n in seed.generate_state(n_envs)])
        return cls(env, policy, [split_streams(seed)[1] for seed in seeds], parallel)

    def _seen(self, obs: object) -> np.ndarray:
        """Return observations ``[task, env, *observation]`` in the dtype of the policy's."""
        seen = np.asarray(obs, dtype=self._policy.observation_space.dtype)
        return seen.reshape(*self._shape, *seen.shape[1:])

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

    def _judge(self, params: Params, kept: Params | None = None) -> tuple[Distribution, torch.Tensor]:
        """Return the action distribution and the critic's values at what is seen now.

        A large network is evaluated task by task, for some copies at a time, side by side.

        :param kept: takes what the network keeps, ``[task, env, …]``.
        """
        (n_tasks, n_envs), seen = self._shape, torch.from_numpy(self._obs)
        if kept is None and 4 * n_envs * self._policy.width <= PART_BYTES:
            return self._policy.judge(params, seen)
        size = PART_COPIES if kept is None else KEPT_COPIES
        places = [(task, start) for task in range(n_tasks) for start in range(0, n_envs, size)]

        def look(place: tuple[int, int]) -> tuple[Distribution, torch.Tensor]:
            task, start = place
            part = slice(start, start + size)
            own = None if kept is None else {name: tensor[task, part] for name, tensor in kept.items()}
            with torch.inference_mode():  # which is each thread's own
                return self._policy.judge(take(params, task), seen[task, part], own)

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
        policy, env, out = self._policy, self._env, self._room(n_steps)
        noise = [draw_noise(policy.action_space, rng, (n_steps, self._shape[1])) for rng in self._rngs]
        kept = self._room_kept(n_steps) if keep else {}
        with torch.inference_mode():
            for t in range(n_steps):
                now = {name: tensor[:, :, t] for name, tensor in kept.items()}
                distribution, values = self._judge(params, now or None)
                actions = distribution.sample(torch.from_numpy(np.stack([own[t] for own in noise])))
                out.obs[:, :, t], out.values[:, :, t] = self._obs, values.numpy()
                out.actions[:, :, t], out.log_prob[:, :, t] = actions.numpy(), distribution.log_prob(actions).numpy()
                acted = clip_actions(env.action_space, policy.actions_to_env(actions))
                obs, rewards, ended, infos = env.step(acted.reshape(env.num_envs, *acted.shape[2:]))
                self._obs = self._seen(obs)
                out.rewards[:, :, t] = rewards.reshape(self._shape)
                out.ended[:, :, t] = ended.reshape(self._shape)
                out.final_values[:, :, t] = 0.0
                if ended.any():
                    self._end(params, np.flatnonzero(ended), infos, out.final_values[:, :, t])
            out.last_values[:] = self._judge(params)[1].numpy()
        return replace(out, kept=kept or None)

    def _end(self, params: Params, ended: np.ndarray, infos: list[dict[str, object]], final_values: np.ndarray) -> None:
        """Keep the returns of episodes that ended, and what the critic expects of those that were cut."""
        cut: dict[int, list[int]] = {}
        for copy in ended.tolist():
            task, env = divmod(copy, self._shape[1])
            episode = infos[copy]["episode"]
            assert isinstance(episode, dict)
            self._ended[task].append((float(episode["r"]), int(episode["l"])))
            if infos[copy].get("TimeLimit.truncated", False):
                cut.setdefault(task, []).append(env)
        for task, envs in cut.items():
            last = [infos[task * self._shape[1] + env]["terminal_observation"] for env in envs]
            seen = torch.from_numpy(np.asarray(last, dtype=self._obs.dtype))
            final_values[task, envs] = self._policy.values(take(params, task), seen).numpy()

    def ended(self) -> list[list[tuple[float, int]]]:
        """Return (undiscounted return, length) of the episodes that have ended, of each task in their order."""
        return self._ended

    def play(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Play until every copy has ended an episode; return ``[task, env]`` returns and lengths of each copy's first.

        :param params: as in :meth:`collect`, and what it raises.
        """
        policy, env = self._policy, self._env
        returns, lengths = np.full(env.num_envs, np.nan), np.zeros(env.num_envs, np.int64)
        with torch.inference_mode():
            while not lengths.all():
                noise = [draw_noise(policy.action_space, rng, (self._shape[1],)) for rng in self._rngs]
                actions = self._judge(params)[0].sample(torch.from_numpy(np.stack(noise)))
                acted = clip_actions(env.action_space, policy.actions_to_env(actions))
                obs, _, ended, infos = env.step(acted.reshape(env.num_envs, *acted.shape[2:]))
                self._obs = self._seen(obs)
                for copy in np.flatnonzero(ended & (lengths == 0)):
                    returns[copy], lengths[copy] = infos[copy]["episode"]["r"], infos[copy]["episode"]["l"]
        return returns.reshape(self._shape), lengths.reshape(self._shape)
