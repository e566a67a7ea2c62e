"""MazeImitation-v0: what the search shows, and that who does as it says gets through."""

import gymnasium
import numpy as np
import pytest

from metarl.envs.checker.family import check_family
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.errors import MetaRLError
from metarl.streams import stream


@pytest.mark.parametrize("real", [{"width": 6}, {"width": 12, "observation": "position"}], ids=str)
def test_it_shows_the_move_of_a_shortest_way_in_each_cell(real):
    ours = make_family("MazeImitation-v0", real_kwargs=real, n_demonstrations=20)
    check_family(ours)
    tasks = ours.tasks("test", 4)
    for index, pairs in enumerate(ours.demonstrations.of(tasks)):
        cells = ours.real.cells(pairs.obs)
        task = take_tasks(tasks, [index])
        np.testing.assert_array_equal(ours.real.expert(task, {"cell": cells[None]})[0], pairs.actions)
        # Noise leads beside the shortest way, of which all is shown.
        way = _way(ours.real, task)
        assert set(way) < set(cells.tolist())


def _way(real, task):
    """Return the cells that the expert comes through without noise, but for the goal."""
    state, _ = real.reset(task, [stream(0, "way")], 1)
    cells = []
    for _ in range(real.horizon):
        cells.append(int(state["cell"][0, 0]))
        step = real.step(task, state, real.expert(task, state), [])
        state = step.state
        if step.terminated.all():
            break
    assert step.terminated.all()
    return cells


def test_without_noise_it_shows_the_way_alone_and_returns_one():
    ours = make_family("MazeImitation-v0", acting_noise=0.0, order="trajectory", n_demonstrations=1)
    tasks = ours.tasks("shifted", 12)
    np.testing.assert_allclose(ours.expert_returns(tasks), 1.0, rtol=1e-12)
    for index, pairs in enumerate(ours.demonstrations.of(tasks)):
        assert ours.real.cells(pairs.obs).tolist() == _way(ours.real, take_tasks(tasks, [index]))
        assert len(pairs.obs) == 16


def test_cells_are_read_from_what_is_observed():
    for observation in ("cell", "position"):
        real = make_family("Maze-v0", width=24, observation=observation)
        cells = np.arange(48).reshape(2, 24)
        task = real.tasks("test", 2)
        seen = real.step(task, {"cell": cells}, np.zeros((2, 24), dtype=int), [])
        np.testing.assert_array_equal(real.cells(seen.obs), seen.state["cell"])


def test_splits_and_arguments_are_those_of_the_mazes():
    ours, real = make_family("MazeImitation-v0"), make_family("Maze-v0")
    for split in ("validation", "test", "shifted"):
        np.testing.assert_array_equal(ours.tasks(split)["obstacles"], real.tasks(split)["obstacles"])
    drawn = ours.sample_tasks(stream(0, "tasks"), 200)["obstacles"].tolist()
    trained = real.finite_tasks()["obstacles"][real.finite_split("train")].tolist()
    assert {tuple(bits) for bits in drawn} == {tuple(bits) for bits in trained}
    for kwargs, words in (
        ({"real_kwargs": {"width": 5}}, "width=5 is not even"),
        ({"real_kwargs": {"mazes": [".#/#."]}}, "cannot be solved"),
        ({"acting_noise": 1.5}, "acting_noise=1.5"),
    ):
        with pytest.raises(MetaRLError, match=words):
            make_family("MazeImitation-v0", **kwargs)


def test_the_experts_move_is_paid():
    env = gymnasium.make("MazeImitation-v0", obstacles=[1, 0, 1, 0, 1, 0])
    for seed in range(5):
        env.reset(seed=seed)
        rewards = []
        for action in range(4):
            env.reset(seed=seed)
            _, reward, terminated, _, info = env.step(action)
            assert terminated
            assert reward == info["reward_right"] == (info["target"] == action)
            rewards.append(reward)
        assert sum(rewards) == 1.0
