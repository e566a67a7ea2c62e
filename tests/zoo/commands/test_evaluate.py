"""``metarl evaluate``: numbers, records, models that are meant, and several runs in one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl.zoo.__main__ import main
from tests.zoo.commands.conftest import QUICK
from tests.zoo.conftest import TINY, Refused, tiny


def test_evaluate_equals_the_library(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    argv = ["evaluate", "-f", str(logs), *QUICK, "--split", "shifted", "--inner-lr-rule", "half_after_first"]
    assert main(argv) == 0
    record = json.loads((run / "evaluations" / "shifted_1.json").read_text())
    model = metarl.load(run / "PointMass-v0")
    report = model.evaluate("shifted", 2, n_tasks=3, inner_lr_rule="half_after_first")
    assert np.array_equal(record["reports"][0]["returns"], report.returns)
    assert record["command"].startswith("python -m metarl.zoo evaluate -f ")
    assert record["training_seeds"] == [[0]]
    assert record["versions"]["torch"]
    assert record["reports"][0]["meta"]["training_seconds"] > 0
    assert (run / "evaluations" / "shifted_1.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "gain" in out
    assert "steps are noisier" not in out
    # another evaluation is another record
    assert main(argv) == 0
    assert (run / "evaluations" / "shifted_2.json").is_file()


def test_evaluate_with_rates_of_ones_own(logs: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    argv = ["evaluate", "-f", str(logs), "--n-eval-tasks", "3", "--inner-lr", "0.1", "0.001", "-o", str(record)]
    assert main(argv) == 0
    (report,) = json.loads(record.read_text())["reports"]
    assert report["meta"]["inner_lr"] == [0.1, 0.001, 0.001]
    assert report["meta"]["inner_lr_rule"] is None
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "PointMass-v0")
    expected = model.evaluate("test", 3, n_tasks=3, inner_lr=[0.1, 0.001, 0.001])
    assert np.array_equal(report["returns"], expected.returns)


def test_ways_to_fine_tune_are_rows_of_their_own(logs: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    tune = ["--tune", "freeze:body", "--tune", "new_head:true", "layer_decay:0.5"]
    assert main(["evaluate", "-f", str(logs), *QUICK, *tune, "-o", str(record)]) == 0
    reports = json.loads(record.read_text())["reports"]
    assert [each["label"] for each in reports] == [
        "fomaml",
        "fomaml, body frozen",
        "fomaml, new head, layer decay 0.5",
    ]
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "PointMass-v0")
    expected = model.evaluate("test", 2, n_tasks=3, tuning={"freeze": ["body"]})
    assert np.array_equal(reports[1]["returns"], expected.returns)


def test_which_model_is_evaluated(logs: Path, tmp_path: Path) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    flags = {"--load-best": "best_model", "--load-checkpoint": "checkpoint", "--load-last-checkpoint": "checkpoint"}
    for flag, name in flags.items():
        out = tmp_path / f"{flag}.json"
        assert main(["evaluate", "-i", str(run), *QUICK, flag, "-o", str(out)]) == 0
        assert json.loads(out.read_text())["reports"][0]["meta"]["model"] == str(run / f"{name}.safetensors")


def test_fewer_episodes_than_in_training_are_said(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "-f", str(logs), *QUICK, "--episodes", "1"]) == 0
    assert "1 episodes for each inner step, where training had 2: steps are noisier" in capsys.readouterr().out


def test_several_runs_in_one_table(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("0", "1"):
        assert main([*TINY, "--algo", "random", "--seed", seed, "-f", str(logs)]) == 0
    paths = [str(path) for path in sorted(logs.glob("*/*"))]
    assert len(paths) == 3
    capsys.readouterr()
    argv = ["evaluate", "-i", *paths, *QUICK, "-o", str(tmp_path / "all.json"), "--figure", str(tmp_path / "all.svg")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "random 1 minus fomaml 1 on PointMass-v0, test tasks" in out
    assert "random 2 minus fomaml 1" in out
    assert "paired 95% intervals" in out
    assert b"<svg" in (tmp_path / "all.svg").read_bytes()
    assert len(json.loads((tmp_path / "all.json").read_text())["reports"]) == 3
    assert main([*argv, "--merge", "--overwrite"]) == 0
    record = json.loads((tmp_path / "all.json").read_text())
    assert record["training_seeds"] == [[0], [0, 1]]


def test_runs_on_other_families_are_refused_first(logs: Path, refused: Refused) -> None:
    other = tiny("-params", "n_episodes:3", "--algo", "random", "--env", "HalfCheetahDir-v0", "-f", str(logs))
    assert main(other) == 0
    paths = [str(path) for path in sorted(logs.glob("*/*"))]
    message = refused("evaluate", "-i", *paths, *QUICK)
    assert "runs on PointMass-v0 and HalfCheetahDir-v0 cannot be compared" in message


def test_runs_of_other_episodes_are_compared_at_the_same(logs: Path, tmp_path: Path, refused: Refused) -> None:
    assert main(tiny("-params", "n_episodes:3", "--algo", "random", "-f", str(logs))) == 0
    paths = [str(path) for path in sorted(logs.glob("*/*"))]
    argv = ["evaluate", "-i", *paths, *QUICK, "-o", str(tmp_path / "all.json")]
    assert "the runs adapt with n_episodes 2 and n_episodes 3: compare them at the same --episodes N" in refused(*argv)
    assert main([*argv, "--episodes", "2"]) == 0


def test_shipped_initialisation_is_used_where_there_is_no_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    empty = tmp_path / "none"
    empty.mkdir()
    monkeypatch.setattr("metarl.zoo.runs.folder.TRAINED", tmp_path / "trained")
    assert "there is no run of fomaml on PointMass-v0" in refused("evaluate", "-f", empty, *QUICK)
    (tmp_path / "trained" / "fomaml").mkdir(parents=True)
    shutil.copy(trained / "PointMass-v0.safetensors", tmp_path / "trained" / "fomaml")
    assert main(["evaluate", "-f", str(empty), *QUICK]) == 0
    assert "using the initialisation that ships with metarl" in capsys.readouterr().out
    assert (empty / "evaluations" / "test_1.json").is_file()
