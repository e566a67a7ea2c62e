"""What every view of a family checks: actions, tasks set from outside, options and seeds of a reset, the horizon.

One place, so that :class:`metarl.envs.views.single.SingleEnv`, :class:`metarl.envs.views.vec_env.FamilyVecEnv` and the
collectors of
:mod:`metarl.agents.sampling` take and refuse the same things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeLimit

from metarl.checks import SEED, as_array
from metarl.envs.family import Family, sound_tasks
from metarl.envs.registry import KEEP_HORIZON, takes_argument
from metarl.envs.tasks import Task, Tasks, describe_range, one_task
from metarl.errors import ConfigError, DivergedError, NonFiniteError, TaskError, shorten, unknown_name

ENTRY_POINT = "metarl.envs.views.single:SingleEnv"


# ------------------------------------------------------------------------------------------------------------- actions
def as_actions(
    given: Any, space: spaces.Space[Any], copies: int | None, name: str, where: Callable[[int], str]
) -> np.ndarray:
    """Return what a view was given as actions that its family can be stepped with.

    Floats keep their precision; what lies outside a Box is left for the family to clip.

    :param given: one action, or one for each copy; anything that NumPy takes for real numbers of the right shape. A
        Discrete space takes integers only.
    :param copies: how many copies there are; None for a single action, without a copy axis.
    :param name: what takes the actions, for messages.
    :param where: says which step of which copy it is, given the copy's index, for messages.
    :raises ConfigError: another shape, what is no number, or outside a Discrete space.
    :raises DivergedError: NaN or infinite.
    """
    discrete = isinstance(space, spaces.Discrete)
    shape = (*(() if copies is None else (copies,)), *(space.shape or ()))

    def refusal(what: str) -> ConfigError:
        word = "action" if copies is None else "actions"
        takes = f"{name} takes" if copies in (None, 1) else f"{copies} copies of {name} take"
        numbers = "integers" if discrete else "real numbers"
        return ConfigError(f"{word} {what}: {takes} {numbers} of shape {list(shape)}, {describe_range(space)}")

    try:
        actions = as_array(given)
    except Exception as error:  # whatever an object's own conversion raises
        raise refusal(f"{shorten(given)} ({shorten(error, quote=False)})") from None
    if actions.dtype.kind not in ("iu" if discrete else "iuf"):
        raise refusal(f"{shorten(given)} of dtype {shorten(actions.dtype, quote=False)}")
    if actions.shape != shape:
        raise refusal(f"of shape {list(actions.shape)}")
    if isinstance(space, spaces.Discrete):
        outside = (actions < space.start) | (actions >= space.start + space.n)
        if outside.any():
            raise refusal(f"with {actions.ravel()[np.argmax(outside)]}" if shape else str(actions))
        return actions.astype(np.int64, copy=False)
    dtype = np.float64 if actions.dtype.itemsize > 8 else np.result_type(actions.dtype, space.dtype or np.float32)
    with np.errstate(over="ignore"):
        # What float64 does not hold becomes infinite.
        actions = actions.astype(dtype, copy=False)
    require_finite("action", actions if copies is not None else actions[None], where)
    return actions


def require_finite(what: str, values: np.ndarray, where: Callable[[int], str]) -> None:
    """Raise unless all values are finite.

    :param what: ``"observation"``, ``"action"`` or ``"reward"``.
    :param values: ``[row, ...]``.
    :param where: says which step of which copy a row is.
    :raises NonFiniteError: one is NaN or infinite; :class:`~metarl.errors.DivergedError` for an action.
    """
    if values.dtype.kind in "biu":  # images
        return
    finite = np.isfinite(values)
    if not finite.all():
        kind = DivergedError if what == "action" else NonFiniteError
        raise kind(f"non-finite {what} in {where(int(np.argmin(finite.reshape(len(values), -1).all(1))))}")


def reset_needed(family: Family) -> ResetNeeded:
    """Return the error of a step or a picture outside an episode."""
    return ResetNeeded(f"{family.id}: reset() starts an episode")


# -------------------------------------------------------------------------------------------- families, tasks and seeds
def require_family_or_name(given: Any) -> None:
    """Raise :class:`ConfigError` unless a view can be made of what was given."""
    if not isinstance(given, str | Family):
        raise ConfigError(f"family={shorten(given)}: a registered name, or a family such as make_family returns")


def as_batch(family: Family, task: Mapping[str, Any]) -> Tasks:
    """Return one task, validated, as a batch of one.

    :raises TaskError: not a task of the family.
    """
    if not isinstance(task, Mapping):
        raise TaskError(f"task={shorten(task)}: {family.id} takes a dict of {', '.join(family.task_space.spaces)}")
    tasks = family.validate_tasks({name: [value] for name, value in task.items()})
    return sound_tasks(family, "validate_tasks", tasks, 1)


def next_tasks(family: Family, task: Mapping[str, Any], pair: tuple[spaces.Space[Any], spaces.Space[Any]]) -> Tasks:
    """Return one task that a view is given while it is used, as a batch of one.

    :param pair: the view's observation and action space.
    :raises TaskError: not a task of the family, or one of other spaces.
    """
    tasks = as_batch(family, task)
    if family.spaces(one_task(tasks, 0)) != pair:
        raise TaskError(f"task {shorten(dict(task))} of {family.id} has other spaces: make an environment for it")
    return tasks


def own_task(tasks: Tasks, index: int) -> Task:
    """Return one task of a batch that may be changed without changing the batch."""
    return {name: value.copy() for name, value in one_task(tasks, index).items()}


def own_info(value: np.ndarray) -> float | np.ndarray:
    """Return what a step reports of one copy: a number, or an array that may be changed."""
    return value.copy() if np.ndim(value) else float(value)


def describe_task(tasks: Tasks, index: int) -> str:
    """Return one task of a batch for messages."""
    return str({name: np.asarray(value).tolist() for name, value in one_task(tasks, index).items()})


def task_option(options: Any) -> Mapping[str, Any]:
    """Return the options of a reset: nothing, or a ``task``.

    :raises ConfigError: not a dict.
    :raises UnknownNameError: anything else in it.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"reset options {shorten(options)}: a dict such as {{'task': {{...}}}}")
    for name in options:
        if name != "task":
            raise unknown_name("reset option", name, ["task"])
    return options


