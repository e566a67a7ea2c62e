"""What returns are after 0, 1, … of: inner steps, or what else an evaluation counts."""

from __future__ import annotations

from typing import Literal

POINTS = {"step": "inner steps", "episode": "episodes", "support": "batches seen", "task": "tasks met"}
"""One of them, and what an axis of them is called."""
Point = Literal["step", "episode", "support", "task"]


def so_many(n: int, point: str = "step") -> str:
    """Return a number of inner steps, or of what else returns are after so many of, in words: ``2 steps``."""
    return f"{n} {point}" if n == 1 else f"{n} {point}s"
