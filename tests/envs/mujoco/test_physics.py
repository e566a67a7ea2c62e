"""The batched MuJoCo base: independence of threads and batch, divergence, one model for each task."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from metarl.envs.family import Family, State, Step
from metarl.envs.mujoco import rows
from metarl.envs.mujoco.ant import AntVel
from metarl.envs.mujoco.half_cheetah import HalfCheetahVel
from metarl.envs.mujoco.models import Model, _pair_with_ground, gymnasium_spec
from metarl.envs.registry import make_family
from metarl.envs.stepping import stepper_of
from metarl.envs.tasks import Tasks, take_tasks
from metarl.errors import ConfigError, UnknownNameError
from metarl.streams import stream
from tests.envs.streams import task_streams

N_TASKS, N_ENVS, N_STEPS = 4, 3, 15
IDS = ("AntVel-v0", "AntDir-v0", "HalfCheetahVel-v0", "HalfCheetahDir-v0")


def actions_of(family: Family, n_steps: int = N_STEPS) -> np.ndarray:
    shape = (n_steps, N_TASKS, N_ENVS, *family.action_space.shape)
    return stream(0, "actions").uniform(-1.2, 1.2, size=shape)


def trajectory(
    family: Family, tasks: Tasks, actions: np.ndarray, which: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Step the tasks at ``which`` and return everything that came out, stacked over time."""
    which = np.arange(N_TASKS) if which is None else which
    rngs = [task_streams(0, "test", 0, N_TASKS)[index] for index in which]
    tasks = take_tasks(tasks, which)
    state, obs = family.reset(tasks, rngs, N_ENVS)
    out: dict[str, list[np.ndarray]] = {"obs": [obs], "physics": [state["physics"]], "reward": [], "terminated": []}
    for action in actions:
        step = family.step(tasks, state, action[which], rngs)
        state = step.state
        out["obs"].append(step.obs)
        out["physics"].append(state["physics"])
        out["reward"].append(step.reward)
        out["terminated"].append(step.terminated)
    return {name: np.stack(values) for name, values in out.items()}


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("n_threads", [2, 3])
def test_results_do_not_depend_on_threads(id: str, n_threads: int) -> None:
    one, many = make_family(id, n_threads=1), make_family(id, n_threads=n_threads)
    tasks, actions = one.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(one)
    assert_equal(trajectory(one, tasks, actions), trajectory(many, tasks, actions))
    many.close()


@pytest.mark.parametrize("id", IDS)
def test_results_do_not_depend_on_the_batch(id: str) -> None:
    family = make_family(id)
    tasks, actions = family.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(family)
    everything = trajectory(family, tasks, actions)
    for which in (np.array([2]), np.array([3, 0])):
        part = trajectory(family, tasks, actions, which)
        assert_equal(part, {name: value[:, which] for name, value in everything.items()})


@pytest.mark.parametrize("id", ["AntVel-v0", "HalfCheetahVel-v0"])
def test_one_copy_at_a_time_gives_the_batch(id: str) -> None:
    family = make_family(id)
    tasks, actions = family.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(family)
    everything = trajectory(family, tasks, actions)
    task = take_tasks(tasks, slice(1, 2))
    for env in range(N_ENVS):
        state: State = {
            "physics": everything["physics"][0, 1:2, env : env + 1],
            "diverged": np.zeros((1, 1), dtype=bool),
        }
        for time, action in enumerate(actions):
            step = family.step(task, state, action[1:2, env : env + 1], [stream(0, "unused")])
            state = step.state
            np.testing.assert_array_equal(step.obs[0, 0], everything["obs"][time + 1, 1, env])
            assert step.reward[0, 0] == everything["reward"][time, 1, env]


@pytest.mark.parametrize("id", ["AntVel-v0", "HalfCheetahVel-v0"])
def test_inactive_copies_are_not_stepped(id: str) -> None:
    family = make_family(id)
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    rngs = task_streams(0, "test", 0, N_TASKS)
    state, _ = family.reset(tasks, rngs, N_ENVS)
    action = actions_of(family)[0]
    active = stream(0, "active").random((N_TASKS, N_ENVS)) < 0.5
    kept = state["physics"].copy()
    whole = family.step(tasks, state, action, rngs)
    part = family.step(tasks, state, action, rngs, active)
    np.testing.assert_array_equal(state["physics"], kept, err_msg="the state given was modified")
    np.testing.assert_array_equal(part.state["physics"][~active], kept[~active])
    np.testing.assert_array_equal(part.state["physics"][active], whole.state["physics"][active])
    np.testing.assert_array_equal(part.obs[active], whole.obs[active])
    np.testing.assert_array_equal(part.reward[active], whole.reward[active])
    assert not part.terminated[~active].any()
    none = family.step(tasks, state, action, rngs, np.zeros_like(active))
    np.testing.assert_array_equal(none.state["physics"], kept)


