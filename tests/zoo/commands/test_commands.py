"""What holds for several commands: bad input, damaged files, files that are kept, and families of one's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from metarl.zoo.__main__ import main
from tests.processes import COMMAND, run_program
from tests.zoo.commands.conftest import QUICK
from tests.zoo.conftest import Refused, contents


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
        (["evaluate", "--gym-packages", "no_such.part"], "No module named 'no_such' (looked for in"),
        (["evaluate", "--gym-packages", "a-b"], "--gym-packages a-b: not the name of a module, such as my_families"),
        (["evaluate", "--gym-packages", "kit.py"], "kit.py: not the name of a module, such as kit, without .py"),
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


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("import no_such_kit.part", "No module named 'no_such_kit'"),
        ("from metarl.envs import Familly", "cannot import name 'Familly' from 'metarl.envs'"),
        ("import inner_kit", "No module named 'deeper'"),
    ],
)
def test_a_module_that_imports_what_is_missing(
    code: str, said: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kit.py").write_text(f"import os\n{code}\n")
    (tmp_path / "inner_kit.py").write_text("import deeper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused("list", "--gym-packages", "broken_kit")
    assert f"--gym-packages broken_kit is there, and an import inside it failed: {said}" in message
    place = ("inner_kit.py", 1) if "inner" in code else ("broken_kit.py", 2)
    assert message.endswith(f"({tmp_path / place[0]}, line {place[1]})\n")
    assert "looked for" not in message


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
