"""``metarl finetune``: learns held-out tasks with plain Stable-Baselines3, from an export and from scratch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metarl.envs.family import score_of
from metarl.errors import ConfigError, UnknownNameError, shorten
from metarl.meta.base import MetaAlgorithm
from metarl.meta.export.finetune import Finetuning, finetune, learning_figure
from metarl.meta.export.settings import (
    FINETUNED,
    OWN,
    choose,
    fits_value,
    require_learnable,
    usual_kind,
    usual_optimizers,
)
from metarl.zoo.algorithms import algorithm, check_env, load_model
from metarl.zoo.config import (
    DEFAULT_ALGO,
    UNTRAINED_ALGO,
    check_hyperparameters,
    load_hyperparameters,
    merge_env_kwargs,
    parse_pairs,
)
from metarl.zoo.console import CountBars, console, say, show_commands
from metarl.zoo.runs.folder import command_line
from metarl.zoo.runs.outputs import figure_bytes, figure_format, record_and_figure, record_bytes
from metarl.zoo.runs.provenance import provenance
from metarl.zoo.runs.sources import Source, find_sources, typed_again, typed_env_kwargs, typed_packages, wanted

FORMAT, VERSION = "metarl-finetuning", 1


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.to is not None and args.to.lower() not in FINETUNED:
        known = ", ".join(FINETUNED)
        raise UnknownNameError(f"unknown SB3 algorithm {shorten(args.to)}: known: {known}", args.to, FINETUNED)
    if args.from_scratch and args.n_inner_steps:
        raise ConfigError("--n-inner-steps is where exports start, and --from-scratch makes none")
    model, source = _model(args)
    kind = usual_kind(model) if args.to is None else args.to.lower()
    usual = usual_optimizers(model, kind, from_export=not args.from_scratch)
    optimizers = list(dict.fromkeys(args.optimizer or usual))
    for name in optimizers:  # before anything is collected
        choose(model, kind, None if name == OWN else name, 1)
    own = None if source is None else source.run
    folder = Path(args.log_folder) if own is None else own.folder
    outputs = record_and_figure(args, folder / "finetune", own)
    require_learnable(model, args.n_timesteps)
    start = " from scratch" if args.from_scratch else ""
    whose = (
        "" if source is None else f": {model.name}, {score_of(model.family).amount(model.num_timesteps)}, {source.path}"
    )
    say(f"{kind.upper()} on {model.family.id}{start}{whose}")
    if not args.from_scratch:
        each = score_of(model.family.acts_in).amount(args.n_timesteps)
        first = "Collecting on training tasks for the value network, then " if fits_value(model) else ""
        say(f"{first}{each} a task and method")
    if args.n_inner_steps:
        say(f"Adaptation to a task comes first ({args.n_inner_steps} x its support): curves begin after that")
    with CountBars("tasks") as bars:
        found = finetune(
            model,
            args.n_timesteps,
            kind=kind,
            optimizers=optimizers,
            from_export=not args.from_scratch,
            n_inner_steps=args.n_inner_steps,
            n_episodes=args.episodes,
            split=args.split,
            n_tasks=args.n_eval_tasks,
            seed=args.seed,
            tunings=[parse_pairs(words, "--tune") for words in args.tune],
            progress=bars.update,
        )
    for table in found.tables():
        console().print(table)
    drawn = learning_figure(found.curves, f"{model.family.id}, {args.split} tasks")
    document = _document(args, kind, model, source, found)
    record, figure = outputs.write([record_bytes(document), figure_bytes(drawn, figure_format(outputs.paths[1]))])
    say(f"Saved {record} and {figure}")
    averages = [float(curves.returns.mean()) for curves in found.exports]
    best = optimizers[averages.index(max(averages)) % len(optimizers)] if averages else None
    if averages and max(averages) < float(found.baseline.returns.mean()):
        say(f"{kind.upper()} from scratch learnt better than from any export: train the initialisation for longer")
    _next(args, kind, source, best)
    return 0


def _model(args: argparse.Namespace) -> tuple[MetaAlgorithm, Source | None]:
    """Return the meta-learnt initialisation; from scratch and without ``-i``, a new model by the YAML."""
    if args.tune and args.from_scratch:
        raise ConfigError("--tune says how an export is learnt from: --from-scratch has none")
    if args.trained_agent or not args.from_scratch:
        (source,) = find_sources(args)
        return load_model(source.path, args.num_threads, args.env_kwargs), source
    for name in ("exp_id", "load_best", "load_checkpoint"):
        if name in args.given:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} chooses among runs and their models: --from-scratch takes none, unless with -i")
    algo, env_id = args.algo or UNTRAINED_ALGO, wanted(args)[1]
    cls = algorithm(algo)
    check_env(env_id)
    config = load_hyperparameters(algo, env_id)
    config = check_hyperparameters(merge_env_kwargs(config, args.env_kwargs), cls)
    del config["n_timesteps"]
    return cls(env=env_id, n_threads=args.num_threads, **config), None


def _document(
    args: argparse.Namespace, kind: str, model: MetaAlgorithm, source: Source | None, found: Finetuning
) -> dict[str, Any]:

    return {
        "format": FORMAT,
        "version": VERSION,
        "command": command_line(args.argv),
        **provenance(),
        "algo": kind,
        "env": model.family.id,
        "env_kwargs": model.env_kwargs,
        "split": args.split,
        "seed": args.seed,
        "n_timesteps": args.n_timesteps,
        "n_inner_steps": args.n_inner_steps,
        "episodes": args.episodes,
        "source": None
        if source is None
        else {
            "algo": model.name,
            "model": str(source.path),
            "seed": model.seed,
            "num_timesteps": model.num_timesteps,
        },
        "tables": [str(table) for table in found.tables()],
        "comparisons": [comparison.to_dict() for comparison in found.comparisons()],
        "curves": [curves.to_dict() for curves in found.curves],
    }


def _next(args: argparse.Namespace, kind: str, source: Source | None, best: str | None) -> None:
    """Show what to type next: the export that learnt best, or the meta-training that an export would come from.

    :param best: its optimiser; None where nothing was learnt from an export.
    """
    if source is None:
        family = ["--env", wanted(args)[1], *typed_packages(args), *typed_env_kwargs(args)]
        show_commands({command_line(["train", "--algo", DEFAULT_ALGO, *family]): "meta-train"})
        return
    where = typed_again(args, [source])
    commands = {}
    if best is not None:
        words = ["export", *where, "--to", kind, *(["--optimizer", best] if best != OWN else [])]
        commands[command_line(words)] = "the export that learnt best"
    else:
        commands[command_line(["finetune", *where])] = "from the export"
    commands[command_line(["evaluate", *where])] = "evaluate"
    show_commands(commands)
