"""Every speed that we claim, measured: ``python -m benchmarks.speed [--only NAME ...] [--quick] [-o FILE]``.

Prints tables of ratios, both sides measured in turn in this one run, and writes them as JSON. It never fails over a
number.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import collecting, updating
from benchmarks.measure import Row, circumstances
from metarl.files.writing import write_text_atomic

ENTRIES: dict[str, Callable[[bool], list[Row]]] = {
    "ant_collect": collecting.ant_collect,
    "pointmass_collect": collecting.pointmass_collect,
    "update": updating.update,
    "memory": updating.memory,
    "iteration": updating.iteration,
    "peers": updating.peers,
    "sb3": collecting.sb3,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ENTRIES, metavar="NAME", help=f"some of {', '.join(ENTRIES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    names = options.only or list(ENTRIES)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    torch.set_num_threads(1)
    words = ["python -m benchmarks.speed", *(["--only", *options.only] if options.only else [])]
    record: dict[str, Any] = {
        "command": " ".join(words + ["--quick"] * options.quick),
        **circumstances(),
        "entries": {},
    }
    for name in names:
        started = time.perf_counter()
        rows = ENTRIES[name](options.quick)
        what = (ENTRIES[name].__doc__ or "").strip().split("\n")[0]
        record["entries"][name] = {"what": what, "rows": rows, "seconds": time.perf_counter() - started}
        console.print(table(name, what, rows))
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    console.print({key: value for key, value in record.items() if key != "entries"})


def table(name: str, what: str, rows: Sequence[Row]) -> Table:
    """Return rows as a table: a column for each case, or a line for each where that is too many."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "case"))
    labels = [column.removesuffix("_share").replace("_per_s", "/s").replace("_", " ") for column in columns]
    cells = [[text(column, row.get(column)) for column in columns] for row in rows]
    result = Table("", title=f"{name}: {what}", title_justify="left")
    if len(rows) <= 4:
        for row in rows:
            result.add_column(row["case"], justify="right")
        for line in zip(labels, *cells, strict=True):
            result.add_row(*line)
    else:
        for label in labels:
            result.add_column(label, justify="right")
        for row, line in zip(rows, cells, strict=True):
            result.add_row(row["case"], *line)
    return result


def text(column: str, value: Any) -> str:
    """Return a number with three significant digits or as a whole."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        joint = " to " if column.endswith("_range") else ", "
        return joint.join(text(column, item) for item in value)
    if column.endswith("_share"):
        return f"{100.0 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
