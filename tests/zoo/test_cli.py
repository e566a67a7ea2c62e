"""The parser: one line and exit code 2 for everything it refuses."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from metarl.envs.score import SCORES
from metarl.errors import MetaRLWarning
from metarl.zoo import cli
from metarl.zoo.__main__ import _show_warnings_in_one_line, main
from metarl.zoo.console import CountBars, Reporter


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (
            ["--algo", "maml"],
            "no command given: known: train, evaluate, export, finetune, record, plot, reproduce",
        ),
        (["train", "--ago", "maml"], "unknown flag of train '--ago': did you mean '--algo'?"),
        (["train", "--n-timestep=3"], "unknown flag of train '--n-timestep': did you mean '--n-timesteps'?"),
        (["train", "--inner-lr", "1"], "'--inner-lr': it is a hyperparameter: -params inner_lr:VALUE"),
        (["evaluate", "--xyzzy"], "unknown flag of evaluate '--xyzzy': see `metarl evaluate --help`"),
        (["export", "zip"], "export does not know what to do with 'zip': see `metarl export --help`"),
        (["train", "-n", "many"], "argument -n/--n-timesteps: 'many' is not a number"),
        (["train", "-n", "0"], "argument -n/--n-timesteps: 0 is not a positive whole number"),
        (["train", "--eval-episodes", "1e30"], "argument --eval-episodes: 1e30 is more than 1e+12"),
        (["plot", "-w", str(10**30)], f"argument -w/--window: {10**30} is more than 1e+12"),
        (["plot", "-w", "9" * 5000], "(5,000 characters) is not a positive whole number"),
        (["plot", "--kind", "pie" * 5000], "(15,074 characters)"),
        (["train", "-n", "1e400"], "argument -n/--n-timesteps: 1e400 is not a positive whole number"),
        (["train", "-n", "²"], "argument -n/--n-timesteps: '²' is not a number"),
        (["train", "--seed", "1.5"], "argument --seed: 1.5 is not a whole number"),
        (["train", "--seed", str(10**20)], "argument --seed: 100000000000000000000 is more than 1.84467e+19"),
        (["finetune", "--seed", "-3"], "argument --seed: -3 is not a seed: 0 or more"),
        (["evaluate", "--n-inner-steps", "99999999999"], "argument --n-inner-steps: 99999999999 is more than 100000"),
        (["train", "-i", "a\0b"], r"'a\x00b' holds a NUL character"),
        (["train", "-f", "l\udcf6gs"], r"'l\udcf6gs' is not UTF-8 text"),
        (["train", "--env-kwargs", ""], "--env-kwargs takes k:v pairs, such as name:1, not ''"),
        (["train", "--env-kwargs", "dict(horizon=10)"], "such as horizon:10, not 'dict(horizon=10)'"),
        (["train", "--env-kwargs", "{'horizon': 10}"], """such as horizon:10, not "{'horizon': 10}\""""),
        (["train", "-f", __file__], f"argument -f/--log-folder: {__file__} is a file, not a folder"),
        (["list", "-f", f"{__file__}/x"], f"argument -f/--log-folder: {__file__} is a file, not a folder"),
        (["train", "--seed", "x"], "argument --seed: 'x' is not a number"),
        (["train", "-params", "x"], "--hyperparams takes k:v pairs, such as x:1, not 'x'"),
        (
            ["train", "-params", "inner_lr=0.3"],
            "--hyperparams takes k:v pairs, such as inner_lr:0.3, not 'inner_lr=0.3'",
        ),
        (
            ["train", "-params", "n_inner_steps:3", "-params", "n_inner_steps:4"],
            "--hyperparams sets n_inner_steps twice, 'n_inner_steps:3' and 'n_inner_steps:4': leave one out",
        ),
        (["train", "--env-kwargs", "horizon:3", "horizon:4"], "--env-kwargs sets horizon twice, 'horizon:3' and"),
        (["export", "--task", "goal:[0, 1]", "goal:[1, 0]"], "--task sets goal twice, 'goal:[0, 1]' and"),
        (["train", "--env"], "argument --env: expected one argument"),
        (["evaluate", "--load-best", "--load-checkpoint"], "not allowed with argument --load-best"),
        (["evaluate", "--load-best", "--load-last-checkpoint"], "not allowed with argument --load-best"),
        (["plot", "--kind", "pie"], "invalid choice: 'pie'"),
        (["train", "--num-threads", "0"], "argument --num-threads: 0 is not a positive whole number"),
        (["evaluate", "--num-threads", "2000"], "argument --num-threads: 2000 is more than 1024"),
        (["train", "--verbose", "3"], "argument --verbose: invalid choice: 3"),
        (["train", "--eval-freq", "-9"], "argument --eval-freq: -9 is not a positive whole number"),
        (["train", "--eval-freq", "-1.5e2"], "argument --eval-freq: -1.5e2 is not a positive whole number"),
        (["train", "-n", "-1e6"], "argument -n/--n-timesteps: -1e6 is not a positive whole number"),
        (["train", "--save-freq", "0"], "argument --save-freq: 0 is not a positive whole number"),
        (["evaluate", "--n-eval-tasks", "1e6"], "argument --n-eval-tasks: 1e6 is more than 100000"),
        (["train", "-params", "n_episodes:5", "n_transitions:9"], "n_episodes and n_transitions both say"),
        (["evaluate", "-i", "run", "--algo", "maml"], "--algo cannot be given with -i"),
        (["export", "-i", "run", "--env", "x"], "--env cannot be given with -i"),
        (["plot", "-i", "run", "--exp-id", "2"], "--exp-id cannot be given with -i"),
        (
            ["evaluate", "--algo", "fomaml", "-f", str(Path(__file__).parent), "--load-best"],
            "--load-best chooses among the models of a",
        ),
        (["plot", "--kind", "adaptation", "-w", "3"], "window: for training curves only"),
        (["train", "--algo", ""], "argument --algo: it is empty"),
        (["evaluate", "--env", ""], "argument --env: it is empty"),
        (["export", "-o", ""], "argument -o/--output: it is empty"),
        (["plot", "--output="], "argument -o/--output: it is empty"),
        (["finetune", "--figure", ""], "argument --figure: it is empty"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("metarl: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_terminal_of_ascii_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    (tmp_path / "Läufe").mkdir()
    assert main(["list", "runs", "-f", str(tmp_path / "Läufe")]) == 0
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"No runs under ")


def test_paths_of_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``~`` after ``=``, which shells leave alone; links to nowhere and folders that are not there; nothing is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs2").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    args = cli.parse(["train", "-f=~/x", "--trained-agent=~/x", "-conf=~/y", "-tb=~/tb"])
    assert args is not None
    paths = (args.log_folder, args.trained_agent, args.conf_file, args.tensorboard_log)
    assert paths == tuple(str(tmp_path / name) for name in ("x", "x", "y", "tb"))
    args = cli.parse(["plot", "-o=~/a.png", "-f=~/logs2"])
    assert args is not None
    assert (args.output, args.log_folder) == (str(tmp_path / "a.png"), str(tmp_path / "logs2"))
    for command in ("evaluate", "export", "finetune", "plot", "list"):
        assert main([command, "-f", "logs1"]) == 2
        assert "there is no folder logs1: did you mean logs2?" in capsys.readouterr().err
    assert main(["reproduce", "first-order-rl", "--scale", "smoke", "--no-train", "-f", "logs1"]) == 2
    assert "there is no folder logs1: did you mean logs2?" in capsys.readouterr().err
    for words in ("train -f link", "train -i link", "train -tb link/tb", "evaluate -o link/x.json", "plot -i link"):
        assert main(words.split()) == 2
        assert "link is a link to nowhere, which is not there" in capsys.readouterr().err
    for words in ("plot -i logs1", "evaluate -i logs1", "train -i logs1"):
        assert main(words.split()) == 2
        assert "there is no run folder or file logs1: did you mean logs2?" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "logs2"]


