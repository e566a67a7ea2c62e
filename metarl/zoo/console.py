"""What a terminal shows: messages, tables, and a progress bar with rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text
from stable_baselines3.common.logger import KVWriter

from metarl.envs.score import RETURN, Score
from metarl.meta.evaluation.tables import Fitting
from metarl.meta.progress import POST, PRE, Work

NARROW = 76
"""Columns of a terminal below which a bar says how much is done and how long it takes, and nothing else: not part of a
number."""
LEARNING = "what is being learnt"
"""What a run does where nothing more is known."""
LINE_SECONDS = 60.0
"""Seconds between two lines where a meta-iteration takes longer."""


def console() -> Console:
    """Return a console on stdout. Where that is no terminal, the console is so wide that no table is folded."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 300)


def say(message: str, style: str = "") -> None:
    """Print one line."""
    console().print(message, style=style, markup=False)


def warn(message: str) -> None:
    """Print one line on stderr, whatever the verbosity."""
    print("metarl: warning: " + " ".join(message.split()), file=sys.stderr)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """Print a table; columns of numbers are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", caption=note or None, caption_justify="left")
    for i, column in enumerate(columns):
        numbers = all(row[i][:1] in "0123456789" for row in rows)
        table.add_column(Text(column), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(Fitting(table, columns, rows))


def show_commands(commands: Mapping[str, str]) -> None:
    """Print what can be typed next.

    :param commands: what each command does, by command.
    """
    say("Next:")
    width = max(map(len, commands.values()))
    for command, purpose in commands.items():
        say(f"  {purpose:<{width}}  {command}")


def is_terminal() -> bool:
    """Whether somebody watches stdout."""
    return sys.stdout.isatty()


def format_steps(n: float) -> str:
    """Return a number of env steps with separators."""
    return f"{int(n):,}"


def format_duration(seconds: float) -> str:
    """Return ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class CountBars:
    """Shows how far several jobs are: a bar for each on a terminal, elsewhere a line for each job that is done.

    :param unit: what is counted, in the plural.
    :param lines: print a line for each that is done where there is no terminal.
    """

    def __init__(self, unit: str, lines: bool = True) -> None:
        self._unit, self._lines = unit, lines
        self._ids: dict[str, TaskID] = {}
        screen = Console(highlight=False)
        columns: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)]
        if screen.width >= NARROW:
            named = [TextColumn("{task.description}"), BarColumn(bar_width=None)]
            columns = [*named, columns[0], TextColumn(unit), columns[1]]
        self._progress = Progress(*columns, console=screen, disable=not is_terminal())

    def __enter__(self) -> CountBars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, label: str, done: int, of: int) -> None:
        """Show that a job has done so many of its tasks; jobs come one after another."""
        if label not in self._ids:
            self._ids[label] = self._progress.add_task(label, total=of)
        self._progress.update(self._ids[label], completed=done)
        if done == of and self._lines and not is_terminal():
            say(f"{label}: {of} {self._unit} done")


class Reporter:
    """Shows how far a run is: a bar on a terminal, a line for each meta-iteration elsewhere, or nothing.

    :param total: env steps, or examples, to reach.
    :param start: how many are done already.
    :param bar: draw a progress bar.
    :param lines: without a bar, print a line for each meta-iteration.
    :param score: how returns, and what training spends, are called and shown.
    """

    def __init__(self, total: int, start: int, bar: bool, lines: bool, score: Score = RETURN) -> None:
        self.total, self.start = total, start
        self.lines = lines and not bar
        self.writer, self._score = ReturnsWriter(score), score
        self._began = self._told = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self.doing = LEARNING
        """What is done at the moment, in a few words."""
        if bar:
            screen = Console(highlight=False)
            left = TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(min_width=7, no_wrap=True))
            columns: list[ProgressColumn] = [TextColumn("{task.percentage:.0f}%"), left]
            if screen.width >= NARROW:
                # Words so few that millions of env steps fit into 80 columns; where they do not, the returns give way.
                columns = [
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=None),
                    TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                    TextColumn("{task.fields[rate]}"),
                    left,
                    TextColumn("{task.fields[returns]}"),
                ]
            self._progress = Progress(*columns, speed_estimate_period=600, console=screen)

    def __enter__(self) -> Reporter:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("", total=self.total, completed=self.start, rate="", returns="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, num_timesteps: int, iteration: int) -> None:
        """Show the state after a meta-iteration."""
        self._told, self.doing = time.monotonic(), LEARNING
        # A line tells what is new; the bar shows the last that is known.
        returns = self.writer.text() if self._progress is not None else self.writer.news()
        # Env steps a second of this process, those of an earlier one not counted.
        rate = (num_timesteps - self.start) / max(time.monotonic() - self._began, 1e-9)
        if self._progress is not None:
            self._progress.update(
                self._task,
                completed=num_timesteps,
                description=f"iteration {iteration}",
                rate=f"{format_steps(rate)}/s",
                returns=returns.removeprefix("return "),
            )
        elif self.lines:
            left = format_duration(max(self.total - num_timesteps, 0) / max(rate, 1e-9))
            done = f"{format_steps(num_timesteps)}/{self._score.amount(self.total)}"
            say(f"meta-iteration {iteration:>4}  {done}  {format_steps(rate)}/s  {left} left  {returns}".rstrip())

    def inside(self, num_timesteps: int, iteration: int, work: Work) -> None:
        """Show how far a meta-iteration is; as a line once a minute, which short ones are over before."""
        rate = (num_timesteps - self.start) / max(time.monotonic() - self._began, 1e-9)
        where = f"{work.tasks}: {work.n_done}/{work.n_units}"
        more = work.n_done < work.n_units
        self.doing = f"part {work.n_done + 1} of {work.n_units} of learning {work.tasks}" if more else LEARNING
        if self._progress is not None:
            words = f"iteration {iteration + 1}, {where}" if work.n_units > 1 else f"iteration {iteration + 1}"
            self._progress.update(
                self._task, completed=num_timesteps, description=words, rate=f"{format_steps(rate)}/s"
            )
        elif self.lines and time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            done = f"{format_steps(num_timesteps)}/{self._score.amount(self.total)}"
            say(f"in meta-iteration {iteration + 1}  {done}  {format_steps(rate)}/s  {where}")

    def busy(self, what: str, doing: str) -> None:
        """Say what goes on until the next update.

        :param what: for the bar.
        :param doing: what a stop waits for.
        """
        self.doing = doing
        if self._progress is not None:
            self._progress.update(self._task, description=what)

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(message, markup=False)
        elif self.lines:
            say(message)


class ReturnsWriter(KVWriter):
    """A logger output that keeps the last returns before and after adaptation.

    :param score: how they are called and shown.
    """

    def __init__(self, score: Score = RETURN) -> None:
        self._score = score
        self.pre: float | None = None
        self.post: float | None = None
        self._told = ""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Take the two returns out of what is logged."""
        del key_excluded, step
        self.pre = key_values.get(PRE, self.pre)
        self.post = key_values.get(POST, self.post)
        self._told = ""

    def close(self) -> None:
        """Nothing is open."""

    def text(self) -> str:
        """Return the two returns in a few words, empty before the first log entry."""
        if self.pre is None or self.post is None:
            return ""
        return self._score.change(self.pre, self.post)

    def news(self) -> str:
        """Return the same, empty where nothing was logged since the last call."""
        if self._told:
            return ""
        self._told = self.text()
        return self._told