@pytest.mark.parametrize("judged_together", [1, 40, 10_000])
@pytest.mark.parametrize("id", ["AntVel-v0", "AntLeg-v0", "HalfCheetahVel-v0"])
@pytest.mark.parametrize("oracle", [False, True])
def test_a_stepper_does_what_steps_do(
    id: str, oracle: bool, judged_together: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file in the working directory.
    monkeypatch.setattr(rows, "JUDGED_TOGETHER", judged_together)
    family = make_family(id, oracle=oracle)
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    state, _ = family.reset(tasks, task_streams(0, "test", 0, N_TASKS), N_ENVS)
    state["physics"][1, 2, 26 if "Ant" in id else 15] = 1e9  # it diverges at once
    names = list(family.step(tasks, state, actions_of(family)[0], []).info)
    stepper = stepper_of(family, tasks, state, [], names)
    active = np.ones((N_TASKS, N_ENVS), dtype=bool)
    steps = []
    for time, action in enumerate(actions_of(family)):
        step, reached = family.step(tasks, state, action, [], active), stepper.step(action, active)
        np.testing.assert_array_equal(reached.obs, step.obs)
        np.testing.assert_array_equal(np.zeros_like(active) if reached.ended is None else reached.ended, step.ended)
        steps.append(step)
        state, over = step.state, step.ended.copy()
        over[2, 0] |= time == 6
        active = active & ~over if (over & active).any() else active
    assert steps[0].ended[1, 2]
    rewards, terms = stepper.earned()
    np.testing.assert_array_equal(np.stack(list(rewards)), np.stack([step.reward for step in steps]))
    for name in names:
        np.testing.assert_array_equal(np.stack(list(terms[name])), np.stack([step.info[name] for step in steps]))


class Doubled(HalfCheetahVel):
    """It has a step of its own, and the stepper of the class above knows nothing of it."""

    def step(self, *args: Any, **kwargs: Any) -> Step:
        step = super().step(*args, **kwargs)
        return step._replace(reward=2 * step.reward)


def test_a_step_of_ones_own_is_what_is_collected() -> None:
    family = Doubled(horizon=5)
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    state, _ = family.reset(tasks, task_streams(0, "test", 0, N_TASKS), N_ENVS)
    action = actions_of(family)[0]
    stepper = stepper_of(family, tasks, state, [])
    stepper.step(action, np.ones((N_TASKS, N_ENVS), dtype=bool))
    plain = HalfCheetahVel(horizon=5).step(tasks, state, action, [])
    np.testing.assert_array_equal(stepper.earned()[0][0], 2 * plain.reward)


@pytest.mark.parametrize("id", IDS)
def test_info_holds_every_term_of_the_reward(id: str) -> None:
    family = make_family(id)
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    rngs = task_streams(0, "test", 0, N_TASKS)
    state, _ = family.reset(tasks, rngs, N_ENVS)
    step = family.step(tasks, state, actions_of(family)[0], rngs)
    assert {"reward_forward", "reward_ctrl"} <= set(step.info)
    np.testing.assert_allclose(sum(step.info.values()), step.reward, rtol=0, atol=1e-14)
    assert step.reward.dtype == np.float64
    assert step.obs.dtype == np.float32
    assert step.obs.shape == (N_TASKS, N_ENVS, *family.observation_space.shape)


def test_a_copy_that_is_far_away_has_not_diverged() -> None:
    family = make_family("HalfCheetahVel-v0")
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    state, _ = family.reset(tasks, task_streams(0, "test", 0, N_TASKS), N_ENVS)
    family.qpos(state["physics"])[1, 2, 0] = 1e9
    step = family.step(tasks, state, actions_of(family)[0], [])
    assert not step.state["diverged"].any()
    assert step.state["physics"][1, 2, 0] > 0


@pytest.mark.parametrize("id", ["AntVel-v0", "HalfCheetahVel-v0"])
def test_a_diverging_copy_ends_with_finite_numbers(id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file in the working directory.
    family = make_family(id)
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    rngs = task_streams(0, "test", 0, N_TASKS)
    state, _ = family.reset(tasks, rngs, N_ENVS)
    action = actions_of(family)[0]
    healthy = family.step(tasks, state, action, rngs)
    assert not healthy.state["diverged"].any()
    family.qvel(state["physics"])[1, 2, 7] = 1e9
    broken = family.step(tasks, state, action, rngs)
    expected = np.zeros((N_TASKS, N_ENVS), dtype=bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(broken.state["diverged"], expected)
    assert broken.terminated[1, 2]
    np.testing.assert_array_equal(broken.state["physics"][1, 2], state["physics"][1, 2])
    assert np.isfinite(broken.obs).all()
    assert np.isfinite(broken.reward).all()
    np.testing.assert_array_equal(broken.obs[~expected], healthy.obs[~expected])
    np.testing.assert_array_equal(broken.reward[~expected], healthy.reward[~expected])


def test_a_nan_action_shows_in_the_reward_of_its_copy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family = make_family("AntVel-v0")
    tasks = family.sample_tasks(stream(0, "tasks"), N_TASKS)
    rngs = task_streams(0, "test", 0, N_TASKS)
    state, _ = family.reset(tasks, rngs, N_ENVS)
    action = actions_of(family)[0]
    action[0, 1, 3] = np.nan
    step = family.step(tasks, state, action, rngs)
    assert np.isnan(step.reward[0, 1])
    assert np.isnan(step.reward).sum() == 1
    assert np.isfinite(step.state["physics"]).all()
    assert np.isfinite(step.obs).all()


def test_close_and_use_again() -> None:
    family = make_family("AntVel-v0", n_threads=2)
    tasks, actions = family.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(family, 3)
    before = trajectory(family, tasks, actions)
    family.close()
    assert_equal(before, trajectory(family, tasks, actions))
    family.close()
    family.close()


def test_callers_on_several_threads_share_a_family() -> None:
    family = make_family("AntVel-v0", n_threads=1)
    tasks, actions = family.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(family)
    alone = trajectory(family, tasks, actions)
    with ThreadPoolExecutor(3) as workers:
        for future in [workers.submit(trajectory, family, tasks, actions) for _ in range(3)]:
            assert_equal(alone, future.result())
    family.n_threads = 2
    assert_equal(alone, trajectory(family, tasks, actions))


@pytest.mark.parametrize(
    ("id", "arguments", "n_pairs"),
    [("AntVel-v0", {}, 13), ("AntVel-v0", {"physics": "gymnasium"}, 13), ("HalfCheetahVel-v0", {}, 8)],
)
def test_listed_contacts_are_those_that_mujoco_finds(
    id: str, arguments: dict[str, str], n_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = make_family(id, **arguments)
    monkeypatch.setattr("metarl.envs.mujoco.models._pair_with_ground", lambda spec: None)
    found = make_family(id, **arguments)
    assert (listed.model.step.npair, found.model.step.npair) == (n_pairs, 0)
    tasks, actions = found.sample_tasks(stream(0, "tasks"), N_TASKS), actions_of(found, 60)
    assert_equal(trajectory(found, tasks, actions), trajectory(listed, tasks, actions))


BALLS = """<mujoco>
<worldbody>
  <geom name="floor" type="plane" size="5 5 1" {floor}/>
  <body pos="0 0 .1">{joint}<geom size=".1" {geom}/><body pos=".5 0 0"><joint/><geom size=".1" {geom}/></body></body>
  <body pos="1 0 .1"><freejoint/><geom size=".1" {geom}/></body>
</worldbody>
</mujoco>"""
APART = 'contype="1" conaffinity="0"'
FREE = "<freejoint/>"


@pytest.mark.parametrize(
    ("geom", "floor", "joint", "n_pairs"),
    [
        (APART, "", FREE, 3),
        (f'{APART} margin=".02"', 'margin=".01" friction="2 .1 .1" condim="4"', FREE, 3),
        ("", "", FREE, 0),  # the balls touch each other
        (APART, "", "", 0),  # the first is fixed to the world
        (APART, 'solref=".03 1"', FREE, 0),
        (APART, 'priority="1"', FREE, 0),
    ],
)
def test_contacts_are_listed_where_that_changes_nothing(geom: str, floor: str, joint: str, n_pairs: int) -> None:
    xml = BALLS.format(geom=geom, floor=floor, joint=joint)
    found = mujoco.MjModel.from_xml_string(xml)
    spec = mujoco.MjSpec.from_string(xml)
    _pair_with_ground(spec)
    listed = spec.compile()
    assert listed.npair == n_pairs
    states = []
    for model in (found, listed):
        data = mujoco.MjData(model)
        data.qvel[:] = 1.0
        mujoco.mj_step(model, data, nstep=200)
        assert data.ncon
        states.append(np.concatenate([data.qpos, data.qvel]))
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize(
    ("own", "n_pairs"),
    [
        ("<contact/>", 3),
        ('<contact><exclude body1="world" body2="a"/></contact>', 0),
        ('<contact><pair geom1="floor" geom2="g"/></contact>', 1),
    ],
)
def test_a_robot_that_lists_contacts_itself_is_left_alone(own: str, n_pairs: int) -> None:
    xml = BALLS.format(geom=APART, floor="", joint=FREE)
    xml = xml.replace('<body pos="1 0 .1"><freejoint/><geom', '<body name="a" pos="1 0 .1"><freejoint/><geom name="g"')
    spec = mujoco.MjSpec.from_string(xml.replace("</mujoco>", f"{own}</mujoco>"))
    _pair_with_ground(spec)
    assert spec.compile().npair == n_pairs


class HeavyCheetah(HalfCheetahVel):
    """Every task has its own torso mass: 1 + velocity times the original."""

    def models(self, tasks: Tasks) -> list[Model]:
        models = []
        for velocity in tasks["velocity"]:
            spec = gymnasium_spec("half_cheetah.xml")
            model = self.compile(spec)
            model.step.body_mass[1] *= 1 + velocity
            models.append(model)
        return models


class HeavyAnt(AntVel):
    """The same for an Ant, whose sense model must follow."""

    def models(self, tasks: Tasks) -> list[Model]:
        models = []
        for velocity in tasks["velocity"]:
            spec = gymnasium_spec("ant.xml")
            next(geom for geom in spec.geoms if geom.name == "torso_geom").density *= 1 + velocity
            models.append(self.compile(spec))
        return models


@pytest.mark.parametrize("make", [HeavyCheetah, HeavyAnt])
def test_every_task_may_have_its_own_model(make: type[HeavyCheetah] | type[HeavyAnt]) -> None:
    family = make("gymnasium")
    actions = actions_of(family)
    tasks = {"velocity": np.array([0.0, 1.0, 0.5, 2.0])}
    everything = trajectory(family, tasks, actions)
    one = trajectory(family, tasks, actions, np.array([3]))
    assert_equal(one, {name: value[:, 3:4] for name, value in everything.items()})
    # By hand: MuJoCo itself, with that task's model.
    model = family.models(take_tasks(tasks, slice(3, 4)))[0].step
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, everything["physics"][0, 3, 1], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    data.ctrl[:] = np.clip(actions[0, 3, 1], -1, 1)
    mujoco.mj_step(model, data, nstep=5)
    np.testing.assert_array_equal(data.qpos, family.qpos(everything["physics"][1, 3, 1]))
    light = trajectory(family, {"velocity": np.zeros(4)}, actions)
    assert not np.array_equal(light["physics"][-1, 3], everything["physics"][-1, 3])
    np.testing.assert_array_equal(light["physics"][-1, 0], everything["physics"][-1, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *(({"n_threads": n}, ConfigError, f"n_threads={n!r} is not an integer in") for n in (0, 1.5, "a", True)),
        *(
            ({"warm_start": value}, ConfigError, f"warm_start={value!r} is not true or false")
            for value in (3, "a", None)
        ),
        ({"reset_noise": "gym"}, UnknownNameError, "gymnasium"),
        ({"horizon": 0}, ConfigError, "horizon=0 is not an integer in"),
        ({"action_scale": -1.0}, ConfigError, "action_scale"),
        ({"control_cost": np.inf}, ConfigError, "control_cost=inf is not a finite number"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_family("AntVel-v0", **arguments)
