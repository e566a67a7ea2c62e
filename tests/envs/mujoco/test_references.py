"""Every MuJoCo family beside Gymnasium's own environment with the same definition, 128 steps, every reward term.

The reference is Gymnasium's class, with the robot, the weights and the limits of a lineage written down here once more.
It steps one robot with plain MuJoCo calls, and its own code says what the terms are, once its data belong to the state
after the step (after a step they are an integrator stage behind: the one difference that is meant, beside the survival
bonus of the last step). Of the rllab line, whose environments are not to be had, it is that class with its robot and
its step: 0.02 s (Ant), one physics step an env step, velocities of the centre of mass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs.mujoco import ant, ant_leg, half_cheetah
from metarl.envs.registry import make_family
from metarl.streams import stream

N_STEPS = 128
ASSET = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml"

# physics, point, control cost, contact cost, survival bonus, lowest and highest z, observation
REFERENCE = ("reference", "com", 0.005, 0.0005, 0.05, (0.2, 1.0), 125)
PORT = ("gymnasium", "torso", 0.005, 0.0005, 0.05, (0.2, 1.0), 125)
L2L = ("gymnasium", "torso", 0.5, 0.0005, 1.0, (0.0, 1.0), 111)
V5 = ("gymnasium", "torso", 0.5, 0.0005, 1.0, (0.2, 1.0), 105)
ANTS: dict[str, tuple[Any, ...]] = {
    "maml_rl": REFERENCE,
    "s4": REFERENCE,
    "pmr": PORT,
    "cavia": PORT,
    "promp": L2L,
    "l2l": L2L,
    "gymnasium": V5,
}
LEGS: dict[str, tuple[Any, ...]] = {
    "s0": ("gymnasium", "torso", 0.005, 0.0, 0.05, (0.2, 1.0), 27),
    "gymnasium": V5,
}


def ant_env(folder: Path, definition: tuple[Any, ...], lengths: Mapping[str, float] | None = None) -> Any:
    """Return Gymnasium's Ant with another definition, its file edited as text."""
    physics, _, control, contact, survive, z_range, _ = definition
    text = ASSET.read_text()
    if physics == "reference":
        text = text.replace('timestep="0.01"', 'timestep="0.02"').replace(
            'margin="0.01" rgba', 'margin="0.01" solimp=".8 .8 .01" rgba'
        )
        assert text.count('timestep="0.02"') == text.count('solimp=".8 .8 .01"') == 1
    if lengths is not None:
        upper, ankle = lengths["upper_leg"], lengths["ankle"]
        edited = 0
        for old, new, parts in (("0.2", upper, r"(?:leg_geom)"), ("0.4", ankle, r"(?:ankle_geom)")):
            pattern = rf'fromto="0.0 0.0 0.0 (-?){old} (-?){old} 0.0" (name="\w*{parts}")'
            text, n = re.subn(pattern, rf'fromto="0.0 0.0 0.0 \g<1>{new} \g<2>{new} 0.0" \3', text)
            edited += n
        text, n = re.subn(r'<body pos="(-?)0.2 (-?)0.2 0">', rf'<body pos="\g<1>{upper} \g<2>{upper} 0">', text)
        assert (edited, n) == (8, 4)
    path = folder / "robot.xml"
    path.write_text(text)
    return gymnasium.make(
        "Ant-v5",
        disable_env_checker=True,
        xml_file=str(path),
        frame_skip=1 if physics == "reference" else 5,
        ctrl_cost_weight=control,
        contact_cost_weight=contact,
        healthy_reward=survive,
        healthy_z_range=z_range,
    ).unwrapped


def refresh(env: Any) -> None:
    """Let what an environment's data say belong to its state."""
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_rnePostConstraint(env.model, env.data)
    mujoco.mj_subtreeVel(env.model, env.data)


def goal_term(task: Mapping[str, float], bonus: float, velocity: np.ndarray) -> float:
    """Return the task's part of the reward, as the papers and code bases say it."""
    if "velocity" in task:
        return float(bonus - abs(velocity[0] - task["velocity"]))
    if "direction" in task:
        return float(task["direction"] * velocity[0])
    if "angle" in task:
        return float(np.array([np.cos(task["angle"]), np.sin(task["angle"])]) @ velocity)
    return float(velocity[0])


