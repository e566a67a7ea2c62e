"""The report of Leap's ablation: ways to measure a path beside each other, and the Jacobian from a random start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metarl.envs.score import SCORES
from metarl.meta.algorithms.leap import Leap
from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.leap_ablation import LeapAblation, training_loss, words
from metarl.zoo.experiments.testing import Trained
from metarl.zoo.runs.folder import Run


def trained(job: Job) -> Trained:
    """Return a run that is the better the richer its path is."""
    error = 0.75 - 0.25 * job.cell["loss"] - 0.125 * (job.cell["metric"] == "length")
    returns = np.tile([0.05, 0.1, 1.0 - error], (1, 20, 1))
    meta = {"num_timesteps": 1, "losses": np.tile([3.0, error], (20, 1)).tolist()}
    tasks, score = {"alphabet": np.arange(20)}, SCORES["cross_entropy"]
    report = Report(job.algo, job.entry.env, "test", returns, [0, 1, 2], tasks, [job.seed], meta=meta, score=score)
    return Trained(job, None, dict.fromkeys(("last", "best", *job.entry.conditions), report))


def test_each_path_is_a_row_and_is_compared_with_the_simplest() -> None:
    experiment = load_experiment("leap-ablation", "smoke")
    report = report_of(experiment)
    assert isinstance(report, LeapAblation)
    sections = report.sections(Results([trained(job) for job in jobs(experiment)]))
    (table,), lines = sections["Paths"].tables, sections["Paths"].sentences
    errors = {row[0]: float(row[1].split(" [")[0]) for row in table.rows}
    assert errors == {
        "length, loss surface, stabiliser": 37.5,
        "length, loss surface": 37.5,
        "energy, loss surface, stabiliser": 50.0,
        "energy, loss surface": 50.0,
        "length, parameters only": 62.5,
        "energy, parameters only": 75.0,
    }
    assert [row[2] for row in table.rows] == [row[1] for row in table.rows]  # under the condition
    # Every other path with the simplest one, and what each choice adds: length, the surface, the stabiliser.
    assert len(lines) == 2 * (5 + 2 + 1 + 2)
    assert lines[10] == f"20 test alphabets, {lines[0]}"
    assert all("Reptile" in line for line in lines[:5])
    assert lines[5].startswith("length, loss surface, stabiliser: an accuracy 0.00 above that of length, loss surface")
    assert not any("Reptile" in line for line in lines[5:10])
    assert lines[0].startswith("length, loss surface, stabiliser: an accuracy 0.38")
    assert all(row[4] == "" for row in table.rows)  # the course of training is in the folders
    (jacobian,) = sections["Identity Jacobian"].tables
    assert [row[0] for row in jacobian.rows] == ["0.01", "0.5"]
    assert all(float(value) > 0.0 for row in jacobian.rows for value in row[1:])
    figures = {name for section in sections.values() for name in section.figures}
    assert {f"{name}.png" for name in figures} <= set(report.file_names())


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_run_has_settings_that_leap_takes(scale: str) -> None:
    experiment = load_experiment("leap-ablation", scale)
    planned = jobs(experiment)
    assert len({words(job.cell) for job in planned}) == len(planned) == 6
    for job in planned:
        assert {name: job.config()[name] for name in job.cell} == dict(job.cell)
    report = report_of(experiment)
    assert isinstance(report, LeapAblation)
    assert scale in report.settings.jacobian


def test_the_course_of_training_is_that_of_the_losses_of_all_inner_steps(tmp_path: Path) -> None:
    job = next(iter(jobs(load_experiment("leap-ablation", "smoke"))))
    config = {**job.config(), "n_inner_steps": 4}
    del config["n_timesteps"]
    model = Leap(env=job.entry.env, **config)
    logged = [model.train() for _ in range(2)]
    assert {tuple(stats) for stats in logged} == {tuple(logged[0])}
    rows = [",".join(map(str, row)) for row in (logged[0], *(stats.values() for stats in logged))]
    (tmp_path / "progress.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run = Run(tmp_path, "leap", job.entry.env, 1)
    found = training_loss([replace(trained(job), run=run)])
    np.testing.assert_allclose(found, [stats["inner/mean_loss"] for stats in logged])
