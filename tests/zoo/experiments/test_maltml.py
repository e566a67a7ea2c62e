"""The experiments on families of tasks, at the scale that looks at everything; what their reports say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from metarl.meta.evaluation.report import Report
from metarl.zoo.__main__ import main
from metarl.zoo.experiments.jobs import Job, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.testing import Trained, kinds


@pytest.mark.parametrize("name", ["maltml-sinusoid", "maltml-navigation", "continual-sinusoid"])
def test_it_runs_and_says_what_was_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", name, "--scale", "smoke", "--num-threads", "1"]) == 0
    results = tmp_path / "logs" / name / "smoke" / "results"
    text = (results / "results.md").read_text()
    record = json.loads((results / "record.json").read_text())
    assert len(record["runs"]) == 4
    if name.startswith("maltml"):
        assert "Layers that move" in text
        does = "lowers the mean squared error" if name == "maltml-sinusoid" else "adds to the return"
        assert f"maltml: meta-finetuning on few tasks {does}, after 0 steps" in text
        assert "maltml, no tasks" in text
        # The oracle is told the task: it has nothing to learn from further ones.
        for algo, n_tasks in (("oracle", 0), ("pretrain", 2)):
            (last,) = (tmp_path / "logs" / name / "smoke" / algo).glob("*/evaluations/*_last.json")
            assert json.loads(last.read_text())["meta"]["few_tasks"]["n_tasks"] == n_tasks
        assert len(list(results.glob("*_few_tasks.png"))) == 1
    else:
        assert "oml: mean squared error of all tasks at the end" in text
        assert "| 0 tasks | 1 task |" in text
    if name == "maltml-sinusoid":
        (report,) = (tmp_path / "logs" / name / "smoke" / "maml").glob("*/evaluations/*_best.json")
        assert json.loads(report.read_text())["meta"]["few_tasks"]["rate"] in (0.01, 0.001)
    # The record by itself, without the run folders, says the same again: of families too, and of tasks met.
    shutil.copytree(results, tmp_path / "results")
    argv = ["reproduce", name, "--scale", "smoke", "--no-train", "-f", "nothing", "-o", "results", "--overwrite"]
    assert main(argv) == 0
    again = json.loads((tmp_path / "results" / "record.json").read_text())
    assert len(again["runs"]) == 4
    # Returns of a record have three digits behind the point, so numbers in it may have another last one.
    for part in ("tables", "sentences"):
        words, before = (re.sub(r"[-\[\]\d.,%\s]+", " ", json.dumps(each[part])) for each in (again, record))
        assert words == before


def trained(job: Job) -> Trained:
    """Return a run that few tasks make better by a known amount."""
    worth = {"maltml": 1.0, "maml": 0.5}.get(job.algo, 0.0)
    reports = {}
    for kind in kinds(job.entry):
        gain = 0.0 if kind == "no tasks" else worth
        returns = np.tile([-4.0 + gain, -3.0 + gain, -2.0 + gain], (1, 20, 1)) + 0.01 * np.arange(20)[None, :, None]
        moved = {"meta_finetuning": {"action_net": worth}, "finetuning": {"action_net": 0.1}}
        meta = {"num_timesteps": 1, "few_tasks": {}, "moved": moved}
        tasks = {"phase": np.arange(20.0)}
        reports[kind] = Report(
            job.algo, job.entry.env, "test", returns, [0, 1, 2], tasks, [job.seed], meta=meta, label=job.algo
        )
    return Trained(job, None, reports)


def test_what_few_tasks_add_is_said_of_each_wrapper() -> None:
    experiment = load_experiment("maltml-sinusoid", "smoke")
    report = report_of(experiment)
    sections = report.sections(Results([trained(job) for job in jobs(experiment)]))
    section = sections["SinusoidFamilies-v0"]
    added = {line.split(":")[0]: line for line in section.sentences if "meta-finetuning" in line}
    assert "after 0 steps 1.00 [1.00, 1.00]" in added["maltml"]
    assert "after 0 steps 0.50 [0.50, 0.50]" in added["maml"]
    assert "after 0 steps 0.00" in added["pretrain"]
    layers = section.tables[-1]
    assert layers.rows[0][:3] == ["action_net", "100.00%", "10.00%"]
    winners = {(item["a"], item["b"]): item["winner"] for item in section.verdicts if item["checkpoint"] == "last"}
    assert winners["maltml", "maml"] == "maltml"
    assert {f"{name}.png" for name in section.figures} <= set(report.file_names())


@pytest.mark.parametrize("name", ["maltml-sinusoid", "maltml-navigation", "continual-sinusoid"])
def test_larger_scales_are_planned_with_settings_that_go_together(name: str) -> None:
    for scale in ("laptop", "paper"):
        experiment = load_experiment(name, scale)
        for job in jobs(experiment):
            assert job.config()["n_timesteps"] == job.entry.n_timesteps
