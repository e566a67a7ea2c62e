"""AntLeg: geometry, mass and inertia by closed forms, the plain Ant at its lengths, one model a task, tasks, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs.checker.family import check_family
from metarl.envs.family import Family
from metarl.envs.mujoco import models as robot_models
from metarl.envs.mujoco.ant import ant_spec
from metarl.envs.mujoco.ant_leg import LEGS, LINEAGES, AntLeg, leg_models, set_lengths
from metarl.envs.mujoco.models import Blueprint
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks, take_tasks
from metarl.errors import ConfigError, MetaRLError, TaskError, UnknownNameError
from metarl.streams import stream
from tests.envs.streams import task_streams

RADIUS, DENSITY = 0.08, 5.0
PLAIN = {"upper_leg": np.array([0.2]), "ankle": np.array([0.4])}


def ant_leg_family(**arguments: Any) -> AntLeg:
    family = make_family("AntLeg-v0", **arguments)
    assert isinstance(family, AntLeg)
    return family


def content(model: mujoco.MjModel) -> bytes:
    result = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, result)
    return result.tobytes()


def capsule(length: float) -> tuple[float, float, float]:
    """Return mass, and inertia across and along, of a capsule whose cylinder is ``length`` long."""
    cylinder = DENSITY * np.pi * RADIUS**2 * length
    ball = DENSITY * 4 / 3 * np.pi * RADIUS**3
    across = cylinder * (length**2 / 12 + RADIUS**2 / 4)
    across += ball * (2 / 5 * RADIUS**2 + length**2 / 4 + 3 / 8 * RADIUS * length)
    return cylinder + ball, across, cylinder * RADIUS**2 / 2 + ball * 2 / 5 * RADIUS**2


@pytest.mark.parametrize("each_leg", [False, True])
def test_geometry_mass_and_inertia_follow_lengths(each_leg: bool) -> None:
    upper, ankle = np.array([0.25, 0.31, 0.5, 0.6]), np.array([0.58, 0.2, 0.33, 0.45])
    if each_leg:
        tasks = {"upper_leg": upper[None], "ankle": ankle[None]}
    else:
        tasks = {"upper_leg": upper[:1], "ankle": ankle[:1]}
        upper, ankle = np.full(4, upper[0]), np.full(4, ankle[0])
    for model in ant_leg_family(lineage="gymnasium", each_leg=each_leg).models(tasks)[0]:
        assert model is not None
        total = DENSITY * 4 / 3 * np.pi * 0.25**3 + 4 * capsule(np.sqrt(2) * 0.2)[0]
        for leg in range(4):
            hip = model.body(f"aux_{leg + 1}")
            knee = hip.id + 1
            side = np.sign(hip.pos[:2])
            np.testing.assert_array_equal(np.abs(hip.pos), [0.2, 0.2, 0.0])
            np.testing.assert_allclose(model.body_pos[knee], [*(side * upper[leg]), 0.0], rtol=1e-15)
            for body, offset in ((hip.id, upper[leg]), (knee, ankle[leg])):
                length = np.sqrt(2) * offset
                mass, across, along = capsule(length)
                geom = model.body_geomadr[body]
                assert model.body_geomnum[body] == 1
                np.testing.assert_allclose(model.geom_size[geom, :2], [RADIUS, length / 2], rtol=1e-14)
                np.testing.assert_allclose(model.geom_rbound[geom], RADIUS + length / 2, rtol=1e-14)
                np.testing.assert_allclose(model.geom_pos[geom], [*(side * offset / 2), 0.0], rtol=1e-14)
                np.testing.assert_allclose(model.body_ipos[body], [*(side * offset / 2), 0.0], rtol=1e-14)
                np.testing.assert_allclose(model.body_mass[body], mass, rtol=1e-12)
                np.testing.assert_allclose(
                    np.sort(model.body_inertia[body]), sorted([across, across, along]), rtol=1e-9
                )
                total += mass
            np.testing.assert_allclose(
                model.body_subtreemass[hip.id], model.body_mass[hip.id] + model.body_mass[knee], rtol=1e-14
            )
        np.testing.assert_allclose(model.body_subtreemass[1], total, rtol=1e-12)


def test_models_compiled_again_are_those_of_a_fresh_robot() -> None:
    models = leg_models("gymnasium", False, "torso", True)
    lengths = stream(0, "lengths").uniform(0.2, 0.6, (3, 4, 2))
    for row, again in zip(lengths, models(lengths), strict=True):
        spec = ant_spec("gymnasium")
        set_lengths(spec, row)
        fresh = Blueprint(spec, False, "torso", True).compile()
        for ours, theirs in zip(again, fresh, strict=True):
            # Colours and textures, which only pictures show, are left out.
            for name in ("body_mass", "body_inertia", "body_invweight0", "dof_M0", "geom_aabb", "bvh_aabb", "pair_dim"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            states = []
            for model in (ours, theirs):
                data = mujoco.MjData(model)
                data.qpos[2], data.qvel[:] = 0.6, 1.0
                data.ctrl[:] = 0.5
                mujoco.mj_step(model, data, nstep=60)
                assert data.ncon
                states.append([*data.qpos, *data.qvel, *data.sensordata])
            np.testing.assert_array_equal(*states)
    plain = models(np.broadcast_to([0.2, 0.4], (1, 4, 2)))[0]
    assert content(plain.step) == content(leg_models("gymnasium", False, "torso", True)._blueprint.compile().step)


@pytest.mark.parametrize("physics", ["gymnasium", "reference"])
def test_at_the_ants_lengths_it_moves_as_the_ant(physics: str) -> None:
    arguments = {"lineage": "gymnasium", "physics": physics, "contact_cost": 0.0005, "observation": 105}
    legs, plain = ant_leg_family(**arguments), make_family("AntDir-v0", **arguments)
    rngs = [stream(0, "test")]
    state, _ = legs.reset(PLAIN, rngs, 3)
    theirs = dict(state)
    for action in stream(0, "actions").uniform(-1.2, 1.2, size=(128, 1, 3, 8)):
        step = legs.step(PLAIN, state, action, rngs)
        other = plain.step({"direction": np.ones(1)}, theirs, action, rngs)
        state, theirs = step.state, other.state
        for name in ("obs", "reward", "terminated"):
            np.testing.assert_array_equal(getattr(step, name), getattr(other, name))
        np.testing.assert_array_equal(state["physics"], theirs["physics"])
        assert list(step.info) == list(other.info)
        for name in step.info:
            np.testing.assert_array_equal(step.info[name], other.info[name])


def test_gymnasium_lineage_starts_as_ant_v5() -> None:
    family = ant_leg_family(lineage="gymnasium")
    env = gymnasium.make("Ant-v5").unwrapped
    state, _ = family.reset(PLAIN, [stream(0, "test")], 2000)
    qpos = family.qpos(state["physics"])[0]
    np.testing.assert_allclose(qpos.mean(0), env.init_qpos, atol=0.01)
    assert np.abs(qpos - env.init_qpos)[:, 7:].max() <= 0.1
    env.close()


def corner_tasks(n: int = 4) -> Tasks:
    lengths = np.array([[0.2, 0.2], [0.6, 0.6], [0.2, 0.6], [0.6, 0.2]])[:n]
    return {"upper_leg": lengths[:, 0].copy(), "ankle": lengths[:, 1].copy()}


@pytest.mark.parametrize("lineage", list(LINEAGES))
def test_each_task_steps_its_own_model(lineage: str) -> None:
    family = ant_leg_family(lineage=lineage)
    tasks, rngs = corner_tasks(), task_streams(0, "test", 0, 4)
    start, _ = family.reset(tasks, rngs, 2)
    actions = stream(0, "actions").uniform(-1.0, 1.0, size=(12, 4, 2, 8))
    state = start
    for action in actions:
        before, step = state, family.step(tasks, state, action, rngs)
        state = step.state
    for index in range(4):
        spec = ant_spec("gymnasium")
        set_lengths(spec, family.lengths(tasks)[index])
        model = spec.compile()
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, before["physics"][index, 1], mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.ctrl[:] = action[index, 1]
        mujoco.mj_step(model, data, nstep=5)
        np.testing.assert_array_equal(data.qpos, family.qpos(state["physics"][index, 1]))
        one = take_tasks(tasks, slice(index, index + 1))
        alone = {name: value[index : index + 1] for name, value in before.items()}
        by_itself = family.step(one, alone, action[index : index + 1], rngs[index : index + 1])
        np.testing.assert_array_equal(by_itself.obs[0], step.obs[index])
        np.testing.assert_array_equal(by_itself.reward[0], step.reward[index])
    assert len(np.unique(state["physics"][:, 0, 3])) == 4


def test_single_view_is_the_batch() -> None:
    env = gymnasium.make("AntLeg-v0", upper_leg=0.3, ankle=0.55)
    family = ant_leg_family()
    obs, _ = env.reset(seed=3)
    view = env.unwrapped
    tasks = {"upper_leg": np.array([0.3]), "ankle": np.array([0.55])}
    state = {name: value.copy() for name, value in view._state.items()}  # type: ignore[attr-defined]
    for action in stream(0, "actions").uniform(-0.3, 0.3, size=(20, 8)).astype(np.float32):
        obs, reward, terminated, _, info = env.step(action)
        step = family.step(tasks, state, action[None, None], [stream(0, "unused")])
        state = step.state
        np.testing.assert_array_equal(obs, step.obs[0, 0])
        assert (reward, terminated) == (step.reward[0, 0], step.terminated[0, 0])
        assert info["reward_forward"] == step.info["reward_forward"][0, 0]
    env.close()


@pytest.mark.parametrize("arguments", [{"each_leg": True}, {"corners": "trained"}])
def test_promises(arguments: dict[str, Any]) -> None:
    check_family(ant_leg_family(horizon=10, **arguments), n=2)


def test_the_oracle_sees_lengths() -> None:
    family = make_family("AntLeg-v0", oracle=True)
    assert family.observation_space.shape == (29,)
    _, obs = family.reset(PLAIN, task_streams(0, "test", 0, 1), 1)
    # Ankle first: Gymnasium sorts the names of a space's parts.
    np.testing.assert_allclose(obs[:, 0, 27:], [[0.4, 0.2]])


def test_standing_still_is_stable_whatever_the_legs() -> None:
    family = ant_leg_family()
    tasks = {name: np.concatenate([corner_tasks()[name], PLAIN[name]]) for name in PLAIN}
    rngs = task_streams(0, "test", 0, 5)
    state, _ = family.reset(tasks, rngs, 4)
    for _ in range(family.horizon):
        step = family.step(tasks, state, np.zeros((5, 4, 8)), rngs)
        state = step.state
        assert not step.terminated.any()
    assert np.abs(family.qvel(state["physics"])).max() < 0.1
    assert np.abs(step.reward - 0.05).max() < 0.05


def test_longer_ankles_may_stand_higher() -> None:
    family = ant_leg_family()
    tasks, rngs = corner_tasks(2), task_streams(0, "test", 0, 2)
    state, _ = family.reset(tasks, rngs, 3)
    family.qvel(state["physics"])[:] = 0.0
    family.qpos(state["physics"])[..., 2] = [0.95, 1.1, 1.4]
    step = family.step(tasks, state, np.zeros((2, 3, 8)), rngs)
    np.testing.assert_array_equal(step.terminated, [[False, True, True], [False, False, True]])


# --------------------------------------------------------------------------------------------------------------- tasks
def distance(family: AntLeg, tasks: Tasks) -> np.ndarray:
    """Return how far from the square's middle lengths are: 1 on the circle inscribed in it."""
    low, high = family.constants.min_length, family.constants.max_length  # type: ignore[attr-defined]
    points = (np.stack([tasks["upper_leg"], tasks["ankle"]], -1) - (low + high) / 2) / ((high - low) / 2)
    return np.asarray(np.linalg.norm(points, axis=-1))


