"""The benchmark runs and its record has the shape that it promises; no test looks at a time."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    commits,
    copies,
    coverage,
    maltml,
    measure,
    meta_transfer,
    omniglot,
    search,
    sinusoid,
    speed,
    watching,
)
from metarl.meta.evaluation.statistics import MIN_UNITS
from metarl.zoo import __main__ as zoo


def test_a_quick_run_prints_tables_and_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "speed.json"
    speed.main(["--quick", "--only", "ant_collect", "update", "-o", str(path)])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"] == "python -m benchmarks.speed --only ant_collect update --quick"
    assert {"commit", "machine", "versions", "threads", "seed"} <= set(record)
    assert set(record["machine"]) == {"cores", "cpu"}
    assert {"python", "torch", "mujoco", "numpy"} <= set(record["versions"])
    assert list(record["entries"]) == ["ant_collect", "update"]
    for entry in record["entries"].values():
        assert entry["what"]
        assert entry["rows"]
        for row in entry["rows"]:
            assert row["case"]
            assert row["ratio"] > 0
            assert row["met"] == ((row["ratio"] >= float(row["target"][2:])) == row["target"].startswith("≥"))
    for row in record["entries"]["ant_collect"]["rows"]:
        assert row["replayed_bit_for_bit"]
    text = capsys.readouterr().out
    assert "ant_collect" in text
    assert "ratio" in text


def test_a_quick_run_compares_watched_with_unwatched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "watching.json"
    watching.main(["--quick", "-o", str(path)])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"] == "python -m benchmarks.watching --quick"
    assert [row["case"].split(",")[0] for row in record["rows"]] == ["VPG"] + ["SB3 PPO"] * 3
    for row in record["rows"]:
        assert row["same_bit_for_bit"]
        low, high = row["ratio_interval"]
        assert row["ratio_range"][0] <= low <= row["ratio"] <= high <= row["ratio_range"][1]
        assert row.get("met") == (row["ratio"] <= 1.05 if "target" in row else None)
    assert ["target" in row for row in record["rows"]] == [True, True, True, False]
    assert "ratio" in capsys.readouterr().out


def test_a_quick_run_compares_a_plain_loop_over_tasks_with_the_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "sinusoid.json"
    sinusoid.main(["--quick", "-o", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert row["met"] == (row["ratio"] >= 5.0)
    assert row["iterations_a_second"] > 0
    assert row["largest_difference_of_parameters"] < 1e-4


def test_a_quick_run_compares_a_plain_nested_loop_with_gradients_of_third_order(tmp_path: Path) -> None:
    path = tmp_path / "maltml.json"
    maltml.main(["--quick", "-o", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert row["case"].startswith("MALTML, 2 families")
    assert row["met"] == (row["ratio"] >= 5.0)
    assert row["largest_difference_of_parameters"] < 1e-5


def test_a_quick_run_compares_inner_steps_on_drawings_with_a_plain_loop_over_tasks(tmp_path: Path) -> None:
    path = tmp_path / "omniglot.json"
    omniglot.main(["--quick", "-o", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert row["case"] == "OmniglotFewShot-v0, 2 tasks, 2 steps on 2 images, 4 filters, strided"
    assert row["met"] == (row["ratio"] >= 1.0)
    assert row["largest_difference_of_parameters"] < 1e-4


def test_a_quick_run_compares_a_plain_loop_over_tasks_with_the_same_transfer(tmp_path: Path) -> None:
    path = tmp_path / "meta_transfer.json"
    meta_transfer.main(["--quick", "-o", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["case"].split()[0] for row in rows] == ["linear", "transformer"]
    for row in rows:
        assert row["met"] == (row["ratio"] >= 10.0)
        assert 0.0 < row["relative_difference_of_gradients"] < 1e-4
        assert row["outer_step_ms"] > 0.0


def test_collecting_by_copies_stands_beside_the_same_steps_of_mujoco_alone(tmp_path: Path) -> None:
    path = tmp_path / "copies.json"
    ids = ["HalfCheetahVel-v0", "AntLeg-v0", "Maze-v0", "PointMass-v0"]
    copies.main([*ids, "--expert", "--quick", "-o", str(path)])
    *robots, maze, point, expert = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in (*robots, expert):
        assert row["replayed_bit_for_bit"]
        assert row["family/limit"] > 0
    assert maze["family/loop"] > 0
    assert point["family_env_steps_per_s"] > 0
    assert "family/limit" not in point


def test_two_trees_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def measure(tree: Path, case: commits.Case, quick: bool) -> dict[str, float]:
        asked.append(tree)
        return {"iteration_s": {1: 9.0, 2: 9.0, 3: 2.0, 4: 1.0, 5: 2.0, 6: 3.0}[len(asked)]}

    monkeypatch.setattr(commits, "measure", measure)
    (row,) = commits.compare(Path("a"), Path("b"), 2, False, ["list"])
    assert asked == [Path("a"), Path("b")] * 3
    assert row == {
        "case": "list: iteration s",
        "before": 2.0,
        "after": 2.0,
        "ratio": 1.0,
        "ratio_range": (0.5, 1.5),
    }


def test_training_is_measured_through_the_command_line() -> None:
    found = commits.measure(commits.ROOT, commits.CASES["fomaml PointMass-v0"], quick=True)
    assert set(found) == {"first_line_s", "iteration_s", "peak_mb"}
    assert min(found.values()) > 0.0
    assert 100.0 < found["peak_mb"] < 2000.0


def test_the_record_knows_no_host_and_no_path() -> None:
    text = json.dumps(measure.circumstances())
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[1]) not in text


def test_sides_take_turns() -> None:
    order: list[str] = []
    timings = measure.interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(timing.wall) for timing in timings.values()] == [3, 3]


def test_ratios_are_paired() -> None:
    ours, theirs = measure.Timing(wall=[1.0, 2.0, 9.0]), measure.Timing(wall=[2.0, 8.0, 9.0])
    assert measure.paired_ratio(ours, theirs) == (0.5, 0.25, 1.0)
    assert measure.judged(0.5, 0.4, at_least=True) == {"ratio": 0.5, "target": "≥ 0.4", "met": True}
    assert measure.judged(0.5, 0.4, at_least=False)["met"] is False


@pytest.mark.parametrize("name", sorted(speed.ENTRIES))
def test_every_entry_says_what_it_measures(name: str) -> None:
    assert (speed.ENTRIES[name].__doc__ or "").strip()


def test_a_search_record_has_a_row_for_each_evaluation_of_each_trial(tmp_path: Path) -> None:
    small = ["meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[8]", "n_inner_steps:1"]
    for rate in ("0.1", "0.3"):
        command = ["train", "--algo", "reptile", "--env", "PointMass-v0", "-n", "800", "--eval-freq", "400"]
        command += ["--seed", "3", "--n-eval-tasks", "3", "--no-progress", "-f", str(tmp_path / "tune")]
        assert zoo.main([*command, "-params", *small, f"inner_lr:{rate}"]) == 0

    def record() -> list[dict[str, str]]:
        search.main([str(tmp_path / "tune"), "-o", str(tmp_path)])
        with open(tmp_path / "reptile_search.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    rows = record()
    assert record() == rows  # each trial once
    shutil.rmtree(tmp_path / "tune" / "reptile" / "PointMass-v0_2")
    assert record() == rows  # trials whose folders are gone stay
    steps = [int(row["env_steps"]) for row in rows]
    assert [row["inner_lr"] for row in rows] == ["0.1"] * (len(rows) // 2) + ["0.3"] * (len(rows) // 2)
    assert len(rows) >= 4
    assert steps[0] < steps[1] <= 1200
    assert {row["seed"] for row in rows} == {"3"}
    assert {row["validation_tasks"] for row in rows} == {"3"}
    other = json.loads(rows[0]["other"])
    assert other["policy_kwargs"] == {"activation_fn": "relu", "net_arch": [8]}
    assert other.keys() == {"gae_lambda", "gamma", "policy", "policy_kwargs"}
    assert all(float(row["return_1"]) < 0 for row in rows)
    (tmp_path / "reptile_search.csv").write_text("env,inner_lr\n")
    with pytest.raises(SystemExit, match="is no search record"):
        record()


def test_intervals_hold_the_truth_where_runs_do_not_differ() -> None:
    mean, difference = coverage.coverage(n_runs=3, run_spread=0.0, rest=1.0, trials=100, n_resamples=200)
    assert mean > 0.85
    assert difference > 0.9


def test_few_tasks_make_intervals_too_narrow() -> None:
    sizes: dict[str, Any] = {"trials": 200, "n_resamples": 200}
    assert coverage.coverage(1, 0.0, 2.0, n_tasks=2, **sizes)[0] < 0.65
    for shape, least in (("normal", 0.88), ("lognormal", 0.8)):
        few, enough = (coverage.coverage(1, 0.0, 2.0, n_tasks=n, shape=shape, **sizes)[0] for n in (3, MIN_UNITS))
        assert few < 0.83
        assert enough > least
    drawn = coverage.draw(np.random.default_rng(0), "lognormal", (200_000,))
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)


def test_few_runs_that_differ_make_intervals_too_narrow() -> None:
    assert coverage.coverage(n_runs=2, run_spread=10.0, rest=2.0, trials=100, n_resamples=200)[1] < 0.85
