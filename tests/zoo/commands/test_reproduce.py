"""``metarl reproduce``: an experiment's runs, whole, killed, missing and failing, and what is said of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl.errors import NonFiniteError
from metarl.files.checkpoint import load_checkpoint, write_npz_atomic
from metarl.meta.algorithms.maml import MAML
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import Interval, paired_interval
from metarl.zoo.__main__ import main
from metarl.zoo.experiments import findings, testing
from metarl.zoo.experiments.findings import Verdict
from metarl.zoo.experiments.jobs import find, jobs, load_experiment, names, scales
from metarl.zoo.experiments.testing import Trained, choose_rates, evaluate_run, learning
from metarl.zoo.runs.folder import open_run
from tests.processes import run_program
from tests.zoo.conftest import Refused, contents

NAME = "first-order-rl"
SMOKE = ["reproduce", NAME, "--scale", "smoke", "--num-threads", "1"]
ALGOS = ("maml", "fomaml", "random", "oracle")
ONE = [*SMOKE, "--only-env", "PointMass-v0", "--only-part", "comparison", "--seeds", "0"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of four algorithms on two families, with their results; tests must not write into it."""
    folder = tmp_path_factory.mktemp("reproduce")
    assert main([*SMOKE, "-f", str(folder), "--only-env", "PointMass-v0", "AntVel-v0", "--only-algo", *ALGOS]) == 0
    return folder


def read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return document


def reports(record: dict[str, Any]) -> dict[tuple[str, str], Report]:
    """Return those of the comparison."""
    found = (Report.from_json(json.dumps(item)) for item in record["reports"])
    return {(report.env, report.label): report for report in found if "cell" not in report.meta}


# ------------------------------------------------------------------------------------------------------------- results
def test_the_record_holds_what_the_runs_reach(logs: Path) -> None:
    record = read(logs / "results")
    assert record["command"].startswith(f"python -m metarl.zoo reproduce {NAME} --scale smoke")
    assert record["machine"].keys() == {"cores"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["seconds"] > 0
    assert len(record["runs"]) == 2 * 4 + 4 + 4
    assert all(run["training_seconds"] > 0 for run in record["runs"] if run["algo"] != "random")
    (run,) = (run for run in record["runs"] if (run["algo"], run["seed"], run["cell"]) == ("maml", 1, {}))
    assert run["num_timesteps"]["last"] >= run["hyperparams"]["n_timesteps"] == 240
    path = logs / run["run"] / "PointMass-v0.safetensors"
    report = metarl.load(path).evaluate("test", 2, n_tasks=4, n_episodes=2, inner_lr_rule="half_after_first")
    merged = reports(record)["PointMass-v0", "maml, last"]
    assert merged.seeds == (0, 1)
    np.testing.assert_allclose(merged.returns[1], report.returns[0], atol=5e-4)
    assert (logs / run["run"] / "best_model.safetensors").is_file()
    assert run["num_timesteps"]["best"] == merged_steps(record, "maml, best")[1]


def test_the_best_is_the_checkpoint_and_the_rates_that_validation_tasks_choose(logs: Path) -> None:
    folder = logs / "fomaml" / "PointMass-v0_1"
    models = [metarl.load(folder / "best_model"), metarl.load(folder / "PointMass-v0.safetensors")]
    returns = {}
    for index, model in enumerate(models):
        for rates in ([0.1, 0.1], [0.1, 0.01]):
            found = model.evaluate("validation", 2, n_tasks=2, n_episodes=2, inner_lr=rates)
            returns[index, tuple(rates)] = found.returns[..., 1:].mean()
    assert len(set(returns.values())) == 4 or models[0].num_timesteps == models[1].num_timesteps
    index, chosen = max(returns, key=returns.__getitem__)
    report = models[index].evaluate("test", 2, n_tasks=4, n_episodes=2, inner_lr=chosen)
    merged = reports(read(logs / "results"))["PointMass-v0", "fomaml, best"]
    np.testing.assert_allclose(merged.returns[0], report.returns[0], atol=5e-4)
    (run, *_) = (run for run in read(logs / "results")["runs"] if run["algo"] == "fomaml")
    assert run["inner_lr"] == {"last": [0.1, 0.05], "best": pytest.approx(list(chosen))}
    assert run["num_timesteps"]["best"] == models[index].num_timesteps


def test_the_first_rate_is_chosen_by_the_first_step_and_the_later_ones_by_all(logs: Path) -> None:
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "best_model")
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