@pytest.mark.parametrize("each_leg", [False, True])
def test_splits(each_leg: bool) -> None:
    family = ant_leg_family(each_leg=each_leg)
    drawn = family.sample_tasks(stream(0, "tasks"), 4000)
    assert drawn["ankle"].shape == ((4000, 4) if each_leg else (4000,))
    # Uniform in a circle: the squared distance is uniform.
    np.testing.assert_allclose(
        np.quantile(distance(family, drawn) ** 2, [0.25, 0.5, 0.75, 1.0]), [0.25, 0.5, 0.75, 1.0], atol=0.03
    )
    np.testing.assert_allclose([drawn[name].mean() for name in drawn], 0.4, atol=0.01)
    assert family.in_training_range(drawn).all()
    for split in ("validation", "test"):
        assert distance(family, family.tasks(split, 40)).max() <= 1.0 + 1e-9
    shifted = family.tasks("shifted", 40)
    assert distance(family, shifted).min() >= 1.0
    assert not family.in_training_range(shifted).any()
    for name in shifted:
        assert shifted[name].min() >= 0.2
        assert shifted[name].max() <= 0.6
        # Every corner has its part.
        assert 0.2 < (shifted[name] > 0.4).mean() < 0.8


def test_corners_may_be_trained_on() -> None:
    family = ant_leg_family(corners="trained", min_length=0.1, max_length=0.9)
    drawn = family.sample_tasks(stream(0, "tasks"), 2000)
    assert (distance(family, drawn) > 1.0).mean() == pytest.approx(1 - np.pi / 4, abs=0.03)
    assert drawn["ankle"].min() < 0.15
    assert drawn["ankle"].max() > 0.85
    with pytest.raises(TaskError, match="no shifted split"):
        family.tasks("shifted")


