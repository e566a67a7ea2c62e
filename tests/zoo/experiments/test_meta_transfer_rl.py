"""The report of meta-transfer on losses of reinforcement learning: surrogates beside each other."""

from __future__ import annotations

import numpy as np
import pytest

from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.testing import Trained

GAINS = {None: 1.0, "log_likelihood": 0.0, "likelihood_ratio": 2.0, "dice": 2.0}
N_TASKS = 20


def trained(job: Job) -> Trained:
    """Return a run that gains what its surrogate does."""
    rise = GAINS[job.cell.get("support_surrogate")]
    returns = np.tile([-3.0, -3.0 + rise], (1, N_TASKS, 1)) + 0.01 * np.arange(N_TASKS)[None, :, None]
    meta = {"num_timesteps": 1_000_000}
    tasks = {"goal": np.arange(N_TASKS)}
    report = Report(job.algo, job.entry.env, "test", returns, [0, 1], tasks, [job.seed], meta=meta)
    return Trained(job, None, dict.fromkeys(("last", "best"), report))


def test_surrogates_stand_in_one_table_and_are_compared() -> None:
    experiment = load_experiment("meta-transfer-rl", "smoke")
    report = report_of(experiment)
    sections = report.sections(Results([trained(job) for job in jobs(experiment)]))
    assert list(sections) == ["PointMass-v0", "Ablation on PointMass-v0"]
    (table,) = sections["Ablation on PointMass-v0"].tables
    assert [row[0] for row in table.rows][::2] == [f"{name}, last" for name in list(GAINS)[1:]]
    assert table.columns[-1] == "gain"
    assert [row[-1][:4] for row in table.rows][::2] == ["0.00", "2.00", "2.00"]
    lines = sections["Ablation on PointMass-v0"].sentences
    assert lines[0].startswith("log_likelihood against likelihood_ratio: after 1 step likelihood_ratio wins")
    assert lines[2].startswith("likelihood_ratio against dice: after 1 step no clear difference")
    drawn = [f"{name}.png" for section in sections.values() for name in section.figures]
    assert set(drawn) <= set(report.file_names())


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_environment_has_a_supervised_support_and_three_surrogates(scale: str) -> None:
    experiment = load_experiment("meta-transfer-rl", scale)
    found: dict[str, set[object]] = {}
    for job in jobs(experiment):
        if job.algo == "meta_transfer":
            found.setdefault(job.entry.env, set()).add(job.cell.get("support_surrogate"))
    assert all(surrogates == set(GAINS) for surrogates in found.values())
