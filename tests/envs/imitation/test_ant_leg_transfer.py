"""AntLegTransfer-v0: transitions of a random policy are those of the task's legs, made once, kept and verified."""

import numpy as np
import pytest

from metarl.envs.checker.family import check_family
from metarl.envs.imitation.transitions import RandomTransitions
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.errors import MetaRLError, MetaRLWarning
from metarl.streams import stream
from tests.meta.walk import Walk

SMALL = {"n_tasks": 3, "n_trajectories": 3, "n_steps": 6, "real_kwargs": {"horizon": 20}}


def rngs(n):
    return [stream(0, "test", task) for task in range(n)]


@pytest.fixture(scope="module")
def family():
    return make_family("AntLegTransfer-v0", **SMALL)


def test_what_is_seen_keeps_every_promise(family):
    check_family(family.support_family, n=2, n_envs=4)


def test_transitions_are_those_of_the_tasks_legs_and_follow_each_other(family):
    tasks, real = family.tasks("test", 2), family.real
    inputs, targets = family.support_family.examples(tasks, rngs(2), 6)
    assert (inputs.shape, targets.shape) == ((2, 6, 35), (2, 6, 27))
    np.testing.assert_array_equal(inputs[:, 1:, :27], targets[:, :-1])
    actions = inputs[..., 27:]
    assert 0.9 < np.abs(actions).max() <= 1.0
    assert np.abs(actions.mean()) < 0.2
    for row in range(6):
        state, _ = real.reset(tasks, rngs(2), 1)
        whole = state["physics"].copy()
        whole[:, 0, 3:16] = inputs[:, row, :13]
        whole[:, 0, 16:30] = inputs[:, row, 13:27]
        step = real.step(tasks, {**state, "physics": whole}, actions[:, row : row + 1], rngs(2))
        np.testing.assert_allclose(step.obs[:, 0], targets[:, row], atol=2e-3)
    # Other legs move elsewhere under the same actions.
    step = real.step(family.tasks("shifted", 2), {**state, "physics": whole}, actions[:, -1:], rngs(2))
    assert np.abs(step.obs[:, 0] - targets[:, -1]).max() > 0.05


def test_they_do_not_depend_on_the_batch_and_trajectories_differ(family):
    tasks = family.tasks("test", 3)
    together = family.support_family.shown.of(tasks)
    alone = make_family("AntLegTransfer-v0", **SMALL).support_family.shown.of(take_tasks(tasks, [2]))
    np.testing.assert_array_equal(alone[0].obs, together[2].obs)
    np.testing.assert_array_equal(alone[0].actions, together[2].actions)
    starts = together[2].obs.reshape(3, 6, 35)[:, 0]
    assert len(np.unique(starts, axis=0)) == 3


def test_an_episode_that_ends_is_followed_by_another():
    real = Walk()
    shown = RandomTransitions(real, 4, 3 * real.horizon, None, None)
    (pairs,) = shown.of(take_tasks(real.tasks("test", 1), [0]))
    seen = pairs.obs.reshape(4, 3 * real.horizon, -1)
    after = pairs.actions.reshape(4, 3 * real.horizon, -1)
    n_obs = after.shape[-1]
    follows = np.isclose(seen[:, 1:, :n_obs], after[:, :-1]).all(-1)
    first = np.arange(1, 3 * real.horizon) % real.horizon == 0
    assert follows[:, ~first].all()
    assert not follows[:, first].all()


def test_noise_is_on_what_is_seen_alone(family):
    tasks = family.tasks("test", 2)
    noisy = make_family("AntLegTransfer-v0", **SMALL, support_noise=4.0)
    (x, y), (noisy_x, noisy_y) = (each.support_family.examples(tasks, rngs(2), 60) for each in (family, noisy))
    np.testing.assert_array_equal(x, noisy_x)
    assert (noisy_y - y).std() == pytest.approx(4.0, abs=0.2)
    for ours, theirs in zip(family.examples(tasks, rngs(2), 5), noisy.examples(tasks, rngs(2), 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_they_are_kept_on_the_disk_verified_and_made_again_where_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("METARL_CACHE", str(tmp_path))
    tasks = make_family("AntLegTransfer-v0", **SMALL).pool
    made = make_family("AntLegTransfer-v0", **SMALL).support_family.shown.of(tasks)
    (file,) = (tmp_path / "demonstrations").glob("AntLeg-v0-*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(RandomTransitions, "_shown", None)
        read = make_family("AntLegTransfer-v0", **SMALL).support_family.shown.of(tasks)
    for ours, theirs in zip(made, read, strict=True):
        np.testing.assert_array_equal(ours.obs, theirs.obs)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(MetaRLWarning):
        again = make_family("AntLegTransfer-v0", **SMALL).support_family.shown.of(tasks)
    np.testing.assert_array_equal(again[1].actions, made[1].actions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_trajectories": -1}, "n_trajectories=-1"),
        ({"support_noise": -1.0}, "support_noise"),
        ({"expert": "nowhere.safetensors"}, "nowhere"),
        ({"n_state": 5}, "n_state"),
        ({"real_kwargs": {"max_length": 9.0}}, "max_length"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(MetaRLError, match=message) as caught:
        make_family("AntLegTransfer-v0", **arguments)
    assert "\n" not in str(caught.value)
