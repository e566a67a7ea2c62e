"""The command of a benchmark that is a record of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.measure import Row, circumstances
from benchmarks.speed import table
from metarl.files.writing import write_text_atomic


def run_single(
    name: str,
    about: str,
    title: str,
    run: Callable[[bool], list[Row]],
    arguments: Sequence[str] | None,
    hidden: Collection[str] = (),
    **circumstances_of_its_own: str,
) -> None:
    """Measure, print a table, and write the record where ``-o`` says.

    :param name: of the module in ``benchmarks``.
    :param about: what ``--help`` says.
    :param title: of the table.
    :param run: measures; is told whether only to see that it runs.
    :param arguments: the command line's; None: the process's.
    :param hidden: entries of the rows that are in the record only.
    :param circumstances_of_its_own: further entries of the record.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = run(options.quick)
    command = f"python -m benchmarks.{name}" + " --quick" * options.quick
    record = {"command": command, **circumstances(), **circumstances_of_its_own, "rows": rows}
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    Console().print(table(name, title, shown))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
