"""Sinusoid-v0: the regression of Finn et al. (2017)."""

import gymnasium
import numpy as np
import pytest

from metarl.envs.registry import make_family
from metarl.streams import stream


def play(tasks, actions, n_envs=2000, family=None):
    """Return inputs and the step of predicting the same everywhere."""
    family = family or make_family("Sinusoid-v0")
    n = len(tasks["amplitude"])
    state, obs = family.reset(tasks, [stream(0, "test", task) for task in range(n)], n_envs)
    return obs, family.step(tasks, state, actions(obs), [], None)


def test_the_target_is_the_sine_of_the_task():
    tasks = {"amplitude": np.array([0.5, 4.0]), "phase": np.array([0.0, 2.0])}
    x, step = play(tasks, np.zeros_like, 5)
    expected = tasks["amplitude"][:, None, None] * np.sin(x.astype(np.float64) - tasks["phase"][:, None, None])
    np.testing.assert_allclose(step.info["target"], expected, rtol=1e-12)
    np.testing.assert_allclose(step.reward, -np.square(expected[..., 0]), rtol=1e-12)


def test_tasks_and_inputs_have_the_published_ranges():
    family = make_family("Sinusoid-v0")
    tasks = family.sample_tasks(stream(0, "tasks"), 4000)
    for name, low, high in (("amplitude", 0.1, 5.0), ("phase", 0.0, np.pi)):
        assert low <= tasks[name].min() < low + 0.02
        assert high - 0.02 < tasks[name].max() <= high
    x, _ = play({name: value[:10] for name, value in tasks.items()}, np.zeros_like)
    assert x.min() == pytest.approx(-5.0, abs=0.01)
    assert x.max() == pytest.approx(5.0, abs=0.01)
    shifted = family.tasks("shifted")
    assert shifted["amplitude"].min() > 5.0
    assert shifted["amplitude"].max() <= 7.5
    assert shifted["phase"].max() <= np.pi


def test_what_can_be_reached_without_knowing_the_task():
    """The numbers of the docstring, from the definition: amplitude and phase are independent and uniform."""
    tasks = make_family("Sinusoid-v0").sample_tasks(stream(0, "tasks"), 3000)
    _, zero = play(tasks, np.zeros_like, 100)
    mean_of_squared_amplitudes = (5.0**3 - 0.1**3) / (3 * 4.9)
    assert mean_of_squared_amplitudes / 2 == pytest.approx(4.25, abs=0.01)
    assert zero.reward.mean() == pytest.approx(-mean_of_squared_amplitudes / 2, rel=0.03)
    _, best = play(tasks, lambda x: -1.62 * np.cos(x), 100)
    assert best.reward.mean() == pytest.approx(-3.0, abs=0.1)


def test_one_copy_plays_as_a_gymnasium_environment():
    env = gymnasium.make("Sinusoid-v0", amplitude=2.0, phase=0.5)
    x, _ = env.reset(seed=1)
    _, reward, terminated, _, info = env.step(2.0 * np.sin(x - 0.5))
    assert terminated
    assert reward == pytest.approx(0.0, abs=1e-10)
    assert info["target"] == pytest.approx(2.0 * np.sin(x - 0.5), abs=1e-6)
    assert set(info) == {"reward_squared_error", "target"}


def test_the_picture_shows_the_sine_the_example_and_the_prediction():
    blue, green, grey = (31, 119, 180), (44, 160, 44), (205, 205, 205)
    env = gymnasium.make("Sinusoid-v0", amplitude=2.0, phase=0.5, render_mode="rgb_array").unwrapped

    def shown(picture, colour):
        """Return where a colour is, in the plane."""
        rows, columns = np.nonzero((picture == colour).all(-1))
        return (columns + 0.5) * 11 / 400 - 5.5, 5.5 - (rows + 0.5) * 11 / 400

    x, _ = env.reset(seed=3)
    before = env.render()
    assert not len(shown(before, blue)[0])
    at, height = shown(before, grey)
    np.testing.assert_allclose(height, 2 * np.sin(at - 0.5), atol=0.08)
    assert at.min() < -4.5
    assert at.max() > 4.5
    y = 2 * np.sin(x[0] - 0.5)
    env.step(np.array([y + 2.0]))
    after = env.render()
    for colour, expected in ((green, y), (blue, y + 2.0)):
        at, height = shown(after, colour)
        assert at.mean() == pytest.approx(x[0], abs=0.05)
        assert height.mean() == pytest.approx(expected, abs=0.05)
