"""What docs/results.md and the README say was measured is what the records in benchmarks/results hold."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.within_trial import WAYS
from metarl.meta.evaluation.comparison import compare
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import MIN_UNITS, bootstrap_interval

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results"
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PROSE = " ".join(RESULTS.split())
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONG = "first_order_rl/record"
NUMBER = re.compile(r"-?[\d,]*\.?\d+")
ROUNDING = 0.56
"""Units of the last digit shown: tables print two digits, and what is shown with fewer was often rounded from those."""
NAMES = {
    "MAML": "maml",
    "MAML, `surrogate: likelihood_ratio`": "maml",
    "FOMAML": "fomaml",
    "Reptile": "reptile",
    "Leap": "leap",
    "joint training": "pretrain",
    "random initialisation": "random",
    "oracle": "oracle",
    "FOMAML, gone on with to 45.8 million env steps": "antdir_long",
}
NOT_RECORDED = ("published", "as in the reference", "at HalfCheetahVel's inner rate", "was not kept")
"""Rows of the publications, and of runs that a later one has replaced in the records."""

# By the words just above a table: its record, and what the reports' labels have beside the algorithm.
TABLES = {
    "PointMass-v0, test tasks, 3 seeds:": (LONG, "PointMass-v0", ", best"),
    "HalfCheetahVel-v0, the same, 3 seeds:": (LONG, "HalfCheetahVel-v0", ", best"),
    "AntVel-v0, one seed:": (LONG, "AntVel-v0", ", best"),
    "AntDir-v0, one seed (two tasks": (LONG, "AntDir-v0", ", best"),
    "about 112 meta-iterations (16 million env steps) each:": ("pointmass_reference_rule", "PointMass-v0", ""),
    "(of 4, at 4, 8, 12 and 16 million):": ("pointmass_best_reference_rule", "PointMass-v0", ""),
    "20 episodes a gradient step, the full inner": ("antvel", "AntVel-v0", ""),
    "0.01 on the later ones was chosen on validation tasks": ("halfcheetahvel", "HalfCheetahVel-v0", ""),
    "the two tasks are forward and backward:": ("halfcheetahdir", "HalfCheetahDir-v0", ""),
    "a hundredth of the rate after the first step:": ("antdir", "AntDir-v0", ""),
}
README_ROWS = {
    "AntVel-v0: FOMAML, 32 million env steps, one seed": ("antvel", "AntVel-v0", "fomaml"),
    "the same steps of joint training": ("antvel", "AntVel-v0", "pretrain"),
    "the same joint training at a third of the rate, chosen on validation tasks": (LONG, "AntVel-v0", "pretrain, best"),
    "HalfCheetahVel-v0: Leap, 32 million env steps, 3 seeds ¹": (LONG, "HalfCheetahVel-v0", "leap, best"),
    "the same steps of FOMAML ¹": (LONG, "HalfCheetahVel-v0", "fomaml, best"),
    "the same steps of MAML ¹": (LONG, "HalfCheetahVel-v0", "maml, best"),
    "the same steps of joint training ¹": (LONG, "HalfCheetahVel-v0", "pretrain, best"),
    "HalfCheetahVel-v0: RL², 8 million env steps, one seed, in its first and second episode": (
        "rl2_halfcheetahvel",
        "HalfCheetahVel-v0",
        "rl2",
    ),
    "AntDir-v0: FOMAML, 46 million env steps, one seed ³": ("antdir_long", "AntDir-v0", "fomaml"),
    "HalfCheetahDir-v0: FOMAML, 32 million env steps, one seed ²": ("halfcheetahdir", "HalfCheetahDir-v0", "fomaml"),
    "PointMass-v0: MAML, 16 million env steps, 3 seeds ¹": ("pointmass_tuned_rates", "PointMass-v0", "maml"),
    "the same ²": ("pointmass_reference_rule", "PointMass-v0", "maml"),
}


@cache
def record(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return document


@cache
def found(name: str, env: str, label: str) -> dict[str, Any]:
    """Return the report of an algorithm in a record: of the comparison's main runs, not of its ablation."""
    own = [r for r in record(name)["reports"] if (r["env"], r["label"]) == (env, label) and not r["meta"].get("cell")]
    assert len(own) == 1, (name, env, label)
    return own[0]


