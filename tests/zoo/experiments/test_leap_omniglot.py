"""The report of Leap's Omniglot experiment: errors by numbers of alphabets, areas under curves, and who is ahead."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.envs.score import SCORES
from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.leap_omniglot import NUMBER, LeapOmniglot, area
from metarl.zoo.experiments.testing import Trained

ERRORS = {"leap": 0.25, "reptile": 0.5}


def trained(job: Job) -> Trained:
    """Return a run with the same error on 20 tasks, and losses that fall to it from 3."""
    error = ERRORS.get(job.algo, 0.8)
    returns = np.tile([0.05, 0.1, 1.0 - error], (1, 20, 1))
    meta = {"num_timesteps": 1, "losses": np.tile([3.0, error], (20, 1)).tolist()}
    tasks, score = {"alphabet": np.arange(20)}, SCORES["cross_entropy"]
    report = Report(job.algo, job.entry.env, "test", returns, [0, 1, 2], tasks, [job.seed], meta=meta, score=score)
    return Trained(job, None, dict.fromkeys(("last", "best", *job.entry.conditions), report))


def test_the_area_is_that_of_trapezoids_over_the_number_of_steps() -> None:
    assert area(np.array([[4.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])) == pytest.approx([5.5 / 4, 3.0 / 4])


def test_errors_stand_beside_the_published_ones_by_number_of_alphabets() -> None:
    experiment = load_experiment("leap-omniglot", "smoke")
    report = report_of(experiment)
    assert isinstance(report, LeapOmniglot)
    section = report.sections(Results([trained(job) for job in jobs(experiment)]))["Errors"]
    errors, areas, with_more = section.tables
    assert (with_more.title or "").endswith("2 steps, 20 test alphabets")
    assert with_more.rows[0][1].startswith("25.00")
    assert list(errors.columns[:5]) == ["alphabets", "leap", "published", "reptile", "published"]
    assert [[each.split(" [")[0] for each in row[:5]] for row in errors.rows] == [
        ["2", "25.00", "", "50.00", ""],
        ["3", "25.00", "46.5", "50.00", "46.5"],
    ]
    assert areas.rows[0][:3] == ["2", f"{0.5 * 3.25 / 2:.3f}", f"{0.5 * 3.5 / 2:.3f}"]
    assert section.sentences[0].startswith("2 alphabets: the error of leap is lower than that of reptile by 25.00")
    assert " points after 2 steps, and its area by 0.06" in section.sentences[0]
    assert section.verdicts[0]["cell"] == {NUMBER: 2}
    further = [line for line in section.sentences if ", 20 test alphabets: " in line]
    assert further[0].startswith(
        "2 alphabets, 20 test alphabets: the error of leap is lower than that of reptile by 25"
    )
    assert [item["checkpoint"] for item in section.verdicts].count("20 test alphabets") == len(further)
    assert {f"{name}.png" for name in section.figures} <= set(report.file_names())
    curves, by_number = (section.figures[name].axes[-1] for name in ("learning_curves", "by_alphabets"))
    labels = [line.get_label() for line in curves.lines]
    assert labels == [algo for algo in experiment.algos if algo in labels]
    assert [line.get_color() for line in curves.lines] == [line.get_color() for line in by_number.lines]


def test_a_record_that_stands_for_run_folders_has_errors_and_no_areas() -> None:
    experiment = load_experiment("leap-omniglot", "smoke")
    runs = [trained(job) for job in jobs(experiment)]
    for item in runs:
        del item.reports["last"].meta["losses"]
    section = report_of(experiment).sections(Results(runs))["Errors"]
    assert section.tables[0].rows[0][1].startswith("25.00")
    assert set(section.tables[1].rows[0][1:]) == {""}
    assert "area" not in section.sentences[0]


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_run_has_settings_that_its_algorithm_takes(scale: str) -> None:
    experiment = load_experiment("leap-omniglot", scale)
    planned = jobs(experiment)
    assert len({job.key for job in planned}) == len(planned)
    for job in planned:
        config = job.config()
        assert config["policy"] == "FewShotCnnPolicy"
        assert config["env_kwargs"] == {"n_alphabets": job.cell[NUMBER]}
        assert config["learner_kwargs"]["reuses_support"] is False
