"""Grids: drawings, moves, and distances against relaxing one cell after another."""

import numpy as np
import pytest

from metarl.envs.maze.grid import MOVES, distances, draw_maze, parse_maze, shortest_moves, transitions
from metarl.errors import TaskError
from metarl.streams import stream


def relaxed(occupied):
    """Return the distances in one maze by relaxing one cell after another until nothing can change."""
    rows, columns = occupied.shape
    far = {(r, c): 10**6 for r in range(rows) for c in range(columns) if not occupied[r, c]}
    if (rows - 1, columns - 1) in far:
        far[rows - 1, columns - 1] = 0
    for _ in list(far):
        for r, c in far:
            near = [far.get((r + down, c + right), 10**6) + 1 for down, right in MOVES]
            far[r, c] = min(far[r, c], *near)
    return [[-1 if far.get((r, c), 10**6) >= 10**6 else far[r, c] for c in range(columns)] for r in range(rows)]


@pytest.mark.parametrize(("rows", "columns"), [(2, 6), (2, 1), (3, 5)])
def test_distances_are_the_shortest(rows, columns):
    occupied = stream(0, "mazes", rows, columns).random((100, rows, columns)) < 0.35
    far = distances(occupied)
    assert far.tolist() == [relaxed(maze) for maze in occupied]
    assert ((far < 0) & ~occupied).any()  # some cells are walled in


def test_a_move_against_a_wall_leads_nowhere():
    after = transitions(parse_maze("..#/#..")[None])[0]
    # Cells 0 1 2 above, 3 4 5 below; up, right, down, left.
    assert after[0].tolist() == [0, 1, 0, 0]
    assert after[1].tolist() == [1, 1, 4, 0]
    assert after[4].tolist() == [1, 5, 4, 4]
    assert after[5].tolist() == [5, 5, 5, 4]


def test_every_shortest_move_leads_one_nearer():
    occupied = stream(1, "mazes").random((50, 2, 8)) < 0.3
    after, far = transitions(occupied), distances(occupied)
    ahead = np.take_along_axis(after, shortest_moves(after, far)[..., None], axis=2)[..., 0]
    flat = far.reshape(50, -1)
    on_the_way = flat > 0
    assert on_the_way.any()
    np.testing.assert_array_equal(np.take_along_axis(flat, ahead, axis=1)[on_the_way], flat[on_the_way] - 1)
    # Of moves that are as good the first is taken: right before down.
    open_ground = np.zeros((1, 2, 3), dtype=bool)
    assert shortest_moves(transitions(open_ground), distances(open_ground))[0, 0] == 1


def test_a_drawing_is_read_as_it_is_written():
    for drawing in ("..#./#...", "./.", "...../....."):
        assert draw_maze(parse_maze(drawing)) == drawing
    np.testing.assert_array_equal(parse_maze(" ..#.\n#...\n"), parse_maze("..#./#..."))


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        ("..#./.#..", "no way leads from the start to the goal"),
        ("#../...", "start .* is occupied"),
        ("..#/..#", "goal .* is occupied"),
        ("../...", "two rows of one length"),
        ("...", "two rows of one length"),
        ("", "two rows of one length"),
        ("/", "two rows of one length"),
        ("../../..", "two rows of one length"),
        (3, "two rows of one length"),
        (None, "two rows of one length"),
        ("..x/...", "has 'x': cells are '.' .free. and '#' .occupied."),
    ],
)
def test_a_maze_that_is_none_or_has_no_way_is_refused(drawing, words):
    with pytest.raises(TaskError, match=words) as caught:
        parse_maze(drawing)
    assert "\n" not in str(caught.value)
