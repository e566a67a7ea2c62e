"""What the finished runs of an experiment are tested with: checkpoints, rates, and the record of their returns."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl.errors import ConfigError, DivergedError, MetaRLError
from metarl.meta.algorithms.maml import MAML
from metarl.zoo.experiments import testing
from metarl.zoo.experiments.comparison import tuned_sentences
from metarl.zoo.experiments.jobs import find, jobs, load_experiment
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.record import document_of, read_record
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.testing import Trained, choose_rates, evaluate_run
from metarl.zoo.runs.folder import open_run
from tests.zoo.experiments.smoke import NAME, read, reports


def test_the_record_holds_what_the_runs_reach(smoke: Path) -> None:
    record = read(smoke / "results")
    assert record["command"].startswith(f"python -m metarl.zoo reproduce {NAME} --scale smoke")
    assert record["machine"].keys() == {"cores"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["seconds"] > 0
    assert len(record["runs"]) == 2 * 4 + 4 + 4
    assert all(run["training_seconds"] > 0 for run in record["runs"] if run["algo"] != "random")
    (run,) = (run for run in record["runs"] if (run["algo"], run["seed"], run["cell"]) == ("maml", 1, {}))
    assert run["num_timesteps"]["last"] >= run["hyperparams"]["n_timesteps"] == 240
    path = smoke / run["run"] / "PointMass-v0.safetensors"
    report = metarl.load(path).evaluate("test", 2, n_tasks=4, n_episodes=2, inner_lr_rule="half_after_first")
    merged = reports(record)["PointMass-v0", "maml, last"]
    assert merged.seeds == (0, 1)
    np.testing.assert_allclose(merged.returns[1], report.returns[0], atol=5e-4)
    assert (smoke / run["run"] / "best_model.safetensors").is_file()
    assert run["num_timesteps"]["best"] == merged_steps(record, "maml, best")[1]


def test_the_best_is_the_checkpoint_and_the_rates_that_validation_tasks_choose(smoke: Path) -> None:
    folder = smoke / "fomaml" / "PointMass-v0_1"
    models = [metarl.load(folder / "best_model"), metarl.load(folder / "PointMass-v0.safetensors")]
    returns = {}
    for index, model in enumerate(models):
        for rates in ([0.1, 0.1], [0.1, 0.01]):
            found = model.evaluate("validation", 2, n_tasks=2, n_episodes=2, inner_lr=rates)
            returns[index, tuple(rates)] = found.returns[..., 1:].mean()
    # A line search that fails leaves a model as it was.
    alike = all(torch.equal(tensor, models[1].params[name]) for name, tensor in models[0].params.items())
    assert len(set(returns.values())) == (2 if alike else 4)
    index, chosen = max(returns, key=returns.__getitem__)
    report = models[index].evaluate("test", 2, n_tasks=4, n_episodes=2, inner_lr=chosen)
    merged = reports(read(smoke / "results"))["PointMass-v0", "fomaml, best"]
    np.testing.assert_allclose(merged.returns[0], report.returns[0], atol=5e-4)
    (run, *_) = (run for run in read(smoke / "results")["runs"] if run["algo"] == "fomaml")
    assert run["inner_lr"] == {"last": [0.1, 0.05], "best": pytest.approx(list(chosen))}
    assert run["num_timesteps"]["best"] == models[index].num_timesteps


def test_the_last_checkpoint_is_tested_under_further_conditions(smoke: Path) -> None:
    experiment = load_experiment(NAME, "smoke")
    (planned,) = jobs(experiment, ["PointMass-v0"], ["random"], [0], ["comparison"])
    conditions = {"short": {"horizon": 5}, "more tasks": {"n_tasks": 5}}
    short = dataclasses.replace(planned.entry, conditions=conditions)
    run = find(planned, smoke).run
    assert run is not None
    trained = evaluate_run(experiment, dataclasses.replace(planned, entry=short), run, 1)
    items = {item.checkpoint: item for item in testing.tested([trained])}
    assert list(items) == ["last", "best", "short", "more tasks"]
    assert items["more tasks"].report.n_tasks == 5 > items["last"].report.n_tasks
    assert items["short"].report.meta["env_kwargs"]["horizon"] == 5
    assert items["last"].report.meta["env_kwargs"]["horizon"] == 10
    assert set(items["short"].report.meta["ep_lengths"][0]) == {5.0}
    with pytest.raises(ConfigError, match="names of checkpoints"):
        dataclasses.replace(short, conditions={"best": {"horizon": 5}})


def test_the_last_checkpoint_is_fine_tuned_in_further_ways(smoke: Path, tmp_path: Path) -> None:
    experiment = load_experiment(NAME, "smoke")
    (planned,) = jobs(experiment, ["PointMass-v0"], ["maml"], [0], ["comparison"])
    ways = {"maml": {"frozen body": {"freeze": "body"}, "new head": {"new_head": True}}}
    run = find(planned, smoke).run
    assert run is not None
    job = dataclasses.replace(planned, entry=dataclasses.replace(planned.entry, tunings=ways))
    trained = evaluate_run(experiment, job, run, 1)
    items = {item.checkpoint: item for item in testing.tested([trained])}
    assert list(items) == ["last", "best", "frozen body", "new head"]
    assert items["frozen body"].report.label == "maml, frozen body"
    chosen = items["frozen body"].report.meta["inner_lr"]
    model = metarl.load(run.final)
    own = model.evaluate("test", 2, n_tasks=4, n_episodes=2, inner_lr=chosen, tuning={"freeze": "body"})
    np.testing.assert_array_equal(items["frozen body"].report.returns[0], own.returns[0])
    assert not np.array_equal(items["new head"].report.returns, items["last"].report.returns)
    assert (
        tuned_sentences([trained], 2)[0]
        == "maml, frozen body, after 2 steps: no clear difference from maml (last, paired)."
    )
    # A record from before there were ways of fine-tuning is read as it is, and so is one with other ways.
    whole = dataclasses.replace(experiment, entries=[job.entry])
    for n_known, known in enumerate(([], ["frozen body"], ["frozen body", "new head"])):
        names = ["last", "best", *list(ways["maml"])[:n_known]]
        former = dataclasses.replace(job.entry, tunings={"maml": {name: ways["maml"][name] for name in known}})
        item = Trained(dataclasses.replace(job, entry=former), run, {name: trained.reports[name] for name in names})
        document = document_of(experiment, Results([item]), smoke, "", 0.0, {})
        (output := tmp_path / str(n_known)).mkdir()
        (output / "record.json").write_text(json.dumps(document))
        (again,) = read_record(output, whole).trained.values()
        assert [each.checkpoint for each in testing.tested([again])] == names
    for tunings, message in (
        ({"maml": {"best": {"freeze": "body"}}}, "names of checkpoints or conditions"),
        ({"leo": {"frozen": {"freeze": "body"}}}, "algorithm of tunings 'leo'"),
        ({"maml": {"frozen": {"freeze_all": True}}}, "option of fine-tuning: 'freeze_all'"),
    ):
        with pytest.raises(MetaRLError, match=message):
            dataclasses.replace(planned.entry, tunings=tunings)


def test_what_diverges_has_no_row_and_is_said(smoke: Path, tmp_path: Path) -> None:
    experiment = load_experiment(NAME, "smoke")
    (planned,) = jobs(experiment, ["PointMass-v0"], ["maml"], [0], ["comparison"])
    astray = {**planned.entry.evaluation, "inner_lr": 1e30}
    job = dataclasses.replace(planned, entry=dataclasses.replace(planned.entry, evaluation=astray))
    run = find(planned, smoke).run
    assert run is not None
    copied = open_run(Path(shutil.copytree(run.folder, tmp_path / "maml" / run.folder.name)))
    trained = evaluate_run(experiment, job, copied, 1)
    assert list(trained.reports) == ["best"]
    assert list(trained.diverged) == ["last"]
    section = report_of(experiment).comparison(job.entry, [trained])
    assert section.tables[0].rows[0][0] == "maml, best"
    assert section.sentences[-1].startswith(f"{job}: last has no row: non-finite")
    document = document_of(experiment, Results([trained]), tmp_path, "metarl", 1.0, {})
    assert document["runs"][0]["diverged"] == trained.diverged
    assert [item["label"] for item in document["reports"]] == ["maml, best"]
    everywhere = dataclasses.replace(job.entry, rates={**job.entry.rates, "first": [1e30]})
    with pytest.raises(DivergedError):
        evaluate_run(experiment, dataclasses.replace(job, entry=everywhere), copied, 1)


def test_the_first_rate_is_chosen_by_the_first_step_and_the_later_ones_by_all(smoke: Path) -> None:
    model = metarl.load(smoke / "fomaml" / "PointMass-v0_1" / "best_model")
    assert isinstance(model, MAML)
    settings = {"n_inner_steps": 2, "n_episodes": 2}

    def returns(*rates: float) -> np.ndarray:
        return model.evaluate("validation", len(rates), n_tasks=3, n_episodes=2, inner_lr=rates).returns[..., 1:]

    first = max((0.1, 0.3), key=lambda rate: returns(rate).mean())
    second = max((first, 0.1 * first), key=lambda rate: returns(first, rate).mean())
    for order in (1, -1):  # no candidate wins by its place
        rates, reached = choose_rates(model, settings, [1.0, 3.0][::order], [1.0, 0.1][::order], 3)
        assert rates == pytest.approx([first, second])
        assert reached == pytest.approx(returns(first, second).mean())


def test_rates_that_diverge_are_not_chosen(smoke: Path) -> None:
    model = metarl.load(smoke / "fomaml" / "PointMass-v0_1" / "best_model")
    assert isinstance(model, MAML)
    settings = {"n_inner_steps": 2, "n_episodes": 2}
    rates, _ = choose_rates(model, settings, [1e9, 1.0], [1e9, 1.0], 2)
    assert rates == pytest.approx([0.1, 0.1])


def test_a_stock_algorithm_is_tested_at_one_rate() -> None:
    family = metarl.make_family("PointMass-v0", horizon=8)
    arguments = {"n_envs": 1, "n_steps": 8, "batch_size": 8, "n_epochs": 1}
    model = metarl.Pretrain("MlpPolicy", family, learner="sb3_ppo", learner_kwargs=arguments, inner_lr=1e-3, seed=0)
    rates, reached = choose_rates(model, {"n_inner_steps": 2, "n_episodes": 1}, [1.0, 0.3], [1.0, 0.3], 2)
    assert len(rates) == 2
    assert rates[0] == rates[1]
    assert np.isfinite(reached)


def merged_steps(record: dict[str, Any], label: str) -> list[int]:
    steps: list[int] = reports(record)["PointMass-v0", label].meta["num_timesteps"]
    return steps
