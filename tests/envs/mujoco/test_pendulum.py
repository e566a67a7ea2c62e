"""Pendulums: geometry, mass and inertia by closed forms, Gymnasium's classes, transitions, tasks and errors."""

import copy
import pickle

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.envs.checker.family import check_family
from metarl.envs.mujoco import models as robot_models
from metarl.envs.mujoco.pendulum import DoublePendulum, PendulumParameters, SinglePendulum
from metarl.envs.mujoco.poles import Poles
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.errors import ConfigError, MetaRLError, TaskError, UnknownNameError
from metarl.streams import stream

DENSITY = 1000.0
RADIUS = {1: 0.049, 2: 0.045}
PLAIN = {"length": np.array([0.6]), "gravity": np.array([9.81])}


def rngs(n):
    return [stream(0, "test", task) for task in range(n)]


@pytest.mark.parametrize("make", [DoublePendulum, SinglePendulum, PendulumParameters], ids=lambda make: make.__name__)
def test_it_keeps_every_promise(make):
    check_family(make(n_steps=3, **({} if make is DoublePendulum else {"support_noise": 0.5})), n=2, n_envs=4)


# -------------------------------------------------------------------------------------------------------------- bodies
@pytest.mark.parametrize("n_poles", [1, 2])
def test_masses_inertias_and_places_follow_the_length(n_poles):
    lengths, gravities = np.array([0.3, 0.6, 1.2]), np.array([5.0, 9.81, 20.0])
    radius = RADIUS[n_poles]
    models = Poles(n_poles, 1).models(lengths, gravities)
    for model, length, gravity in zip(models, lengths, gravities, strict=True):
        # The single pole leans by 1 mm, as in Gymnasium's file.
        cylinder = np.hypot(length, 0.001) if n_poles == 1 else length
        straight, round_ = DENSITY * np.pi * radius**2 * cylinder, DENSITY * 4.0 / 3.0 * np.pi * radius**3
        half = cylinder / 2.0
        across = straight * (cylinder**2 / 12.0 + radius**2 / 4.0)
        across += round_ * (0.4 * radius**2 + half**2 + 0.75 * half * radius)
        along = radius**2 * (straight / 2.0 + 0.4 * round_)
        for name in ("pole", "pole2")[:n_poles]:
            body = model.body(name)
            assert body.mass[0] == pytest.approx(straight + round_, rel=1e-12)
            np.testing.assert_allclose(body.inertia, [across, across, along], rtol=1e-9)
            np.testing.assert_allclose(body.ipos[2], length / 2.0, rtol=1e-12)
        assert model.opt.gravity[2] == -gravity
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        if n_poles == 2:
            np.testing.assert_allclose(data.site("tip").xpos, [0.0, 0.0, 2.0 * length], atol=1e-12)
            np.testing.assert_allclose(data.xpos[model.body("pole2").id], [0.0, 0.0, length], atol=1e-12)
        # What does not follow from a pole's length stays.
        assert model.body("cart").mass[0] == pytest.approx(10.4719755, rel=1e-6)


@pytest.mark.parametrize("n_poles", [1, 2])
def test_at_the_length_and_gravity_of_gymnasium_it_is_gymnasiums(n_poles):
    env = gymnasium.make("InvertedPendulum-v5" if n_poles == 1 else "InvertedDoublePendulum-v5").unwrapped
    poles = Poles(n_poles, 1)
    assert (poles.frame_skip, poles.largest_action) == (env.frame_skip, env.action_space.high[0])
    env.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    env.reset(seed=0)
    start = poles.start(stream(0, "start"), 1)
    env.set_state(*np.split(start[0], 2))
    actions = stream(0, "actions").uniform(-poles.largest_action, poles.largest_action, 128)
    expected = []
    for action in actions:
        env.do_simulation(np.array([action]), env.frame_skip)
        expected.append(np.concatenate([env.data.qpos, env.data.qvel]))
    states = poles.play(PLAIN["length"], PLAIN["gravity"], start[None], actions[None, None])[0, 0]
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-8)
    assert np.abs(states[:, 1]).max() > 0.5


