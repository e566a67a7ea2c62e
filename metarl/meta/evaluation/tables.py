"""Tables as plain rows: text anywhere, Markdown in documents, colours where rich shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Rows of text. ``print(table)`` aligns the columns, ``rich.print(table)`` draws them.

    :param columns: names; the first column is aligned to the left, the others to the right.
    :param rows: of ``len(columns)`` cells each.
    :param title: one line above.
    :param notes: lines below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """Return aligned text."""
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for row in [self.columns, *self.rows]:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[0] = row[0].ljust(widths[0])
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """Return a Markdown table, with the title before and the notes after it."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += ["| " + " | ".join(self.columns) + " |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def __rich__(self) -> Fitting:
        """Return what rich draws."""
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(self.title) if self.title else None
        caption = Text("\n".join(self.notes)) if self.notes else None
        table = RichTable(title=title, caption=caption, caption_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return Fitting(table, self.columns, self.rows)


class Fitting:
    """What rich draws of a table; in a terminal too narrow for it, its rows one below another, so that nothing is cut.

    :param table: the table.
    :param columns: the names of its columns.
    :param rows: its text.
    """

    def __init__(self, table: RichTable, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.table, self.columns, self.rows = table, columns, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or lines of text."""
        from rich.measure import Measurement
        from rich.text import Text

        longest_words = Measurement.get(console, options.update_width(10_000), self.table).minimum
        if longest_words <= options.max_width:
            yield self.table
            return
        # Folded between words, and a longer word anywhere: all of it shows.
        fold = options.update(no_wrap=False, overflow="fold")
        lines = [Text(str(self.table.title))] if self.table.title else []
        for row in self.rows:
            lines.append(Text(row[0], style="bold"))
            lines += [Text(f"  {name}: {cell}") for name, cell in zip(self.columns[1:], row[1:], strict=True) if cell]
        for line in [*lines, *([Text(str(self.table.caption))] if self.table.caption else [])]:
            yield from console.render(line, fold)