class Careless(AntLeg):
    """Its training draws reach into the corners, which are the shifted split."""

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self._tasks(rng.uniform(-1.0, 1.0, (n, 2)))


class Silent(AntLeg):
    """It does not say which part of its task space is trained on."""

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return Family.in_training_range(self, tasks)


class Vague(AntLeg):
    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return np.ones(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Careless, "sample_tasks draws .* which in_training_range says training does not"),
        (Silent, "the shifted split holds tasks of the training range"),
        (Vague, "in_training_range returns .* not a truth value for each"),
    ],
)
def test_the_check_knows_shifted_tasks_inside_the_task_space(make: type[AntLeg], message: str) -> None:
    with pytest.raises(MetaRLError, match=message):
        check_family(make(), n=40)


# -------------------------------------------------------------------------------------------------------------- models
def test_models_are_kept_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robot_models, "N_KEPT", 4)
    family = ant_leg_family()
    kept = family._models.get()._kept
    first = family.models(corner_tasks())
    assert family.models(corner_tasks()) == first
    assert len(kept) == 4
    # A batch that is larger has all its models at once, and is not compiled again at its next step.
    many = family.sample_tasks(stream(0, "tasks"), 7)
    models = family.models(many)
    assert [id(model.step) for model in family.models(many)] == [id(model.step) for model in models]
    assert len(kept) == 7
    family.models(take_tasks(many, slice(0, 1)))
    assert len(kept) == 4
    assert family.models(corner_tasks(1))[0].step is not first[0].step


