"""``metarl list``: shows algorithms, learners, outer optimisers, environments with their task spaces, and the runs."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from metarl import ALGORITHMS, family_ids, make_family
from metarl.agents.learners.registry import LEARNERS
from metarl.envs.score import RETURN
from metarl.envs.tasks import describe_space
from metarl.errors import MetaRLError
from metarl.files.checkpoint import load_checkpoint
from metarl.files.schema import convert
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.documents import Count, read_saved
from metarl.meta.outer.base import OUTER
from metarl.zoo.console import say, show_table
from metarl.zoo.runs.curves import column_scores
from metarl.zoo.runs.evaluations import read_meta, read_results
from metarl.zoo.runs.folder import Run, open_run, run_folders


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.what in ("all", "algos"):
        show_algorithms()
    if args.what in ("all", "learners"):
        show_learners()
    if args.what in ("all", "outer"):
        show_outer()
    if args.what in ("all", "envs"):
        show_environments()
    if args.what in ("all", "runs"):
        show_runs(args.log_folder)
    return 0


def show_algorithms() -> None:
    """Print the meta-algorithms."""
    rows = [[name, _first_paragraph(cls)] for name, cls in ALGORITHMS.items()]
    show_table("Algorithms", ["--algo", "what it is"], rows)


def show_learners() -> None:
    """Print what learns a task inside a meta-algorithm."""
    wrappers = {name: cls for name, cls in ALGORITHMS.items() if issubclass(cls, AdaptiveAlgorithm)}
    rows = []
    for name, learner in LEARNERS.items():
        inside = [algo for algo, cls in wrappers.items() if cls.refusal(learner) is None]
        refuse = [algo for algo in wrappers if algo not in inside]
        where = "every --algo but " + ", ".join(refuse) if len(refuse) < len(inside) else ", ".join(inside)
        rows.append([name, _first_paragraph(learner), where if refuse else "every --algo"])
    show_table("Learners", ["-params learner:", "what it is", "inside"], rows)


def show_outer() -> None:
    """Print the optimisers of the meta-parameters."""
    rows = [[name, _first_paragraph(cls)] for name, cls in OUTER.items()]
    show_table("Outer optimisers", ["-params outer:", "what it is"], rows)


def show_environments() -> None:
    """Print the families: what tells their tasks apart, and their spaces."""
    rows = []
    for name in family_ids():
        family = make_family(name)
        tasks = ", ".join(f"{key} {describe_space(space)}" for key, space in family.task_space.spaces.items())
        rows.append([name, tasks, family.horizon, str(family.observation_space.shape), str(family.action_space)])
        family.close()
    show_table("Environments", ["--env", "task parameters", "horizon", "observation", "action space"], rows)


def show_runs(log_folder: str | Path) -> None:
    """Print the runs of a log folder."""
    rows = []
    for path in run_folders(log_folder):
        try:
            rows.append(describe_run(open_run(path)))
        except MetaRLError:
            rows.append([str(path), "", "", "", "not whole"])
    if not rows:
        say(f"No runs under {log_folder}")
        return
    show_table(f"Runs under {log_folder}", ["run", "env steps or examples", "of", "validation", "state"], rows)


def _first_paragraph(cls: type) -> str:
    # Its own words: without docstrings (python -OO) inspect.getdoc takes those of what it inherits from.
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "")


def describe_run(run: Run) -> list[str]:
    """Return a run's row: steps done, steps wanted, the last evaluation, and whether it has ended."""
    state = "finished" if run.final.is_file() else "can go on"
    try:
        done = f"{read_saved(load_checkpoint(run.checkpoint)[1], run.checkpoint).num_timesteps:,}"
        wanted = f"{convert('n_timesteps', run.config().get('n_timesteps'), Count):,}"
    except MetaRLError:
        return [str(run.folder), "", "", "", "damaged"]
    value = ""
    if (run.folder / "meta_evaluations.npz").is_file():
        try:
            before = read_meta(run.folder / "meta_evaluations.npz")["pre"]
            after = read_results(run.folder / "evaluations.npz")["results"]
            if len(before) and len(after):
                (score,) = column_scores(run, ["eval/mean_reward"])
                value = (score or RETURN).change(before[-1].mean(), after[-1].mean())
        except MetaRLError:
            state = "damaged evaluations"
    return [str(run.folder), done, wanted, value, state]
