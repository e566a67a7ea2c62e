"""The report of the classic few-shot experiments: ours beside what is published, by setting and inner steps."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.envs.score import SCORES
from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.few_shot import FewShot
from metarl.zoo.experiments.testing import Trained

RETURNS = {"sinusoid": [-4.0, -1.0, *[-0.5] * 8, -0.25], "omniglot-few-shot": [0.2, 0.5, 0.75, 0.9, 0.9, 0.95]}
SCORE = {"sinusoid": "squared_error", "omniglot-few-shot": "cross_entropy"}


def trained(name: str, job: Job) -> Trained:
    """Return a run that reaches nearly the same on 20 tasks."""
    returns = np.array(RETURNS[name]) + np.linspace(-0.01, 0.01, 20)[None, :, None]
    tasks, score = {"task": np.arange(20)}, SCORES[SCORE[name]]
    meta = {"num_timesteps": 1}
    report = Report(
        job.algo, job.entry.env, "test", returns, [*range(returns.shape[-1])], tasks, [job.seed], meta=meta, score=score
    )
    return Trained(job, None, {"last": report, "best": report})


@pytest.mark.parametrize(
    ("name", "first", "published"),
    [
        ("sinusoid", ["maml", "4.00", "1.00", "0.50", "0.25"], ["maml, published", "", "0.67", "0.38", "0.35"]),
        (
            "omniglot-few-shot",
            ["maml", "0.20", "0.50", "0.90", "0.95", "transductive"],
            ["maml, published", "", "", "0.987", "", "transductive"],
        ),
    ],
)
def test_ours_stand_beside_the_published(name: str, first: list[str], published: list[str]) -> None:
    experiment = load_experiment(name, "laptop")
    report = report_of(experiment)
    assert isinstance(report, FewShot)
    section = report.sections(Results([trained(name, job) for job in jobs(experiment)]))["Beside what is published"]
    rows = [[cell.split(" [")[0] for cell in row] for row in section.tables[0].rows]
    assert rows[0] == first
    assert published in rows
    # Papers tell 5 and 20 ways of characters apart; Reptile and LEO, with entries of their own, stand beside the rest.
    assert len(section.tables) == {"sinusoid": 1, "omniglot-few-shot": 2}[name]
    if name == "sinusoid":
        names = [row[0] for row in rows]
        assert {"reptile", "leo, n_support 5"} < set(names)
        assert len(names) == len(set(names))
    n_settings = {"sinusoid": 3, "omniglot-few-shot": 2}[name]
    others = report.sections(Results([trained(name, job) for job in jobs(experiment)]))
    drawn = [f"{figure}.png" for other in others.values() for figure in other.figures]
    assert len(drawn) == len(set(drawn)) == 2 * n_settings, "each setting has figures of its own"
    assert set(drawn) <= set(report.file_names())
    for table in section.tables:
        assert ("published" in table.notes[-1]) == any("published" in row[0] for row in table.rows)
        assert all(table.columns[1:])


def test_a_setting_in_which_all_runs_diverged_has_no_table() -> None:
    experiment = load_experiment("sinusoid", "laptop")
    runs = [Trained(job, None, {}, diverged={"last": "a non-finite action"}) for job in jobs(experiment)]
    sections = report_of(experiment).sections(Results(runs))
    assert sections["Beside what is published"].tables == []
    assert any("a non-finite action" in line for section in sections.values() for line in section.sentences)