@cache
def report(name: str, env: str, label: str) -> Report:
    return Report.from_json(json.dumps(found(name, env, label)))


def cells(line: str) -> list[str]:
    return [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def agrees(text: str, values: list[float]) -> bool:
    """Return whether a cell shows values, rounded as it shows them; fewer than there are will do."""
    shown = numbers(text)
    digits = [len(number.partition(".")[2]) for number in shown]
    exact = [
        abs(float(n.replace(",", "")) - v) <= ROUNDING * 10.0**-d
        for n, v, d in zip(shown, values, digits, strict=False)
    ]
    return bool(shown) and len(shown) in (1, 3) and all(exact)


def tables() -> dict[str, list[list[str]]]:
    """Return the rows of every table of docs/results.md that follows the words of :data:`TABLES`."""
    lines, result = RESULTS.splitlines(), {}
    for words in TABLES:
        # Paragraphs are broken into lines anywhere.
        found = re.search(r"\s+".join(map(re.escape, words.split())), RESULTS)
        assert found is not None, words
        first = RESULTS.count("\n", 0, found.end())
        head = next(i for i in range(first, first + 5) if lines[i].startswith("| |"))
        end = next(i for i in range(head, len(lines)) if not lines[i].startswith("|"))
        result[words] = [cells(line) for line in (lines[head], *lines[head + 2 : end])]
    return result


@pytest.mark.parametrize("words", TABLES)
def test_a_table_shows_what_its_record_holds(words: str) -> None:
    name, env, suffix = TABLES[words]
    (_, *header), *rows = tables()[words]
    n_checked = 0
    for label, *row in rows:
        if any(part in label for part in NOT_RECORDED):
            continue
        if " minus " in label:
            if not label.startswith("its gain"):
                a, b = (NAMES[part.replace("joint", "joint training")] for part in label.split(",")[0].split(" minus "))
            pair = compare(report(name, env, a), report(name, env, b))
            bands = pair.gains if label.startswith("its gain") else pair.returns
            expected = [list(bands.at(step)) for step in range(4)]
        elif NAMES[label] == "antdir_long":
            summary = found("antdir_long", env, "fomaml")["summary"]
            expected = [*summary["return"], summary["gain"][-1]]
        else:
            summary = found(name, env, NAMES[label] + suffix)["summary"]
            expected = [*summary["return"], *[[]] * (4 - len(summary["return"])), summary["gain"][-1]]
        for what, cell, values in zip(header, row, expected, strict=False):
            if cell and not what.startswith("by seed"):
                assert agrees(cell, values), f"{words} {label}, {what}: {cell} is {values} in {name}.json"
                n_checked += 1
    assert n_checked >= 8


def test_the_readme_shows_what_the_records_hold() -> None:
    rows = {row[0]: row[1:] for line in README.splitlines() if line.startswith("| ") for row in [cells(line)]}
    for label, (name, env, algorithm) in README_ROWS.items():
        shown, expected = rows[label], found(name, env, algorithm)["summary"]["return"]
        assert not any(shown[len(expected) :]), label
        for cell, values in zip(shown[: len(expected)], expected, strict=True):
            assert agrees(cell, values), f"{label}: {cell} is {values} in {name}.json"


def test_what_a_memory_makes_of_rewards_is_as_recorded() -> None:
    kept = json.loads((RECORDS / "rl2_within_trial.json").read_text(encoding="utf-8"))
    whole, *others = (np.array(kept["rewards"][way]) for way in WAYS)
    for words, values in (("cost it", whole[:, 0] - others[1][:, 0]), ("costs", others[0][:, 1] - whole[:, 1])):
        mean, low, high = bootstrap_interval(values)
        assert f"{words} {mean:.1f} [{low:.1f}, {high:.1f}]" in PROSE


def verdict(env: str, a: str, b: str, step: int, checkpoint: str = "best") -> list[float]:
    """Return the recorded interval of ``a`` minus ``b``."""
    for item in record(LONG)["verdicts"]:
        if (item["env"], item["checkpoint"], item["step"], item["cell"]) == (env, checkpoint, step, {}):
            mean, low, high = item["interval"]
            if (item["a"], item["b"]) == (a, b):
                return [mean, low, high]
            if (item["a"], item["b"]) == (b, a):
                return [-mean, -high, -low]
    raise AssertionError(f"{a} and {b} on {env} are not in the record")


# What the text says of a pair: the words up to its numbers, the environment, the pair, the inner steps.
PAIRS = [
    ("MAML minus FOMAML", "PointMass-v0", "maml", "fomaml", (1, 3)),
    ("it is ahead of MAML after three steps (by", "PointMass-v0 last", "reptile", "maml", (3,)),
    ("and of FOMAML (by", "PointMass-v0 last", "reptile", "fomaml", (3,)),
    ("MAML minus joint training", "HalfCheetahVel-v0", "maml", "pretrain", (3,)),
    ("15.0], FOMAML", "HalfCheetahVel-v0", "fomaml", "pretrain", (3,)),
    ("16.8], Leap", "HalfCheetahVel-v0", "leap", "pretrain", (3,)),
    ("MAML is ahead of FOMAML after one step, barely (", "HalfCheetahVel-v0", "maml", "fomaml", (1, 3)),
    ("and ahead of Reptile (", "HalfCheetahVel-v0", "maml", "reptile", (3,)),
    ("FOMAML minus Reptile is", "HalfCheetahVel-v0", "fomaml", "reptile", (3,)),
    ("Reptile is behind Leap (by", "HalfCheetahVel-v0", "leap", "reptile", (3,)),
    ("[12, 56]) and joint training (", "HalfCheetahVel-v0", "pretrain", "reptile", (3,)),
    ("FOMAML is ahead of all that adapt: of joint training by", "AntVel-v0", "fomaml", "pretrain", (3,)),
    ("29.6], MAML", "AntVel-v0", "fomaml", "maml", (3,)),
    ("43.1], Leap", "AntVel-v0", "fomaml", "leap", (3,)),
    ("Leap is behind MAML after one step (by", "AntVel-v0", "maml", "leap", (1,)),
    ("Reptile is behind MAML (by", "AntVel-v0", "maml", "reptile", (3,)),
    ("after three steps), FOMAML (", "AntVel-v0", "fomaml", "reptile", (3,)),
    ("[26, 68]), Leap (", "AntVel-v0", "leap", "reptile", (3,)),
    ("[7, 31]) and joint training (", "AntVel-v0", "pretrain", "reptile", (3,)),
    ("After one step FOMAML is ahead of Leap by", "AntDir-v0", "fomaml", "leap", (1,)),
    ("[40, 56] and of Reptile by", "AntDir-v0", "fomaml", "reptile", (1,)),
]


@pytest.mark.parametrize(("words", "where", "a", "b", "steps"), PAIRS)
def test_a_difference_in_the_text_is_the_recorded_one(words: str, where: str, a: str, b: str, steps: Any) -> None:
    env, _, checkpoint = where.partition(" ")
    assert PROSE.count(words) == 1, words
    following = re.findall(r"-?[\d.]+ \[[^\]]+\]", PROSE.partition(words)[2])
    for text, step in zip(following, steps, strict=False):
        assert agrees(text, verdict(env, a, b, step, checkpoint or "best")), f"{words} {text}"


def test_what_all_are_ahead_of_the_random_initialisation_by() -> None:
    algos = ("maml", "fomaml", "reptile", "leap", "pretrain")
    ahead = [verdict("PointMass-v0", algo, "random", step) for algo in algos for step in (1, 3)]
    assert all(low > 0.0 for _, low, _ in ahead)
    means = [mean for mean, _, _ in ahead]
    assert f"All beat the random initialisation by {min(means):.0f} to {max(means):.0f}, and none" in PROSE
    oracle = [verdict("PointMass-v0", "oracle", algo, step) for algo in algos for step in (1, 3)]
    assert all(low > 0.0 for _, low, _ in oracle)


def ahead_of_scratch(name: str, optimizer: str) -> dict[str, Any]:
    (own,) = (c for c in record(f"export_pays_{name}")["comparisons"] if c["a"].endswith(f", {optimizer}"))
    assert own["b"] == "PPO from scratch, adam"
    return own


def shown(interval: list[float], digits: int = 1) -> str:
    mean, low, high = interval
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def hundreds(interval: list[float]) -> str:
    mean, low, high = (round(value, -2) for value in interval)
    return f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]"


