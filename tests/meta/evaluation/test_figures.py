"""Figures of evaluations: what is drawn, in which colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from metarl.errors import ConfigError
from metarl.meta.evaluation.comparison import compare, comparison_table
from metarl.meta.evaluation.figures import adaptation_cards, adaptation_figure, nth_colour, spread_out
from metarl.meta.evaluation.published import Published
from metarl.meta.evaluation.report import Report

TASKS = {"velocity": np.array([3.0, 1.0, 2.0]), "goal": np.zeros((3, 2))}
PUBLISHED = (Published("MAML", (1.0, 5.0)), Published("oracle", (7.0,)))


def report(algo: str, shift: float) -> Report:
    returns = shift + np.array([[[0.0, 1.0, 2.0], [5.0, 7.0, 9.0], [-4.0, 0.0, 8.0]]])
    return Report(algo, "AntVel-v0", "test", returns, np.array([0.0, 100.0, 250.0]), TASKS, (0,), label=f"our {algo}")


def test_every_line_has_its_numbers_its_band_and_its_label() -> None:
    reports = [report("fomaml", 0.0), report("maml", 3.0)]
    figure = adaptation_figure(reports, PUBLISHED, level=0.5)
    assert figure.get_suptitle() == "AntVel-v0, test tasks"
    by_step, by_env_step = figure.axes
    for axis, x in ((by_step, [0, 1, 2]), (by_env_step, [0, 100, 250])):
        for line, band, each in zip(axis.lines, axis.collections, reports, strict=False):
            bands = each.bands(0.5)
            assert list(line.get_xdata()) == x
            assert list(line.get_ydata()) == pytest.approx(bands.mean)
            assert line.get_label() == each.label
            corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
            assert {*zip(x, bands.low, strict=True), *zip(x, bands.high, strict=True)} <= corners
    for line, entry in zip(by_step.lines[2:], PUBLISHED, strict=True):
        assert list(line.get_xdata()) == list(range(len(entry.returns)))
        assert list(line.get_ydata()) == list(entry.returns)
        assert line.get_linestyle() == "--"
    assert len(by_env_step.lines) == 2
    assert "50%" in by_step.get_ylabel()


def test_colours_are_by_algorithm_also_of_what_was_published() -> None:
    reports = [report("fomaml", 0.0), report("maml", 3.0)]

    def drawn(colours: dict[str, str] | None) -> list[str]:
        first, second = adaptation_figure(reports, PUBLISHED, colours=colours).axes
        assert [line.get_color() for line in second.lines] == [line.get_color() for line in first.lines[:2]]
        assert [to_hex(c.get_facecolor()[0]) for c in first.collections] == [
            to_hex(line.get_color()) for line in first.lines[:2]
        ]
        return [line.get_color() for line in first.lines]

    assert drawn(None) == ["C0", "C1", "C2", "C3"]
    assert drawn({"maml": "red", "fomaml": "black"}) == ["black", "red", "red", "C3"]


def test_tasks_are_drawn_against_a_scalar_parameter() -> None:
    whole = report("maml", 3.0)
    before, after = adaptation_figure([whole], task_parameter="velocity").axes[2].collections
    for points, step in ((before, 0), (after, 2)):
        expected = np.column_stack([TASKS["velocity"], whole.returns[0, :, step]])
        np.testing.assert_array_equal(points.get_offsets(), expected)
    with pytest.raises(ConfigError, match="goal"):
        adaptation_figure([whole], task_parameter="goal")


def test_twenty_lines_have_colours_of_their_own() -> None:
    colours = [to_hex(nth_colour(i)) for i in range(20)]
    assert len(set(colours)) == 20
    assert colours[:3] == [to_hex(f"C{i}") for i in range(3)]
    assert to_hex(nth_colour(20)) == colours[0]


def test_what_is_spent_is_an_axis_only_where_every_inner_step_spends_some() -> None:
    whole = report("maml", 0.0)
    reused = replace(whole, env_steps=np.array([0.0, 10.0, 10.0]))
    (by_step,) = adaptation_figure([reused]).axes
    assert by_step.get_xlabel() == "inner steps"
    assert len(adaptation_figure([reused], task_parameter="velocity").axes) == 2
    told = replace(whole, algo="oracle", returns=whole.returns[..., :1], env_steps=np.zeros(1))
    assert len(adaptation_figure([reused, told]).axes) == 1  # a point alone is no curve
    assert len(adaptation_figure([told]).axes) == 2
    first, second = adaptation_figure([reused, whole]).axes
    assert [len(axis.lines) for axis in (first, second)] == [2, 1]
    assert list(second.lines[0].get_xdata()) == list(whole.env_steps)
    assert list(adaptation_cards(reused)) == [""]


def test_points_are_called_what_they_are() -> None:
    """An episode of a memory, a task met or a batch seen is no inner step."""
    steps, episodes = report("maml", 0.0), replace(report("rl2", 1.0), meta={"point": "episode"})
    assert adaptation_figure([episodes]).axes[0].get_xlabel() == "episodes"
    assert adaptation_figure([steps, episodes]).axes[0].get_xlabel() == "inner steps or episodes"
    assert adaptation_cards(episodes)[""].axes[0].get_xlabel() == "episodes"
    assert episodes.table().columns[0] == "episodes"
    assert compare(episodes, episodes).table().columns[0] == "episodes"
    assert comparison_table([episodes]).columns[1:3] == ["0 episodes", "1 episode"]
    assert comparison_table([steps, episodes]).columns[1:3] == ["0 steps", "1 step"]


def test_families_are_called_so() -> None:
    of_families = replace(report("maml", 0.0), meta={"few_tasks": {}})
    figure = adaptation_figure([of_families])
    assert figure.get_suptitle() == "AntVel-v0, test families of tasks"
    assert "intervals by family)" in figure.axes[0].get_ylabel()
    assert of_families.table().title == "our maml on AntVel-v0, test families of tasks"
    assert compare(of_families, of_families).table().title.endswith("AntVel-v0, test families of tasks")


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 2.0, 40.0], "log"),
        ([1.0, 2.0, 20.0], "linear"),
        ([-1.0, -40.0], "symlog"),
        ([-0.1, 40.0], "linear"),
        ([0.0, 40.0], "linear"),
        ([], "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_one_value_would_hide_the_others(values: list[float], scale: str) -> None:
    axis = Figure().subplots()
    spread_out(axis, values)
    assert axis.get_yscale() == scale
