"""What a random policy meets: env steps of the tasks, one after the other, and what families show by it."""

import numpy as np
import pytest

from metarl.envs import check_family
from metarl.envs.registry import make_family
from metarl.envs.supervised.random_steps import RandomSteps
from metarl.errors import MetaRLError
from metarl.streams import stream
from tests.meta.walk import Walk


def rngs(n):
    return [stream(0, "test", task) for task in range(n)]


@pytest.mark.parametrize(
    ("family", "target"),
    [
        (Walk(), "reward"),
        (Walk(discrete=True), "reward"),
        (make_family("PointMass-v0"), "reward"),
        (make_family("AntLeg-v0", horizon=3), "observation"),
    ],
    ids=str,
)
def test_they_are_a_family_like_others(family, target):
    check_family(RandomSteps("steps", family, target), n=2, n_envs=2)


@pytest.mark.parametrize("discrete", [False, True])
def test_steps_follow_each_other_and_an_episode_that_ends_is_followed_by_another(discrete):
    real = Walk(discrete=discrete)
    tasks, n = real.tasks("test", 2), 3 * real.horizon
    shown = RandomSteps("steps", real)
    inputs, targets = shown.examples(tasks, rngs(2), n)
    assert inputs.shape[1:] == (n, shown.observation_space.shape[0])
    n_obs = targets.shape[-1]
    follows = np.isclose(inputs[:, 1:, :n_obs], targets[:, :-1]).all(-1)
    first = np.arange(1, n) % real.horizon == 0
    assert follows[:, ~first].all()
    assert not follows[:, first].all()
    if discrete:
        assert set(inputs[..., n_obs:].sum(-1).ravel()) == {1.0}


@pytest.mark.parametrize("env", ["PointMass-v0", "AntLeg-v0"])
def test_what_follows_is_what_the_family_says(env):
    family = make_family(env)
    tasks, seen = family.tasks("test", 2), family.support_family
    (inputs, targets), (noisy_inputs, noisy) = (
        make_family(env, support_noise=sigma).support_family.examples(tasks, rngs(2), 40) for sigma in (0.0, 3.0)
    )
    np.testing.assert_array_equal(inputs, noisy_inputs)
    assert (noisy - targets).std() == pytest.approx(3.0, rel=0.25)
    n_obs = family.observation_space.shape[0]
    if env == "AntLeg-v0":
        np.testing.assert_array_equal(inputs[:, 1:8, :n_obs], targets[:, :7])
    else:
        at = inputs[..., :n_obs] + 0.1 * inputs[..., n_obs:]
        distance = np.linalg.norm(at - tasks["goal"][:, None], axis=-1)
        np.testing.assert_allclose(targets[..., 0], -distance, atol=1e-6)
    assert seen.real is family


def test_mazes_show_their_cells():
    tasks = make_family("Maze-v0").tasks("test", 2)
    families = make_family("Maze-v0"), make_family("MazeTransfer-v0")
    ours, theirs = (family.support_family.examples(tasks, rngs(2), 24) for family in families)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("env", ["PointMass-v0", "AntLeg-v0", "Maze-v0"])
def test_what_is_wrong_is_said_in_one_line(env):
    with pytest.raises(MetaRLError, match="support_noise=-1") as caught:
        make_family(env, support_noise=-1.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(MetaRLError, match="target='action'"):
        RandomSteps("steps", Walk(), "action")
