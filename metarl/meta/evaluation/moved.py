"""Which layers move: in meta-finetuning to a family of tasks, and in adaptation to one of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tables import Table

PHASES = {"meta_finetuning": "meta-finetuning", "finetuning": "adaptation"}
"""What may move layers, by the name in a report, as tables call it."""


def moved_table(reports: Sequence[Report]) -> Table | None:
    """Return how far each layer of each report's model moved, ‖Δ‖ / ‖·‖; None where no report says it."""
    columns: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        moved = report.meta.get("moved")  # a file may say anything
        for phase, words in PHASES.items():
            layers = moved.get(phase) if isinstance(moved, Mapping) else None
            if isinstance(layers, Mapping):
                columns[f"{report.label}: {words}"] = layers
    if not columns:
        return None
    names = dict.fromkeys(name for layers in columns.values() for name in layers)
    rows = [[str(name), *(_share(layers.get(name)) for layers in columns.values())] for name in names]
    notes = ["how far a layer moves, as a share of its length: a mean over families, or over their goal tasks"]
    return Table(["layer", *columns], rows, "Layers that move", notes)


def _share(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, Real) else ""
