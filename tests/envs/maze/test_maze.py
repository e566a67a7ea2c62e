"""Maze-v0: all its mazes, the expert that searches, and the score."""

import gymnasium
import numpy as np
import pytest

from metarl.envs.checker.family import check_family
from metarl.envs.maze.maze import Maze
from metarl.envs.registry import make_family
from metarl.envs.tasks import n_tasks, one_task, take_tasks
from metarl.errors import ConfigError, TaskError
from metarl.streams import stream

UP, RIGHT, DOWN, LEFT = range(4)


def play(family, tasks, act, n_envs=1):
    """Return returns, lengths, whether the goal was reached, and the last score, ``[task, env]`` each."""
    n = n_tasks(tasks)
    state, _ = family.reset(tasks, [stream(0, "maze", task) for task in range(n)], n_envs)
    going, total, length, score = (np.full((n, n_envs), value) for value in (True, 0.0, 0, np.nan))
    for _ in range(family.horizon):
        step = family.step(tasks, state, act(state), [], None)
        total[going] += step.reward[going]
        score[going] = step.info["score"][going]
        length += going
        going &= ~step.terminated
        state = step.state
    return total, length, ~going, score


def at_random():
    """Return what makes uniformly random moves."""
    rng = stream(0, "random")
    return lambda state: rng.integers(4, size=state["cell"].shape)


def some(family, n=100):
    """Return all mazes, or some from the first to the last of many."""
    every = family.finite_tasks()
    total = n_tasks(every)
    return every if total <= n else take_tasks(every, np.unique(np.linspace(0, total - 1, n).astype(int)))


