"""``metarl reproduce``: an experiment's runs, whole, killed, missing and failing, and what is said of them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

import metarl
from metarl.errors import NonFiniteError
from metarl.files.checkpoint import load_checkpoint
from metarl.meta.algorithms.maml import MAML
from metarl.registry import Registry
from metarl.zoo.__main__ import main
from metarl.zoo.experiments.jobs import jobs, load_experiment
from metarl.zoo.runs.folder import open_run
from tests.processes import run_program
from tests.zoo.conftest import Refused, contents
from tests.zoo.experiments.smoke import ALGOS, NAME, ONE, SMOKE, read, reports


def test_finished_runs_are_left_alone(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(smoke)
    argv = [*SMOKE, "-f", str(smoke), "-o", str(tmp_path), "--only-algo", *ALGOS, "--only-env", "PointMass-v0"]
    assert main(argv) == 0
    assert contents(smoke) == before
    a, b = read(smoke / "results"), read(tmp_path)
    for record in (a, b):
        for name in ("command", "seconds", "commit"):
            del record[name]
        record["files"].pop("results.md")  # it holds the command
    assert a == b
    out = capsys.readouterr().out
    assert "12 runs under" in out
    assert "12 finished, 0 to do" in out
    assert "Missing: maml, not started: HalfCheetahVel-v0 (seed 0), AntDir-v0 (seed 0)" in out
    go_on = f"Next: python -m metarl.zoo reproduce {NAME} --scale smoke -f {smoke} -o {tmp_path} does what is missing"
    assert out.splitlines()[-1] == go_on


def test_a_deleted_run_is_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ONE, "--only-algo", "random", "-f", str(tmp_path)]
    assert main(argv) == 0
    shutil.rmtree(tmp_path / "random")
    assert main(argv) == 0
    assert capsys.readouterr().out.count("0 finished, 1 to do") == 2


KILLED = """
import os, signal, sys
from metarl.meta.algorithms.maml import MAML
from metarl.zoo.__main__ import main
train = MAML.train
def dies(self):
    if self.name == "fomaml" and self.n_iterations == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return train(self)