def compare(id: str, env: Any, point: str, bonus: float, task: dict[str, float], observe: Any, **arguments: Any) -> int:
    """Step both with the same actions; return how many steps had contacts."""
    family = make_family(id, **arguments)
    env.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    env.reset(seed=1)
    tasks = family.validate_tasks({name: [value] for name, value in task.items()})
    rngs = [stream(0, "test")]
    state, _ = family.reset(tasks, rngs, 1)
    physics = state["physics"][0, 0].copy()
    env.set_state(physics[1 : 1 + env.model.nq], physics[1 + env.model.nq :])
    refresh(env)
    scale, touched, unhealthy = float(family.action_space.high[0]), 0, 0
    # Multiples of a power of two, so that scaling them up and down again changes no bit.
    for action in stream(0, "actions").integers(-1024, 1025, size=(N_STEPS, env.model.nu)) / 1024:
        before = env.data.xpos[1, :2].copy()
        env.do_simulation(action, env.frame_skip)
        after = np.concatenate([env.data.qpos, env.data.qvel])
        refresh(env)
        torso = (env.data.xpos[1, :2] - before) / env.dt
        velocity = env.data.subtree_linvel[1, :2] if point == "com" else torso
        _, terms = env._get_rew(torso[0], action)
        terms["reward_forward"] = goal_term(task, bonus, velocity)
        step = family.step(tasks, state, scale * action[None, None], rngs)
        state = step.state
        np.testing.assert_array_equal(state["physics"][0, 0, 1:], after)
        healthy = getattr(env, "is_healthy", True)
        if not healthy:
            unhealthy += 1
            terms["reward_survive"] = env._healthy_reward
        assert step.terminated[0, 0] == (not healthy)
        if "reward_contact" not in step.info:
            assert terms.pop("reward_contact", 0.0) == 0.0
        assert set(step.info) == set(terms)
        for name, value in terms.items():
            assert step.info[name][0, 0] == pytest.approx(value, rel=0, abs=1e-8), name
        assert step.reward[0, 0] == pytest.approx(sum(terms.values()), rel=0, abs=1e-8)
        np.testing.assert_allclose(step.obs[0, 0], observe(env).astype(np.float32), rtol=1e-6, atol=1e-7)
        touched += int(env.data.ncon > 0)
    env.close()
    assert unhealthy < N_STEPS
    return touched


def ant_observation(size: int, point: str) -> Any:
    def observe(env: Any) -> np.ndarray:
        data, force = env.data, np.clip(env.data.cfrc_ext, -1, 1)
        if size == 125:
            place = data.subtree_com[1] if point == "com" else data.xpos[1]
            return np.concatenate([data.qpos, data.qvel, force.ravel(), data.xmat[1], place])
        rest = {111: force, 105: force[1:], 27: force[:0]}[size]
        return np.concatenate([data.qpos[2:], data.qvel, rest.ravel()])

    return observe


ANT_CASES = [
    *(("AntVel-v0", lineage, {"velocity": 1.3}, {}) for lineage in ant.VEL_LINEAGES),
    *(("AntDir-v0", lineage, {"direction": -1.0}, {}) for lineage in ant.DIR_LINEAGES),
    *(("AntDir-v0", lineage, {"angle": 2.1}, {"directions": "any"}) for lineage in ("promp", "l2l")),
]


@pytest.mark.parametrize(("id", "lineage", "task", "arguments"), ANT_CASES)
def test_ants(id: str, lineage: str, task: dict[str, float], arguments: dict[str, Any], tmp_path: Path) -> None:
    definition = ANTS[lineage]
    env, point = ant_env(tmp_path, definition), definition[1]
    bonus = 0.0 if lineage == "gymnasium" else 1.0
    observe = ant_observation(definition[-1], point)
    assert compare(id, env, point, bonus, task, observe, lineage=lineage, **arguments) > 20


@pytest.mark.parametrize("lineage", list(ant_leg.LINEAGES))
@pytest.mark.parametrize("task", [{"upper_leg": 0.33, "ankle": 0.27}, {"upper_leg": 0.2, "ankle": 0.4}])
def test_ants_with_other_legs(lineage: str, task: dict[str, float], tmp_path: Path) -> None:
    definition = LEGS[lineage]
    env, observe = ant_env(tmp_path, definition, task), ant_observation(definition[-1], "torso")
    assert compare("AntLeg-v0", env, "torso", 0.0, task, observe, lineage=lineage) > 20


# physics, point, control cost, observation
CHEETAHS: dict[str, tuple[str, str, float, int]] = {
    "maml_rl": ("reference", "com", 0.05, 20),
    "pmr": ("gymnasium", "torso", 0.05, 20),
    "garage": ("gymnasium", "torso", 0.05, 20),
    "cavia": ("gymnasium", "torso", 0.05, 20),
    "promp": ("gymnasium", "torso", 0.05, 17),
    "gymnasium": ("gymnasium", "torso", 0.1, 17),
}


def cheetah_observation(size: int, point: str) -> Any:
    def observe(env: Any) -> np.ndarray:
        place = env.data.subtree_com[1] if point == "com" else env.data.xpos[1]
        return np.concatenate([env.data.qpos[1:], env.data.qvel, place[: size - 17]])

    return observe


@pytest.mark.parametrize("lineage", list(half_cheetah.VEL_LINEAGES))
@pytest.mark.parametrize(
    ("id", "task"), [("HalfCheetahVel-v0", {"velocity": 0.9}), ("HalfCheetahDir-v0", {"direction": -1.0})]
)
def test_half_cheetahs(
    id: str, task: dict[str, float], lineage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs a deprecated attribute of Gymnasium's file in the working directory.
    physics, point, control, size = CHEETAHS[lineage]
    env = gymnasium.make(
        "HalfCheetah-v5",
        disable_env_checker=True,
        frame_skip=1 if physics == "reference" else 5,
        ctrl_cost_weight=control,
    ).unwrapped
    assert compare(id, env, point, 0.0, task, cheetah_observation(size, point), lineage=lineage) > 20


def test_every_lineage_has_a_reference() -> None:
    assert set(ant.VEL_LINEAGES) | set(ant.DIR_LINEAGES) == set(ANTS)
    assert set(ant_leg.LINEAGES) == set(LEGS)
    assert set(half_cheetah.VEL_LINEAGES) == set(half_cheetah.DIR_LINEAGES) == set(CHEETAHS)
