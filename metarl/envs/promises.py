"""The promises of a family: one list, for :func:`~metarl.envs.checker.family.check_family` and for learning.

``check_family`` looks for a breach of each. Learning relies on all of them, and refuses what it can see as it goes, in
the same words: declarations when a meta-algorithm or a view is made (:func:`require_sound_declaration`), arrays at the
first step of an episode (:func:`sound_start`, :func:`require_sound_step`), and numbers that are not finite in the env
step that returns them.

**Declarations** (learning refuses these too)

- ``task_space`` is a ``Dict`` of bounded ``Box`` and ``Discrete`` spaces; ``shifted_space`` is None or has the same
  parameters.
- ``observation_space`` is a float32 ``Box`` with at least one axis and one entry, or one of images: uint8 from 0 to
  255, ``[channel, height, width]``.
- ``action_space`` is ``Discrete``, or a bounded ``Box`` of floats with one axis and at least one entry.
- ``horizon`` is a whole number of env steps, 1 or more.
- ``max_copies`` is None, or a whole number of copies, 1 or more.
- ``loss`` is None, ``"squared_error"`` (with a ``Box`` of actions) or ``"cross_entropy"`` (with ``Discrete`` ones).
- ``score`` is None or a :class:`~metarl.envs.score.Score`.
- ``evaluation_family`` and ``query_family`` are None or a family with equal task, observation and action spaces; not
  both are set.
- ``support_family`` is None or a supervised one (:class:`~metarl.envs.supervised.one_step.OneStep`) with an equal task
  space. For every task of the family its ``examples`` are finite, ``[task, n, *space]``, inputs within its observation
  space; task ``i`` draws them from ``rngs[i]`` only.
- Methods take what :class:`~metarl.envs.family.Family` says, by place; ``step`` takes ``active`` too.
- These, and ``spaces(task)``, stay as they are. ``spaces(task)`` are of the same kinds, and equal the family's own for
  some training task. (Learning takes families whose tasks have equal spaces; the interface allows others.)

**Tasks**

- A batch of tasks is a dict of arrays ``[task, ...]`` in the dtypes of ``task_space``, and ``validate_tasks`` takes it.
- ``sample_tasks(rng, n)`` draws ``n`` tasks from ``rng`` and nothing else, and not always the same.
- The first tasks of a split do not change with ``n`` or from call to call. Validation and test tasks differ, shifted
  ones lie outside the training range (``in_training_range``, which training draws lie in), and training draws hold none
  that are held out.
- ``finite_tasks`` lists every task once.
- Of a family of two levels (:class:`~metarl.envs.two_levels.TwoLevels`) ``family_space`` is such a ``Dict`` too.
  ``sample_families(rng, n)`` draws ``n`` points of it, and ``sample_tasks(rng, n, families=families)`` ``n`` tasks of
  each family, one family after the other; both from ``rng`` and nothing else. Parameters that ``family_space`` and
  ``task_space`` both have are the same in a family and its tasks. Training draws hold no family of the validation or
  test split.

**Arrays** (learning refuses other shapes and dtypes too)

- ``reset`` returns ``(state, obs)``, ``step`` a ``Step``. State: numbers ``[task, env, ...]``, the same arrays always.
  Observations: ``[task, env, *observation]`` in their space's dtype. Reward: float64 ``[task, env]``. Terminated: bool.
  Info: numbers
  ``[task, env]``; what is no term of the reward may have further axes. Truncated: None, or bool, and then always.
- Neither changes what it is given, nor what it returned before.

**Numbers** (of copies that have not ended; learning refuses what is not finite)

- Observations are finite and in ``observation_space``; rewards are finite in float32, which is what learning stores.
  That holds for every task that ``validate_tasks`` takes, at the edges of the task space too, at all times, and for the
  last observation of an episode.
- Entries of ``info`` whose names begin with ``reward`` are the terms of the reward and add up to it.
- Where ``loss`` is declared, ``info`` has the ``target`` of every action, ``[task, env, *action]``.
- Actions outside a ``Box`` are clipped to it, as Stable-Baselines3 clips them before it steps an environment, unless
  ``clips_actions`` is False.

**Dynamics**

- A step is a function of tasks, state, actions and generators: a family keeps nothing from one call for the next.
- Task ``i`` draws from ``rngs[i]`` only, and its numbers do not depend on the other tasks, nor on their order.
- Copies do not depend on each other, nor on which of them are ``active``. What is random, is random for each copy.
- Observation and reward belong to the state after the step: they respond to an action no later than the state does.
- What is observed is part of the state, and does not tell the task, at reset or later, unless ``observes_task``: tasks
  are told apart by what they do. Every task parameter changes dynamics or reward; tasks of a list are not all alike.
- What a ``stepper`` gives is what ``step`` does, to the last bit. Where ``draws_in_steps`` is False, ``step`` leaves
  generators as they are.
- Where ``concurrent``, several threads may step the family at once. After ``close`` it can be used again.

**Live families** (``live``: a state holds running instances, see :mod:`metarl.envs.live`)

- State may be objects too. It can be stepped from once, and no promise holds that needs one step repeated: that states
  are left as they are, that equal states look alike, and that observation and reward answer in time.
- Episodes take their place: the same tasks, streams and actions give the same episode to the last bit, whichever
  instances run it, whatever ran in them before and whatever other episodes run side by side.
- What ``restart`` returns may go on from the episode before, and depends on what the copy did since its ``reset``.
- Actions outside a ``Box`` are clipped, and of the task nothing is observed, as in every family: the first observations
  of tasks with one stream are equal.

**Views**

- :class:`~metarl.envs.views.single.SingleEnv` gives the same numbers as the batch, and passes Stable-Baselines3's
  checker.
- Where ``render_fps`` is set, above 0, ``render`` returns a picture ``[height, width, 3]``, uint8, which depends on its
  arguments alone, and leaves them as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.envs.family import LOSSES, Family, State, Step
from metarl.envs.score import Score
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Task
from metarl.envs.two_levels import TwoLevels
from metarl.errors import ConfigError, shorten

HINT = "(metarl.envs.check_family says more)"


def broken_declaration(family: Family) -> str | None:
    """Return what is wrong with the attributes that every family sets, None if nothing is."""
    for name in ("task_space", "observation_space", "action_space", "horizon"):
        if not hasattr(family, name):
            return f"{name} is not set: __init__ does that"
    name, horizon = (getattr(family, attribute) for attribute in ("id", "horizon"))
    if not isinstance(name, str):
        return f"id={shorten(name)}: a str"
    if not isinstance(horizon, int | np.integer) or isinstance(horizon, bool):
        return f"horizon={shorten(horizon)}: an int"
    if horizon < 1:
        return f"horizon={horizon}: at least 1 env step"
    fault = _broken_task_space("task_space", family.task_space)
    if fault is None and family.shifted_space is not None:
        fault = _broken_task_space("shifted_space", family.shifted_space)
        if fault is None and _parameters(family.shifted_space) != _parameters(family.task_space):
            return "shifted_space and task_space have different parameters"
    if fault is None and isinstance(family, TwoLevels):
        fault = _broken_task_space("family_space", getattr(family, "family_space", None))
    copies: Any = family.max_copies
    if copies is not None and (isinstance(copies, bool) or not isinstance(copies, int | np.integer) or copies < 1):
        return f"max_copies={shorten(copies)}: None, or at least 1"
    for name in ("concurrent", "draws_in_steps", "live", "observes_task", "clips_actions"):
        if not isinstance(getattr(family, name), bool | np.bool_):
            return f"{name}={shorten(getattr(family, name))}: a bool"
    fault = fault or _broken_methods(family) or broken_spaces(family.observation_space, family.action_space)
    fault = fault or _broken_loss(family) or _broken_score(family) or _broken_evaluation(family)
    return fault or _broken_support(family) or _broken_levels(family)


def require_sound_declaration(family: Family) -> None:
    """Look at what every family sets.

    :raises ConfigError: something is not as promised.
    """
    fault = broken_declaration(family)
    if fault is not None:
        raise ConfigError(f"{_name_of(family)}: {fault} {HINT}")


def spaces_of(family: Family, task: Task) -> tuple[spaces.Box, spaces.Space[Any]]:
    """Return the observation and action space of one task.

    :raises ConfigError: ``spaces`` returned something else.
    """
    pair: Any = family.spaces(task)
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(each, spaces.Space) for each in pair)):
        raise ConfigError(f"{_name_of(family)}: spaces(task) is {kind_of(pair)}, not a pair of spaces {HINT}")
    return pair[0], pair[1]


_CALLS = {
    "reset": ("tasks", "rngs", "n_envs"),
    "restart": ("tasks", "state", "rngs", "n_envs"),
    "step": ("tasks", "state", "actions", "rngs", "active"),
    "sample_tasks": ("rng", "n"),
    "sample_shifted_tasks": ("rng", "n"),
    "in_training_range": ("tasks",),
    "finite_tasks": (),
    "tasks": ("split", "n"),
    "validate_tasks": ("tasks",),
    "spaces": ("task",),
    "shared_by": ("n_callers",),
    "close": (),
}
"""What each method is called with, by place."""


def _broken_methods(family: Family) -> str | None:
    """Return which method cannot be called as all families' can, None if each can."""
    return _broken_calls(family, _CALLS)


