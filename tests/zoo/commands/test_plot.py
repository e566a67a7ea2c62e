"""``metarl plot``: training curves, adaptation curves, axes and times."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np

import metarl
from metarl.zoo.__main__ import main
from metarl.zoo.commands.plot import running_mean, training_figure
from metarl.zoo.runs.curves import last_evaluation, read_curve, run_on, training_seconds
from metarl.zoo.runs.folder import open_run
from tests.zoo.conftest import TINY, Refused


def test_plots(logs: Path, tmp_path: Path, refused: Refused) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    for kind in ("training", "adaptation"):
        path = tmp_path / f"{kind}.svg"
        assert main(["plot", "-i", str(run), str(run), "--kind", kind, "-o", str(path)]) == 0
        assert b"<svg" in path.read_bytes()
    assert main(["plot", "-f", str(logs), "-x", "time", "-y", "eval/mean_reward", "-w", "2"]) == 0
    assert "x: for training curves only" in refused("plot", "-f", logs, "--kind", "adaptation", "-x", "time")
    assert (run / "training_1.png").read_bytes().startswith(b"\x89PNG")
    for axis in ("time/time_elapsed", "time/iterations", "time/total_timesteps"):
        curve = read_curve(open_run(run), axis, "eval/mean_reward")
        assert len(curve.x) == len(np.load(run / "evaluations.npz")["timesteps"])
        assert (np.diff(curve.x) > 0).all()
    assert "did you mean 'meta/adapt_gain'" in refused("plot", "-f", logs, "-y", "meta/adapt_gian")
    assert "use a name in .png" in refused("plot", "-f", logs, "-o", tmp_path / "x.bmp")
    (run / "progress.csv").write_text("")
    assert "holds no rows" in refused("plot", "-f", logs)


def test_the_intervals_of_a_plot_are_those_of_an_evaluation(trained: Path, tmp_path: Path) -> None:
    words = ["--env-kwargs", "goals:corners", "--n-eval-tasks", "8", "-n", "100", "--seed", "0", "-f", str(tmp_path)]
    assert main([*TINY, *words]) == 0
    run = tmp_path / "fomaml" / "PointMass-v0_1"
    expected = metarl.load(run / "PointMass-v0").evaluate("validation", n_tasks=8)
    report = last_evaluation(open_run(run), "a run")
    assert report.strata is not None
    assert report.strata.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    for ours, theirs in zip(report.bands(), expected.bands(), strict=True):
        assert np.array_equal(ours, theirs)
    assert last_evaluation(open_run(trained), "a run").strata is None


def test_the_time_of_a_run_that_was_gone_on_with_runs_on(trained: Path, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(trained, tmp_path / trained.name))
    with open(run.folder / "progress.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    clocked = [row for row in rows if row["time/time_elapsed"]]
    seconds = [3.0, 24.0, *np.arange(1.0, len(clocked) - 1)]  # stopped after 24 s
    for row, value in zip(clocked, seconds, strict=True):
        row["time/time_elapsed"] = str(value)
    with open(run.folder / "progress.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (line,) = training_figure([run], ["meta/post_adapt_rew"], "time", 1).axes[0].lines
    assert list(line.get_xdata()) == [3.0, 24.0, *np.arange(25.0, 23.0 + len(clocked))]
    assert training_seconds(run) == line.get_xdata()[-1]
    np.testing.assert_array_equal(run_on(np.array([3.0, 1.0, 1.0, 5.0, 2.0])), [3.0, 4.0, 4.0, 8.0, 10.0])


def test_the_axes_of_a_plot_say_what_they_show(trained: Path) -> None:
    item = open_run(trained)
    for keys, expected in (
        (["meta/pre_adapt_rew", "eval/return_after_1"], "return"),
        (["train/std"], "train/std"),
        (["train/std", "meta/post_adapt_rew"], "train/std, meta/post_adapt_rew"),
    ):
        (panel,) = training_figure([item], keys, "steps", 1).axes
        assert panel.get_ylabel() == expected
        assert panel.get_xlabel() == "env steps, support and query together"


def test_a_run_that_logged_evaluations_only_says_so(tmp_path: Path, refused: Refused) -> None:
    few = ["-n", "160", "--log-interval", "100", "--n-eval-tasks", "2", "-f", str(tmp_path)]
    assert main([*TINY[:1], "--algo", "fomaml", *TINY[1:], *few]) == 0
    error = refused("plot", "-f", tmp_path)
    assert "meta/pre_adapt_rew: no meta-iteration was logged" in error
    assert "--log-interval" in error
    assert "unknown column" in refused("plot", "-f", tmp_path, "-y", "eval/mean_rewar")
    assert main(["plot", "-f", str(tmp_path), "-y", "eval/mean_reward"]) == 0


def test_running_mean() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert running_mean(values, 1) is values
    assert running_mean(values, 9).tolist() == [1.0, 2.0, 3.0, 4.0]