def test_episodes_start_as_gymnasiums_do():
    for n_poles, name in ((1, "InvertedPendulum-v5"), (2, "InvertedDoublePendulum-v5")):
        env, theirs = gymnasium.make(name).unwrapped, []
        for seed in range(400):
            env.reset(seed=seed)
            theirs.append([*env.data.qpos, *env.data.qvel])
        ours = Poles(n_poles, 1).start(stream(0, "start"), 4000)
        np.testing.assert_allclose(np.std(theirs, axis=0), ours.std(axis=0), rtol=0.15)
        bounded = slice(0, None if n_poles == 1 else n_poles + 1)
        noise = 0.01 if n_poles == 1 else 0.1
        assert np.abs(ours[:, bounded]).max() <= noise
        assert np.abs(np.array(theirs)[:, bounded]).max() <= noise


# --------------------------------------------------------------------------------------------------------- transitions
@pytest.mark.parametrize("make", [SinglePendulum, DoublePendulum])
def test_transitions_follow_each_other_and_are_those_of_the_task(make):
    family = make(n_steps=4)
    tasks = family.tasks("test", 2)
    inputs, targets = family.examples(tasks, rngs(2), 10)
    n_state = targets.shape[-1]
    assert inputs.shape == (2, 10, n_state + 1)
    for first in (0, 4):
        np.testing.assert_allclose(inputs[:, first + 1 : first + 4, :n_state], targets[:, first : first + 3], rtol=1e-6)
    # After each reset the cart is near the middle, upright and at rest.
    assert np.abs(inputs[:, [0, 4, 8], : n_state // 2]).max() <= 0.1
    for task in range(2):
        model = family.poles.models(tasks["length"][[task]], tasks["gravity"][[task]])[0]
        data = mujoco.MjData(model)
        for before, after in zip(inputs[task].astype(float), targets[task], strict=True):
            mujoco.mj_resetData(model, data)
            data.qpos, data.qvel = np.split(before[:n_state], 2)
            data.ctrl[:] = before[n_state]
            mujoco.mj_step(model, data, nstep=family.poles.frame_skip)
            np.testing.assert_allclose([*data.qpos, *data.qvel], after, atol=1e-4)
    assert np.abs(inputs[..., -1]).max() <= family.poles.largest_action
    # Other tasks in the batch, threads and copies change no bit.
    alone = copy.deepcopy(family).examples(take_tasks(tasks, [1]), rngs(2)[1:], 10)
    np.testing.assert_array_equal(alone[1][0], targets[1])
    family.close()
    threads = make(n_steps=4, n_threads=3).examples(tasks, rngs(2), 10)
    np.testing.assert_array_equal(threads[1], targets)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(family)).examples(tasks, rngs(2), 10)[1], targets)


def test_predicting_no_change_costs_about_what_the_paper_says():
    family = make_family("DoublePendulum-v0")
    tasks = family.sample_tasks(stream(0, "tasks"), 100)
    inputs, targets = family.examples(tasks, rngs(100), 70)
    assert np.square(targets - inputs[..., :6]).mean() == pytest.approx(3.23, abs=0.4)
    assert np.abs(targets).max() < 100.0
    seen = family.support_family.examples(tasks, rngs(100), 70)
    assert np.square(seen[1] - seen[0][..., :4]).mean() == pytest.approx(0.6, abs=0.1)


