"""``metarl train``: the run folder, every algorithm, starting from a file, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl
from metarl.envs import registry
from metarl.envs.plane.point_mass import PointMass
from metarl.files.writing import read_npz, write_npz_atomic
from metarl.meta.evaluation.report import Report
from metarl.meta.export.settings import has_sb3_policy
from metarl.zoo.__main__ import main
from metarl.zoo.runs import callbacks
from metarl.zoo.runs.event_folders import MARK
from tests.meta.small import REINFORCED
from tests.zoo.conftest import TINY, Refused, contents, tiny


def test_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(("events.", "."))}
    assert names == {
        *("PointMass-v0", "PointMass-v0.safetensors", "best_model.safetensors", "checkpoint.safetensors"),
        *("evaluations.npz", "meta_evaluations.npz", "progress.csv"),
    }
    assert {path.name for path in (trained / "PointMass-v0").iterdir()} == {"config.yml", "args.yml", "command.txt"}
    config = yaml.safe_load((trained / "PointMass-v0" / "config.yml").read_text())
    assert config["n_timesteps"] == 400
    assert config["meta_batch_size"] == 2
    assert config["policy_kwargs"] == {"net_arch": [8], "activation_fn": "relu"}
    assert config["env_kwargs"] == {"horizon": 10}
    assert config["inner_lr"] == 0.1  # from the YAML


@pytest.mark.parametrize("n_episodes", [2, 20])
def test_the_recorded_full_run_stands_beside_what_it_can_be_paired_with(
    n_episodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-params", "meta_batch_size:1", f"n_episodes:{n_episodes}", "policy_kwargs.net_arch:[4]"]
    assert main(["train", "--algo", "maml", "-n", "1", "--eval-freq", "-1", "-f", str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    assert ("full run, recorded" in out) == (n_episodes == 20)
    assert "evaluate" in out.splitlines()[-4]


def test_evaluations(trained: Path) -> None:
    arrays = read_npz(trained / "evaluations.npz")
    meta = read_npz(trained / "meta_evaluations.npz")
    n = len(arrays["timesteps"])
    assert n == 3
    assert arrays["results"].shape == arrays["ep_lengths"].shape == (n, 3)
    assert np.all((arrays["ep_lengths"] > 0) & (arrays["ep_lengths"] <= 10))
    assert meta["pre"].shape == (n, 3)
    assert meta["post"].shape == (n, 3, 3)
    assert meta["task_goal"].shape == (3, 2)
    best = metarl.load(trained / "best_model.safetensors")
    assert best.num_timesteps == arrays["timesteps"][np.argmax(arrays["results"].mean(1))]
    # SB3's file is about the single inner step that the run trains with; the curve goes on to three.
    assert np.array_equal(meta["post"][:, 0], arrays["results"])
    report = metarl.load(trained / "PointMass-v0").evaluate("validation", 1, n_tasks=3)
    assert np.array_equal(report.returns[0, :, 1], arrays["results"][-1])
    assert [lengths[1] for lengths in report.meta["ep_lengths"]] == arrays["ep_lengths"][-1].tolist()
    with open(trained / "progress.csv", newline="") as file:
        row = [row for row in csv.DictReader(file) if row["eval/mean_reward"]][-1]
    assert row["eval/mean_reward"] == row["eval/return_after_1"]
    assert float(row["eval/return_after_3"]) == pytest.approx(meta["post"][-1, 2].mean(), abs=1e-9)


def test_what_is_told_the_task_is_judged_before_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = metarl.ALGORITHMS["oracle"].evaluate

    def shifted(self: Any, *args: Any, **kwargs: Any) -> Report:
        """Before adaptation the last checkpoint is best, after it the first, whatever so little training does."""
        report = evaluate(self, *args, **kwargs)
        returns = report.returns.copy()
        returns[..., 0] += 1e3 * self.num_timesteps
        returns[..., 1:] -= 1e3 * self.num_timesteps
        return dataclasses.replace(report, returns=returns)

    monkeypatch.setattr(metarl.ALGORITHMS["oracle"], "evaluate", shifted)
    words = [*TINY, "inner_lr:0.3", "--algo", "oracle", "-f", str(tmp_path)]
    assert main(words) == 0
    run = tmp_path / "oracle" / "PointMass-v0_1"
    arrays, meta = read_npz(run / "evaluations.npz"), read_npz(run / "meta_evaluations.npz")
    assert np.array_equal(arrays["results"], meta["pre"])
    best, after = (arrays["timesteps"][np.argmax(each)] for each in (meta["pre"].mean(1), meta["post"][:, 0].mean(1)))
    assert (best, after) == (arrays["timesteps"][-1], arrays["timesteps"][0])
    assert best != after
    assert metarl.load(run / "best_model").num_timesteps == best


def test_a_run_goes_on_with_as_many_inner_steps_as_it_was_evaluated_with(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    arrays = read_npz(run / "meta_evaluations.npz")
    short = {**arrays, "post": arrays["post"][:, :1], "env_steps": arrays["env_steps"][:, :2]}
    write_npz_atomic(run / "meta_evaluations.npz", **short)
    assert main(["train", "-i", str(run), "-n", "800", "--verbose", "0"]) == 0
    after = read_npz(run / "meta_evaluations.npz")
    assert len(after["timesteps"]) > len(arrays["timesteps"])
    assert after["post"].shape[1:] == (1, 3)
    assert np.array_equal(after["post"][:, 0], read_npz(run / "evaluations.npz")["results"])


def test_the_logs_agree(trained: Path) -> None:
    with open(trained / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    training = [row for row in rows if row["meta/post_adapt_rew"]]
    steps = [int(row["time/total_timesteps"]) for row in training]
    assert steps == sorted(set(steps))
    assert int(training[-1]["time/iterations"]) == len(training)
    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = events.Scalars("meta/post_adapt_rew")
    assert [event.step for event in scalars] == steps
    for event, row in zip(scalars, training, strict=True):
        assert event.value == pytest.approx(float(row["meta/post_adapt_rew"]), rel=1e-6)
    evaluated = list(read_npz(trained / "evaluations.npz")["timesteps"])
    assert [event.step for event in events.Scalars("eval/mean_reward")] == evaluated
    for card in ("eval/adaptation", "eval/adaptation_env_steps"):
        images = events.Images(card)
        assert [event.step for event in images] == evaluated
        assert {(image.width, image.height) for image in images} == {(400, 300)}
        assert all(len(image.encoded_image_string) > 5000 for image in images), "a blank picture"


@pytest.mark.parametrize("algo", REINFORCED)
def test_every_algorithm_has_a_file_and_trains(algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TINY, "--algo", algo, "-f", str(tmp_path), "-tb", str(tmp_path / "tb"), "--verbose", "1", "-n", "100"]
    assert main(argv) == 0
    run = tmp_path / algo / "PointMass-v0_1"
    model = metarl.load(run / "PointMass-v0.safetensors")
    assert model.name == algo
    assert list((tmp_path / "tb" / "PointMass-v0" / f"{algo.upper()}_1").glob("events.*"))
    assert not list(run.glob("events.*"))
    out = capsys.readouterr().out
    assert "inner steps" in out
    assert "95% intervals" in out
    for command in ("evaluate", "export") if has_sb3_policy(model) else ("evaluate",):
        assert f"python -m metarl.zoo {command} -i {run}" in out
    assert (f"python -m metarl.zoo train -i {run} -n " in out) is (model.num_timesteps > 0)


def test_a_file_starts_a_new_run(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    argv = [*TINY, "-i", str(trained / "PointMass-v0.safetensors"), "-f", str(tmp_path), "-n", "1"]
    argv += ["-params", "outer:sgd", "outer_kwargs.learning_rate:1e-12"]
    assert main(argv) == 0
    old, new = metarl.load(trained / "PointMass-v0"), metarl.load(tmp_path / "fomaml/PointMass-v0_1/PointMass-v0")
    assert new.n_iterations == 1
    for name, tensor in old.params.items():
        assert torch.allclose(tensor, new.params[name], atol=1e-9)
    assert contents(trained) == before


def test_eval_env_kwargs(tmp_path: Path) -> None:
    argv = [*TINY, "-f", str(tmp_path), "-n", "80", "--eval-env-kwargs", "horizon:4"]
    assert main(argv) == 0
    assert read_npz(tmp_path / "fomaml/PointMass-v0_1/evaluations.npz")["ep_lengths"].max() <= 4


def test_an_initialisation_that_is_not_trained_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--algo", "random", "--verbose", "1", "-f", str(tmp_path)]) == 0
    assert "random on PointMass-v0, no training, seed 0" in capsys.readouterr().out


def test_seed_is_drawn_and_recorded(tmp_path: Path) -> None:
    seeds = []
    for k in (1, 2):
        assert main([*TINY, "--algo", "random", "--seed", "-1", "-f", str(tmp_path)]) == 0
        run = tmp_path / "random" / f"PointMass-v0_{k}"
        seeds.append(yaml.safe_load((run / "PointMass-v0" / "args.yml").read_text())["seed"])
        assert metarl.load(run / "PointMass-v0").seed == seeds[-1] >= 0
    assert seeds[0] != seeds[1]


def test_a_seed_may_be_the_time_in_nanoseconds(tmp_path: Path) -> None:
    seed = 1_700_000_000_123_456_789
    argv = [*TINY, "--algo", "random", "--seed", str(seed), "-n", "1", "-f", str(tmp_path)]
    assert main(argv) == 0
    assert metarl.load(tmp_path / "random" / "PointMass-v0_1" / "PointMass-v0").seed == seed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--algo", "fomal"],
            "unknown algorithm 'fomal': did you mean 'fomaml'? (what a module of your own registers needs "
            "--gym-packages MODULE)",
        ),
        (["-params", "learner:my_vpg"], "unknown learner 'my_vpg': did you mean 'vpg'? (what a module of your own"),
        (["-params", "outer:my_sgd"], "unknown outer optimiser 'my_sgd': did you mean 'sgd'? (what a module of your"),
        (["--env", "PointMas-v0"], "unknown environment 'PointMas-v0': did you mean 'PointMass-v0'?"),
        (["-params", "iner_lr:0.1"], "unknown hyperparameter 'iner_lr': did you mean 'inner_lr'?"),
        (["-params", "inner_lr:fast"], "inner_lr='fast' is of the wrong type"),
        (["-params", "inner_lr:-1"], "inner_lr=-1.0 is not a number in"),
        (["-params", "inner_lr:.nan"], "inner_lr=nan is not a number in"),
        (["-params", "gamma:1.5"], "gamma"),
        (["-params", "n_inner_steps:2", "inner_lr:[0.1]"], "inner_lr has 1 rates for 2 inner steps"),
        (["-params", "meta_batch_size:0"], "meta_batch_size=0"),
        (["-params", "meta_batch_size:1e30"], "is not an integer in [1, 1e+06]"),
        (["-params", "n_episodes:1e30"], "is not an integer in [1, 1e+06]"),
        (["-params", "n_inner_steps:99999999999"], "is not an integer in [0, 100000]"),
        (["-params", "outer_kwargs.cg_steps:1e9"], "is not an integer in [1, 100000]"),
        (["-params", "learner:ppo", "learner_kwargs.n_epochs:1e9"], "n_epochs"),
        (
            ["--algo", "reptile", "-params", "learner:sb3_ppo", "learner_kwargs.n_epochs:100000000"],
            "n_epochs=100000000",
        ),
        (["-params", "outer_kwargs.max_k:1"], "did you mean 'max_kl'?"),
        (["-params", "outer:newton"], "newton"),
        (["-params", "seed:3"], "seed is no hyperparameter: use --seed"),
        (["-params", "policy:CnnPolicy"], "is not supported: CnnPolicy takes images"),
        (["--env-kwargs", "horizn:3"], "did you mean 'horizon'?"),
        (["--env-kwargs", "horizon:-3"], "horizon"),
        (["-params", "env_kwargs:3"], "env_kwargs=3 is of the wrong type"),
        (["--eval-env-kwargs", "horizn:3"], "did you mean 'horizon'?"),
        (["--eval-env-kwargs", "observe_distance:true"], "observation_space"),
        (["--device", "cuda"], "--device cuda is not available"),
        (["-i", "nowhere"], "there is no run folder or file nowhere"),
        (["-conf", "nowhere.yml"], "no such file: nowhere.yml\n"),
    ],
)
def test_bad_input_leaves_nothing_behind(words: list[str], message: str, tmp_path: Path, refused: Refused) -> None:
    assert message in refused(*tiny(*words), "-f", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_or_a_policy_that_does_not_fit(trained: Path, tmp_path: Path, refused: Refused) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK\x03\x04 nothing of ours")
    assert "not a metarl checkpoint" in refused(*TINY, "-i", bad, "-f", tmp_path / "logs")
    final = trained / "PointMass-v0.safetensors"
    line = refused(*tiny("-params", "policy_kwargs.net_arch:[9]"), "-i", final, "-f", tmp_path / "logs")
    assert "does not fit" in line
    assert not (tmp_path / "logs").exists()


def test_a_log_folder_that_cannot_be_made(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(*TINY, "-f", tmp_path / "file")


@pytest.mark.parametrize("size", [0, 1000], ids=["mark", "checkpoint"])
def test_a_full_disk_before_the_first_checkpoint_leaves_no_run_behind(
    size: int, tmp_path: Path, refused: Refused
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        line = refused(*TINY, "-f", tmp_path / "logs", "-tb", tmp_path / "tb")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in line
    assert ("checkpoint" if size else MARK) in line
    assert [*tmp_path.glob("logs/*/*"), *tmp_path.glob("tb/*/*")] == []


class Broken(PointMass):
    """Rewards become NaN in the third meta-iteration."""

    calls = 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        step = super().step(*args, **kwargs)
        type(self).calls += 1
        return step if self.calls <= 45 else step._replace(reward=np.full_like(step.reward, np.nan))


def test_nan_reward_keeps_the_last_checkpoint(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._REGISTRY, "Broken-v0", registry.FamilySpec("Broken-v0", Broken, {}))
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(callbacks, "SAVE_SPACING", 0.0)
    line = refused(*TINY, "--env", "Broken-v0", "--eval-freq", "-1", "-f", tmp_path)
    assert "meta-iteration" in line
    assert "task" in line
    checkpoint = tmp_path / "fomaml" / "Broken-v0_1" / "checkpoint.safetensors"
    assert str(checkpoint) in line
    assert metarl.load(checkpoint).n_iterations == 2


class Held(PointMass):
    """In the first task of a held-out split rewards are no numbers, or observations so large that actions are none."""

    split, what = "validation", "action"

    def step(self, tasks: Any, *args: Any, **kwargs: Any) -> Any:
        step = super().step(tasks, *args, **kwargs)
        bad = (tasks["goal"] == self.tasks(self.split, 1)["goal"]).all(-1)[:, None]
        if self.what == "reward":
            return step._replace(reward=np.where(bad, np.nan, step.reward))
        return step._replace(obs=np.where(bad[..., None], np.float32(3e38), step.obs))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_that_diverges_is_left_out(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._REGISTRY, "Held-v0", registry.FamilySpec("Held-v0", Held, {}))
    monkeypatch.setattr(Held, "split", split)
    words = ["--env", "Held-v0", "--verbose", "1" if split == "test" else "0", "--no-progress", "-f", str(tmp_path)]
    assert main([*TINY, *words]) == 0
    run = tmp_path / "fomaml" / "Held-v0_1"
    assert (run / "Held-v0.safetensors").is_file()
    assert (run / "meta_evaluations.npz").is_file() == (split == "test")
    steps = metarl.load(run / "Held-v0").num_timesteps
    said = f"no evaluation after {steps} env steps" if split == "validation" else "no returns on test tasks"
    expected = f"metarl: warning: {said}, adaptation diverged: non-finite action in Held-v0 task"
    assert expected in capsys.readouterr().err


def test_a_nan_reward_in_an_evaluation_stops_the_run(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._REGISTRY, "Held-v0", registry.FamilySpec("Held-v0", Held, {}))
    monkeypatch.setattr(Held, "what", "reward")
    assert "non-finite reward in Held-v0 task" in refused(*TINY, "--env", "Held-v0", "-f", tmp_path)
