"""A family made of any Gymnasium environment, whose parameters differ by task."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from metarl.checks import COUNT, MAPPING, NONE, SWITCH, plain_tree
from metarl.envs.family import Family, State, Step
from metarl.envs.gym.attributes import numbers_of, require_settable, set_attributes
from metarl.envs.gym.making import Env, Maker, as_maker, time_limit
from metarl.envs.gym.parameters import Parameter, read_parameters
from metarl.envs.live import Pool, next_state, runs_in, start_state
from metarl.envs.mujoco.pictures import PictureError
from metarl.envs.promises import broken_spaces
from metarl.envs.tasks import Tasks, one_task, sample_uniform
from metarl.errors import ConfigError, TaskError, shorten, unknown_name
from metarl.processes import ProcessLocal

MOST_LISTED = 10_000
"""Most tasks that a family lists; where lists of values have more combinations, tasks are drawn."""
MOST_COPIES = 512
"""Most instances that run at once unless an argument says otherwise."""

SetTask = Callable[[Env, dict[str, Any]], object]


def from_gym(
    env: str | type[Env] | Callable[..., Env],
    tasks: Mapping[str, Any] | spaces.Dict,
    *,
    set_task: SetTask | None = None,
    shifted: Mapping[str, Any] | None = None,
    horizon: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    observes_task: bool = False,
    max_copies: int = MOST_COPIES,
    render_mode: str | None = None,
) -> GymFamily:
    """Return a family of tasks made of a Gymnasium environment, stepped in this process.

    :param env: an id of Gymnasium, a class of environments, or a function that makes one.
    :param tasks: what differs by task, by name: a range ``(low, high)``, a list of values, or a ``Box`` or ``Discrete``
        of Gymnasium. Each is an argument of the environment's constructor, or else an attribute of the unwrapped
        environment, which is set before every reset. Of what the constructor computes from attributes, CartPole's
        ``total_mass`` and ``polemass_length`` follow; of other environments nothing does.
    :param set_task: ``set_task(env, task)`` tells an environment its task, a dict of plain values, before every reset,
        in place of arguments and attributes.
    :param shifted: where the split ``shifted`` draws from, outside the training ranges: ranges, by name; parameters
        that it does not name are drawn as in training. Without it there is no such split.
    :param horizon: the longest episode, env steps; None takes Gymnasium's ``max_episode_steps``, or that of a
        ``TimeLimit`` around the environment.
    :param kwargs: arguments of the environment's constructor that all tasks share.
    :param observes_task: whether observations may tell the task.
    :param max_copies: most instances that run at once, tasks times episodes; of one task all run.
    :param render_mode: ``"rgb_array"`` for environments that are to be drawn.
    :raises UnknownNameError: no such id, argument or attribute.
    :raises ConfigError: a range, a list or an argument that makes no sense, or spaces that policies do not take.
    """
    return GymFamily(
        as_maker(env),
        tasks,
        set_task=set_task,
        shifted=shifted,
        horizon=horizon,
        kwargs=kwargs,
        observes_task=observes_task,
        max_copies=max_copies,
        render_mode=render_mode,
    )


class GymFamily(Family):
    """A family of Gymnasium environments, as :func:`from_gym` returns it::

        from metarl.envs import from_gym

        family = from_gym("CartPole-v1", tasks={"gravity": (5.0, 15.0), "length": (0.3, 1.0)})
        check_family(family, n_steps=20)
        model = metarl.FOMAML("MlpPolicy", family, meta_batch_size=2, n_episodes=2)

    Every episode has an instance of its own while it runs (:mod:`metarl.envs.live`), which is reset with a seed of its
    copy's stream. Observations are float32 where the environment's are float64 or integers. The horizon takes the place
    of Gymnasium's ``TimeLimit``; an environment that ends an episode before is asked whether it is terminated or
    truncated. The reward is the environment's, and its info is not reported.

    The parameters are those of :func:`from_gym`; ``maker`` makes environments.
    """

    live = True

    def __init__(
        self,
        maker: Maker,
        tasks: Mapping[str, Any] | spaces.Dict,
        *,
        set_task: SetTask | None,
        shifted: Mapping[str, Any] | None,
        horizon: int | None,
        kwargs: Mapping[str, Any] | None,
        observes_task: bool,
        max_copies: int,
        render_mode: str | None,
    ) -> None:
        self.id = maker.name or maker.label
        self._maker, self._set_task = maker, set_task
        self.parameters = read_parameters("tasks", tasks)
        """The task parameters by name."""
        self.task_space = spaces.Dict({name: each.space for name, each in self.parameters.items()})
        self._listed = _all_tasks(self.parameters)
        self._kwargs = dict((MAPPING | NONE)("kwargs", kwargs) or {})
        for name in self._kwargs:
            if name in self.parameters or name == "render_mode":
                raise ConfigError(
                    f"kwargs has {shorten(name)}, which {'tasks has' if name in tasks else 'is given'} too"
                )
        self.observes_task = SWITCH("observes_task", observes_task)
        self.max_copies = COUNT("max_copies", max_copies)
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode={shorten(render_mode)}: 'rgb_array' or None")
        self._render_mode = render_mode
        if set_task is not None and not callable(set_task):
            raise ConfigError(f"set_task={shorten(set_task)}: a function of an environment and a task")
        self._by_constructor = () if set_task else tuple(name for name in self.parameters if name in maker.arguments)
        self._pool = ProcessLocal(_new_pool)
        self._look_at(horizon)
        self.shifted_space = self._read_shifted(shifted)
        self._own: dict[str, Any] = {"shifted": self._shifted, "horizon": horizon, "kwargs": self._kwargs or None}
        self._own |= {"observes_task": self.observes_task or None, "render_mode": render_mode}
        self._own |= {"max_copies": None if self.max_copies == MOST_COPIES else self.max_copies}

    def named(self) -> tuple[str, dict[str, Any]] | None:
        name = self._maker.name
        if name is None or self.id != name or self._set_task is not None:
            return None
        tasks = {name: each.document for name, each in self.parameters.items()}
        return name, plain_tree({"tasks": tasks, **{key: v for key, v in self._own.items() if v is not None}})

    # ------------------------------------------------------------------------------------------------- declarations
    def _look_at(self, horizon: int | None) -> None:
        """Make one environment, and take from it what a family declares.

        :raises ConfigError: it is none that policies can learn on, or has not what tasks change.
        """
        task = self._task(one_task(sample_uniform(self.task_space, np.random.default_rng(0), 1), 0))
        env = self._make({name: task[name] for name in self._by_constructor})
        try:
            self._require_parameters(env, task)
            self.observation_space, self.action_space = _observed(self.id, env), env.action_space
            fault = broken_spaces(self.observation_space, self.action_space)
            if fault is not None:
                raise ConfigError(f"{self.id}: {fault}")
            length = (COUNT | NONE)("horizon", horizon) or self._maker.horizon or time_limit(env)
            if length is None:
                raise ConfigError(f"{self.id} does not say how long an episode is: give horizon=, in env steps")
            self.horizon = length
            if self._render_mode is not None:
                self.render_fps = int(env.metadata.get("render_fps") or 30)
        finally:
            env.close()

    def _require_parameters(self, env: Env, task: Mapping[str, Any]) -> None:
        if self._set_task is not None:
            return
        attributes = {name: value for name, value in task.items() if name not in self._by_constructor}
        for name in attributes:
            if not hasattr(env.unwrapped, name):
                known = sorted({*self._maker.arguments, *numbers_of(env)} - {"render_mode"})
                raise unknown_name(f"task parameter of {self.id}, neither argument nor attribute:", name, known)
        require_settable(env, self.id, attributes)

    def _read_shifted(self, shifted: Mapping[str, Any] | None) -> spaces.Dict | None:
        self._shifted: dict[str, Any] | None = None
        if shifted is None:
            return None
        read = read_parameters("shifted", shifted)
        for name, each in read.items():
            if name not in self.parameters:
                raise unknown_name("task parameter in shifted:", name, self.parameters)
            own = self.parameters[name]
            if not (_is_range(own) and _is_range(each) and own.space.shape == each.space.shape):
                raise ConfigError(f"shifted.{name}: a range, for a parameter that is one in tasks, of the same shape")
            assert isinstance(own.space, spaces.Box)
            assert isinstance(each.space, spaces.Box)
            if not ((each.space.low >= own.space.high) | (each.space.high <= own.space.low)).any():
                raise ConfigError(f"shifted.{name}={each.document} is not outside the training range {own.document}")
        self._shifted = {name: each.document for name, each in read.items()}
        return spaces.Dict({**self.task_space.spaces, **{name: each.space for name, each in read.items()}})

    # --------------------------------------------------------------------------------------------------------- tasks
    def finite_tasks(self) -> Tasks | None:
        return None if self._listed is None else {name: value.copy() for name, value in self._listed.items()}

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self._on_lists(super().sample_tasks(rng, n), rng)

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self._on_lists(super().sample_shifted_tasks(rng, n), rng)

    def _on_lists(self, tasks: Tasks, rng: np.random.Generator) -> Tasks:
        """Return tasks that were drawn from spaces with one of its values for each parameter that has a list."""
        if self._listed is None:
            for name, each in self.parameters.items():
                if each.numbers is not None:
                    tasks[name] = rng.choice(each.numbers, size=len(tasks[name])).astype(tasks[name].dtype)
        return tasks

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        result = super().validate_tasks(tasks)
        for name, each in self.parameters.items():
            if each.numbers is None:
                continue
            unknown = np.setdiff1d(result[name], each.numbers)
            if unknown.size:
                raise TaskError(f"{name}={unknown[0].item()} is none of {self.id}'s: {shorten(each.numbers.tolist())}")
        return result

    def _task(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return a task as an environment is given it."""
        return {name: each.value(task[name]) for name, each in self.parameters.items()}

    # ------------------------------------------------------------------------------------------------------ dynamics
    def _make(self, arguments: Mapping[str, Any]) -> Env:
        drawn = {} if self._render_mode is None else {"render_mode": self._render_mode}
        return self._maker({**self._kwargs, **arguments, **drawn})

    def _make_alike(self, arguments: Mapping[str, Any]) -> Env:
        """Return an environment for a task.

        :raises ConfigError: its spaces are not the family's.
        """
        env = self._make(arguments)
        if (_observed(self.id, env), env.action_space) != (self.observation_space, self.action_space):
            env.close()
            raise ConfigError(f"{self.id} has other spaces with {shorten(dict(arguments))}: tasks need equal ones")
        return env

    def _seen(self, obs: Any) -> Any:
        """Return an observation, whose shape NumPy would stretch to that of its space.

        :raises ConfigError: it is of another shape.
        """
        if np.shape(obs) != self.observation_space.shape:
            space = shorten(self.observation_space, quote=False)
            raise ConfigError(f"{self.id} observes shape {list(np.shape(obs))}, not {space}")
        return obs

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        pool, runs = self._pool.get(), []
        obs = np.zeros((len(rngs), n_envs, *self.observation_space.shape), self.observation_space.dtype)
        for row, rng in enumerate(rngs):
            task = self._task(one_task(tasks, row))
            arguments = {name: task[name] for name in self._by_constructor}
            key = tuple(np.asarray(tasks[name][row]).tobytes() for name in self._by_constructor)
            runs.append([pool.run(key, partial(self._make_alike, arguments)) for _ in range(n_envs)])
            for env, (run, seed) in enumerate(zip(runs[-1], rng.integers(2**31, size=n_envs), strict=True)):
                self._tell(run.instance, task)
                obs[row, env] = self._seen(run.instance.reset(seed=int(seed))[0])
        return start_state(runs), obs

    def _tell(self, env: Env, task: dict[str, Any]) -> None:
        if self._set_task is not None:
            self._set_task(env, dict(task))
        else:
            set_attributes(env, {name: task[name] for name in task if name not in self._by_constructor})

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        space, shape = self.action_space, actions.shape[:2]
        if isinstance(space, spaces.Box):
            actions = np.clip(actions, space.low, space.high).astype(space.dtype)
        obs = np.zeros((*shape, *self.observation_space.shape), self.observation_space.dtype)
        reward, terminated, truncated = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
        for row, env, run in runs_in(self, state, active):
            action = actions[row, env] if isinstance(space, spaces.Box) else int(actions[row, env])
            seen, reward[row, env], ended, cut, _ = run.instance.step(action)
            obs[row, env] = self._seen(seen)
            terminated[row, env], truncated[row, env] = ended, cut and not ended
            run.stepped(over=bool(ended or cut or run.time + 1 >= self.horizon))
        return Step(next_state(state), obs, reward, terminated, {}, truncated)

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return a picture of an episode as it stands now; the states before are gone."""
        if self._render_mode is None:
            return super().render(tasks, trail, task, env)
        try:
            frame = trail[-1]["run"][task, env].instance.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise PictureError(f"{self.id} cannot be drawn: {shorten(error, quote=False)}") from None
        return np.asarray(frame)

    def close(self) -> None:
        pool = self._pool.take()
        if pool is not None:
            pool.close()


def _new_pool() -> Pool:
    return Pool(_close)


def _close(env: Env) -> None:
    env.close()


def _all_tasks(parameters: Mapping[str, Parameter]) -> Tasks | None:
    """Return every combination of values, None where a parameter has a range, or they are too many."""
    lists = [each.numbers for each in parameters.values() if each.numbers is not None]
    if len(lists) < len(parameters) or np.prod([len(numbers) for numbers in lists], dtype=float) > MOST_LISTED:
        return None
    columns = zip(*itertools.product(*lists), strict=True)
    return {
        name: np.array(column, parameters[name].space.dtype) for name, column in zip(parameters, columns, strict=True)
    }


def _is_range(parameter: Parameter) -> bool:
    return parameter.numbers is None


def _observed(id: str, env: Env) -> spaces.Box:
    """Return the space of an environment's observations as policies take them.

    :raises ConfigError: they are no arrays of numbers.
    """
    space = env.observation_space
    if not isinstance(space, spaces.Box):
        raise ConfigError(
            f"{id} observes {shorten(space, quote=False)}: a Box of numbers is needed, which Gymnasium's wrapper "
            "FlattenObservation makes of most spaces, in a function that makes the environment"
        )
    if space.dtype == np.uint8 and len(space.shape) == 3:
        raise ConfigError(f"{id} observes images, {shorten(space, quote=False)}: from_gym takes vectors of numbers")
    with np.errstate(over="ignore"):
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