def test_a_working_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "metarl: error: the working folder is not there any more: change to another one\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux only")
def test_a_working_folder_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = os.path.join(os.fsencode(tmp_path), b"l\xf6gs")
    os.mkdir(place)
    monkeypatch.chdir(os.fsdecode(place))
    assert main(["train", "-n", "10"]) == 2
    assert "/l\\udcf6gs/logs' is not UTF-8 text" in capsys.readouterr().err
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("8 GiB"), True),
        (RuntimeError("can't allocate memory: 8 GiB"), True),
        (ValueError("Maximum allowed dimension exceeded"), True),
        (RuntimeError("a bug"), False),
        (ValueError("a bug"), False),
    ],
)
def test_out_of_memory_is_one_line(
    error: Exception, expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(args: object) -> int:
        raise error

    monkeypatch.setattr("metarl.zoo.commands.list.run", fails)
    if not expected:
        with pytest.raises(type(error), match="a bug"):
            main(["list"])
        return
    assert main(["list"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("metarl: error: out of memory: use a smaller meta_batch_size")
    assert line.count("\n") == 1


def test_the_progress_bar_shows_the_time_left_in_80_columns() -> None:
    reporter = Reporter(20_000_000, 0, bar=True, lines=False)
    assert reporter._progress is not None
    reporter.writer.write({"meta/pre_adapt_rew": -1234.5, "meta/post_adapt_rew": -1034.5}, {})
    clock = iter(range(100, 10_000, 100))
    reporter._progress.get_time = lambda: float(next(clock))
    reporter._task = reporter._progress.add_task("", total=20_000_000, rate="", returns="")
    for i in (1, 2, 3):
        reporter.update(i * 1_000_000, 40 * i)
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    screen.print(reporter._progress.get_renderable())
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"iteration 120 .* 3,000,000/20,000,000 [\d,]+/s \d+:\d\d:\d\d ", shown), shown


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_bar_in_a_narrow_terminal_cuts_no_number(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    reporter, bars = Reporter(20_000_000, 0, bar=True, lines=False), CountBars("tasks")
    assert reporter._progress is not None
    reporter._task = reporter._progress.add_task("", total=20_000_000, rate="", returns="")
    reporter.update(3_000_000, 120)
    bars.update("an algorithm of a long name", 123, 2_000)
    for progress, number in ((reporter._progress, "15%"), (bars._progress, " 123/2000")):
        screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        screen.print(progress.get_renderable())
        shown = screen.file.getvalue()  # type: ignore[attr-defined]
        assert number in shown
        assert "…" not in shown


def test_bars_of_several_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.zoo.console.is_terminal", lambda: True)
    bars = CountBars("tasks")
    for label, done in (("first", 2), ("second", 1)):
        bars.update(label, done, 2)
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    screen.print(bars._progress.get_renderable())
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"first .* 2/2 tasks \d:.*\nsecond .* 1/2 tasks", shown), shown


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


def test_help_says_defaults_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        main([name, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for flag in re.split(r" (?=--?[a-z])", text):
            assert flag.count("(default") <= 1, flag
        assert "%(" not in text
    main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "inner steps to adapt for (default: 3)" in text
    assert "tasks (default: 40)" in text


def test_lines_of_progress_tell_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(30, 0, bar=False, lines=True) as reporter:
        for iteration in (1, 2, 3):
            if iteration != 2:
                reporter.writer.write({"meta/pre_adapt_rew": iteration, "meta/post_adapt_rew": 9.0}, {})
            reporter.update(10 * iteration, iteration)
    lines = capsys.readouterr().out.splitlines()
    assert ["return" in line for line in lines] == [True, False, True]
    assert "1.00 → 9.00" in lines[0]
    assert "3.00 → 9.00" in lines[2]


def test_lines_and_bars_show_an_error_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    score, returns = SCORES["squared_error"], {"meta/pre_adapt_rew": -0.75, "meta/post_adapt_rew": -0.25}
    with Reporter(30, 0, bar=False, lines=True, score=score) as reporter:
        reporter.writer.write(returns, {})
        reporter.update(10, 1)
    assert capsys.readouterr().out.endswith("mean squared error 0.75 → 0.25\n")
    reporter = Reporter(30, 0, bar=True, lines=False, score=score)
    assert reporter._progress is not None
    reporter._task = reporter._progress.add_task("", total=30, rate="", returns="")
    reporter.writer.write(returns, {})
    reporter.update(10, 1)
    assert reporter._progress.tasks[0].fields["returns"] == "mean squared error 0.75 → 0.25"


def test_warnings_of_the_library_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _show_warnings_in_one_line()
        warnings.warn("rewards of x\nare lost", MetaRLWarning, stacklevel=1)
    assert capsys.readouterr().err == "metarl: warning: rewards of x are lost\n"