def test_rates_that_diverge_are_not_chosen(logs: Path) -> None:
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "best_model")
    assert isinstance(model, MAML)
    settings = {"n_inner_steps": 2, "n_episodes": 2}
    rates, _ = choose_rates(model, settings, [1e9, 1.0], [1e9, 1.0], 2)
    assert rates == pytest.approx([0.1, 0.1])


def merged_steps(record: dict[str, Any], label: str) -> list[int]:
    steps: list[int] = reports(record)["PointMass-v0", label].meta["num_timesteps"]
    return steps


def test_verdicts_are_paired_intervals_and_the_oracle_stays_as_it_is(logs: Path) -> None:
    record = read(logs / "results")
    found = reports(record)
    labels = ["maml, last", "maml, best", "fomaml, last", "fomaml, best", "random, last", "random, best"]
    labels += ["oracle, last", "oracle, best"]
    assert sorted(found) == sorted((env, label) for env in ("AntVel-v0", "PointMass-v0") for label in labels)
    assert found["PointMass-v0", "oracle, last"].returns.shape == (2, 4, 1)
    verdicts = [item for item in record["verdicts"] if not item["cell"]]
    assert len(verdicts) == 2 * 6 * 2 * 2  # families, pairs, checkpoints, inner steps
    for item in verdicts:
        a, b = (found[item["env"], f"{algo}, {item['checkpoint']}"].returns for algo in (item["a"], item["b"]))
        step = item["step"]
        expected = paired_interval(a[..., step], b[..., 0 if item["b"] == "oracle" else step])
        np.testing.assert_allclose(item["interval"], expected, atol=2e-3)
        assert item["winner"] is None  # on four tasks nothing is clear
    pairs = {(item["a"], item["b"]) for item in verdicts}
    assert len(record["sentences"]["AntVel-v0"]) == len(pairs) == 6


def test_learning_curves_of_runs_with_other_evaluations_meet_at_equal_env_steps(logs: Path, tmp_path: Path) -> None:
    experiment = load_experiment(NAME, "smoke")
    runs = []
    for job in jobs(experiment, ["PointMass-v0"], ["maml"], parts=["comparison"]):
        found = find(job, logs).run
        assert found is not None
        shutil.copytree(found.folder, tmp_path / found.folder.name)
        run = open_run(tmp_path / found.folder.name)
        runs.append(Trained(job, run, {"last": evaluate_run(experiment, job, run, 1).reports["last"]}))
    for run, points in ((runs[0].run, [100, 210]), (runs[1].run, [49, 103, 151, 199, 260])):
        path = run.folder / "meta_evaluations.npz"
        post = np.broadcast_to(np.array(points)[:, None, None], (len(points), 1, 2))
        env_steps = np.zeros((len(points), 2))
        write_npz_atomic(path, timesteps=np.array(points), pre=-post[:, 0], post=post, env_steps=env_steps)
    (curve,) = learning(experiment, runs)
    assert curve.timesteps.tolist() == [101.5, 204.5]
    assert curve.bands.mean.tolist() == [101.5, 204.5]  # of 100 and 103, 210 and 199
    assert curve.n_runs == 2


