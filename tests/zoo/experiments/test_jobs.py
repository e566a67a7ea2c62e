"""The jobs of an experiment, and which runs are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarl.zoo.__main__ import main
from metarl.zoo.experiments import names
from metarl.zoo.experiments.jobs import State, find, jobs, load_experiment, scales
from tests.zoo.experiments.smoke import NAME, ONE


@pytest.mark.parametrize("name", names())
def test_every_scale_can_be_run(name: str) -> None:
    assert scales(name) == ["smoke", "laptop", "paper"]
    for scale in scales(name):
        experiment = load_experiment(name, scale)
        planned = jobs(experiment)
        assert len({str(job) for job in planned}) == len(planned)
        for entry in experiment.entries:
            assert set(entry.algos) <= set(experiment.algos)
        for job in planned:
            if not job.unavailable():
                assert job.config()["n_timesteps"] == job.entry.n_timesteps


def test_the_experiments_of_the_paper_on_first_order() -> None:
    for scale in scales(NAME):
        experiment = load_experiment(NAME, scale)
        envs = {job.entry.env for job in jobs(experiment)}
        assert envs == {"PointMass-v0", "HalfCheetahVel-v0", "AntDir-v0", "AntVel-v0"}
        for entry in experiment.entries:
            assert ("meta_batch_size" in entry.grid) == (entry.part == "ablation")
    laptop = {(entry.env, entry.part): list(entry.seeds) for entry in load_experiment(NAME, "laptop").entries}
    assert laptop["PointMass-v0", "comparison"] == laptop["HalfCheetahVel-v0", "comparison"] == [0, 1, 2]
    assert laptop["AntDir-v0", "comparison"] == laptop["AntVel-v0", "comparison"] == [0]


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
    assert found.state is State.FINISHED
    assert found.run is not None
    assert found.run.number == 3
    assert main([*words, "--verbose", "0"]) == 0  # a second one adds nothing
    again = find(job, tmp_path).run
    assert again is not None
    assert again.number == 3
