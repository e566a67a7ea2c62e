"""One copy of one task of a family, as a Gymnasium environment.

Streams. A family draws from one generator for each task, see :meth:`metarl.envs.family.Family.reset`. The single view
that was reset with a seed uses :func:`episode_stream` of it, for all episodes until it is seeded again. So the view and
``family.reset(tasks, [episode_stream(seed)], n_envs=1)`` give the same trajectory to the last bit, and so does copy
``k`` of a :class:`metarl.envs.views.vec_env.FamilyVecEnv` that was seeded with ``seed - k``. The batched
:func:`metarl.agents.sampling.collect.collect` uses the first generator of ``split_streams``: hand the view an equal one
with
:meth:`SingleEnv.use_stream`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from metarl.envs.family import Family, State, draw_tasks
from metarl.envs.promises import require_sound_declaration, require_sound_step, sound_start, spaces_of
from metarl.envs.registry import make_family
from metarl.envs.tasks import Task, Tasks, one_task
from metarl.envs.views.rules import (
    as_actions,
    as_batch,
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
from metarl.errors import TaskError, UnknownNameError, unknown_name
from metarl.streams import stream
from metarl.synonyms import VIEWS


def episode_stream(seed: int) -> np.random.Generator:
    """Return the generator of a single view that was reset with ``seed``."""
    return stream(seed, "episodes")


def drawn_task(
    family: Family, seed: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Tasks:
    """Return the training task, a batch of one, that a view without a task draws when it is first reset with ``seed``.

    :raises TaskError: no task with these spaces turned up.
    """
    for attempt in range(1000):
        tasks = draw_tasks(family, stream(seed, "task", attempt), 1)
        if family.spaces(one_task(tasks, 0)) == (observation_space, action_space):
            return tasks
    raise TaskError(f"no task of {family.id} with {observation_space} and {action_space} turned up: name a task")


def fresh_seed() -> int:
    """Return a seed from the operating system."""
    return int(np.random.SeedSequence().generate_state(1)[0])


class SingleEnv(gymnasium.Env[np.ndarray, Any]):
    """One copy of one task, as ``gymnasium.make`` returns it::

        env = gymnasium.make("PointMass-v0", goal=[0.2, 0.1])
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert info["reward_distance"] == reward

        env = SingleEnv(make_family("PointMass-v0", horizon=20), goal=[0.2, 0.1])
        env.reset(options={"task": {"goal": [0.0, 0.3]}})

    The task stays until :meth:`set_task`, ``reset(options={"task": {...}})`` or ``env.unwrapped.task = {...}`` gives
    another, which counts from the next reset on: an episode has one task. A view that was made without a task draws a
    training task from its seed at its first reset, and keeps that. ``step`` returns every term of the reward in
    ``info``, and truncates at the family's horizon, which ``spec.max_episode_steps`` says.

    Actions may be anything that NumPy takes for real numbers of the right shape (of a Discrete space: integers in
    range). An action, a reward or an observation that is NaN or infinite raises, as in the vector view.

    :param family: a registered name or a family.
    :param render_mode: ``"rgb_array"``: :meth:`render` returns pictures of the families that are drawn.
    :param kwargs: the task's parameters, and for a registered name arguments of :func:`make_family`.
    :raises UnknownNameError: a keyword that is neither.
    :raises TaskError: a value outside the task space.
    :raises RenderModeError: another ``render_mode``, or one for a family that is not drawn.
    """

    # What Gymnasium looks at before there is a family; a view's own says what that draws.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (as gymnasium.Env declares it)

    def __init__(self, family: str | Family, *, render_mode: str | None = None, **kwargs: Any) -> None:
        require_family_or_name(family)
        self.family, task = _split(family, kwargs)
        require_sound_declaration(self.family)
        self.metadata = as_metadata(self.family, render_mode)
        self.render_mode = render_mode
        asked = kwargs if render_mode is None else {**kwargs, "render_mode": render_mode}
        self.spec: EnvSpec | None = view_spec(
            SingleEnv, self.family, family if isinstance(family, str) else None, asked
        )
        self._next_tasks = as_batch(self.family, task) if task else None
        # Wrappers write their own spaces over the environment's. Copies, since a space has a random stream.
        self._spaces = self.observation_space, self.action_space = copy.deepcopy(
            (self.family.observation_space, self.family.action_space)
            if self._next_tasks is None
            else spaces_of(self.family, one_task(self._next_tasks, 0))
        )
        self._tasks: Tasks = {}
        self._state: State | None = None
        self._ended: State | None = None
        self._trail: list[State] = []
        self._seed: int | None = None
        self._elapsed = 0

    @property
    def horizon(self) -> int:
        """The family's horizon, env steps."""
        return self.family.horizon

    @property
    def task(self) -> Task | None:
        """The task of the next reset, and of the running episode unless it was set since; None if not yet drawn.

        Setting it is :meth:`set_task`.
        """
        return None if self._next_tasks is None else own_task(self._next_tasks, 0)

    @task.setter
    def task(self, task: Mapping[str, Any]) -> None:
        self.set_task(task)

    def set_task(self, task: Mapping[str, Any]) -> None:
        """Use ``task`` from the next reset on.

        :raises TaskError: outside the task space, or with other spaces than this environment's.
        """
        self._next_tasks = next_tasks(self.family, task, self._spaces)

    def use_stream(self, rng: np.random.Generator) -> None:
        """Draw from ``rng`` from the next reset on, until a reset is seeded."""
        self._seed = fresh_seed() if self._seed is None else self._seed
        self._ended = None
        self.np_random = rng

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        :param seed: restarts the random stream; without one the stream goes on, and the episode may follow on one that
            has ended (:meth:`~metarl.envs.family.Family.restart`).
        :param options: ``{"task": {...}}`` sets the task.
        """
        chosen = task_option(options)
        seed = seed if seed is None else as_seed(seed)
        if "task" in chosen:
            self.set_task(chosen["task"])
        if seed is None and self._seed is None:
            seed = fresh_seed()
        if seed is not None:
            super().reset(seed=seed)
            self._seed, self._ended = seed, None
            self._np_random = episode_stream(seed)
        if self._next_tasks is None:
            assert self._seed is not None
            self._next_tasks = drawn_task(self.family, self._seed, *self._spaces)
        self._tasks = self._next_tasks
        # Before the next episode begins, so that it can have the instance of a live family that this one had.
        ended, self._ended, self._state, self._trail = self._ended, None, None, []
        rngs, family = [self.np_random], self.family
        first = family.reset(self._tasks, rngs, 1) if ended is None else family.restart(self._tasks, ended, rngs, 1)
        self._state, obs = sound_start(self.family, first, (1, 1), self._spaces[0])
        self._elapsed = 0
        self._trail = [self._state]
        require_finite("observation", obs[0], self._where)
        return np.array(obs[0, 0]), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one env step; ``info`` has the terms of the reward.

        :raises ResetNeeded: the episode is over, or has not begun.
        :raises ConfigError: an action of another shape, that is no number, or outside a Discrete space.
        :raises NonFiniteError: a NaN or infinite reward or observation; DivergedError: such an action.
        """
        if self._state is None:
            raise reset_needed(self.family)
        chosen = as_actions(action, self._spaces[1], None, self.family.id, self._where)
        step = self.family.step(self._tasks, self._state, chosen[None, None], [self.np_random])
        require_sound_step(self.family, step, (1, 1), self._spaces[0])
        self._state = step.state
        # As the vector view and SB3's return it; this one keeps float64.
        require_finite("reward", step.reward[0].astype(np.float32), self._where)
        self._elapsed += 1
        require_finite("observation", step.obs[0], self._where)
        # Whoever sets a render_mode later sees the state as it is, without the way there.
        if self.render_mode is None:
            self._trail.clear()
        self._trail.append(step.state)
        terminated = bool(step.terminated[0, 0])
        truncated = not terminated and bool(step.ended[0, 0] or self._elapsed >= self.horizon)
        if terminated or truncated:
            self._ended, self._state = self._state, None
        info = {name: own_info(value[0, 0]) for name, value in step.info.items()}
        return np.array(step.obs[0, 0]), float(step.reward[0, 0]), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """Return a picture of the episode as it stands, ``[height, width, 3]``, uint8; None without ``render_mode``.

        :raises ResetNeeded: no episode has begun.
        :raises PictureError: a robot on a machine without EGL and OSMesa.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(f"{self.family.id}: render() without a render_mode, for instance 'rgb_array'")
            return None
        if not self._trail:
            raise reset_needed(self.family)
        return self.family.render(self._tasks, self._trail, 0, 0)

    def _where(self, row: int) -> str:
        """Return for messages which env step of which task it is."""
        del row
        return f"{self.family.id} task {describe_task(self._tasks, 0)}, time step {self._elapsed}"

    def close(self) -> None:
        self.family.close()


def _split(family: str | Family, kwargs: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Build the family; return it and those keywords that are task parameters."""
    if isinstance(family, Family):
        for name in kwargs:
            if name not in family.task_space.spaces:
                raise unknown_name(f"task parameter of {family.id}", name, family.task_space.spaces)
        return family, kwargs
    # Which task parameters there are may depend on the arguments: what the family does not take is left for the task.
    arguments, task = dict(kwargs), dict[str, Any]()
    known: set[str] = set()
    while True:
        try:
            built = make_family(family, **arguments)
            break
        except UnknownNameError as error:
            if error.name not in arguments:
                raise
            task[error.name] = arguments.pop(error.name)
            known.update(error.known)
    for name in task:
        if name not in built.task_space.spaces:
            known |= set(built.task_space.spaces)
            raise unknown_name(f"argument or task parameter of {family}", name, known, VIEWS)
    return built, task
