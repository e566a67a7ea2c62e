"""The PPO benchmark runs, and its record has the shape that it promises; no test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ppo


def test_a_quick_run_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "ppo.json"
    ppo.main(["--quick", "-o", str(path)])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"] == "python -m benchmarks.ppo --quick"
    assert {"commit", "machine", "versions", "seed", "family"} <= set(record)
    batched, stock = record["rows"]
    assert batched["env_steps_each"] == stock["env_steps_each"] == 2 * 8 * 16
    assert batched["return_before"] == stock["return_before"]
    assert batched["returns"] != stock["returns"]
    assert batched["ratio"] > 0
    assert 0 < batched["update_share"] < 1
    assert "return minus stock" in capsys.readouterr().out