# --------------------------------------------------------------------------------------------------------------- mazes
@pytest.mark.parametrize("columns", ["odd", "even"])
@pytest.mark.parametrize("width", [2, 4, 6, 12, 24])
def test_rows_complement_each_other_in_every_other_column(width, columns):
    family = Maze(width, obstacle_columns=columns)
    tasks = some(family)
    assert n_tasks(family.finite_tasks()) == 2 ** (width // 2)
    drawings = [family.drawing(one_task(tasks, index)) for index in range(n_tasks(tasks))]
    assert len(set(drawings)) == n_tasks(tasks)
    first = 1 if columns == "odd" else 0
    for bits, drawing in zip(tasks["obstacles"], drawings, strict=True):
        cells = np.array([list(row) for row in drawing.split("/")]) == "#"
        assert not cells[:, 1 - first :: 2].any()
        expected = np.stack([bits == 1, bits == 0])
        expected[0, 0] &= first == 1  # not on the start
        expected[1, -1] &= first == 0  # not on the goal
        np.testing.assert_array_equal(cells[:, first::2], expected)


@pytest.mark.parametrize("width", [6, 12, 24])
def test_splits_share_neither_a_maze_nor_a_twin(width):
    family = Maze(width)
    finite = family.finite_tasks()["obstacles"]
    held = {split: family.tasks(split, 5000)["obstacles"] for split in ("validation", "test", "shifted")}
    held["train"] = finite[family.finite_split("train")]
    sizes = {6: (6, 6, 6, 2), 12: (30, 10, 12, 12), 24: (2178, 726, 728, 464)}[width]
    assert tuple(len(held[split]) for split in ("train", "validation", "test", "shifted")) == sizes
    # Without the last bit: the same moves solve the maze.
    ways = {split: {tuple(bits[:-1]) for bits in rows.tolist()} for split, rows in held.items()}
    for split, others in (("shifted", ways), ("validation", ("train", "test")), ("test", ("train",))):
        if width != 6 or split == "shifted":
            assert not any(ways[split] & ways[other] for other in others if other != split)
    assert (width == 6) == family.splits_coincide
    trained = {tuple(bits) for bits in family.sample_tasks(stream(0, "t"), 400)["obstacles"].tolist()}
    assert trained <= {tuple(bits) for bits in held["train"].tolist()}
    turns = {split: {np.count_nonzero(np.diff([0, *way, 1])) for way in found} for split, found in ways.items()}
    assert min(turns["shifted"]) == {6: 3, 12: 5, 24: 9}[width]
    assert all(max(turns[split]) < min(turns["shifted"]) for split in ("train", "validation", "test"))
    drawn = family.sample_shifted_tasks(stream(0, "t"), 50)["obstacles"].tolist()
    assert {tuple(bits[:-1]) for bits in drawn} <= ways["shifted"]


def test_the_first_of_a_split_are_mazes_of_different_ways():
    for split in ("validation", "test", "shifted"):
        bits = Maze(24).tasks(split, 40)["obstacles"]
        assert len(np.unique(bits[:, :-1], axis=0)) == len(bits) == 40
        assert 10 < bits[:, -1].sum() < 30
        np.testing.assert_array_equal(Maze(24).tasks(split, 7)["obstacles"], bits[:7])


def test_small_mazes_have_no_shifted_split():
    for width in (2, 4, 8):
        with pytest.raises(TaskError, match="has no shifted split"):
            Maze(width).tasks("shifted", 3)


def test_a_task_is_given_in_bits():
    family = Maze(6)
    np.testing.assert_array_equal(family.validate_tasks({"obstacles": [[1, 0, 1]]})["obstacles"], [[1, 0, 1]])
    for wrong in ([[1, 0]], [[1, 0, 2]], [[1, 0, 0.5]], [1, 0, 1]):
        with pytest.raises(TaskError, match="Maze-v0"):
            family.validate_tasks({"obstacles": wrong})


# -------------------------------------------------------------------------------------------------------------- expert
@pytest.mark.parametrize("width", [6, 12, 24])
def test_the_expert_takes_the_shortest_way_and_no_return_is_higher(width):
    family = Maze(width, step_cost=0.01)
    tasks = some(family)
    total, length, reached, score = play(family, tasks, lambda state: family.expert(tasks, state))
    assert reached.all()
    np.testing.assert_array_equal(score, 0.0)
    # Every turn of the row is a move, and so is every column.
    bits = tasks["obstacles"]
    ends = np.zeros((len(bits), 1)), bits[:, :-1], np.ones((len(bits), 1))
    turns = np.count_nonzero(np.diff(np.concatenate(ends, axis=1)), axis=1)
    np.testing.assert_array_equal(length[:, 0], width - 1 + turns)
    np.testing.assert_allclose(total[:, 0], 1.0 - 0.01 * length[:, 0], rtol=1e-12)
    others = play(family, tasks, at_random(), n_envs=50)
    assert (others[0] <= total + 1e-12).all()
    assert (others[1] >= length).all()


def test_no_way_is_shorter_than_the_experts():
    """All sequences of 6 moves in all mazes of N = 4, tried out."""
    family = Maze(4)
    tasks = family.finite_tasks()
    every = np.stack(np.meshgrid(*[np.arange(4)] * 6, indexing="ij"), axis=-1).reshape(-1, 6)
    state, _ = family.reset(tasks, [stream(0, "reset")] * 4, len(every))
    arrived = np.full((4, len(every)), 99)
    for time, moves in enumerate(every.T, start=1):
        step = family.step(tasks, state, np.tile(moves, (4, 1)), [], None)
        arrived = np.minimum(arrived, np.where(step.terminated, time, 99))
        state = step.state
    _, length, reached, _ = play(family, tasks, lambda state: family.expert(tasks, state))
    assert reached.all()
    np.testing.assert_array_equal(arrived.min(1), length[:, 0])


def test_the_expert_is_the_same_each_time_and_whoever_is_beside_it():
    family = Maze(12)
    tasks = family.tasks("test", 5)
    cells = np.tile(np.arange(24), (5, 1))
    moves = family.expert(tasks, {"cell": cells})
    np.testing.assert_array_equal(moves, family.expert(tasks, {"cell": cells}))
    one = family.expert(take_tasks(tasks, slice(2, 3)), {"cell": cells[:1]})
    np.testing.assert_array_equal(moves[2:3], one)


# ------------------------------------------------------------------------------------------------------ reward, score
@pytest.mark.parametrize(
    "options", [{}, {"distance": "manhattan"}, {"obstacle_columns": "even"}, {"observation": "position"}], ids=str
)
def test_the_return_is_the_score_plus_one(options):
    family = Maze(6, **options)
    total, _, reached, score = play(family, family.tasks("test"), at_random(), n_envs=50)
    np.testing.assert_allclose(total, 1.0 + score, atol=1e-12)
    assert 0 < reached.mean() < 0.5


def test_a_way_by_hand():
    env = gymnasium.make("Maze-v0", width=6, horizon=20, obstacles=[1, 0, 1]).unwrapped  # .#...#/...#..
    obs, _ = env.reset(seed=0)
    assert obs.argmax() == 0
    way = [  # move, cell, moves left of 8
        (RIGHT, 0, 8),  # against the obstacle
        (UP, 0, 8),
        (DOWN, 6, 7),
        (RIGHT, 7, 6),
        (LEFT, 6, 7),
        (RIGHT, 7, 6),
        (RIGHT, 8, 5),
        (RIGHT, 8, 5),
        (UP, 2, 4),
        (RIGHT, 3, 3),
        (RIGHT, 4, 2),
        (DOWN, 10, 1),
        (RIGHT, 11, 0),
    ]
    left = 8
    for move, cell, then in way:
        obs, reward, terminated, truncated, info = env.step(move)
        assert obs.argmax() == cell
        assert obs.sum() == 1.0
        assert reward == info["reward_progress"] == pytest.approx((left - then) / 8)
        assert info["score"] == pytest.approx(-then / 8)
        left = then
    assert terminated
    assert not truncated


def test_the_manhattan_distance_sees_no_obstacles():
    env = gymnasium.make("Maze-v0", width=6, obstacles=[0, 1, 1], distance="manhattan").unwrapped
    env.reset(seed=0)
    rewards = [env.step(move)[1] for move in (RIGHT, RIGHT, DOWN, UP)]
    assert rewards == pytest.approx([1 / 6, 1 / 6, 1 / 6, -1 / 6])


@pytest.mark.parametrize(("observation", "size"), [("cell", 24), ("position", 2)])
def test_walls_are_hidden_and_the_oracle_sees_them(observation, size):
    plain = make_family("Maze-v0", observation=observation)
    tasks = plain.tasks("test", 3)
    cells = {"cell": np.tile(np.arange(24), (3, 1))}
    obs = plain.step(tasks, cells, np.full((3, 24), LEFT), [], None).obs
    assert obs.shape == (3, 24, size)
    assert obs.min() == 0.0
    assert obs.max() == 1.0
    _, obs = make_family("Maze-v0", oracle=True, observation=observation).reset(tasks, [stream(0, "reset")] * 3, 1)
    np.testing.assert_array_equal(obs[:, 0, size:], tasks["obstacles"])
    np.testing.assert_array_equal(obs[:, 0, :size], np.eye(1, size) * (observation == "cell") + np.zeros((3, size)))


@pytest.mark.parametrize(("width", "random", "blind"), [(6, 0.17, 0.78), (12, 0.13, 0.78), (24, 0.10, 0.75)])
def test_who_does_not_know_the_maze_returns_what_the_documentation_says(width, random, blind):
    family = Maze(width)
    tasks = family.sample_tasks(stream(0, "tasks"), 100)
    total, *_ = play(family, tasks, at_random(), n_envs=40)
    assert total.mean() == pytest.approx(random, abs=0.015)
    rng = stream(0, "blind")

    def mixing(state):
        row, column = np.divmod(state["cell"], width)
        turn = ((rng.random(row.shape) > 0.7) & (column % 2 == 0)) | ((column == width - 1) & (row == 0))
        return np.where(turn, np.where(row == 0, DOWN, UP), RIGHT)

    total, *_ = play(family, tasks, mixing, n_envs=40)
    assert total.mean() == pytest.approx(blind, abs=0.02)


# -------------------------------------------------------------------------------------------------- checks, arguments
@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 6},
        {"obstacle_columns": "even", "observation": "position", "distance": "manhattan", "step_cost": 0.1},
        {"mazes": ["..#./#...", "..../....", "..../.#.."]},
        {"oracle": True},
    ],
    ids=str,
)
def test_it_passes_the_checks(arguments):
    check_family(make_family("Maze-v0", **arguments))