def test_what_the_export_saves_on_pointmass() -> None:
    own = ahead_of_scratch("pointmass", "sgd")
    saved = own["steps_saved"]
    assert f"by {shown(own['mean'])} averaged over the curve, by {shown(own['points'][-1])} at the last" in PROSE
    assert (
        f"scratch ends {hundreds(saved['interval'])} of {saved['budget']:,} env steps earlier, on every task." in PROSE
    )
    assert min(saved["by_task"]) > 0
    assert all(low > 0.0 for _, low, _ in own["points"])


def test_what_the_export_saves_on_halfcheetahvel() -> None:
    own, adam = (ahead_of_scratch("halfcheetahvel", name) for name in ("sgd", "adam"))
    saved = own["steps_saved"]
    assert f"by {shown(own['mean'])} averaged over the curve with the export's own settings" in PROSE
    assert f"and by {shown(adam['mean'])} with Adam." in PROSE
    earlier, same, later = (
        sum(condition) for condition in zip(*[(s > 0, s == 0, s < 0) for s in saved["by_task"]], strict=True)
    )
    words = {1: "one", 2: "two"}
    slower = -min(saved["by_task"])
    assert (
        f"it is {hundreds(saved['interval'])} of {saved['budget']:,} env steps earlier: on {earlier} of the "
        f"{len(saved['by_task'])} tasks; {words[same]} saved nothing, and {words[later]} took {slower:,} more."
    ) in PROSE


