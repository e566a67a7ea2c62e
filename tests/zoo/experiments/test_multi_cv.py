"""The report of Multi-CV: errors and areas of data sets that were held out, beside the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.multi_cv import FIGURE, HELD_OUT, MultiCV
from metarl.zoo.experiments.testing import Trained


def trained(job: Job) -> Trained:
    """Return a run whose accuracy rises to 0.75 on what was learnt from, and to 0.5 on what was not."""
    learning, returns = (np.tile(each, (1, 2, 1)) for each in ([0.0, 0.5, 0.75], [0.0, 0.25, 0.5]))
    tasks, meta = {"dataset": np.arange(2)}, {"num_timesteps": 1}
    report = Report(job.algo, job.entry.env, "test", returns, [0, 1, 2], tasks, [job.seed], meta=meta)
    return Trained(job, None, {"last": Report(**{**vars(report), "learning_returns": learning})})


def test_each_algorithm_has_a_row_for_each_data_set() -> None:
    experiment = load_experiment("multi-cv", "smoke")
    report = report_of(experiment)
    assert isinstance(report, MultiCV)
    (table,) = report.sections(Results([trained(job) for job in jobs(experiment)]))["Held-out data sets"].tables
    assert [row[:2] for row in table.rows][:2] == [["omniglot/Braille", "leap"], ["omniglot/Braille", "multi_task"]]
    area = (75.0 + 37.5) / 2
    assert {tuple(row[2:5]) for row in table.rows} == {("50.0", "25.0", f"{area:.1f}")}
    assert list(table.columns[2:]) == ["test error", "training error", "area"]  # nobody published any of these


def test_the_curves_are_those_whose_areas_the_table_has() -> None:
    experiment = load_experiment("multi-cv", "smoke")
    report = report_of(experiment)
    figure = report.sections(Results([trained(job) for job in jobs(experiment)]))["Held-out data sets"].figures[FIGURE]
    assert f"{FIGURE}.png" in report.file_names()
    assert [panel.get_title() for panel in figure.axes] == ["omniglot/Braille", "omniglot/Greek"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == experiment.algos
    for panel in figure.axes:
        curves = [line.get_xydata() for line in panel.lines]
        assert len(curves) == 2 * len(experiment.algos)
        np.testing.assert_allclose(curves[0], [[0, 100.0], [1, 50.0], [2, 25.0]])
        np.testing.assert_allclose(curves[1], [[2, 50.0]])


def test_data_sets_of_the_paper_fill_two_rows() -> None:
    experiment = load_experiment("multi-cv", "paper")
    figure = report_of(experiment).sections(Results([trained(job) for job in jobs(experiment)]))
    panels = figure["Held-out data sets"].figures[FIGURE].axes
    assert len(panels) == 8
    assert len({round(panel.get_position().y0, 2) for panel in panels}) == 2


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_run_has_settings_that_its_algorithm_takes(scale: str) -> None:
    experiment = load_experiment("multi-cv", scale)
    report = report_of(experiment)
    assert isinstance(report, MultiCV)
    for job in jobs(experiment):
        assert job.config()["env_kwargs"]["held_out"] == job.cell[HELD_OUT]
        published = report.settings.published[job.algo]
        assert scale == "smoke" or len(published[job.cell[HELD_OUT]]) == 3
