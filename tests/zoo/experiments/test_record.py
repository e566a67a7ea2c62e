"""Records of results: runs that are elsewhere or do not count any more, damage, and files of somebody else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.zoo.__main__ import main
from tests.zoo.conftest import Refused, contents
from tests.zoo.experiments.smoke import ALGOS, SMOKE, read, reports


def test_a_record_stands_for_run_folders_that_are_elsewhere(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on another machine: the record of a clone counts, and only what it lacks is trained."""
    output, folder = tmp_path / "results", tmp_path / "logs"
    shutil.copytree(smoke / "results", output)
    argv = [*SMOKE, "-f", str(folder), "-o", str(output)]
    chosen = ["--only-algo", *ALGOS, "--only-env", "PointMass-v0", "AntVel-v0"]
    assert main([*argv, *chosen]) == 0
    assert "16 runs under" in (out := capsys.readouterr().out)
    assert "0 finished, 16 only in the record of these results, 0 to do" in out
    assert contents(folder) == {}
    whole, again = read(smoke / "results"), read(output)
    for name in ("missing", "times", "step_seconds", "learning"):
        assert again[name] == whole[name], name
    assert again["runs"] == [{**run, "from_record": True} for run in whole["runs"]]
    assert "16 runs (16 of them from an earlier record" in (output / "results.md").read_text()
    for ours, theirs in zip(reports(again).values(), reports(whole).values(), strict=True):
        assert ours.seeds == theirs.seeds
        assert ours.meta == theirs.meta
        np.testing.assert_array_equal(ours.returns, theirs.returns)
    assert again["tables"].keys() == whole["tables"].keys() == again["sentences"].keys()
    for ours, theirs in zip(again["verdicts"], whole["verdicts"], strict=True):
        np.testing.assert_allclose(ours.pop("interval"), theirs.pop("interval"), atol=2e-3)
        assert ours == theirs
    # A run here counts before that of the record, a further seed beside those of the record.
    assert main([*argv, "--only-algo", "random", "--only-env", "PointMass-v0", "--seeds", "0", "5"]) == 0
    assert "1 only in the record of these results, 1 to do" in capsys.readouterr().out
    merged = reports(read(output))["PointMass-v0", "random, last"]
    assert merged.seeds == (0, 1, 5)
    before = reports(whole)["PointMass-v0", "random, last"]
    np.testing.assert_array_equal(merged.returns[:2], before.returns)
    runs = [run for run in read(output)["runs"] if run["algo"] == "random" and run["env"] == "PointMass-v0"]
    assert [run["seed"] for run in runs] == [0, 1, 5]
    assert [run.get("from_record", False) for run in runs] == [True, True, False]
    shutil.rmtree(folder)
    assert main([*argv, "--no-train"]) == 0
    assert reports(read(output))["PointMass-v0", "random, last"].seeds == (0, 1, 5)  # without being named again
    assert not list(output.glob("former_record_*"))


