"""Families of tasks on the command line: MALTML through every command, and every wrapper's few-task evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.zoo.__main__ import main
from metarl.zoo.config import load_hyperparameters
from tests.meta.small import equal
from tests.zoo.conftest import Refused

SMALL = ["meta_batch_size:2", "n_tasks:2", "n_goal_tasks:1", "n_episodes:3", "policy_kwargs.net_arch:[8]"]


def train(logs: Path, algo: str = "maltml", *, env: str = "SinusoidFamilies-v0", n: int = 72) -> Path:
    words = ["train", "--algo", algo, "--env", env, "--seed", "0", "--num-threads", "1", "--verbose", "0"]
    words += ["-n", str(n), "--n-eval-tasks", "2", "--eval-freq", "36", "-f", str(logs)]
    known = [pair for pair in SMALL if algo == "maltml" or not pair.startswith(("n_tasks", "n_goal"))]
    assert main([*words, "-params", *known]) == 0
    return logs / algo / f"{env}_1"


def test_the_settings_are_those_of_the_paper() -> None:
    config = load_hyperparameters("maltml", "SinusoidFamilies-v0")
    assert [config[name] for name in ("inner_lr", "meta_lr", "goal_lr")] == [0.001, 0.01, 0.001]
    assert [config[name] for name in ("meta_batch_size", "n_tasks", "n_goal_tasks", "n_episodes")] == [10, 5, 2, 5]
    assert (config["outer"], config["outer_kwargs"]) == ("adam", {"learning_rate": 0.001})
    assert config["policy_kwargs"] == {"net_arch": [40, 40], "activation_fn": "relu"}


def test_a_run_goes_through_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path)
    assert main(["train", "-i", str(run), "-n", "108", "--verbose", "0", "--num-threads", "1"]) == 0
    whole = train(tmp_path / "whole", n=108)
    name = "SinusoidFamilies-v0"
    assert equal(*(metarl.load(folder / f"{name}.safetensors").params for folder in (run, whole)))
    tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert {"meta/post_adapt_rew", "meta/few_task_gain", "meta/few_task_distance", "meta/meta_loss"} <= set(tags)
    assert main(["plot", "-i", str(run)]) == 0
    assert main(["export", "-i", str(run)]) == 0
    words = ["-i", str(run), "--n-eval-tasks", "3", "--num-threads", "1"]
    assert main(["finetune", *words, "-n", "20"]) == 0
    assert main(["evaluate", *words]) == 0
    capsys.readouterr()
    assert (
        main(["evaluate", *words, "--few-tasks", "2", "n_goal_tasks:2", "meta_lr:0.02", "-o", str(run / "few.json")])
        == 0
    )
    shown = capsys.readouterr().out
    assert "Layers that move" in shown
    assert "maltml, 2 tasks" in shown
    assert "over 3 families of tasks" in shown
    assert "counts as clear with fewer than 20 families of tasks" in shown
    assert "SinusoidFamilies-v0, test families of tasks" in shown
    assert shown.count(f"{run}/{name}.safetensors: maltml") == 1
    before, after = json.loads((run / "few.json").read_text())["reports"]
    assert (before["label"], after["label"]) == ("maltml, no tasks", "maltml, 2 tasks")
    assert after["meta"]["few_tasks"]["rate"] == 0.02
    assert after["tasks"]["phase"] == before["tasks"]["phase"]
    assert not np.allclose(before["returns"], after["returns"])


def test_wrappers_are_compared_after_the_same_few_tasks(tmp_path: Path) -> None:
    runs = [train(tmp_path, algo, n=36) for algo in ("maml", "maltml")]
    record = tmp_path / "few.json"
    words = ["evaluate", "-i", *map(str, runs), "--n-eval-tasks", "2", "--num-threads", "1", "--n-inner-steps", "1"]
    assert main([*words, "--few-tasks", "2", "n_goal_tasks:2", "-o", str(record)]) == 0
    reports = json.loads(record.read_text())["reports"]
    assert [report["label"] for report in reports] == [
        f"{algo}, {words} tasks" for algo in ("maml", "maltml") for words in ("no", "2")
    ]


def test_goals_in_rectangles_are_learnt_by_episodes(tmp_path: Path) -> None:
    words = ["train", "--algo", "maltml", "--env", "PointMassFamilies-v0", "--num-threads", "1", "--verbose", "0"]
    words += ["-n", "1", "--eval-freq", "-1", "-f", str(tmp_path), "--env-kwargs", "horizon:5", "-params", *SMALL]
    assert main(words) == 0
    run = tmp_path / "maltml" / "PointMassFamilies-v0_1"
    few = ["--few-tasks", "2", "n_goal_tasks:2", "update:difference", "n_meta_steps:2", "--tune", "freeze:body"]
    evaluate = ["evaluate", "-i", str(run), "--n-eval-tasks", "2", "--n-inner-steps", "1"]
    assert main([*evaluate, *few, "-o", str(run / "few.json")]) == 0
    none, plain, frozen = json.loads((run / "few.json").read_text())["reports"]
    labels = [report["label"] for report in (none, plain, frozen)]
    assert labels == ["maltml, no tasks", "maltml, 2 tasks", "maltml, 2 tasks, body frozen"]
    before, after = (np.array([report["returns"] for report in (plain, frozen)])[..., k] for k in (0, 1))
    np.testing.assert_array_equal(before[0], before[1])
    assert not np.array_equal(after[0], after[1])


def test_what_few_tasks_do_not_take_is_one_line(refused: Refused, tmp_path: Path) -> None:
    run = train(tmp_path, n=36)
    for words, expected in (
        (["some"], "first of all a number of tasks"),
        (["0"], "first of all a number of tasks"),
        (["5", "meta_ir:0.1"], "meta_lr"),
        (["5", "--tune", "new_head:true"], "new_head=True: goal tasks start from what few tasks came to"),
        (["5", "--inner-lr-rule", "half_after_first"], "--few-tasks with --inner-lr-rule"),
        (["5", "--split", "shifted"], "unknown split of families 'shifted'"),
    ):
        assert expected in refused("evaluate", "-i", run, "--few-tasks", *words)
