"""The report of meta-transfer: columns, cells as the paper has them, and which encoder beats which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metarl.envs.score import SCORES
from metarl.meta.evaluation.report import Report
from metarl.zoo.experiments.jobs import Job, load_experiment
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.meta_transfer import MetaTransfer, columns
from metarl.zoo.experiments.testing import Trained, kinds

ERRORS = {
    "linear": {"last": 0.4, "noise 0.5": 0.5, "trained": 0.0},
    "mean": {"last": 0.3, "noise 0.5": 0.9, "trained": 0.2},
}


def trained(job: Job) -> Trained:
    """Return a run whose error is the same on 20 tasks, but for what its seed adds."""
    errors = ERRORS[job.cell["encoder"]]
    reports = {}
    for kind in kinds(job.entry):
        error = errors.get(kind, errors["last"]) + 0.02 * job.seed
        returns = np.stack([np.full(20, -4.0), np.full(20, -error)], axis=-1)[None]
        tasks = {"x": np.arange(20)}
        score, meta = SCORES["squared_error"], {"num_timesteps": 1}
        split = job.entry.conditions.get(kind, {}).get("split", "test")
        report = Report("meta_transfer", job.entry.env, split, returns, [0, 10], tasks, [job.seed], score=score)
        reports[kind] = Report(**{**vars(report), "meta": meta})
    return Trained(job, None, reports)


def test_encoders_are_rows_and_amounts_of_noise_are_columns() -> None:
    experiment = load_experiment("meta-transfer-cosine", "smoke")
    (entry,) = experiment.entries
    runs = [trained(Job(entry, "meta_transfer", seed, cell)) for seed in (0, 1) for cell in entry.cells()]
    found = columns(entry, runs)
    assert [(column.words, column.noise) for column in found] == [("σ = 0", 0.0), ("σ = 0.5", 0.5)]
    report = report_of(experiment)
    assert isinstance(report, MetaTransfer)
    section = report.ablation(entry, runs)
    (table,) = section.tables
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["linear"] == ["0.410 ±0.010", "0.510 ±0.010"]
    assert rows["linear, published"] == ["0.310 ±0.050", "0.360 ±0.090"]
    assert "recurrent" not in rows
    ahead, behind, missing = section.sentences
    assert missing == "Figure 2 of CosineSine-v0 needs run folders, which are not here."
    assert ahead.startswith("σ = 0: linear is behind mean (-0.10")
    assert behind.startswith("σ = 0.5: linear is ahead of mean (0.40")
    winners = [(item["checkpoint"], item["winner"]) for item in section.verdicts]
    assert winners == [("σ = 0", "mean"), ("σ = 0.5", "linear")]
    assert {f"{name}.png" for name in section.figures} <= set(report.file_names())


def test_what_is_shown_and_compared_is_the_error_of_one_number() -> None:
    experiment = load_experiment("meta-transfer-pendulum", "smoke")
    (entry,) = experiment.entries
    report = report_of(experiment)
    assert isinstance(report, MetaTransfer)
    n = report.settings.n_entries
    assert n == 6
    section = report.ablation(entry, [trained(Job(entry, "meta_transfer", 0, cell)) for cell in entry.cells()])
    rows = {row[0]: row[1] for row in section.tables[0].rows}
    assert rows["linear"] == f"{0.4 / n:.3f}"
    assert rows["mean"] == f"{0.3 / n:.3f}"
    assert section.sentences[0].startswith(f"σ = 0: linear is behind mean ({-0.1 / n:.2f} [")


def test_training_tasks_have_a_table_of_their_own() -> None:
    experiment = load_experiment("meta-transfer-maze", "smoke")
    (entry,) = experiment.entries
    runs = [trained(Job(entry, "meta_transfer", seed, cell)) for seed in (0, 1) for cell in entry.cells()]
    section = report_of(experiment).ablation(entry, runs)
    test, train = ({row[0]: list(row[1:]) for row in table.rows} for table in section.tables)
    titles = [table.title for table in section.tables]
    assert titles == ["MazeTransfer-v0, test tasks", "MazeTransfer-v0, training tasks"]
    assert (test["linear"], train["linear"]) == (["0.410 ±0.010"], ["0.010 ±0.010"])
    assert test["linear, published"] == train["linear, published"] == ["0.000 ±0.000"]
    behind, ahead, *_ = section.sentences
    assert behind.startswith("width 6: linear is behind mean (-0.10")
    assert ahead.startswith("training tasks, width 6: linear is ahead of mean (0.20")


@pytest.mark.parametrize("name", ["ant", "cosine", "maze", "parameters", "pendulum"])
def test_every_experiment_of_the_paper_has_its_settings(name: str) -> None:
    experiment = load_experiment(f"meta-transfer-{name}", "laptop")
    report = report_of(experiment)
    assert isinstance(report, MetaTransfer)
    (entry,) = experiment.entries
    others = [values for key, values in entry.grid.items() if key != "encoder"]
    under_noise = [condition for condition in entry.conditions.values() if "split" not in condition]
    n_columns = (len(under_noise) + 1) * int(np.prod([len(values) for values in others]))
    assert all(len(values) == n_columns for values in report.settings.published.values())
    assert {*report.settings.gradient, *report.settings.pooling} <= set(entry.grid["encoder"])


def test_an_encoder_that_fails_does_not_hide_the_others() -> None:
    experiment = load_experiment("meta-transfer-cosine", "smoke")
    (entry,) = experiment.entries
    runs = [trained(Job(entry, "meta_transfer", 0, cell)) for cell in entry.cells()]
    worse = [replace(report, returns=100.0 * report.returns) for report in runs[0].reports.values()]
    apart = [replace(runs[0], reports=dict(zip(runs[0].reports, worse, strict=True))), *runs[1:]]
    for own, scale in ((runs, "linear"), (apart, "log")):
        figure = report_of(experiment).ablation(entry, own).figures["CosineSine-v0_noise"]
        assert [axis.get_yscale() for axis in figure.axes] == [scale]


def test_scores_without_noise_stand_beside_each_other() -> None:
    experiment = load_experiment("meta-transfer-maze", "smoke")
    (entry,) = experiment.entries
    runs = [trained(Job(entry, "meta_transfer", 0, cell)) for cell in entry.cells()]
    (figure,) = report_of(experiment).ablation(entry, runs).figures.values()
    (axis,) = figure.axes
    ticks = ["width 6", "training\ntasks\nwidth 6"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ticks
    places = [bars.lines[0].get_xdata() for bars in axis.containers]
    assert all(len(place) == len(ticks) for place in places)
    assert len({float(place[0]) for place in places}) == len(entry.grid["encoder"])
    assert "MazeTransfer-v0_scores.png" in report_of(experiment).file_names()
