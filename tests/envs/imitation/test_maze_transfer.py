"""MazeTransfer-v0: cells are seen as they are, moves are asked for, and the score is the paper's."""

import numpy as np
import pytest

import metarl
from metarl.envs.checker.family import check_family
from metarl.envs.registry import make_family
from metarl.errors import MetaRLError
from metarl.streams import stream


def rngs(n):
    return [stream(0, "test", task) for task in range(n)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 6},
        {"support_noise": 1.0, "positions": "scaled"},
        {"real_kwargs": {"mazes": ["..#./#...", "..../...."]}},
    ],
    ids=str,
)
def test_it_and_what_is_seen_keep_every_promise(arguments):
    family = make_family("MazeTransfer-v0", **arguments)
    for each in (family, family.support_family, family.real):
        check_family(each, n=2)


@pytest.mark.parametrize("width", [6, 12, 24])
def test_all_cells_are_seen_once_before_any_is_seen_again(width):
    family = make_family("MazeTransfer-v0", width=width)
    tasks = family.tasks("test", 3)
    cells, occupied = family.support_family.examples(tasks, rngs(3), 4 * width)
    for task in range(3):
        drawing = family.real.drawing({"obstacles": tasks["obstacles"][task]}).split("/")
        for half in (slice(0, 2 * width), slice(2 * width, None)):
            pairs = zip(cells[task, half].tolist(), occupied[task, half, 0].tolist(), strict=True)
            seen = {(x, y): filled for (x, y), filled in pairs}
            assert seen == {(x, y): int(drawing[y][x] == "#") for x in range(width) for y in range(2)}
    scaled = make_family("MazeTransfer-v0", width=width, positions="scaled").support_family.examples(tasks, rngs(3), 5)[
        0
    ]
    np.testing.assert_allclose(scaled * [width - 1, 1], cells[:, :5], atol=1e-5)


def test_noise_is_on_what_is_seen_alone():
    families = [make_family("MazeTransfer-v0", support_noise=sigma) for sigma in (0.0, 2.0)]
    tasks = families[0].tasks("test", 3)
    (x, y), (noisy_x, noisy_y) = (each.support_family.examples(tasks, rngs(3), 500) for each in families)
    np.testing.assert_array_equal(x, noisy_x)
    assert (noisy_y - y).std() == pytest.approx(2.0, abs=0.1)
    for ours, theirs in zip(*(each.examples(tasks, rngs(3), 5) for each in families), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_score_is_minus_the_normalised_distance_at_the_end():
    family = make_family("MazeTransfer-v0", width=6, acting_noise=0.0)
    tasks = family.tasks("test", 6)
    assert family.real.score.name == "score"
    np.testing.assert_allclose(family.expert_returns(tasks), 0.0, atol=1e-12)
    for distance in ("path", "manhattan"):
        real = make_family("Maze-v0", width=6, reward="distance", distance=distance)
        plain = make_family("Maze-v0", width=6, distance=distance)
        actions = stream(0, "actions").integers(4, size=(real.horizon, 6, 3))
        (state, _), (other, _) = (each.reset(tasks, rngs(6), 3) for each in (real, plain))
        total, progress = np.zeros((6, 3)), np.zeros((6, 3))
        for move in actions:
            step, beside = real.step(tasks, state, move, []), plain.step(tasks, other, move, [])
            state, other = step.state, beside.state
            total += step.reward
            progress += beside.reward
            np.testing.assert_allclose(total, step.info["score"], atol=1e-12)
        np.testing.assert_allclose(progress, 1.0 + total, atol=1e-12)
        # A dead end is farther from the goal than the start.
        assert total.min() < -1.0 if distance == "path" else total.min() >= -1.0 - 1e-12


def test_policies_are_scored_by_it():
    model = metarl.MAML(
        "MlpPolicy",
        make_family("MazeTransfer-v0", width=6, n_eval_episodes=2),
        learner="cloning",
        inner_lr=0.1,
        meta_batch_size=2,
        n_episodes=6,
        policy_kwargs={"net_arch": [4]},
        seed=0,
    )
    model.learn(1)
    returns = model.evaluate("test", 1, n_tasks=2, n_episodes=6).returns
    assert ((returns >= -1.5) & (returns <= 1e-9)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 5}, "width=5 is not even"),
        ({"positions": "polar"}, "positions='polar'"),
        ({"support_noise": float("inf")}, "support_noise"),
        ({"real_kwargs": {"mazes": ["..#/.#."]}}, "cannot be solved"),
        ({"width": 6, "real_kwargs": {"mazes": ["..#./#..."]}}, "width=6: the mazes have 4 columns"),
        ({"real_kwargs": {"reward": "gold"}}, "reward='gold'"),
        ({"real_kwargs": 3}, "real_kwargs=3"),
        ({"n_demonstration": 5}, "n_demonstration"),
        ({"expert": "nowhere.safetensors"}, "nowhere"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(MetaRLError, match=message) as caught:
        make_family("MazeTransfer-v0", **arguments)
    assert "\n" not in str(caught.value)