def test_the_coverage_of_intervals() -> None:
    rows = {(r["run_spread"], r["runs"]): r for r in record("coverage")["rows"]}
    section = RESULTS.partition("## How far the intervals hold")[2].partition("\n## ")[0]
    lines = [cells(line) for line in section.splitlines() if " of a run on a task)" in line]
    assert len(lines) == 4
    for label, *row in lines:
        spread = float(numbers(label)[0])
        for n_runs, cell in zip((1, 2, 3, 5, 10), row, strict=True):
            own = rows[spread, n_runs]
            for text, value in zip(cell.split(", "), (own["mean"], own["difference"]), strict=True):
                assert abs(float(text) - 100.0 * value) <= 0.5001, f"{label}, {n_runs} runs: {cell}"


def test_the_coverage_of_intervals_on_few_tasks() -> None:
    rows = {(r["returns"], r["tasks"]): (r["mean"], r["difference"]) for r in record("coverage")["few_tasks"]}
    section = RESULTS.partition("## How far the intervals hold")[2].partition("\n## ")[0]
    lines = {
        line[0]: line[1:] for line in map(cells, section.splitlines()) if line[0] in ("tasks", "normal", "lognormal")
    }
    for returns in ("normal", "lognormal"):
        for n_tasks, cell in zip(map(int, lines["tasks"]), lines[returns], strict=True):
            for text, value in zip(cell.split(", "), rows[returns, n_tasks], strict=True):
                assert abs(float(text) - 100.0 * value) <= 0.5001, f"{returns}, {n_tasks} tasks: {cell}"
    # What a difference needs to count as clear: about the coverage that there is with many tasks.
    few, enough = 10, MIN_UNITS
    for returns, least in (("normal", 0.93), ("lognormal", 0.92)):
        assert rows[returns, few][1] < least <= rows[returns, enough][1]
