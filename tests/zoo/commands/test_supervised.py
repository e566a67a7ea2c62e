"""Supervised tasks on the command line: Sinusoid-v0 with its settings, through every command, and by the reward."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import stable_baselines3
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.envs import Score
from metarl.zoo.__main__ import main
from metarl.zoo.commands.plot import training_figure
from metarl.zoo.config import load_hyperparameters
from metarl.zoo.runs.curves import last_evaluation, read_curve
from metarl.zoo.runs.folder import open_run
from tests.meta.small import ADAPTIVE, equal
from tests.zoo.conftest import Refused

ALGOS = ADAPTIVE
SMALL = ["meta_batch_size:2", "n_episodes:3", "policy_kwargs.net_arch:[8]"]


def train(logs: Path, algo: str, *pairs: str, n: int = 40) -> Path:
    words = ["train", "--algo", algo, "--env", "Sinusoid-v0", "--seed", "0", "--num-threads", "1", "--verbose", "0"]
    words += ["-n", str(n), "--n-eval-tasks", "3", "--eval-freq", str(n // 2), "-f", str(logs), "-params"]
    assert main([*words, *SMALL, *pairs]) == 0
    return logs / algo / "Sinusoid-v0_1"


@pytest.mark.parametrize("algo", ALGOS)
def test_the_settings_are_those_of_the_paper(algo: str) -> None:
    config = load_hyperparameters(algo, "Sinusoid-v0")
    assert config["learner"] == "supervised"
    assert config["policy_kwargs"] == {"net_arch": [40, 40], "activation_fn": "relu"}
    if "n_tasks" not in config:  # in a meta-iteration are tasks, not families of them
        at_once = 1 if "n_iterations_per_task" in config else 25
        assert (config["meta_batch_size"], config["n_episodes"]) == (at_once, 10)


@pytest.mark.parametrize("algo", ALGOS)
def test_it_is_trained_and_evaluated_on_shots_that_are_counted_once(algo: str, tmp_path: Path) -> None:
    run = train(tmp_path, algo)
    assert yaml.safe_load((run / "Sinusoid-v0" / "config.yml").read_text())["learner"] == "supervised"
    assert main(["evaluate", "-i", str(run), "--n-eval-tasks", "3", "--n-inner-steps", "10"]) == 0
    (report,) = (run / "evaluations").glob("*.json")
    (record,) = json.loads(report.read_text())["reports"]
    assert record["env_steps"] == [0.0, *[3.0] * 10]


@pytest.mark.parametrize("algo", ["maml", "leap"])
def test_a_run_is_plotted_and_gone_on_with(algo: str, tmp_path: Path) -> None:
    run = train(tmp_path, algo)
    assert main(["plot", "-i", str(run)]) == 0
    assert len(list(run.glob("training_*.png"))) == 1
    item = open_run(run)
    for key, sign in (("meta/post_adapt_rew", -1), ("eval/return_after_1", -1), ("eval/adapt_gain", 1)):
        (panel,) = training_figure([item], [key], "steps", 1).axes
        assert panel.get_ylabel() == ("mean squared error, lower is better" if sign < 0 else key)
        assert list(panel.lines[0].get_ydata()) == [sign * y for y in read_curve(item, "time/total_timesteps", key).y]
    assert last_evaluation(item, "a run").score == Score("mean squared error", -1, "examples")
    events = EventAccumulator(str(run)).Reload()
    assert {"meta/pre_adapt_rew", "meta/post_adapt_rew"} <= set(events.Tags()["scalars"])
    assert main(["train", "-i", str(run), "-n", "80", "--verbose", "0", "--num-threads", "1"]) == 0
    whole = train(tmp_path / "whole", algo, n=80)
    assert equal(*(metarl.load(folder / "Sinusoid-v0.safetensors").params for folder in (run, whole)))


def test_plain_ppo_goes_on_from_it_with_adam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "maml")
    assert main(["export", "-i", str(run)]) == 0
    zip_file = run / "export" / "Sinusoid-v0.zip"
    assert type(stable_baselines3.PPO.load(zip_file).policy.optimizer) is torch.optim.Adam
    assert main(["finetune", "-i", str(run), "-n", "20", "--n-eval-tasks", "2", "--num-threads", "1"]) == 0
    assert "adam" in capsys.readouterr().out


def test_the_log_has_returns_after_steps_that_were_seen(tmp_path: Path) -> None:
    for algo, known in (("maml", {0, 3}), ("leap", {0, 2})):
        run = train(tmp_path, algo, "n_inner_steps:3")
        with open(run / "progress.csv", newline="") as file:
            (row, *_) = csv.DictReader(file)
        assert {k for k in range(5) if row.get(f"inner/return_after_{k}")} == known
        assert row["meta/pre_adapt_rew"] == row["inner/return_after_0"]
        assert row["meta/post_adapt_rew"] == row[f"inner/return_after_{max(known)}"]


@pytest.mark.parametrize("learner", ["vpg", "ppo"])
def test_the_same_family_is_learnt_by_its_reward(learner: str, tmp_path: Path) -> None:
    run = train(tmp_path, "fomaml", f"learner:{learner}")
    model = metarl.load(run / "Sinusoid-v0.safetensors")
    assert model.learner == learner
    assert np.isfinite(model.evaluate("test", 1, n_tasks=2).returns).all()


def test_a_family_without_a_loss_is_refused(refused: Refused, tmp_path: Path) -> None:
    words = ["train", "--algo", "maml", "--env", "PointMass-v0", "-f", tmp_path, "-params", "learner:supervised"]
    message = refused(*words)
    assert "learner 'supervised' does not learn PointMass-v0: it takes families that declare a loss" in message
    assert list(tmp_path.iterdir()) == []


def proposed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the last command says can be typed next."""
    _, words = capsys.readouterr().out.split("Next:\n")
    return words


def test_commands_say_what_is_shown_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "maml", "n_inner_steps:1", "--verbose", "1", n=5)
    out = capsys.readouterr().out
    assert "A meta-iteration takes 12 examples, so the run ends after 12\n" in out
    assert re.search(r"12/5 examples .* mean squared error \d+\.\d\d → \d+\.\d\d\n", out)
    quick = ["-i", str(run), "--n-eval-tasks", "2", "--num-threads", "1"]
    assert main(["evaluate", *quick]) == 0
    after_evaluation = proposed(capsys)
    for name in ("finetune", "export", "record", "plot"):
        assert f"python -m metarl.zoo {name} -i {run}\n" in after_evaluation
    assert main(["evaluate", "-i", str(run), str(run / "checkpoint.safetensors"), *quick[2:]]) == 0
    assert proposed(capsys).split() == ["learning", "curves", *f"python -m metarl.zoo plot -i {run}".split()]
    assert main(["plot", "-i", str(run)]) == 0
    assert proposed(capsys) == f"  evaluate  python -m metarl.zoo evaluate -i {run}\n"
    assert main(["export", "-i", str(run), "--load-checkpoint"]) == 0
    assert f"finetune -i {run} --load-checkpoint --to ppo\n" in proposed(capsys)
    assert main(["list", "runs", "-f", str(tmp_path)]) == 0
    assert re.search(r"│ mean squared error \d+\.\d\d → \d+\.\d\d │ finished", capsys.readouterr().out)