def _broken_calls(family: Family, calls: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return which of some methods cannot be called with what it is to be called with, None if each can."""
    for name, arguments in calls.items():
        method = getattr(family, name)
        if not callable(method):
            return f"{name} is {kind_of(method)}, not a method"
        try:
            signature = inspect.signature(method)
            signature.bind(*arguments)
        except TypeError as error:
            words = shorten(signature, quote=False)
            return f"{name}{words} is called as {name}({', '.join(arguments)}): {shorten(error, quote=False)}"
        except ValueError:  # native code may hide its signature
            continue
    return None


def _broken_loss(family: Family) -> str | None:
    """Return why no prediction can cost what the family declares, None if one can."""
    loss = family.loss
    if loss is None:
        return None
    if loss not in LOSSES:
        return f"loss={shorten(loss)}: None or one of {', '.join(LOSSES)}"
    if not isinstance(family.action_space, LOSSES[loss]):
        taken = shorten(family.action_space, quote=False)
        return f"loss={loss!r} with action_space {taken}: it takes a {LOSSES[loss].__name__}"
    return None


def _broken_score(family: Family) -> str | None:
    """Return why returns cannot be shown as the family declares, None if they can."""
    score: Any = family.score
    return None if score is None or isinstance(score, Score) else f"score is {kind_of(score)}, not None or a Score"


def _broken_evaluation(family: Family) -> str | None:
    """Return why policies cannot be scored in another family, None if they can or are scored in this one."""
    for which in ("evaluation_family", "query_family"):
        other: Any = getattr(family, which)
        if other is None:
            continue
        if not isinstance(other, Family):
            return f"{which} is {kind_of(other)}, not a family"
        for name in ("task_space", "observation_space", "action_space"):
            if getattr(other, name) != getattr(family, name):
                return f"{which} {_name_of(other)} has another {name}"
    if family.evaluation_family is not None and family.query_family is not None:
        return "evaluation_family and query_family are set: scores are had in one family"
    if not _is_count(family.evaluation_episodes):
        return f"evaluation_episodes={shorten(family.evaluation_episodes)}: a number of episodes, at least 1"
    return None


def _broken_support(family: Family) -> str | None:
    """Return why tasks cannot be seen in the family that is declared for it, None if they can or there is none."""
    other: Any = family.support_family
    if other is None:
        return None
    if not isinstance(other, OneStep):
        return f"support_family is {kind_of(other)}, not a supervised family: a OneStep"
    if other.task_space != family.task_space:
        return f"support_family {_name_of(other)} has another task_space"
    if other.support_family is not None:
        return f"support_family {_name_of(other)} has one itself"
    fault = broken_declaration(other)
    return None if fault is None else f"support_family {_name_of(other)}: {fault}"


def _broken_levels(family: Family) -> str | None:
    """Return which method of a family of two levels cannot be called as all can, None if each can or it has one."""
    if not isinstance(family, TwoLevels):
        return None
    calls = {
        "sample_families": ("rng", "n"),
        "tasks_within": ("rng", "families"),
        "sample_tasks": ("rng", "n", "families"),
    }
    return _broken_calls(family, calls)


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number, 1 or more."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def broken_spaces(observation_space: Any, action_space: Any) -> str | None:
    """Return why policies or Stable-Baselines3 would not take a pair of spaces, None if they do."""
    seen, taken = (shorten(space, quote=False) for space in (observation_space, action_space))
    if not isinstance(observation_space, spaces.Box) or not (
        observation_space.dtype == np.float32 or is_image(observation_space)
    ):
        return f"observation_space {seen} is not a float32 Box, nor one of images: uint8 of three axes from 0 to 255"
    if observation_space.shape == ():
        return f"observation_space {seen} is a scalar: give it shape (1,)"
    if 0 in observation_space.shape:
        return f"observation_space {seen} has no entries"
    if isinstance(action_space, spaces.Discrete):
        return None
    if not isinstance(action_space, spaces.Box) or action_space.dtype is None or action_space.dtype.kind != "f":
        return f"action_space {taken} is not a Box of floats or Discrete"
    if len(action_space.shape) != 1 or action_space.shape == (0,):
        return f"action_space {taken} is not a Box of one axis: give it shape ({max(1, np.prod(action_space.shape))},)"
    if not action_space.is_bounded():
        return f"action_space {taken} is not bounded: Stable-Baselines3 takes finite bounds"
    return None


def is_image(space: spaces.Box) -> bool:
    """Whether observations are images as Stable-Baselines3 knows them."""
    bounds = bool((space.low == 0).all() and (space.high == 255).all())
    return len(space.shape) == 3 and space.dtype == np.uint8 and bounds


def broken_start(first: Any, batch: tuple[int, int], observation_space: spaces.Box, live: bool = False) -> str | None:
    """Return what is wrong with the arrays that ``reset`` returned, None if nothing is.

    :param batch: how many tasks and copies there are.
    :param live: whether states may hold objects.
    """
    if not (isinstance(first, tuple) and len(first) == 2):
        return f"reset returns {kind_of(first)}, not (state, obs)"
    return _broken_obs("reset", first[1], batch, observation_space) or _broken_state("reset", first[0], batch, live)


def broken_step(step: Any, batch: tuple[int, int], observation_space: spaces.Box, live: bool = False) -> str | None:
    """Return what is wrong with the arrays that ``step`` returned, None if nothing is.

    :param batch: how many tasks and copies there are.
    :param live: whether states may hold objects.
    """
    if not isinstance(step, Step):
        return f"step returns {kind_of(step)}, not a Step"
    fault = _broken_obs("step", step.obs, batch, observation_space)
    if fault is not None:
        return fault
    for name, array, dtype in (("reward", step.reward, np.float64), ("terminated", step.terminated, np.bool_)):
        if not (isinstance(array, np.ndarray) and array.shape == batch and array.dtype == dtype):
            return f"{name} is {kind_of(array)}, not {list(batch)} {np.dtype(dtype).name}"
    cut: Any = step.truncated
    if cut is not None and not (isinstance(cut, np.ndarray) and cut.shape == batch and cut.dtype == np.bool_):
        return f"truncated is {kind_of(cut)}, not {list(batch)} bool"
    info: Any = step.info
    if not isinstance(info, Mapping):
        return f"info is {kind_of(info)}, not a dict of arrays"
    for name, value in info.items():
        right = isinstance(value, np.ndarray) and value.shape[:2] == batch and value.dtype.kind in "biuf"
        if not (right and isinstance(name, str) and (value.ndim == 2 or not name.startswith("reward"))):
            return f"info {shorten(name)} is {kind_of(value)}, not numbers {list(batch)}"
    return _broken_state("step", step.state, batch, live)


def broken_target(
    info: Mapping[str, np.ndarray], batch: tuple[int, int], action_space: spaces.Space[Any]
) -> str | None:
    """Return what is wrong with the targets of a family that declares a loss, None if nothing is.

    :param info: of a step.
    """
    target = info.get("target")
    if target is None:
        return "loss is declared, and info has no target"
    shape, discrete = (*batch, *(action_space.shape or ())), isinstance(action_space, spaces.Discrete)
    if target.shape != shape or (discrete and target.dtype.kind not in "iu"):
        return f"info 'target' is {kind_of(target)}, not {list(shape)} {'integers' if discrete else 'numbers'}"
    if isinstance(action_space, spaces.Discrete):
        outside = ~np.isin(target, action_space.start + np.arange(action_space.n))
        if outside.any():
            return f"info 'target' has {target[outside][0]}, which {shorten(action_space, quote=False)} has not"
    return None


def sound_start(
    family: Family, first: Any, batch: tuple[int, int], observation_space: spaces.Box
) -> tuple[State, np.ndarray]:
    """Return what ``reset`` returned.

    :raises ConfigError: its arrays are not as promised.
    """
    fault = broken_start(first, batch, observation_space, family.live)
    if fault is not None:
        raise ConfigError(f"{_name_of(family)}: {fault} {HINT}")
    return first[0], first[1]


def require_sound_step(family: Family, step: Any, batch: tuple[int, int], observation_space: spaces.Box) -> None:
    """Look at what ``step`` returned.

    :raises ConfigError: its arrays are not as promised.
    """
    fault = broken_step(step, batch, observation_space, family.live)
    if fault is not None:
        raise ConfigError(f"{_name_of(family)}: {fault} {HINT}")


def _name_of(family: Family) -> str:
    name = getattr(family, "id", "")
    return name if name and isinstance(name, str) else type(family).__name__


def kind_of(value: Any) -> str:
    """Return what a value is in a few words."""
    if isinstance(value, np.ndarray):
        return f"{list(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {kind_of(part)}' for name, part in value.items())}}}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _broken_obs(source: str, obs: Any, batch: tuple[int, int], space: spaces.Box) -> str | None:
    shape = (*batch, *space.shape)
    if isinstance(obs, np.ndarray) and obs.shape == shape and obs.dtype == space.dtype:
        return None
    words = shorten(space, quote=False)
    return f"{source} observes {kind_of(obs)}, not {list(shape)} {space.dtype} in {words}"


def _broken_state(source: str, state: Any, batch: tuple[int, int], live: bool) -> str | None:
    if not isinstance(state, Mapping):
        return f"{source} gives a state that is {kind_of(state)}, not a dict of arrays"
    kinds = "biufO" if live else "biuf"
    for name, value in state.items():
        if not (isinstance(value, np.ndarray) and value.shape[:2] == batch and value.dtype.kind in kinds):
            return f"state {shorten(name)} is {kind_of(value)}, not numbers [task, env, ...]"
    return None


def _broken_task_space(name: str, space: Any) -> str | None:
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    sound = len(parts) > 0 and all(
        isinstance(part, spaces.Discrete) or (isinstance(part, spaces.Box) and part.is_bounded())
        for part in parts.values()
    )
    return None if sound else f"{name} {shorten(space, quote=False)} is not a Dict of bounded Box and Discrete spaces"


def _parameters(space: spaces.Dict) -> dict[str, Any]:
    """Return the kind and shape of every task parameter."""
    return {name: (type(part), part.shape) for name, part in space.spaces.items()}
