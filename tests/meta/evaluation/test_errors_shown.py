"""An error is kept as a return and shown as what it is: positive, lower is better, above 0 where adaptation helps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from metarl import MAML
from metarl.envs.score import RETURN, Score
from metarl.errors import CheckpointError
from metarl.meta.evaluation.comparison import compare, comparison_figure, comparison_table
from metarl.meta.evaluation.figures import adaptation_cards, adaptation_figure
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import Bands
from tests.drawn import fits

ERROR = Score("mean squared error", -1, "examples")
TASKS = {"phase": np.linspace(0.0, 3.0, 30)}


def errors(algo: str, *means: float, score: Score = ERROR) -> Report:
    """A report of errors with these means after 0, 1, … inner steps."""
    error = np.array(means) + np.linspace(-0.5, 0.5, 30)[None, :, None]
    return Report(algo, "Sinusoid-v0", "test", -error, 5.0 * np.arange(len(means)), TASKS, (0,), score=score)


def test_bands_of_minus_something() -> None:
    bands = Bands(np.array([-2.0, 0.0]), np.array([-3.0, 0.0]), np.array([-1.5, 0.0])).signed(-1)
    assert [str(bands.at(i)) for i in (0, 1)] == ["2.00 [1.50, 3.00]", "0.00"]
    assert bands.signed(1) is bands


def test_a_table_shows_the_error_and_its_reduction() -> None:
    report = errors("maml", 4.0, 1.0)
    table = report.table()
    assert table.columns == ("inner steps", "examples", "mean squared error", "reduction")
    assert table.rows[1][2].startswith("1.00 [0.")
    assert table.rows[1][3].startswith("3.00 [3.00")
    assert "mean squared error, lower is better" in table.notes
    # What is kept are returns, whose higher ones are better.
    assert report.interval(1).mean == pytest.approx(-1.0)
    document = json.loads(report.to_json())
    assert document["returns"][0][0][0] == report.returns[0, 0, 0] < 0.0
    assert document["score"] == {"name": "mean squared error", "sign": -1, "budget": "examples"}


def test_comparisons_are_above_0_where_the_first_is_better() -> None:
    a, b = errors("maml", 4.0, 1.0), errors("random", 4.0, 3.0)
    table = compare(a, b).table()
    assert table.columns == ("inner steps", "mean squared error lower by", "reduction larger by")
    assert table.title == "maml against random on Sinusoid-v0, test tasks"
    assert table.rows[1][1].startswith("2.00")
    both = comparison_table([b, a])
    assert tuple(both.columns) == ("", "0 steps", "1 step", "reduction", "below random")
    assert [row[2][:4] for row in both.rows] == ["3.00", "1.00"]
    assert [cell[:4] for cell in both.rows[1][3:]] == ["3.00", "2.00"]
    assert "mean squared error, lower is better" in both.notes


def test_a_table_whose_columns_do_not_say_what_is_in_them_says_it_below() -> None:
    for score, notes in ((Score("accuracy", budget="examples"), ["accuracy"]), (RETURN, []), (Score(budget="x"), [])):
        both = [errors(algo, 4.0, 1.0, score=score) for algo in ("maml", "random")]
        assert list(comparison_table(both).notes[1:]) == notes


def test_figures_show_the_error() -> None:
    reports = [errors("maml", 4.0, 1.0), errors("random", 4.0, 3.0)]
    by_step, by_example = comparison_figure(reports).axes
    assert by_step.get_ylabel() == "mean squared error, lower is better\n(95% intervals by task)"
    assert fits(by_step.yaxis.label)
    assert by_example.get_xlabel() == "examples of adaptation, per task"
    np.testing.assert_allclose([line.get_ydata() for line in by_step.lines], [[4.0, 1.0], [4.0, 3.0]])
    *_, scatter = adaptation_figure(reports[:1], task_parameter="phase").axes
    np.testing.assert_array_equal(scatter.collections[1].get_offsets()[:, 1], -reports[0].returns[0, :, 1])
    card, by_budget = adaptation_cards(reports[0]).values()
    assert card.axes[0].get_ylabel() == "mean squared error (95%)"
    assert by_budget.axes[0].get_xlabel() == "examples per task"
    np.testing.assert_allclose(card.axes[0].lines[0].get_ydata(), [4.0, 1.0])
    # Where all inner steps learn from one batch, they lie above each other against examples.
    reused = dataclasses.replace(errors("maml", 4.0, 2.0, 1.0), env_steps=np.array([0.0, 5.0, 5.0]))
    assert list(adaptation_cards(reused)) == [""]


def test_files_without_a_score_hold_returns_and_are_compared_as_such(tmp_path: Path) -> None:
    new = errors("maml", 4.0, 1.0)
    new.save(tmp_path / "new.json")
    assert Report.load(tmp_path / "new.json").score == ERROR
    document = json.loads(new.to_json())
    del document["score"]
    old = Report.from_json(json.dumps(document))
    assert old.score == RETURN
    assert old.table().columns[2:] == ("return", "gain")
    pair = compare(new, dataclasses.replace(old, label="older"))
    assert pair.table().columns == ("inner steps", "return", "gain")
    assert comparison_table([new, old]).rows[0][1].startswith("-4.00")
    merged = Report.merge([new, dataclasses.replace(new, seeds=(1,))])
    assert merged.score == ERROR


@pytest.mark.parametrize("score", [{"sign": 2}, {"name": ""}, {"name": 1}, {"unit": "m"}, "accuracy", None])
def test_a_damaged_score_is_refused(score: object) -> None:
    document = {**json.loads(errors("maml", 4.0, 1.0).to_json()), "score": score}
    with pytest.raises(CheckpointError, match=r"is damaged: .*(score|name|unit)"):
        Report.from_json(json.dumps(document))


def test_an_evaluation_of_a_sinusoid_says_that_it_is_an_error() -> None:
    small = {"policy_kwargs": {"net_arch": [4]}, "n_threads": 1, "meta_batch_size": 2, "n_episodes": 5}
    report = MAML("MlpPolicy", "Sinusoid-v0", learner="supervised", **small).evaluate("test", 1, n_tasks=3)
    assert report.score == ERROR
    assert (report.returns < 0.0).all()
    assert f"{-report.returns.mean(1)[0, 1]:.2f} [" in report.table().rows[1][2]
