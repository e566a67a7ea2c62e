"""Words and records that the tests of experiments share; their runs are the fixture ``smoke``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metarl.meta.evaluation.report import Report

NAME = "first-order-rl"


SMOKE = ["reproduce", NAME, "--scale", "smoke", "--num-threads", "1"]


ALGOS = ("maml", "fomaml", "random", "oracle")


ONE = [*SMOKE, "--only-env", "PointMass-v0", "--only-part", "comparison", "--seeds", "0"]


def read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return document


def reports(record: dict[str, Any]) -> dict[tuple[str, str], Report]:
    """Return those of the comparison."""
    found = (Report.from_json(json.dumps(item)) for item in record["reports"])
    return {(report.env, report.label): report for report in found if "cell" not in report.meta}
