"""Returns on held-out tasks: how they are shown, beside published ones, and the record of ``metarl evaluate``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.errors import CheckpointError
from metarl.files.untrusted import parse_json, read_text
from metarl.meta.evaluation.comparison import compare, comparison_figure, comparison_table
from metarl.meta.evaluation.moved import moved_table
from metarl.meta.evaluation.published import PUBLISHED, Published
from metarl.meta.evaluation.report import Report, same_tasks
from metarl.zoo.console import console
from metarl.zoo.runs.folder import command_line, shipped_record
from metarl.zoo.runs.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # importing it takes 0.5 s, before the first line of training

FORMAT, VERSION = "metarl-evaluation", 1


def show_reports(reports: Sequence[Report]) -> list[str]:
    """Print the tables of one or several reports, published numbers beside them; returns the tables as text."""
    rows = published(reports[0])
    tables = [reports[0].table()] if len(reports) == 1 else []
    if len(reports) > 1 or rows:
        tables.append(comparison_table(reports, rows))
    if len(reports) > 1:
        tables += [compare(report, reports[0]).table() for report in reports[1:]]
    for table in tables:
        console().print(table)
    return [str(table) for table in tables]


def show_moved(reports: Sequence[Report]) -> list[str]:
    """Print how far layers moved, where reports say it; returns the table as text."""
    table = moved_table(reports)
    if table is None:
        return []
    console().print(table)
    return [str(table)]


def full_run(report: Report) -> list[Report]:
    """Return the recorded evaluation of the full run that ships with the package, if it can be paired with a report."""
    path = shipped_record(report.algo, report.env)
    if path is None or not _is_reference(report):
        return []
    recorded = read_reports(path)[0]
    if not same_tasks(recorded, report):
        return []
    steps, seconds = recorded.meta["num_timesteps"], recorded.meta.get("training_seconds")
    time = "" if seconds is None else f", {seconds / 3600:.1f} h"
    return [dataclasses.replace(recorded, label=f"full run, recorded ({recorded.score.amount(steps)}{time})")]


def read_reports(path: Path) -> list[Report]:
    """Return the reports of a record that ``metarl evaluate`` wrote.

    :raises CheckpointError: it is missing, damaged, or something else.
    """
    document = parse_json(read_text(path), f"cannot read {path}: it")
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise CheckpointError(f"{path} is not a record of `metarl evaluate`, or of another version")
    reports = document.get("reports")
    if not isinstance(reports, list) or not reports:
        raise CheckpointError(f"{path} is damaged: it holds no reports")
    return [Report.from_document(item, str(path)) for item in reports]


def document(reports: Sequence[Report], tables: Sequence[str], argv: list[str], seed: int) -> dict[str, Any]:
    """Return the record of an evaluation.

    :param tables: what :func:`show_reports` returned.
    :param argv: the words of the command, without the program's name.
    :param seed: of the evaluation's streams.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "command": command_line(argv),
        **provenance(),
        "eval_seed": seed,
        "training_seeds": [list(report.seeds) for report in reports],
        "tables": list(tables),
        "reports": [json.loads(report.to_json()) for report in reports],
    }


def draw(reports: Sequence[Report]) -> Figure:
    """Draw the returns of one or several reports, published numbers beside them."""
    return comparison_figure(reports, published(reports[0]))


def published(report: Report) -> tuple[Published, ...]:
    """Return the published numbers that belong to what was evaluated, none for another family than the default one."""
    return PUBLISHED.get(report.env, ()) if _is_reference(report) else ()


def _is_reference(report: Report) -> bool:
    """Whether the published numbers belong to what was evaluated: test tasks of the family as it is by default."""
    return report.split == "test" and not {**(report.meta.get("env_kwargs") or {}), "oracle": None}.keys() - {"oracle"}
