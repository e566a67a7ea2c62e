"""The single Gymnasium view of a family, beside its batch."""

from __future__ import annotations

import copy
from typing import Any

from metarl.envs.checker.common import FamilyCheckError, alike, blame, family_name, number, where
from metarl.envs.checker.probe import Probe
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, one_task
from metarl.envs.views.single import SingleEnv, episode_stream
from metarl.errors import MetaRLError, shorten


def check_single(family: Family, tasks: Tasks, n_steps: int, seed: int) -> None:
    """Require that the single view of one task gives the batch's numbers and passes Stable-Baselines3's checker."""
    observation_space, action_space = family.spaces(one_task(tasks, 0))
    probe = Probe(family, tasks, observation_space, action_space, 1, n_steps, seed)
    rngs = [episode_stream(seed)]
    env = SingleEnv(family, **one_task(tasks, 0))
    state, obs = probe.reset(tasks, rngs)
    seen, _ = env.reset(seed=seed)
    require_alike(probe, tasks, 0, "start", {"obs": (obs[0, 0], seen)})
    for time, action in enumerate(probe.actions(min(n_steps, family.horizon)), start=1):
        step = probe.step(tasks, state, action[None], rngs, None, time)
        seen, reward, terminated, truncated, _ = env.step(action[0])
        pairs: dict[str, tuple[Any, Any]] = {"obs": (step.obs[0, 0], seen), "reward": (step.reward[0, 0], reward)}
        pairs["terminated"] = step.terminated[0, 0], terminated
        pairs["truncated"] = not terminated and (step.ended[0, 0] or time == family.horizon), truncated
        require_alike(probe, tasks, time, "step", pairs)
        if terminated or truncated:
            break
        state = step.state
    from stable_baselines3.common.env_checker import check_env

    # It draws actions; the family's own space stays as it is.
    env.action_space = copy.deepcopy(env.action_space)
    env.action_space.seed(seed)
    try:
        check_env(env, warn=False)
    except (AssertionError, ValueError, TypeError, MetaRLError) as error:
        message = f"Stable-Baselines3's check_env: {shorten(error, quote=False, limit=300)}"
        raise FamilyCheckError(f"{family_name(family)}: {message}") from error
    except Exception as error:
        raise FamilyCheckError(f"{family_name(family)}: Stable-Baselines3's check_env: {blame(error)}") from error


def require_alike(probe: Probe, tasks: Tasks, time: int, does: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    """Require that pairs of values of the batch and of the view agree to the last bit."""
    for name, (batch, view) in pairs.items():
        what = f"{name} {number(view)} and {number(batch)} {where(time, tasks, 0)}"
        probe.require(alike(batch, view), f"the single view and the batched one {does} differently: {what}")