MAML.train = dies
main(sys.argv[1:])
"""


def test_a_killed_command_goes_on_where_it_was(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ONE, "--only-algo", "maml", "fomaml", "-f", str(tmp_path)]
    done = run_program(KILLED, *argv)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first, second = (open_run(tmp_path / algo / "PointMass-v0_1") for algo in ("maml", "fomaml"))
    assert first.final.is_file()
    assert not second.final.exists()
    before = contents(first.folder)
    assert main(argv) == 0
    added = contents(first.folder).items() - before.items()
    assert [name for name, _ in added] == [f"evaluations/{NAME}_step_seconds.json"]
    assert len((second.records / "command.txt").read_text().splitlines()) == 2
    for run in (first, second):
        whole = open_run(smoke / run.algo / run.folder.name)
        for ours, theirs in ((run.final, whole.final), (run.best, whole.best)):
            left, right = load_checkpoint(ours), load_checkpoint(theirs)
            assert left[1] == right[1]
            assert all(torch.equal(tensor, right[0][name]) for name, tensor in left[0].items())
    assert "2 runs under" in (out := capsys.readouterr().out)
    assert "1 finished, 1 to do" in out
    assert "Run 1 of 1: fomaml on PointMass-v0, seed 0, 240 env steps; 0:00:0" in out


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = MAML.train

    def interrupted(self: MAML) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return train(self)

    monkeypatch.setattr(MAML, "train", interrupted)
    argv = [*ONE, "-f", str(tmp_path)]
    assert main(argv) == 130
    error = capsys.readouterr().err
    assert "go on with: python -m metarl.zoo train -i" in error
    assert f"or go on with all of it: python -m metarl.zoo {' '.join(argv)}" in error
    assert not (tmp_path / "results").exists()


def test_only_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert main([*SMOKE, "-f", str(tmp_path / "none"), "--no-train"]) == 0
    assert contents(tmp_path) == {}
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: python -m metarl.zoo reproduce")


def test_more_seeds(tmp_path: Path) -> None:
    argv = [*ONE[:-2], "--only-algo", "random", "-f", str(tmp_path)]
    assert main([*argv, "--seeds", "7"]) == 0
    assert {report.seeds for report in reports(read(tmp_path / "results")).values()} == {(7,)}
    assert main(argv) == 0
    assert {report.seeds for report in reports(read(tmp_path / "results")).values()} == {(0, 1)}


def test_algorithms_of_other_versions_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Registry("algorithm")
    for name, cls in metarl.ALGORITHMS.items():
        if name not in ("reptile", "leap"):
            known.add(name, cls)
    monkeypatch.setattr("metarl.meta.ALGORITHMS", known)
    assert main([*ONE, "--only-algo", "reptile", "random", "-f", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 runs under" in out
    assert "0 finished, 1 to do, 1 not possible yet" in out
    assert "Missing: reptile, not part of this version: PointMass-v0 (seed 0, 1), HalfCheetahVel-v0 (seed 0)" in out
    record = read(tmp_path / "results")
    (item,) = (
        item for item in record["missing"] if (item["env"], item["algo"], item["seed"]) == ("AntVel-v0", "leap", 0)
    )
    assert item == {**item, "reason": "not part of this version", "possible": False}
    assert (
        "- leap, not part of this version: PointMass-v0 (seed 0, 1), "
        in (tmp_path / "results" / "results.md").read_text()
    )
    # It is switched on by being there.
    monkeypatch.undo()
    monkeypatch.setattr("metarl.meta.ALGORITHMS", {**known, "reptile": MAML})
    (job,) = jobs(load_experiment(NAME, "smoke"), ["PointMass-v0"], ["reptile"], [0], ["comparison"])
    assert "not part" not in job.unavailable()


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = MAML.train

    def fails(self: MAML) -> dict[str, float]:
        if self.name == "maml":
            raise NonFiniteError("the loss of task 1 is nan")
        return train(self)

    monkeypatch.setattr(MAML, "train", fails)
    argv = [*ONE, "--only-algo", "maml", "fomaml", "-f", str(tmp_path)]
    assert main(argv) == 1
    assert "Run 1 of 2 failed: meta-iteration 1: the loss of task 1 is nan" in capsys.readouterr().out
    record = read(tmp_path / "results")
    assert [run["algo"] for run in record["runs"]] == ["fomaml"]
    (reason,) = (
        item["reason"]
        for item in record["missing"]
        if (item["env"], item["algo"], item["seed"], item["cell"]) == ("PointMass-v0", "maml", 0, {})
    )
    assert "the loss of task 1 is nan" in reason
    monkeypatch.undo()
    assert main(argv) == 0
    assert [run["algo"] for run in read(tmp_path / "results")["runs"]] == ["maml", "fomaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first-order"], "unknown experiment 'first-order': did you mean 'first-order-rl'?"),
        ([NAME, "--scale", "lapto"], "unknown scale 'lapto': did you mean 'laptop'?"),
        ([NAME, "--only-env", "PointMas-v0"], "unknown environment of first-order-rl 'PointMas-v0': did you mean"),
        ([NAME, "--only-algo", "fomanl"], "unknown algorithm of first-order-rl 'fomanl': did you mean 'fomaml'?"),
        ([NAME, "--only-part", "ablatoin"], "unknown part of first-order-rl 'ablatoin': did you mean 'ablation'?"),
        ([NAME, "--seeds", "0", "-1"], "argument --seeds: -1 is not a seed: 0 or more"),
        ([NAME, "--seeds", "x"], "argument --seeds: 'x' is not a number"),
        ([NAME, "--only-part", "ablation", "--only-env", "AntVel-v0"], "at scale laptop has no such runs"),
        ([NAME, "--only-enw", "AntVel-v0"], "unknown flag of reproduce '--only-enw': did you mean '--only-env'?"),
        ([NAME, "-o", "FILE"], "file is a file, not a folder"),
        ([NAME, "-o", "FOREIGN"], "is no record of `metarl reproduce`: choose another folder"),
        ([], "the following arguments are required: experiment"),
    ],
)
def test_bad_input_trains_nothing(words: list[str], message: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "record.json").write_text("{}")
    places = {"FILE": str(tmp_path / "file"), "FOREIGN": str(tmp_path / "foreign")}
    before = contents(tmp_path)
    assert message in refused("reproduce", *(places.get(word, word) for word in words), "-f", tmp_path / "logs")
    assert contents(tmp_path) == before