def test_a_run_folder_counts_before_the_record(smoke: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "results", tmp_path / "logs"
    record = read(smoke / "results")
    for report in record["reports"]:
        report["returns"] = (np.array(report["returns"]) - 7.0).tolist()
    for curve in record["learning"]:
        curve["mean"] = np.round(np.array(curve["mean"]) - 7.0, 3).tolist()
    output.mkdir()
    (output / "record.json").write_text(json.dumps(record))
    shutil.copytree(smoke / "maml" / "PointMass-v0_2", folder / "maml" / "PointMass-v0_2")  # seed 1
    argv = [*SMOKE, "-f", str(folder), "-o", str(output), "--no-train"]
    assert main(argv) == 0
    found, before = (reports(item)["PointMass-v0", "maml, last"] for item in (read(output), read(smoke / "results")))
    np.testing.assert_allclose(found.returns[0], before.returns[0] - 7.0)
    np.testing.assert_allclose(found.returns[1], before.returns[1])
    # The record's curve is of a run that does not count any more: the curve is that of the run that is here.
    alone = curves(read(output))["PointMass-v0", "maml"]
    assert alone["n_runs"] == 1
    assert np.abs(np.subtract(alone["mean"], curves(record)["PointMass-v0", "maml"]["mean"])).max() > 1.0
    assert "The learning curve of maml on PointMass-v0 is of 1 of 2 runs." in read(output)["sentences"]["Training"]
    assert curves(read(output))["PointMass-v0", "fomaml"] == curves(record)["PointMass-v0", "fomaml"]
    assert list(read(output)["step_seconds"]) == ["AntVel-v0"]


def curves(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(item["env"], item["algo"]): item for item in record["learning"]}


def test_recorded_runs_that_do_not_count_any_more_are_kept_beside(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has other hyperparameters or evaluations than those of today does not stand for anything."""
    output, folder = tmp_path / "results", tmp_path / "logs"
    output.mkdir()
    record = read(smoke / "results")
    maml, fomaml, oracle = (
        next(run for run in record["runs"] if run["algo"] == algo and not run["cell"])
        for algo in ("maml", "fomaml", "oracle")
    )
    maml["hyperparams"]["inner_lr"] = 0.3
    fomaml["evaluation"]["n_tasks"] = 5
    oracle["rates"]["first"] = [9.0]
    (output / "record.json").write_text(json.dumps(record))
    assert main([*SMOKE, "-f", str(folder), "-o", str(output), "--no-train"]) == 0
    assert json.loads((output / "former_record_1.json").read_text()) == record
    assert f"do not count any more: it is {output / 'former_record_1.json'} now" in capsys.readouterr().out
    missing = {
        (item["algo"], item["seed"]): item["reason"]
        for item in read(output)["missing"]
        if item["env"] == "PointMass-v0" and not item["cell"]
    }
    changed = "in the record with other hyperparameters, another evaluation or no returns"
    assert missing["maml", 0] == missing["fomaml", 0] == missing["oracle", 0] == changed
    assert missing["reptile", 0] == "not started"
    assert not missing.keys() & {("maml", 1), ("random", 0), ("oracle", 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "laptop"}, "is of first-order-rl at scale laptop, not of first-order-rl at scale smoke"),
        ({"version": 9}, "has record format 9: this metarl reads 1"),
        ({"reports": [{"format": "metarl-report"}]}, "has report format None"),
        ({"learning": [{"env": "PointMass-v0"}]}, "the record is damaged: learning[0].algo is missing"),
        ({"learning.0.mean": [1.0]}, "the learning curve of maml on PointMass-v0 has points without a value"),
        ({"runs": 3}, "the record is damaged: runs=3 is of the wrong type"),
        ({"runs.0.hyperparams": None}, "the record is damaged: runs[0].hyperparams=None is of the wrong type"),
        ({"runs.0": {"env": "PointMass-v0"}}, "the record is damaged: runs[0].algo is missing"),
        ({"reports.0.meta": {}}, "the record is damaged: evaluation_seed of maml, last on PointMass-v0 is missing"),
        ({"reports.0.meta.num_timesteps": [1]}, "num_timesteps of maml, last on PointMass-v0 are not one for each run"),
        ({"step_seconds.PointMass-v0": {"maml": [1.0]}}, "step_seconds are not two algorithms'"),
        ({"times.PointMass-v0": 3}, "the record is damaged: times.PointMass-v0=3 is of the wrong type"),
    ],
)
def test_a_record_that_cannot_be_gone_on_with_stays_as_it_is(
    changes: dict[str, Any], message: str, smoke: Path, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "record.json"
    record = read(smoke / "results")
    for place, value in changes.items():
        *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
        part: Any = record
        for key in way:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(record))
    before = contents(tmp_path)
    assert message in refused(*SMOKE, "-f", str(tmp_path / "logs"), "-o", str(tmp_path))
    assert contents(tmp_path) == before


FILES = ("results.md", "PointMass-v0_last.png", "AntVel-v0_best.png", "learning.png", "ablation_PointMass-v0_best.png")


@pytest.fixture
def one_run(smoke: Path, tmp_path: Path) -> list[str]:
    """The command of results of a single finished run, into tmp_path / "out", a folder that exists."""
    shutil.copytree(smoke / "random" / "PointMass-v0_1", tmp_path / "logs" / "random" / "PointMass-v0_1")
    (tmp_path / "out").mkdir()
    return [*SMOKE, "-f", str(tmp_path / "logs"), "-o", str(tmp_path / "out"), "--no-train"]


def test_files_that_it_did_not_write_are_not_replaced(one_run: list[str], tmp_path: Path, refused: Refused) -> None:
    output = tmp_path / "out"
    (output / "notes.md").write_text("mine, and of no name that it uses")
    for name in FILES:
        (output / name).write_text("mine")
        before = contents(tmp_path)
        assert f"{output / name} exists already" in refused(*one_run, "--train")
        assert contents(tmp_path) == before
        (output / name).unlink()
    (output / "results.md").write_text("mine")
    (output / "record.json").write_text("{}")
    assert "is no record of `metarl reproduce`" in refused(*one_run)
    assert main([*one_run, "--overwrite"]) == 0
    assert read(output)["format"] == "metarl-reproduction"
    assert (output / "results.md").read_text().startswith("# first-order-rl")
    assert (output / "notes.md").read_text().startswith("mine")


def test_its_own_files_are_replaced_until_somebody_changes_them(
    one_run: list[str], tmp_path: Path, refused: Refused
) -> None:
    output = tmp_path / "out"
    assert main(one_run) == 0
    record = read(output)
    assert sorted(record["files"]) == sorted(path.name for path in output.iterdir() if path.name != "record.json")
    # killed between the record and the files: each is what one of two records wrote
    record["files"]["results.md"] = ["0" * 64, *record["files"]["results.md"]]
    (output / "record.json").write_text(json.dumps(record))
    assert main(one_run) == 0
    assert len(read(output)["files"]["results.md"]) == 2
    with open(output / "results.md", "a") as file:
        file.write("My own conclusion.\n")
    before = contents(output)
    assert f"{output / 'results.md'} exists already" in refused(*one_run)
    assert contents(output) == before


def test_the_record_that_ships_knows_its_files() -> None:
    folder = Path(__file__).parents[3] / "benchmarks" / "results" / "first_order_rl"
    files = read(folder)["files"]
    assert sorted(files) == sorted(path.name for path in folder.iterdir() if path.name != "record.json")
    for name, sums in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in sums, name


def test_a_record_of_imitation_by_several_seeds_stands_for_its_runs(tmp_path: Path) -> None:
    """Each run has its own share of the returns where policies act, and of those where they learn."""
    kept = Path(__file__).parents[3] / "benchmarks/results/meta_transfer_maze"
    output = tmp_path / "results"
    shutil.copytree(kept, output)
    argv = ["reproduce", "meta-transfer-maze", "--scale", "laptop", "--no-train", "--overwrite"]
    assert main([*argv, "-f", str(tmp_path / "logs"), "-o", str(output), "--num-threads", "1"]) == 0
    whole, again = read(kept), read(output)
    assert len(whole["reports"]) == len(again["reports"]) == 72
    for ours, theirs in zip(again["reports"], whole["reports"], strict=True):
        assert ours["learning_returns"] is not None
        for name in ("label", "returns", "learning_returns", "strata", "meta"):
            assert ours[name] == theirs[name], name
    keys = ("a", "b", "checkpoint", "winner")
    verdicts = [[[item[key] for key in keys] for item in record["verdicts"]] for record in (again, whole)]
    assert verdicts[0] == verdicts[1]
