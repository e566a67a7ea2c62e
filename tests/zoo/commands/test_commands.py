"""evaluate, export, plot and list, on a tiny run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl.agents.learners.registry import LEARNERS
from metarl.zoo.__main__ import main
from metarl.zoo.commands.plot import running_mean, training_figure
from metarl.zoo.runs.curves import last_evaluation, read_curve, run_on, training_seconds
from metarl.zoo.runs.folder import open_run
from tests.processes import COMMAND, run_program
from tests.zoo.conftest import TINY, Refused, contents, tiny

QUICK = ["--n-eval-tasks", "3", "--n-inner-steps", "2"]


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the log folder that may be written into."""
    shutil.copytree(trained.parents[1], tmp_path / "logs")
    return tmp_path / "logs"


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


def test_an_export_that_cannot_be_written_collects_nothing(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    assert main(["export", "-i", str(run), "-o", str(run / "progress.csv" / "x" / "model.zip")]) == 2
    said = capsys.readouterr()
    assert "progress.csv" in said.err
    assert "Collecting" not in said.out


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
    assert "the runs adapt with n_episodes 2 and 3: compare them at the same --episodes N" in refused(*argv)
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


def test_the_export_opens_without_metarl(logs: Path, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "plain.zip"
    argv = ["export", "-f", str(logs), "--to", "ppo", "-o", str(path)]
    assert main(argv) == 0
    assert path.with_suffix(".json").is_file()
    code = (
        "import sys; sys.modules['metarl'] = None\n"
        "from stable_baselines3 import PPO\n"
        f"print(PPO.load({str(path)!r}).predict([0.1, 0.2], deterministic=True)[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    model = metarl.load(logs / "fomaml" / "PointMass-v0_1" / "PointMass-v0")
    expected = model.predict(np.array([0.1, 0.2], dtype=np.float32), deterministic=True)[0]
    assert json.loads(done.stdout) == pytest.approx(expected.tolist(), abs=1e-6)
    before = contents(tmp_path)
    assert "exists already" in refused(*argv)
    assert "outside the task space" in refused(*argv, "--overwrite", "--task", "goal:[9,9]")
    assert "did you mean 'goal'" in refused(*argv, "--overwrite", "--task", "gol:[0,0]")
    assert contents(tmp_path) == before
    assert main([*argv, "--overwrite", "--task", "goal:[0.1,0.2]"]) == 0
    path.unlink()
    assert "plain.json exists already" in refused(*argv)


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


def test_nothing_is_overwritten_unasked(logs: Path, tmp_path: Path, refused: Refused) -> None:
    record, other = tmp_path / "record.json", tmp_path / "other.svg"
    run = logs / "fomaml" / "PointMass-v0_1"
    commands = [["evaluate", "-i", run, *QUICK, "-o", record, "--figure", other], ["plot", "-i", run, "-o", other]]
    for words in commands:
        argv = [str(word) for word in words]
        other.write_text("mine")
        assert "other.svg exists already: choose another name, or overwrite it with --overwrite" in refused(*argv)
        assert not record.exists()
        assert main([*argv, "--overwrite"]) == 0
        assert b"<svg" in other.read_bytes()
        record.unlink(missing_ok=True)
    record.write_text("mine")
    assert "record.json exists already" in refused("evaluate", "-i", run, *QUICK, "-o", record)
    (tmp_path / "folder.png").mkdir()
    free = tmp_path / "free.json"
    assert "is a folder" in refused("evaluate", "-i", run, *QUICK, "-o", free, "--figure", tmp_path / "folder.png")
    assert "use a name in .json" in refused("evaluate", "-i", run, *QUICK, "-o", tmp_path / "record.png")
    below_a_file = refused("evaluate", "-i", run, *QUICK, "-o", record / "below" / "free.json")
    assert f"{record} is a file, not a folder" in below_a_file
    assert record.read_text() == "mine"
    # a figure that nobody asked to replace is not the figure of the next record
    (run / "evaluations").mkdir()
    (run / "evaluations" / "test_1.png").write_text("mine")
    assert main(["evaluate", "-i", str(run), *QUICK]) == 0
    assert (run / "evaluations" / "test_1.png").read_text() == "mine"
    assert (run / "evaluations" / "test_2.json").is_file()


def test_running_mean() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert running_mean(values, 1) is values
    assert running_mean(values, 9).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_list_without_docstrings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``python -OO`` has it: nothing is said rather than the words of a class that ours inherit from."""
    for cls in metarl.ALGORITHMS.values():
        monkeypatch.setattr(cls, "__doc__", None)
    assert main(["list", "algos"]) == 0
    assert "elper" not in capsys.readouterr().out


def test_list(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "fomaml" / "PointMass-v0_1" / "checkpoint.safetensors").write_bytes(b"short")
    assert main(["list", "-f", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "``" not in out
    for word in (*metarl.ALGORITHMS, *LEARNERS, *metarl.family_ids(), "goal [-0.5, 0.5]", "damaged"):
        assert word in out
    (logs / "none").mkdir()
    assert main(["list", "runs", "-f", str(logs / "none")]) == 0
    assert "No runs under" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--algo", "mml"], "did you mean 'maml'?"),
        (["evaluate", "--env", "AntVal-v0"], "did you mean 'AntVel-v0'?"),
        (["evaluate", "--exp-id", "7"], "numbers of PointMass-v0: 1"),
        (["evaluate", "--split", "tset"], "unknown split 'tset'"),
        (["evaluate", "--env-kwargs", "horizn:3"], "did you mean 'horizon'?"),
        (["evaluate", "--env-kwargs", "observe_distance:true"], "observation_space"),
        (["evaluate", "--n-inner-steps", "-1"], "--n-inner-steps: -1 is not 0 or a positive whole number"),
        (["evaluate", "--inner-lr", "0.1", "-1"], "inner_lr=-1.0 is not a number in"),
        (["evaluate", "--inner-lr", "0.1", "-1e-3"], "inner_lr=-0.001 is not a number in"),
        (["evaluate", "--inner-lr", "0.1", "x"], "argument --inner-lr: invalid float value: 'x'"),
        (["evaluate", "--inner-lr", *4 * ["0.1"]], "inner_lr has 4 rates for 3 inner steps"),
        (
            ["evaluate", "--inner-lr", "0.1", "--inner-lr-rule", "half_after_first"],
            "not allowed with argument --inner-lr",
        ),
        (["evaluate", "--inner-lr-rule", "half"], "inner_lr_rule='half' is unknown: use constant or half_after_first"),
        (["evaluate", "--figure", "x.bmp"], "use a name in .png"),
        (["evaluate", "--gym-packages", "no_such"], "--gym-packages no_such: No module named 'no_such' (looked for in"),
        (["evaluate", "--gym-packages", "a-b"], "--gym-packages a-b: not the name of a module"),
        (["export", "--to", "sac"], "an initialisation that was learnt around 'vpg' starts ppo, a2c, trpo, no sac"),
        (["export", "--to", "pppo"], "unknown export format 'pppo': did you mean 'ppo'"),
        (["export", "--algo", "oracle"], "there is no run of oracle on PointMass-v0"),
        (["export", "-o", "."], "cannot write the export as '.': use a name in .zip"),
        (["export", "-o", "/"], "cannot write the export as '/': use a name in .zip"),
        (["export", "-o", str(Path(__file__).parent)], "is a folder: use a name in .zip"),
        (["plot", "--exp-id", "3"], "numbers of PointMass-v0: 1"),
        (["plot", "-i", __file__], "test_commands.py is a file: curves are drawn of run folders"),
    ],
)
def test_bad_input_writes_nothing(words: list[str], message: str, logs: Path, refused: Refused) -> None:
    before = contents(logs)
    assert message in refused(*words, "-f", logs)
    assert contents(logs) == before


def test_damaged_files(logs: Path, tmp_path: Path, refused: Refused) -> None:
    run = logs / "fomaml" / "PointMass-v0_1"
    final = run / "PointMass-v0.safetensors"
    whole = final.read_bytes()
    other = tmp_path / "other.zip"
    other.write_bytes(b"PK\x03\x04")
    assert "is a zip archive" in refused("evaluate", "-i", other)
    assert "there is no run folder or file" in refused("evaluate", "-i", tmp_path / "x" / "y")
    assert "there is no run folder or file" in refused("evaluate", "-i", run / "y")
    assert "did you mean" in refused("evaluate", "-i", run.with_name("PointMas-v0_1"))
    for data in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        final.write_bytes(data)
        for command in ("evaluate", "export"):
            assert "damaged" in refused(command, "-f", logs)
    args = run / "PointMass-v0" / "args.yml"
    args.write_text(args.read_text().replace("format: 2", "format: 9"))
    for command in ("evaluate", "export", "plot"):
        assert "has format 9" in refused(command, "-f", logs)


LINE = """
import numpy as np
from gymnasium import spaces
from metarl.envs import Family, Step, register_family


class Line(Family):
    def __init__(self):
        self.task_space = spaces.Dict(target=spaces.Box(-1, 1, (), np.float32))
        self.observation_space = spaces.Box(-10, 10, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.horizon = 10

    def reset(self, tasks, rngs, n_envs):
        x = np.zeros((len(tasks["target"]), n_envs, 1), np.float32)
        return {"x": x}, x

    def step(self, tasks, state, actions, rngs, active=None):
        x = (state["x"] + 0.1 * np.clip(actions, -1, 1)).astype(np.float32)
        reward = -np.abs(x[..., 0] - tasks["target"][:, None]).astype(np.float64)
        return Step({"x": x}, x, reward, np.zeros(reward.shape, bool), {"distance": reward})


register_family("Line-v0", Line)
"""


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    """In processes of their own, which know the family by ``--gym-packages`` only."""
    (tmp_path / "my_line.py").write_text(LINE)

    def metarl_zoo(*words: str) -> subprocess.CompletedProcess[str]:
        return run_program(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {COMMAND}", *words)

    package, run = ["--gym-packages", "my_line"], str(tmp_path / "fomaml" / "Line-v0_1")
    small = ["-n", "300", "--num-threads", "1", "--n-eval-tasks", "2", "-params", "meta_batch_size:2", "n_episodes:2"]
    done = metarl_zoo("train", "--env", "Line-v0", "-f", str(tmp_path), *small, *package)
    assert done.returncode == 0, done.stderr
    assert f"evaluate -i {run} --gym-packages my_line" in done.stdout
    done = metarl_zoo("train", "-i", run, *package, "-n", "400")
    assert done.returncode == 0, done.stderr
    assert "400 env steps" in done.stdout
    for words in (["evaluate", "-i", run], ["evaluate", "--env", "Line-v0", "-f", str(tmp_path)]):
        refused = metarl_zoo(*words)  # what a run folder names is said, not imported
        assert refused.returncode == 2
        assert "trained with --gym-packages my_line: add that" in refused.stderr