def test_mazes_by_hand():
    family = make_family("Maze-v0", mazes=["..#./#...", "..../...."])
    assert (family.width, family.horizon, n_tasks(family.finite_tasks()), family.shifted_space) == (4, 8, 2, None)
    tasks = family.finite_tasks()
    assert {family.drawing(one_task(tasks, index)) for index in range(2)} == {"..#./#...", "..../...."}
    _, length, reached, _ = play(family, tasks, lambda state: family.expert(tasks, state))
    assert reached.all()
    np.testing.assert_array_equal(length, 4)
    env = gymnasium.make("Maze-v0", mazes=["..#./#..."]).unwrapped
    env.reset(seed=0)
    assert [env.step(move)[2] for move in (RIGHT, DOWN, RIGHT, RIGHT)] == [False, False, False, True]
    with pytest.raises(TaskError, match="is not one of the 2 tasks of Maze-v0"):
        family.validate_tasks({"obstacles": np.eye(4)[None, 1:3]})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"width": 7}, "width=7 is not even"),
        ({"width": 26}, "width=26 is not an integer in"),
        ({"width": 0}, "width=0 is not an integer in"),
        ({"width": "wide"}, "width='wide' is not an integer in"),
        ({"observation": "walls"}, "observation='walls' is not one of 'cell', 'position'"),
        ({"distance": 1}, "distance=1 is not one of"),
        ({"obstacle_columns": "all"}, "obstacle_columns='all' is not one of"),
        ({"step_cost": -1}, "step_cost=-1 is not a number in"),
        ({"horizon": 0}, "horizon=0 is not an integer in"),
        ({"mazes": []}, r"mazes=\[\]: a list of drawings"),
        ({"mazes": "../.."}, r"mazes='\.\./\.\.': a list of drawings"),
        ({"mazes": ["../..", ".../..."]}, "mazes differ in width"),
        ({"mazes": ["../..", "../.."]}, r"mazes holds '\.\./\.\.' twice"),
        ({"mazes": ["." * 30 + "/" + "." * 30]}, "width of mazes=30"),
        ({"mazes": ["../.."], "width": 6}, "width=6: the mazes have 2 columns"),
        ({"mazes": [".#/#."]}, "no way leads"),
    ],
    ids=str,
)
def test_arguments_that_make_no_maze_are_refused_in_one_line(arguments, words):
    with pytest.raises((ConfigError, TaskError), match=words) as caught:
        make_family("Maze-v0", **arguments)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ pictures