def test_noise_is_on_what_is_seen_alone():
    tasks = DoublePendulum().tasks("test", 2)
    for id in ("DoublePendulum-v0", "PendulumParameters-v0"):
        plain, noisy = (make_family(id, support_noise=sigma) for sigma in (0.0, 2.0))
        (x, y), (noisy_x, noisy_y) = (each.support_family.examples(tasks, rngs(2), 500) for each in (plain, noisy))
        np.testing.assert_array_equal(x, noisy_x)
        assert (noisy_y - y).std() == pytest.approx(2.0, abs=0.1)
        for ours, theirs in zip(plain.examples(tasks, rngs(2), 5), noisy.examples(tasks, rngs(2), 5), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_models_are_forgotten_after_so_many(monkeypatch):
    monkeypatch.setattr(robot_models, "N_KEPT", 4)
    family = DoublePendulum()
    tasks = family.sample_tasks(stream(0, "tasks"), 7)
    family.examples(tasks, rngs(7), 1)
    kept = family.poles._models.get()._kept
    assert len(kept) == 7
    for task in range(7):
        family.examples(take_tasks(tasks, [task]), rngs(1), 1)
    assert len(kept) == 4


# ------------------------------------------------------------------------------------------------------ tasks, queries
def test_splits_are_ranges_and_arguments():
    family = make_family("DoublePendulum-v0", min_length=0.5, max_length=0.7)
    for split, (low, high), (least, most) in (
        ("test", (0.5, 0.7), (5.0, 15.0)),
        ("shifted", (0.7, 0.8), (15.0, 20.0)),
    ):
        tasks = family.tasks(split, 200)
        assert low <= tasks["length"].min() < low + 0.01
        assert high - 0.01 < tasks["length"].max() <= high
        assert least <= tasks["gravity"].min()
        assert tasks["gravity"].max() <= most
    assert family.support_family.task_space == family.task_space


def test_the_parameters_are_asked_for_in_units_of_their_ranges():
    tasks = {"length": np.array([0.3, 0.6, 0.9, 1.2]), "gravity": np.array([15.0, 10.0, 5.0, 20.0])}
    inputs, targets = make_family("PendulumParameters-v0").examples(tasks, rngs(4), 3)
    assert (inputs == 1.0).all()
    for shown in range(3):
        np.testing.assert_allclose(targets[:, shown], [[-1, 1], [0, 0], [1, -1], [2, 2]], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_length": -0.5}, r"min_length=-0\.5"),
        ({"max_length": 5.0}, r"max_length=5\.0"),
        ({"min_length": 0.9}, r"min_length=0\.9: below max_length=0\.9"),
        ({"max_gravity": float("nan")}, "max_gravity"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"support_noise": -1.0}, "support_noise"),
        ({"mass": 2.0}, "mass"),
    ],
)
@pytest.mark.parametrize("id", ["DoublePendulum-v0", "PendulumParameters-v0"])
def test_impossible_arguments_are_one_line(id, arguments, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message) as caught:
        make_family(id, **arguments)
    assert "\n" not in str(caught.value)


def test_lengths_that_make_no_body_are_one_line():
    with pytest.raises(TaskError, match=r"length=-1\.0 is outside the task space of DoublePendulum-v0"):
        make_family("DoublePendulum-v0").validate_tasks({"length": [-1.0], "gravity": [9.81]})
    with pytest.raises(MetaRLError, match="length"):
        gymnasium.make("DoublePendulum-v0", length=0.0, gravity=9.81)


def test_one_copy_plays_as_a_gymnasium_environment():
    env = gymnasium.make("DoublePendulum-v0", length=0.6, gravity=9.81)
    obs, _ = env.reset(seed=0)
    _, reward, terminated, _, info = env.step(obs[:6])
    assert terminated
    assert reward == pytest.approx(-np.square(info["target"] - obs[:6]).sum(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ pictures
GREEN, BLUE = (44, 160, 44), (31, 119, 180)


def top(picture, colour, reach):
    """Return the highest point of a colour, in the plane."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    row = rows.min()
    return (columns[rows == row].mean() + 0.5) * 2 * reach / 400 - reach, reach - (row + 0.5) * 2 * reach / 400


@pytest.mark.parametrize("length", [0.3, 0.9])
def test_the_picture_shows_the_poles_that_follow_and_those_predicted(length):
    env = gymnasium.make("DoublePendulum-v0", length=length, gravity=9.81, render_mode="rgb_array").unwrapped
    env.reset(seed=3)
    before = env.render()
    assert not (before == BLUE).all(-1).any()
    prediction = np.array([-0.5, 0.4, -0.2, 0.0, 0.0, 0.0], np.float32)
    *_, info = env.step(prediction)
    after = env.render()
    for colour, numbers in ((GREEN, info["target"]), (BLUE, prediction)):
        first, second = np.cumsum(numbers[1:3])
        x, y = top(after, colour, 2.8)
        assert y == pytest.approx(length * (np.cos(first) + np.cos(second)), abs=0.06)
        assert x == pytest.approx(numbers[0] + length * (np.sin(first) + np.sin(second)), abs=0.06)


def test_the_picture_of_parameters_shows_length_and_gravity():
    env = gymnasium.make("PendulumParameters-v0", length=0.9, gravity=15.0, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    assert not (env.render() == BLUE).all(-1).any()
    env.step(np.array([-1.0, 0.0], np.float32))
    picture = env.render()
    for colour, length, gravity in ((GREEN, 0.9, 15.0), (BLUE, 0.3, 10.0)):
        _, y = top(picture, colour, 1.4)
        assert y == pytest.approx(length * np.cos(0.3), abs=0.06)
        _, low = top(picture[::-1], colour, 1.4)
        assert low == pytest.approx(0.1 + 1.4 * gravity / 25.0, abs=0.06)
