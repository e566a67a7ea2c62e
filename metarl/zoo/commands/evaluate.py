"""``metarl evaluate``: adapt to held-out tasks; one table, one figure and one record for one or several runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.errors import CheckpointError, ConfigError
from metarl.zoo.runs.folder import TRAINED, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarl.meta.evaluation.report import Report
    from metarl.zoo.runs.sources import Source

FORMAT, VERSION = "metarl-evaluation", 1


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from metarl.zoo.algorithms import load_model
    from metarl.zoo.commands.train import threads
    from metarl.zoo.console import CountBars, say
    from metarl.zoo.runs.outputs import figure_bytes, figure_format, record_and_figure, record_bytes
    from metarl.zoo.runs.sources import find_sources

    sources = find_sources(args)
    only = sources[0].run if len(sources) == 1 else None
    folder = Path(args.log_folder) if only is None else only.folder
    outputs = record_and_figure(args, folder / "evaluations", only)
    # Everything is loaded before anything is computed: a damaged file among several is said at once.
    models = [load_model(source.path, threads(args), args.env_kwargs) for source in sources]
    families = list(dict.fromkeys(model.family.id for model in models))
    if len(families) > 1:
        raise ConfigError(f"runs on {' and '.join(families)} cannot be compared: their tasks differ")
    sizes = list(dict.fromkeys(getattr(model, "n_episodes", None) for model in models))
    if args.episodes is None and len(sizes) > 1:
        words = " and ".join(map(str, sizes))
        raise ConfigError(f"the runs adapt with n_episodes {words}: compare them at the same --episodes N")
    reports: list[Report] = []
    for source, model in zip(sources, models, strict=True):
        say(f"{source.path}: {model.name} on {model.family.id}, {model.num_timesteps:,} env steps")
        with CountBars("done", lines=False) as bars:
            report = model.evaluate(
                args.split,
                args.n_inner_steps,
                n_tasks=args.n_eval_tasks,
                n_episodes=args.episodes,
                inner_lr_rule=args.inner_lr_rule,
                inner_lr=args.inner_lr,
                seed=args.seed,
                progress=partial(bars.update, model.name),
            )
        meta = {**report.meta, "env_kwargs": model.env_kwargs, "command": command_line(args.argv)}
        meta |= {"model": str(source.path), "run": None if source.run is None else str(source.run.folder)}
        if source.run is not None:
            meta["training_seconds"] = training_seconds(source.run)
        reports.append(dataclasses.replace(report, meta=meta))
    reports = _labelled(reports, sources, args.merge)
    tables = show_reports(reports)
    trained = max((size for size in sizes if size is not None), default=0)
    if args.episodes is not None and 2 * args.episodes <= trained:
        say(
            f"{args.episodes} episodes for each inner step, where training had {trained}: steps are noisier than the "
            "inner rates are meant for, see --inner-lr"
        )
    drawn = figure_bytes(_figure(reports), figure_format(outputs.paths[1]))
    record, figure = outputs.write([record_bytes(_document(reports, tables, args)), drawn])
    say(f"Saved {record} and {figure}")
    return 0


def show_reports(reports: Sequence[Report]) -> list[str]:
    """Print the tables of one or several reports, published numbers beside them; returns the tables as text."""
    from metarl.meta.evaluation.comparison import compare, comparison_table
    from metarl.meta.evaluation.published import PUBLISHED
    from metarl.zoo.console import console

    published = PUBLISHED.get(reports[0].env, ()) if _is_reference(reports[0]) else ()
    tables = [reports[0].table()] if len(reports) == 1 else []
    if len(reports) > 1 or published:
        tables.append(comparison_table(reports, published))
    if len(reports) > 1:
        tables += [compare(report, reports[0]).table() for report in reports[1:]]
    for table in tables:
        console().print(table)
    return [str(table) for table in tables]


def _is_reference(report: Report) -> bool:
    """Whether the published numbers belong to what was evaluated: test tasks of the family as it is by default."""
    return report.split == "test" and not {**(report.meta.get("env_kwargs") or {}), "oracle": None}.keys() - {"oracle"}


def full_run(report: Report) -> list[Report]:
    """Return the recorded evaluation of the full run that ships with the package, if it can be paired with a report."""
    from metarl.meta.evaluation.report import same_tasks

    path = TRAINED / report.algo / f"{report.env}.json"
    if not path.is_file() or not _is_reference(report):
        return []
    recorded = read_record(path)[0]
    if not same_tasks(recorded, report):
        return []
    steps, seconds = recorded.meta["num_timesteps"], recorded.meta.get("training_seconds")
    time = "" if seconds is None else f", {seconds / 3600:.1f} h"
    return [dataclasses.replace(recorded, label=f"full run, recorded ({steps:,} env steps{time})")]


def read_record(path: Path) -> list[Report]:
    """Return the reports of a record that ``metarl evaluate`` wrote.

    :raises CheckpointError: it is missing, damaged, or something else.
    """
    from metarl.files.untrusted import parse_json, read_text
    from metarl.meta.evaluation.report import Report

    document = parse_json(read_text(path), f"cannot read {path}: it")
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise CheckpointError(f"{path} is not a record of `metarl evaluate`, or of another version")
    reports = document.get("reports")
    if not isinstance(reports, list) or not reports:
        raise CheckpointError(f"{path} is damaged: it holds no reports")
    return [Report.from_document(item, str(path)) for item in reports]


def _labelled(reports: list[Report], sources: Sequence[Source], merge: bool) -> list[Report]:
    """Name each report: its algorithm where that is enough, else with the run's number, else its path."""
    from metarl.meta.evaluation.report import Report

    if merge:
        groups: dict[tuple[str, str], list[Report]] = {}
        for report in reports:
            groups.setdefault((report.algo, report.env), []).append(report)
        return [Report.merge(group) if len(group) > 1 else group[0] for group in groups.values()]
    for label in (_by_algorithm, _by_number):
        names = [label(report, source) for report, source in zip(reports, sources, strict=True)]
        if len(set(names)) == len(names):
            break
    else:
        names = [source.name for source in sources]
    return [dataclasses.replace(report, label=name) for report, name in zip(reports, names, strict=True)]


def _by_algorithm(report: Report, source: Source) -> str:
    del source
    return report.label


def _by_number(report: Report, source: Source) -> str:
    return f"{report.label} {source.run.number}" if source.run is not None else source.path.stem


def _document(reports: Sequence[Report], tables: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    from metarl.zoo.runs.provenance import provenance

    return {
        "format": FORMAT,
        "version": VERSION,
        "command": command_line(args.argv),
        **provenance(),
        "eval_seed": args.seed,
        "training_seeds": [list(report.seeds) for report in reports],
        "tables": list(tables),
        "reports": [json.loads(report.to_json()) for report in reports],
    }


def _figure(reports: Sequence[Report]) -> Figure:
    from metarl.meta.evaluation.comparison import comparison_figure
    from metarl.meta.evaluation.published import PUBLISHED

    return comparison_figure(reports, PUBLISHED.get(reports[0].env, ()) if _is_reference(reports[0]) else ())
