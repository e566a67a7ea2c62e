"""``metarl finetune``: plain SB3 on held-out tasks, from a run, from a file, and from scratch without either."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl.meta.export.finetune import finetune
from metarl.zoo.__main__ import main
from tests.zoo.conftest import Refused, contents, tiny

SHORT = ["-n", "60", "--n-eval-tasks", "2", "--num-threads", "1"]


def test_finetune_equals_the_library(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    argv = ["finetune", "-f", str(logs), *SHORT, "--split", "validation", "--optimizer", "adam", "--seed", "5"]
    assert main(argv) == 0
    record = json.loads((run / "finetune" / "validation_1.json").read_text())
    found = finetune(metarl.load(run / "PointMass-v0"), 60, optimizers=["adam"], split="validation", n_tasks=2, seed=5)
    assert [curves["label"] for curves in record["curves"]] == ["PPO from fomaml, adam", "PPO from scratch, adam"]
    for curves, expected in zip(record["curves"], found.curves, strict=True):
        np.testing.assert_array_equal(curves["returns"], expected.returns)
    (comparison,) = record["comparisons"]
    assert comparison["mean"] == list(found.comparisons()[0].mean)
    assert comparison["steps_saved"]["budget"] == 40
    assert record["command"].startswith("python -m metarl.zoo finetune -f ")
    assert record["source"]["model"] == str(run / "PointMass-v0.safetensors")
    assert (run / "finetune" / "validation_1.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for words in ("PPO from scratch, adam: 2 tasks done", "difference", "env steps saved", "export -i ", "adam"):
        assert words in out
    assert ("from scratch learnt better" in out) == (comparison["mean"][0] < 0)
    # another experiment is another record
    assert main(argv) == 0
    assert (run / "finetune" / "validation_2.json").is_file()


def test_from_scratch_needs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["finetune", "--from-scratch", "--env", "PointMass-v0", "--env-kwargs", "horizon:5", "--n-eval-tasks", "2"]
    assert main([*argv, "-f", str(tmp_path), "-n", "150", "--to", "a2c", "--figure", str(tmp_path / "x.svg")]) == 0
    record = json.loads((tmp_path / "finetune" / "test_1.json").read_text())
    (curves,) = record["curves"]
    assert curves["label"] == "A2C from scratch, adam"
    assert curves["env_steps"] == [0, 100]
    assert record["env_kwargs"] == {"horizon": 5}
    assert record["source"] is None
    assert record["comparisons"] == []
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()
    assert "train --algo fomaml --env PointMass-v0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "sac"], "unknown SB3 algorithm 'sac': known: ppo, a2c, trpo"),
        (["--optimizer", "adam", "sdg"], "unknown optimizer 'sdg': did you mean 'sgd'?"),
        (["--to", "trpo", "--optimizer", "sgd"], "optimizer='sgd' is for ppo and a2c"),
        (["--seed", "-1"], "argument --seed: -1 is not a seed: 0 or more"),
        (["-n", "20"], "20 env steps are no more than a rollout (20)"),
        (["--split", "tset"], "unknown split 'tset'"),
        (["--algo", "maml"], "there is no run of maml on PointMass-v0"),
        (["--figure", "x.bmp"], "use a name in .png"),
        (["-o", "x.png"], "use a name in .json"),
        (
            ["--from-scratch", "--exp-id", "9"],
            "--exp-id chooses among runs and their models",
        ),
        (["--tune", "freeze:bdy"], "unknown part of the policy 'bdy'"),
        (["--tune", "frozen:body"], "unknown option of fine-tuning: 'frozen'"),
        (["--from-scratch", "--tune", "freeze:body"], "--tune says how an export is learnt from"),
        (["--from-scratch", "--load-best"], "--load-best chooses among runs and their models"),
        (["--from-scratch", "--env", "PointMas-v0"], "did you mean 'PointMass-v0'?"),
        (["--from-scratch", "--env-kwargs", "horizn:3"], "did you mean 'horizon'?"),
    ],
)
def test_bad_input_writes_nothing(
    words: list[str], message: str, logs: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metarl.zoo.runs.folder.TRAINED", logs / "none")
    before = contents(logs)
    assert message in refused("finetune", "-f", logs, *SHORT, *words)
    assert contents(logs) == before


def test_what_would_teach_nothing_is_refused_before_anything_is_said(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "-f", str(logs), *SHORT, "-n", "3"]) == 2
    assert capsys.readouterr() == (
        "",
        "metarl: error: 3 env steps are no more than a rollout (20): nothing would be learnt\n",
    )


def test_nothing_is_overwritten_unasked(logs: Path, tmp_path: Path, refused: Refused) -> None:
    record = tmp_path / "record.json"
    argv = ["finetune", "-f", str(logs), *SHORT, "--optimizer", "adam", "-o", str(record)]
    record.with_suffix(".png").write_text("mine")
    assert "record.png exists already: choose another name, or overwrite it with --overwrite" in refused(*argv)
    assert not record.exists()
    assert main([*argv, "--overwrite"]) == 0
    assert record.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "record.json exists already" in refused(*argv, "--figure", tmp_path / "other.png")


def test_a_stock_algorithm_goes_on_as_it_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = ["--algo", "reptile", "-f", str(tmp_path), "--eval-freq", "-1", "-params", "learner:sb3_a2c"]
    assert main(tiny(*learner)) == 0
    run = tmp_path / "reptile" / "PointMass-v0_1"
    assert main(["finetune", "-i", str(run), *SHORT]) == 0
    record = json.loads((run / "finetune" / "test_1.json").read_text())
    assert [curves["label"] for curves in record["curves"]] == ["A2C from reptile, own", "A2C from scratch, own"]
    assert record["curves"][0]["env_steps"] == [0, 20, 40]
    said = capsys.readouterr().out
    assert "for the value network" not in said  # it has its own
    (command,) = [line.split("python -m metarl.zoo ")[1] for line in said.splitlines() if "that learnt best" in line]
    assert main(command.split()) == 0
    proposed = [
        line.split("python -m metarl.zoo ")[1] for line in capsys.readouterr().out.splitlines() if "zoo fine" in line
    ]
    assert proposed == [f"finetune -i {run} --to a2c"]
    assert main(["finetune", "-i", str(run), *SHORT, "--to", "ppo"]) == 2
    refusal = "metarl: error: the initialisation was learnt for 'a2c': it cannot start 'ppo'\n"
    assert capsys.readouterr() == ("", refusal)
