"""What a figure looks like once it is drawn."""

from __future__ import annotations

from matplotlib.text import Text


def fits(text: Text) -> bool:
    """Return whether a text lies inside its figure as a whole."""
    figure = text.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    box, paper = text.get_window_extent(), figure.bbox
    return bool(paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0 and box.y1 <= paper.y1)