def test_the_picture_shows_obstacles_and_the_way():
    env = gymnasium.make("Maze-v0", width=6, obstacles=[1, 0, 0], render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    dark, blue, green, grey, light = (90, 90, 90), (31, 119, 180), (44, 160, 44), (150, 150, 150), (150, 190, 230)

    def at(picture, row, column, right=0.0):
        """Return the colour in a cell, ``right`` of its middle."""
        scale = 480 / 7
        return tuple(picture[round((row + 1) * scale), round((column + 1 + right) * scale)])

    first = env.render()
    assert first.shape == (206, 480, 3)
    for row, column in ((0, 1), (1, 3)):
        assert at(first, row, column) == dark
    assert at(first, 0, 5) == at(first, 1, 1) == (255, 255, 255)
    assert (at(first, 0, 0), at(first, 1, 5)) == (blue, green)
    for move in (DOWN, RIGHT):
        env.step(move)
    then = env.render()
    assert at(then, 1, 1) == blue
    assert at(then, 0, 0, 0.15) == grey
    assert at(then, 1, 0, 0.3) == at(then, 1, 0) == light


def test_a_family_of_twins_and_others_keeps_its_promises():
    family = make_family("Maze-v0", width=4)
    assert n_tasks(family.finite_tasks()) == 4
    for seed in range(4):
        check_family(family, seed=seed, n_steps=8)