def test_tables_figures_and_text(logs: Path) -> None:
    record = read(logs / "results")
    text = (logs / "results" / "results.md").read_text()
    assert list(record["tables"]) == ["PointMass-v0", "Ablation on PointMass-v0", "AntVel-v0", "Training", "Time"]
    for name, sentences in record["sentences"].items():
        assert f"\n## {name}\n" in text
        assert all(sentence in text for sentence in sentences)
    (table,) = record["tables"]["PointMass-v0"]
    assert "published" not in table  # the numbers belong to episodes of 100 steps
    last, best = record["tables"]["Ablation on PointMass-v0"]
    for table in (last, best):
        assert "meta_batch_size 3, n_episodes 2" in table
    figures = {path.stem for path in (logs / "results").glob("*.png")}
    panels = ("PointMass-v0", "AntVel-v0", "ablation_PointMass-v0")
    kinds = [f"{name}_{kind}" for name in panels for kind in ("last", "best")]
    assert figures == {"learning", *kinds}
    assert all(f"![{name}]({name}.png)" in text for name in figures)
    assert {curve["algo"] for curve in record["learning"]} == {"maml", "fomaml", "oracle"}
    assert set(record["times"]["AntVel-v0"]) == {"maml", "fomaml", "oracle"}
    for env, seconds in record["step_seconds"].items():
        assert env in ("PointMass-v0", "AntVel-v0")
        assert list(seconds) == ["maml", "fomaml"]
        assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in seconds.values())
    assert len(record["sentences"]["Time"]) == len(record["step_seconds"]) == 2


def test_published_numbers_stand_beside_the_families_as_they_are(logs: Path) -> None:
    from metarl.zoo.experiments.results import _published
    from metarl.zoo.experiments.testing import Tested

    report = reports(read(logs / "results"))["AntVel-v0", "maml, last"]
    plain = dataclasses.replace(report, meta={**report.meta, "env_kwargs": {"oracle": True}})
    assert _published(report) == ()
    table = findings.returns_table([Tested("maml", "last", plain, [1_000_000])], _published(plain), "AntVel-v0")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["maml, last"][:2] == ["1.00", "1"]
    assert rows["MAML, published"] == ["", "1", "30.6 ±30.0", "96.7 ±21.0", "100.1 ±21.0", "69.5"]


