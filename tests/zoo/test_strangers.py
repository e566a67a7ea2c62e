"""Run folders and records of a stranger: every command reads them or refuses them in one line, and changes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metarl.errors import CheckpointError
from metarl.files.writing import read_npz, write_npz_atomic
from metarl.zoo.__main__ import main
from metarl.zoo.commands.list import describe_run
from metarl.zoo.commands.plot import training_figure
from metarl.zoo.experiments.jobs import jobs, load_experiment
from metarl.zoo.experiments.measuring import measure
from metarl.zoo.experiments.record import merge, read_record
from metarl.zoo.experiments.testing import collect
from metarl.zoo.runs.curves import last_evaluation, read_curve, training_seconds
from metarl.zoo.runs.evaluations import read_meta, read_results
from metarl.zoo.runs.folder import TRAINED, open_run
from metarl.zoo.runs.held_out import read_reports
from tests.strangers import changed, damages, few, fixed, read
from tests.zoo.conftest import contents

NAME = "first-order-rl"


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that tests may write into."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("strangers") / trained.name))


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Any:
    """Give a file another content for a while, which nothing may change."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
        assert path.read_bytes() == content
    finally:
        path.write_bytes(before)


def resume(run: Path) -> None:
    """Read all that a run is gone on with; it is finished, so nothing is trained."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "-i", str(run), "-n", "1"])
    assert code in (0, 2)
    assert said.getvalue().count("\n") == (1 if code else 0)
    assert len(said.getvalue()) < 2000


def use(run: Path) -> None:
    """Read a run folder as each command does."""
    before = contents(run)
    resume(run)
    readers: list[Callable[[], Any]] = [
        lambda: describe_run(open_run(run)),
        lambda: training_seconds(open_run(run)),
        lambda: open_run(run).commands(),
        lambda: last_evaluation(open_run(run), "x"),
    ]
    for reader in readers:
        read(reader)
    assert {**contents(run), ".lock": b""} == {**before, ".lock": b""}


@few
@given(data=st.data())
def test_records_of_other_values(run: Path, data: st.DataObject) -> None:
    path = run / "PointMass-v0" / data.draw(st.sampled_from(["args.yml", "config.yml"]))
    document = data.draw(changed(yaml.safe_load(path.read_text())))
    with replaced(path, yaml.safe_dump(document, explicit_end=True).encode()):
        use(run)


ODD = [
    "!!int x",
    "0b_",
    "2001-13-45",
    "&a [*a]",
    ".nan",
    ".inf",
    "1e999",
    "9" * 5000,
    "[" * 1000,
    "\0",
    "? x",
    "{1: 2}",
]


@few
@given(name=st.sampled_from(["args.yml", "config.yml"]), line=st.integers(0, 10), value=st.sampled_from(ODD))
def test_records_of_odd_yaml(run: Path, name: str, line: int, value: str) -> None:
    path = run / "PointMass-v0" / name
    lines = path.read_text().splitlines(keepends=True)
    place = line % (len(lines) - 1)
    lines[place] = f"{lines[place].partition(':')[0]}: {value}\n"
    with replaced(path, "".join(lines).encode()):
        use(run)


@few
@given(data=st.data())
def test_run_folders_that_are_damaged(run: Path, data: st.DataObject) -> None:
    names = ["args.yml", "config.yml", "command.txt", "progress.csv", "evaluations.npz", "meta_evaluations.npz"]
    name = data.draw(st.sampled_from(names))
    path = run / "PointMass-v0" / name
    path = path if path.exists() else run / name
    with replaced(path, data.draw(damages)(path.read_bytes())):
        use(run)


CELLS = ["x", "nan", "inf", "-inf", "1e308", "", "\0", '"', " ", "9" * 400, "x" * 140_000, "\x85", "1,2,3", "\n"]


@few
@given(row=st.integers(0, 50), column=st.integers(0, 50), cell=st.sampled_from(CELLS))
def test_logs_of_other_cells(run: Path, row: int, column: int, cell: str) -> None:
    path = run / "progress.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    cells = rows[row % len(rows)]
    cells[column % len(cells)] = cell
    with replaced(path, ("\n".join(map(",".join, rows)) + "\n").encode()):
        read(lambda: read_curve(open_run(run), "time/iterations", "time/time_elapsed"))
        read(lambda: training_figure([open_run(run)], ["rollout/ep_rew_mean"], "time", 3))
        read(lambda: training_seconds(open_run(run)))


ARRAYS: list[Callable[[np.ndarray], Any]] = [
    lambda a: a.astype(str),
    lambda a: a.astype(complex),
    lambda a: a.reshape(-1)[0],
    lambda a: a[None],
    lambda a: a[:0],
    lambda a: a.T,
    lambda a: np.full(a.shape, np.nan),
    lambda a: np.full(a.shape, 1e308),
    lambda a: np.zeros((*a.shape, 0)),
]


@pytest.mark.parametrize("file", ["evaluations.npz", "meta_evaluations.npz"])
def test_evaluations_of_other_arrays(run: Path, file: str) -> None:
    path = run / file
    arrays = read_npz(path)
    reader = read_results if file == "evaluations.npz" else read_meta
    refused = 0
    for name, array in arrays.items():
        for change in [*ARRAYS, None]:
            other = {**arrays, name: None if change is None else change(array)}
            new = path.with_name("new.npz")
            write_npz_atomic(new, **{key: value for key, value in other.items() if value is not None})
            content = new.read_bytes()
            new.unlink()
            with replaced(path, content):
                refused += not read(lambda: reader(path))
                read(lambda: last_evaluation(open_run(run), "x"))
    assert refused > 0.7 * len(arrays) * len(ARRAYS)


def test_what_is_no_file_is_not_read(run: Path, tmp_path: Path) -> None:
    """Devices that never end, pipes that nobody writes to, and folders in the place of files."""
    folder = Path(shutil.copytree(run, tmp_path / run.name))
    records = ["PointMass-v0/config.yml", "PointMass-v0/command.txt", "progress.csv", "evaluations.npz"]
    for name in (*records, "meta_evaluations.npz", "checkpoint.safetensors"):
        path = folder / name
        whole = path.read_bytes()
        for make in (os.mkdir, os.mkfifo, lambda place: os.symlink("/dev/zero", place)):
            path.unlink()
            make(path)
            resume(folder)
            read(lambda: describe_run(open_run(folder)))
            read(lambda: read_curve(open_run(folder), "time/iterations", "time/iterations"))
            read(lambda: last_evaluation(open_run(folder), "x"))
            if path.is_dir():
                path.rmdir()
                path.touch()
        path.unlink()
        path.write_bytes(whole)


# -------------------------------------------------------------------------------------------------------------- records
@pytest.fixture(scope="module")
def evaluation() -> Any:
    """The record of an evaluation, of few tasks."""
    document = json.loads((TRAINED / "fomaml" / "PointMass-v0.json").read_text())
    report = document["reports"][0]
    report["returns"] = [report["returns"][0][:3]]
    report["tasks"] = {name: values[:3] for name, values in report["tasks"].items()}
    return document


@fixed
@given(data=st.data())
def test_evaluations_of_other_values(
    evaluation: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "evaluation.json"
    path.write_text(json.dumps(evaluation))
    assert read_reports(path)
    path.write_text(json.dumps(data.draw(changed(evaluation))))
    read(lambda: read_reports(path))


def test_a_record_of_no_reports_is_refused(evaluation: Any, tmp_path: Path) -> None:
    for reports in ([], None, {}, "many"):
        (tmp_path / "r.json").write_text(json.dumps({**evaluation, "reports": reports}))
        with pytest.raises(CheckpointError, match="it holds no reports"):
            read_reports(tmp_path / "r.json")


@few
@given(data=st.data())
def test_records_of_reproduce_of_other_values(
    evaluation: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    plan = load_experiment(NAME, "smoke")
    job = jobs(plan, ["PointMass-v0"], ["maml"], parts=["comparison"])[0]
    facts = {
        **{"env": job.entry.env, "algo": job.algo, "seed": job.seed, "cell": {}, "hyperparams": job.config()},
        **{"num_timesteps": {"last": 240, "best": 240}, "inner_lr": {"last": [0.1], "best": [0.1]}},
        **{"evaluation": {}, "training_seconds": 1.0, "rates": {}, "evaluated_at": None},
    }
    report = evaluation["reports"][0]
    report = {**report, "label": "maml, last", "meta": {**report["meta"], "num_timesteps": [240]}}
    curve = {"env": job.entry.env, "algo": "maml", "n_runs": 1}
    curve |= {name: [1.0, 2.0] for name in ("timesteps", "mean", "low", "high")}
    document = {
        **{"format": "metarl-reproduction", "version": 1, "experiment": NAME, "scale": "smoke", "commit": None},
        **{"runs": [facts], "reports": [report], "learning": [curve], "files": {"results.md": ["0"]}},
        **{
            "times": {"PointMass-v0": {"maml": {"outer": 1.0}}},
            "step_seconds": {"PointMass-v0": {"maml": [1.0], "fomaml": []}},
        },
    }
    folder = tmp_path_factory.mktemp("record")
    path = folder / "record.json"
    path.write_text(json.dumps(document))
    assert read_record(folder, plan).files
    part = data.draw(st.sampled_from(["", "runs", "reports", "learning", "times", "step_seconds"]))
    document = {**document, part: data.draw(changed(document[part]))} if part else data.draw(changed(document))
    path.write_text(json.dumps(document))

    def reader() -> None:
        found = read_record(folder, plan)
        merge(measure(plan, collect(plan, [*jobs(plan), *found.jobs], folder, 1), 1), found)

    read(reader)


# ---------------------------------------------------------------------------------------------------------- experiments
@few
@given(data=st.data())
def test_experiments_of_other_values(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    smoke = load_experiment(NAME, "smoke")
    entry = smoke.entries[0]
    scale = {"n_evaluations": 2, "evaluation": entry.evaluation, "rates": entry.rates}
    item = {key: getattr(entry, key) for key in ("env", "n_timesteps", "seeds", "episodes")}
    scale["entries"] = [{**item, "grid": {"inner_lr": [0.1]}}]
    document = {"algos": smoke.algos, "timed": smoke.timed, "report": smoke.settings, "scales": {"smoke": scale}}
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "own.yml").write_text(yaml.safe_dump(data.draw(changed(document))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metarl.zoo.experiments.EXPERIMENTS", folder)

        def reader() -> None:
            found = jobs(load_experiment("own", "smoke"))
            assert found[0].unavailable() or found[0].config()
            assert all(map(str, found))

        read(reader)
