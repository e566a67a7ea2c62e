"""The parser: one line and exit code 2 for everything it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metarl.zoo import cli
from metarl.zoo.__main__ import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["--algo", "maml"], "no command given: known: train, evaluate, export, plot, list"),
        (["train", "--ago", "maml"], "unknown flag of train '--ago': did you mean '--algo'?"),
        (["train", "--n-timestep=3"], "unknown flag of train '--n-timestep': did you mean '--n-timesteps'?"),
        (["evaluate", "--xyzzy"], "unknown flag of evaluate '--xyzzy': see `metarl evaluate --help`"),
        (["export", "zip"], "export does not know what to do with 'zip': see `metarl export --help`"),
        (["train", "-n", "many"], "argument -n/--n-timesteps: 'many' is not a number"),
        (["train", "-n", "0"], "argument -n/--n-timesteps: 0 is not a positive whole number"),
        (["train", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["train", "-params", "x"], "--hyperparams takes k:v pairs, such as x:1, not 'x'"),
        (["train", "--env"], "argument --env: expected one argument"),
        (["evaluate", "--load-best", "--load-checkpoint"], "not allowed with argument --load-best"),
        (["plot", "--kind", "pie"], "invalid choice: 'pie'"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("metarl: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "metarl" in captured.out
    assert captured.err == ""


def test_numbers_and_pairs() -> None:
    args = cli.parse(
        ["train", "-n", "1e6", "-params", "inner_lr:0.2", "outer_kwargs.max_kl:1e-2", "-params", "gamma:1"]
    )
    assert args is not None
    assert args.n_timesteps == 1_000_000
    assert args.hyperparams == {"inner_lr": 0.2, "outer_kwargs.max_kl": 0.01, "gamma": 1}
    assert args.given == {"n_timesteps", "hyperparams"}
    args = cli.parse(["train", "-n", "3_000", "--seed=-3"])
    assert args is not None
    assert (args.n_timesteps, args.seed) == (3000, -3)
    assert args.given == {"n_timesteps", "seed"}


@pytest.mark.parametrize("command", [["-m", "metarl.zoo", "train"], ["-m", "metarl.zoo.train"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import runpy, sys; sys.argv = {argv!r}\n"
        "try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {{'torch', 'stable_baselines3', 'matplotlib', 'pandas', 'rich'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    argv = ["metarl", *command[2:], "--help"]
    done = subprocess.run(
        [sys.executable, "-c", code.format(argv=argv, module=command[1])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--hyperparams" in done.stdout
