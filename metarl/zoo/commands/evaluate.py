"""``metarl evaluate``: adapts one or several runs to held-out tasks, and makes a table, a figure and a record of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from metarl.envs.family import score_of
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.base import MetaAlgorithm
from metarl.meta.evaluation.report import Report
from metarl.meta.progress import Progress
from metarl.meta.two_levels.evaluating import EvaluatesFewTasks
from metarl.zoo.algorithms import load_model
from metarl.zoo.config import parse_pairs
from metarl.zoo.console import CountBars, say, show_commands
from metarl.zoo.runs.curves import training_seconds
from metarl.zoo.runs.folder import command_line
from metarl.zoo.runs.held_out import document, draw, show_moved, show_reports
from metarl.zoo.runs.outputs import figure_bytes, figure_format, record_and_figure, record_bytes
from metarl.zoo.runs.sources import Source, find_sources, next_commands, typed_again, typed_packages

FEW_TASK_OPTIONS = ("meta_lr", "n_goal_tasks", "n_meta_steps", "update")
"""What may follow the number of tasks of ``--few-tasks``."""


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    sources = find_sources(args)
    tunings = [None, *(Tuning.of(parse_pairs(words, "--tune")) for words in args.tune)]
    only = sources[0].run if len(sources) == 1 else None
    folder = Path(args.log_folder) if only is None else only.folder
    outputs = record_and_figure(args, folder / "evaluations", only)
    # Everything is loaded before anything is computed: a damaged file among several is said at once.
    models = [load_model(source.path, args.num_threads, args.env_kwargs) for source in sources]
    families = list(dict.fromkeys(model.family.id for model in models))
    if len(families) > 1:
        raise ConfigError(f"runs on {' and '.join(families)} cannot be compared: their tasks differ")
    sizes = list(dict.fromkeys(map(_batch, models)))
    if args.episodes is None and len(sizes) > 1:
        words = " and ".join(f"{name} {size}" for name, size in sizes)
        raise ConfigError(f"the runs adapt with {words}: compare them at the same --episodes N")
    ways: list[Callable[..., Report]] = _with_few_tasks(args, tunings) or [_with(args, tuning) for tuning in tunings]
    reports: list[Report] = []
    for source, model in zip(sources, models, strict=True):
        say(f"{source.path}: {model.name} on {model.family.id}, {score_of(model.family).amount(model.num_timesteps)}")
        more: dict[str, Any] = {"env_kwargs": model.env_kwargs, "command": command_line(args.argv)}
        more |= {"model": str(source.path), "run": None if source.run is None else str(source.run.folder)}
        if source.run is not None:
            more["training_seconds"] = training_seconds(source.run)
        for way in ways:
            with CountBars("done", lines=False) as bars:
                report = way(model, progress=partial(bars.update, model.name))
            reports.append(dataclasses.replace(report, meta={**report.meta, **more}))
    reports = _labelled(reports, [source for source, _ in product(sources, ways)], args.merge)
    tables = [*show_reports(reports), *show_moved(reports)]
    trained = max((size for name, size in sizes if name == "n_episodes" and size is not None), default=0)
    if args.episodes is not None and 2 * args.episodes <= trained:
        say(
            f"{args.episodes} episodes for each inner step, where training had {trained}: steps are noisier than the "
            "inner rates are meant for, see --inner-lr"
        )
    drawn = figure_bytes(draw(reports), figure_format(outputs.paths[1]))
    record, figure = outputs.write([record_bytes(document(reports, tables, args.argv, args.seed)), drawn])
    say(f"Saved {record} and {figure}")
    _next(args, sources, models[0])
    return 0


def _next(args: argparse.Namespace, sources: Sequence[Source], model: MetaAlgorithm) -> None:
    """Show what to type next: more of the model, or the curves of the runs that were compared."""
    commands = {}
    if len(sources) == 1:
        commands = next_commands(model, typed_again(args, sources), ["finetune", "export", "record"])
    runs = [str(source.run.folder) for source in sources if source.run is not None]
    if runs:
        commands[command_line(["plot", "-i", *runs, *typed_packages(args)])] = "learning curves"
    if not commands:
        commands[command_line(["train", "-i", str(sources[0].path), *typed_packages(args)])] = "learn on from it"
    show_commands(commands)


def _with(args: argparse.Namespace, tuning: Tuning | None) -> Callable[..., Report]:
    """Return how a model is evaluated on held-out tasks, fine-tuned in one way."""
    return lambda model, progress: model.evaluate(
        args.split,
        args.n_inner_steps,
        n_tasks=args.n_eval_tasks,
        n_episodes=args.episodes,
        inner_lr_rule=args.inner_lr_rule,
        inner_lr=args.inner_lr,
        tuning=tuning,
        seed=args.seed,
        progress=progress,
    )


def _with_few_tasks(args: argparse.Namespace, tunings: Sequence[Tuning | None]) -> list[Callable[..., Report]]:
    """Return how a model is evaluated on held-out families, without few tasks of each and with them; none if not asked.

    :param tunings: how goal tasks are fine-tuned to after the few tasks, each way in turn.
    """
    if not args.few_tasks:
        return []
    n_tasks, options = args.few_tasks[0], parse_pairs(args.few_tasks[1:], "--few-tasks")
    if not n_tasks.isdecimal() or int(n_tasks) < 1:
        raise ConfigError(f"--few-tasks {shorten(n_tasks)}: first of all a number of tasks, 1 or more, such as 5")
    for name in options:
        if name not in FEW_TASK_OPTIONS:
            raise unknown_name("option of --few-tasks:", name, FEW_TASK_OPTIONS)
    if args.inner_lr_rule != "constant":
        raise ConfigError("--few-tasks with --inner-lr-rule: goal tasks are adapted to by steps at --inner-lr")

    def evaluate(n: int, tuning: Tuning | None, model: MetaAlgorithm, progress: Progress) -> Report:
        if not isinstance(model, EvaluatesFewTasks):
            raise ConfigError(f"--few-tasks: {model.name} adapts by no gradient steps that could be differentiated")
        return model.evaluate_few_tasks(
            args.split,
            args.n_inner_steps,
            n_tasks=n,
            n_families=args.n_eval_tasks,
            n_episodes=args.episodes,
            inner_lr=args.inner_lr,
            tuning=tuning,
            seed=args.seed,
            progress=progress,
            **options,
        )

    return [partial(evaluate, 0, None), *(partial(evaluate, int(n_tasks), tuning) for tuning in tunings)]


def _batch(model: MetaAlgorithm) -> tuple[str, int | None]:
    """Return what says how much a model collects for an inner step, and how much that is; nothing where it has none."""
    name = "n_episodes" if getattr(model, "n_transitions", None) is None else "n_transitions"
    return name, getattr(model, name, None)


def _labelled(reports: list[Report], sources: Sequence[Source], merge: bool) -> list[Report]:
    """Name each report: its algorithm where that is enough, else with the run's number, else its path.

    How it was tuned is said too.
    """
    if merge:
        groups: dict[tuple[str, str], list[Report]] = {}
        for report in reports:
            groups.setdefault((report.label, report.env), []).append(report)
        return [Report.merge(group) if len(group) > 1 else group[0] for group in groups.values()]
    for label in (_by_algorithm, _by_number):
        names = [label(report, source) for report, source in zip(reports, sources, strict=True)]
        if len(set(names)) == len(names):
            break
    else:
        names = [
            f"{source.name}{report.label.removeprefix(report.algo)}"
            for report, source in zip(reports, sources, strict=True)
        ]
    return [dataclasses.replace(report, label=name) for report, name in zip(reports, names, strict=True)]


def _by_algorithm(report: Report, source: Source) -> str:
    del source
    return report.label


def _by_number(report: Report, source: Source) -> str:
    return f"{report.label} {source.run.number}" if source.run is not None else source.path.stem