# ------------------------------------------------------------------------------------------------------------ going on
def test_finished_runs_are_left_alone(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(logs)
    argv = [*SMOKE, "-f", str(logs), "-o", str(tmp_path), "--only-algo", *ALGOS, "--only-env", "PointMass-v0"]
    assert main(argv) == 0
    assert contents(logs) == before
    a, b = read(logs / "results"), read(tmp_path)
    for record in (a, b):
        for name in ("command", "seconds", "commit"):
            del record[name]
        record["files"].pop("results.md")  # it holds the command
    assert a == b
    out = capsys.readouterr().out
    assert "12 runs under" in out
    assert "12 finished, 0 to do" in out
    assert "Missing: maml, not started: HalfCheetahVel-v0 (seed 0), AntDir-v0 (seed 0)" in out
    go_on = f"Next: python -m metarl.zoo reproduce {NAME} --scale smoke -f {logs} -o {tmp_path} does what is missing"
    assert out.splitlines()[-1] == go_on


def test_a_record_stands_for_run_folders_that_are_elsewhere(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on another machine: the record of a clone counts, and only what it lacks is trained."""
    output, folder = tmp_path / "results", tmp_path / "logs"
    shutil.copytree(logs / "results", output)
    argv = [*SMOKE, "-f", str(folder), "-o", str(output)]
    chosen = ["--only-algo", *ALGOS, "--only-env", "PointMass-v0", "AntVel-v0"]
    assert main([*argv, *chosen]) == 0
    assert "16 runs under" in (out := capsys.readouterr().out)
    assert "0 finished, 16 only in the record of these results, 0 to do" in out
    assert contents(folder) == {}
    whole, again = read(logs / "results"), read(output)
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


def test_a_run_folder_counts_before_the_record(logs: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "results", tmp_path / "logs"
    record = read(logs / "results")
    for report in record["reports"]:
        report["returns"] = (np.array(report["returns"]) - 7.0).tolist()
    for curve in record["learning"]:
        curve["mean"] = np.round(np.array(curve["mean"]) - 7.0, 3).tolist()
    output.mkdir()
    (output / "record.json").write_text(json.dumps(record))
    shutil.copytree(logs / "maml" / "PointMass-v0_2", folder / "maml" / "PointMass-v0_2")  # seed 1
    argv = [*SMOKE, "-f", str(folder), "-o", str(output), "--no-train"]
    assert main(argv) == 0
    found, before = (reports(item)["PointMass-v0", "maml, last"] for item in (read(output), read(logs / "results")))
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
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has other hyperparameters or evaluations than those of today does not stand for anything."""
    output, folder = tmp_path / "results", tmp_path / "logs"
    output.mkdir()
    record = read(logs / "results")
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


def test_a_deleted_run_is_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ONE, "--only-algo", "random", "-f", str(tmp_path)]
    assert main(argv) == 0
    shutil.rmtree(tmp_path / "random")
    assert main(argv) == 0
    assert capsys.readouterr().out.count("0 finished, 1 to do") == 2


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
    changes: dict[str, Any], message: str, logs: Path, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "record.json"
    record = read(logs / "results")
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
def one_run(logs: Path, tmp_path: Path) -> list[str]:
    """The command of results of a single finished run, into tmp_path / "out", a folder that exists."""
    shutil.copytree(logs / "random" / "PointMass-v0_1", tmp_path / "logs" / "random" / "PointMass-v0_1")
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


def test_a_killed_command_goes_on_where_it_was(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        whole = open_run(logs / run.algo / run.folder.name)
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


def test_runs_with_other_hyperparameters_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ONE, "--only-algo", "random", "-f", str(tmp_path)]
    experiment = load_experiment(NAME, "smoke")
    (job,) = jobs(experiment, ["PointMass-v0"], ["random"], [0], ["comparison"])
    words = job.command(tmp_path, experiment)
    assert main([*words, "-params", "inner_lr:0.3", "--verbose", "0"]) == 0
    other = tmp_path / "random" / "PointMass-v0_1"
    assert find(job, tmp_path).run is None
    (tmp_path / "random" / "PointMass-v0_2").mkdir()  # killed before it had records
    assert main(argv) == 0
    assert f"{other} does not count: inner_lr 0.3, here 0.1" in capsys.readouterr().out
    found = find(job, tmp_path)
    assert found.finished
    assert found.run is not None
    assert found.run.number == 3
    assert main([*words, "--verbose", "0"]) == 0  # a second one adds nothing
    again = find(job, tmp_path).run
    assert again is not None
    assert again.number == 3


# ------------------------------------------------------------------------------------------------- missing and failing
def test_algorithms_of_other_versions_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {name: cls for name, cls in metarl.ALGORITHMS.items() if name not in ("reptile", "leap")}
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


# ------------------------------------------------------------------------------------------------------ data, sentences
def test_every_scale_can_be_run() -> None:
    assert names() == [NAME]
    assert scales(NAME) == ["smoke", "laptop", "paper"]
    for scale in scales(NAME):
        experiment = load_experiment(NAME, scale)
        planned = jobs(experiment)
        assert {job.entry.env for job in planned} == {"PointMass-v0", "HalfCheetahVel-v0", "AntDir-v0", "AntVel-v0"}
        assert len({str(job) for job in planned}) == len(planned)
        for entry in experiment.entries:
            assert set(entry.algos) <= set(experiment.settings["algos"])
            assert ("meta_batch_size" in entry.grid) == (entry.part == "ablation")
        for job in planned:
            if not job.unavailable():
                assert job.config()["n_timesteps"] == job.entry.n_timesteps
    laptop = {(entry.env, entry.part): list(entry.seeds) for entry in load_experiment(NAME, "laptop").entries}
    assert laptop["PointMass-v0", "comparison"] == laptop["HalfCheetahVel-v0", "comparison"] == [0, 1, 2]
    assert laptop["AntDir-v0", "comparison"] == laptop["AntVel-v0", "comparison"] == [0]


@pytest.mark.parametrize("n_tasks", [19, 20])
def test_a_verdict_needs_tasks(n_tasks: int) -> None:
    rng = np.random.default_rng(0)
    items = []
    for algo, ahead in (("maml", 9.0), ("fomaml", 0.0)):
        returns = ahead + rng.standard_normal((1, n_tasks, 2))
        report = Report(algo, "PointMass-v0", "test", returns, [0, 1], {"x": np.arange(n_tasks)}, [0])
        items.append(testing.Tested(algo, "last", report, [1]))
    for verdict in findings.verdicts(items, 1):
        assert verdict.winner == ("maml" if n_tasks == 20 else None)


def test_sentences_say_who_wins() -> None:
    ahead, behind, neither = Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(0.5, -1.0, 2.0)
    found = [
        Verdict("maml", "leap", "last", 1, ahead),
        Verdict("maml", "leap", "last", 3, behind),
        Verdict("maml", "leap", "best", 1, ahead),
        Verdict("maml", "leap", "best", 3, neither),
    ]
    assert [item.winner for item in found] == ["maml", "leap", "maml", None]
    assert [dataclasses.replace(item, supported=False).winner for item in found] == [None] * 4
    assert "supported" not in found[0].to_dict()
    assert findings.sentences(found) == [
        "maml against leap: after 1 step maml wins (last and best); after 3 steps leap wins (last), no clear "
        "difference (best). maml minus leap: last 2.00 [1.00, 3.00], -2.00 [-3.00, -1.00]; best 2.00 [1.00, 3.00], "
        "0.50 [-1.00, 2.00]."
    ]
    cells = [({"n_episodes": i}, item) for i in (5, 10) for item in found]
    assert findings.ablation_sentences(cells)[1] == (
        "Ablation, last checkpoints after 3 steps: of 2 settings maml wins 0 and leap 2; 0 show no clear difference."
    )


def test_the_ratio_of_the_two_orders() -> None:
    assert findings.speed_sentences({"A": {"maml": [4.0, 3.0, 3.0], "fomaml": [2.0, 2.0, 1.0]}}, 1.5) == [
        "Meta-optimisation step on A: maml takes 2.00 times as long as fomaml, 3.000 s and 2.000 s on the same batches "
        "(1.50 to 3.00 times in 3 rounds; the paper says 1.5)."
    ]
    assert findings.speed_sentences({}, 1.5) == []


def test_both_orders_are_timed_on_the_same_batches(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for algo in ("maml", "fomaml"):
        shutil.copytree(logs / algo / "PointMass-v0_1", tmp_path / algo / "PointMass-v0_1")
        shutil.rmtree(tmp_path / algo / "PointMass-v0_1" / "evaluations")
    seen: dict[str, list[tuple[float, float]]] = {"maml": [], "fomaml": []}
    train = MAML.train

    def watched(self: MAML) -> dict[str, float]:
        stats = train(self)
        seen[self.name].append((stats["meta/pre_adapt_rew"], stats["meta/post_adapt_rew"]))
        return stats

    monkeypatch.setattr(MAML, "train", watched)
    argv = [*SMOKE, "-f", str(tmp_path), "--no-train"]
    assert main(argv) == 0
    assert len(set(seen["maml"])) == 1
    assert seen["maml"] == seen["fomaml"]
    measured = read(tmp_path / "results")["step_seconds"]
    assert main(argv) == 0
    assert read(tmp_path / "results")["step_seconds"] == measured
