"""Many copies of a family's tasks as a Stable-Baselines3 ``VecEnv``. Importing this imports torch, by way of SB3."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from metarl.checks import COUNT
from metarl.envs.family import Family, State, sound_tasks
from metarl.envs.groups import group_tasks
from metarl.envs.promises import require_sound_declaration, require_sound_step, sound_start
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks, n_tasks, take_tasks
from metarl.envs.views.rules import (
    as_actions,
    as_metadata,
    as_seed,
    describe_task,
    next_tasks,
    own_info,
    own_task,
    require_family_or_name,
    require_finite,
    reset_needed,
    task_option,
    view_spec,
)
from metarl.envs.views.single import SingleEnv, episode_stream, fresh_seed
from metarl.errors import ConfigError, TaskError, shorten


class FamilyVecEnv(VecEnv):
    """Copies of a batch of tasks, task-major: copy ``k`` has task ``k // n_envs``.

    Any algorithm of Stable-Baselines3 learns on them, on all tasks at once::

        from stable_baselines3 import PPO

        family = make_family("PointMass-v0")
        env = FamilyVecEnv(family, family.tasks("validation", 3), n_envs=2, seed=0)
        assert env.num_envs == 6
        PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1).learn(96)

    Every copy is its own row of the batched family with its own random stream, so copy ``k`` behaves like a
    :class:`~metarl.envs.views.single.SingleEnv` inside SB3's ``Monitor`` inside ``DummyVecEnv``, seeded with ``seed +
    k``; but one call of the family steps them all. Copies reset by themselves in the env step that ends an episode. An
    ended copy's info has ``terminal_observation``, ``episode`` (as ``Monitor`` writes it) and the terms of the reward;
    those of all copies are in :attr:`reward_terms`.

    A reward or an observation that is NaN or infinite raises :class:`~metarl.errors.NonFiniteError` in the :meth:`step`
    or :meth:`reset` that would return it, and such an action :class:`~metarl.errors.DivergedError`. Actions may be
    anything that NumPy takes for real numbers, one for each copy; :meth:`step` before :meth:`reset` raises, as in
    Gymnasium.

    :param family: a registered name or a family.
    :param tasks: a batch of tasks of equal spaces.
    :param n_envs: copies of each task.
    :param seed: seed of the first copy's stream; None for one from the operating system.
    :param render_mode: ``"rgb_array"``: :meth:`render` returns one picture of all copies, for families that are drawn.
    :raises RenderModeError: another ``render_mode``, or one for a family that is not drawn.
    :raises TaskError: a task outside the task space, or tasks of different spaces.
    """

    def __init__(
        self,
        family: str | Family,
        tasks: Mapping[str, Any],
        n_envs: int = 1,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        n_envs = COUNT("n_envs", n_envs)
        require_family_or_name(family)
        self.family = make_family(family) if isinstance(family, str) else family
        require_sound_declaration(self.family)
        tasks = sound_tasks(self.family, "validate_tasks", self.family.validate_tasks(tasks))
        groups = group_tasks(self.family, tasks)
        if len(groups) > 1:
            raise TaskError(f"these tasks of {self.family.id} have {len(groups)} different pairs of spaces: group them")
        self._next_tasks: Tasks = take_tasks(tasks, np.repeat(np.arange(n_tasks(tasks)), n_envs))
        self._tasks = self._next_tasks
        self._attributes: dict[str, list[Any]] = {}
        n = n_tasks(self._tasks)
        self._rngs = [np.random.default_rng(0)] * n
        self._state: State | None = None
        self._actions: np.ndarray | None = None
        self._elapsed, self._returns = np.zeros(n, dtype=np.int64), np.zeros(n)
        self._started = time.time()
        self.reward_terms: dict[str, np.ndarray] = {}
        """Terms of the last env step's rewards, ``[copy]``, and what else it reported, by name."""
        # The states of the longest episode; a copy's own are as many as it has made steps, and one.
        self._trail: deque[State] = deque(maxlen=1 if render_mode is None else self.family.horizon + 1)
        self._render_mode = render_mode
        metadata = as_metadata(self.family, render_mode)
        # Copies, since a space has a random stream.
        self._spaces = copy.deepcopy((groups[0].observation_space, groups[0].action_space))
        super().__init__(n, *self._spaces)
        # SB3 lists what its views show, without the speed.
        self.metadata["render_fps"] = metadata["render_fps"]
        self.seed(seed)

    # --------------------------------------------------------------------------------------------------- episodes
    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the copies' streams, from the next :meth:`reset` on: copy ``k`` gets ``seed + k``."""
        return super().seed(fresh_seed() if seed is None else as_seed(seed))

    def seed_copies(self, seeds: Sequence[int]) -> None:
        """Seed the stream of each copy by itself, from the next :meth:`reset` on."""
        self._seeds = [as_seed(seed) for seed in seeds]

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Give the next :meth:`reset` options, the same ones for all copies or a list of one for each.

        :param options: ``{"task": {...}}`` sets the task; what is wrong is refused here and changes nothing.
        """
        if isinstance(options, list | tuple) and len(options) != self.num_envs:
            raise ConfigError(f"{len(options)} reset options: one dict, or {self.num_envs}, one for each copy")
        for chosen in map(task_option, options if isinstance(options, list | tuple) else [options]):
            if "task" in chosen:
                next_tasks(self.family, chosen["task"], self._spaces)
        super().set_options(options)

    def reset(self) -> np.ndarray:
        for index, options in enumerate(self._options):
            if "task" in options:
                self._set_task(index, options["task"])
        for index, seed in enumerate(self._seeds):
            if seed is not None:
                self._rngs[index] = episode_stream(seed)
        self._reset_seeds()
        self._reset_options()
        self._tasks = take_tasks(self._next_tasks, slice(None))
        self._state = self._actions = None  # a live family's instances are free for the next episodes
        self._trail.clear()
        first = self.family.reset(self._tasks, self._rngs, 1)
        self._state, obs = sound_start(self.family, first, (self.num_envs, 1), self._spaces[0])
        self._trail.append(self._state)
        self._elapsed[:], self._returns[:] = 0, 0.0
        self._started = time.time()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        require_finite("observation", obs[:, 0], self._where)
        return np.array(obs[:, 0])

    def step_async(self, actions: np.ndarray) -> None:
        if self._state is None:
            raise reset_needed(self.family)
        self._actions = as_actions(actions, self._spaces[1], self.num_envs, self.family.id, self._where)

    def step_wait(self) -> VecEnvStepReturn:
        if self._state is None:
            raise reset_needed(self.family)
        if self._actions is None:
            raise ConfigError(f"{self.family.id}: step_async(actions) comes before step_wait()")
        step = self.family.step(self._tasks, self._state, self._actions[:, None], self._rngs)
        require_sound_step(self.family, step, (self.num_envs, 1), self._spaces[0])
        self._state, self._actions = step.state, None
        self.reward_terms = {name: value[:, 0] for name, value in step.info.items()}
        obs, rewards, terminated = _shown(self.family, step.obs), step.reward[:, 0], step.terminated[:, 0]
        rounded = rewards.astype(np.float32)
        require_finite("reward", rounded, self._where)
        self._elapsed += 1
        require_finite("observation", obs, self._where)
        # Monitor adds up what the environment returned, before DummyVecEnv rounds it to float32.
        self._returns += rewards
        truncated = ~terminated & (step.ended[:, 0] | (self._elapsed >= self.family.horizon))
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if ended.size:
            elapsed = round(time.time() - self._started, 6)
            for index in ended:
                episode = {"r": round(float(self._returns[index]), 6), "l": int(self._elapsed[index]), "t": elapsed}
                infos[index] = _ended(self.reward_terms, int(index), bool(truncated[index]), obs, episode)
            obs[ended] = self._restart(ended)
        self._trail.append(self._state)
        return obs, rounded, dones, infos

    def _restart(self, ended: np.ndarray) -> np.ndarray:
        """Start new episodes in some copies; return their observations."""
        tasks = take_tasks(self._next_tasks, ended)
        assert self._state is not None
        rngs = [self._rngs[index] for index in ended]
        state, obs = self.family.restart(tasks, take_tasks(self._state, ended), rngs, 1)
        self._tasks = {name: _replaced(value, ended, tasks[name]) for name, value in self._tasks.items()}
        self._state = {name: _replaced(value, ended, state[name]) for name, value in self._state.items()}
        self._elapsed[ended], self._returns[ended] = 0, 0.0
        require_finite("observation", obs[:, 0], lambda row: self._where(int(ended[row])))
        return np.asarray(obs[:, 0])

    def _where(self, copy: int) -> str:
        """Return for messages which env step of which copy it is."""
        return f"{self.family.id} task {describe_task(self._tasks, copy)}, copy {copy}, time step {self._elapsed[copy]}"

    def close(self) -> None:
        self.family.close()

    # ------------------------------------------------------------------------------------------- single copies
    @property
    def tasks(self) -> Tasks:
        """The tasks that the copies' next episodes have, ``[copy, ...]``."""
        return {name: value.copy() for name, value in self._next_tasks.items()}

    def _set_task(self, index: int, task: Mapping[str, Any]) -> None:
        tasks, where = next_tasks(self.family, task, self._spaces), np.array([index])
        self._next_tasks = {name: _replaced(value, where, tasks[name]) for name, value in self._next_tasks.items()}

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of some copies: ``set_task(task)``, which counts from each copy's next episode on, or
        ``render()``.
        """
        where = list(self._get_indices(indices))
        if method_name == "render":
            images = self.get_images()
            return [images[index] for index in where]
        if method_name != "set_task":
            name = shorten(method_name)
            raise AttributeError(f"copies of {self.family.id} have no method {name}: known: render, set_task")
        for index in where:
            self._set_task(index, *args, **kwargs)
        return [None] * len(where)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of some copies: ``task``, what :meth:`set_attr` has set, or what all of them share."""
        where = list(self._get_indices(indices))
        if attr_name in self._attributes:
            return [self._attributes[attr_name][index] for index in where]
        if attr_name == "task":
            return [own_task(self._next_tasks, index) for index in where]
        if attr_name == "np_random":
            return [self._rngs[index] for index in where]
        if attr_name == "spec":
            return [view_spec(SingleEnv, self.family, None, own_task(self._next_tasks, index)) for index in where]
        shared = {
            "action_space": getattr(self, "action_space", None),
            "family": self.family,
            "horizon": self.family.horizon,
            "metadata": as_metadata(self.family, self._render_mode),
            "observation_space": getattr(self, "observation_space", None),
            "render_mode": self._render_mode,
        }
        if attr_name not in shared:
            raise AttributeError(f"copies of {self.family.id} have no attribute {shorten(attr_name)}")
        return [shared[attr_name] for _ in where]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some copies; setting ``task`` is ``set_task``.

        :raises AttributeError: one that belongs to all copies together.
        """
        where = list(self._get_indices(indices))
        if attr_name == "task":
            for index in where:
                self._set_task(index, value)
            return
        if attr_name not in self._attributes:
            if self.has_attr(attr_name):
                raise AttributeError(
                    f"{shorten(attr_name)} belongs to all copies of {self.family.id} and cannot be set"
                )
            self._attributes[attr_name] = [None] * self.num_envs
        for index in where:
            self._attributes[attr_name][index] = value

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for ``Monitor``, whose records the infos have, and False for any other wrapper."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture of every copy, or None for each without ``render_mode``.

        :raises ResetNeeded: no episode has begun.
        :raises PictureError: robots on a machine without EGL and OSMesa.
        """
        if self._render_mode is None:
            return [None] * self.num_envs
        if self._state is None:
            raise reset_needed(self.family)
        trails = [list(self._trail)[-int(steps) - 1 :] for steps in self._elapsed]
        return [self.family.render(self._tasks, trail, copy, 0) for copy, trail in enumerate(trails)]


def _shown(family: Family, obs: np.ndarray) -> np.ndarray:
    """Return what the only copy of each row observes, as an array that whoever gets it may write into.

    What is observed may be a part of the state; that of a live family is in its instances, and frames are large.
    """
    own = family.live and obs.flags.owndata and obs.flags.writeable
    return obs[:, 0] if own else np.array(obs[:, 0])


def _ended(
    terms: Mapping[str, np.ndarray], index: int, truncated: bool, obs: np.ndarray, episode: dict[str, Any]
) -> dict[str, Any]:
    """Return the info of a copy whose episode ended."""
    return {
        **{name: own_info(value[index]) for name, value in terms.items()},
        "TimeLimit.truncated": truncated,
        "terminal_observation": obs[index].copy(),
        "episode": episode,
    }


def _replaced(array: np.ndarray, where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a copy of ``array`` with some rows replaced."""
    result = np.array(array)
    result[where] = values
    return result
