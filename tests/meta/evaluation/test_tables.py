"""Tables in terminals of any width: every number is whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from metarl.meta.evaluation.tables import Table

TABLE = Table(
    ["algo", "0 steps", "gain"],
    [["full run, [recorded]", "-1234.56", "1100.25 [1000.75, 1200.50]"], ["random", "-54.85", ""]],
    title="Line-v0, [test] tasks",
    notes=["95% intervals over 40 tasks"],
)


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60, 100])
@pytest.mark.parametrize("soft_wrap", [True, False])
def test_nothing_is_cut_at_any_width(width: int, soft_wrap: bool) -> None:
    screen = Console(file=io.StringIO(), width=width, soft_wrap=soft_wrap, force_terminal=True, color_system=None)
    screen.print(TABLE)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    words = f"{TABLE.title} {' '.join(cell for row in TABLE.rows for cell in row)} {TABLE.notes[0]}".split()
    joined = "".join(shown.split())
    assert all(word in (shown if len(word) < width else joined) for word in words), shown
    if soft_wrap is False:
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= width


def test_a_wide_terminal_draws_the_table() -> None:
    screen = Console(file=io.StringIO(), width=100, color_system=None)
    screen.print(TABLE)
    assert "┃ algo" in screen.file.getvalue()  # type: ignore[attr-defined]