def as_seed(seed: Any) -> int:
    """Return a seed as a Python integer.

    :raises ConfigError: not an integer of at least 0.
    """
    return SEED("seed", seed)


# ------------------------------------------------------------------------------------------------------------- pictures
class RenderModeError(ConfigError, TypeError):
    """A kind of pictures that there is not. A TypeError too: after one, SB3's ``make_vec_env`` asks for none."""


def as_metadata(family: Family, render_mode: str | None) -> dict[str, Any]:
    """Return a view's metadata, Gymnasium's list of what can be drawn and how fast.

    :raises RenderModeError: ``render_mode`` is not in it.
    """
    modes = [] if family.render_fps is None else ["rgb_array"]
    if render_mode is not None and render_mode not in modes:
        takes = "takes 'rgb_array' or None" if modes else "is not drawn"
        raise RenderModeError(f"render_mode={shorten(render_mode)}: {family.id} {takes}")
    return {"render_modes": modes, "render_fps": family.render_fps}


# ------------------------------------------------------------------------------------------------------------- horizon
@dataclass(frozen=True)
class _ViewOf:
    """Makes further single views of one family object; copies of a spec share it."""

    view: Callable[..., gymnasium.Env[Any, Any]]
    family: Family

    def __call__(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        return self.view(self.family, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _ViewOf:
        return self


def view_spec(
    view: Callable[..., gymnasium.Env[Any, Any]], family: Family, name: str | None, kwargs: Mapping[str, Any]
) -> EnvSpec:
    """Return Gymnasium's specification of a view that :func:`gymnasium.make` did not make; wrappers read the horizon.

    :param view: makes single views.
    :param name: the registered name that the family was built from; None for a family object.
    :param kwargs: the task, and arguments of a registered family.
    """
    spec_id = re.sub(r"[^\w:.-]", "-", family.id or type(family).__name__)
    given = dict(kwargs) if name is None else {"family": name, **kwargs}
    entry_point = _ViewOf(view, family) if name is None else ENTRY_POINT
    return _with_horizon(EnvSpec(spec_id, entry_point=entry_point, kwargs=given), family)


def _with_horizon(spec: EnvSpec, family: Family) -> EnvSpec:
    return replace(spec, max_episode_steps=family.horizon, additional_wrappers=(KEEP_HORIZON,))


def keep_horizon(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Tell Gymnasium a view's horizon, and keep ``gymnasium.make`` from cutting its episodes anywhere else.

    The view ends its episodes by itself: a ``TimeLimit`` of the same length is taken off again. Gymnasium calls this
    after making any view of a registered family, as it would a wrapper.

    :raises ConfigError: ``max_episode_steps`` is not the family's horizon.
    """
    view: Any = env.unwrapped
    family: Family = view.family
    if isinstance(env, TimeLimit):
        steps = env._max_episode_steps
        if steps != family.horizon:
            argument = view.spec.entry_point == ENTRY_POINT and takes_argument(family.id, "horizon")
            hint = f"make the environment with horizon={steps} instead" if argument else "it cannot be changed"
            raise ConfigError(
                f"max_episode_steps={steps} contradicts the horizon of {family.id}, {family.horizon} env steps: {hint}"
            )
        env = env.env
    view.spec = _with_horizon(view.spec, family)
    return env
