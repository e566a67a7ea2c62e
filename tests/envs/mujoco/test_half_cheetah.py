"""The HalfCheetah families: physics against Gymnasium, centre of mass, observation, reward, lineages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs.family import State, Step
from metarl.envs.mujoco.half_cheetah import DIR_LINEAGES, VEL_LINEAGES, HalfCheetah
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, UnknownNameError
from metarl.streams import stream
from tests.envs.streams import task_streams


def cheetah(id: str, **arguments: Any) -> HalfCheetah:
    family = make_family(id, **arguments)
    assert isinstance(family, HalfCheetah)
    return family


def run(family: HalfCheetah, tasks: Tasks, n_steps: int) -> tuple[State, np.ndarray, Step]:
    """Step two copies with random actions; return the last state before a step, the actions there, and the step."""
    scale = family.constants.action_scale
    n = len(next(iter(tasks.values())))
    rngs = task_streams(0, "test", 0, n)
    state, _ = family.reset(tasks, rngs, 2)
    actions = stream(0, "actions").uniform(-1.2 * scale, 1.2 * scale, size=(n_steps, n, 2, 6))
    for action in actions:
        before = state
        step = family.step(tasks, state, action, rngs)
        state = step.state
    return before, action, step


def forward(family: HalfCheetah, physics: np.ndarray) -> mujoco.MjData:
    model = family.model.step
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(model, data)
    mujoco.mj_subtreeVel(model, data)
    return data


def test_trajectory_is_that_of_half_cheetah_v5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs a deprecated attribute of Gymnasium's file in the working directory.
    env = gymnasium.make("HalfCheetah-v5", disable_env_checker=True).unwrapped
    env.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    env.reset(seed=1)
    family = cheetah("HalfCheetahDir-v0", lineage="gymnasium")
    tasks = {"direction": np.ones(1)}
    state, _ = family.reset(tasks, [stream(0, "test")], 1)
    state["physics"][0, 0] = np.concatenate([[0.0], env.data.qpos, env.data.qvel])
    for action in stream(0, "actions").uniform(-1, 1, size=(100, 6)).astype(np.float32):
        obs, reward, *_ = env.step(action)
        step = family.step(tasks, state, action[None, None], [stream(0, "unused")])
        state = step.state
        np.testing.assert_array_equal(state["physics"][0, 0, 1:], np.concatenate([env.data.qpos, env.data.qvel]))
        np.testing.assert_array_equal(step.obs[0, 0], obs.astype(np.float32))
        assert step.reward[0, 0] == pytest.approx(reward, rel=1e-6, abs=1e-6)
    env.close()


@pytest.mark.parametrize("physics", ["reference", "gymnasium"])
def test_centre_of_mass_in_closed_form(physics: str) -> None:
    family = cheetah("HalfCheetahVel-v0", physics=physics)
    for n_steps in (1, 40):
        _, _, step = run(family, {"velocity": np.array([0.5, 1.5])}, n_steps)
        for index in np.ndindex(2, 2):
            physics_state = step.state["physics"][index][None]
            position, velocity = family._com(family.qpos(physics_state), family.qvel(physics_state))
            data = forward(family, physics_state[0])
            np.testing.assert_allclose(position[0], data.subtree_com[1], rtol=0, atol=1e-13)
            np.testing.assert_allclose(velocity[0], data.subtree_linvel[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lineage", list(VEL_LINEAGES))
def test_observation_and_reward_by_hand(lineage: str) -> None:
    for id, tasks in (
        ("HalfCheetahVel-v0", {"velocity": np.array([0.4, 1.7])}),
        ("HalfCheetahDir-v0", {"direction": np.array([-1.0, 1.0])}),
    ):
        family = cheetah(id, lineage=lineage)
        constants = family.constants
        before, action, step = run(family, tasks, 15)
        assert f"``{lineage}``" in (type(family).__doc__ or "")
        assert not step.terminated.any()
        for index in np.ndindex(2, 2):
            data = forward(family, step.state["physics"][index])
            u = np.clip(action[index] / constants.action_scale, -1, 1)
            if lineage == "maml_rl":
                velocity, where = data.subtree_linvel[1, 0], data.subtree_com[1]
            else:
                velocity, where = (data.qpos[0] - before["physics"][index][1]) / family.dt, data.xpos[1]
            if "velocity" in tasks:
                goal = -abs(velocity - tasks["velocity"][index[0]])
            else:
                goal = tasks["direction"][index[0]] * velocity
            cost = (0.1 if lineage == "gymnasium" else 0.05) * (u**2).sum()
            assert step.reward[index] == pytest.approx(goal - cost, rel=1e-10, abs=1e-12)
            parts = [data.qpos[1:], data.qvel] + ([where] if lineage not in ("promp", "gymnasium") else [])
            np.testing.assert_allclose(step.obs[index], np.concatenate(parts).astype(np.float32), rtol=1e-6, atol=1e-7)


def test_definitions() -> None:
    family = cheetah("HalfCheetahVel-v0")
    assert (family.dt, family.horizon, family.observation_space.shape) == (0.01, 200, (20,))
    assert family.model.step.body_subtreemass[1] == pytest.approx(14.0)
    shifted = family.tasks("shifted", 20)["velocity"]
    assert shifted.min() >= 2
    assert shifted.max() <= 3
    assert family.sample_tasks(stream(0, "tasks"), 500)["velocity"].max() <= 2
    assert cheetah("HalfCheetahVel-v0", lineage="promp").task_space["velocity"].high == 3.0
    ported = cheetah("HalfCheetahDir-v0", lineage="pmr")
    assert (round(ported.dt, 10), ported.horizon, float(ported.action_space.high[0])) == (0.05, 100, 10.0)
    assert sorted(ported.tasks("test")["direction"]) == [-1.0, 1.0]
    assert set(DIR_LINEAGES) == set(VEL_LINEAGES)


@pytest.mark.parametrize(
    ("id", "arguments", "error", "text"),
    [
        ("HalfCheetahVel-v0", {"lineage": "rllab"}, UnknownNameError, "lineage"),
        ("HalfCheetahDir-v0", {"max_velocity": 2.0}, UnknownNameError, "max_velocity"),
        ("HalfCheetahVel-v0", {"observation": 125}, ConfigError, "20"),
        ("HalfCheetahVel-v0", {"max_velocity": 0.0}, ConfigError, "max_velocity"),
    ],
)
def test_bad_arguments(id: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_family(id, **arguments)
