"""The Ant families: physics against Gymnasium and MuJoCo itself, observation, reward, termination, lineages."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs.family import State, Step
from metarl.envs.mujoco.ant import DIR_LINEAGES, VEL_LINEAGES, Ant
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, TaskError, UnknownNameError
from metarl.streams import stream
from tests.envs.streams import task_streams

FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS


def ant(id: str, **arguments: Any) -> Ant:
    family = make_family(id, **arguments)
    assert isinstance(family, Ant)
    return family


def run(family: Ant, tasks: Tasks, n_envs: int, n_steps: int, scale: float = 1.0) -> tuple[State, np.ndarray, Step]:
    """Step with random actions; return the last state before a step, the actions taken there, and the step."""
    n = len(next(iter(tasks.values())))
    rngs = task_streams(0, "test", 0, n)
    state, _ = family.reset(tasks, rngs, n_envs)
    actions = stream(0, "actions").uniform(-1.2 * scale, 1.2 * scale, size=(n_steps, n, n_envs, 8))
    for action in actions:
        before = state
        step = family.step(tasks, state, action, rngs)
        state = step.state
    return before, action, step


def forward(model: mujoco.MjModel, physics: np.ndarray, control: np.ndarray) -> mujoco.MjData:
    """Evaluate a state from scratch, contact forces and subtree velocities included."""
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, physics, FULL)
    data.ctrl[:] = control
    mujoco.mj_forward(model, data)
    mujoco.mj_rnePostConstraint(model, data)
    mujoco.mj_subtreeVel(model, data)
    return data


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("warm_start", [True, False])
def test_trajectory_is_that_of_ant_v5(cold: bool, warm_start: bool) -> None:
    env = gymnasium.make("Ant-v5", disable_env_checker=True).unwrapped
    if cold:
        env.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    env.reset(seed=1)
    family = ant("AntDir-v0", lineage="gymnasium", warm_start=warm_start)
    tasks = {"direction": np.ones(1)}
    state, _ = family.reset(tasks, [stream(0, "test")], 1)
    state["physics"][0, 0] = np.concatenate([[0.0], env.data.qpos, env.data.qvel])
    touched = 0
    for action in stream(0, "actions").uniform(-1, 1, size=(100, 8)).astype(np.float32):
        env.step(action)
        step = family.step(tasks, state, action[None, None], [stream(0, "unused")])
        state = step.state
        touched += int(env.data.ncon > 0)
    assert touched > 20
    expected = np.concatenate([env.data.qpos, env.data.qvel])
    if cold and not warm_start:
        np.testing.assert_array_equal(state["physics"][0, 0, 1:], expected)
    np.testing.assert_allclose(state["physics"][0, 0, 1:], expected, rtol=0, atol=1e-6)
    env.close()


@pytest.mark.parametrize("physics", ["reference", "gymnasium"])
def test_contact_forces_are_cfrc_ext(physics: str) -> None:
    family = ant("AntVel-v0", physics=physics)
    family._contact_limit = np.inf
    rows = []
    for n_steps in (10, 60, 90):
        _, action, step = run(family, {"velocity": np.array([0.5, 1.0])}, 4, n_steps)
        states, controls = step.state["physics"].reshape(8, -1), np.clip(action.reshape(8, 8), -1, 1)
        whole = family._rows({}, family.models({}), (2, 4), None)
        sensed, _ = family._sense(whole, states, controls[:, None])
        assert sensed is not None
        for row in range(8):
            data = forward(family.model.step, states[row], controls[row])
            np.testing.assert_array_equal(data.cfrc_ext[0], 0.0)
            np.testing.assert_allclose(sensed.contact[row], data.cfrc_ext[1:].reshape(-1), rtol=0, atol=1e-12)
            np.testing.assert_allclose(sensed.com[row], data.subtree_com[1], rtol=0, atol=1e-14)
            np.testing.assert_allclose(sensed.com_velocity[row], data.subtree_linvel[1], rtol=0, atol=1e-14)
            np.testing.assert_allclose(sensed.rotation[row], data.xmat[1], rtol=0, atol=1e-14)
            rows.append(np.abs(data.cfrc_ext).max())
    assert (np.array(rows) > 1).sum() >= 4


@pytest.mark.parametrize("physics", ["reference", "gymnasium"])
@pytest.mark.parametrize("point", ["com", "torso"])
@pytest.mark.parametrize("observation", [125, 111, 105, 27])
def test_observation_is_that_of_the_state_after_the_step(physics: str, point: str, observation: int) -> None:
    family = ant("AntVel-v0", physics=physics, point=point, observation=observation)
    _, action, step = run(family, {"velocity": np.array([0.5, 1.0])}, 2, 25)
    assert step.obs.shape == (2, 2, observation)
    for index in np.ndindex(2, 2):
        data = forward(family.model.step, step.state["physics"][index], np.clip(action[index], -1, 1))
        force = np.clip(data.cfrc_ext, -1, 1)
        parts = {
            125: [
                data.qpos,
                data.qvel,
                force.reshape(-1),
                data.xmat[1],
                data.subtree_com[1] if point == "com" else data.xpos[1],
            ],
            111: [data.qpos[2:], data.qvel, force.reshape(-1)],
            105: [data.qpos[2:], data.qvel, force[1:].reshape(-1)],
            27: [data.qpos[2:], data.qvel],
        }[observation]
        np.testing.assert_allclose(step.obs[index], np.concatenate(parts).astype(np.float32), rtol=1e-6, atol=1e-7)


def test_reset_observation_is_that_of_the_state_without_controls() -> None:
    family = ant("AntVel-v0")
    state, obs = family.reset({"velocity": np.array([0.5, 1.0])}, task_streams(0, "test", 0, 2), 3)
    for index in np.ndindex(2, 3):
        data = forward(family.model.step, state["physics"][index], np.zeros(8))
        force = np.clip(data.cfrc_ext, -1, 1).reshape(-1)
        parts = [data.qpos, data.qvel, force, data.xmat[1], data.subtree_com[1]]
        np.testing.assert_allclose(obs[index], np.concatenate(parts).astype(np.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("id", "tasks", "lineage", "arguments"),
    [
        ("AntVel-v0", {"velocity": np.array([0.3, 2.0])}, "maml_rl", {}),
        ("AntVel-v0", {"velocity": np.array([0.3, 2.0])}, "pmr", {}),
        ("AntVel-v0", {"velocity": np.array([0.3, 2.0])}, "gymnasium", {"contact_cost": 0.0, "observation": 27}),
        ("AntVel-v0", {"velocity": np.array([0.3, 2.0])}, "maml_rl", {"contact_cost": 0.0, "observation": 27}),
        ("AntDir-v0", {"direction": np.array([-1.0, 1.0])}, "maml_rl", {}),
        ("AntDir-v0", {"direction": np.array([-1.0, 1.0])}, "promp", {}),
        ("AntDir-v0", {"angle": np.array([-2.0, 0.7])}, "maml_rl", {"directions": "any"}),
        ("AntDir-v0", {"angle": np.array([-2.0, 0.7])}, "l2l", {"directions": "any"}),
    ],
)
def test_reward_by_hand(id: str, tasks: Tasks, lineage: str, arguments: dict[str, Any]) -> None:
    family = ant(id, lineage=lineage, **arguments)
    constants = family.constants
    before, action, step = run(family, tasks, 2, 12, constants.action_scale)
    for index in np.ndindex(2, 2):
        u = np.clip(action[index] / constants.action_scale, -1, 1)
        data = forward(family.model.step, step.state["physics"][index], u)
        if constants.point == "com":
            velocity = data.subtree_linvel[1, :2]
        else:
            velocity = (data.qpos[:2] - before["physics"][index][1:3]) / family.dt
        task = {name: float(value[index[0]]) for name, value in tasks.items()}
        if "velocity" in task:
            bonus = {"maml_rl": 1.0, "pmr": 1.0, "gymnasium": 0.0}[lineage]
            goal = bonus - abs(velocity[0] - task["velocity"])
        elif "direction" in task:
            goal = task["direction"] * velocity[0]
        else:
            goal = np.array([np.cos(task["angle"]), np.sin(task["angle"])]) @ velocity
        control, survive = {
            "maml_rl": (0.005, 0.05),
            "pmr": (0.005, 0.05),
            "promp": (0.5, 1.0),
            "l2l": (0.5, 1.0),
            "gymnasium": (0.5, 1.0),
        }[lineage]
        contact = 0.0 if "contact_cost" in arguments else 0.0005
        cost = control * (u**2).sum() + contact * (np.clip(data.cfrc_ext, -1, 1) ** 2).sum()
        assert step.reward[index] == pytest.approx(goal - cost + survive, rel=1e-10, abs=1e-12)
        assert step.info["reward_ctrl"][index] == pytest.approx(-control * (u**2).sum(), rel=1e-12)


def test_reference_physics() -> None:
    family = ant("AntVel-v0")
    option = family.model.step.opt
    assert (option.timestep, option.integrator, family.dt) == (0.02, mujoco.mjtIntegrator.mjINT_RK4, 0.02)
    np.testing.assert_array_equal(family.model.step.geom_solimp[:, :3], np.tile([0.8, 0.8, 0.01], (14, 1)))
    np.testing.assert_array_equal(family.model.step.actuator_gear[:, 0], 150.0)
    np.testing.assert_array_equal(family.model.step.actuator_ctrlrange, np.tile([-1.0, 1.0], (8, 1)))
    assert family.model.step.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    assert ant("AntVel-v0", lineage="pmr").dt == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("reset_noise", "spread", "largest"), [("rllab", 0.01, 0.06), ("gymnasium", 0.1 / np.sqrt(3), 0.1)]
)
def test_start(reset_noise: str, spread: float, largest: float) -> None:
    family = ant("AntVel-v0", reset_noise=reset_noise)
    state, _ = family.reset({"velocity": np.ones(2)}, task_streams(0, "test", 0, 2), 2000)
    qpos, qvel = family.qpos(state["physics"]), family.qvel(state["physics"])
    pose = np.array([0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])
    joints = qpos[..., 7:] - pose[7:]
    np.testing.assert_allclose(joints.std(axis=(0, 1)), spread, rtol=0.06)
    assert np.abs(joints).max() <= largest
    np.testing.assert_allclose(qpos.mean(axis=(0, 1)), pose, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(qpos[..., 3:7], axis=-1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(qvel.std(axis=(0, 1)), 0.1, rtol=0.06)
    assert not np.array_equal(qpos[0], qpos[1])
    assert state["physics"][..., 0].max() == 0.0


@pytest.mark.parametrize(("lineage", "low"), [("maml_rl", 0.2), ("promp", 0.0)])
def test_termination_by_height(lineage: str, low: float) -> None:
    family = ant("AntDir-v0", lineage=lineage)
    tasks = {"direction": np.ones(1)}
    heights = np.array(
        [0.05, 0.15, 0.3, 0.6, 0.98, 1.1, 5.0, *np.linspace(0.16, 0.26, 21), *np.linspace(0.97, 1.03, 13)]
    )
    rngs = [stream(0, "test")]
    state, _ = family.reset(tasks, rngs, len(heights))
    family.qvel(state["physics"])[:] = 0.0
    family.qpos(state["physics"])[..., 2] = heights
    step = family.step(tasks, state, np.zeros((1, len(heights), 8)), rngs)
    z = family.qpos(step.state["physics"])[0, :, 2]
    np.testing.assert_array_equal(step.terminated[0], (z < low) | (z > 1.0))
    # Heights on both sides of each limit, a few millimetres from it; promp's physics throws low torsos up at once.
    for limit in (0.2, 1.0) if lineage == "maml_rl" else ():
        assert 0 < np.min(z[z > limit]) - limit < 0.01
        assert 0 < limit - np.max(z[z < limit]) < 0.01
    assert step.terminated[0, 5:7].all()
    assert not step.terminated[0, 2:4].any()
    assert step.terminated[0, 0] == (lineage == "maml_rl")


@pytest.mark.parametrize("lineage", ["cavia", "pmr"])
def test_actions_are_scaled_and_clipped(lineage: str) -> None:
    family = ant("AntVel-v0", lineage=lineage)
    scale = 10.0 if lineage == "pmr" else 1.0
    np.testing.assert_array_equal(family.action_space.high, np.float32(scale))
    tasks, rngs = {"velocity": np.ones(1)}, [stream(0, "test")]
    state, _ = family.reset(tasks, rngs, 1)
    half = family.step(tasks, state, np.full((1, 1, 8), 0.5 * scale), rngs)
    assert half.info["reward_ctrl"][0, 0] == pytest.approx(-0.005 * 8 * 0.25)
    full, beyond = (family.step(tasks, state, np.full((1, 1, 8), size * scale), rngs) for size in (1.0, 3.0))
    np.testing.assert_array_equal(full.state["physics"], beyond.state["physics"])
    assert full.reward == beyond.reward
    assert not np.array_equal(full.state["physics"], half.state["physics"])


def test_tasks() -> None:
    family = ant("AntVel-v0")
    drawn = family.sample_tasks(stream(0, "tasks"), 2000)["velocity"]
    assert drawn.min() >= 0
    assert drawn.max() <= 3
    assert drawn.mean() == pytest.approx(1.5, abs=0.1)
    shifted = family.tasks("shifted", 40)["velocity"]
    assert shifted.min() >= 3
    assert shifted.max() <= 4
    with pytest.raises(TaskError, match=r"velocity=5.* outside"):
        family.validate_tasks({"velocity": [5.0]})
    assert ant("AntVel-v0", lineage="s4").sample_tasks(stream(0, "tasks"), 500)["velocity"].max() <= 2
    directions = ant("AntDir-v0")
    drawn = directions.sample_tasks(stream(0, "tasks"), 500)["direction"]
    assert set(drawn) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.2
    assert sorted(directions.tasks("test", 40)["direction"]) == [-1.0, 1.0]
    with pytest.raises(TaskError):
        directions.validate_tasks({"direction": [0.5]})
    angles = ant("AntDir-v0", directions="any").sample_tasks(stream(0, "tasks"), 500)["angle"]
    assert angles.min() < -3
    assert angles.max() > 3


@pytest.mark.parametrize(
    ("id", "lineage"), [("AntVel-v0", name) for name in VEL_LINEAGES] + [("AntDir-v0", name) for name in DIR_LINEAGES]
)
def test_every_lineage_steps_and_is_documented(id: str, lineage: str) -> None:
    family = ant(id, lineage=lineage)
    rngs = task_streams(0, "test", 0, 2)
    tasks = family.sample_tasks(stream(0, "tasks"), 2)
    state, obs = family.reset(tasks, rngs, 2)
    assert obs.shape[2:] == family.observation_space.shape
    assert np.isfinite(family.step(tasks, state, np.zeros((2, 2, 8)), rngs).reward).all()
    assert family.horizon == {"pmr": 100, "promp": 100, "l2l": 100, "gymnasium": 1000}.get(lineage, 200)
    assert f"``{lineage}``" in (type(family).__doc__ or "")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"lineage": "mamlrl"}, UnknownNameError, "maml_rl"),
        ({"fysics": "reference"}, UnknownNameError, "physics"),
        ({"physics": "bullet"}, ConfigError, "bullet"),
        ({"observation": 126}, ConfigError, "125"),
        ({"point": "foot"}, ConfigError, "torso"),
        ({"horizon": 20.5}, ConfigError, "horizon"),
        ({"max_velocity": -1.0}, ConfigError, "max_velocity"),
        ({"min_z": 2.0}, ConfigError, "min_z"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_family("AntVel-v0", **arguments)