def test_copies_and_pickles_step_alike() -> None:
    family = ant_leg_family()
    family.models(PLAIN)
    rngs = [stream(0, "test")]
    state, _ = family.reset(PLAIN, rngs, 1)
    expected = family.step(PLAIN, state, np.ones((1, 1, 8)), rngs)
    for other in (copy.deepcopy(family), pickle.loads(pickle.dumps(family))):
        found = other.step(PLAIN, state, np.ones((1, 1, 8)), rngs)
        np.testing.assert_array_equal(found.obs, expected.obs)


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ({"upper_leg": [-0.2], "ankle": [0.4]}, r"upper_leg=-0.2 is outside the task space of AntLeg-v0: \[0.2, 0.6\]"),
        ({"upper_leg": [0.2], "ankle": [0.0]}, "ankle=0.0 is outside"),
        ({"upper_leg": [0.2], "ankle": [np.nan]}, "ankle=nan is outside"),
        ({"upper_leg": [7.0], "ankle": [0.4]}, "upper_leg=7.0 is outside"),
        ({"upper_leg": [0.2]}, "'ankle' of AntLeg-v0 is missing"),
        ({"upper_leg": [[0.2] * 4], "ankle": [[0.4] * 4]}, "ankle has shape"),
    ],
)
def test_impossible_bodies(tasks: dict[str, Any], text: str) -> None:
    with pytest.raises(TaskError, match=text) as caught:
        ant_leg_family().validate_tasks(tasks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"min_length": 0.0}, ConfigError, r"min_length=0.0 is not a number in \[0.05, 0.9\]"),
        ({"min_length": -0.2}, ConfigError, "min_length=-0.2"),
        ({"max_length": np.nan}, ConfigError, "max_length=nan"),
        ({"max_length": 5.0}, ConfigError, r"max_length=5.0 is not a number in \[0.05, 0.9\]"),
        ({"min_length": 0.6}, ConfigError, "min_length=0.6: below max_length=0.6"),
        ({"each_leg": 2}, ConfigError, "each_leg=2"),
        ({"corners": "out"}, ConfigError, "corners='out'"),
        ({"pose": "lying"}, ConfigError, "pose='lying'"),
        ({"observation": 125}, ConfigError, "observation=125"),
        ({"lineage": "maml_rl"}, UnknownNameError, "s0"),
        ({"length": 0.3}, UnknownNameError, "length"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        make_family("AntLeg-v0", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lineage", list(LINEAGES))
def test_lineages_are_documented(lineage: str) -> None:
    assert f"``{lineage}``" in (AntLeg.__doc__ or "")
    assert len(LEGS) == 4
