"""Learning curves of runs, and meta-optimisation steps that are timed in turn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from metarl.envs.score import SCORES
from metarl.files.writing import write_npz_atomic
from metarl.meta.algorithms.maml import MAML
from metarl.meta.evaluation.statistics import Bands
from metarl.zoo.__main__ import main
from metarl.zoo.experiments.jobs import find, jobs, load_experiment
from metarl.zoo.experiments.measuring import Learning, learning, learning_figure
from metarl.zoo.experiments.testing import Trained, evaluate_run
from metarl.zoo.runs.folder import open_run
from tests.zoo.experiments.smoke import NAME, SMOKE, read


def test_learning_curves_of_runs_with_other_evaluations_meet_at_equal_env_steps(smoke: Path, tmp_path: Path) -> None:
    experiment = load_experiment(NAME, "smoke")
    runs = []
    for job in jobs(experiment, ["PointMass-v0"], ["maml"], parts=["comparison"]):
        found = find(job, smoke).run
        assert found is not None
        shutil.copytree(found.folder, tmp_path / found.folder.name)
        run = open_run(tmp_path / found.folder.name)
        runs.append(Trained(job, run, {"last": evaluate_run(experiment, job, run, 1).reports["last"]}))
    for run, points in ((runs[0].run, [100, 210]), (runs[1].run, [49, 103, 151, 199, 260])):
        path = run.folder / "meta_evaluations.npz"
        post = np.broadcast_to(np.array(points)[:, None, None], (len(points), 1, 2))
        env_steps = np.zeros((len(points), 2))
        write_npz_atomic(path, timesteps=np.array(points), pre=-post[:, 0], post=post, env_steps=env_steps)
    (curve,) = learning(runs)
    assert curve.timesteps.tolist() == [101.5, 204.5]
    assert curve.bands.mean.tolist() == [101.5, 204.5]  # of 100 and 103, 210 and 199
    assert curve.n_runs == 2


def test_errors_are_drawn_as_they_are_called() -> None:
    values = -np.array([4.0, 1.0])
    curve = Learning("maml", np.array([0.0, 100.0]), Bands(values, values - 0.5, values + 0.5), 1)
    (panel,) = learning_figure({"Sinusoid-v0": [curve]}, ["maml"], {"Sinusoid-v0": SCORES["squared_error"]}).axes
    assert panel.lines[0].get_ydata().tolist() == [4.0, 1.0]
    assert panel.get_ylabel().startswith("mean squared error, lower is better")
    assert panel.get_xlabel().startswith("examples, ")
    (panel,) = learning_figure({"PointMass-v0": [curve]}, ["maml"]).axes
    assert panel.lines[0].get_ydata().tolist() == [-4.0, -1.0]
    assert panel.get_ylabel().startswith("return")
    both = {"Sinusoid-v0": [curve], "PointMass-v0": [curve]}
    panels = learning_figure(both, ["maml"], {"Sinusoid-v0": SCORES["squared_error"]}).axes
    assert [panel.get_xlabel().split(",")[0] for panel in panels] == ["examples", "env steps"]
    assert panels[0].get_ylabel().startswith("return")
    assert panels[0].lines[0].get_ydata().tolist() == [-4.0, -1.0]


def test_both_orders_are_timed_on_the_same_batches(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for algo in ("maml", "fomaml"):
        shutil.copytree(smoke / algo / "PointMass-v0_1", tmp_path / algo / "PointMass-v0_1")
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
